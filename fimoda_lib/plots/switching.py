"""One rectified unit that switches, and what that does to a run: an impulse that the derivative between kinks lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

SLOPE, JUMP, START, STEPS, RATE = 1.0, 0.8, 1.0, 140, 0.01  # of the loss: SLOPE θ + JUMP relu(θ)
REMOVED = 0.15  # of SLOPE, in the run without the instance
WIDTH = 0.12  # of the Gaussian, and of the shifts of starts
WHAT = (
    "A parameter θ goes down a loss with one rectified unit; an instance that pushes it down is left out. Left: the "
    "unit switches later in the run without the instance (dashed), which goes on at the greater speed for a while. "
    "Right: the difference of the two runs per removed weight. From the one switch to the other it changes course; the "
    "derivative between kinks knows nothing of that. With the kink softened it does, on the average over starts."
)


def table() -> pd.DataFrame:
    """Per step: θ in both runs; and per removed weight their difference, its mean over shifted starts, and the two
    derivatives. Columns step, full, without, difference, mean, between, softened."""
    shifts = START + WIDTH * np.linspace(-3, 3, 20_001)
    share = np.exp(-0.5 * ((shifts - START) / WIDTH) ** 2)
    full, without = (path(np.append(START, shifts), removed) for removed in (0.0, REMOVED))
    difference = (without - full) / REMOVED
    between, softened = np.zeros(STEPS + 1), np.zeros(STEPS + 1)
    for t in range(STEPS):
        density = np.exp(-0.5 * (full[t, 0] / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi))
        between[t + 1] = between[t] + RATE * SLOPE
        softened[t + 1] = softened[t] + RATE * (SLOPE - JUMP * density * softened[t])
    return pd.DataFrame(
        {
            "step": np.arange(STEPS + 1),
            "full": full[:, 0],
            "without": without[:, 0],
            "difference": difference[:, 0],
            "mean": difference[:, 1:] @ share / share.sum(),
            "between": between,
            "softened": softened,
        }
    )


def path(starts: np.ndarray, removed: float) -> np.ndarray:
    """θ after every step from every start, [STEPS + 1, starts]."""
    found = [starts]
    for _ in range(STEPS):
        theta = found[-1]
        found.append(theta - RATE * (SLOPE * (1 - removed) + JUMP * (theta > 0)))
    return np.stack(found)


def draw(axes: Sequence[Axes], table: pd.DataFrame) -> None:
    """The two runs on the left, differences and derivatives on the right."""
    runs, differences = axes
    runs.plot(table.step, table.full, color="#111111", label="full run")
    runs.plot(table.step, table.without, "--", color="#D55E00", label="without the instance")
    runs.axhline(0, color="#999999", lw=0.8)
    runs.set(xlabel="optimiser steps", ylabel="θ", title="one unit switches at θ = 0")
    looks = {
        "difference": ("difference of the two runs", "#D55E00", "--"),
        "mean": ("its mean over shifted starts", "#111111", "-"),
        "between": ("derivative between kinks", "#0072B2", ":"),
        "softened": ("derivative, kink softened", "#009E73", "-."),
    }
    for name, (label, colour, line) in looks.items():
        differences.plot(table.step, table[name], line, color=colour, label=label)
    differences.set(xlabel="optimiser steps", ylabel="change of θ per weight removed", title="its impulse")
    for ax in axes:
        ax.legend(fontsize=8)
