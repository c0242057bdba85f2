"""How long scores and studies take, which no short measurement tells: from a measured run, scaled by a step's time.

`seconds.csv` holds what they took in a run of profile overnight, by its sidecars; data sets without rows count nothing.
After another run: python -m fimoda_lib.run.foretold results/overnight
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from ..datasets import DATASETS
from ..paper.pieces import sidecars

MEASURED = Path(__file__).with_name("seconds.csv")
STEP, STUDIES = "step", "studies"  # rows beside those of the kinds of `status.lines`: of one model, and all studies


@cache
def seconds_there() -> dict[tuple[str, str], float]:
    """(data set, kind) -> seconds of all its pieces in the measured run."""
    with MEASURED.open(newline="") as file:
        return {(row["dataset"], row["kind"]): float(row["seconds"]) for row in csv.DictReader(file)}


def is_foretold(dataset: str, kind: str) -> bool:
    return (dataset, kind) in seconds_there()


def foretold(dataset: str, kind: str, step: float) -> float:
    """Seconds that all pieces of a kind take here.

    Args:
        step: seconds that a step of one model takes here in the data set's further training.
    """
    return seconds_there()[dataset, kind] * step / seconds_there()[dataset, STEP]


def kind_of(stem: str, note: dict[str, Any]) -> str | None:
    """What a stored piece counts as; None if its time is measured here, or it is no result."""
    first, *rest = stem.split("-")
    if first == "scores":
        training = note["specification"]["hyper"].get("further_training")
        if "lft" in rest and training:
            return f"lft, {'adam' if training['optimizer'] == 'adam' else 'sgd'}"
        return STUDIES if {"timed", "exact"} & {*rest} else "scores"
    if first == "further":
        return STUDIES if note["specification"]["removal"] == "mask" else None
    return None if first in ("final", "engine", "hidden") else STUDIES


def record(results: Path) -> list[tuple[str, str, float]]:
    """The rows of `seconds.csv` by the sidecars of a run; of scores computed twice, the last count."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    steps: dict[str, list[float]] = defaultdict(list)
    for stem, note in sorted(sidecars(results), key=lambda item: str(item[1].get("written"))):
        dataset = next((part for part in stem.split("-") if part in DATASETS), None)
        if dataset is None or "specification" not in note:
            continue
        if kind := kind_of(stem, note):
            name = stem if kind == STUDIES else stem.rpartition("-")[0]
            found[dataset, kind][name] = note["seconds"]
        elif stem.startswith("further"):
            spec = note["specification"]
            if spec["optimizer"]["name"] != "adam":
                steps[dataset].append(note["seconds"] / ((1 + len(spec["left_out"])) * spec["steps"][-1]))
    rows = [(dataset, kind, round(sum(pieces.values()), 1)) for (dataset, kind), pieces in found.items()]
    rows += [(dataset, STEP, float(f"{min(times):.3g}")) for dataset, times in steps.items()]
    return sorted(rows)


if __name__ == "__main__":
    with MEASURED.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("dataset", "kind", "seconds"), *record(Path(sys.argv[1]))])
