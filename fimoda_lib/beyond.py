"""Figures beyond the paper: why methods decay, what linearised further training adds, and where linear methods stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import sensitivity, similarity
from .drawing import Panels, Tables, panel_figure, provenance, save_numbers
from .figures import shown_in, similarity_figure
from .methods import METHODS
from .minibatches import steps_per_epoch
from .plots import filters, first_order, removal
from .reproduction import PAPER_METHODS, finished
from .store import Missing, questions, read_sidecar

NOTEBOOK = "06_why_methods_decay"


def figure2_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 2 with linearised further training."""
    return similarity_figure("fig02plus", panels, folder, (*PAPER_METHODS, "lft"), notebook=NOTEBOOK)


def figure4_plus(panels: Panels, folder: Path | str) -> Figure:
    """Figure 4, with Adam, with linearised further training."""
    return similarity_figure("fig04plus", panels, folder, (*PAPER_METHODS, "lft"), optimizer="adam", notebook=NOTEBOOK)


def figure_filter(panels: Panels, folder: Path | str) -> Figure:
    """The unifying filter (1 - (1 - ησ)^T)/σ over the spectrum of G, with the methods as special cases."""
    shown = shown_in("fig_filter", panels)
    tables = {k: filters.table(s) for k, s in shown.items()}

    def draw(ax: Axes, letter: str) -> None:
        s = shown[letter].settings
        filters.draw(ax, tables[letter], s, steps_per_epoch(shown[letter].task.n_train, s.further.batch_size))

    return _figure(
        "fig_filter", shown, folder, tables, draw, filters.WHAT, filters.MARKS,
        title="One filter, all methods", ylabel="share of the direction that is kept",
    )  # fmt: skip


def figure_limit(panels: Panels, folder: Path | str) -> Figure:
    """How close any method that is linear in the removed weight can come to one seed of further training."""
    shown = shown_in("fig_limit", panels)
    tables = {k: first_order.limit_table(s) for k, s in shown.items()}
    return _figure(
        "fig_limit", shown, folder, tables, lambda ax, letter: first_order.draw_limit(ax, tables[letter]),
        first_order.LIMIT, first_order.LIMIT_MARKS,
        title="The first-order limit", ylabel="similarity of derivative and difference",
    )  # fmt: skip


def figure_precision(panels: Panels, folder: Path | str) -> Figure:
    """Size of the sensitivity against the rounding of float32 training."""
    shown = shown_in("fig_precision", panels)
    tables = {k: first_order.precision_table(s) for k, s in shown.items()}
    return _figure(
        "fig_precision", shown, folder, tables, lambda ax, letter: first_order.draw_precision(ax, tables[letter]),
        first_order.PRECISION, first_order.PRECISION_MARKS,
        title="Precision audit", ylabel="median magnitude (units of the loss)",
    )  # fmt: skip


def figure_removal(panels: Panels, folder: Path | str) -> Figure:
    """How many seeds `drop` and `mask` need for the same noise ceiling."""
    shown = shown_in("fig_removal", panels)
    tables = {k: removal.table(s) for k, s in shown.items()}
    return _figure(
        "fig_removal", shown, folder, tables, lambda ax, letter: removal.draw(ax, tables[letter]),
        removal.WHAT, removal.MARKS,
        title="mask against drop", ylabel="seeds for a noise ceiling of 0.95",
    )  # fmt: skip


def _figure(
    name: str,
    shown: Panels,
    folder: Path | str,
    tables: Tables,
    draw: Callable[[Axes, str], None],
    what: str,
    marks: str,
    *,
    title: str,
    ylabel: str,
) -> Figure:
    note = provenance(shown, figure=name, title=title, notebook=NOTEBOOK, optimizer="sgd")
    return panel_figure(note, shown, folder, tables, draw, what=what, marks=marks, ylabel=ylabel)


def table_horizons(
    panels: Panels, folder: Path | str, methods: Sequence[str] = (*PAPER_METHODS, "lft")
) -> pd.DataFrame:
    """One row per data set and method: similarity averaged over horizons, and the seconds that the scores took.

    Horizons count evenly on a log axis of epochs, so that the first epochs weigh as much as the last. Writes
    `table_horizons.csv`, `.html` and `.json`.

    Returns:
        columns data set, method, mean over horizons, first, lowest, last, seconds.
    """
    rows = []
    for shown in shown_in("table_horizons", panels, compute=False).values():
        gold = finished(lambda s=shown: s.gold)
        if gold is None:
            continue
        measured, weight = sensitivity(gold), log_weights(gold.epoch.values)
        for name in methods:
            scores = finished(lambda name=name, shown=shown: shown.scores(name))
            if scores is None or scores.attrs["outcome"] != "finished":
                continue
            mean = similarity(scores, measured)["mean"].values
            rows.append(
                {
                    "data set": shown.title,
                    "method": METHODS[name].label,
                    "mean over horizons": float((mean * weight).sum() / weight.sum()),
                    "first": float(mean[0]),
                    "lowest": float(mean.min()),
                    "last": float(mean[-1]),
                    "seconds": seconds_of(lambda name=name, shown=shown: shown.scores(name)),
                }
            )
    table = pd.DataFrame(rows)
    note = provenance(
        panels, figure="table_horizons", title="All methods, over all horizons", notebook=NOTEBOOK, optimizer="sgd"
    )
    note["caption"] = (
        "Mean cosine similarity to further training (SGD, mean adjustment): averaged over horizons (evenly on a "
        "log axis of epochs), after the first epoch, at its lowest and after the last epoch; and the seconds that"
        " the scores of the left-out instances took."
    )
    save_numbers(table, folder, "table_horizons", note)
    page = table.to_html(index=False, float_format="{:.2f}".format, border=0)
    (Path(folder) / "table_horizons.html").write_text(page, encoding="utf-8")
    return table


def log_weights(epochs: np.ndarray) -> np.ndarray:
    """Weights under which horizons count evenly on a log axis; the first as if another lay as far before it."""
    if len(epochs) == 1:
        return np.ones(1)
    return np.diff(np.log(epochs), prepend=np.log(epochs[0] ** 2 / epochs[1]))


def seconds_of(pieces: Callable) -> float:
    """How long a stored result took to compute, by its sidecar."""
    with questions() as asked, contextlib.suppress(Missing):
        pieces()
    return float(sum(read_sidecar(path)["seconds"] for path in asked))


FIGURES: dict[str, Callable] = {
    "fig02plus": figure2_plus,
    "fig04plus": figure4_plus,
    "fig_filter": figure_filter,
    "fig_limit": figure_limit,
    "fig_precision": figure_precision,
    "fig_removal": figure_removal,
    "table_horizons": table_horizons,
}
