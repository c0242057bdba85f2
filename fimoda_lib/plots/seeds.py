"""Similarity against the number of seeds averaged (Figures 3, 7, 8 and 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from ..averaging import BLOCKS, averaged_similarities, averaging_bands, largest
from ..experiments.panel import Panel
from ..intervals import block_ceiling
from .similarity import diverged, draw_lines

WHAT = (
    "Cosine similarity to further training ({trained}) against the number of seeds averaged, at the horizon "
    "where it is largest, so that each maximum has picked some noise."
)


def table(
    panel: Panel, methods: Sequence[str], *, adjustment: str = "mean", blocks: Sequence[int] = BLOCKS
) -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, seeds_averaged, mean, step (the largest similarity over the amounts of further training, and
        where it lies), low and high (its interval), rise_half (half of that of the difference from the first row).
        Methods without finished scores are absent; a method that diverged has one row of NaN. The rows of method
        "ceiling" are the noise ceiling for so many seeds, an estimate, at the same horizons.
    """
    gold, stored = panel.stored(methods)
    if gold is None:
        return None
    finished = {name: scores for name, scores in stored.items() if not diverged(scores)}
    values = averaged_similarities(finished, gold, blocks, adjustment) if finished else {}
    found = {name: largest(one) for name, one in values.items()}
    steps = {m: dict(zip(one.seeds_averaged.values, one.step.values, strict=True)) for m, one in found.items()}
    halves = averaging_bands(finished, gold, steps, adjustment)
    tables = [_rows(m, found[m], halves[m]) if m in found else pd.DataFrame({"method": [m]}) for m in stored]
    tables.append(ceiling(gold, pd.concat(tables), adjustment) if tables else pd.DataFrame({"method": []}))
    return pd.concat(tables, ignore_index=True)


def _rows(method: str, values: xr.Dataset, halves: xr.Dataset) -> pd.DataFrame:
    rows = xr.merge([values, halves]).to_dataframe().reset_index().assign(method=method)
    low, high = rows["mean"] - rows["half"], rows["mean"] + rows["half"]
    return rows.assign(low=low.clip(lower=-1), high=high.clip(upper=1)).drop(columns=["half", "sem", "rise_sem"])


def ceiling(gold: xr.Dataset, drawn: pd.DataFrame, adjustment: str) -> pd.DataFrame:
    """The noise ceiling of k seeds at the horizons that are drawn, its mean over methods, lowest and highest.

    Args:
        drawn: the methods' rows, each with the horizon ("step") where its similarity is largest.
    """
    rows = drawn.dropna(subset="step") if "step" in drawn else drawn[:0]
    if rows.empty:
        return pd.DataFrame({"method": []})
    sizes, steps = sorted({*rows["seeds_averaged"].astype(int)}), sorted({*rows["step"].astype(int)})
    found = block_ceiling(gold, sizes, steps, adjustment)
    at = [found.sel(seeds_averaged=k, step=rows.step[rows.seeds_averaged == k].astype(int).values) for k in sizes]
    columns = {"mean": [one.mean() for one in at], "low": [one.min() for one in at], "high": [one.max() for one in at]}
    return pd.DataFrame({"method": "ceiling", "seeds_averaged": sizes} | {k: np.array(v) for k, v in columns.items()})


def draw(ax: Axes, table: pd.DataFrame, also: Iterable[float] = ()) -> None:
    """One panel: a line with a band per method, over a logarithmic axis of seeds.

    Args:
        also: numbers of seeds that the axis covers beside those of the table.
    """
    ax.set_xscale("log")
    draw_lines(ax, table, "seeds_averaged")
    sizes = sorted({*table["seeds_averaged"].dropna().astype(int), *map(int, also)})
    if sizes:
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.set_xlim(sizes[0] / 1.12, sizes[-1] * 1.12)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_xlabel("number of seeds averaged")
    ax.set_ylim(min(ax.get_ylim()[0], -0.06), 1.02)
