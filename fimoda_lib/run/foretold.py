"""How long scores and studies take, which no short measurement tells: from a measured run, scaled by a step's time.

`seconds.csv` holds what they took in a run of each profile, by its sidecars; data sets without rows count nothing.
After another run, which then takes the place of the earlier one: python -m fimoda_lib.run.foretold results/laptop
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
from ..paper.studied import STUDY

MEASURED = Path(__file__).with_name("seconds.csv")
STEP, ALL_STUDIES = "step", "studies"  # rows beside those of the kinds of `status.lines`: of one model, and all studies


@cache
def seconds_there() -> dict[tuple[str, str, str], float]:
    """(profile, data set, kind) -> seconds of all its pieces in the measured run."""
    with MEASURED.open(newline="") as file:
        return {(row["profile"], row["dataset"], row["kind"]): float(row["seconds"]) for row in csv.DictReader(file)}


def is_foretold(profile: str, dataset: str, kind: str) -> bool:
    return (profile, dataset, kind) in seconds_there()


def foretold(profile: str, dataset: str, kind: str, step: float) -> float:
    """Seconds that all pieces of a kind take here.

    Args:
        step: seconds that a step of one model takes here in the data set's further training.
    """
    return seconds_there()[profile, dataset, kind] * step / seconds_there()[profile, dataset, STEP]


def kind_of(stem: str, note: dict[str, Any]) -> str | None:
    """What a stored piece counts as; None if its time is measured here, or it is no result."""
    first, *rest = stem.split("-")
    if first == "scores":
        training = note["specification"]["hyper"].get("further_training")
        if "lft" in rest and training:
            return f"lft, {'adam' if training['optimizer'] == 'adam' else 'sgd'}"
        return ALL_STUDIES if {"timed", "exact"} & {*rest} else "scores"
    if first == "further":
        return ALL_STUDIES if note["specification"]["removal"] == "mask" else None
    return None if first in ("final", "engine", "hidden", STUDY) else ALL_STUDIES


def record(results: Path) -> list[tuple[str, str, float]]:
    """The rows of `seconds.csv` by the sidecars of a run; of scores computed twice, the last count."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    steps: dict[str, list[float]] = defaultdict(list)
    for stem, note in sorted(sidecars(results), key=lambda item: str(item[1].get("written"))):
        dataset = next((part for part in stem.split("-") if part in DATASETS), None)
        if dataset is None or "specification" not in note:
            continue
        if kind := kind_of(stem, note):
            name = stem if kind == ALL_STUDIES else stem.rpartition("-")[0]
            found[dataset, kind][name] = note["seconds"]
        elif stem.startswith("further"):
            spec = note["specification"]
            if spec["optimizer"]["name"] != "adam":
                steps[dataset].append(note["seconds"] / ((1 + len(spec["left_out"])) * spec["steps"][-1]))
    rows = [(dataset, kind, round(sum(pieces.values()), 1)) for (dataset, kind), pieces in found.items()]
    rows += [(dataset, STEP, float(f"{min(times):.3g}")) for dataset, times in steps.items()]
    return sorted(rows)


def renew(results: Path) -> None:
    """Writes the rows of a run in place of those of its profile, which its results folder is named after."""
    kept = [(*key, seconds) for key, seconds in seconds_there().items() if key[0] != results.name]
    rows = sorted([*kept, *((results.name, *row) for row in record(results))])
    with MEASURED.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("profile", "dataset", "kind", "seconds"), *rows])


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
