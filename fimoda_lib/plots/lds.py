"""How well summed scores rank random subsets of the training instances, against the amount of further training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from ..experiments.lds import datamodeling_scores
from ..experiments.panel import Panel, finished
from .look import LOOK, plain_log
from .panels import horizon_axis

WHAT = (
    "Linear datamodeling score: rank correlation, over random subsets left out of further training, of the predicted "
    "change of a test instance's loss (the sum of its members' scores) with the measured one; mean over test instances."
)
MARKS = (
    "Bands are 95 % intervals (bootstrap over subsets and test instances); dotted grey is the ceiling by two halves of "
    "the seeds."
)


def table(panel: Panel) -> pd.DataFrame | None:
    """What `datamodeling_scores` finds; None if its results are missing."""
    return finished(lambda: datamodeling_scores(panel))


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """Side by side for each size of subsets, a line for each method."""
    x, label = horizon_axis(dataset)
    lowest = min(-0.2, np.nanmin(table["lds"]) - 0.1)
    for inset, (share, rows) in side_by_side(ax, table, "share", gap=0.06):
        for method, curve in rows.groupby("method", sort=False):
            look = LOOK[method]
            inset.plot(
                curve[x], curve["lds"], color=look.colour, ls=look.line, lw=look.width, marker=look.marker, ms=2.5
            )
            inset.fill_between(curve[x], curve["low"], curve["high"], color=look.colour, alpha=0.08, lw=0)
        inset.set(xscale="log", ylim=(lowest, 1.02))
        plain_log(inset.xaxis)
        inset.xaxis.set_minor_formatter(NullFormatter())  # within a decade there is no room for it
        inset.text(
            0.5,
            0.02,
            f"{share:.0%} of {rows['drawn'].iloc[0]:,.0f}",
            fontsize=7.5,
            ha="center",
            transform=inset.transAxes,
        )
    ax.set_xlabel(label)
    ax.set_ylim(lowest, 1.02)


def side_by_side(ax: Axes, table: pd.DataFrame, column: str, gap: float = 0.03) -> list[tuple[Axes, tuple]]:
    """Axes within one panel for every value of a column, each with (value, its rows); the panel keeps the labels.

    They share the panel's y axis, whose limits are to be set for all, unless the `gap` leaves room for labels.
    """
    parts = list(table.groupby(column))
    width = 1 / len(parts)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.grid(visible=False)
    ax.xaxis.labelpad = 15
    insets = []
    for k, part in enumerate(parts):
        inset = ax.inset_axes([k * width + 0.01, 0, width - gap, 1])
        inset.tick_params(labelleft=False, length=2, labelsize=6.5)
        inset.patch.set_alpha(0)
        inset.spines["left"].set_visible(k > 0)  # the first has the panel's
        insets.append((inset, part))
    return insets
