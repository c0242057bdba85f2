"""The benchmark: a new method beside all known ones, against a stored gold standard."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from fimoda_lib import METHODS, benchmark, sensitivity, similarity
from fimoda_lib.datasets import DATASETS, DataFileError, available
from fimoda_lib.experiments import profiles, standards
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper import report
from fimoda_lib.paper.benchmark import leaderboard, made_by, standings
from fimoda_lib.paper.notebook_pages import pages
from fimoda_lib.run.command import main
from fimoda_lib.storage import provenance
from fimoda_lib.storage.folders import StoreError

KNOWN = ("grad_dot", "grad_cos", "lft")
COMMITTED = standards.stored_names()


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained):
    """A small gold standard of wine, in a folder of its own, and the panel that it was made from."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("standards")
        patch.setattr(standards, "STORED", folder)
        trained(results := tmp_path_factory.mktemp("results"), "wine")
        panel = Panel("wine", "smoke", results=results)
        standards.write_standard(panel, methods=KNOWN)
    return panel, folder


@pytest.fixture(autouse=True)
def stored(made, monkeypatch, request):
    """Has all but the tests of what is committed use the small one."""
    if "committed" not in request.node.name:
        monkeypatch.setattr(standards, "STORED", made[1])
    return made[0]


def test_a_gold_standard_is_read_when_its_profile_has_changed(stored, monkeypatch):
    smaller = replace(profiles.PROFILES["smoke"], left_out=2)
    monkeypatch.setitem(profiles.PROFILES, "smoke", smaller)
    panel, gold, _, _ = standards.read_standard("wine")
    assert panel.settings.left_out == tuple(gold.left_out.values) and len(gold.left_out) == 4


def test_its_curvature_goes_on_being_that_of_its_own_left_out_instances(stored, monkeypatch):
    smaller = replace(profiles.PROFILES["smoke"], left_out=2, many=50, of_many=60)
    monkeypatch.setitem(profiles.PROFILES, "smoke", smaller)
    panel, gold, _, _ = standards.read_standard("wine")
    assert len(panel.settings.curvature) == 60 and {*gold.left_out.values} <= {*panel.settings.curvature}
    assert not {*gold.left_out.values} <= {*Panel("wine", "smoke").settings.curvature}


@pytest.mark.parametrize("name", [name for name in COMMITTED if name != "cifar10"])  # its own test has it unpacked
def test_what_is_committed_can_be_read_where_its_data_are(name):
    if not available(name):
        pytest.skip("needs the data file")
    panel, gold, rows, _ = standards.read_standard(name)
    assert panel.settings.left_out == tuple(gold.left_out.values) and {"grad_dot", "lft"} <= {*rows.method}


def own(table):
    return table[~table["stored"]]


@pytest.mark.parametrize("method", ["grad_dot", "lft"])
def test_rows_are_the_curves_of_the_figures_at_the_stored_horizons(stored, method):
    table = benchmark(method, "wine")
    curve = similarity(stored.scores(method), sensitivity(stored.gold))["mean"]
    other = similarity(stored.scores("grad_cos"), sensitivity(stored.gold))["mean"]
    for rows in (own(table), table[table["stored"] & (table["method"] == method)]):
        steps = rows["step"].values
        np.testing.assert_allclose(rows["similarity"], curve.sel(step=steps), atol=1e-4)
        assert abs(rows["similarity"].values - other.sel(step=steps).values).max() > 0.01


def test_the_method_comes_first_and_all_known_ones_beside_it(stored):
    table = benchmark(METHODS["grad_dot"].function, "wine")
    assert not table["stored"].iloc[0] and {*table[table["stored"]]["method"]} == {*KNOWN}
    assert (table["low"] <= table["similarity"]).all() and (table["similarity"] <= table["high"]).all()
    assert (table["seconds"] > 0).all() and (table["memory_MiB"] >= 0).all() and table["ceiling"].between(0, 1).all()
    assert "profile smoke, 2 seeds, 4 left-out and 8 test instances" in table.attrs["made by"]
    board = leaderboard(table)
    assert [*board.index].count("> Grad-Dot") == 1 and board.index[-1] == "noise ceiling"
    means = board["mean"].iloc[:-1]
    assert means.is_monotonic_decreasing and np.allclose(board.iloc[:, : len(own(table))].mean(axis=1), board["mean"])


