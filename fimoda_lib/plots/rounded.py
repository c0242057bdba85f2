"""Is the published curve of text rounding? Grad-Dot's similarity with test losses in float64 and in float32."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..experiments.panel import Panel, finished
from ..experiments.rounded import rounding_table
from .look import LOOK, plain_log
from .panels import horizon_axis
from .published import published_points

WHAT = (
    "Cosine similarity (mean adjustment) of Grad-Dot to further training with the paper's learning rate and weight, "
    "from test losses in float64, and rounded to float32 as in the public code; also as if sensitivities were smaller."
)
MARKS = (
    "Left, solid: mean of all seeds; dashed: single ones. Right: at the horizon where it is largest. Open: published."
)
LOOKS = {  # losses, shrunk -> colour, label
    ("float64", 1.0): ("#111111", "losses in float64"),
    ("float32", 1.0): ("#0072B2", "in float32"),
    ("float32", 0.1): ("#E69F00", "in float32, a tenth"),
    ("float32", 0.01): ("#CC79A7", "in float32, a hundredth"),
}
FIGURES = ("2f", "7f")  # of the paper: against the amount of further training, and of seeds


def table(panel: Panel) -> pd.DataFrame | None:
    """What `rounding_table` finds; None if its results are missing."""
    return finished(lambda: rounding_table(panel))


def legend() -> list[Line2D]:
    """What the figure's legend explains."""
    lines = [Line2D([], [], color=colour, marker="o", ms=2.5, lw=1.6, label=words) for colour, words in LOOKS.values()]
    published = dict(mfc="none", mec=LOOK["grad_dot"].colour, ms=5, label="published (100 seeds)")
    return [*lines, Line2D([], [], marker="o", ls="none", **published)]


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """Against steps, for single seeds and for all, and beside it against the number of seeds, a line for each kind of
    test losses; the published points, whatever the model."""
    x, label = horizon_axis(dataset)
    label = label.split(" of ")[0]  # there is room for so much
    lowest, most = min(-0.15, table["mean"].min() - 0.05), table["seeds_averaged"].max()
    left, right = ax.inset_axes([0, 0, 0.6, 1]), ax.inset_axes([0.67, 0, 0.33, 1])
    for (losses, shrunk), kind in table.groupby(["losses", "shrunk"], sort=False):
        colour, _ = LOOKS[losses, shrunk]
        for seeds, look in ((1, dict(ls="--", lw=1)), (most, dict(ls="-", lw=1.6))):
            rows = kind[kind["seeds_averaged"] == seeds]
            left.plot(rows[x], rows["mean"], color=colour, marker="o", ms=2.5, **look)
        best = kind.groupby("seeds_averaged")["mean"].max()
        right.plot(best.index, best, color=colour, marker="o", ms=2.5, lw=1.6)
    for inset, figure, words in zip((left, right), FIGURES, (label, "seeds averaged"), strict=True):
        points = published_points(figure, dataset).query("method == 'grad_dot'")
        if len(points):
            inset.plot(points.x, points.value, "o", mfc="none", mec=LOOK["grad_dot"].colour, ms=5)
        inset.axhline(0, color="#999999", lw=0.6, zorder=0)
        inset.set(xscale="log", ylim=(lowest, 1.02), xlabel=words)
        plain_log(inset.xaxis)
    for inset in (left, right):
        inset.tick_params(labelleft=False)  # the panel has them
    ax.set(ylim=(lowest, 1.02), xticks=[])
    ax.spines["bottom"].set_visible(False)
    ax.grid(visible=False)
