"""Similarity against the amount of further training (Figures 2, 4, 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from ..comparison import sensitivity, similarity
from ..experiments.exact_derivative import EXACT, exact_derivative
from ..experiments.panel import Panel, finished
from ..intervals import ceiling_interval, draws, half_widths
from .look import LOOK, plain_log
from .panels import horizon_axis

MARKED = 7  # points of a line, if it has many
BANDS = 4  # that are drawn with full opacity
DRAWN = "draws"  # attribute of a table: method -> its similarity [draw, step], see `intervals.draws`
WHAT = "{Measure} of scores and the sensitivities that further training measures ({trained}), mean over test instances."


def table(
    panel: Panel, methods: Sequence[str], *, adjustment: str = "mean", metric: str = "cosine"
) -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, step, epoch, mean, low, high (its interval), sem, undefined; methods without finished scores are
        absent; a method that diverged has a row of NaN, and the exact derivative one for every horizon at which it did.
        The rows of method "ceiling" are the noise ceiling (cosine only), an estimate with its interval; those of
        `EXACT` are of some steps and some test instances. Its attribute `DRAWN` holds the draws behind the intervals.
    """
    gold, scores = panel.stored(name for name in methods if name != EXACT)
    if gold is None:
        return None
    tables, drawn = curves_with_intervals(gold, scores, adjustment, metric)
    exact = finished(lambda: exact_derivative(panel)) if EXACT in methods else None
    if exact is not None:
        gone = gold["step"].sel(step=exact["horizon"].where(exact.isnull().any(("test", "train")), drop=True).values)
        exact = exact.dropna("horizon")
        some = gold.sel(step=exact["horizon"].values, test=exact["test"].values)
        tables += curves_with_intervals(some, {EXACT: exact}, adjustment, metric)[0] if some.sizes["step"] else []
        tables.append(pd.DataFrame({"method": EXACT, "step": gone.values, "epoch": gone["epoch"].values}))
    if metric == "cosine":
        tables.append(rows_of("ceiling", ceiling_interval(gold, adjustment).drop_vars("noise_dimensions")))
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})
    found.attrs[DRAWN] = drawn
    return found


def curves_with_intervals(
    gold: xr.Dataset, scores: dict[str, xr.DataArray], adjustment: str = "mean", metric: str = "cosine"
) -> tuple[list[pd.DataFrame], dict[str, xr.DataArray]]:
    """One table per method, its similarity to the gold standard at every step, with its interval; and the draws."""
    tables = curves(sensitivity(gold, adjustment), scores, metric)
    drawn = draws({m: a for m, a in scores.items() if not diverged(a)}, gold, adjustment, metric)
    halves = half_widths(drawn, gold)
    return [with_interval(rows, halves.get(rows["method"].iloc[0])) for rows in tables], drawn


def with_interval(rows: pd.DataFrame, half: xr.DataArray | None) -> pd.DataFrame:
    """The rows of a method with its interval; a similarity is never beyond 1."""
    if half is None:
        return rows
    low, high = rows["mean"] - half.values, rows["mean"] + half.values
    return rows.assign(low=low.clip(lower=-1), high=high.clip(upper=1))


def diverged(scores: xr.DataArray) -> bool:
    """Whether the scores are the record of a method that diverged."""
    return scores.attrs.get("outcome", "finished") != "finished"


def curves(measured: xr.DataArray, scores: dict[str, xr.DataArray], metric: str = "cosine") -> list[pd.DataFrame]:
    """One table per method: its similarity to the measured sensitivities [left_out, step, test] at every step."""
    return [
        pd.DataFrame({"method": [name]}) if diverged(found) else rows_of(name, similarity(found, measured, metric))
        for name, found in scores.items()
    ]


def rows_of(method: str, values: xr.Dataset) -> pd.DataFrame:
    """A data set over steps as rows with a column "method"."""
    return values.to_dataframe().reset_index().assign(method=method)


def draw(ax: Axes, table: pd.DataFrame, dataset: str, axis: str = "log") -> None:
    """One panel: a line per method, with its interval as a band.

    Args:
        axis: "log", where the decay is, or "linear", as in the paper.
    """
    x, label = horizon_axis(dataset)
    ax.set_xscale(axis)
    draw_lines(ax, table, x)
    if axis == "log":
        plain_log(ax.xaxis)
    ax.set_xlabel(label)
    ax.set_ylim(min(ax.get_ylim()[0], -0.06), 1.02)


def draw_lines(
    ax: Axes, table: pd.DataFrame, x: str, *, width: float = 1.0, shade: float = 0.15, markers: bool = True
) -> None:
    """A line per method over the column x, with a band, or its points with bars; names the methods that diverged. The
    axis has its scale.

    Args:
        table: columns method, mean and `x`; low and high, the band; without them sem, for one standard error.
        width: factor on the widths of lines.
        shade: opacity of the bands; of many, which lie over each other, less.
        markers: whether lines have markers, at places of their own where there are many points.
    """
    failed = []
    shade *= min(BANDS / max(table["method"].nunique(), 1), 1)
    for method, rows in table.groupby("method", sort=False):
        look = LOOK[method]
        if "mean" not in rows or rows["mean"].isna().all():
            failed += [look.label] if method != "ceiling" else []
            continue
        at, mean = rows[x].to_numpy(), rows["mean"].to_numpy()
        ax.plot(
            at,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker if markers else None,
            markevery=_marked(at, method, ax.get_xscale()),
            ms=3 if look.line else 4,
            lw=width * look.width,
            zorder={"ceiling": 1, "lft": 1.5, EXACT: 2.5}.get(method, 2),  # thick lines lie below thin ones
        )
        low, high = _band(rows)
        if not look.line:
            ax.vlines(at, low, high, color=look.colour, lw=0.8, zorder=2.5)
        elif np.isfinite(low).any():
            ax.fill_between(at, low, high, color=look.colour, alpha=shade, lw=0)
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    if failed:
        words = f"diverged: {', '.join(failed)}"
        ax.text(
            0.98, 0.02, words, transform=ax.transAxes, ha="right", va="bottom", fontsize=7.5, color="#555555"
        )  # fmt: skip


def _marked(at: np.ndarray, method: str, scale: str) -> list[int] | None:
    """Which points of a line have a marker: all of a few, or some evenly on the axis, for every method others."""
    if len(at) <= MARKED:
        return None
    places = np.log(at) if scale == "log" else at
    gap, names = np.ptp(places) / MARKED, list(LOOK)
    wanted = places[0] + gap * (np.arange(MARKED) + (7 * names.index(method) % len(names)) / len(names))
    return sorted({int(np.abs(places - place).argmin()) for place in wanted})


def _band(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a curve's band; NaN where it has none."""
    if {"low", "high"} <= {*rows} and rows["low"].notna().any():
        return rows["low"].to_numpy(), rows["high"].to_numpy()
    half = rows["sem"].to_numpy() if "sem" in rows else np.full(len(rows), np.nan)
    return rows["mean"].to_numpy() - half, rows["mean"].to_numpy() + half
