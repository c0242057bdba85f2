"""How many seeds each way of leaving an instance out needs."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from ..experiments.panel import Panel, finished
from ..experiments.studies import removal_runs, removal_seeds
from .look import plain_log
from .panels import horizon_axis

WHAT = (
    "How many seeds must be averaged for a noise ceiling of 0.95. drop: the instance is taken out of the order, "
    "so that later batches shift; mask: its weight is zero and all else stays."
)
MARKS = "Solid: mean adjustment; dashed: full adjustment."
COLOURS, LINES = {"drop": "#D55E00", "mask": "#0072B2"}, {"mean": "-", "full": "--"}
WIDTHS = {"drop": 3.0, "mask": 1.3}  # one is seen below the other where a seed is enough for both


def table(panel: Panel) -> pd.DataFrame | None:
    """Columns removal, adjustment, step, epoch, agreement, seeds; None if the runs are missing."""
    runs = finished(lambda: removal_runs(panel))
    if runs is None:
        return None
    found = [removal_seeds(runs, a).to_dataframe().reset_index().assign(adjustment=a) for a in LINES]
    return pd.concat(found, ignore_index=True)


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """Seeds needed against the amount of further training."""
    x, amount = horizon_axis(dataset)
    for (removal, adjustment), rows in table.groupby(["removal", "adjustment"]):
        label = f"{removal}, {adjustment}"
        ax.plot(rows[x], rows.seeds, color=COLOURS[removal], ls=LINES[adjustment], lw=WIDTHS[removal], label=label)
    ax.set(xscale="log", yscale="log", xlabel=amount)
    ax.set_ylim(0.8, 8 * ax.get_ylim()[1])  # no fewer than one seed; room for the legend
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    ax.legend(fontsize=7.5, loc="upper right", ncols=2, title="removal, adjustment", title_fontsize=7.5)
