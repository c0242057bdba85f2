"""What the project needs installed: the pins in pyproject.toml, and what is derived from them.

Only the standard library is imported: run_all.sh asks any Python, before set-up, whether it has what is needed.

    python fimoda_lib/run/environment.py check PART   says what is missing or of another version (then exit status 1)
    python fimoda_lib/run/environment.py no-deps      what is to be installed with `pip install --no-deps`
    python fimoda_lib/run/environment.py conda        the text of environment.yml
    python fimoda_lib/run/environment.py lock         the text of constraints.txt, read off the environment it runs in

PART is run, text (run and an encoder for SST-2) or test (all).

After a change of pins in pyproject.toml: `rm -rf .venv constraints.txt; touch constraints.txt; ./run_all.sh test`, then
`.venv/bin/python fimoda_lib/run/environment.py lock > constraints.txt` and `... conda > environment.yml`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

# What pip brings for one kind of machine only: torch pins these itself, where it needs them.
_MACHINE_SPECIFIC = re.compile(r"(nvidia|cuda|triton)(-|$)")


def pins(part: str, pyproject: Path = PYPROJECT) -> dict[str, str]:
    """Package -> exact version, as pinned for one part: "run", an extra such as "test", or "no-deps".

    Raises:
        KeyError: pyproject.toml has no such part.
        ValueError: a requirement is not of the form name==version.
    """
    content = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    parts = {
        "run": content["project"]["dependencies"],
        "no-deps": content["tool"]["fimoda"]["no_deps"],
        **content["project"]["optional-dependencies"],
    }
    if part not in parts:
        raise KeyError(f"pyproject.toml has no part {part!r}; expected one of {', '.join(parts)}.")
    exact = {}
    for requirement in parts[part]:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", requirement)
        if not match:
            raise ValueError(f"{pyproject.name}: got the requirement {requirement!r}, expected name==version.")
        exact[_normalised(match[1])] = match[2]
    return exact


def problems(part: str, pyproject: Path = PYPROJECT) -> list[str]:
    """How this Python's packages differ from the pins; empty if they agree.

    "text" includes "run", and "test" includes all.
    """
    needed = pins("run", pyproject)
    if part in ("text", "test"):
        needed |= pins("text", pyproject)
    if part == "test":
        needed |= pins("test", pyproject) | pins("no-deps", pyproject)
    found = {name: _installed_version(name) for name in needed}
    return [
        f"{name} is {found[name]} and not {version}" if found[name] else f"{name} {version} is missing"
        for name, version in needed.items()
        if found[name] != version
    ]


def conda_environment(pyproject: Path = PYPROJECT) -> str:
    """The text of environment.yml: conda brings Python, pip the pinned packages."""
    no_deps = " ".join(f"{name}=={version}" for name, version in pins("no-deps", pyproject).items())
    lines = [
        "# Made by `python fimoda_lib/run/environment.py conda` from pyproject.toml: change the versions there.",
        "#",
        "#     conda env create -f environment.yml",
        "#     conda activate fimoda",
        f"#     python -m pip install --no-deps {no_deps}    # for the tests only",
        "name: fimoda",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
        "      - --constraint constraints.txt",
        "      - --editable .",
    ]
    for part in ("run", "text", "test"):
        lines += [f"      - {name}=={version}" for name, version in sorted(pins(part, pyproject).items())]
    return "\n".join(lines) + "\n"


def constraints() -> str:
    """The text of constraints.txt: every package installed here but this one and pip, at its version."""
    versions = {_normalised(d.metadata["Name"]): d.version.partition("+")[0] for d in metadata.distributions()}
    kept = {
        name: version
        for name, version in sorted(versions.items())
        if name not in ("fimoda-lib", "pip", "wheel") and not _MACHINE_SPECIFIC.match(name)
    }
    lines = [
        "# The tested version of every package, direct and indirect (Python 3.11, Linux): pip install --constraint.",
        "# Made by `python fimoda_lib/run/environment.py lock`; packages for one accelerator only are not listed.",
    ]
    return "\n".join(lines + [f"{name}=={version}" for name, version in kept.items()]) + "\n"


def _normalised(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed_version(name: str) -> str | None:
    """The installed version without a build tag ("2.13.0+cpu" -> "2.13.0"); None if the package is missing."""
    try:
        version = metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError):  # KeyError: an installation that was cut short
        return None
    return version.partition("+")[0] if version else None


def _main(arguments: list[str]) -> int:
    match arguments:
        case ["check", ("run" | "text" | "test") as part]:
            found = problems(part)
            if found:
                more = [f"{len(found) - 2} more such"] if len(found) > 2 else []
                print(", ".join(found[:2] + more))
            return 1 if found else 0
        case ["no-deps"]:
            print(*(f"{name}=={version}" for name, version in pins("no-deps").items()))
        case ["conda"]:
            print(conda_environment(), end="")
        case ["lock"]:
            print(constraints(), end="")
        case _:
            print(__doc__)
            return 0 if arguments in (["-h"], ["--help"]) else 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
