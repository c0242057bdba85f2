"""What the studies of groups, wrong labels and selection found, as tables for the pages in docs/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..experiments.horizons import best_horizons, follows
from .claims import read_table, title
from .rules import label, number

SHARE = 0.1  # of the subsets in the table of linear datamodeling scores
UTMOST = 0.05  # of the removal curves
CONTROLS = ("ceiling", "lft", "lft_whole", "random", "alike", "loss")  # are not published methods
Column = Callable[[pd.DataFrame], dict[str, str]]  # the rows of one data set -> label -> cell


def findings(folder: Path | str) -> str:
    """All tables, each under its heading; a study that is not in the folder is left out."""
    studies = {
        "fig_lds": (f"Linear datamodeling score, subsets of {SHARE:.0%}, first → last horizon", _lds),
        "fig_removal_curves": (
            f"Rise of a test instance's loss without the {UTMOST:.0%} held to be most helpful, last horizon",
            without_helpful,
        ),
        "fig_mislabelled": ("Area under the ROC curve of finding changed labels", _labels),
        "fig_selection": ("Gain on untouched instances at the last T, in percent of the loss", _selection),
    }  # fmt: skip
    return "\n".join(
        markdown(heading, table, column)
        for figure, (heading, column) in studies.items()
        if (table := read_table(folder, figure)) is not None
    )


def markdown(heading: str, table: pd.DataFrame, column: Column) -> str:
    """A row for each label, a column for each data set."""
    cells = {title(name): column(rows) for name, rows in table.groupby("dataset", sort=False)}
    labels = dict.fromkeys(label for found in cells.values() for label in found)
    lines = [f"| {heading} | {' | '.join(cells)} |", "|---|" + "---|" * len(cells)]
    lines += [f"| {label} | {' | '.join(found.get(label, '–') for found in cells.values())} |" for label in labels]
    return "\n".join(lines) + "\n"


def _lds(rows: pd.DataFrame) -> dict[str, str]:
    rows = rows[rows["share"] == SHARE].sort_values("step")
    curves = {method: curve["lds"] for method, curve in rows.groupby("method", sort=False)}
    published = {m: curve for m, curve in curves.items() if m not in CONTROLS and curve.notna().all()}
    best = [max(published, key=lambda m, k=k: published[m].iloc[k]) for k in (0, -1)]  # at either end
    ends = [f"{number(published[m].iloc[k])} ({label(m)})" for m, k in zip(best, (0, -1), strict=True)]
    named = {"LFT, summed": "lft", "LFT, followed as a whole": "lft_whole", "ceiling": "ceiling"}
    return {"best published method there": " → ".join(ends)} | {
        words: f"{number(curves[m].iloc[0])} → {number(curves[m].iloc[-1])}"
        for words, m in named.items()
        if m in curves
    }


def without_helpful(rows: pd.DataFrame) -> dict[str, str]:
    """The rise of the loss without the most helpful; with differences to LFT where the rows have them."""
    last = rows["after_step"].max()
    rows = rows[(rows["share"] == UTMOST) & (rows["direction"] == "helpful") & (rows["after_step"] == last)]
    published = rows[~rows["method"].isin(CONTROLS)]
    best, lft = published.loc[published["change"].idxmax()], rows[rows["method"] == "lft"].sort_values("step")
    found = {"best published method": f"{_between(best, 'change')} ({label(best['method'])})"}
    if len(lft):
        found["LFT for this horizon"] = _between(lft.iloc[-1], "change")
        found["LFT for an earlier horizon"] = _between(lft.iloc[0], "change")
    if "less_lft" in rows:
        for row, words in ((best, "best published method"), (lft.iloc[0], "LFT for an earlier horizon")):
            found[f"{words}, less LFT for this one"] = _between(row, "less_lft", "less_")
    for name, words in (("alike", "instances alike"), ("random", "at random")):
        found[words] = _between(rows[rows["method"] == name].iloc[0], "change")
    return found


def _labels(rows: pd.DataFrame) -> dict[str, str]:
    loss, others = rows[rows["method"] == "loss"].iloc[0], rows[rows["method"] != "loss"].dropna(subset="auc")
    best = others.loc[others["auc"].idxmax()]
    above, below = (others["above_low"] > 0).sum(), (others["above_high"] < 0).sum()
    return {
        "the loss itself": _between(loss, "auc"),
        "best ranking (chosen afterwards)": f"{_between(best, 'auc')} ({label(best['method'])}, {best['evidence']})",
        "rankings above the loss, no different, below": f"{above}, {len(others) - above - below}, {below}",
    }


def _selection(rows: pd.DataFrame) -> dict[str, str]:
    rows = rows[rows["part"] == "untouched"]
    last = rows[rows["after_step"] == rows["after_step"].max()]
    lft = rows[rows["method"] == "lft"]
    found = {"dropped at random": _between(last[last["method"] == "random"].iloc[0], "gain")}
    for name in ("grad_dot", "cg", "ekfac", "datainf"):
        if len(one := last[last["method"] == name]):
            found[f"{label(name)}, over random"] = _over(one.iloc[0])
    if len(lft):
        matched = last[last["method"] == "lft"].sort_values("step").iloc[-1]
        found["LFT for K = T, over random"] = _over(matched)
        found["rank correlation of T and LFT's best K"] = number(follows(best_horizons(rows)))
        surely = int((lft["over_low"] > 0).sum()), int((lft["over_high"] < 0).sum())
        found["LFT's cells (K, T) surely above random, surely below, of"] = f"{surely[0]}, {surely[1]}, {len(lft)}"
    return found


def _between(row: pd.Series, name: str, prefix: str = "") -> str:
    return f"{_short(row[name])} ({_short(row[f'{prefix}low'])} to {_short(row[f'{prefix}high'])})"


def _over(row: pd.Series) -> str:
    return f"{_short(row['over_random'])} ({_short(row['over_low'])} to {_short(row['over_high'])})"


def _short(value: float) -> str:
    """Two significant digits, for losses differ by magnitudes; .99 and 1 among areas."""
    text = f"{value:.2f}" if 0.1 <= abs(value) < 100 else f"{value:.2g}"
    return text.replace("-", "−").replace("e−0", "e−")
