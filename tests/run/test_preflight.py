"""What a profile takes on this machine: times by measured steps, sizes by hand, and refusals before any computing."""

import json
import re
import shutil
from collections import namedtuple

import pytest
import torch
import xarray as xr

from fimoda_lib.datasets import DATASETS, DataFileNotFound
from fimoda_lib.experiments import panel as pieces
from fimoda_lib.experiments import profiles
from fimoda_lib.experiments import settings as experiments
from fimoda_lib.run import command, foretold, plan, preflight
from fimoda_lib.run.command import main, parser
from fimoda_lib.tasks import parameters_of

STEP = 1e-3
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """A step of one model takes a millisecond one after another, and half of it batched."""
    seconds = xr.DataArray([STEP / 2, STEP], dims="engine", coords={"engine": ["batched", "sequential"]})
    monkeypatch.setattr(foretold, "measure", lambda *_: xr.Dataset({"seconds_per_step": seconds}))


def options(results):
    return parser().parse_args(["--profile", "smoke", "--results", str(results), "--jobs", "1"])


def test_times_and_sizes_are_those_of_the_settings(tmp_path, monkeypatch):
    """Wine with the smoke profile, by hand: 142 training instances, 2 steps an epoch, 4 left out, 8 test instances."""
    further = preflight.piece("wine", "sgd", options(tmp_path))
    s = pieces.Panel("wine", "smoke", results=tmp_path, compute=False).settings
    epochs = s.further.epochs
    assert further.seconds == pytest.approx(2 * (1 + 4) * 2 * epochs * STEP / 2)  # seeds, runs, steps
    assert further.disk == 2 * epochs * 8 * (4 * 4 + 8)  # seeds; float32 for each left out, float64 for the full run
    final = preflight.piece("wine", "final model", options(tmp_path))
    assert final.seconds == pytest.approx(2 * s.final.epochs * STEP / 2)
    again = preflight.piece("wine", "retraining", options(tmp_path))
    assert again.seconds == pytest.approx((1 + 4) * 2 * s.final.epochs * STEP / 2)
    scores = preflight.piece("wine", "scores", options(tmp_path))
    parameters = pieces.n_parameters(parameters_of(pieces.Panel("wine", "smoke", compute=False).task.model))
    # A row of the curvature's factor for each instance of one output, and five vectors for each test instance.
    assert scores.seconds == 0 and scores.memory - final.memory == 8 * parameters * (142 + 5 * 8)
    monkeypatch.setattr(preflight, "choose_device", lambda device: torch.device("cuda"))  # whose memory is its own
    assert preflight.piece("wine", "scores", options(tmp_path)).memory == final.memory
    losses = 2 * epochs * 8 * (4 * 4 + 8)  # of one seed, twice, and the other's way round: of two on the disk
    assert preflight.piece("wine", "sgd", options(tmp_path)).memory == final.memory + losses < further.memory


def test_a_driver_that_pytorch_cannot_use_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "gpus", list)
    for there, said in ((False, "none"), (True, "PyTorch uses none, though there is a driver")):
        driver = tmp_path / "version"
        if there:
            driver.touch()
        monkeypatch.setattr(preflight, "DRIVER", driver)
        assert preflight.of_machine(options(tmp_path))[-1].here.startswith(said)


