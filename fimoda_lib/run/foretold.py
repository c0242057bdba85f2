"""How long scores and studies take, which no short measurement tells: from a measured run, scaled by a trial's time;
and how much memory a worker held.

`measured.csv` holds what they took in a run of each profile, by its sidecars; data sets without rows count nothing. A
trial is a few steps, not compiled: the same on both machines, it tells how much faster one is. Old runs have none.
After another run, which then takes the place of the earlier one: python -m fimoda_lib.run.foretold results/laptop
"""

from __future__ import annotations

import csv
import os
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..datasets import DATASETS
from ..devices import choose_device
from ..experiments.panel import Panel
from ..experiments.paper_settings import Training
from ..paper.pieces import sidecars
from ..paper.studied import STUDY
from ..tasks import parameters_of
from ..training.engines import Engine, faster, measure
from .command import MOST_JOBS
from .shards import ALL_STUDIES
from .spread import threads_each

MEASURED = Path(__file__).with_name("measured.csv")
STEP, TRIAL = "step", "trial"  # rows beside those of kinds of pieces: a step of one model in the run, and in a trial


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
        step: seconds that a step of one model takes here in a trial of the data set's further training.
    """
    rows = there()
    on_trial = rows.get((profile, dataset, TRIAL)) or rows[profile, dataset, STEP]
    return rows[profile, dataset, kind].seconds * step / on_trial.seconds


def gain(profile: str, dataset: str) -> float:
    """How long a step takes in a long run, in units of a trial's: it is compiled there. 1 where nothing tells."""
    run, on_trial = (there().get((profile, dataset, kind)) for kind in (STEP, TRIAL))
    return run.seconds / on_trial.seconds if run and on_trial else 1.0


def trial(panel: Panel, training: Training, threads: int) -> Engine:
    """The faster engine and its seconds for a step of one model, by a few steps with so many threads."""
    task, before = panel.task, torch.get_num_threads()
    arguments = (training.rule, training.batch_size, panel.settings.removal, choose_device(None))
    torch.set_num_threads(threads)
    try:
        return faster(measure(task, parameters_of(task.model), *arguments).seconds_per_step)
    finally:
        torch.set_num_threads(before)


def peak_bytes(profile: str, dataset: str, kind: str) -> int:
    """The most memory that a process held for a kind of pieces, or for training; 0 where nothing tells."""
    took = there().get((profile, dataset, kind)) or there().get((profile, dataset, STEP))
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


def trials(results: Path, datasets: set[str]) -> list[tuple[str, str, float, float]]:
    """Rows of `TRIAL`, measured now: on the machine of the run, while nothing else is at work."""
    found, threads = [], threads_each(min(os.cpu_count() or 1, MOST_JOBS))
    for dataset in sorted(datasets):
        panel = Panel(dataset, results.name, results=results, compute=False)
        seconds = trial(panel, panel.settings.further, threads).seconds
        found.append((dataset, TRIAL, float(f"{seconds:.3g}"), 0.0))
    return found


def renew(results: Path) -> None:
    """Writes the rows of a run in place of those of its profile, which its results folder is named after."""
    kept = [(*key, took.seconds, took.peak or "") for key, took in there().items() if key[0] != results.name]
    found = record(results)
    found += trials(results, {dataset for dataset, *_ in found})
    rows = sorted([*kept, *((results.name, *row[:-1], row[-1] or "") for row in found)])
    with MEASURED.open("w", newline="") as file:
        header = ("profile", "dataset", "kind", "seconds", "peak_MiB")
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
