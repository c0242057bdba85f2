"""What is gained by dropping the instances that a method holds to be harmful, by the horizon of the scores."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..experiments.horizons import DROPPED, LOT, gains
from ..experiments.panel import Panel, finished
from .look import LOOK
from .panels import horizon_axis

WHAT = (
    f"What further training gains on unseen instances (percent of the loss) if {DROPPED:.0%} of the candidates are "
    "dropped: those that harm a validation set most by a method's scores, for LFT made for a horizon K."
)
MARKS = (
    "Bold: the difference to dropping at random has a 95 % interval (bootstrap over seeds and instances) without zero. "
    "Boxes: each T's best K."
)
FIRST = ("grad_dot", "lft")  # from the shortest horizon to the longest; then those with no horizon of their own


def table(panel: Panel) -> pd.DataFrame | None:
    """What `gains` finds; None if its results are missing."""
    return finished(lambda: gains(panel))


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A heat map: what chose, from top to bottom, against the amount of further training."""
    x, label = horizon_axis(dataset)
    rows = table[table["part"] == "untouched"]
    methods = dict.fromkeys([*FIRST, *(m for m in rows["method"].unique() if m not in (*FIRST, LOT)), LOT])
    order = [(m, k) for m in methods for k in sorted(rows.loc[rows["method"] == m, "step"].unique())]
    keys = pd.MultiIndex.from_tuples([(m, -1 if pd.isna(k) else k) for m, k in order])
    wide = rows.fillna({"step": -1}).pivot(index=["method", "step"], columns=f"after_{x}").loc[keys]
    gain = wide["gain"].to_numpy()
    largest = np.nanmax(np.abs(gain)) or 1.0
    ax.imshow(gain, cmap="RdBu", norm=mpl.colors.Normalize(-largest, largest), aspect="auto")
    sure = ((wide["over_low"] > 0) | (wide["over_high"] < 0)).to_numpy()
    for (i, j), value in np.ndenumerate(gain):
        colour = "white" if abs(value) > 0.6 * largest else "black"
        weight = "bold" if sure[i, j] else "normal"
        ax.text(j, i, _short(value), ha="center", va="center", fontsize=5, color=colour, weight=weight)
    own = [i for i, (method, _) in enumerate(order) if method == "lft"]
    for j in range(gain.shape[1]) if own else ():
        best = own[int(np.argmax(gain[own, j]))]
        ax.add_patch(mpl.patches.Rectangle((j - 0.5, best - 0.5), 1, 1, fill=False, ec="black", lw=1.1))
    ax.set_yticks(range(len(order)), [_name(m, k, rows, x) for m, k in order], fontsize=7)
    ax.set_xticks(range(gain.shape[1]), [f"{t:g}" for t in wide["gain"].columns.round(1)], fontsize=7, rotation=45)
    ax.set_xlabel(f"T ({label})")
    ax.grid(visible=False)


def _short(value: float) -> str:
    """Two digits, of small numbers as many as there is room for: 12, −3.4, .56, −.078."""
    places = next((d for d, least in enumerate((9.95, 0.995, 0.0995)) if abs(value) >= least), 3)
    text = f"{value:.{places}f}"
    return text.replace("-", "−").replace("0.", ".", 1) if float(text) else "0"


def _name(method: str, step: float, rows: pd.DataFrame, x: str) -> str:
    if method == LOT:
        return "at random"
    label = LOOK[method].label.removesuffix(" (ours)")
    return label if pd.isna(step) else f"{label}, K = {rows.loc[rows['step'] == step, x].iloc[0]:g}"
