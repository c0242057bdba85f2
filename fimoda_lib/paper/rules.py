"""The rules by which the paper's claims are judged: curves -> conditions, and the numbers in words.

A curve is the similarity of one method against an ascending x (epochs of further training, seeds averaged), with half
the width of its interval. A condition holds, fails, or cannot be told because its margin is within the interval. The
bounds are ours, not the paper's: all of them are in `THRESHOLDS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from ..intervals import RESAMPLES
from ..plots.look import LOOK
from ..plots.retraining import NEAR_ZERO

FIRST_ORDER = ("grad_dot", "datainf")
INFLUENCE = ("cg", "lissa", "ekfac")


@dataclass(frozen=True)
class Threshold:
    """A bound that a verdict depends on, and why it is what it is."""

    value: float
    meaning: str
    reason: str


THRESHOLDS = {
    "high": Threshold(
        0.5,
        "a curve starts high if its first similarity is at least this",
        "half of the largest possible similarity",
    ),
    "decay": Threshold(
        0.9,
        "a curve decays if its last similarity is at most this share of its first",
        "a convention: a tenth is visible in a figure; whether it is more than noise, its interval tells",
    ),
    "zero": Threshold(
        NEAR_ZERO,
        "a curve is near zero if its absolute similarity, averaged over all epochs, is below this",
        "the bound that goes with the paper's Figure 11; the average keeps one noisy epoch from deciding",
    ),
}
NORMAL = 1.96  # standard errors to either side for 95 %
UNSURE = 1 + NORMAL / math.sqrt(2 * (RESAMPLES - 1))  # so much wider may an interval be that few draws give too narrow


@dataclass(frozen=True)
class Point:
    """A similarity, and half the width of its interval."""

    value: float
    half: float


@dataclass(frozen=True)
class Curve:
    """The similarities of one method [x], without NaN.

    Args:
        x: ascending.
        half: half the widths of their intervals, [x].
        rise_half: half the width of the interval of last minus first, measured on the same test instances, if known.
    """

    x: np.ndarray
    value: np.ndarray
    half: np.ndarray
    rise_half: float | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def first(self) -> Point:
        return self._at(0)

    @property
    def last(self) -> Point:
        return self._at(-1)

    @property
    def top(self) -> Point:
        return self._at(self.value.argmax())

    @property
    def change(self) -> Point:
        """Its largest minus its smallest similarity."""
        bottom = self._at(self.value.argmin())
        return Point(self.top.value - bottom.value, _both(self.top.half, bottom.half))

    def _at(self, k: int) -> Point:
        return Point(float(self.value[k]), float(self.half[k]))


Curves = Mapping[str, Curve]  # by method


@dataclass(frozen=True)
class Condition:
    """One thing that a claim asks for.

    Args:
        name: the same whatever the numbers are.
        margin: by how much it holds; negative where it fails.
        half: half the width of the margin's interval, as if its parts were independent: too wide for curves that were
            measured on the same runs, for which `paired_halves` has the right one.
        words: what speaks against it.
    """

    name: str
    margin: float
    half: float
    words: str

    @property
    def holds(self) -> bool | None:
        """None if the margin's interval has both signs, or would have if its width were a little off."""
        half = self.half * UNSURE
        if self.margin + half <= 0:
            return False
        return True if self.margin - half > 0 else None


Judged = tuple[list[Condition], str]


def high_then_decay(curves: Curves) -> Judged:
    """Each curve starts high and loses a good part of it."""
    found, share = [], THRESHOLDS["decay"].value
    for method, curve in curves.items():
        first, last = curve.first, curve.last
        start, end = number(first.value), number(last.value)
        margin, words = first.value - THRESHOLDS["high"].value, f"{label(method)} starts at {start}"
        found.append(Condition(f"{method} starts high", margin, first.half, words))
        margin, half = share * first.value - last.value, _both(share * first.half, last.half)
        found.append(Condition(f"{method} decays", margin, half, f"{label(method)} ends at {end} after {start}"))
    return found, _from_to(curves)


