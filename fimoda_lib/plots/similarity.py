"""Similarity against the amount of further training (Figures 2, 4, 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from ..comparison import noise_ceiling, sensitivity, similarity
from ..experiments.panel import Panel
from .look import LOOK
from .panels import horizon_axis

WHAT = (
    "{Measure} between each method's scores and the sensitivities measured by further training ({trained}), averaged "
    "over test instances, against the amount of further training."
)


def table(
    panel: Panel, methods: Sequence[str], *, adjustment: str = "mean", metric: str = "cosine"
) -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, step, epoch, mean, sem, undefined; methods without finished scores are absent; a method that
        diverged has one row of NaN. The rows of method "ceiling" are the noise ceiling (cosine only).
    """
    gold, scores = panel.stored(methods)
    if gold is None:
        return None
    tables = curves(sensitivity(gold, adjustment), scores, metric)
    if metric == "cosine":
        tables.append(rows_of("ceiling", xr.Dataset({"mean": noise_ceiling(gold, adjustment, "variances")})))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})


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


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """One panel: a line with a band of one standard error per method."""
    x, label = horizon_axis(dataset)
    draw_lines(ax, table, x)
    ax.set_xlabel(label)
    ax.set_ylim(min(ax.get_ylim()[0], -0.06), 1.02)


def draw_lines(
    ax: Axes, table: pd.DataFrame, x: str, *, width: float = 1.0, shade: float = 0.15, markers_below: int = 15
) -> None:
    """A line per method over the column x, with a band of one standard error; names the methods that diverged.

    Args:
        table: columns method, mean, sem and `x`.
        width: factor on the widths of lines.
        shade: opacity of the bands.
        markers_below: with fewer points than that, each has a marker.
    """
    failed = []
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
            marker=look.marker if len(at) < markers_below else None,
            ms=3,
            lw=width * look.width,
            zorder={"ceiling": 1, "lft": 1.5}.get(method, 2),  # thick lines lie below thin ones
        )
        if "sem" in rows and rows["sem"].notna().any():
            sem = rows["sem"].to_numpy()
            ax.fill_between(at, mean - sem, mean + sem, color=look.colour, alpha=shade, lw=0)
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    if failed:
        words = f"diverged: {', '.join(failed)}"
        ax.text(
            0.98, 0.02, words, transform=ax.transAxes, ha="right", va="bottom", fontsize=7.5, color="#555555"
        )  # fmt: skip
