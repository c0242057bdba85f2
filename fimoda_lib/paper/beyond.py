"""Figures beyond the paper: why methods decay, what linearised further training adds, and where linear methods stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.panel import PAPER_METHODS, Panel
from ..experiments.studies import first_order_runs, removal_runs
from ..plots import filters, first_order, removal
from ..plots import similarity as curves
from ..plots.captions import provenance
from ..plots.drawing import panel_figure, save_numbers
from ..plots.kept import panels_and_tables
from ..plots.look import LOOK
from ..plots.panels import Panels
from ..storage.store import asked, read_sidecar
from ..training.minibatches import steps_per_epoch
from .curves import similarity_figure
from .figures import shown_in

NOTEBOOK = "06_why_methods_decay"
COMPARED = (*PAPER_METHODS, "timed", "lft")


def figure2_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 2 with linearised further training."""
    return similarity_figure("fig02plus", panels, folder, COMPARED, notebook=NOTEBOOK)


def figure4_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 4, with Adam, with linearised further training."""
    return similarity_figure("fig04plus", panels, folder, COMPARED, optimizer="adam", notebook=NOTEBOOK)


def figure_filter(panels: Panels, folder: Path | str) -> Figure:
    """The unifying filter (1 - (1 - ησ)^T)/σ over the spectrum of G, with the methods as special cases."""
    panels = shown_in("fig_filter", panels)
    tables = {k: filters.table(s) for k, s in panels.items()}

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
    )  # fmt: skip


def figure_units(panels: Panels, folder: Path | str) -> Figure:
    """The first-order limit with rectified and with smooth units."""
    return study_figure(
        "fig_units", panels, folder, first_order.units_table, first_order.draw_units,
        first_order.UNITS_SAY, first_order.UNITS_MARKS, measured=first_order.smooth_runs, remark_on=lambda panel: "",
        title="Rectified and smooth units", ylabel="similarity of derivative and difference",
    )  # fmt: skip


def figure_precision(panels: Panels, folder: Path | str) -> Figure:
    """Size of the sensitivity against the rounding of float32 training and of float32 test losses."""
    return study_figure(
        "fig_precision", panels, folder, first_order.precision_table, first_order.draw_precision,
        first_order.PRECISION, first_order.PRECISION_MARKS, measured=first_order.whole_runs,
        title="Precision audit", ylabel="median magnitude (units of the loss)",
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
    legend: Sequence[str] = (),
    **more: Callable,
) -> Figure:
    """A figure of a study, which is run if need be; panels drawn earlier are kept.

    Args:
        measured, more: for `provenance`.
        legend: of the methods that are in the tables, those are explained below the panels.
    """
    panels, tables, kept = panels_and_tables(name, panels, folder, make)
    note = provenance(
        panels, measured=measured, kept=kept, figure=name, title=title, notebook=notebook, optimizer="sgd",
        methods=False, **more,
    )  # fmt: skip
    shown = {name for table in tables.values() if table is not None and legend for name in table["method"]}
    return panel_figure(
        note, panels, folder, tables, lambda ax, letter: draw(ax, tables[letter], panels[letter].dataset),
        what=what, marks=marks, ylabel=ylabel, legend=[name for name in legend if name in shown],
    )  # fmt: skip


def table_horizons(panels: Panels, folder: Path | str, methods: Sequence[str] = COMPARED) -> pd.DataFrame:
    """One row per data set and method: similarity averaged over horizons, and the seconds that the scores took.

    Horizons count evenly on a log axis of epochs: the first epochs weigh as much as the last. The curves are those
    of `figure2_plus`, with the panels that were drawn earlier. Writes `table_horizons.csv`, `.html` and `.json`.

    Returns:
        columns data set, method, mean over horizons, first, lowest, last, seconds.
    """
    panels, tables, kept = panels_and_tables(
        "fig02plus", panels, folder, lambda s: curves.table(s, methods), compute=False
    )
    drawn = {letter: table for letter, table in tables.items() if table is not None}
    before = seconds_before(Path(folder))
    rows = []
    for letter, table in drawn.items():
        panel = panels[letter]
        for name, curve in table[table["method"].isin(methods)].groupby("method", sort=False):
            mean, weight = curve["mean"].to_numpy(), log_weights(curve["epoch"].to_numpy())
            if np.isnan(mean).all():  # it diverged
                continue
            label = LOOK[name].label
            earlier = before.get((panel.title, label), np.nan)
            rows.append(
                {
                    "data set": panel.title,
                    "method": label,
                    "mean over horizons": float((mean * weight).sum() / weight.sum()),
                    "first": float(mean[0]),
                    "lowest": float(mean.min()),
                    "last": float(mean[-1]),
                    "seconds": earlier
                    if letter in kept
                    else seconds_of(lambda panel=panel, name=name: panel.scores(name)),
                }
            )
    table, title = pd.DataFrame(rows), "All methods, over all horizons"
    note = provenance(
        {letter: panels[letter] for letter in drawn},
        kept=kept,
        figure="table_horizons",
        title=title,
        notebook=NOTEBOOK,
        optimizer="sgd",
    )
    note["profile"] = next(iter(panels.values())).profile
    note["caption"] = (
        "Mean cosine similarity to further training (SGD, for text AdamW; mean adjustment): averaged over horizons "
        "(evenly on a log axis of epochs), when first evaluated, at its lowest and when last evaluated; and the "
        "seconds that the scores of the left-out instances took."
    )
    save_numbers(table, folder, "table_horizons", note)
    page = table.to_html(index=False, float_format="{:.2f}".format, na_rep="", border=0)
    (Path(folder) / "table_horizons.html").write_text(page, encoding="utf-8")
    return table


def seconds_before(folder: Path) -> dict[tuple[str, str], float]:
    """(data set, method) -> seconds, of the table as last saved."""
    try:
        table = pd.read_csv(folder / "table_horizons.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return {}
    return {(row["data set"], row["method"]): row["seconds"] for _, row in table.iterrows()}


def log_weights(epochs: np.ndarray) -> np.ndarray:
    """Weights under which horizons count evenly on a log axis; the first as if another lay as far before it."""
    if len(epochs) == 1:
        return np.ones(1)
    return np.diff(np.log(epochs), prepend=np.log(epochs[0] ** 2 / epochs[1]))


def seconds_of(pieces: Callable) -> float:
    """How long a stored result took to compute, by its sidecar."""
    return float(read_sidecar(asked(pieces))["seconds"])


FIGURES: dict[str, Callable] = {
    "fig02plus": figure2_plus,
    "fig04plus": figure4_plus,
    "fig_filter": figure_filter,
    "fig_limit": figure_limit,
    "fig_units": figure_units,
    "fig_precision": figure_precision,
    "fig_removal": figure_removal,
    "table_horizons": table_horizons,
}
