"""The rules by which the paper's claims are judged: curves -> complaints, and the numbers in words.

A curve is the similarity of one method against an ascending x (epochs of further training, seeds averaged). A rule
complains about each condition that does not hold; all bounds are in `THRESHOLDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

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
        "a loss of a tenth is several standard errors of a mean over some hundred test instances",
    ),
    "zero": Threshold(
        NEAR_ZERO,
        "a curve is near zero if its absolute similarity, averaged over all epochs, is below this",
        "the bound that goes with the paper's Figure 11; the average keeps one noisy epoch from deciding",
    ),
}
Curves = Mapping[str, pd.Series]  # method -> similarity, indexed by an ascending x; without NaN


def high_then_decay(curves: Curves) -> tuple[list[str], str]:
    """Each curve starts high and loses a good part of it."""
    complaints = []
    for method, curve in curves.items():
        first, last = curve.iloc[0], curve.iloc[-1]
        if first < THRESHOLDS["high"].value:
            complaints.append(f"{label(method)} starts at {number(first)}")
        if last > THRESHOLDS["decay"].value * first:
            complaints.append(f"{label(method)} ends at {number(last)} after {number(first)}")
    return complaints, _from_to(curves)


def persistent_but_lower(curves: Curves) -> tuple[list[str], str]:
    """Influence functions change less than Grad-Dot, and none reaches the lower first-order start."""
    complaints = []
    shown = {m: c for m, c in curves.items() if m in INFLUENCE}
    starts = [curves[m].iloc[0] for m in FIRST_ORDER if m in curves]
    for method, curve in shown.items():
        if "grad_dot" in curves and span(curve) >= span(curves["grad_dot"]):
            plain = number(span(curves["grad_dot"]))
            complaints.append(f"{label(method)} changes by {number(span(curve))}, Grad-Dot by {plain}")
        if starts and curve.max() >= min(starts):
            complaints.append(f"{label(method)} reaches {number(curve.max())}, first-order start {number(min(starts))}")
    changes = [f"{label(m)} {number(span(c))}" for m, c in curves.items() if m != "datainf"]
    numbers = [f"change: {', '.join(changes)}"] if changes else []
    numbers += [f"highest influence function {number(max(c.max() for c in shown.values()))}"] if shown else []
    numbers += [f"first-order start {number(min(starts))}"] if starts else []
    return complaints, "; ".join(numbers)


def rises_with_seeds(curves: Curves) -> tuple[list[str], str]:
    """Each curve is higher at its last x (most seeds averaged) than at its first (single seeds)."""
    rises = {m: c.iloc[-1] - c.iloc[0] for m, c in curves.items()}
    complaints = [f"{label(m)} changes by {rise:+.3f}" for m, rise in rises.items() if rise <= 0]
    least = min(rises, key=rises.get)
    x = next(iter(curves.values())).index
    risen = f"{sum(r > 0 for r in rises.values())} of {len(rises)} methods rise from {x[0]:g} to {x[-1]:g} seeds"
    return complaints, f"{risen}; smallest change {rises[least]:+.3f} ({label(least)})"


def near_zero(curves: Curves) -> tuple[list[str], str]:
    """Each curve is near zero on average; its sign does not matter, so that ups and downs do not cancel."""
    sizes = {m: c.abs().mean() for m, c in curves.items()}
    complaints = [
        f"{label(m)} is {number(size)} on average" for m, size in sizes.items() if size >= THRESHOLDS["zero"].value
    ]
    return complaints, ", ".join(f"{label(m)} {number(size)}" for m, size in sizes.items())


def span(curve: pd.Series) -> float:
    """By how much a similarity changes along its curve: largest minus smallest."""
    return float(curve.max() - curve.min())


def label(method: str) -> str:
    return LOOK[method].label if method in LOOK else method


def labels(methods: list[str]) -> str:
    return listed([label(m) for m in methods])


def number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _from_to(curves: Curves) -> str:
    return ", ".join(f"{label(m)} {number(c.iloc[0])}\u00a0→\u00a0{number(c.iloc[-1])}" for m, c in curves.items())


def listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