def test_the_halves_are_means_of_disjoint_seeds(made, monkeypatch):
    panel, _ = made
    _, gold, _, _ = standards.read_standard("wine")
    exact = panel.gold.delta.sel(step=gold.step).astype("float64")
    np.testing.assert_allclose(gold.delta, exact.transpose(*gold.delta.dims), rtol=2.0**-standards.BITS)
    assert not np.array_equal(gold.delta, exact)


def perfect(task, params, *, train, test, curvature, horizon=None, further_training=None):
    """Knows the answer."""
    assert further_training["optimizer"] == "sgd" and further_training["learning_rate"] > 0
    _, gold, _, _ = standards.read_standard("wine")
    measured = sensitivity(gold, "full").transpose("step", "test", "left_out")
    assert train.tolist() == gold.left_out.values.tolist() and horizon == gold.step.values.tolist()
    return torch.from_numpy(measured.values), {"horizon": horizon}


def test_a_method_is_given_the_horizons_and_a_perfect_one_scores_1(stored):
    assert np.allclose(own(benchmark(lambda *a, **k: perfect(*a, **k)[0][0], "wine"))["similarity"].iloc[0], 0)
    rows = own(benchmark(centred, "wine"))
    np.testing.assert_allclose(rows[["similarity", "high"]], 1, atol=1e-12)
    assert (rows["low"] < 1).all()


def centred(task, params, *, train, test, curvature, horizon=None, further_training=None):
    scores, report = perfect(**locals())
    return scores - scores.mean(-1, keepdim=True), report


def constant(task, params, *, train, test, curvature, value=1.0):
    return torch.full((len(test), len(train)), value)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_rubbish_scores_0(value):
    rows = own(benchmark(constant, "wine", value=value))
    np.testing.assert_allclose(rows["similarity"], 0, atol=1e-7)
    assert (rows["undefined"] == (8 if value == 0 else 0)).all() and (rows["outcome"] == "finished").all()


def breaks(task, params, *, train, test, curvature):
    raise RuntimeError("out of ideas")


def misshapen(task, params, *, train, test, curvature):
    return torch.zeros(len(train), len(test))


def elsewhere(task, params, *, train, test, curvature, horizon=None):
    """Scores for another horizon than those that are asked for."""
    return torch.zeros(1, len(test), len(train)), {"horizon": [horizon[-1] + 1]}


def as_numbers(task, params, *, train, test, curvature):
    return np.arange(len(test) * len(train), dtype=float).reshape(len(test), len(train))


def test_a_method_may_return_an_array(stored):
    assert (own(benchmark(as_numbers, "wine"))["outcome"] == "finished").all()


@pytest.mark.parametrize(
    ("method", "hyper", "sentence"),
    [
        (breaks, {}, "breaks has no scores: RuntimeError: out of ideas."),
        (misshapen, {}, "misshapen returned scores of shape (4, 8), expected (8, 4)"),
        (constant, {"value": float("nan")}, "NaN or infinite scores for 8 of 8 test instances"),
        (lambda task, params, *, train, test, curvature: "scores", {}, "returned str 'scores'; expected a tensor of"),
        (elsewhere, {}, "elsewhere has no scores: "),
    ],
)
def test_a_method_that_fails_scores_0_and_has_its_sentence(method, hyper, sentence):
    table = benchmark(method, "wine", **hyper)
    rows = own(table)
    assert (rows["similarity"] == 0).all() and sentence in rows["outcome"].iloc[0]
    assert rows["outcome"].iloc[0].endswith(".") and "\n" not in rows["outcome"].iloc[0]
    assert "> " + rows["label"].iloc[0] in leaderboard(table).index


