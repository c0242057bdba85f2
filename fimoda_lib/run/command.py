"""Experiments x notebooks through papermill: the command line behind `run_all.sh`.

Standard library only at the top: `--help` and a wrong option answer at once, on any Python.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .notebooks import ROOT, run
from .plan import FIGURES, PANELS, STAND_INS, NotebookRun, plan, work_of

if TYPE_CHECKING:
    from .preflight import Need

PROFILES = {  # what `profiles.PROFILES` holds; a test compares them
    "smoke": "the smallest sizes that pass through every line, for tests: about a minute",
    "quick": "20 left-out instances, 5 seeds, an eighth of the epochs, data that ships with scikit-learn in place of "
    "what is not on this machine: about ten minutes on 2 cores, no network",
    "laptop": "the paper's data sets and epochs, an eighth of its left-out instances, 2 to 5 seeds, 500 steps of "
    "LiSSA-H: about two hours on 2 cores",
    "overnight": "half of the left-out instances, 5 to 100 seeds, as committed: some ten hours on 2 cores",
    "paper": "everything as in the paper, 100 seeds: for a GPU box",
}
MOST_JOBS = 4  # processes where nobody says how many


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Runs the notebooks that make the paper's figures. Finished work is found and not repeated.",
        epilog="profiles:\n"
        + "\n".join(f"  {name:10}{text}" for name, text in PROFILES.items())
        + "\n\nWhat a profile takes on this machine, and whether all is there:  ./run_all.sh check [--profile ...]"
        + "\nWhat is done, running and missing:  ./run_all.sh status [--profile ...] [--datasets ...] [--only ...]"
        + "\nA method of yours against a stored gold standard:  ./run_all.sh benchmark mine.py:mine --dataset energy"
        + "\nJupyterLab on the notebooks:          ./run_all.sh lab [notebook] [options of jupyter lab]"
        + "\nThe tests: ./run_all.sh test [arguments for pytest]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--profile", default="quick", choices=PROFILES, metavar="PROFILE", help="how much to run (quick)")
    p.add_argument(
        "--only",
        nargs="+",
        choices=FIGURES,
        metavar="FIG",
        help=f"some figures only: {', '.join(FIGURES)}",
    )
    p.add_argument(
        "--datasets",
        nargs="+",
        choices=PANELS + STAND_INS,
        metavar="NAME",
        help=f"some data sets only: {', '.join(PANELS + STAND_INS)}",
    )
    p.add_argument("--data", metavar="DIR", help="folder with data files (also: the environment variable FIMODA_DATA)")
    p.add_argument("--results", default="results", metavar="DIR", help="where finished work is kept (results)")
    p.add_argument("--figures", default="figures", metavar="DIR", help="where figures go (figures)")
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"processes that share the work of this machine (one for each GPU; without a GPU one for each core, at "
        f"most {MOST_JOBS})",
    )
    p.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="leave the work to the workers of a running dask scheduler, tcp://host:port; --jobs is then the number of "
        "notebooks run at once here",
    )
    p.add_argument("--skip-tutorial", action="store_true", help="leave out notebooks 00, 07 and 08")
    p.add_argument(
        "--fresh", action="store_true", help="compute everything again; earlier results are renamed, not deleted"
    )
    return p


def main(arguments: list[str] | None = None) -> int:
    """Runs everything asked for; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["benchmark"]:
        from .benchmark import main as benchmark

        return benchmark(arguments[1:])
    for_notebooks()
    if arguments[:1] == ["lab"]:
        from .lab import open_lab

        return open_lab(arguments[1:])
    asked = arguments[0] if arguments[:1] in (["status"], ["check"]) else ""
    options = parser().parse_args(arguments[bool(asked) :])
    if options.data is not None and not Path(options.data).is_dir():
        print(
            f"run_all.sh: --data: there is no folder {options.data!r}; give the folder that holds uci/, heloc/, ...",
            file=sys.stderr,
        )
        return 2
    if options.jobs is not None and options.jobs < 1:
        print(f"run_all.sh: --jobs: got {options.jobs}, expected at least 1.", file=sys.stderr)
        return 2
    if options.data is not None:
        os.environ["FIMODA_DATA"] = str(Path(options.data).resolve())
    from ..datasets import DataFileError
    from ..storage.folders import set_aside

    if options.jobs is None:
        options.jobs = choose_jobs(options)
    try:
        try:
            stages = plan(options)
        except DataFileError as error:
            from .preflight import needs_without_data

            if asked == "status" or not told(needs_without_data(options)):
                raise error
            return 2
        if asked == "status":
            return status(stages, options)
        if asked == "check" or options.profile != "smoke":  # the tests' own profile takes no longer than the check
            found = preflight(stages, options)
            if asked == "check" or found:
                return 2 if found else 0
        if options.fresh and (kept := set_aside(Path(options.results) / options.profile)):
            print(f"Earlier results are now in {kept}")
    except (DataFileError, ValueError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    return run(stages, options)


def for_notebooks() -> None:
    """What the kernels of notebooks inherit: the way to the library; the rest unless the user has said otherwise."""
    others = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ("", str(ROOT))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *others])
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not one of the user's others
    os.environ.setdefault("TQDM_MININTERVAL", "2")  # every refresh of a progress bar stays in the executed notebook
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # bars are plain text here
    # glibc gives large blocks back to the system at every step otherwise: a fifth of the time of further training.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))


def choose_jobs(options: argparse.Namespace) -> int:
    """How many processes where nobody says: one for each GPU. Small models do not fill two cores, but two processes."""
    from .spread import gpus

    if options.scheduler:
        return 1
    if found := gpus():
        return len(found)
    return 1 if options.profile == "smoke" else min(os.cpu_count() or 1, MOST_JOBS)  # tests share the cores already


def preflight(stages: list[list[NotebookRun]], options: argparse.Namespace) -> bool:
    """Prints what the run needs and what there is here; returns whether something is missing."""
    from .preflight import needs

    return told(needs(work_of(stages), options))


def told(found: list[Need]) -> bool:
    """Prints needs in one table, and what is wrong; returns whether anything is."""
    from .preflight import problems, table

    print(table(found), flush=True)
    for problem in problems(found):
        print(f"run_all.sh: {problem}", file=sys.stderr)
    return bool(problems(found))


def status(stages: list[list[NotebookRun]], options: argparse.Namespace) -> int:
    """Prints what is done, running and missing; computes nothing."""
    from .status import lines, table

    found = list(lines(work_of(stages), options.profile, options.results))
    print(f"{Path(options.results) / options.profile}\n{table(found)}")
    return 0
