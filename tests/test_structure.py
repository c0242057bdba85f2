"""The shape of the project: imports that go downwards only, notebooks that only tell the story, nothing odd in git."""

import ast
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fimoda_lib"
# A module may import those below it.
ORDER = """
run spread status report notebook_pages claims rules beyond figures plots studies pictures drawing reproduction
comparison methods linearised spectra trajectories adjoints tangents final_model further_training plans
engines ensembles minibatches curvature gradients naming store folders experiments profiles datasets encoders models
tasks devices checks provenance environment
""".split()
# ... but not these, although they are below.
APART = {"comparison": ["methods"]}
LARGEST = 5_000_000


def imports(source: str, module: str, package: bool = False) -> set[str]:
    """The modules of the package that a source text imports anywhere, also inside functions; as dotted names."""
    found = set()
    parents = [PACKAGE, *module.split(".")]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + package] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full, *(f"{full}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{PACKAGE}.") for name in found if name.startswith(f"{PACKAGE}.")}


def upward_imports(module: str, imported: set[str]) -> list[str]:
    """Which of the imported modules are not below `module`."""
    part = module.split(".")[0]
    position = {name: k for k, name in enumerate(ORDER)}
    parts = {name.split(".")[0] for name in imported} & set(ORDER) - {part}
    return sorted(p for p in parts if position[p] < position[part] or p in APART.get(part, []))


def modules() -> dict[str, Path]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(file.relative_to(ROOT / PACKAGE).with_suffix("").parts): file for file in files}


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_imports_go_downwards_only(module):
    assert module.split(".")[0] in ORDER, f"say where in ORDER {module} belongs"
    package = module.endswith("__init__")
    name = module.removesuffix(".__init__")
    assert upward_imports(name, imports(modules()[module].read_text(), name, package)) == []


@pytest.mark.parametrize(
    ("module", "line", "upwards"),
    [
        ("tasks", "from .store import cached", ["store"]),
        ("tasks", "def f():\n    from . import store, models", ["models", "store"]),
        ("tasks", "import fimoda_lib.store", ["store"]),
        ("tasks", "from fimoda_lib.store import cached", ["store"]),
        ("tasks", "from fimoda_lib import store", ["store"]),
        ("tasks", "import torch.store\nfrom torch import store", []),
        ("store", "from .tasks import take", []),
        ("gradients", "from .methods.cg import cg", ["methods"]),
        ("methods.cg", "from ..comparison import x\nfrom .base import method", ["comparison"]),
        ("methods.cg", "from ..gradients import Gradients\nfrom . import base", []),
        ("datasets", "from .tables import x\nfrom ..experiments import x", ["experiments"]),
        ("comparison", "from .further_training import further_train", []),
        ("comparison", "from .methods import METHODS", ["methods"]),
    ],
)
def test_the_check_of_imports_notices(module, line, upwards):
    assert upward_imports(module, imports(line, module, package=module == "datasets")) == upwards


def test_the_library_imports_what_it_says():
    """The check sees the real imports, in whichever form they are written."""
    text = {name: file.read_text() for name, file in modules().items()}
    assert {"store", "tasks", "ensembles"} <= imports(text["further_training"], "further_training")
    assert {"gradients", "methods.base"} <= imports(text["methods.cg"], "methods.cg")


# Notebooks


OWN_CODE = ("07_your_own_model",)  # show the reader's own model, loss and method, so they may define some


def complaints(notebook: dict, may_define: bool = False) -> list[str]:
    """What a notebook in git must not have."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = []
    if not code or "parameters" not in code[0]["metadata"].get("tags", []):
        found.append("its first code cell is not tagged 'parameters'")
    for number, cell in enumerate(code, 1):
        source = "".join(cell["source"])
        # %magics and !commands are no Python
        lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
        if not may_define and any(
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
    found = {n.name: complaints(json.loads(n.read_text()), n.stem in OWN_CODE) for n in notebooks}
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
