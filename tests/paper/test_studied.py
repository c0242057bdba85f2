"""Studies as pieces of work: each is known by its figure, computed once, and whole again if a part of it is lost."""

import pandas as pd
import pytest
import xarray as xr

from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper import beyond, selection
from fimoda_lib.paper.studied import STUDIES, noted, path_of
from fimoda_lib.plots.panels import LETTERS
from fimoda_lib.run import plan
from fimoda_lib.run.shards import shards_of
from fimoda_lib.run.status import files_of, lines
from fimoda_lib.storage.store import Missing, cached


class Asked(Exception):
    pass


@pytest.mark.parametrize("name", STUDIES)
def test_a_worker_computes_what_the_figure_shows(name, tmp_path, monkeypatch):
    def seen(figure, panel, make):
        raise Asked(figure, make)

    monkeypatch.setattr(beyond, "noted", seen)
    with pytest.raises(Asked) as found:
        (beyond.FIGURES | selection.FIGURES)[name](
            {k: Panel("wine", "smoke") for k in LETTERS[name].values()}, tmp_path
        )
    assert found.value.args == (name, STUDIES[name])


def test_every_figure_of_a_study_is_one(monkeypatch):
    assert plan.STUDIES == tuple(STUDIES)
    others = {"fig02plus", "fig04plus", "fig_filter", "table_horizons"}
    assert {*plan.BEYOND, *plan.SELECTION} - {*STUDIES} == others


@pytest.fixture
def panel(tmp_path, trained):
    trained(tmp_path, "wine")
    return Panel("wine", "smoke", results=tmp_path)


def test_it_is_computed_once_and_what_is_lost_again(panel):
    computed = []

    def make(panel):
        def compute():
            computed.append("piece")
            return xr.Dataset({"x": ("row", [1.0, 2.0])})

        found = cached(panel.folder, "piece-wine", {}, compute, compute_missing=panel.compute)
        return found.to_dataframe()

    with pytest.raises(Missing):
        noted("fig_lds", panel.other(compute=False), make)
    path = path_of("fig_lds", panel)
    assert not path.exists() and computed == []
    tables = [noted("fig_lds", panel, make) for _ in range(2)]
    assert path.exists() and computed == ["piece"]
    (piece,) = panel.folder.glob("piece-wine-*.nc")
    piece.unlink()
    tables.append(noted("fig_lds", panel, make))
    assert computed == ["piece"] * 2
    for table in [*tables, noted("fig_lds", panel.other(compute=False), make)]:
        pd.testing.assert_frame_equal(table, tables[0])
    assert path_of("fig_limit", panel) != path != path_of("fig_lds", panel.other(optimizer="adam"))


def test_what_fails_is_not_noted(panel):
    with pytest.raises(ZeroDivisionError):
        noted("fig_lds", panel, lambda _: 1 / 0)
    assert not path_of("fig_lds", panel).exists()


def test_it_is_a_shard_of_its_data_set(panel):
    (shard,) = shards_of([("wine", "fig_precision")], "smoke", panel.results)
    assert shard.label == "study, wine, fig_precision" and shard.needs_final_model and not shard.stored
    table = shard.piece(shard.panel(compute=True))()
    assert shard.stored and {"sensitivity", "float32"} <= {*table}
    (line,) = lines([("wine", "fig_precision")], "smoke", panel.results)
    assert (line.label, len(line.done), line.missing) == ("study, fig_precision, wine", 1, 0)
    assert files_of(panel, "fig_precision") == [shard.path(panel)] and line.seconds_each > 0


def test_studies_are_handed_out_by_figure_for_the_data_sets_that_it_shows():
    from fimoda_lib.run import command

    words = ["--profile", "smoke", "--only", "fig_limit", "fig_lds", "fig02plus", "--datasets", "diabetes", "digits"]
    work = plan.work_of(plan.plan(command.parser().parse_args(words)))
    studies = [item for item in work if item[1] in STUDIES]
    assert studies == [("diabetes", "fig_lds"), ("digits", "fig_lds"), ("diabetes", "fig_limit")]
    assert ("diabetes", "timed, sgd") in work and ("digits", "lft, sgd") in work
