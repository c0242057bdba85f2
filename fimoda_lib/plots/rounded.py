"""Is the published curve of text rounding? Grad-Dot's similarity with test losses in float64 and in float32."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from ..experiments.panel import Panel, finished
from ..experiments.rounded import rounding_table
from .look import LOOK, plain_log
from .panels import horizon_axis
from .published import published_curves

WHAT = (
    "Cosine similarity (mean adjustment) of Grad-Dot to further training with the paper's learning rate and weight of "
    "an instance, from test losses in float64, and rounded to float32 as in the public code; also as if sensitivities "
    "were a tenth or a hundredth of what they are."
)
MARKS = "Solid: mean of all seeds; dashed: single seeds. Open circles: published (100 seeds)."
LOOKS = {  # losses, shrunk -> colour, label
    ("float64", 1.0): ("#111111", "losses in float64"),
    ("float32", 1.0): ("#0072B2", "in float32"),
    ("float32", 0.1): ("#E69F00", "in float32, a tenth"),
    ("float32", 0.01): ("#CC79A7", "in float32, a hundredth"),
}
FIGURE = "2f"  # of the paper


def table(panel: Panel) -> pd.DataFrame | None:
    """What `rounding_table` finds; None if its results are missing."""
    return finished(lambda: rounding_table(panel))


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A line for each kind of test losses and number of seeds; the published points, whatever the model."""
    x, label = horizon_axis(dataset)
    most = table["seeds_averaged"].max()
    for (losses, shrunk, seeds), rows in table.groupby(["losses", "shrunk", "seeds_averaged"], sort=False):
        colour, words = LOOKS[losses, shrunk]
        whole = seeds == most
        ax.plot(rows[x], rows["mean"], color=colour, ls="-" if whole else "--", lw=1.6 if whole else 1,
                marker="o", ms=2.5, label=words if whole else None)  # fmt: skip
    published = published_curves()
    points = published[(published.figure == FIGURE) & (published.dataset == dataset) & (published.method == "grad_dot")]
    if len(points):
        ax.plot(points.x, points.value, "o", mfc="none", mec=LOOK["grad_dot"].colour, ms=5, label="published")
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    ax.set(xscale="log", ylim=(min(-0.15, table["mean"].min() - 0.05), 1.02), xlabel=label)
    plain_log(ax.xaxis)
    ax.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
