"""Pictures of instances that are small images, with their scores beneath: for the tutorial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .tasks import Task

HELPFUL, HARMFUL = "#0072B2", "#D55E00"  # blue and vermilion, which colour-blind readers tell apart; the sign says it too


def images(table: pd.DataFrame) -> np.ndarray:
    """The images of a task's table, [n, side, side] in the table's own grey values: all columns but the last, which is
    the label, row by row.

    Raises:
        ValueError: the columns do not fill a square.
    """
    pixels = table.iloc[:, :-1].to_numpy(float)
    side = isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise ValueError(f"The table has {pixels.shape[1]} columns before the label, which fill no square image; expected "
                         "a data set of square images, such as 'digits'.")
    return pixels.reshape(-1, side, side)


def image_row(pictures: Sequence[np.ndarray], captions: Sequence[str], *, size: float = 1.15) -> Figure:
    """Images side by side, each with its caption beneath."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(size * len(pictures), size + 0.45), squeeze=False,
                                layout="constrained")
    for ax, picture, caption in zip(axes[0], pictures, captions, strict=True):
        thumbnail(ax, picture, caption)
    return figure


def gallery(task: Task, scores: xr.DataArray, captions: Mapping[int, str] | None = None, *, n: int = 4,
            title: str = "") -> Figure:
    """Each explained test image beside its most helpful and most harmful training images, strongest first.

    Args:
        scores: [test, train], as from `attribute`: every test instance in it gets a row, every training instance in it
            is a candidate.
        captions: test instance -> caption; its label by default.
        n: so many helpful and so many harmful images.
    """
    n = min(n, scores.sizes["train"] // 2)
    shown, candidates = images(task.test_table), images(task.train_table)
    labels, test_labels = task.train_table.iloc[:, -1], task.test_table.iloc[:, -1]
    figure, axes = plt.subplots(
        scores.sizes["test"], 2 * n + 3, squeeze=False, layout="constrained",
        figsize=(0.82 * (2 * n + 1) + 0.9, 1.08 * scores.sizes["test"] + 0.6),
        gridspec_kw={"width_ratios": [1.25, 0.3, *n * [1], 0.2, *n * [1]]},
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for row, z in zip(axes, scores.test.values, strict=True):
        thumbnail(row[0], shown[z], captions[z] if captions else f"“{test_labels[z]}”")
        ranked = scores.sel(test=z).sortby(scores.sel(test=z), ascending=False)
        chosen = [*ranked[:n], *ranked[::-1][:n]]
        for ax, score in zip([*row[2 : n + 2], *row[n + 3 :]], chosen, strict=True):
            i, value = int(score.train), float(score)
            thumbnail(ax, candidates[i], f"“{labels[i]}” {_signed(value)}", HELPFUL if value > 0 else HARMFUL)
    heading = {"fontsize": 9.5, "loc": "left", "fontweight": "bold"}
    axes[0, 0].set_title("to explain", **heading)
    axes[0, 2].set_title("most helpful", color=HELPFUL, **heading)
    axes[0, n + 3].set_title("most harmful", color=HARMFUL, **heading)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure


def thumbnail(ax: Axes, picture: np.ndarray, caption: str = "", colour: str = "black") -> None:
    """One image, ink on paper, with its caption beneath."""
    ax.set_axis_on()
    ax.grid(False)
    ax.imshow(picture, cmap="gray_r")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.6)
    ax.set_xlabel(caption, color=colour, fontsize=8, labelpad=3)


def _signed(value: float) -> str:
    """Two significant digits, never with an exponent before the point, and a minus as wide as the plus."""
    text = f"{value:+#.2g}" if abs(value) < 9.95 else f"{float(f'{value:.2g}'):+,.0f}"
    return text.replace("-", "−").replace(",", " ")
