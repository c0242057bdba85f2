"""Numbers in README.md and docs/, filled in from the figures' CSV files.

    python -m fimoda_lib.paper.prose figures/overnight

A number stands behind a comment that no reader sees and that names its source: `<!--fig02:energy:grad_dot:first-->.68`;
a table stands between `<!--NAME-->` and `<!--end-->`, where NAME is one of `BLOCK`. A test fails where a page says
something else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..comparison import ceiling_of
from ..datasets import DATASETS
from ..experiments.settings import panel_letter
from ..methods import METHODS
from ..plots.look import LOOK
from ..plots.published import published_curves
from . import benchmarked
from .aims import aims
from .claims import check_claims, read_table, runs_of, title
from .findings import findings
from .over_horizons import log_weights
from .pieces import computed_by
from .rules import written

PAGES = ("README.md", "docs/results.md", "docs/beyond.md", "docs/images_and_text.md", "figures/README.md")
NUMBER = re.compile(r"<!--([\w:.]+)-->(−?\d*\.?\d+|–)")
TABLES = "verdicts|lft|aims|widths|widths with Adam|runs|unpublished|findings|curves|rectified|run|sizes"
BLOCK = re.compile(rf"(<!--({TABLES})-->\n).*?(<!--end-->)", re.S)
SEEDS = {  # figure -> whose seeds it shows
    "fig02": "seeds, SGD (text: AdamW)",
    "fig04": "seeds, Adam",
    "fig11": "seeds, re-training from scratch",
}
WHICH: dict[str, Callable[[pd.Series], float]] = {
    "first": lambda curve: curve.iloc[0],
    "last": lambda curve: curve.iloc[-1],
    "lowest": lambda curve: curve.min(),
    "highest": lambda curve: curve.max(),
}


def fill(text: str, folder: Path | str) -> str:
    """The text with its numbers and tables as the figures in a folder have them.

    Raises:
        ValueError: a comment names a figure, data set, method or place that is not there.
    """
    tables = {
        "verdicts": lambda: verdicts(folder),
        "lft": lambda: horizons(folder),
        "aims": lambda: aims(folder),
        "widths": partial(benchmarked.widths, "sgd"),
        "widths with Adam": partial(benchmarked.widths, "adam"),
        "runs": benchmarked.runs,
        "unpublished": benchmarked.unpublished,
        "findings": lambda: findings(folder),
        "curves": benchmarked.curves,
        "rectified": benchmarked.rectified,
        "run": lambda: run(folder),
        "sizes": lambda: sizes(folder),
    }
    text = BLOCK.sub(lambda m: m[1] + tables[m[2]]() + m[3], text)
    return NUMBER.sub(lambda m: f"<!--{m[1]}-->{written(value_of(m[1], folder))}", text)


def value_of(source: str, folder: Path | str) -> float:
    """The number that a source names: `figure:data set:method:which`, `published:panel:method:which`, or of
    `benchmarks/lft_with_adam.py` `adam:data set:whole or alone:which`, where which is first, last, lowest, highest, or
    an x."""
    try:
        figure, where, method, which = source.split(":")
        if figure == "published":
            table = published_curves()
            rows = table[[where in names.split("+") for names in table.figure]]
            rows = rows[rows.method == method].set_index("x")["value"]
        elif figure == "adam":
            rows = pd.read_csv(benchmarked.FOLDER / "lft_with_adam.csv")
            rows = rows[(rows.dataset == where) & (rows.scores == method)].set_index("epoch")["similarity"]
        else:
            table = read_table(folder, figure)
            rows = table[(table.dataset == where) & (table.method == method)]
            rows = rows.set_index("epoch" if "epoch" in rows else "seeds_averaged")["mean"]
        rows = rows.sort_index()
        return float(WHICH[which](rows) if which in WHICH else rows[float(which)])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{source!r} names no number in {folder}; expected figure:data set:method:which, such as "
            "fig02:energy:grad_dot:first."
        ) from error


def verdicts(folder: Path | str) -> str:
    """The claims, one line each: verdict, where, and our numbers beside the published ones on one data set."""
    lines = ["| claim of the paper | verdict | ours | published |", "|---|---|---|---|"]
    for outcome in check_claims(folder):
        shown = next((r for r in outcome.results if r.published), next(iter(outcome.results), None))
        ours = f"{shown.title}: {shown.ours.numbers}" if shown else ""
        published = f"{shown.published_title}: {shown.published.numbers}" if shown and shown.published else "–"
        where = outcome.summary
        if not where.startswith(outcome.verdict):
            where = f"**{outcome.verdict}**: {where}" if where else f"**{outcome.verdict}**"
        lines.append(f"| {outcome.claim.number}. {outcome.claim.statement} | {where} | {ours} | {published} |")
    return "\n".join(lines) + "\n"


def horizons(folder: Path | str) -> str:
    """The best published method, the yardstick and LFT on every data set: similarity over horizons, interval and
    lowest, and the cost against one seed of the gold standard; bold what leads beyond intervals."""
    table = pd.read_csv(Path(folder) / "table_horizons.csv")
    names = list(dict.fromkeys(table["data set"]))
    heads = [re.sub(r" [(](?!small model).*", "", name) for name in names]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(names)]
    ours = METHODS["lft"].label
    shown = {
        "best published method": {m.label for m in METHODS.values()} - {ours},  # no yardsticks
        LOOK["timed"].label: {LOOK["timed"].label},
        "LFT": {ours},
    }
    for words, methods in shown.items():
        if not table.method.isin(methods).any():
            continue
        cells = []
        for name in names:
            rows = table[(table["data set"] == name) & table.method.isin(methods)]
            if rows.empty:
                cells.append("–")
                continue
            best = rows.loc[rows["mean over horizons"].idxmax()]
            mean = written(best["mean over horizons"])
            mean = f"**{mean}**" if bool(best.get("leads", False)) else mean
            mean += "" if pd.isna(best.get("±")) else f" ± {written(best['±'])}"
            cost = "" if pd.isna(best.get("of one seed")) else f"; {best['of one seed']:.2g}"
            label = f", {best.method}" if words.startswith("best") else ""
            cells.append(f"{mean} ({written(best.lowest)}{cost}){label}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    costs = table[table.method == ours].set_index("data set")["of one seed"]
    cells = [of_seeds(folder, name, costs.get(name, float("nan"))) for name in names]
    lines.append(f"| further training itself, at the cost of LFT | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def of_seeds(folder: Path | str, title: str, k: float) -> str:
    """The similarity that so many seeds of the gold standard would have to the truth, averaged and lowest over
    horizons, by the noise ceiling of all of them; a dash for less than one."""
    plain = title.removesuffix(" (small model)")
    dataset = next((name for name, entry in DATASETS.items() if entry.title == plain), None)
    if dataset is None or not k >= 1:
        return "–"
    found = reached(folder, dataset, k)
    return f"{written(np.average(found, weights=log_weights(found.index.to_numpy())))} ({written(found.min())})"


def reached(folder: Path | str, dataset: str, k: float) -> pd.Series:
    """The noise ceiling of k seeds at every epoch, by that of all seeds of Figure 2+."""
    rows = read_table(folder, "fig02plus")
    rows = rows[(rows.dataset == dataset) & (rows.method == "ceiling")].sort_values("epoch")
    S, square = len(runs_of(folder, "fig02plus")[dataset]["seeds"]), rows.set_index("epoch")["mean"] ** 2
    return ceiling_of(square / (S - (S - 1) * square), k)


def run(folder: Path | str) -> str:
    """By which commits a folder of figures was drawn and its results were computed, and how to repeat that."""
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    drawn = {note["commit"] for note in notes}
    computed = sorted(set().union(*map(computed_by, notes)))
    several = {*computed} - drawn
    by = f"; its stored results were computed by {', '.join(f'`{c}`' for c in computed)}" if several else ""
    (profile,), commit = {note["profile"] for note in notes} - {"any"}, ", ".join(sorted(drawn))
    return (
        f"`{profile}/` was drawn by `{commit}`{by}. To repeat it:\n\n```bash\ngit checkout {commit}\n"
        f"./run_all.sh --profile {profile} --jobs 2 --data DIR      # DIR as in docs/data.md\n```\n"
    )


def sizes(folder: Path | str) -> str:
    """How many instances and seeds the main figures have on each data set."""
    rows: dict[str, dict[str, str]] = {}
    for figure, words in SEEDS.items():
        for name, runs in runs_of(folder, figure).items():
            rows.setdefault("left-out instances", {})[name] = f"{runs['left_out']}"
            rows.setdefault("test instances", {})[name] = f"{runs['test']:,}"
            rows.setdefault(words, {})[name] = f"{len(runs['seeds'])}"
    names = sorted({name for cells in rows.values() for name in cells}, key=panel_letter)
    lines = [f"| | {' | '.join(title(name) for name in names)} |", "|---|" + "---|" * len(names)]
    lines += [f"| {words} | {' | '.join(cells.get(name, '–') for name in names)} |" for words, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m fimoda_lib.paper.prose", description="Fills the numbers of a run into README.md and docs/."
    )
    p.add_argument("folder", metavar="FOLDER", help="the figures of one profile, such as figures/overnight")
    folder = p.parse_args(arguments).folder
    root = Path(__file__).resolve().parents[2]
    try:
        for page in PAGES:
            path = root / page
            path.write_text(fill(path.read_text(encoding="utf-8"), folder), encoding="utf-8")
    except ValueError as error:
        print(f"prose: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
