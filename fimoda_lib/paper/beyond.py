"""Figures beyond the paper: why methods decay, what linearised further training adds, and where linear methods stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.panel import Panel
from ..experiments.rounded import published_runs
from ..experiments.studies import first_order_runs, removal_runs
from ..plots import filters, first_order, removal, rounded
from ..plots.captions import provenance
from ..plots.drawing import panel_figure
from ..plots.kept import panels_and_tables
from ..plots.panels import Panels
from ..training.minibatches import steps_per_epoch
from .curves import similarity_figure
from .figures import shown_in
from .over_horizons import COMPARED, lft_beside_others, log_weights, table_horizons
from .studied import noted

__all__ = ["FIGURES", "lft_beside_others", "log_weights", "study_figure", "table_horizons"]
NOTEBOOK = "06_why_methods_decay"


def figure2_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 2 with linearised further training."""
    return similarity_figure("fig02plus", panels, folder, COMPARED, notebook=NOTEBOOK)


def figure4_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 4, with Adam, with linearised further training."""
    return similarity_figure("fig04plus", panels, folder, COMPARED, optimizer="adam", notebook=NOTEBOOK)


def figure_filter(panels: Panels, folder: Path | str) -> Figure:
    """The unifying filter (1 - (1 - ησ)^T)/σ over the spectrum of G, with the methods as special cases."""
    panels = shown_in("fig_filter", panels)
    tables = {k: filters.table(panel) for k, panel in panels.items()}

    def draw(ax: Axes, letter: str) -> None:
        s = panels[letter].settings
        filters.draw(ax, tables[letter], s, steps_per_epoch(panels[letter].task.n_train, s.further.batch_size))

    note = provenance(panels, figure="fig_filter", title="One filter, all methods", notebook=NOTEBOOK, optimizer="sgd")
    return panel_figure(
        note, panels, folder, tables, draw,
        what=filters.WHAT, marks=filters.MARKS, ylabel="share of the direction that is kept",
        legend=filters.legend(),
    )  # fmt: skip


def figure_limit(panels: Panels, folder: Path | str) -> Figure:
    """How close any method that is linear in the removed weight can come to one seed of further training."""
    return study_figure(
        "fig_limit", panels, folder, first_order.limit_table, first_order.draw_limit,
        first_order.LIMIT, first_order.LIMIT_MARKS, measured=first_order_runs,
        title="The first-order limit", ylabel="similarity of derivative and difference",
        legend=first_order.limit_legend(),
    )  # fmt: skip


def figure_units(panels: Panels, folder: Path | str) -> Figure:
    """The first-order limit with rectified and with smooth units."""
    return study_figure(
        "fig_units", panels, folder, first_order.units_table, first_order.draw_units,
        first_order.UNITS_SAY, first_order.UNITS_MARKS, measured=first_order.smooth_runs, remark_on=lambda panel: "",
        title="Rectified and smooth units", ylabel="similarity of derivative and difference",
        legend=first_order.units_legend(),
    )  # fmt: skip


def figure_precision(panels: Panels, folder: Path | str) -> Figure:
    """Size of the sensitivity against the rounding of float32 training and of float32 test losses."""
    return study_figure(
        "fig_precision", panels, folder, first_order.precision_table, first_order.draw_precision,
        first_order.PRECISION, first_order.PRECISION_MARKS, measured=first_order.whole_runs,
        title="Precision audit", legend=first_order.precision_legend(), ylabel="median magnitude (units of the loss)",
    )  # fmt: skip


def figure_rounding(panels: Panels, folder: Path | str) -> Figure:
    """Grad-Dot's similarity on text with the published learning rate, weight and float32 losses."""
    return study_figure(
        "fig_rounding", panels, folder, rounded.table, rounded.draw, rounded.WHAT, rounded.MARKS,
        measured=published_runs, legend=rounded.legend(), title="Text as published: is it rounding?",
        ylabel="cosine similarity to further training",
    )  # fmt: skip


def figure_removal(panels: Panels, folder: Path | str) -> Figure:
    """How many seeds `drop` and `mask` need for the same noise ceiling."""
    return study_figure(
        "fig_removal", panels, folder, removal.table, removal.draw, removal.WHAT, removal.MARKS,
        measured=lambda panel: removal_runs(panel)["mask"],
        title="mask against drop", ylabel="seeds for a noise ceiling of 0.95",
    )  # fmt: skip


def study_figure(
    name: str,
    panels: Panels,
    folder: Path | str,
    make: Callable[[Panel], pd.DataFrame | None],
    draw: Callable[[Axes, pd.DataFrame, str], None],
    what: str,
    marks: str,
    *,
    measured: Callable[[Panel], xr.Dataset],
    title: str,
    ylabel: str,
    notebook: str = NOTEBOOK,
    legend: Sequence[str | Artist] = (),
    **more: Callable,
) -> Figure:
    """A figure of a study, which is run if need be; panels drawn earlier are kept.

    Args:
        measured, more: for `provenance`.
        legend: what is explained below the panels; of methods, those that are in the tables.
    """
    panels, tables, kept = panels_and_tables(name, panels, folder, lambda panel: noted(name, panel, make))
    note = provenance(
        panels, measured=measured, kept=kept, figure=name, title=title, notebook=notebook, optimizer="sgd",
        methods=False, **more,
    )  # fmt: skip
    shown = {name for table in tables.values() if table is not None and "method" in table for name in table["method"]}
    explained = [entry for entry in legend if entry in shown or isinstance(entry, Artist)]
    return panel_figure(
        note, panels, folder, tables, lambda ax, letter: draw(ax, tables[letter], panels[letter].dataset),
        what=what, marks=marks, ylabel=ylabel, legend=explained,
    )  # fmt: skip


FIGURES: dict[str, Callable] = {
    "fig02plus": figure2_plus,
    "fig04plus": figure4_plus,
    "fig_filter": figure_filter,
    "fig_limit": figure_limit,
    "fig_units": figure_units,
    "fig_precision": figure_precision,
    "fig_rounding": figure_rounding,
    "fig_removal": figure_removal,
    "table_horizons": table_horizons,
}
