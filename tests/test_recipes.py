"""`fimoda_lib/README.md`: its wings are the library's, and its recipes are followed in a copy of the project.

A recipe is followed step by step: every file that a step names is changed, and no other one. Then the copy's own tests
find the newcomer, and the copy runs it.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from test_structure import ROOT, WINGS, first_sentence

TEXT = (ROOT / "fimoda_lib" / "README.md").read_text()


def recipe(title: str, name: str) -> list[list[str]]:
    """The files that each step of a recipe names first, with the name of what is added."""
    section = re.search(rf"\n## {title}\n(.*?)(\n## |$)", TEXT, re.S)[1]
    steps = [step.replace("<name>", name) for step in re.findall(r"^\d\. (.*)$", section, re.M)]
    return [re.findall(r"(?:^|; )`([\w/.<>]+/[\w.<>]+)`", step) for step in steps]


def test_it_is_one_screen_and_names_the_wings_and_their_questions():
    assert len(TEXT.splitlines()) <= 45
    rows = re.findall(r"^\| `(.+)` \| (.+\?) \|$", TEXT, re.M)
    assert rows[0][0] == "tasks`, `comparison`, `intervals`, `averaging`, `groups`, `checks`, `devices"
    assert rows[1:] == [(f"{wing}/", first_sentence(wing)) for wing in reversed(WINGS[:-1])]


def follow(title, name, copy, changes):
    """Makes a recipe's changes: file -> the text of a new one, or pairs (what stands there, what comes after it)."""
    steps = recipe(title, name)
    assert 1 <= len(steps) <= 5 and [file for step in steps for file in step] == [*changes]
    for file, change in changes.items():
        path = copy / file
        assert path.exists() != isinstance(change, str)
        text = change if isinstance(change, str) else path.read_text()
        for before, after in [] if isinstance(change, str) else change:
            assert text.count(before) == 1, f"{file} has no, or more than one, {before!r}"
            text = text.replace(before, before + after)
        path.write_text(text)


def run(copy, *arguments):
    """What Python prints in the copy, whose library comes first."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    return finished.stdout


RELATIVE = '''"""Grad-Dot relative to the training gradient's length."""

from torch import Tensor

from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import apply_operator, method


@method(label="Relative", family="first-order", reference="Barshan et al. 2020, without curvature")
def relative(
    task: Task, params: Params, *, train: Tensor, test: Tensor, curvature: Tensor | None = None
) -> Tensor:
    """Dot products with training gradients of length 1, [n_test, n_train]."""
    return apply_operator(Gradients(task, params), lambda g: g, train, test, normalise=True)
'''
ORACLE = '''

def relative(task, params, train, test, curvature):
    """Grad-Dot divided by the training gradient's length."""
    g = gradients(task, params, task.train, train)
    return gradients(task, params, task.test, test) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
'''


def add_a_method(copy):
    follow(
        "A new method",
        "relative",
        copy,
        {
            "fimoda_lib/methods/relative.py": RELATIVE,
            "fimoda_lib/methods/__init__.py": [("from .lissa_h import lissa_h\n", "from .relative import relative\n")],
            "fimoda_lib/plots/look.py": [("] = {\n", '    "relative": Look("Relative", "#999999", "o"),\n')],
            "tests/oracles.py": [("import torch\n", ORACLE)],
            "tests/methods/test_methods.py": [("UNDAMPED = {", '"relative": oracles.relative, ')],
            "fimoda_lib/experiments/panel.py": [("PAPER_METHODS = (", '"relative", ')],
        },
    )


IRIS = '''"""Fisher's irises, which ship with scikit-learn."""

from sklearn import datasets

from ..tasks import Task
from .preprocessing import classification_task


def load_iris() -> Task:
    """Classification: the species of 150 irises from 4 lengths."""
    table = datasets.load_iris(as_frame=True).frame
    return classification_task(table, "target", range(3), test_size=0.2)
'''
IRIS_TEST = '''"""The irises."""

from fimoda_lib import load_task


def test_sizes():
    task = load_task("iris")
    assert (task.n_train, task.n_test) == (120, 30) and task.train[0].shape[1] == 4
'''
SIZES = '''"""How large sensitivities are, on average."""

import numpy as np
import pandas as pd

from ..comparison import sensitivity
from ..experiments.panel import finished
from .panels import horizon_axis

WHAT = "Mean size of a sensitivity."
MARKS = "Solid: mean adjustment."


def table(panel):
    """Columns step, epoch, size; None if the gold standard is missing."""
    gold = finished(lambda: panel.gold)
    if gold is None:
        return None
    size = np.abs(sensitivity(gold)).mean(["left_out", "test"])
    return pd.DataFrame({"step": size.step, "epoch": size.epoch, "size": size})


def draw(ax, table, dataset):
    """Size against the amount of further training."""
    x, amount = horizon_axis(dataset)
    ax.plot(table[x], table["size"])
    ax.set(xlabel=amount)
