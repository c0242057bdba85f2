"""What LFT was meant to reach, set before the figures were drawn, beside what it reaches in them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..methods import METHODS
from .claims import read_table, title
from .rules import written

AIMS = {  # figure -> data set -> similarity at every horizon
    "fig02plus": {"concrete": 0.85, "energy": 0.92, "fico": 0.98, "folktables": 0.98, "cifar10": 0.92, "sst2": 0.95},
    "fig04plus": {"concrete": 0.75, "energy": 0.75, "fico": 0.97, "folktables": 0.97},
}
STRETCH = 0.95  # of the upper end of the noise ceiling's interval: what would have been best


def aims(folder: Path | str) -> str:
    """A line for each panel: the aim, LFT's lowest similarity, and at which epochs it is below the aim, below what
    would have been best, and below a published method."""
    lines = [
        f"| LFT | aim | lowest | epochs below the aim | below {STRETCH:.0%} of the ceiling | "
        "below a published method |",
        "|---|---|---|---|---|---|",
    ]
    for figure, wanted in AIMS.items():
        table = read_table(folder, figure)
        for dataset, aim in wanted.items():
            means = table[table["dataset"] == dataset].pivot(index="epoch", columns="method")
            found, most = means["mean"]["lft"].dropna(), means["high"]["ceiling"]
            published = means["mean"][[m for m in METHODS if m != "lft" and m in means["mean"]]].max(axis=1)
            name = title(dataset) + (", Adam" if figure == "fig04plus" else "")
            below = [missed(found < level) for level in (aim, STRETCH * most[found.index], published[found.index])]
            lines.append(f"| {name} | {written(aim)} | {written(found.min())} | {' | '.join(below)} |")
    return "\n".join(lines) + "\n"


def missed(below: pd.Series) -> str:
    """How many of the epochs, the first and the last of them; "none"."""
    if not below.any():
        return "none"
    epochs = below.index[below]
    between = f"{epochs[0]:.3g}" if len(epochs) == 1 else f"{epochs[0]:.3g} to {epochs[-1]:.3g}"
    return f"{len(epochs)} of {len(below)}: {between}"
