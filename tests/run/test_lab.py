"""`run_all.sh lab`: JupyterLab opens the notebooks with the right kernel, and they find the project's folders."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from fimoda_lib.run import command as run
from fimoda_lib.storage import folders

ROOT = Path(run.__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATIENCE = 180
# What its last cell's model says: has it run, and what did it print?
LAST = """
const cells = jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.toJSON());
const code = cells.filter(cell => cell.cell_type == 'code');
const failed = code.flatMap(cell => cell.outputs).filter(output => output.output_type == 'error');
return {done: code.every(cell => cell.execution_count), failed: failed.map(error => error.evalue),
        stale: JSON.stringify(code).includes(' 0%|'), outputs: code.at(-1).outputs,
        kernel: jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.name};
"""


def waited_for(what, look):
    """What `look` finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: nothing after {PATIENCE} s"
        time.sleep(0.2)
    return found


@pytest.fixture
def project(tmp_path):
    """A copy of the project whose first notebook runs at smoke size."""
    copy = tmp_path / "with space"
    shutil.copytree(ROOT / "fimoda_lib", copy / "fimoda_lib")
    shutil.copytree(ROOT / "notebooks", copy / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name in ("run_all.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    first = copy / "notebooks" / "01_final_model.ipynb"
    first.write_text(first.read_text().replace('profile = \\"quick\\"', 'profile = \\"smoke\\"'))
    return copy


@pytest.fixture
def started(project, tmp_path):
    """JupyterLab on that notebook, started elsewhere and without a window: its address."""
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "XDG_", "PYTHONPATH"))}
    environment = {**kept, "HOME": str(home), "FIMODA_PYTHON": sys.executable, "FIMODA_CACHE": str(home)}
    command = [
        shutil.which("bash"),
        str(project / "run_all.sh"),
        "lab",
        "01",
        "--no-browser",
        "--expose-app-in-browser",
    ]
    with log.open("w") as stream:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=stream, stderr=stream)

    def address():
        assert server.poll() is None, log.read_text()[-4000:]
        return re.search(r"http://127\.0\.0\.1:\d+/lab/tree/\S+token=\w+", log.read_text())

    try:
        yield waited_for("JupyterLab", address)[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)


def answer(started, path):
    """What the server's own interface says."""
    address = urlsplit(started)
    (token,) = parse_qs(address.query)["token"]
    asked = Request(f"http://{address.netloc}/api/{path}", headers={"Authorization": f"token {token}"})
    with build_opener(ProxyHandler({})).open(asked, timeout=PATIENCE) as response:
        return json.load(response)


@pytest.mark.slow
def test_a_notebook_runs_in_jupyterlab_and_finds_the_projects_folders(project, started, request):
    """Opened in the browser, all cells run: the last one holds its number, the result lies in the project.

    Where there is no browser, the server has started nevertheless, and knows the notebook and the kernel.
    """
    assert "/lab/tree/notebooks/01_final_model.ipynb?" in started
    assert answer(started, "contents/notebooks/01_final_model.ipynb?content=0")["type"] == "notebook"
    assert "python3" in answer(started, "kernelspecs")["kernelspecs"]
    browser = request.getfixturevalue("browser")
    browser.get(started)
    ready = "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.connectionStatus"
    waited_for("the kernel", lambda: browser.execute_script(ready) == "connected")
    browser.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    found = waited_for("the last cell", lambda: (now := browser.execute_script(LAST))["done"] and now)
    assert (found["failed"], found["stale"], found["kernel"]) == ([], False, "python3")
    (last,) = found["outputs"]
    assert re.fullmatch(
        r"length of the mean gradient: [\d.e-]+; mean length of a single one: [\d.e-]+", last["text"].strip()
    )
    assert len(list((project / "results" / "smoke").glob("final-diabetes-*.nc"))) == 1
    assert not (project / "notebooks" / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [
        ([], "notebooks"),
        (["--port=1"], "notebooks"),
        (["02"], "notebooks/02_further_training.ipynb"),
        (["02_further_training", "--port", "1"], "notebooks/02_further_training.ipynb"),
        (["elsewhere/07_your_own_model.ipynb"], "notebooks/07_your_own_model.ipynb"),
    ],
)
def test_a_notebook_is_found_by_its_number_name_or_path(monkeypatch, arguments, opened):
    taken = []
    monkeypatch.setattr(os, "execv", lambda program, words: taken.extend(words))
    run.main(["lab", *arguments])
    assert taken[0] == sys.executable and f"--LabApp.default_url=/lab/tree/{opened}" in taken
    assert f"--ServerApp.root_dir={ROOT}" in taken
    options = [a for a in arguments if a[0] == "-" or a == "1"]
    assert taken[len(taken) - len(options) :] == options


def test_kernels_find_this_library_first(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "theirs")
    for _ in range(2):
        run.for_notebooks()
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ROOT), "theirs"])


@pytest.mark.parametrize("name", ["99", "further_training", "02_further", "no.ipynb"])
def test_an_unknown_notebook_is_refused_in_a_sentence(name, capsys):
    assert run.main(["lab", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"run_all.sh: lab: there is no notebook {name!r}; take one of 00_tutorial, ")
    assert said.count("\n") == 1


# Where notebooks look for results, and leave figures


def bare_folders(notebook: Path) -> list[str]:
    """Uses of a notebook's folder parameters that do not go through `in_project`."""
    code = ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    tree = ast.parse("\n".join(code))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "in_project"]
    good = {id(argument) for call in calls for argument in call.args}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in ("results", "figures", "store")]
    return [n.id for n in names if isinstance(n.ctx, ast.Load) and id(n) not in good]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_folder_of_a_notebook_lies_in_the_project(notebook):
    assert bare_folders(notebook) == []


def test_the_check_of_folders_notices(tmp_path):
    cells = [{"cell_type": "code", "source": ["results = 'results'\n", "f(results=results, x=in_project(results))"]}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert bare_folders(tmp_path / "n.ipynb") == ["results"]


def test_a_folder_lies_in_the_project_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders.in_project("results") == ROOT / "results"
    assert folders.in_project(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setattr(folders, "ROOT", tmp_path / "installed")
    assert folders.in_project("results") == tmp_path / "results"
