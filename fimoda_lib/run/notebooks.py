"""Runs notebooks through papermill, stage after stage, and makes the report at the end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .plan import NotebookRun, work_of

ROOT = Path(__file__).resolve().parents[2]


def spread_out(stages: list[list[NotebookRun]], options: argparse.Namespace) -> None:
    """Has several processes compute what the notebooks will then find.

    Raises:
        SpreadError: some of it cannot be computed.
    """
    from .shards import shards_of
    from .spread import spread

    shards = shards_of(work_of(stages), options.profile, options.results, options.data)
    expected = getattr(options, "expected", {})
    spread(shards, jobs=options.jobs, scheduler=options.scheduler, expected=expected)


def run(stages: list[list[NotebookRun]], options: argparse.Namespace) -> int:
    """Runs the stages one after another; within a stage, `--jobs` notebooks at once. With several processes or a
    scheduler, the shards come first, so that the notebooks find them; not on a single GPU, where a notebook trains many
    seeds together, which is faster than a process for each.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from ..datasets import DataFileError
    from ..storage.folders import StoreError
    from .kernels import warm_up
    from .spread import gpus
    from .workers import SpreadError

    own = dict(os.environ)  # dask sets threads in it for the workers it starts
    options.began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # what is written later was computed by this run
    if options.scheduler or (options.jobs > 1 and len(gpus()) != 1):
        try:
            spread_out(stages, options)
        except (SpreadError, StoreError, DataFileError) as error:
            print(
                f"run_all.sh: {error}\nWhat is finished is kept, and the same command goes on from there.",
                file=sys.stderr,
            )
            return 1
        os.environ.clear()
        os.environ.update(own)
    warm_up()
    started, total, done = time.perf_counter(), sum(map(len, stages)), 0
    executed = Path(options.results) / options.profile / "notebooks"
    executed.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        together = min(options.jobs, len(stage))
        share_cores(together, own.get("OMP_NUM_THREADS"))
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

        print(
            f"Report: {report(figures, Path(options.results) / options.profile, getattr(options, 'began', None))}",
            flush=True,
        )
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

    from .kernels import ForkedKernels
    from .tidy import tidy

    print(f"... {item.label}", flush=True)
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{item.notebook}.ipynb",
            _output(item, folder),
            parameters=item.parameters,
            progress_bar=False,
            # The kernel starts where JupyterLab's does; `cwd=` would move this process, and all its threads with it.
            resources={"metadata": {"path": str(ROOT / "notebooks")}},
            stderr_file=sys.stderr if shown else None,
            kernel_name="python3",
            kernel_manager_class=ForkedKernels,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    finally:
        if _output(item, folder).exists():
            tidy(_output(item, folder), item.parameters)
    return None


def _output(item: NotebookRun, folder: Path) -> Path:
    words = [str(item.parameters[k]) for k in ("dataset", "optimizer") if k in item.parameters]
    return folder / ("-".join([item.notebook, *words]) + ".ipynb")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
