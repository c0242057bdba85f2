"""Similarity to re-training from scratch (Figure 11)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..comparison import sensitivity
from ..experiments.panel import Panel, finished
from ..intervals import ceiling_interval
from .look import plain_log
from .panels import Tables
from .similarity import DRAWN, curves_with_intervals, draw_lines, rows_of

NEAR_ZERO = 0.1  # the bound that the paper's claim goes with: no similarity beyond it
BINS = 40  # of epochs, in the drawing
WHAT = (
    "Cosine similarity between scores and the change of test losses when the model is trained from scratch without an "
    "instance (mean adjustment; means over neighbouring epochs). Dash-dotted green: further training itself."
)


def marks(tables: Tables) -> str:
    """The caption's sentences on bands, and on what cannot be told from noise."""
    several = any(table is not None and (table["method"] == "ceiling").any() for table in tables.values())
    over = "seeds, left-out and test instances" if several else "left-out and test instances"
    noise = (
        "Dotted grey: the noise ceiling, an estimate." if several else "One seed: what its noise hides cannot be told."
    )
    return f"Bands: 95 % bootstrap intervals over {over}; one that holds zero cannot be told from it. {noise}"


def table(panel: Panel, methods: Sequence[str]) -> pd.DataFrame | None:
    """The numbers of one panel, or None if nothing has been trained from scratch yet.

    Returns:
        columns method, step, epoch (of training from scratch), mean, low, high (its interval), sem, undefined; methods
        without finished scores are absent. "further_last" are the sensitivities after the last epoch of further
        training, as if they were the scores of a method; with several seeds, "ceiling" is the noise ceiling.
    """
    retrained = finished(lambda: panel.retrained)
    if retrained is None:
        return None
    gold, scores = panel.stored(methods)
    if gold is not None:
        scores["further_last"] = sensitivity(gold).isel(step=-1, drop=True).rename(left_out="train")
    tables, drawn = curves_with_intervals(retrained, scores)
    if retrained.sizes["seed"] > 1:
        tables.append(rows_of("ceiling", ceiling_interval(retrained).drop_vars("noise_dimensions")))
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})
    found.attrs[DRAWN] = drawn
    return found


def binned(table: pd.DataFrame) -> pd.DataFrame:
    """Means over bins of a log axis of epochs, where there are more epochs than bins."""
    if "epoch" not in table or table["epoch"].max() <= BINS:
        return table
    bins = np.round(np.log(table["epoch"]) / np.log(table["epoch"].max()) * BINS)
    columns = ["epoch", *({"mean", "low", "high", "sem"} & {*table})]
    return table.groupby(["method", bins], sort=False, dropna=False)[columns].mean().reset_index("method")


def draw(ax: Axes, table: pd.DataFrame) -> None:
    """One panel: thin lines with a band per method; grey: up to NEAR_ZERO on either side."""
    ax.set_xscale("log")
    draw_lines(ax, binned(table), "epoch", width=0.7, shade=0.1)
    ax.axhspan(-NEAR_ZERO, NEAR_ZERO, color="#EFEFEF", zorder=0, lw=0)
    plain_log(ax.xaxis)
    ax.set_xlabel("epochs of training from scratch")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -1.6 * NEAR_ZERO), max(high, 1.6 * NEAR_ZERO))
