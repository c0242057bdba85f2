"""The paper's figures: one function each, from stored results to PDF, PNG, and a CSV of the plotted numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import noise_ceiling, sensitivity, similarity
from .drawing import LOOK, PUBLISHED, STYLE, Look, Panels, panel_figure, provenance, say
from .reproduction import PAPER_METHODS, Reproduction, finished

__all__ = ["LOOK", "STYLE", "Look", "damping_sweep", "figure2", "figure4", "figure5", "figure6", "figure_damping"]
AXIS = {"cosine": "cosine similarity to further training", "spearman": "Spearman correlation with further training"}
# --- Figures 2, 4, 5 and 6: similarity against the amount of further training ---------------------------------------


def figure2(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 2: cosine similarity against epochs of further training, mean adjustment, SGD."""
    return _similarity_figure("fig02", panels, folder, methods, optimizer="sgd")


def figure4(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 4: as Figure 2, with Adam."""
    return _similarity_figure("fig04", panels, folder, methods, optimizer="adam")


def figure5(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 5: as Figure 2, with the full adjustment."""
    return _similarity_figure("fig05", panels, folder, methods, optimizer="sgd", adjustment="full")


def figure6(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 6: as Figure 2, with Spearman correlation."""
    return _similarity_figure("fig06", panels, folder, methods, optimizer="sgd", metric="spearman")


def similarity_table(
    shown: Reproduction, methods: Sequence[str], *, adjustment: str = "mean", metric: str = "cosine"
) -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, step, epoch, mean, sem, undefined; methods without finished scores are absent; a method that
        diverged has one row of NaN. The rows of method "ceiling" are the noise ceiling (cosine only).
    """
    gold = finished(lambda: shown.gold)
    if gold is None:
        return None
    measured = sensitivity(gold, adjustment)
    tables = []
    for name in methods:
        scores = finished(lambda name=name: shown.scores(name))
        if scores is None:
            continue
        if scores.attrs["outcome"] != "finished":
            tables.append(pd.DataFrame({"method": [name]}))
            continue
        tables.append(_rows(name, similarity(scores, measured, metric)))
    if metric == "cosine":
        tables.append(_rows("ceiling", xr.Dataset({"mean": noise_ceiling(gold, adjustment)})))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})


def _rows(method: str, values: xr.Dataset) -> pd.DataFrame:
    return values.to_dataframe().reset_index().assign(method=method)


def _similarity_figure(
    name: str,
    panels: Panels,
    folder: Path | str,
    methods: Sequence[str],
    *,
    optimizer: str,
    adjustment: str = "mean",
    metric: str = "cosine",
) -> Figure:
    panels = {letter: shown.other(optimizer=optimizer, compute=False) for letter, shown in panels.items()}
    tables = {k: similarity_table(shown, methods, adjustment=adjustment, metric=metric) for k, shown in panels.items()}

    def draw(ax: Axes, letter: str) -> None:
        shown, table = panels[letter], tables[letter]
        ax.set_title(f"({letter}) {shown.title}")
        if table is None:
            return say(ax, f"Not run yet: ./run_all.sh --profile {shown.profile} --datasets {shown.dataset}")
        draw_similarity(ax, table)
        draw_published(ax, f"{int(name[3:])}{letter}", shown.dataset, optimizer, adjustment, metric)
        ax.set_xlabel("epochs of further training")

    rows = pd.concat(
        [t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None]
        or [pd.DataFrame({"panel": []})]
    )
    note = provenance(panels, figure=name, optimizer=optimizer, adjustment=adjustment, metric=metric)
    drawn = [m for m in (*methods, "ceiling") if m in set(rows.get("method", []))]
    if any(
        len(published_points(f"{int(name[3:])}{k}", shown.dataset, optimizer, adjustment, metric))
        for k, shown in panels.items()
    ):
        drawn.append(PUBLISHED)
    return panel_figure(name, panels, folder, draw, rows, note, AXIS[metric], drawn)


def draw_similarity(ax: Axes, table: pd.DataFrame) -> None:
    """One panel: a line with a band of one standard error per method."""
    diverged = []
    for method, rows in table.groupby("method", sort=False):
        look = LOOK[method]
        if rows["mean"].isna().all():
            diverged += [look.label] if method != "ceiling" else []
            continue
        x, mean = rows["epoch"].to_numpy(), rows["mean"].to_numpy()
        ax.plot(
            x,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker if len(x) < 15 else None,
            ms=3,
            lw=1.0 if method == "ceiling" else None,
            zorder=1 if method == "ceiling" else 2,
        )
        if "sem" in rows and rows["sem"].notna().any():
            sem = rows["sem"].to_numpy()
            ax.fill_between(x, mean - sem, mean + sem, color=look.colour, alpha=0.15, lw=0)
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    ax.set_ylim(min(ax.get_ylim()[0], -0.06), 1.02)
    if diverged:
        ax.text(
            0.98,
            0.02,
            f"diverged: {', '.join(diverged)}",
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize=7.5,
            color="#555555",
        )


