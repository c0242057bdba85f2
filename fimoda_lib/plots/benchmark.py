"""A method beside all known ones: similarity to a stored gold standard against the amount of further training."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from .look import LOOK, STYLE, plain_log
from .panels import horizon_axis
from .similarity import draw_lines

OWN = "#CC0000"


def style() -> mpl.rc_context:
    """The style of all figures, for a block."""
    return mpl.rc_context(STYLE)


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A line for each method, the new one in red with its interval, and the noise ceiling; horizons on a log axis.

    Args:
        table: what `benchmark` returns.
    """
    x, label = horizon_axis(dataset)
    known = table.loc[table["stored"], ["method", x, "similarity"]].rename(columns={"similarity": "mean"})
    renamed = {"ceiling": "mean", "ceiling_low": "low", "ceiling_high": "high"}
    ceiling = table.drop_duplicates(x)[[x, *renamed]].rename(columns=renamed).assign(method="ceiling")
    draw_lines(ax, pd.concat([known, ceiling]), x, width=0.8, markers=False)
    own = table[~table["stored"]]
    ax.plot(own[x], own["similarity"], color=OWN, lw=2.6, marker="o", ms=4, zorder=3)
    ax.fill_between(own[x], own["low"], own["high"], color=OWN, alpha=0.15, lw=0)
    handles = [mpl.lines.Line2D([], [], color=OWN, lw=2.6, marker="o", ms=4, label=own["label"].iloc[0])]
    for name in (*known["method"].unique(), "ceiling"):
        look = LOOK[name]
        handles.append(mpl.lines.Line2D([], [], color=look.colour, ls=look.line, lw=look.width, label=look.label))
    ax.figure.legend(handles=handles, loc="outside right center")
    ax.set(xscale="log", xlabel=label, ylabel="cosine similarity", ylim=(min(-0.06, own["low"].min()), 1.02))
    plain_log(ax.xaxis)
