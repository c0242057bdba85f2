"""How well methods find training instances whose labels were changed before the final model was trained."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..experiments.mislabelled import SHARE, detection
from ..experiments.panel import Panel, finished
from .captions import counted
from .look import LOOK
from .panels import horizon_axis

WHAT = (
    f"Area under the ROC curve of telling training instances with a changed label ({SHARE:.0%} of all, before "
    "training) from others, by the harm to held-out instances that a method ascribes to them and by their "
    "self-influence."
)
MARKS = (
    "Bars: 95 % intervals (bootstrap over training instances). Dashed, with its interval in grey: the instance's own "
    "loss; stars: surely above it. Dotted: chance."
)
FORMS = {"harm": ("o", 0.16), "self-influence": ("s", -0.16)}  # marker, place beside the method's line


def table(panel: Panel) -> pd.DataFrame | None:
    """What `detection` finds; None if its results are missing."""
    return finished(lambda: detection(panel))


def legend() -> list[Line2D]:
    """What is explained below the panels."""
    look = dict(color="#444444", ls="", ms=4)
    kinds = [
        Line2D([], [], marker=marker, mfc="#444444" if kind == "harm" else "white", label=kind, **look)
        for kind, (marker, _) in FORMS.items()
    ]
    return [*kinds, Line2D([], [], color="#666666", ls="--", lw=1.2, label="the loss itself")]


def draw(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A line for each method, with the area of either kind of evidence."""
    loss = table[table["method"] == "loss"].iloc[0]
    ax.axvspan(loss["low"], loss["high"], color="#E4E4E4", lw=0)
    ax.axvline(loss["auc"], color="#666666", ls="--", lw=1.2)
    ax.axvline(0.5, color="#999999", ls=":", lw=1)
    rows = table[table["method"] != "loss"]
    names = [_name(method, step, dataset, rows) for method, step in zip(rows["method"], rows["step"], strict=True)]
    places = {name: -k for k, name in enumerate(dict.fromkeys(names))}
    for name, row in zip(names, rows.to_dict("records"), strict=True):
        marker, beside = FORMS[row["evidence"]]
        y, colour = places[name] + beside, LOOK[row["method"]].colour
        if pd.isna(row["auc"]):
            ax.text(0.5, places[name], "diverged", fontsize=7, color="#555555", va="center")
            continue
        ends = [[row["auc"] - row["low"]], [row["high"] - row["auc"]]]
        fill = colour if row["evidence"] == "harm" else "white"
        ax.errorbar(row["auc"], y, xerr=ends, color=colour, marker=marker, ms=4, mfc=fill, lw=1)
        if row["above_low"] > 0:
            ax.text(row["high"] + 0.01, y, "★", color=colour, fontsize=7, va="center")
    ax.set_yticks([*places.values()], [*places], fontsize=7.5)
    ax.set(xlabel="area under the ROC curve", xlim=(min(0.3, rows["low"].min() - 0.02), 1.04))
    ax.grid(axis="y", visible=False)


def _name(method: str, step: float, dataset: str, rows: pd.DataFrame) -> str:
    label = LOOK[method].label.removesuffix(" (ours)")
    if pd.isna(step):
        return label
    x = horizon_axis(dataset)[0]
    at = rows.loc[rows["step"] == step, x].iloc[0]
    return f"{label}, {counted(round(at), x)}"
