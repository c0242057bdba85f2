"""Counts what the tests try: faults (a run killed, a disk full), bad inputs, and the finished work that faults lost.

`conftest.py` prints the counts after every run. After a run of all tests they are compared with what the README says.
"""

import re
from collections import Counter
from pathlib import Path

README = Path(__file__).parent.parent / "docs" / "reliability.md"  # the page that makes the promise
PROMISE = re.compile(r"at least ([\d,]+) faults and ([\d,]+) bad inputs.*?lost work: (\d+) results", re.S)
tried = Counter(faults=0, bad_inputs=0, lost=0)


def fault(*, lost=0):
    """A run was killed or its disk failed; `lost` finished results had to be computed again."""
    tried.update(faults=1, lost=lost)


def bad_input(times=1):
    """Something wrong was handed in, or a damaged file."""
    tried.update(bad_inputs=times)


def summary(counts):
    return (
        f"Reliability: {counts['faults']} faults tried, {counts['bad_inputs']} bad inputs tried, "
        f"lost work: {counts['lost']} results"
    )


def promised(text):
    """The counts that a README states."""
    faults, bad_inputs, lost = (int(number.replace(",", "")) for number in PROMISE.search(text).groups())
    return dict(faults=faults, bad_inputs=bad_inputs, lost=lost)


def broken_promises(counts, promise):
    """In which the README says more than the tests did, in words."""
    found = [
        f"{name}: {counts[name]} tried, README says {promise[name]}"
        for name in ("faults", "bad_inputs")
        if counts[name] < promise[name]
    ]
    return found + (
        [f"lost: {counts['lost']}, README says {promise['lost']}"] if counts["lost"] > promise["lost"] else []
    )