def test_scores_and_studies_are_estimated_from_a_run_and_the_speed_of_both_machines(tmp_path, monkeypatch, capsys):
    there = {
        ("smoke", "wine", "scores"): foretold.Took(90.0, 0),
        ("smoke", "wine", "studies"): foretold.Took(40 * 60.0, 0),
        ("smoke", "wine", "step"): foretold.Took(STEP / 8, 0),
    }  # here it is STEP / 2
    monkeypatch.setattr(foretold, "there", lambda: there)
    assert preflight.piece("wine", "scores", options(tmp_path)).seconds == pytest.approx(4 * 90)
    assert preflight.piece("wine", "studies", options(tmp_path)).seconds == pytest.approx(4 * 40 * 60)
    alone = preflight.piece("wine", "sgd", options(tmp_path)).seconds
    # A trial on that machine took as long as here, and the steps of its run, compiled, a quarter of that.
    tried = there | {("smoke", "wine", "trial"): foretold.Took(STEP / 2, 0)}
    monkeypatch.setattr(foretold, "there", lambda: tried)
    assert preflight.piece("wine", "scores", options(tmp_path)).seconds == pytest.approx(90)
    assert preflight.piece("wine", "sgd", options(tmp_path)).seconds == pytest.approx(alone / 4)
    monkeypatch.setattr(foretold, "there", lambda: there)
    words = ["--profile", "smoke", "--results", str(tmp_path), "--jobs", "2", "--datasets", "wine", "--only"]
    for figures, expected in ((["fig02"], "3 min"), (["fig02", "fig_limit"], "83 min")):
        assert main(["check", *words, *figures]) == 0
        (time,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time")]
        assert re.match(rf"time +{expected} +2 x .*estimated from an earlier run", time), time


def test_the_rows_of_a_run_are_sums_of_its_sidecars(tmp_path):
    peak = 100

    def put(stem, seconds, written="2026-01-01", **specification):
        nonlocal peak
        peak += 1
        note = {"seconds": seconds, "written": written, "specification": specification, "peak_memory_MiB": peak}
        (tmp_path / f"{stem}.json").write_text(json.dumps(note))

    put(
        "further-wine-sgd-drop-seed0-a", 30.0, removal="drop", optimizer={"name": "sgd"}, left_out=[1, 2], steps=[1, 10]
    )
    put("further-wine-adam-drop-seed0-a", 3.0, removal="drop", optimizer={"name": "adam"}, left_out=[1], steps=[1])
    put("further-wine-sgd-mask-seed0-a", 5.0, removal="mask")
    put("groups-wine-cg-a", 7.0)
    put("final-wine-a", 100.0)
    put("scores-wine-cg-a", 1000.0, hyper={})
    put("scores-wine-cg-b", 1.0, "2026-01-02", hyper={})  # computed again
    put("scores-wine-trak-a", 2.5, hyper={})
    put("scores-wine-exact-a", 4.0, hyper={})
    put("scores-wine-lft-a", 8.0, hyper={"further_training": {"optimizer": "adam"}})
    put("scores-wine-lft-b", 9.0, hyper={"further_training": {"optimizer": "sgd"}})
    rows = [
        ("wine", "lft, adam", 8.0, 110),
        ("wine", "lft, sgd", 9.0, 111),
        ("wine", "scores", 3.5, 108),
        ("wine", "step", 1.0, 105),  # and the final model's memory
        ("wine", "studies", 16.0, 109),
    ]
    assert foretold.record(tmp_path) == rows


def test_memory_is_what_a_worker_held_in_a_run_or_more(tmp_path, monkeypatch, capsys):
    words = ["--profile", "smoke", "--results", str(tmp_path), "--jobs", "2", "--datasets", "wine", "--only", "fig02"]
    monkeypatch.setattr(preflight, "free_memory", lambda device: 10**11)

    def gigabytes(peak):
        monkeypatch.setattr(foretold, "there", lambda: {("smoke", "wine", "step"): foretold.Took(STEP, peak)})
        assert main(["check", *words]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory")]
        return float(line.split()[1])

    counted = gigabytes(0)
    assert 1.2 <= counted < 1.5  # two processes with their libraries, and next to no data
    assert gigabytes(3_000) == round(2 * 3_000 * 2**20 / 1e9, 1) and gigabytes(1) == counted


def test_a_run_takes_the_place_of_an_earlier_one_of_its_profile(tmp_path, monkeypatch):
    measured = tmp_path / "measured.csv"
    measured.write_text("profile,dataset,kind,seconds,peak_MiB\nquick,wine,scores,1.0,\nsmoke,wine,scores,2.0,300\n")
    monkeypatch.setattr(foretold, "MEASURED", measured)
    monkeypatch.setattr(foretold, "record", lambda results: [("wine", "scores", 3.0, 500), ("wine", "step", 0.5, 700)])
    foretold.there.cache_clear()
    foretold.renew(tmp_path / "smoke")
    foretold.there.cache_clear()
    asked = [("smoke", "scores"), ("smoke", "adam"), ("quick", "scores"), ("laptop", "scores")]
    found, peaks = foretold.there(), [foretold.peak_bytes(profile, "wine", kind) for profile, kind in asked]
    foretold.there.cache_clear()
    assert peaks == [500 * 2**20, 700 * 2**20, 0, 0]
    assert found == {
        ("quick", "wine", "scores"): (1.0, 0),
        ("smoke", "wine", "scores"): (3.0, 500),
        ("smoke", "wine", "step"): (0.5, 700),
        ("smoke", "wine", "trial"): (STEP / 2, 0),
    }


def test_the_measured_run_has_all_data_sets_of_the_paper():
    rows = foretold.there()
    for kind in ("scores", "lft, sgd", "studies", "step"):
        assert {dataset for profile, dataset, k in rows if (profile, k) == ("overnight", kind)} == {*plan.PANELS}, kind
    assert all(took.seconds > 0 for took in rows.values())


def test_what_is_finished_takes_no_more(tmp_path):
    panel = pieces.Panel("wine", "smoke", results=tmp_path)
    before = preflight.piece("wine", "sgd", options(tmp_path))
    _ = panel.params
    assert preflight.piece("wine", "final model", options(tmp_path)).seconds == 0
    pieces.one_seed(panel, 1).gold  # noqa: B018
    after = preflight.piece("wine", "sgd", options(tmp_path))
    assert (after.seconds, after.disk) == (before.seconds / 2, before.disk / 2)


def test_several_seeds_of_retraining_are_pieces_of_their_own(tmp_path, monkeypatch):
    from dataclasses import replace

    from fimoda_lib.run.shards import shards_of
    from fimoda_lib.run.status import lines

    monkeypatch.setitem(profiles.PROFILES, "smoke", replace(profiles.PROFILES["smoke"], retrain_seeds=3))
    shards = shards_of([("wine", "retraining")], "smoke", tmp_path)
    assert [s.label for s in shards] == [f"retraining, wine, seed {k}" for k in range(3)]
    found = shards[1].piece(shards[1].panel(compute=True))()
    assert found.seed.values.tolist() == [1] and [s.stored for s in shards] == [False, True, False]
    (line,) = lines([("wine", "retraining")], "smoke", tmp_path)
    assert (len(line.done), line.missing) == (1, 2)
    whole = pieces.Panel("wine", "smoke", results=tmp_path).retrained
    assert whole.seed.values.tolist() == [0, 1, 2]
    xr.testing.assert_identical(whole.sel(seed=[1]).delta, found.delta)


def test_the_check_ends_in_one_table_and_computes_nothing(tmp_path, capsys):
    results = tmp_path / "results"
    words = ["--profile", "quick", "--datasets", "wine", "digits", "--results", str(results), "--jobs", "2"]
    assert main(["check", *words]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.strip().splitlines()[1:]]
    assert rows == ["data", "time", "disk", "memory", "compiler", "GPU"]
    assert not results.exists()


@pytest.mark.parametrize("asked", [["check"], []])
@pytest.mark.parametrize("what", ["disk", "memory"])
def test_too_little_is_said_in_one_sentence_before_anything_is_computed(what, asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("it began"))
    if what == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1, 1, 10_000_000))
    else:
        monkeypatch.setattr(preflight, "free_memory", lambda device: 10_000_000)
    words = ["--profile", "quick", "--datasets", "wine", "--only", "fig02", "--results", str(tmp_path / "results")]
    assert main([*asked, *words]) == 2
    output = capsys.readouterr()
    (message,) = output.err.strip().splitlines()
    assert re.match(rf"run_all\.sh: Profile quick needs [\d.]+ GB of {what}, and 0\.0 GB are free", message)
    assert message.endswith("take a smaller profile.") and "NOT ENOUGH" in output.out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("asked", [["check"], []])