@pytest.mark.parametrize(
    ("arguments", "hyper", "sentence"),
    [
        (("no_such_method", "wine"), {}, "There is no method 'no_such_method'; choose one of cg"),
        ((constant, "wine"), {"other": 1}, "constant has no hyper-parameter 'other'; it has value"),
        ((lambda task: task, "wine"), {}, "cannot be called as method"),
        (("grad_dot", "diabetes"), {}, "There is no stored gold standard of 'diabetes'; choose one of wine"),
    ],
)
def test_what_cannot_be_right_is_refused_in_a_sentence(arguments, hyper, sentence):
    with pytest.raises(ValueError) as error:
        benchmark(*arguments, **hyper)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def changed(folder, tmp_path, monkeypatch, **entries):
    """A copy of the stored files whose sidecar says something else."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    note = json.loads((tmp_path / "wine.json").read_text())
    note["specification"].update(entries)
    (tmp_path / "wine.json").write_text(json.dumps(note))
    monkeypatch.setattr(standards, "STORED", tmp_path)


def test_other_data_are_refused_by_their_checksum(made, tmp_path, monkeypatch):
    changed(made[1], tmp_path, monkeypatch, data="0123456789abcdef")
    with pytest.raises(standards.WrongData, match="0123456789abcdef; take the original files, or make a gold standard"):
        benchmark("grad_dot", "wine")


def test_other_settings_and_damage_are_refused(made, tmp_path, monkeypatch):
    changed(made[1], tmp_path, monkeypatch, left_out=[0, 1, 2, 3])
    with pytest.raises(StoreError, match="differs in left_out"):
        benchmark("grad_dot", "wine")
    damaged = bytearray((tmp_path / "wine.nc").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "wine.nc").write_bytes(damaged)
    changed_back = json.loads((made[1] / "wine.json").read_text())
    (tmp_path / "wine.json").write_text(json.dumps(changed_back))
    with pytest.raises(StoreError, match="damaged"):
        benchmark("grad_dot", "wine")


def test_a_gold_standard_too_large_to_travel_is_refused(made, monkeypatch):
    monkeypatch.setattr(standards, "LARGEST", 1_000)
    before = (made[1] / "wine.nc").read_bytes()
    with pytest.raises(ValueError, match=r"got a gold standard of 0\.\d+ MB, expected at most 0\.001; a smaller model"):
        standards.write_standard(made[0], methods=("grad_dot",))
    assert (made[1] / "wine.nc").read_bytes() == before


def test_one_seed_has_no_halves(made):
    panel = replace(made[0], given_settings=replace(made[0].settings, seeds=(0,)))
    with pytest.raises(ValueError, match="got 1 seed of further training, expected at least 2"):
        standards.write_standard(panel)


# The command


def test_the_command_scores_a_function_in_a_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    (tmp_path / "beside_it.py").write_text("ONE = 1.0\n")
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport torch\n"
        "from beside_it import ONE\n"
        "@dataclass\nclass Settings:\n    value: float = ONE\n"
        "def mine(task, params, *, train, test, curvature):\n    return torch.ones(len(test), len(train))\n"
        "def broken(task, params, *, train, test, curvature):\n    raise KeyError('lost')\n"
    )
    picture = tmp_path / "drawn.png"
    assert main(["benchmark", f"{file}:mine", "--dataset", "wine", "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "> mine" in said and "noise ceiling" in said and "95 % intervals of mine" in said and "profile smoke" in said
    assert picture.stat().st_size > 10_000
    assert main(["benchmark", f"{file}:broken", "--dataset", "wine"]) == 1
    assert "broken has no scores: KeyError: 'lost'." in capsys.readouterr().out


def test_a_file_that_cannot_be_run_is_refused_in_a_sentence(tmp_path, capsys):
    for text in ("def mine(:\n", "mine = missing\n", "raise KeyError('lost')\n"):
        (tmp_path / "odd.py").write_text(text)
        assert main(["benchmark", f"{tmp_path / 'odd.py'}:mine", "--dataset", "wine"]) == 2
        said = capsys.readouterr().err
        assert "which cannot be found or run (" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either a method, such as mine.py:mine, or --make"),
        (["grad_dot", "--make"], "give either a method, such as mine.py:mine, or --make"),
        (["nowhere.py:mine"], "which cannot be found"),
        (["json:mine"], "which cannot be found"),
        (["grad_dot", "--dataset", "moon"], "There is no stored gold standard of 'moon'"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, sentence, capsys):
    assert main(["benchmark", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run_all.sh benchmark: ") and sentence in said and said.count("\n") == 1


def test_the_command_makes_gold_standards(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(standards, "STORED", tmp_path)
    results = str(made[0].results)
    monkeypatch.setattr(Panel, "methods", ("grad_dot",))
    monkeypatch.setattr(Panel, "lft", False)
    command = f"benchmark --make --dataset wine --profile smoke --results {results} --seeds 2".split()
    assert main(command) == 0 and "wine.nc" in capsys.readouterr().out
    assert standards.stored_names() == ["wine"]
    assert main(command) == 0  # again, in its place


def test_rows_are_made_anew_and_the_gold_standard_stays(made, tmp_path, monkeypatch, capsys):
    for file in made[1].iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(standards, "STORED", tmp_path)
    _, gold, before, first = standards.read_standard("wine")
    monkeypatch.setattr(Panel, "methods", ("grad_dot", "grad_cos"))
    monkeypatch.setattr(Panel, "lft", False)
    monkeypatch.setattr(provenance, "code_version", lambda: "0123456789")
    for _ in range(2):
        assert main("benchmark --make --rows --dataset wine".split()) == 0 and "wine.nc" in capsys.readouterr().out
        _, same, after, note = standards.read_standard("wine")
        xr.testing.assert_identical(same.drop_attrs(), gold.drop_attrs())
        assert note["trained"] == first["trained"] and note["commit"] == "0123456789"
    kept = before[before["method"] != "lft"]
    columns = ["method", "step", "similarity", "low", "high"]
    pd.testing.assert_frame_equal(after[columns], kept[columns].reset_index(drop=True), rtol=1e-4)
    assert made_by(note).count("commit") == 2 and made_by(first).count("commit") == 1


def test_rows_of_one_method_are_made_anew_and_the_others_stay(made, tmp_path, monkeypatch):
    for file in made[1].iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(standards, "STORED", tmp_path)
    monkeypatch.setattr(Panel, "methods", ("grad_dot", "grad_cos"))
    _, _, before, first = standards.read_standard("wine")
    commits = iter(["0123456789", "abcdef0123"])
    for commit in commits:
        monkeypatch.setattr(provenance, "code_version", lambda commit=commit: commit)
        standards.renew_rows("wine", methods=["grad_dot"])
    _, _, after, note = standards.read_standard("wine")
    columns = ["method", "step", "similarity", "seconds"]
    kept = after[after["method"] != "grad_dot"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before[before["method"] != "grad_dot"][columns].reset_index(drop=True))
    assert {*after["method"]} == {*before["method"]} and len(after) == len(before)
    assert (note["kept"]["commit"], note["commit"], note["trained"]) == (
        first["commit"],
        "abcdef0123",
        first["trained"],
    )
    assert made_by(note).endswith(f"Grad-Dot by commit abcdef0123, {note['device']}")
    assert made_by(note).count("commit") == 3
    standards.renew_rows("wine")
    assert standards.read_standard("wine")[3]["kept"] is None


# What is committed


def test_the_report_shows_the_standings_and_who_made_them():
    board = report.leaderboard()
    assert board["columns"] == ["Method", "Wine"] and {row[0] for row in board["cells"]} == {
        "Grad-Dot",
        "Grad-Cos",
        "LFT (ours)",
    }
    rows, note = standards.read_rows("wine")
    means = rows.groupby("label")["similarity"].mean()
    assert {row[0]: row[1] for row in board["cells"]} == {k: f"{v:.2f}" for k, v in means.items()}
    assert board["made"] == [f"wine: {made_by(note)}"] and note["commit"] in board["made"][0]
    page = pages().get_template("report.html").render(leaderboard=board, outcomes=[], counts={}, figures=[])
    assert page.count("<td>LFT (ours)</td>") == 1 and f"Made by wine: {made_by(note)}" in page


def test_committed_files_are_small_and_say_which_run_made_them():
    assert {"wine", "diabetes", "breast_cancer", "digits", "concrete", "energy", "fico", "folktables", "cifar10"} <= {
        *COMMITTED
    }
    for name in COMMITTED:
        rows, note = standards.read_rows(name)
        assert sum((standards.STORED / f"{name}{end}").stat().st_size for end in (".nc", ".json")) < 1_000_000
        assert note["commit"] != "unknown" and note["device"] and len(note["specification"]["seeds"]) >= 2
        assert {"grad_dot", "datainf", "cg", "lissa", "ekfac", "trak", "lft"} <= {*rows["method"]}
        assert 6 <= rows["step"].nunique() <= 14
    table, made_by = standings()
    assert [*table.columns[1:]] == COMMITTED and len(made_by) == len(COMMITTED)
    assert "CIFAR-10 (small model)" in report.leaderboard()["columns"]  # no evidence about the paper's


@pytest.mark.parametrize(
    ("name", "method", "within"),
    [(n, "grad_dot", 1e-5) for n in COMMITTED if DATASETS[n].embedded] + [("wine", "lft", 1e-3)],
)
def test_committed_rows_come_out_again(name, method, within):
    """... so that they are those of the methods as they are now."""
    table = benchmark(method, name)
    again = table[table["stored"] & (table["method"] == method)]
    np.testing.assert_allclose(own(table)["similarity"], again["similarity"], atol=within)


def test_committed_energy_refuses_a_wrong_file(tmp_path):
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "ENB2012_data.xlsx").write_bytes(b"not the buildings")
    with pytest.raises(DataFileError, match="ENB2012_data.xlsx"):
        benchmark("grad_dot", "energy", data_dir=tmp_path)
