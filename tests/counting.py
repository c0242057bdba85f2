"""Counts what the tests try: faults (a run killed, a disk full), bad inputs, models; and finished work that was lost.

`conftest.py` prints the counts after every run. After a run of all tests they are compared with what `README` says.
"""

import re
from collections import Counter
from pathlib import Path

README = Path(__file__).parent.parent / "docs" / "reliability.md"  # the page that makes the promise
WORDS = {  # what is counted, and the words that follow its number
    "faults": "faults",
    "bad_inputs": "bad inputs",
    "layers": "layers",
    "architectures": "random architectures",
    "noise": "kinds of noise",
    "refused": "refused models",
}
LOST = re.compile(r"lost work: (\d+) results")
tried = Counter({name: 0 for name in (*WORDS, "lost")})


def fault(*, lost=0):
    """A run was killed or its disk failed; `lost` finished results had to be computed again."""
    tried.update(faults=1, lost=lost)


def bad_input(times=1):
    """Something wrong was handed in, or a damaged file."""
    tried.update(bad_inputs=times)


def model(kind):
    """A model is right: a layer, an architecture, or a noise of another kind; or one is refused that cannot be."""
    assert kind in WORDS
    tried[kind] += 1


def summary(counts):
    numbers = [f"{counts[name]} {words}" for name, words in WORDS.items()]
    return f"Reliability: tried {', '.join(numbers)}; lost work: {counts['lost']} results"


def promised(text):
    """The counts that a README states."""
    text = " ".join(text.split())
    found = {name: re.search(rf"([\d,]+) {words}", text) for name, words in WORDS.items()}
    numbers = {name: int(match[1].replace(",", "")) for name, match in found.items() if match}
    return numbers | {"lost": int(LOST.search(text)[1])}


def broken_promises(counts, promise):
    """In which the README says more than the tests did, in words."""
    found = [
        f"{name}: {counts[name]} tried, README says {promise[name]}"
        for name in WORDS
        if name in promise and counts[name] < promise[name]
    ]
    return found + (
        [f"lost: {counts['lost']}, README says {promise['lost']}"] if counts["lost"] > promise["lost"] else []
    )
