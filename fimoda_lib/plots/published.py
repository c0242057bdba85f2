"""The numbers published with the paper, and how they are drawn beside ours."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from .look import LOOK


@cache
def published_curves() -> pd.DataFrame:
    """Numbers read off the outputs stored in the authors' public notebooks (github.com/IBM/fimoda, commit 1186f5f)."""
    with (resources.files("fimoda_lib.experiments") / "reference" / "published_curves.csv").open() as file:
        table = pd.read_csv(file)
    return table.assign(method=table.method.str.lower().str.replace("-", "_").replace({"ek_fac": "ekfac"}))


def published_points(panel: str, dataset: str) -> pd.DataFrame:
    """The published numbers of one panel of the paper ("2b"), if it shows this data set: columns x, method, value.

    No rows where nothing was published, and none for a stand-in: its numbers are of another data set.
    """
    published = published_curves()
    here = np.array([panel in names.split("+") for names in published.figure])  # "3a+7d" is one set of numbers
    return published[here & (published.dataset == dataset)]


def draw_published(ax: Axes, points: pd.DataFrame) -> None:
    """Published points as open markers, thinned to a readable number; a stem leads from each to our curve of the same
    method, if it has been drawn."""
    curves = {line.get_color(): line.get_xydata() for line in ax.get_lines()}
    for method, rows in points.groupby("method"):
        if method in LOOK:
            x = np.log(rows.x.to_numpy()) if ax.get_xscale() == "log" else rows.x.to_numpy()
            rows, colour = rows[_apart(x, np.ptp(x) / 16)], LOOK[method].colour
            if colour in curves:
                at, ours = curves[colour].T
                inside = rows[(rows.x >= at[0]) & (rows.x <= at[-1])]
                stems = dict(colors=to_rgba(colour, 0.5), lw=0.8, zorder=1.8)
                ax.vlines(inside.x, np.interp(inside.x, at, ours), inside.value, **stems)
            look = dict(mfc="none", mec=colour, ms=4.5, mew=0.9, ls="none")
            ax.plot(rows.x, rows.value, LOOK[method].marker, **look, zorder=3, clip_on=False)


def _apart(x: np.ndarray, distance: float) -> list[bool]:
    """Which of the ascending x are at least so far from the one kept before."""
    kept: list[bool] = []
    last = -np.inf
    for value in x:
        kept.append(value - last >= distance)
        last = value if kept[-1] else last
    return kept
