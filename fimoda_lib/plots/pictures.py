"""Pictures of instances that are small images, with their scores beneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..datasets.images import pictures
from ..tasks import Task

HELPFUL, HARMFUL = "#0072B2", "#D55E00"  # blue and vermilion: colour-blind readers tell them apart


def images(table: pd.DataFrame) -> np.ndarray:
    """The images of a task's table, [n, side, side] in the table's own grey values: all columns but the last, which is
    the label, row by row.

    Raises:
        ValueError: the columns do not fill a square.
    """
    pixels = table.iloc[:, :-1].to_numpy(float)
    side = isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise ValueError(
            f"The table has {pixels.shape[1]} columns before the label, which fill no square image; "
            "expected a data set of square images, such as 'digits'."
        )
    return pixels.reshape(-1, side, side)


def pictures_of(task: Task, part: str) -> np.ndarray:
    """The images of the "train" or "test" part of a task, in colour [n, side, side, 3] or as ink [n, side, side].

    Raises:
        ValueError: its instances are no images.
    """
    inputs = getattr(task, part)[0]
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return images(getattr(task, f"{part}_table"))
    shown = pictures(inputs)
    return shown if shown.shape[-1] == 3 else shown[..., 0]


def image_row(pictures: Sequence[np.ndarray], captions: Sequence[str], *, size: float = 0.9) -> Figure:
    """Images side by side, each with its caption beneath; `size` in inches."""
    figure, ax = _canvas(columns=1.15 * len(pictures), rows=1.4, size=size)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        thumbnail(ax, 1.15 * k, 0, picture, caption)
    return figure


def gallery(
    task: Task,
    scores: xr.DataArray,
    captions: Mapping[int, str] | None = None,
    *,
    n: int = 4,
    title: str = "",
    size: float = 0.75,
) -> Figure:
    """Each explained test image beside its most helpful and most harmful training images, strongest first.

    Args:
        scores: [test, train], as from `attribute`: every test instance in it gets a row, every training instance in it
            is a candidate.
        captions: test instance -> caption; its label by default.
        n: so many helpful and so many harmful images.
        size: of an image, in inches.
    """
    n = min(n, scores.sizes["train"] // 2)
    shown, candidates = pictures_of(task, "test"), pictures_of(task, "train")
    labels, test_labels = task.train_table.iloc[:, -1], task.test_table.iloc[:, -1]
    step, line = 1.15, 1.5  # from image to image and from row to row, in images
    helpful, harmful = 1.9, 1.9 + n * step + 0.4  # where the groups begin
    rows = line * scores.sizes["test"] + 0.2  # room for a line at the foot
    figure, ax = _canvas(columns=harmful + n * step, rows=rows, size=size, above=0.75)
    for k, z in enumerate(scores.test.values):
        thumbnail(ax, 0.25, line * k, shown[z], captions[z] if captions else f"“{test_labels[z]}”")
        ranked = scores.sel(test=z).sortby(scores.sel(test=z), ascending=False)
        for start, group in ((helpful, ranked[:n]), (harmful, ranked[::-1][:n])):
            for j, (i, value) in enumerate(zip(group.train.values, group.values, strict=True)):
                thumbnail(
                    ax,
                    start + step * j,
                    line * k,
                    candidates[i],
                    f"“{labels[i]}”\n{_signed(value)}",
                    HELPFUL if value > 0 else HARMFUL,
                )
    ax.text(0.25, -0.5, title, fontsize=10.5, fontweight="bold")
    for x, text, colour in (
        (0.25, "to explain", "black"),
        (helpful, "most helpful", HELPFUL),
        (harmful, "most harmful", HARMFUL),
    ):
        ax.text(x, -0.12, text, color=colour)
    return figure


def thumbnail(ax: Axes, x: float, y: float, picture: np.ndarray, caption: str = "", colour: str = "black") -> None:
    """One image, in colour or as ink on paper, from (x, y) to (x + 1, y + 1), y downwards; its caption beneath."""
    ax.imshow(picture, cmap="gray_r", extent=(x, x + 1, y + 1, y))
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, ec="#BBBBBB", lw=0.6))
    ax.text(x + 0.5, y + 1.05, caption, color=colour, fontsize=8, ha="center", va="top", linespacing=1.1)


def _canvas(*, columns: float, rows: float, size: float, above: float = 0.05) -> tuple[Figure, Axes]:
    """One set of axes for all images (many would be slow), measured in images."""
    figure = plt.figure(figsize=(size * columns, size * (rows + above)))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(-0.05, columns - 0.05), ylim=(rows, -above))
    ax.set_axis_off()
    return figure, ax


def _signed(value: float) -> str:
    """Two significant digits, never with an exponent before the point, and a minus as wide as the plus."""
    text = f"{value:+#.2g}" if abs(value) < 9.95 else f"{float(f'{value:.2g}'):+,.0f}"
    return text.replace("-", "−").replace(",", " ")
