"""`run_all.sh status` and `--fresh`: what is done, running and missing, without computing or reading anything."""

import json
import math

import pytest

from fimoda_lib.experiments.panel import PAPER_METHODS, Panel
from fimoda_lib.run import command as run
from fimoda_lib.run import status
from fimoda_lib.storage.folders import claimed

WORK = [("wine", kind) for kind in ("final model", "sgd", "adam", "retraining", "scores", "lft, adam")]


@pytest.fixture(scope="module")
def results(tmp_path_factory, trained):
    """The final model, further training with SGD but not Adam, training from scratch, one of the scores."""
    folder = tmp_path_factory.mktemp("results")
    trained(folder, "wine")
    panel = Panel("wine", "smoke", results=folder)
    panel.scores("grad_dot")
    assert panel.retrained.sizes["seed"] == 1
    return folder


def found(results):
    return {line.label: line for line in status.lines(WORK, "smoke", results)}


def counts(line):
    return len(line.done), line.running, line.missing


def files(folder):
    return sorted((p.name, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_nothing_is_done_at_first(tmp_path):
    lines = found(tmp_path)
    assert {label: counts(line) for label, line in lines.items()} == {
        "final model, wine": (0, 0, 1),
        "scores, wine": (0, 0, len(PAPER_METHODS)),
        "further training, wine, sgd": (0, 0, 2),
        "further training, wine, adam": (0, 0, 2),
        "retraining, wine": (0, 0, 1),
        "lft, wine, adam": (0, 0, 1),
    }
    assert all(math.isnan(line.seconds_left) for line in lines.values())
    text = status.table(list(lines.values()))
    assert (
        "not counted, because none of their kind is finished: final model, wine; further training, wine, sgd;" in text
    )
    assert files(tmp_path) == []


def test_finished_pieces_are_found_by_their_whole_specification(results):
    before = files(results)
    lines = found(results)
    assert {label: counts(line) for label, line in lines.items()} == {
        "final model, wine": (1, 0, 0),
        "scores, wine": (1, 0, len(PAPER_METHODS) - 1),
        "further training, wine, sgd": (2, 0, 0),
        "further training, wine, adam": (0, 0, 2),
        "retraining, wine": (1, 0, 0),
        "lft, wine, adam": (0, 0, 1),
    }
    named = [path for line in lines.values() for path in line.done]
    assert sorted(named) == sorted((results / "smoke").glob("*.nc"))
    assert lines["further training, wine, sgd"].seconds_left == 0
    assert files(results) == before


def test_what_is_missing_and_running_takes_as_long_as_what_is_done(results, tmp_path):
    line = found(results)["further training, wine, sgd"]
    first, second = line.paths
    aside = tmp_path / second.name
    second.rename(aside)
    sidecar = json.loads(first.with_suffix(".json").read_text())
    try:
        assert counts(line) == (1, 0, 1)
        assert line.seconds_each == line.seconds_left == sidecar["seconds"] > 0
        with claimed(second):
            assert counts(line) == (1, 1, 0) and line.seconds_left == sidecar["seconds"]
        assert counts(line) == (1, 0, 1)
    finally:
        aside.rename(second)


def test_the_command_prints_it_and_computes_nothing(results, capsys):
    before = files(results)
    options = ["--profile", "smoke", "--datasets", "wine", "--results", str(results)]
    assert run.main(["status", *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    for label, expected in {
        "further training, wine, sgd": ["2", "0", "0"],
        "further training, wine, adam": ["0", "0", "2"],
        "retraining, wine": ["1", "0", "0"],
        "scores, wine": ["1", "0", str(len(PAPER_METHODS) - 1)],
        "lft, wine, sgd": ["0", "0", "1"],
        "lft, wine, adam": ["0", "0", "1"],
    }.items():
        (row,) = (line for line in printed if line.startswith(f"{label} "))
        assert row.removeprefix(label).split()[:3] == expected
    assert files(results) == before


def test_all_done_is_said():
    text = status.table([status.Line("final model, x", 0)])
    assert "All of this is done" in text and "Left: about" not in text


def test_data_that_is_not_there_is_said(tmp_path, monkeypatch):
    def missing(_):
        raise status.DataFileError("Put the file there.")

    monkeypatch.setattr(Panel, "settings", property(missing))
    (line,) = status.lines([("fico", "sgd")], "smoke", tmp_path)
    assert "further training, fico, sgd: Put the file there." in status.table([line])


def test_fresh_renames_the_results_of_the_profile_only(tmp_path, monkeypatch, capsys):
    for name in ("smoke", "quick"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result").write_text(name)
    monkeypatch.setattr(run, "run", lambda stages, options: 0)
    options = ["--profile", "smoke", "--datasets", "wine", "--results", str(tmp_path)]
    assert run.main(options) == 0 and (tmp_path / "smoke").exists()
    assert run.main([*options, "--fresh"]) == 0 and not (tmp_path / "smoke").exists()
    (kept,) = tmp_path.glob("smoke.set-aside-*")
    assert (kept / "result").read_text() == "smoke" and (tmp_path / "quick" / "result").exists()
    assert kept.name in capsys.readouterr().out
    (tmp_path / "smoke").mkdir()
    with claimed(tmp_path / "smoke" / "x.nc"):
        assert run.main([*options, "--fresh"]) == 2
    assert "a run is computing x there" in capsys.readouterr().err and (tmp_path / "smoke").exists()