def draw_published(ax: Axes, figure: str, dataset: str, optimizer: str, adjustment: str, metric: str) -> None:
    """Published points as open markers, thinned to a readable number."""
    chosen = published_points(figure, dataset, optimizer, adjustment, metric)
    for method, rows in chosen.groupby("method"):
        if method in LOOK:
            rows = rows[_apart(rows.x.to_numpy(), np.ptp(rows.x) / 25)]
            look = dict(mfc="none", mec=LOOK[method].colour, ms=4.5, mew=0.9, ls="none")
            ax.plot(rows.x, rows.value, LOOK[method].marker, **look, zorder=3, clip_on=False)


def published_points(figure: str, dataset: str, optimizer: str, adjustment: str, metric: str) -> pd.DataFrame:
    """The published numbers of one panel."""
    published = published_curves()
    return published[
        (published.figure == figure)
        & (published.dataset == dataset)
        & (published.optimizer == optimizer)
        & (published.adjustment == adjustment)
        & (published.metric == metric)
    ]


def _apart(x: np.ndarray, distance: float) -> list[bool]:
    """Which of the ascending x are at least so far from the one kept before."""
    kept: list[bool] = []
    last = -np.inf
    for value in x:
        kept.append(value - last >= distance)
        last = value if kept[-1] else last
    return kept


@cache
def published_curves() -> pd.DataFrame:
    """Numbers read off the outputs stored in the authors' public notebooks (github.com/IBM/fimoda, commit 1186f5f)."""
    with (resources.files("fimoda_lib") / "reference" / "published_curves.csv").open() as file:
        table = pd.read_csv(file)
    return table.assign(method=table.method.str.lower().str.replace("-", "_").replace({"ek_fac": "ekfac"}))


# --- Damping is time: similarity against damping and horizon --------------------------------------------------------


def damping_sweep(shown: Reproduction, method: str = "exact", multiples: Sequence[float] = ()) -> pd.DataFrame:
    """Similarity for dampings of a wide range at every horizon.

    Args:
        method: any method with a damping and a multiple of it.
        multiples: of the recommended damping; half-decades from 1e-2 to 1e7 by default.

    Returns:
        columns multiple, damping, step, epoch, mean, sem, undefined.
    """
    measured = sensitivity(shown.gold)
    tables = []
    for multiple in multiples or [10 ** (k / 2) for k in range(-4, 15)]:
        scores = finished(lambda m=multiple: shown.scores(method, multiple=float(m)))
        if scores is not None and scores.attrs["outcome"] == "finished":
            values = similarity(scores, measured).to_dataframe().reset_index()
            tables.append(values.assign(multiple=multiple, damping=float(scores.attrs["damping"])))
    return pd.concat(tables, ignore_index=True)


def figure_damping(panels: Panels, folder: Path | str, method: str = "exact") -> Figure:
    """Similarity of influence functions against damping and horizon, with λ = 1/(learning rate x steps) drawn on it."""
    name = "fig_damping"
    tables: dict[str, pd.DataFrame | None] = {}
    for letter, shown in panels.items():
        tables[letter] = finished(lambda s=shown: damping_sweep(s, method))

    def draw(ax: Axes, letter: str) -> None:
        shown, table = panels[letter], tables[letter]
        ax.set_title(f"({letter}) {shown.title}")
        if table is None:
            return say(ax, f"Not run yet: ./run_all.sh --profile {shown.profile} --datasets {shown.dataset}")
        draw_damping(ax, table, shown)

    rows = pd.concat([t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None])
    note = provenance(panels, figure=name, optimizer="sgd", adjustment="mean", metric="cosine", method=method)
    figure = panel_figure(name, panels, folder, draw, rows, note, r"damping $\lambda$", [])
    return figure


def draw_damping(ax: Axes, table: pd.DataFrame, shown: Reproduction) -> None:
    """One heat map: horizon across, damping up, similarity as colour; the best damping per horizon and λ = 1/(ηT)."""
    grid = table.pivot_table(index="damping", columns="step", values="mean")
    steps, dampings = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    mesh = ax.pcolormesh(
        steps, dampings, grid.to_numpy(), cmap="viridis", vmin=0, vmax=1, shading="nearest", rasterized=True
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(steps[0], steps[-1]),
        ylim=(dampings[0], dampings[-1]),
        xlabel="optimiser steps of further training $T$",
    )
    rate = shown.settings.further.learning_rate
    ax.plot(steps, 1 / (rate * steps), color="white", lw=1.6, label=r"$\lambda = 1/(\eta T)$")
    ax.plot(steps, dampings[grid.to_numpy().argmax(0)], ".", color="#D55E00", ms=2.5, label="best at each horizon")
    unit = table.damping.iloc[0] / table.multiple.iloc[0]
    for multiple in shown.settings.damping_multiples:
        ax.axhline(multiple * unit, xmax=0.06, color="white", lw=1.2)
    ax.plot([], [], color="#999999", lw=1.2, label="the paper's dampings (ticks at the left)")
    ax.grid(False)
    ax.legend(loc="lower right", fontsize=7, labelcolor="white" if grid.to_numpy()[:3].mean() < 0.6 else "black")
    ax.figure.colorbar(mesh, ax=ax, label="cosine similarity")
