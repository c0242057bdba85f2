"""What leaving out the instances that a method chooses does to a test instance's loss, against how many they are."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from ..experiments.panel import Panel, finished
from ..experiments.removal_curves import removal_curves
from .captions import counted
from .lds import side_by_side
from .look import LOOK
from .panels import horizon_axis

WHAT = (
    "Change of a test instance's loss where what a method holds to be most helpful (above) or most harmful (below) to "
    "it is left out of further training; mean over test instances."
)
MARKS = (
    "Bars are 95 % intervals (bootstrap over test instances). LFT open and dotted: scores for the other horizon. "
    '"Alike": nearest inputs or, in classification, same class.'
)


def table(panel: Panel) -> pd.DataFrame | None:
    """What `removal_curves` finds; None if its results are missing."""
    return finished(lambda: removal_curves(panel))


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """Side by side for the two amounts of further training, a curve for each method and direction."""
    x = horizon_axis(dataset)[0]
    for inset, (after, rows) in side_by_side(ax, table, f"after_{x}", gap=0.12):
        for (method, step, _), curve in rows.groupby(["method", "step", "direction"], dropna=False, sort=False):
            look = LOOK[method]
            other = not pd.isna(step) and step != curve["after_step"].iloc[0]
            at = 100 * curve["share"]
            ends = [curve["change"] - curve["low"], curve["high"] - curve["change"]]
            fill = "white" if other else look.colour
            inset.errorbar(at, curve["change"], yerr=ends, color=look.colour, lw=0, elinewidth=0.6, alpha=0.6)
            inset.plot(
                at,
                curve["change"],
                color=look.colour,
                ls=":" if other else look.line,
                lw=look.width,
                marker=look.marker,
                ms=3,
                mfc=fill,
            )
        inset.axhline(0, color="black", lw=0.6)
        inset.tick_params(labelleft=True, labelsize=6)  # the losses differ by magnitudes
        inset.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        inset.yaxis.offsetText.set_fontsize(6)
        inset.spines["left"].set_visible(True)
        inset.margins(x=0.1, y=0.12)
        inset.text(0.03, 0.94, f"after {counted(round(after), x)}", fontsize=7.5, transform=inset.transAxes)
    ax.set_title(ax.get_title("left"), loc="left", pad=14)  # above the powers of ten of the axes
    ax.yaxis.labelpad = 28
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("training instances left out (%)")
