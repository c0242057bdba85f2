"""The command line, the profiles, and the notebooks from a clean kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from fimoda_lib import experiments, run
from fimoda_lib.datasets import DATASETS
from fimoda_lib.figures import LOOK
from fimoda_lib.methods import METHODS
from fimoda_lib.reproduction import PAPER_METHODS

ROOT = Path(run.__file__).parent.parent


def test_the_command_line_names_what_the_library_has():
    assert set(run.PROFILES) == set(experiments.PROFILES)
    assert set(run.PANELS) == set(experiments.PANELS)
    assert set(run.PANELS + run.STAND_INS) == set(DATASETS)
    assert set(PAPER_METHODS) <= set(METHODS) and set(METHODS) <= set(LOOK)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--profile", "huge"], "invalid choice: 'huge'"),
        (["--only", "fig99"], "invalid choice: 'fig99'"),
        (["--datasets", "mnist"], "invalid choice: 'mnist'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--data", "/no/such/folder"], "there is no folder '/no/such/folder'"),
        (["--jobs", "0"], "expected at least 1"),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(arguments, message, capsys):
    try:
        status = run.main(arguments)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr().err
    assert status == 2 and message in printed and "Traceback" not in printed


def test_help_explains_every_option_and_profile_without_the_packages():
    text = subprocess.run(
        [sys.executable, "-S", "-m", "fimoda_lib.run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    options = [a.option_strings[-1] for a in run.parser()._actions]
    assert all(word in text for word in [*options, *run.PROFILES, *run.FIGURES, *run.PANELS])


def test_the_plan_runs_only_what_is_asked_for():
    options = run.parser().parse_args(["--profile", "smoke", "--only", "fig04", "--datasets", "wine", "digits"])
    labels = [item.label for stage in run.plan(options) for item in stage]
    assert labels == [
        "final model, wine",
        "final model, digits",
        "further training, wine, adam",
        "further training, digits, adam",
        "attribution, wine",
        "attribution, digits",
        "figures",
    ]


def test_quick_takes_embedded_data_where_the_papers_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    monkeypatch.setenv("FIMODA_CACHE", str(tmp_path))
    chosen = [experiments.choose_dataset(panel, "quick") for panel in experiments.PANELS]
    assert chosen == ["diabetes", "wine", "breast_cancer", "digits"]
    assert experiments.panel_title("wine") == "Wine (stands in for Energy)"


def test_settings_are_the_papers():
    from fimoda_lib import load_task

    wine = experiments.settings(load_task("wine"), "paper", "adam")
    assert len(wine.seeds) == 100 and len(wine.left_out) == 100
    energy = experiments.EXPERIMENTS["energy"]
    assert energy.further["sgd"] == experiments.Training("sgd", 3e-2, 500, 128)
    assert energy.damping_multiples == (1, 10, 100, 1000)
    assert experiments.EXPERIMENTS["fico"].further["adam"] == experiments.Training("adam", 1e-6, 200, 128)
    assert {k: len(v) for k, v in experiments.reference_left_out().items()} == {
        "concrete": 100,
        "energy": 100,
        "fico": 100,
        "folktables": 100,
        "sst2": 50,
    }


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Every notebook at smoke size, from clean kernels, through the command line."""
    folder = tmp_path_factory.mktemp("smoke")
    environment = {k: v for k, v in os.environ.items() if k != "FIMODA_DATA"} | {"FIMODA_CACHE": str(folder / "cache")}
    command = [
        sys.executable,
        "-m",
        "fimoda_lib.run",
        "--profile",
        "smoke",
        "--results",
        str(folder / "results"),
        "--figures",
        str(folder / "figures"),
        "--jobs",
        "2",
    ]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    return folder, command, environment


def test_all_notebooks_run(smoke):
    folder, _, _ = smoke
    executed = {
        p.name.split("-")[0].removesuffix(".ipynb") for p in (folder / "results/smoke/notebooks").glob("*.ipynb")
    }
    assert executed == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    for path in (folder / "results/smoke/notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            assert not [o for o in cell.get("outputs", []) if o.output_type == "error"], path.name


@pytest.mark.parametrize("name", ["fig02", "fig04", "fig05", "fig06"])
def test_figures_come_with_numbers_and_provenance(smoke, name):
    folder = smoke[0] / "figures/smoke"
    for ending in ("pdf", "png", "csv", "json"):
        for stem in (name, f"{name}a_diabetes", f"{name}b_wine", f"{name}c_breast_cancer", f"{name}d_digits"):
            assert (folder / f"{stem}.{ending}").stat().st_size > 0
    table = pd.read_csv(folder / f"{name}.csv")
    assert set(table.panel) == set("abcd")
    assert set(PAPER_METHODS) <= set(table.method)
    note = json.loads((folder / f"{name}.json").read_text())
    assert note["optimizer"] == ("adam" if name == "fig04" else "sgd")
    assert note["datasets"]["wine"]["seeds"] == [0, 1] and len(note["datasets"]["wine"]["specification"]) == 16


def test_a_second_start_computes_nothing_again(smoke):
    folder, command, environment = smoke
    before = {p: p.stat().st_mtime_ns for p in (folder / "results/smoke").glob("*.nc")}
    again = subprocess.run(
        [*command, "--only", "fig02", "--datasets", "diabetes"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert {p: p.stat().st_mtime_ns for p in (folder / "results/smoke").glob("*.nc")} == before


def test_a_damaged_result_stops_the_run_with_a_sentence(smoke):
    folder, command, environment = smoke
    victim = next((folder / "results/smoke").glob("further-wine-sgd*.nc"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    again = subprocess.run(
        [*command, "--only", "fig02", "--datasets", "wine"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    victim.write_bytes(whole)
    assert again.returncode == 1
    assert victim.name in again.stderr and "is damaged" in again.stderr