def persistent_but_lower(curves: Curves) -> Judged:
    """Influence functions change less than Grad-Dot, and none reaches the lower first-order start."""
    found = []
    influence = {m: c for m, c in curves.items() if m in INFLUENCE}
    starts = [curves[m].first for m in FIRST_ORDER if m in curves]
    start = min(starts, key=lambda point: point.value, default=None)
    for method, curve in influence.items():
        change, top = curve.change, curve.top
        if "grad_dot" in curves:
            plain = curves["grad_dot"].change
            words = f"{label(method)} changes by {number(change.value)}, Grad-Dot by {number(plain.value)}"
            half = _both(change.half, plain.half)
            found.append(Condition(f"{method} is more stable", plain.value - change.value, half, words))
        if start is not None:
            words = f"{label(method)} reaches {number(top.value)}, first-order start {number(start.value)}"
            half = _both(top.half, start.half)
            found.append(Condition(f"{method} stays below", start.value - top.value, half, words))
    changes = [f"{label(m)} {number(c.change.value)}" for m, c in curves.items() if m != "datainf"]
    numbers = [f"change: {', '.join(changes)}"] if changes else []
    if influence:
        numbers.append(f"highest influence function {number(max(c.top.value for c in influence.values()))}")
    numbers += [f"first-order start {number(start.value)}"] if start is not None else []
    return found, "; ".join(numbers)


def rises_with_seeds(curves: Curves) -> Judged:
    """Each curve is higher at its last x (most seeds averaged) than at its first (single seeds)."""
    rises = {m: c.last.value - c.first.value for m, c in curves.items()}
    found = []
    for method, rise in rises.items():
        curve = curves[method]
        half = _both(curve.first.half, curve.last.half) if curve.rise_half is None else curve.rise_half
        found.append(Condition(f"{method} rises", rise, half, f"{label(method)} changes by {signed(rise)}"))
    least = min(rises, key=rises.get)
    x = next(iter(curves.values())).x
    risen = f"{sum(r > 0 for r in rises.values())} of {len(rises)} methods rise from {x[0]:g} to {x[-1]:g} seeds"
    return found, f"{risen}; smallest change {signed(rises[least])} ({label(least)})"


def near_zero(curves: Curves) -> Judged:
    """Each curve is near zero on average; its sign does not matter, so that ups and downs do not cancel."""
    sizes = {m: float(np.abs(c.value).mean()) for m, c in curves.items()}
    bound = THRESHOLDS["zero"].value
    found = [
        Condition(f"{m} is near zero", bound - size, curves[m].half.mean(), f"{label(m)} is {number(size)} on average")
        for m, size in sizes.items()
    ]
    return found, ", ".join(f"{label(m)} {number(size)}" for m, size in sizes.items())


def paired_halves(check: Callable[[Curves], Judged], drawn: Mapping[str, xr.DataArray]) -> dict[str, float]:
    """Half the width of the interval of each condition's margin, by its name, of curves measured on the same runs.

    The rule is applied to every draw of the curves, so that what they have in common cancels; the interval is normal,
    with the standard deviation over draws.

    Args:
        check: a rule of this module.
        drawn: method -> similarities [draw, step], as `intervals.draws` gives them.
    """
    plain, margins = {m: (a.step.values, a.values, np.zeros(a.sizes["step"])) for m, a in drawn.items()}, []
    for r in range(min((a.sizes["draw"] for a in drawn.values()), default=0)):
        curves = {m: Curve(steps, values[r], exact) for m, (steps, values, exact) in plain.items()}
        margins.append({c.name: c.margin for c in check(curves)[0]})
    return (NORMAL * pd.DataFrame(margins).std(ddof=1)).to_dict() if margins else {}


def _both(one: float, other: float) -> float:
    return float((one**2 + other**2) ** 0.5)


def label(method: str) -> str:
    return LOOK[method].label if method in LOOK else method


def labels(methods: list[str]) -> str:
    return listed([label(m) for m in methods])


def number(value: float, places: int = 2) -> str:
    zero = f"{0:.{places}f}"
    return f"{value:.{places}f}".replace(f"-{zero}", zero).replace("-", "−")


def written(value: float, places: int = 2) -> str:
    """.68, −.07, 1.00."""
    return re.sub(r"(?<!\d)0\.", ".", number(value, places))


def signed(change: float) -> str:
    """+0.002, −0.013; nothing that rounds to zero has a sign."""
    text = f"{change:+.3f}"
    return "0.000" if text.endswith("0.000") else text.replace("-", "−")


def _from_to(curves: Curves) -> str:
    ends = {m: (number(c.first.value), number(c.last.value)) for m, c in curves.items()}
    return ", ".join(f"{label(m)} {first}\u00a0→\u00a0{last}" for m, (first, last) in ends.items())


def listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
