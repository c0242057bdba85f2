"""Levels of access to a model, and further training, as a drawing (Figure 1). There are no data in it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from .look import LOOK

INK, PALE, TEXT = "#222222", "#D0D0D0", "#555555"
BLUE, VERMILION, GREEN = (LOOK[name].colour for name in ("grad_dot", "cg", "trak"))
WIDTH = 7.0  # of the drawing, in inches: coordinates are inches, so that text and boxes keep their proportions
AT_HAND = ("training\nalgorithm", "checkpoints", "final model,\ntraining data")
LEVELS = (  # name, in words, how many of AT_HAND are missing, question, way to an answer, colour
    ("TAA", "training algorithm\navailable", 0, "What if the model had been trained\nwithout instance $i$?",
     "re-train without it", GREEN),
    ("CPA", "checkpoints\navailable", 1, "What did instance $i$ do during\nthe training that took place?",
     "follow the checkpoints", VERMILION),
    ("FiMO", "final model only", 2, "How sensitive is the final model\nto instance $i$?",
     "train further, with and without it", BLUE),
)  # fmt: skip

CAPTION = (
    "(a) What is at hand with the training algorithm (TAA), with checkpoints (CPA) and with the final model only "
    "(FiMO), and what can be asked then. (b) Further training with and without an instance: the difference of test "
    "losses is the sensitivity. A drawing, without data."
)


def draw_levels(ax: Axes) -> None:
    """Three rows: what is at hand at each level of access, and what can be asked."""
    _blank(ax, WIDTH, 2.75)
    columns = (2.05, 2.95, 3.85)
    for x, words in zip(columns, AT_HAND, strict=True):
        ax.text(x, 2.66, words, ha="center", va="top", fontsize=7.5, color=TEXT, linespacing=1.05)
    ax.text(4.55, 2.66, "what can be asked", ha="left", va="top", fontsize=7.5, color=TEXT)
    for row, (name, words, missing, question, way, colour) in enumerate(LEVELS):
        y = 1.93 - 0.79 * row
        ax.text(0.05, y, name, fontsize=12, fontweight="bold", color=colour, va="center")
        ax.text(0.66, y, words, fontsize=7.5, color=TEXT, va="center", linespacing=1.1)
        for k, (x, symbol) in enumerate(zip(columns, (_loop, _checkpoints, _network), strict=True)):
            here = k >= missing
            _box(ax, x, y, colour if here else None)
            symbol(ax, x, y, INK if here else PALE)
        ax.text(4.55, y + 0.09, question, fontsize=8, color=INK, va="center", linespacing=1.1)
        ax.text(4.55, y - 0.22, f"→ {way}", fontsize=8, color=colour, va="center")


def draw_further_training(ax: Axes) -> None:
    """Test loss along further training with and without an instance: their difference is the sensitivity."""
    end = 4.9
    before, after = np.linspace(0.5, 2.3, 60), np.linspace(2.3, end, 80)
    _blank(ax, WIDTH, 2.3)
    for start, stop in (((0.35, 0.3), (5.3, 0.3)), ((0.35, 0.3), (0.35, 2.2))):
        ax.add_patch(
            FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=9, lw=0.9, color=INK, shrinkA=0, shrinkB=0)
        )
    ax.text(0.23, 1.25, "loss on a test instance $z$", rotation=90, ha="center", va="center", fontsize=8)
    start = 1.02  # loss of the final model
    ax.plot(
        before, start + 1.15 * (np.exp(-1.7 * (before - 0.5)) - np.exp(-1.7 * 1.8)), color="#999999", ls="--", lw=1.3
    )
    ax.text(1.12, 1.72, "training that took place\n(not at hand)", fontsize=7.5, color="#777777", linespacing=1.1)
    for colour, slope, words in (
        (BLUE, 0.62, "without $i$: the loss ends higher,\nso $i$ is helpful, score > 0"),
        (INK, -0.16, "all data $D$"),
        (VERMILION, -0.47, "without $j$: the loss ends lower,\nso $j$ is harmful, score < 0"),
    ):
        rise = (after - 2.3) / (end - 2.3)
        path = start + slope * rise**1.35 - 0.1 * np.sin(np.pi * rise)
        ax.plot(after, path, color=colour, lw=1.8, solid_capstyle="round")
        ax.text(end + 0.52, path[-1], words, color=colour, fontsize=8, va="center", linespacing=1.15)
        ax.plot(end, path[-1], "o", ms=3.5, color=colour)
    full, higher, lower = start - 0.16, start + 0.62, start - 0.47
    for x, low, high, colour, name in (
        (end + 0.12, full, higher, BLUE, r"$\Delta_i$"),
        (end + 0.12, lower, full, VERMILION, r"$\Delta_j$"),
    ):
        ax.add_patch(
            FancyArrowPatch(
                (x, low), (x, high), arrowstyle="<->", mutation_scale=7, lw=1, color=colour, shrinkA=1, shrinkB=1
            )
        )
        ax.text(x + 0.07, (low + high) / 2, name, color=colour, fontsize=9, va="center")
    ax.plot([end, end], [0.3, higher], color="#BBBBBB", lw=0.8, ls=":", zorder=0)
    ax.plot([2.3, 2.3], [0.3, start], color="#BBBBBB", lw=0.8, ls=":", zorder=0)
    ax.plot(2.3, start, "o", ms=7, color=INK)
    ax.text(2.3, start + 0.14, r"final model $\theta^f$", ha="center", va="bottom", fontsize=8)
    ax.text(3.6, 0.15, "further training", ha="center", va="center", fontsize=8)
    ax.text(end, 0.15, "$T$", ha="center", va="center", fontsize=8)


def _blank(ax: Axes, width: float, height: float) -> None:
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()


def _box(ax: Axes, x: float, y: float, colour: str | None) -> None:
    """A frame for a symbol: tinted if what it stands for is at hand, else dashed and pale."""
    look = dict(fc="none", ec=PALE, ls=(0, (3, 2))) if colour is None else dict(fc=f"{colour}1F", ec=colour)
    ax.add_patch(
        FancyBboxPatch((x - 0.34, y - 0.25), 0.68, 0.5, boxstyle="round,pad=0,rounding_size=0.08", lw=1, **look)
    )


def _loop(ax: Axes, x: float, y: float, colour: str) -> None:
    """Two arrows that follow each other round: an algorithm that runs."""
    for side in (-1, 1):
        tail, tip = (x + 0.16 * side, y + 0.03 * side), (x - 0.16 * side, y + 0.03 * side)
        arrow = dict(arrowstyle="-|>", mutation_scale=8, lw=1.4, color=colour, shrinkA=0, shrinkB=0)
        ax.add_patch(FancyArrowPatch(tail, tip, connectionstyle="arc3,rad=0.8", **arrow))


def _checkpoints(ax: Axes, x: float, y: float, colour: str) -> None:
    """Points along a falling curve."""
    at = np.linspace(-0.24, 0.24, 40)
    ax.plot(x + at, y - 0.17 + 0.34 * np.exp(-7 * (at + 0.24)), color=colour, lw=1)
    for k in (0.0, 0.1, 0.24, 0.48):
        ax.add_patch(Circle((x - 0.24 + k, y - 0.17 + 0.34 * np.exp(-7 * k)), 0.032, color=colour, lw=0))


def _network(ax: Axes, x: float, y: float, colour: str) -> None:
    """A small network."""
    layers = [[(-0.2, d) for d in (-0.11, 0.11)], [(0.0, d) for d in (-0.16, 0.0, 0.16)], [(0.2, 0.0)]]
    for left, right in zip(layers, layers[1:], strict=False):
        for a in left:
            for b in right:
                ax.plot([x + a[0], x + b[0]], [y + a[1], y + b[1]], color=colour, lw=0.6, zorder=1)
    for px, py in sum(layers, []):
        ax.add_patch(Circle((x + px, y + py), 0.042, color=colour, lw=0, zorder=2))
