"""Figures of curves: similarity against the amount of further training, and against the number of seeds averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.exact_derivative import EXACT
from ..experiments.panel import Panel
from ..experiments.profiles import get_profile
from ..experiments.settings import has_small_model
from ..plots import seeds, similarity
from ..plots.captions import provenance, scores_of
from ..plots.drawing import panel_figure
from ..plots.kept import panels_and_tables
from ..plots.look import PUBLISHED, RULES
from ..plots.panels import Panels, Tables
from ..plots.published import draw_published, published_points
from .claims import margins

METRICS = {"cosine": ("cosine similarity", "to"), "spearman": ("Spearman correlation", "with")}
INTERVALS = "bands: 95 % bootstrap intervals over seeds, left-out and test instances"
MARKS = {  # what a caption says of an entry of the legend
    "lft": "thick black: LFT (ours)",
    "timed": "λ = 1/(ηT): the horizon's own damping",
    "ceiling": "dotted grey: estimated noise ceiling, band over seeds",
    PUBLISHED: "open markers: published (100 seeds), a stem from each to our curve",
}


def similarity_figure(
    name: str,
    panels: Panels,
    folder: Path | str,
    methods: Sequence[str],
    *,
    optimizer: str = "sgd",
    adjustment: str = "mean",
    metric: str = "cosine",
    notebook: str = "04_figures",
    axis: str = "log",
) -> Figure:
    """A figure of the kind of Figure 2; `name` begins with "fig" and the number of the figure with the same data.

    Args:
        axis: "log" or, as in the paper, "linear"; a panel of its own has the other one, too.
    """
    panels, tables, kept = panels_and_tables(
        name,
        panels,
        folder,
        lambda panel: similarity.table(panel, methods, adjustment=adjustment, metric=metric),
        optimizer=optimizer,
        compute=False,
    )
    points = {k: published_of(f"{int(name[3:5])}{k}", panel) for k, panel in panels.items()}
    judged = {panel.dataset: margins(name, tables[k]) for k, panel in panels.items()}

    def draw(ax: Axes, letter: str, axis: str = axis) -> None:
        similarity.draw(ax, tables[letter], panels[letter].dataset, axis)
        draw_published(ax, points[letter])

    other = "linear" if axis == "log" else "log"
    legend = legend_of(methods, tables, points)
    words, preposition = METRICS[metric]
    trained = f"{RULES[optimizer]}, {adjustment} adjustment"
    measure = f"{words[0].upper()}{words[1:]}"
    few = get_profile(next(iter(panels.values())).profile).exact_tests
    extra = ", with LFT" if "lft" in methods else ""
    return panel_figure(
        provenance(
            panels,
            kept=kept,
            figure=name,
            title=f"{measure} {preposition} further training ({trained}){extra}",
            notebook=notebook,
            optimizer=optimizer,
            adjustment=adjustment,
            metric=metric,
            how=lambda panel: {**_ceiling(metric), **_followed(panel, methods), **judged[panel.dataset]},
            scores=scores_of(methods),
        ),
        panels,
        folder,
        tables,
        draw,
        what=similarity.WHAT.format(Measure=measure, trained=trained),
        marks=marks_of(legend, **{EXACT: f"squares: exact derivative, {few} test instances"}),
        ylabel=f"{words} {preposition} further training",
        legend=legend,
        below=(f"the same on a {other} axis", lambda ax, letter: draw(ax, letter, other)),
    )


def _ceiling(metric: str) -> dict:
    """For provenance: how the noise ceiling is estimated."""
    return {"ceiling": "interval"} if metric == "cosine" else {}


def _followed(panel: Panel, methods: Sequence[str]) -> dict:
    """For provenance: what LFT follows on a data set, if it is drawn."""
    if "lft" not in methods:
        return {}
    hyper = panel.hyper("lft")
    told = {name: hyper[name] for name in ("runs", "segments", "products") if name in hyper}
    return {"lft": told if panel.lft else None}


def seeds_figure(
    name: str,
    panels: Panels,
    folder: Path | str,
    methods: Sequence[str],
    *,
    optimizer: str = "sgd",
    adjustment: str = "mean",
) -> Figure:
    panels, tables, kept = panels_and_tables(
        name,
        panels,
        folder,
        lambda panel: seeds.table(panel, methods, adjustment=adjustment),
        optimizer=optimizer,
        compute=False,
    )
    points = {k: published_of(f"{int(name[3:])}{k}", panel) for k, panel in panels.items()}

    def draw(ax: Axes, letter: str) -> None:
        seeds.draw(ax, tables[letter], points[letter].x)
        draw_published(ax, points[letter])

    legend = legend_of(methods, tables, points)
    trained = f"{RULES[optimizer]}, {adjustment} adjustment"
    return panel_figure(
        provenance(
            panels,
            kept=kept,
            figure=name,
            title=f"Similarity against the number of seeds averaged ({trained})",
            optimizer=optimizer,
            adjustment=adjustment,
            metric="cosine",
            how=lambda panel: _ceiling("cosine"),
            scores=scores_of(methods),
        ),
        panels,
        folder,
        tables,
        draw,
        what=seeds.WHAT.format(trained=trained),
        marks=marks_of(legend, ceiling="dotted grey: estimated noise ceiling, its range over the horizons drawn"),
        ylabel="cosine similarity to further training",
        legend=legend,
    )


def published_of(name: str, panel: Panel) -> pd.DataFrame:
    """The published numbers of a panel, none if a smaller model stands in its place."""
    points = published_points(name, panel.dataset)
    return points[:0] if has_small_model(panel.dataset, panel.profile) else points


def legend_of(methods: Sequence[str], tables: Tables, points: Mapping[str, pd.DataFrame] | None = None) -> list[str]:
    """What the legend of a figure explains: what is in its tables, in the order given, and published numbers if any."""
    known = {name for table in tables.values() if table is not None for name in table["method"]}
    published = any(len(points[k]) for k, table in tables.items() if table is not None) if points else False
    return [m for m in (*methods, "ceiling") if m in known] + [PUBLISHED] * published


def marks_of(legend: Sequence[str], **other: str) -> str:
    """The sentence of a caption on bands, lines and markers; `other` words for some of them."""
    marks = MARKS | other
    words = [INTERVALS, *(marks[name] for name in legend if name in marks)]
    sentence = "; ".join(words)
    return f"{sentence[0].upper()}{sentence[1:]}."