'''
FIGURE = '''

def figure_sizes(panels, folder):
    """Sizes of sensitivities."""
    from ..plots import fig_sizes as sizes

    return study_figure("fig_sizes", panels, folder, sizes.table, sizes.draw, sizes.WHAT, sizes.MARKS,
                  measured=lambda panel: panel.gold, title="Sizes", ylabel="size")
'''
CELL = {
    "cell_type": "code",
    "execution_count": None,
    "id": "sizes",
    "metadata": {},
    "outputs": [],
    "source": 'if "fig_sizes" in only:\n    beyond.figure_sizes(panels, folder)',
}


def add_a_data_set(copy):
    follow(
        "A new data set",
        "iris",
        copy,
        {
            "fimoda_lib/datasets/iris.py": IRIS,
            "fimoda_lib/datasets/__init__.py": [
                ("from . import ", "iris, "),
                (
                    "    for dataset in (\n",
                    '        Dataset("iris", "Iris", FICO, "classification", iris.load_iris),\n',
                ),
            ],
            "fimoda_lib/experiments/paper_settings.py": [
                ("    for e in (\n", 'Experiment("iris", Training("sgd", 0.03, 200), _further(50, 3e-3, 1e-5)),\n'),
                ('"fico": ("fico", ', '"iris", '),
            ],
            "fimoda_lib/run/plan.py": [('    *("adult", ', '"iris", ')],
            "tests/datasets/test_iris.py": IRIS_TEST,
        },
    )


def add_a_figure(copy):
    follow(
        "A new figure",
        "fig_sizes",
        copy,
        {
            "fimoda_lib/plots/fig_sizes.py": SIZES,
            "fimoda_lib/plots/panels.py": [("LETTERS: dict[str, dict[str, str]] = {", '"fig_sizes": {"a": "c"},')],
            "fimoda_lib/paper/beyond.py": [
                ('NOTEBOOK = "06_why_methods_decay"\n', FIGURE),
                ("FIGURES: dict[str, Callable] = {", '"fig_sizes": figure_sizes,'),
            ],
            "fimoda_lib/run/plan.py": [("BEYOND = (", '"fig_sizes",')],
            "fimoda_lib/paper/entries.py": [("TITLES = {", '"fig_sizes": "Sizes",')],
            "docs/figures.md": [
                ("|---|---|---|---|\n", "| beyond | sizes | 06_why_methods_decay | `--only fig_sizes` |\n")
            ],
            "notebooks/06_why_methods_decay.ipynb": [('"cells": [', "")],
        },
    )
    notebook = copy / "notebooks" / "06_why_methods_decay.ipynb"
    content = json.loads(notebook.read_text())
    notebook.write_text(json.dumps({**content, "cells": [*content["cells"], CELL]}))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project in which all three recipes have been followed."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("fimoda_lib", "tests", "notebooks", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(".*"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    add_a_method(copy)
    add_a_data_set(copy)
    add_a_figure(copy)
    return copy


FORMULA = "methods/test_methods.py::test_equals_the_formula_and_nothing_else_does"
TESTS = (
    "test_structure.py::test_imports_between_wings_are_relative_and_run_downwards",
    f"{FORMULA}[relative-regression-1]",
    f"{FORMULA}[relative-classification-3]",
    "datasets/test_iris.py",
    "run/test_run.py::test_the_command_line_names_what_the_library_has",
    "run/test_readme.py::test_every_figure_notebook_and_profile_is_mentioned",
    "paper/test_report.py::test_the_report_knows_every_figure",
)


BOTH = """
import json
import sys
import pytest
from pathlib import Path
pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
from IPython.core.interactiveshell import InteractiveShell
from fimoda_lib.run import command, plan
options = command.parser().parse_args("--profile smoke --only fig_sizes --datasets iris".split())
(*_, (drawn,)) = plan.plan(options)
shell = InteractiveShell()  # here, for a kernel would import everything again
for cell in json.loads(Path("notebooks", drawn.notebook + ".ipynb").read_text())["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
    if "parameters" in cell["metadata"].get("tags", []):
        shell.push(drawn.parameters)
"""


@pytest.fixture(scope="module")
def printed(copy):
    """What the copy prints that runs its tests and draws its figure."""
    return run(copy, "-c", BOTH, *(f"tests/{name}" for name in TESTS))


@pytest.mark.slow
def test_the_tests_of_the_copy_find_the_newcomers_and_pass(printed):
    assert f"{len(TESTS)} passed" in printed


def test_the_new_figure_of_the_new_data_set_is_drawn(copy, printed):
    table = pd.read_csv(copy / "figures" / "smoke" / "fig_sizes.csv")
    assert set(table.dataset) == {"iris"} and (table["size"] > 0).all()
    assert (copy / "figures" / "smoke" / "fig_sizes.pdf").stat().st_size > 0
