"""Damping is time: the similarity of influence functions against damping and horizon."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from ..comparison import sensitivity, similarity
from ..experiments.panel import Panel, finished
from ..methods.exact import Sweep

WHAT = (
    "Cosine similarity (colour) between influence functions and further training (SGD, mean adjustment, averaged over "
    "seeds), for every damping λ and every amount of further training T."
)
MARKS = (
    "White: λ = 1/(ηT), with the learning rate η; dots mark the best damping for each T; light blue ticks "
    "the dampings tried in the paper."
)
MULTIPLES = [10 ** (k / 2) for k in range(-4, 15)]  # of the recommended damping, if no others are asked for
SEEN = [withStroke(linewidth=2.6, foreground="black")]  # at the bright end of the colours, too
LINE = {"color": "white", "lw": 1.4, "path_effects": SEEN, "label": r"$\lambda = 1/(\eta T)$"}
BEST = {"color": "#D55E00", "marker": ".", "ls": "", "ms": 3, "label": "best at each horizon"}
TICKS = {"color": "#56B4E9", "lw": 1.6, "path_effects": SEEN, "label": "the paper's dampings"}


def table(panel: Panel, method: str = "exact", multiples: Sequence[float] = ()) -> pd.DataFrame | None:
    """Similarity for dampings of a wide range at every horizon, or None if there is no gold standard yet.

    Args:
        method: any method with a damping and a multiple of it.
        multiples: of the recommended damping; half-decades from 1e-2 to 1e7 by default.

    Returns:
        columns multiple, damping, step, epoch, mean, sem, undefined.
    """
    gold = finished(lambda: panel.gold)
    if gold is None:
        return None
    measured = sensitivity(gold)
    tables, by = [], Sweep() if method == "exact" else None
    for multiple in multiples or MULTIPLES:
        scores = finished(lambda m=multiple: panel.scores(method, by=by, multiple=float(m)))
        if scores is not None and scores.attrs["outcome"] == "finished":
            values = similarity(scores, measured).to_dataframe().reset_index()
            tables.append(values.assign(multiple=multiple, damping=float(scores.attrs["damping"])))
    return pd.concat(tables, ignore_index=True) if tables else None


def draw(ax: Axes, table: pd.DataFrame, learning_rate: float, multiples: Sequence[float]) -> None:
    """One heat map: horizon across, damping up, similarity as colour; the best damping per horizon and λ = 1/(ηT).

    Args:
        learning_rate: η of the further training.
        multiples: the dampings tried in the paper, as multiples of the recommended one; marked at the left edge.
    """
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
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.plot(steps, 1 / (learning_rate * steps), **LINE)
    ax.plot(steps, dampings[grid.to_numpy().argmax(0)], **BEST)
    unit = table.damping.iloc[0] / table.multiple.iloc[0]
    for multiple in multiples:
        ax.plot([0, 0.06], [multiple * unit] * 2, **TICKS, transform=ax.get_yaxis_transform())
    ax.grid(False)
    ax.figure.colorbar(mesh, ax=ax, label="cosine similarity")


def legend() -> list[Artist]:
    """The entries of the legend."""
    return [Line2D([], [], **look) for look in (LINE, BEST, TICKS)]