def test_data_that_are_not_there_are_all_told_of_in_the_table(asked, tmp_path, capsys, monkeypatch):
    def require(name, *_):
        if name in ("fico", "folktables", "sst2"):
            raise DataFileNotFound(f"{name} is not there; put it there.")

    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(experiments, "require", require)
    words = ["--profile", "laptop", "--results", str(tmp_path / "results"), "--jobs", "2"]
    for more, there, missing in (
        ([], ["concrete", "energy", "adult", "cifar10"], ["fico", "sst2"]),  # Adult stands in for Folktables
        (["--only", "fig03"], ["adult"], ["sst2"]),  # Figure 3 does not show FICO
        (["--datasets", "sst2", "wine"], ["wine"], ["sst2"]),
    ):
        assert main([*asked, *words, *more]) == 2
        output = capsys.readouterr()
        rows = dict(line.split(maxsplit=1) for line in output.out.strip().splitlines()[1:])
        assert list(rows) == ["data", "time", "disk", "memory", "compiler", "GPU"]
        here, gone = (", ".join(DATASETS[name].title for name in names) for names in (there, missing))
        assert re.split("data sets +", rows["data"])[1] == f"{here}; without {gone} -- NOT ENOUGH"
        expected = [f"{name} is not there; put it there." for name in missing]
        assert output.err.removeprefix("run_all.sh: ").splitlines() == expected
    assert main(["status", *words]) == 2 and not (tmp_path / "results").exists()
    assert capsys.readouterr().err == "run_all.sh: fico is not there; put it there.\n"


def test_overnight_has_the_seeds_that_were_asked_for():
    seeds = profiles.PROFILES["overnight"].n_seeds
    assert [seeds("sgd", d) for d in ("concrete", "energy", "fico", "folktables", "cifar10")] == [100, 100, 20, 20, 5]
    assert [seeds("adam", d) for d in ("concrete", "energy", "fico", "folktables")] == [20, 20, 5, 5]
    assert seeds("adamw", "sst2") == 5 and profiles.PROFILES["overnight"].retrain_seeds > 1
