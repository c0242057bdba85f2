"""Experiments x notebooks through papermill: the command line behind `run_all.sh`.

Standard library only at the top: `--help` and a wrong option answer at once, on any Python.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROFILES = {  # what `experiments.PROFILES` holds; a test compares them
    "smoke": "the smallest sizes that pass through every line, for tests: about a minute",
    "quick": "20 left-out instances, 5 seeds, a fifth of the epochs, and data that ships with scikit-learn in place of "
    "what is not on this machine: about five minutes on 2 cores, no network",
    "laptop": "the paper's data sets, left-out instances and epochs with 3 to 10 seeds: about two hours on 2 cores",
    "paper": "everything as in the paper, 100 seeds: for a GPU box",
}
PANELS = ("concrete", "energy", "fico", "folktables")  # keys of `experiments.PANELS`
STAND_INS = ("adult", "diabetes", "wine", "breast_cancer", "digits")
FIGURES = ("fig02", "fig04", "fig05", "fig06", "fig_damping")
OPTIMIZERS_OF = {"fig04": ("adam",)}  # all others: SGD


@dataclass(frozen=True)
class NotebookRun:
    """One execution of a notebook."""

    notebook: str
    label: str
    parameters: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Runs the notebooks that make the paper's figures. Finished work is found and not repeated.",
        epilog="profiles:\n"
        + "\n".join(f"  {name:8}{text}" for name, text in PROFILES.items())
        + "\n\nThe tests: ./run_all.sh test [arguments for pytest]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--profile", default="quick", choices=PROFILES, metavar="PROFILE", help="how much to run (quick)")
    p.add_argument("--only", nargs="+", choices=FIGURES, metavar="FIG", help=f"some figures only: {', '.join(FIGURES)}")
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
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks run at once (1)")
    p.add_argument("--skip-tutorial", action="store_true", help="leave out notebook 00")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Runs everything asked for; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.data is not None and not Path(options.data).is_dir():
        print(
            f"run_all.sh: --data: there is no folder {options.data!r}; give the folder that holds uci/, heloc/, ...",
            file=sys.stderr,
        )
        return 2
    if options.jobs < 1:
        print(f"run_all.sh: --jobs: got {options.jobs}, expected at least 1.", file=sys.stderr)
        return 2
    if options.data is not None:
        os.environ["FIMODA_DATA"] = str(Path(options.data).resolve())
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not one of the user's others
    os.environ.setdefault("TQDM_MININTERVAL", "2")  # every refresh of a progress bar stays in the executed notebook
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # bars are plain text here
    # glibc gives large blocks back to the system at every step otherwise: a fifth of the time of further training.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
    from .datasets import DataFileError

    try:
        stages = plan(options)
    except (DataFileError, ValueError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    return run(stages, options)


def plan(options: argparse.Namespace) -> list[list[NotebookRun]]:
    """The notebook runs, in stages: those of one stage do not need each other."""
    from .experiments import choose_dataset

    figures = tuple(options.only or FIGURES)
    chosen = options.datasets or PANELS
    datasets = [choose_dataset(name, options.profile) if name in PANELS else name for name in chosen]
    optimizers = sorted({o for f in figures for o in OPTIMIZERS_OF.get(f, ("sgd",))}, reverse=True)
    common = {"profile": options.profile, "results": str(Path(options.results).resolve())}
    stages = []
    if not options.skip_tutorial and options.only is None and options.datasets is None:
        smoke = {"n_left_out": 6, "n_seeds": 2, "epochs": 1} if options.profile == "smoke" else {}
        stages.append([NotebookRun("00_tutorial", "tutorial", smoke)])
    per_dataset = [{**common, "dataset": d} for d in datasets]
    stages.append([NotebookRun("01_final_model", f"final model, {p['dataset']}", p) for p in per_dataset])
    stages.append(
        [
            NotebookRun("02_further_training", f"further training, {p['dataset']}, {o}", {**p, "optimizer": o})
            for o in optimizers
            for p in per_dataset
        ]
    )
    stages.append([NotebookRun("03_attribution", f"attribution, {p['dataset']}", p) for p in per_dataset])
    shown = {**common, "datasets": list(datasets), "figures": str(Path(options.figures).resolve())}
    if set(figures) - {"fig_damping"}:
        only = [f for f in figures if f != "fig_damping"]
        stages.append([NotebookRun("04_figures", "figures", {**shown, "only": only})])
    if "fig_damping" in figures:
        regression = [d for d in datasets if d in ("concrete", "energy", "diabetes", "wine")]
        if regression:
            stages.append([NotebookRun("05_damping_is_time", "damping is time", {**shown, "datasets": regression})])
    return stages


def run(stages: list[list[NotebookRun]], options: argparse.Namespace) -> int:
    """Runs the stages one after another; within a stage, `--jobs` notebooks at once."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    started, total, done = time.perf_counter(), sum(map(len, stages)), 0
    executed = Path(options.results) / options.profile / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = {pool.submit(execute, item, executed, options.jobs): item for item in stage}
            for future in as_completed(waiting):
                item, reason = waiting[future], future.result()
                if reason:
                    pool.shutdown(cancel_futures=True)
                    print(
                        f"run_all.sh: notebook {item.notebook} ({item.label}) stopped: {reason}\n"
                        f"The notebook with its output is {_output(item, executed)}; what is finished is kept, and "
                        "the same command goes on from there.",
                        file=sys.stderr,
                    )
                    return 1
                done += 1
                print(
                    f"[{done}/{total}] {item.label} done, {_minutes(time.perf_counter() - started)} so far", flush=True
                )
    print(f"\nFigures: {Path(options.figures) / options.profile}\nExecuted notebooks: {executed}")
    return 0


def execute(item: NotebookRun, folder: Path, jobs: int) -> str | None:
    """Runs one notebook; returns None, or in one line why it stopped."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    print(f"... {item.label}", flush=True)
    if jobs > 1:  # kernels share the cores instead of fighting for them
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // jobs, 1))
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{item.notebook}.ipynb",
            _output(item, folder),
            parameters=item.parameters,
            progress_bar=False,
            cwd=str(ROOT),
            stderr_file=sys.stderr if jobs == 1 else None,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    return None


def _output(item: NotebookRun, folder: Path) -> Path:
    words = [str(item.parameters[k]) for k in ("dataset", "optimizer") if k in item.parameters]
    return folder / ("-".join([item.notebook, *words]) + ".ipynb")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
