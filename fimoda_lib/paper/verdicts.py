"""A claim of the paper, how it is judged on one data set, and what comes of it on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .rules import Curves, Judged, labels, listed, number

REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"
CANNOT_TELL, NOT_COMPARABLE = "cannot be told", "not comparable"  # within the interval; not the paper's data or model
IN_PART = "reproduced in part"  # of a claim as a whole: it holds on some data sets and not on others
VERDICTS = (REPRODUCED, IN_PART, NOT_REPRODUCED, CANNOT_TELL, NOT_COMPARABLE, NOT_RUN)
NOT_RUN_IN = {"e": ("lissa_h",), "f": ("cg", "lissa_h")}  # panel -> methods that are not run at the paper's size


@dataclass(frozen=True)
class Finding:
    """What a rule finds in one set of curves.

    Args:
        verdict: one of `VERDICTS` but IN_PART.
        numbers: the numbers it was judged by, in words.
        reason: one sentence that says how the verdict follows from them.
    """

    verdict: str
    numbers: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        source: where the paper says or shows it.
        figure: name of the figure whose numbers it is judged by.
        rule: how it is judged, in one sentence.
        methods: the methods that need numbers; a verdict on fewer could only be "not reproduced".
        check: curves of these methods (only those that there are) -> conditions and the numbers in words.
        tabular: whether it is about tabular data only.
        curvature: whether it is about what curvature adds, so that a sample of the paper's is another experiment.
        noisy: whether its gold standard is, so that the numbers say what a perfect method would reach.
    """

    number: int
    statement: str
    source: str
    figure: str
    rule: str
    methods: tuple[str, ...]
    check: Callable[[Curves], Judged]
    tabular: bool = False
    curvature: bool = False
    noisy: bool = False

    def judge(self, curves: Curves, panel: str = "a", halves: Mapping[str, float] | None = None) -> Finding:
        """The finding for one data set; `panel` is the letter that it fills, `halves` are those of `paired_halves`."""
        needed = [m for m in self.methods if m not in NOT_RUN_IN.get(panel, ())]
        known = {m: curves[m] for m in needed if m in curves and len(curves[m]) > 1}  # one point shows no shape
        missing = [m for m in needed if m not in known]
        if not known:
            return Finding(NOT_RUN, "", "There are no numbers yet.")
        conditions, numbers = self.check(known)
        if self.noisy and "ceiling" in curves:
            numbers += f"; a perfect method about {number(curves['ceiling'].value.mean())}"
        conditions = [replace(c, half=(halves or {}).get(c.name, c.half)) for c in conditions]
        if broken := [c.words for c in conditions if c.holds is False]:
            return Finding(NOT_REPRODUCED, numbers, f"{'; '.join(broken)}.")
        if missing:
            return Finding(NOT_RUN, numbers, f"No numbers for {labels(missing)} (not run, or diverged).")
        if open_ := [c.words for c in conditions if c.holds is None]:
            return Finding(CANNOT_TELL, numbers, f"Within its interval: {'; '.join(open_)}.")
        return Finding(REPRODUCED, numbers, "Every condition holds, beyond its interval.")


@dataclass(frozen=True)
class Result:
    """A claim on one data set: ours, and the same rule on the published numbers (None where there are none)."""

    dataset: str
    title: str
    ours: Finding
    published: Finding | None
    published_title: str = ""


@dataclass(frozen=True)
class Outcome:
    """A claim on all data sets, and its overall verdict: reproduced only if it is on each that can be compared."""

    claim: Claim
    results: tuple[Result, ...]

    @property
    def verdict(self) -> str:
        verdicts = {r.ours.verdict for r in self.results} - {NOT_RUN, NOT_COMPARABLE}
        if len(verdicts) > 1:
            return IN_PART if REPRODUCED in verdicts else NOT_REPRODUCED
        return verdicts.pop() if verdicts else NOT_COMPARABLE if self._titles(NOT_COMPARABLE) else NOT_RUN

    @property
    def summary(self) -> str:
        """On which data sets it holds, in words; first, where the published numbers themselves do not fit the rule."""
        odd = [r.published_title for r in self.results if r.published and r.published.verdict == NOT_REPRODUCED]
        words = {
            f"by this rule the published numbers themselves do not show it on {listed(odd)}": odd,
            "holds on": self._titles(REPRODUCED),
            "does not hold on": self._titles(NOT_REPRODUCED),
            "cannot be told on": self._titles(CANNOT_TELL),
            "not comparable on": self._titles(NOT_COMPARABLE),
            "not run on": self._titles(NOT_RUN),
        }
        return "; ".join(k if titles is odd else f"{k} {listed(titles)}" for k, titles in words.items() if titles)

    def _titles(self, verdict: str) -> list[str]:
        return [r.title for r in self.results if r.ours.verdict == verdict]
