"""The set-up: pins, what is derived from them, and run_all.sh. Nothing here needs the network."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from fimoda_lib.run import environment

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("run", "text", "test", "no-deps")
BASH = shutil.which("bash")
STUB = "import sys\nprint(sys.executable)\nprint(*sys.argv[1:], sep='\\n')\n"


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def project(folder: Path, *, run: str, test: str = "", text: str = "", stub: str = STUB) -> Path:
    """A small project in `folder`: the real run_all.sh and environment.py with other pins."""
    (folder / "fimoda_lib" / "run").mkdir(parents=True)
    shutil.copy(ROOT / "run_all.sh", folder)
    shutil.copy(ROOT / "fimoda_lib" / "run" / "environment.py", folder / "fimoda_lib" / "run")
    (folder / "fimoda_lib" / "__init__.py").touch()
    (folder / "fimoda_lib" / "run" / "__init__.py").touch()
    (folder / "fimoda_lib" / "run" / "__main__.py").write_text(stub)
    (folder / "constraints.txt").touch()
    requires = re.search(r"^requires-python.*$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "stub"\nversion = "1"\n{requires[0]}\ndependencies = ["{run}"]\n'
        f"[project.optional-dependencies]\ntest = {[test] if test else []}\ntext = {[text] if text else []}\n"
        "[tool.fimoda]\nno_deps = []\n"
        "[tool.setuptools]\npy-modules = []\n"
    )
    return folder


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs the project's run_all.sh from another folder, by default with this Python and with pip cut off."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "VIRTUAL_ENV", "CONDA_"))
    }
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "FIMODA_PYTHON": sys.executable}
    return subprocess.run(
        [BASH, str(folder / "run_all.sh"), *arguments],
        cwd=folder.parent,
        env=inherited | offline | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def path_with(folder: Path, **programs: str) -> str:
    """A PATH that holds dirname, cat and the given shell programs (name -> what it executes), and nothing else."""
    folder.mkdir()
    for name in ("dirname", "cat"):
        (folder / name).symlink_to(shutil.which(name))
    for name, command in programs.items():
        (folder / name).write_text(f"#!{BASH}\n{command}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def pinned_as_installed(package: str) -> str:
    return f"{package}=={metadata.version(package)}"


# Pins, and what is derived from them


@pytest.mark.parametrize("part", PARTS)
def test_every_direct_dependency_is_pinned_exactly(part):
    assert environment.pins(part)  # raises if a requirement is not name==version


def test_the_build_is_pinned_exactly():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [requirement.split("==") for requirement in build] == [["setuptools", constraints()["setuptools"]]]


@pytest.mark.parametrize("requirement", ["numpy", "numpy>=2", "numpy==2.*", "numpy==2.4.6; python_version > '3'"])
def test_a_loose_pin_is_refused(requirement, tmp_path):
    folder = project(tmp_path / "p", run=requirement)
    with pytest.raises(ValueError, match="expected name==version"):
        environment.pins("run", folder / "pyproject.toml")


def test_the_conda_environment_is_derived_from_the_pins():
    text = (ROOT / "environment.yml").read_text()
    assert text == environment.conda_environment(), "run: python fimoda_lib/run/environment.py conda > environment.yml"
    python, _, pip = yaml.safe_load(text)["dependencies"]
    assert python == "python=3.11"
    pinned = [f"{name}=={version}" for part in PARTS[:3] for name, version in environment.pins(part).items()]
    assert sorted(pip["pip"]) == sorted(["--constraint constraints.txt", "--editable .", *pinned])


def test_the_constraints_agree_with_the_pins():
    locked = constraints()
    for part in PARTS:
        for name, version in environment.pins(part).items():
            assert locked.get(name) == version, name


def test_the_constraints_hold_for_every_machine():
    for name, version in constraints().items():
        assert re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[0-9a-z.]+", version)  # no paths, hosts, build tags
        assert not name.startswith(("nvidia", "cuda", "triton"))


def test_every_folder_of_modules_is_a_package():
    for module in (ROOT / "fimoda_lib").rglob("*.py"):
        assert (module.parent / "__init__.py").exists(), f"{module.parent} would be left out of an installation"


# Is this environment good?


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (pinned_as_installed("pytest"), []),
        ("pytest==0.1", [f"pytest is {metadata.version('pytest')} and not 0.1"]),
        ("No.Such_package==1.0", ["no-such-package 1.0 is missing"]),
    ],
)
def test_an_environment_is_good_if_every_version_is_the_pinned_one(run, expected, tmp_path):
    folder = project(tmp_path / "p", run=run)
    assert environment.problems("run", folder / "pyproject.toml") == expected
    assert environment.problems("test", folder / "pyproject.toml") == expected


def test_the_pins_of_the_tests_count_for_the_tests_only(tmp_path):
    folder = project(tmp_path / "p", run=pinned_as_installed("pytest"), test="no-such-package==1.0")
    assert environment.problems("run", folder / "pyproject.toml") == []
    assert environment.problems("test", folder / "pyproject.toml") == ["no-such-package 1.0 is missing"]


def test_the_encoder_counts_for_the_tests_and_the_large_profiles_only(tmp_path):
    folder = project(tmp_path / "p", run=pinned_as_installed("pytest"), text="no-such-package==1.0")
    assert environment.problems("run", folder / "pyproject.toml") == []
    for part in ("text", "test"):
        assert environment.problems(part, folder / "pyproject.toml") == ["no-such-package 1.0 is missing"]
    for arguments in ([], ["--profile", "quick"], ["--only", "laptop"], ["--profile=smoke", "--data", "paper"]):
        assert start(folder, *arguments).returncode == 0
    assert not (folder / ".venv").exists()
    python = folder / ".venv" / "bin" / "python"  # one that installs nothing; whole set-ups are tested below
    python.parent.mkdir(parents=True)
    python.write_text(f'#!{BASH}\n[[ "$*" != *"pip install"* ]] && exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for arguments in (["--profile=paper"], ["--profile", "laptop"]):
        result = start(folder, *arguments)
        assert result.returncode == 1 and "updating .venv (no-such-package 1.0 is missing)" in result.stderr


@pytest.mark.parametrize(("installed", "good"), [("2.13.0+cpu", True), ("2.13.0", True), ("2.13.1+cpu", False)])
def test_the_build_of_a_version_does_not_matter(installed, good, tmp_path, monkeypatch):
    folder = project(tmp_path / "p", run="fake-torch==2.13.0")
    information = tmp_path / "site" / f"fake_torch-{installed}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake_torch\nVersion: {installed}\n")
    monkeypatch.syspath_prepend(information.parent)
    assert (environment.problems("run", folder / "pyproject.toml") == []) is good


def test_the_check_imports_the_standard_library_only():
    file = str(ROOT / "fimoda_lib" / "run" / "environment.py")
    code = f"import runpy, sys; runpy.run_path({file!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert {name.partition(".")[0] for name in loaded.split()} - {"__main__"} <= set(sys.stdlib_module_names)


# run_all.sh


@pytest.mark.parametrize("script", ["run_all.sh", ".ci/run"])
def test_the_scripts_are_executable_bash(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run([BASH, "-n", str(ROOT / script)], check=True)


def test_ci_runs_the_command_that_the_readme_gives():
    command = "./run_all.sh test"
    assert f"exec {command}\n" in (ROOT / ".ci" / "run").read_text()
    assert not (ROOT / "README.md").exists() or command in (ROOT / "README.md").read_text()


def test_help_needs_no_set_up(tmp_path):
    folder = project(tmp_path / "with space", run="no-such-package==1.0", stub="print('options of run.py')")
    with_python = path_with(tmp_path / "bin1", python3=f'exec "{sys.executable}" -S "$@"')  # -S: no packages
    without = path_with(tmp_path / "bin2")
    for path, python, options in [
        (with_python, "", "options of run.py"),
        (without, "", "--profile"),
        (with_python, "nowhere/python", "--profile"),
    ]:
        result = start(folder, "--only", "fig2", "--help", PATH=path, FIMODA_PYTHON=python)
        assert (result.returncode, result.stderr) == (0, "")
        assert "./run_all.sh test" in result.stdout and "FIMODA_PYTHON" in result.stdout and options in result.stdout
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize(
    ("programs", "variables", "fragment"),
    [
        ({}, {}, r"Python 3\.11 to 3\.\d+ is needed \(found: none\)"),
        ({"python": "echo 2.7", "python3": "echo 3.10"}, {}, r"is needed \(found: 2\.7 and 3\.10\)"),
        ({"python3": "echo 4.0"}, {}, r"is needed \(found: 4\.0\)"),
        ({"old": "echo 3.9"}, {"FIMODA_PYTHON": "old"}, r"'old', which is Python 3\.9; Python 3\.11 to"),
        (
            {},
            {"FIMODA_PYTHON": "nowhere/python"},
            r"'nowhere/python', which does not run; give it the path of Python 3",
        ),
    ],
)
def test_an_unsuitable_python_is_refused_in_one_sentence(programs, variables, fragment, tmp_path):
    folder = project(tmp_path / "p", run=pinned_as_installed("pytest"))
    path = path_with(tmp_path / "bin", **programs)
    result = start(folder, **{"PATH": path, "FIMODA_PYTHON": ""} | variables)
    assert result.returncode == 1
    assert re.fullmatch(rf"run_all\.sh: [^\n]*{fragment}[^\n]*\.\n", result.stderr)
    assert not (folder / ".venv").exists()


def test_a_word_that_is_no_command_is_refused_before_anything_is_set_up(tmp_path):
    result = start(folder := project(tmp_path / "p", run="no-such-package==1.0"), "laptop")
    assert result.returncode == 1 and "got 'laptop', expected lab, test, check, status, benchmark, or" in result.stderr
    assert result.stderr.count("\n") == 1 and not (folder / ".venv").exists()
    pages = [ROOT / "README.md", ROOT / "fimoda_lib" / "README.md", *(ROOT / "docs").glob("*.md")]
    words = {word for page in pages for word in re.findall(r"run_all\.sh (\w+)", page.read_text())}
    assert {"lab", "test", "benchmark"} <= words
    for word in words - {"test"}:  # whose --help is that of pytest
        assert start(folder, word, "--help").returncode == 0, word


def test_an_active_environment_that_is_good_is_used_as_it_is(tmp_path):
    folder = project(tmp_path / "with space", run=pinned_as_installed("pytest"), test=pinned_as_installed("hypothesis"))
    active = path_with(tmp_path / "bin", python=f'exec "{sys.executable}" "$@"')
    result = start(folder, "--data", "my files", PATH=active, FIMODA_PYTHON="")
    assert (result.returncode, result.stdout) == (0, f"{sys.executable}\n--data\nmy files\n"), result.stderr
    tests = start(folder, "test", "--version")
    assert (tests.returncode, tests.stdout.split()[:1]) == (0, ["pytest"]), tests.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.slow
def test_a_set_up_that_fails_or_was_interrupted_is_taken_up_again(tmp_path):
    folder = project(tmp_path / "with space", run="no-such-package==1.0")
    rest = folder / ".venv" / "lib" / "rest"
    rest.mkdir(parents=True)
    marker = folder / ".venv" / ".set-up-unfinished"
    marker.write_text("999999999\n")  # the number of no process
    result = start(folder)
    assert result.returncode == 1 and not rest.exists()
    assert "the last set-up was interrupted" in result.stderr
    assert "ERROR" in result.stderr and "It needs the network once; then start again." in result.stderr
    assert not marker.exists()  # pip installed nothing, so that the next start can go on from here
    again = start(folder)
    assert "updating .venv (no-such-package 1.0 is missing)" in again.stderr
    assert again.returncode == 1 and "It needs the network once" in again.stderr


def test_mkl_takes_its_fast_kernels_on_amd_processors(tmp_path):
    """Preloaded is a library that says yes where MKL asks for Intel; not elsewhere, not if the user says so, and not
    from a folder whose name the loader cannot read."""
    amd = all(word in Path("/proc/cpuinfo").read_text() for word in ("AuthenticAMD", " avx2 "))
    stub = "import ctypes\nprint(hasattr(ctypes.CDLL(None), 'mkl_serv_intel_cpu_true'))\n"
    preloads = amd and any(map(shutil.which, ("cc", "gcc", "clang")))
    for name, said, expected in (("here", "", preloads), ("here", "unchanged", False), ("with space", "", False)):
        folder = tmp_path / name
        if not folder.exists():
            project(folder, run=pinned_as_installed("pytest"), stub=stub)
        result = start(folder, FIMODA_MKL=said, LD_PRELOAD="")
        assert (result.stdout.split(), result.returncode) == ([str(expected)], 0), result.stderr
        assert "LD_PRELOAD" not in result.stderr
    if preloads:
        assert ctypes.CDLL(tmp_path / "here/build/mkl/answers_intel.so").mkl_serv_intel_cpu_true() == 1
