"""Similarity to re-training from scratch (Figure 11)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from ..comparison import sensitivity
from ..experiments.panel import Panel, finished
from .similarity import curves, draw_lines

NEAR_ZERO = 0.1  # the bound that the paper's claim goes with: no similarity beyond it
WHAT = (
    "Cosine similarity between scores and the change of test losses when the model is trained from scratch "
    "without an instance (mean adjustment, one seed, so that no ceiling can be given)."
)
MARKS = (
    "Bands: one standard error over test instances. Dash-dotted: further training itself. Grey: up to 0.1 on "
    "either side of zero."
)


def table(panel: Panel, methods: Sequence[str]) -> pd.DataFrame | None:
    """The numbers of one panel, or None if nothing has been trained from scratch yet.

    Returns:
        columns method, step, epoch (of training from scratch), mean, sem, undefined; methods without finished scores
        are absent. "further_last" are the sensitivities after the last epoch of further training, as if they were the
        scores of a method.
    """
    retrained = finished(lambda: panel.retrained)
    if retrained is None:
        return None
    gold, scores = panel.stored(methods)
    if gold is not None:
        scores["further_last"] = sensitivity(gold).isel(step=-1, drop=True).rename(left_out="train")
    tables = curves(sensitivity(retrained), scores)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})


def draw(ax: Axes, table: pd.DataFrame) -> None:
    """One panel: thin lines with a band of one standard error per method; grey: up to NEAR_ZERO on either side."""
    draw_lines(ax, table, "epoch", width=0.55, shade=0.08, markers_below=0)
    ax.axhspan(-NEAR_ZERO, NEAR_ZERO, color="#EFEFEF", zorder=0, lw=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_xlabel("epochs of training from scratch")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -1.6 * NEAR_ZERO), max(high, 1.6 * NEAR_ZERO))
