"""Experiments x notebooks through papermill: the command line behind `run_all.sh`.

Standard library only at the top: `--help` and a wrong option answer at once, on any Python.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROFILES = {  # what `profiles.PROFILES` holds; a test compares them
    "smoke": "the smallest sizes that pass through every line, for tests: about a minute",
    "quick": "20 left-out instances, 5 seeds, an eighth of the epochs, data that ships with scikit-learn in place of "
    "what is not on this machine: about nine minutes on 2 cores, no network",
    "laptop": "the paper's data sets, left-out instances and epochs with 2 to 10 seeds: about four hours on 2 cores",
    "paper": "everything as in the paper, 100 seeds: for a GPU box",
}
PANELS = ("concrete", "energy", "fico", "folktables", "cifar10", "sst2")  # keys of `experiments.PANELS`
STAND_INS = (
    *("adult", "diabetes", "wine", "breast_cancer", "digits"),
    *("cifar10_jpeg", "digit_images", "sentences"),
)
BEYOND = (  # what notebook 06 draws; keys of `beyond.FIGURES`
    "fig02plus",
    "fig04plus",
    "fig_filter",
    "fig_limit",
    "fig_units",
    "fig_precision",
    "fig_removal",
    "table_horizons",
)
# ... and those of `figures.FIGURES`
FIGURES = (
    *(f"fig{number:02d}" for number in range(1, 12)),
    *("table2", "table2_text", "fig_images", "fig_damping"),
    *BEYOND,
)
FOLLOWED_BY_LFT = {"sgd": {"fig02plus", "table_horizons"}, "adam": {"fig04plus"}}  # optimiser -> figures with LFT
FINAL_MODEL_ONLY = {"fig01", "fig_limit", "fig_units", "fig_precision"}  # need no gold standard, no scores
MOST_JOBS = 4  # processes where nobody says how many
OPTIMIZERS_OF = {"fig01": (), "fig04": ("adam",), "fig08": ("adam",), "fig04plus": ("adam",)}  # all others: SGD


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
        + "\n\nWhat is done, running and missing:  ./run_all.sh status [--profile ...] [--datasets ...] [--only ...]"
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
        help="processes that share the work of this machine (one for each GPU; without a GPU 1, or with the profile "
        f"quick one for each core, up to {MOST_JOBS})",
    )
    p.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="leave the work to the workers of a running dask scheduler, tcp://host:port; --jobs is then the number of "
        "notebooks run at once here",
    )
    p.add_argument("--skip-tutorial", action="store_true", help="leave out notebooks 00 and 07")
    p.add_argument(
        "--fresh", action="store_true", help="compute everything again; earlier results are renamed, not deleted"
    )
    return p


def main(arguments: list[str] | None = None) -> int:
    """Runs everything asked for; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    only_status = arguments[:1] == ["status"]
    options = parser().parse_args(arguments[only_status:])
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
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not one of the user's others
    os.environ.setdefault("TQDM_MININTERVAL", "2")  # every refresh of a progress bar stays in the executed notebook
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # bars are plain text here
    # glibc gives large blocks back to the system at every step otherwise: a fifth of the time of further training.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
    from ..datasets import DataFileError
    from ..storage.folders import set_aside

    if options.jobs is None:
        options.jobs = choose_jobs(options)
    try:
        stages = plan(options)
        if only_status:
            return status(stages, options)
        if options.fresh and (kept := set_aside(Path(options.results) / options.profile)):
            print(f"Earlier results are now in {kept}")
    except (DataFileError, ValueError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    return run(stages, options)


def asked_for(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The figures that can be drawn of what was asked for, and the data sets that they need.

    Raises:
        ValueError: a figure was asked for by name that shows none of the data sets.
    """
    from ..experiments.settings import choose_dataset, panel_letter
    from ..plots.panels import LETTERS

    chosen = options.datasets or PANELS
    here = {panel_letter(name) for name in chosen}
    figures = [f for f in options.only or FIGURES if not LETTERS[f] or here & {*LETTERS[f].values()}]
    for name in options.only or ():
        if name not in figures:
            raise ValueError(f"{name} does not show {' or '.join(chosen)}; name another data set, or none for all.")
    needed = {letter for f in figures for letter in LETTERS[f].values()}
    names = [name for name in chosen if panel_letter(name) in needed]
    return figures, [choose_dataset(name, options.profile) if name in PANELS else name for name in names]


def plan(options: argparse.Namespace) -> list[list[NotebookRun]]:
    """The notebook runs, in stages: those of one stage do not need each other."""
    from ..experiments.settings import panel_letter
    from ..plots.panels import LETTERS

    figures, datasets = asked_for(options)
    optimizers = sorted({o for f in figures for o in OPTIMIZERS_OF.get(f, ("sgd",))}, reverse=True)
    common = {"profile": options.profile, "results": str(Path(options.results).resolve())}
    stages = []
    if not options.skip_tutorial and options.only is None and options.datasets is None:
        smoke = {"n_left_out": 6, "n_seeds": 2, "epochs": 1} if options.profile == "smoke" else {}
        own = {"n_left_out": 6, "n_seeds": 3, "epochs": 2, "lissa_depth": 50} if options.profile == "smoke" else {}
        store = {"store": str(Path(options.results).resolve() / options.profile / "own")}
        stages.append([NotebookRun("00_tutorial", "tutorial", smoke)])
        stages[-1].append(NotebookRun("07_your_own_model", "your own model", {**own, **store}))
    per_dataset = [{**common, "dataset": d} for d in datasets]
    retrained = LETTERS["fig11"].values() if "fig11" in figures else ()
    stages.append([NotebookRun("01_final_model", f"final model, {p['dataset']}", p) for p in per_dataset])
    measured = [] if set(figures) <= FINAL_MODEL_ONLY else per_dataset
    stages.append(
        [
            NotebookRun(
                "02_further_training",
                f"further training, {p['dataset']}, {o}",
                {**p, "optimizer": o, "retrain": o == "sgd" and panel_letter(p["dataset"]) in retrained},
            )
            for o in optimizers
            for p in measured
            if trained_with(o, [p["dataset"]])
        ]
    )
    stages.append([NotebookRun("03_attribution", f"attribution, {p['dataset']}", p) for p in measured])
    shown = {**common, "datasets": list(datasets), "figures": str(Path(options.figures).resolve())}
    drawn = []
    if only := [f for f in figures if f not in ("fig_damping", *BEYOND)]:
        drawn.append(NotebookRun("04_figures", "figures", {**shown, "only": only}))
    if "fig_damping" in figures:
        regression = [d for d in datasets if panel_letter(d) in LETTERS["fig_damping"].values()]
        drawn.append(NotebookRun("05_damping_is_time", "damping is time", {**shown, "datasets": regression}))
    if only := [f for f in figures if f in BEYOND]:
        drawn.append(NotebookRun("06_why_methods_decay", "why methods decay", {**shown, "only": only}))
    return [stage for stage in [*stages, drawn] if stage]


def work_of(stages: list[list[NotebookRun]]) -> list[tuple[str, str]]:
    """What the notebooks compute piece by piece, (data set, kind), the kinds being those of `status.lines`.

    The studies of notebooks 05 and 06 are not among it: they stay with the notebooks.
    """
    kinds = {"01_final_model": "final model", "03_attribution": "scores"}
    work = []
    for item in (item for stage in stages for item in stage):
        if "dataset" in item.parameters:
            work.append((item.parameters["dataset"], item.parameters.get("optimizer") or kinds[item.notebook]))
        if item.parameters.get("retrain"):
            work.append((item.parameters["dataset"], "retraining"))
        for optimizer, figures in FOLLOWED_BY_LFT.items():
            if item.notebook == "06_why_methods_decay" and figures & {*item.parameters["only"]}:
                datasets = with_lft(trained_with(optimizer, item.parameters["datasets"]), item.parameters["profile"])
                work += [(dataset, f"lft, {optimizer}") for dataset in datasets]
    return work


def trained_with(optimizer: str, datasets: Sequence[str]) -> list[str]:
    """The data sets that are trained further with an optimiser; "sgd" stands for the only one of images and text."""
    from ..experiments.settings import EXPERIMENTS

    return [dataset for dataset in datasets if optimizer in ("sgd", *EXPERIMENTS[dataset].further)]


def with_lft(datasets: Sequence[str], profile: str) -> list[str]:
    """Those data sets on which a profile runs LFT."""
    from ..experiments.settings import experiment_of

    return [dataset for dataset in datasets if "lft" not in experiment_of(dataset, profile).without]


def choose_jobs(options: argparse.Namespace) -> int:
    """How many processes where nobody says: one for each GPU. Small models do not fill two cores, but two processes."""
    from .spread import gpus

    if options.scheduler:
        return 1
    if found := gpus():
        return len(found)
    return min(os.cpu_count() or 1, MOST_JOBS) if options.profile == "quick" else 1


def spread_out(stages: list[list[NotebookRun]], options: argparse.Namespace) -> None:
    """Has several processes compute what the notebooks will then find; the studies of notebooks 05 and 06 stay there.

    Raises:
        SpreadError: some of it cannot be computed.
    """
    from .spread import shards_of, spread

    shards = shards_of(work_of(stages), options.profile, options.results, options.data)
    spread(shards, jobs=options.jobs, scheduler=options.scheduler)


def status(stages: list[list[NotebookRun]], options: argparse.Namespace) -> int:
    """Prints what is done, running and missing; computes nothing."""
    from .status import lines, table

    found = list(lines(work_of(stages), options.profile, options.results))
    print(f"{Path(options.results) / options.profile}\n{table(found)}")
    return 0


def run(stages: list[list[NotebookRun]], options: argparse.Namespace) -> int:
    """Runs the stages one after another; within a stage, `--jobs` notebooks at once. With several processes or a
    scheduler, the shards come first, so that the notebooks find them."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from ..datasets import DataFileError
    from ..storage.folders import StoreError
    from .spread import SpreadError

    if options.jobs > 1 or options.scheduler:
        try:
            spread_out(stages, options)
        except (SpreadError, StoreError, DataFileError) as error:
            print(
                f"run_all.sh: {error}\nWhat is finished is kept, and the same command goes on from there.",
                file=sys.stderr,
            )
            return 1
    started, total, done = time.perf_counter(), sum(map(len, stages)), 0
    threads = os.environ.get("OMP_NUM_THREADS")
    executed = Path(options.results) / options.profile / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        together = min(options.jobs, len(stage))
        share_cores(together, threads)
        with ThreadPoolExecutor(together) as pool:
            shown = stage if together == 1 else stage[-1:]  # bars of two would overwrite each other
            waiting = {pool.submit(execute, item, executed, shown=item in shown): item for item in stage}
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
    write_report(options)
    return 0


def write_report(options: argparse.Namespace) -> None:
    """Makes the page on what was found and prints where it is; if that fails, says so and leaves all else as it is."""
    figures = Path(options.figures) / options.profile
    try:
        from ..paper.report import report

        print(f"Report: {report(figures, Path(options.results) / options.profile)}", flush=True)
    except Exception as error:  # whatever is wrong with the page, the run itself has succeeded
        print(
            f"run_all.sh: the run is finished, but its report could not be made ({type(error).__name__}: {error}); "
            f"try it alone: python -m fimoda_lib.paper.report {figures}",
            file=sys.stderr,
        )


def share_cores(kernels: int, threads: str | None) -> None:
    """So many kernels share the cores instead of fighting for them; one alone has `threads`, what the user has set."""
    from .spread import threads_each

    if kernels > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads_each(kernels))
    elif threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = threads


def execute(item: NotebookRun, folder: Path, *, shown: bool) -> str | None:
    """Runs one notebook, its progress bars shown or not; returns None, or in one line why it stopped."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    print(f"... {item.label}", flush=True)
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{item.notebook}.ipynb",
            _output(item, folder),
            parameters=item.parameters,
            progress_bar=False,
            cwd=str(ROOT),
            stderr_file=sys.stderr if shown else None,
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

