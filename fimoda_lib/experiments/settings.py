"""The settings that a data set runs with under a profile, and which data set fills which panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..checks import known
from ..datasets import DATASETS, DataFileNotFound, available, require
from ..tasks import Task
from ..training.minibatches import steps_per_epoch
from .paper_settings import EXPERIMENTS, HEAVY, PANELS, SMALL, Experiment, Training, reference_left_out
from .profiles import get_profile

HORIZONS = 60  # further training of more epochs is evaluated at the ends of about so many, evenly on a log axis


@dataclass(frozen=True)
class Settings:
    """What one data set runs with under one profile: everything a notebook needs, by value."""

    final: Training
    further: Training
    seeds: tuple[int, ...]
    study_seeds: int
    retrain_seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    test: tuple[int, ...]
    removal: str
    curvature: tuple[int, ...] | None
    study_curvature: tuple[int, ...] | None
    without: tuple[str, ...]
    damping_multiples: tuple[float, ...]
    damping: float | None
    lissa_scale: float | None
    lissa_depth: int
    lissa_h_depth: int
    group_lissa_h_depth: int
    cg_tolerance: float | None
    lft_segments: int
    lft_products: int | None

    @property
    def seeds_of_studies(self) -> tuple[int, ...]:
        return self.seeds[: self.study_seeds]


def log_epochs(epochs: int, count: int = 14) -> list[int]:
    """About so many epochs from 1 to the last, evenly on a log axis; fewer where there are no more."""
    return sorted({round(e) for e in np.geomspace(1, epochs, count)})


def counted_in_steps(dataset: str) -> bool:
    """Whether a data set's further training is counted in optimiser steps, not in epochs."""
    return all(training.evaluate is not None for training in EXPERIMENTS[dataset].further.values())


def experiment_of(dataset: str, profile: str) -> Experiment:
    """The settings of a data set at the size of a profile.

    Raises:
        ValueError: unknown profile or data set.
    """
    experiment = EXPERIMENTS[known(dataset, EXPERIMENTS, "data set")]
    return experiment if get_profile(profile).full_size else SMALL.get(dataset, experiment)


def training_rows(experiment: Experiment) -> list[int] | None:
    """Which training instances of the data set an experiment uses, ascending; None for all of them."""
    if experiment.n_train is None:
        return None
    return including(reference_left_out()[experiment.left_out], experiment.n_all, experiment.n_train)


def settings(task: Task, profile: str, optimizer: str = "sgd") -> Settings:
    """The settings of a task under a profile.

    Args:
        optimizer: of further training; "sgd", the paper's first, stands for the only one where a data set has one.

    Raises:
        ValueError: unknown profile, data set or optimiser.
    """
    chosen, experiment = get_profile(profile), experiment_of(task.name, profile)
    only = next(iter(experiment.further)) if len(experiment.further) == 1 and optimizer == "sgd" else optimizer
    products = experiment.lft_products
    further = experiment.further[known(only, experiment.further, "optimizer")].scaled(chosen.further)
    per_epoch = steps_per_epoch(task.n_train, further.batch_size)
    if further.evaluate is None and further.epochs > HORIZONS:
        further = replace(further, evaluate=tuple(per_epoch * e for e in log_epochs(further.epochs, HORIZONS)))
    found = candidates(experiment, task.n_train)
    spread = max(len(found) // chosen.left_out, 1)
    left_out = tuple(found[::spread][: chosen.left_out])

    def curvature(many: int) -> tuple[int, ...] | None:
        size = experiment.curvature and min(experiment.curvature, chosen.curvature or experiment.curvature)
        size = size or (chosen.of_many if task.n_train > many else task.n_train)
        return tuple(including(left_out, task.n_train, size)) if size < task.n_train else None

    return Settings(
        final=experiment.final.scaled(chosen.final),
        further=further.within(further.epochs * per_epoch),
        seeds=tuple(range(chosen.n_seeds(only, task.name))),
        study_seeds=chosen.n_study_seeds(task.name),
        retrain_seeds=tuple(range(chosen.retrain_seeds)),
        left_out=left_out,
        test=tuple(range(min(experiment.n_test or task.n_test, chosen.n_test or task.n_test, task.n_test))),
        removal=experiment.removal,
        curvature=curvature(chosen.many),
        study_curvature=curvature(chosen.study_many or chosen.many),
        without=experiment.without,
        damping_multiples=experiment.damping_multiples,
        damping=experiment.damping,
        lissa_scale=experiment.lissa_scale,
        lissa_depth=chosen.lissa_depth,
        lissa_h_depth=chosen.depth_of_lissa_h(task.name),
        group_lissa_h_depth=chosen.depth_of_lissa_h(task.name, groups=True),
        cg_tolerance=chosen.cg_tolerance,
        lft_segments=experiment.lft_segments,
        lft_products=products and max(round(products * chosen.further), chosen.least_products),
    )


def candidates(experiment: Experiment, n: int) -> list[int]:
    """The instances to leave out, as positions among the n training instances that the experiment uses."""
    if experiment.left_out:
        published, rows = reference_left_out()[experiment.left_out], training_rows(experiment)
        return published if rows is None else [rows.index(i) for i in published]
    k = experiment.n_left_out
    # Shifted by one more each in large data: where classes take turns, all would be of one class otherwise.
    shift = 1 if n >= k * k else 0
    return [j * n // k + j * shift for j in range(k)] if n >= k else list(range(n))


def including(chosen: Sequence[int], n: int, size: int) -> list[int]:
    """`size` of n instances, ascending: the chosen ones, and others spread evenly."""
    others = np.setdiff1d(np.arange(n), chosen)
    more = max(size - len(chosen), 0)
    return sorted([*chosen, *others[np.arange(more) * len(others) // max(more, 1)].tolist()])


def choose_dataset(panel: str, profile: str, data_dir: Path | str | None = None) -> str:
    """The data set that fills one of the paper's panels on this machine under this profile.

    Profiles that may use embedded data take what is here without a network; the others try the paper's data first,
    downloading it if need be, and then a stand-in of the same kind.

    Raises:
        DataFileNotFound: none can be had; the message is that of the paper's own data set.
    """
    names = PANELS[known(panel, PANELS, "panel")]
    if get_profile(profile).embedded:
        return next(name for name in names if available(name, data_dir) and name not in HEAVY)
    real = [name for name in names if not DATASETS[name].embedded]
    for name in real[:-1]:
        try:
            require(name, data_dir)
        except DataFileNotFound:
            continue
        return name
    require(real[-1], data_dir)
    return real[-1]


def panel_title(dataset: str, profile: str = "paper") -> str:
    """A panel's title; a stand-in names what it stands in for, and a small model in place of the paper's says so."""
    entry = DATASETS[dataset]
    if entry.stand_in_for:
        return f"{entry.title} (stands in for {entry.stand_in_for.split(' (')[0]})"
    return f"{entry.title} (small model)" if has_small_model(dataset, profile) else entry.title


def has_small_model(dataset: str, profile: str) -> bool:
    """Whether a smaller model takes the place of the paper's."""
    return dataset in SMALL and not get_profile(profile).full_size


def panel_letter(dataset: str) -> str:
    """The letter of the paper's panel that a data set fills, itself or as a stand-in."""
    return next(letter for letter, names in zip("abcdef", PANELS.values(), strict=True) if dataset in names)
