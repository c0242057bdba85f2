"""The shape of the project: imports that go downwards only, notebooks that only tell the story, nothing odd in git."""

import ast
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fimoda_lib"
# The wings of the library from top to bottom; a module may import from its own wing and from those below it. "" is
# what all wings speak about: tasks, groups, comparison, checks, devices.
WINGS = ["run", "paper", "plots", "experiments", "methods", "derivatives", "training", "datasets", "storage", ""]
LARGEST = 5_000_000
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def modules() -> dict[Path, str]:
    """Source file -> the wing it is in."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {f: "/".join(f.relative_to(ROOT / PACKAGE).parts[:-1]) for f in files if f != ROOT / PACKAGE / "__init__.py"}


def foreign_imports(source: str, wing: str) -> list[str]:
    """What a source text of a wing imports, anywhere in it, that is not below; or not by a relative name."""
    below, found = WINGS[WINGS.index(wing) :], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] == PACKAGE]
        elif isinstance(node, ast.ImportFrom):
            path = [wing] * bool(wing) if node.level == 1 else []
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found += [name for name in path or names if name in WINGS and name not in below]
    return found


def test_imports_between_wings_are_relative_and_run_downwards():
    found = {str(f.relative_to(ROOT)): foreign_imports(f.read_text(), wing) for f, wing in modules().items()}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("wing", "line", "found"),
    [
        ("", "from .storage.store import cached", ["storage"]),
        ("", "def f():\n    from . import methods", ["methods"]),
        ("storage", "import fimoda_lib.tasks", ["fimoda_lib.tasks"]),
        ("storage", "from fimoda_lib import tasks", ["fimoda_lib"]),
        ("storage", "import torch.run\nfrom torch import run", []),
        ("storage", "from ..tasks import take\nfrom .folders import claimed", []),
        ("derivatives", "from ..methods.cg import cg", ["methods"]),
        ("methods", "from ..derivatives.gradients import Gradients\nfrom . import base", []),
        ("datasets", "from .tables import x\nfrom ..experiments import x", ["experiments"]),
        ("", "from .methods import METHODS", ["methods"]),
        ("", "from . import tasks, methods", ["methods"]),
        ("storage", "from .. import tasks, run", ["run"]),
    ],
)
def test_the_check_of_imports_notices(wing, line, found):
    assert foreign_imports(line, wing) == found


def first_sentence(wing: str) -> str:
    """What a wing says of itself."""
    return (ast.get_docstring(ast.parse((ROOT / PACKAGE / wing / "__init__.py").read_text())) or "").split("\n")[0]


def test_every_wing_answers_one_question_in_one_sentence():
    for wing in WINGS[:-1]:
        assert first_sentence(wing).count("?") == 1 and first_sentence(wing).endswith("?"), wing


def test_tests_lie_in_folders_of_the_same_names():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {*WINGS[:-1]}


def too_long(source: str) -> list[str]:
    """What a reader cannot take in at once: the file, or functions in it (their docstrings not counted)."""
    found = ["the file"] if len(source.splitlines()) > LONGEST_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            text = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            if node.end_lineno - node.lineno + 1 - text > LONGEST_FUNCTION:
                found.append(node.name)
    return found


def test_no_file_and_no_function_is_too_long():
    found = {str(f.relative_to(ROOT)): too_long(f.read_text()) for f in modules()}
    assert {name: long for name, long in found.items() if long} == {}


def test_the_check_of_lengths_notices():
    body = "    x = 1\n"
    assert too_long("def f():\n" + body * 59) == []
    assert too_long("def f():\n" + body * 60) == ["f"]
    assert too_long('def f():\n    """Said\n' + "in\n" * 50 + '    """\n' + body * 59) == []
    assert too_long("x = 1\n" * 301) == ["the file"]


OLD_NAMES = ("tangents", "adjoints", "trajectories", "gradients", "figures", "reproduction", "pictures")


@pytest.mark.parametrize("name", OLD_NAMES)
@pytest.mark.parametrize("form", ["import fimoda_lib.{}", "from fimoda_lib.{} import x", "from fimoda_lib import {}"])
def test_a_module_under_its_old_name_gives_the_new_one(form, name):
    with pytest.raises(ImportError) as error:
        exec(form.format(name), {})
    new = re.fullmatch(rf"fimoda_lib\.{name} is now (fimoda_lib\.\w+\.\w+); import it from there\.", str(error.value))
    importlib.import_module(new[1])


# Notebooks


def complaints(notebook: dict) -> list[str]:
    """What a notebook in git must not have."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = []
    if not code or "parameters" not in code[0]["metadata"].get("tags", []):
        found.append("its first code cell is not tagged 'parameters'")
    for number, cell in enumerate(code, 1):
        source = "".join(cell["source"])
        # %magics and !commands are no Python
        lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
        if any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for node in ast.walk(ast.parse("\n".join(lines)))
        ):
            found.append(f"code cell {number} defines a function or a class")
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"code cell {number} holds outputs")
    return found


def code_cell(source, tags=(), outputs=(), count=None):
    return {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": list(tags)},
        "outputs": list(outputs),
        "execution_count": count,
    }


def test_notebooks_are_clean_and_tell_the_story_only():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    found = {n.name: complaints(json.loads(n.read_text())) for n in notebooks}
    assert found == {n.name: [] for n in notebooks}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([code_cell("x = 1", ["parameters"]), code_cell("%matplotlib inline\nprint(x)")], 0),
        ([{"cell_type": "markdown", "source": "def f", "metadata": {}}, code_cell("x = 1", ["parameters"])], 0),
        ([], 1),
        ([code_cell("x = 1")], 1),
        ([code_cell("x = 1", ["other"]), code_cell("y = 1", ["parameters"])], 1),
        ([code_cell("x = 1", ["parameters"]), code_cell(["if x:\n", "    def f():\n", "        pass"])], 1),
        ([code_cell("class A:\n    pass", ["parameters"])], 1),
        ([code_cell("x = 1", ["parameters"], count=3)], 1),
        ([code_cell("x = 1", ["parameters"], outputs=[{"output_type": "stream"}])], 1),
    ],
)
def test_the_check_of_notebooks_notices(cells, expected):
    assert len(complaints({"cells": cells})) == expected


# Files in git


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so there is no list of tracked files")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_folder_of_one_machine():
    # Put together here, so that this file does not name them either.
    private = [("/" + name).encode() for name in ("work/", "root/", "tmp/bash")]
    found = [(str(file.relative_to(ROOT)), p.decode()) for file in tracked() for p in private if p in file.read_bytes()]
    assert found == []


def test_no_file_is_large():
    assert [str(f.relative_to(ROOT)) for f in tracked() if f.stat().st_size > LARGEST] == []
