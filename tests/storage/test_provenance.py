"""The commit in a sidecar is that of the code that ran, wherever a file of it has changed."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from fimoda_lib.storage import provenance

STANDARD = "library/experiments/benchmark/wine.json"
LIBRARY = ("storage/provenance.py", "storage/store.py", "methods/cg.py")


def git(folder, *words):
    named = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *named, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path):
    """A repository with a library, a notebook and something else."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    for name in (*(f"library/{name}" for name in LIBRARY), "notebooks/01.ipynb", "other/02.txt", STANDARD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    shutil.copy(provenance.__file__, tmp_path / "library" / LIBRARY[0])
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def version(checkout):
    """What the copy in a checkout says of itself."""
    spec = importlib.util.spec_from_file_location("copied_provenance", checkout / "library" / LIBRARY[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.code_version()


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ("library/storage/store.py", "+"),
        ("library/methods/cg.py", "+"),
        ("notebooks/01.ipynb", "+"),
        ("other/02.txt", ""),
        (STANDARD, ""),
    ],
)
def test_a_change_in_any_wing_or_notebook_is_told(checkout, changed, mark):
    commit = git(checkout, "rev-parse", "--short=10", "HEAD").strip()
    assert version(checkout) == commit
    (checkout / changed).write_text("[]\n")
    assert version(checkout) == commit + mark


def test_a_library_without_notebooks_or_inside_another_project(checkout):
    shutil.rmtree(checkout / "notebooks")
    git(checkout, "commit", "--quiet", "--all", "--message", "without notebooks")
    assert version(checkout) == git(checkout, "rev-parse", "--short=10", "HEAD").strip()
    git(checkout, "rm", "--quiet", "-r", "--cached", "library")
    git(checkout, "commit", "--quiet", "--message", "not its own")
    assert version(checkout) == "unknown"


def test_memory_that_an_earlier_block_has_freed_counts_again():
    """... also where the allocator keeps it, as it is told to for training."""
    code = (
        "import torch\nfrom fimoda_lib.storage.provenance import peak_memory\n"
        "for _ in range(2):\n    with peak_memory() as found:\n        [torch.ones(2**14) for _ in range(1600)]\n"
        "    print(found[0])"
    )
    keeping = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | keeping, capture_output=True, text=True)
    sizes = [float(line) for line in ran.stdout.split()]
    assert len(sizes) == 2 and min(sizes) > 90, (sizes, ran.stderr[-500:])  # 100 MiB each time
