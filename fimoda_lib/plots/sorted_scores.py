"""Sorted attribution scores (Figure 10): do a few training instances matter, or all of them a little?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..comparison import sensitivity
from ..experiments.panel import Panel
from ..experiments.settings import counted_in_steps
from .look import LOOK
from .similarity import diverged

WHAT = (
    "Attribution scores of the left-out instances, sorted for each test instance on its own, then averaged over test "
    "instances and scaled to length 1."
)
MARKS = (
    "Dash-dotted: further training (mean adjustment, averaged over seeds) where it is first and where it is last "
    "evaluated. The instances at the right are helpful, those at the left harmful."
)


def table(panel: Panel, methods: Sequence[str] = ("grad_dot", "grad_cos")) -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, rank, value, epoch, step. Beside the methods stand "further_first" and "further_last", the
        sensitivities (mean adjustment) when first and when last evaluated; "epoch" and "step" say when that was.
    """
    gold, stored = panel.stored(methods)
    if gold is None:
        return None
    tables = [
        pd.DataFrame({"method": name, "rank": np.arange(1, scores.sizes["train"] + 1), "value": sorted_curve(scores)})
        for name, scores in stored.items()
        if not diverged(scores)
    ]
    measured = sensitivity(gold)
    for name, k in (("further_first", 0), ("further_last", -1)):
        at = measured.isel(step=k).rename(left_out="train")
        ranks = np.arange(1, at.sizes["train"] + 1)
        when = {"epoch": float(at.epoch), "step": int(at.step)}
        tables.append(pd.DataFrame({"method": name, "rank": ranks, "value": sorted_curve(at), **when}))
    return pd.concat(tables, ignore_index=True)


def sorted_curve(scores: xr.DataArray) -> np.ndarray:
    """Scores [test, train] sorted for each test instance on its own, averaged over test instances, scaled to length 1.

    Returns:
        [train], ascending; zero where the mean is zero.
    """
    mean = np.sort(scores.transpose("test", "train").values.astype(float), axis=1).mean(axis=0)
    length = np.linalg.norm(mean)
    return mean / length if length > 0 else mean


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """One panel: a line per method, and two for further training."""
    unit = "step" if counted_in_steps(dataset) else "epoch"
    for method, rows in table.groupby("method", sort=False):
        look, label = LOOK[method], LOOK[method].label
        if rows["epoch"].notna().all():
            label = f"further training, {_amount(rows[unit].iloc[0], unit)}"
        ax.plot(rows["rank"], rows["value"], color=look.colour, linestyle=look.line, lw=look.width, label=label)
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("rank of the left-out instance")
    ax.legend(loc="upper left", fontsize=8, handlelength=2.6)


def _amount(n: float, unit: str) -> str:
    return f"1 {unit}" if n == 1 else f"{n:g} {unit}s"
