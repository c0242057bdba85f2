"""How long scores and studies take, which no short measurement tells: from a measured run, scaled by a step's time;
and how much memory a worker held.

`measured.csv` holds what they took in a run of each profile, by its sidecars; data sets without rows count nothing.
After another run, which then takes the place of the earlier one: python -m fimoda_lib.run.foretold results/laptop
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..datasets import DATASETS
from ..paper.pieces import sidecars
from ..paper.studied import STUDY

MEASURED = Path(__file__).with_name("measured.csv")
STEP, ALL_STUDIES = "step", "studies"  # rows beside those of the kinds of `status.lines`: of one model, and all studies


class Took(NamedTuple):
    """A row of `measured.csv`: seconds of all pieces, and the most MiB that a process held when one was written."""

    seconds: float
    peak: float


@cache
def there() -> dict[tuple[str, str, str], Took]:
    """(profile, data set, kind) -> what all its pieces took in the measured run."""
    with MEASURED.open(newline="") as file:
        return {
            (row["profile"], row["dataset"], row["kind"]): Took(float(row["seconds"]), float(row["peak_MiB"] or 0))
            for row in csv.DictReader(file)
        }


def is_foretold(profile: str, dataset: str, kind: str) -> bool:
    return (profile, dataset, kind) in there()


def foretold(profile: str, dataset: str, kind: str, step: float) -> float:
    """Seconds that all pieces of a kind take here.

    Args:
        step: seconds that a step of one model takes here in the data set's further training.
    """
    return there()[profile, dataset, kind].seconds * step / there()[profile, dataset, STEP].seconds


def peak_bytes(profile: str, dataset: str, kind: str) -> int:
    """The most memory that a process held for a kind of pieces, or for training; 0 where nothing tells."""
    took = there().get((profile, dataset, kind if is_foretold(profile, dataset, kind) else STEP))
    return int(2**20 * took.peak) if took else 0


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


def record(results: Path) -> list[tuple[str, str, float, float]]:
    """The rows of `measured.csv` by the sidecars of a run; of scores computed twice, the last count.

    The row of a step has the memory of all that is not counted elsewhere, training above all.
    """
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    steps: dict[str, list[float]] = defaultdict(list)
    peaks: dict[tuple[str, str], float] = defaultdict(float)
    for stem, note in sorted(sidecars(results), key=lambda item: str(item[1].get("written"))):
        dataset = next((part for part in stem.split("-") if part in DATASETS), None)
        if dataset is None or "specification" not in note:
            continue
        kind = kind_of(stem, note)
        if kind:
            name = stem if kind == ALL_STUDIES else stem.rpartition("-")[0]
            found[dataset, kind][name] = note["seconds"]
        elif stem.startswith("further"):
            spec = note["specification"]
            if spec["optimizer"]["name"] != "adam":
                steps[dataset].append(note["seconds"] / ((1 + len(spec["left_out"])) * spec["steps"][-1]))
        key = (dataset, kind or STEP)
        peaks[key] = max(peaks[key], note["peak_memory_MiB"])
    rows = [(dataset, kind, round(sum(pieces.values()), 1)) for (dataset, kind), pieces in found.items()]
    rows += [(dataset, STEP, float(f"{min(times):.3g}")) for dataset, times in steps.items()]
    return sorted((*row, peaks[row[:2]]) for row in rows)


def renew(results: Path) -> None:
    """Writes the rows of a run in place of those of its profile, which its results folder is named after."""
    kept = [(*key, took.seconds, took.peak or "") for key, took in there().items() if key[0] != results.name]
    rows = sorted([*kept, *((results.name, *row) for row in record(results))])
    with MEASURED.open("w", newline="") as file:
        header = ("profile", "dataset", "kind", "seconds", "peak_MiB")
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
