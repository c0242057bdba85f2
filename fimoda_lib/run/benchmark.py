"""`run_all.sh benchmark`: a method against a stored gold standard, or a gold standard made of the results of a run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..checks import reason


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="run_all.sh benchmark",
        description="Scores an attribution method against a stored gold standard, beside all known methods; or, with "
        "--make, makes the gold standards from the results of a run, computing what is missing.",
    )
    p.add_argument("method", nargs="?", help="FILE.py:FUNCTION, MODULE:FUNCTION, or the name of a known method")
    p.add_argument(
        "--dataset", nargs="+", metavar="NAME", help="data sets (energy; with --make: those that are stored)"
    )
    p.add_argument("--data", metavar="DIR", help="folder with data files (also: the environment variable FIMODA_DATA)")
    p.add_argument("--plot", metavar="FILE", help="draw it, too: a .png or .pdf")
    p.add_argument("--make", action="store_true", help="make gold standards, in place of those that are stored")
    p.add_argument(
        "--rows",
        action="store_true",
        help="with --make: run the known methods anew; the gold standards stay as they are",
    )
    p.add_argument("--profile", default="laptop", help="with --make: the profile of the run (laptop)")
    p.add_argument("--results", default="results", metavar="DIR", help="with --make: where its work is kept (results)")
    p.add_argument("--seeds", type=int, metavar="N", help="with --make: the first N seeds, in place of the profile's")
    return p


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.make == (options.method is not None):
        print("run_all.sh benchmark: give either a method, such as mine.py:mine, or --make.", file=sys.stderr)
        return 2
    from ..storage.store import StoreError

    try:
        return make(options) if options.make else score(options)
    except (ValueError, StoreError) as error:  # DataFileError is a ValueError
        print(f"run_all.sh benchmark: {error}", file=sys.stderr)
        return 2


def score(options: argparse.Namespace) -> int:
    """Prints how the method does on each data set."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from ..paper.benchmark import benchmark, leaderboard

    method, failed = find(options.method), 0
    for dataset in options.dataset or ["energy"]:
        table = benchmark(method, dataset, data_dir=options.data, plot=options.plot is not None)
        own = table[~table["stored"]]
        failed += own["outcome"].iloc[0] != "finished"
        intervals = [f"{low:.2f}–{high:.2f}" for low, high in zip(own["low"], own["high"], strict=True)]
        print(f"\n{table.attrs['title']}: cosine similarity to further training (gold standard: "
              f"{table.attrs['made by']})\n")  # fmt: skip
        print(leaderboard(table).to_string(float_format="{:.2f}".format, na_rep=""))
        print(f"\n95 % intervals of {own['label'].iloc[0]}: {', '.join(intervals)}")
        if own["outcome"].iloc[0] != "finished":
            print(own["outcome"].iloc[0])
        if options.plot:
            path = Path(options.plot)
            path = path.with_stem(f"{path.stem}-{dataset}") if len(options.dataset or ()) > 1 else path
            plt.gcf().savefig(path)
            print(f"Drawn: {path}")
        plt.close("all")
    return 1 if failed else 0


def make(options: argparse.Namespace) -> int:
    """Writes the gold standards."""
    from ..experiments.panel import Panel
    from ..experiments.standards import renew_rows, stored_names, write_standard

    for dataset in options.dataset or stored_names():
        if options.rows:
            print(renew_rows(dataset, options.data), flush=True)
            continue
        panel = Panel(dataset, options.profile, results=options.results, data_dir=options.data)
        if options.seeds is not None:
            panel = replace(panel, given_settings=replace(panel.settings, seeds=tuple(range(options.seeds))))
        path = write_standard(panel)
        print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)", flush=True)
    return 0


def find(name: str) -> str | Callable:
    """The function of that name, as FILE.py:FUNCTION or MODULE:FUNCTION; a name without a colon is returned as it is.

    Raises:
        ValueError: there is no such file, module or function.
    """
    place, colon, function = name.rpartition(":")
    if not colon:
        return name
    try:
        if place.endswith(".py"):
            sys.path.append(
                str(Path(place).resolve().parent)
            )  # at the end: nothing there stands in for what is installed
            spec = importlib.util.spec_from_file_location(f"method_of_{Path(place).stem}", place)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.append(str(Path.cwd()))
            module = importlib.import_module(place)
        return getattr(module, function)
    except Exception as error:  # whatever somebody's file may raise
        raise ValueError(
            f"method: got {name!r}, which cannot be found or run ({reason(error)}); expected FILE.py:FUNCTION, "
            "MODULE:FUNCTION or the name of a known method."
        ) from error
