"""The paper as data: each data set's settings, the profiles that scale them, and which panel shows what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

from .datasets import DATASETS, DataFileNotFound, available, load_task
from .tasks import Task


@dataclass(frozen=True)
class Training:
    """One training phase: what `train_final_model` and `further_train` take."""

    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int = 128

    def scaled(self, factor: float) -> Training:
        return replace(self, epochs=max(round(self.epochs * factor), 1))


@dataclass(frozen=True)
class Experiment:
    """The paper's settings for one data set.

    Args:
        dataset: name in `DATASETS`.
        final: how the final model is trained.
        further: optimiser name -> further training.
        n_test: the first so many test instances are explained (None: all).
        damping_multiples: dampings of CG and LiSSA as multiples of the mean squared gradient entry; the paper plots the
            largest.
        left_out: data set whose published left-out instances are used; None spreads as many evenly.
        lft_segments: how many times LFT takes gradients and curvature anew along its run: where further training moves
            the model far.
    """

    dataset: str
    final: Training
    further: dict[str, Training]
    n_test: int | None = None
    damping_multiples: tuple[float, ...] = (0.1, 1, 10, 100)
    left_out: str | None = None
    lft_segments: int = 1


def _further(epochs: int, sgd: float, adam: float) -> dict[str, Training]:
    return {"sgd": Training("sgd", sgd, epochs), "adam": Training("adam", adam, epochs)}


EXPERIMENTS: dict[str, Experiment] = {
    e.dataset: e
    for e in (
        Experiment(
            "concrete", Training("sgd", 0.3, 1000), _further(500, 3e-2, 1e-4), left_out="concrete", lft_segments=5
        ),
        Experiment(
            "energy",
            Training("sgd", 0.3, 1000),
            _further(500, 3e-2, 1e-4),
            left_out="energy",
            lft_segments=5,
            damping_multiples=(1, 10, 100, 1000),
        ),
        Experiment("fico", Training("sgd", 1e-3, 1000), _further(200, 1e-4, 1e-6), n_test=100, left_out="fico"),
        Experiment(
            "folktables", Training("sgd", 1e-2, 100), _further(25, 1e-4, 1e-6), n_test=100, left_out="folktables"
        ),
        # Adult takes the settings and the left-out instances of Folktables, which it stands in for.
        Experiment("adult", Training("sgd", 1e-2, 100), _further(25, 1e-4, 1e-6), n_test=100, left_out="folktables"),
        # Data inside scikit-learn. Learning rates of final training: the best of {1e-3, 3e-3, ..., 0.3} on held-out
        # training instances (`choose_learning_rate`); further training a tenth of it, as for Concrete and Energy.
        Experiment("diabetes", Training("sgd", 1e-3, 1000), _further(500, 1e-4, 1e-5)),
        Experiment("wine", Training("sgd", 0.3, 1000), _further(500, 3e-2, 1e-4)),
        Experiment("breast_cancer", Training("sgd", 0.03, 1000), _further(200, 3e-3, 1e-5), n_test=100),
        Experiment("digits", Training("sgd", 0.3, 100), _further(50, 3e-2, 1e-4), n_test=100),
    )
}

# Which data sets can fill the panels (a) to (d), best first.
PANELS: dict[str, tuple[str, ...]] = {
    "concrete": ("concrete", "diabetes"),
    "energy": ("energy", "wine"),
    "fico": ("fico", "breast_cancer"),
    "folktables": ("folktables", "adult", "digits"),
}


@dataclass(frozen=True)
class Profile:
    """How much of the paper's settings to run.

    Args:
        seeds: optimiser -> data set -> number of seeds; "*" for the data sets not named.
        left_out: at most so many left-out instances.
        final, further: factors on the numbers of epochs.
        embedded: whether data that ships with scikit-learn may stand in; then nothing is downloaded.
        lissa_depth: recursion depth of LiSSA (the paper's is 5000).
        n_test: at most so many test instances.
        cg_tolerance: relative residual at which CG stops; None takes the method's own.
        lissa_h_depth: the same for LiSSA-H, whose steps cost a hundred times more.
    """

    name: str
    description: str
    seeds: dict[str, dict[str, int]]
    left_out: int = 100
    final: float = 1.0
    further: float = 1.0
    embedded: bool = False
    lissa_depth: int = 5000
    lissa_h_depth: int = 5000
    n_test: int | None = None
    cg_tolerance: float | None = None

    def n_seeds(self, optimizer: str, dataset: str) -> int:
        counts = self.seeds[optimizer]
        return counts.get(dataset, counts["*"])


_LAPTOP_SEEDS = {"sgd": {"concrete": 10, "energy": 10, "*": 3}, "adam": {"concrete": 3, "energy": 3, "*": 2}}
PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            "smoke",
            "the smallest sizes that pass through every line: for tests",
            {"sgd": {"*": 2}, "adam": {"concrete": 3, "energy": 3, "*": 2}},
            left_out=4,
            final=0.02,
            further=0.01,
            embedded=True,
            lissa_depth=50,
            n_test=8,
            cg_tolerance=0.1,
            lissa_h_depth=20,
        ),
        Profile(
            "quick",
            "20 left-out instances, 5 seeds, a fifth of the epochs, data that ships with scikit-learn in "
            "place of what is not on this machine: a few minutes on 2 cores",
            {"sgd": {"*": 5}, "adam": {"*": 5}},
            left_out=20,
            further=0.2,
            final=0.5,
            embedded=True,
            lissa_depth=300,
            lissa_h_depth=100,
            n_test=40,
            cg_tolerance=1e-3,
        ),
        Profile(
            "laptop",
            "the paper's data sets, left-out instances and epochs with fewer seeds (2 to 10)",
            _LAPTOP_SEEDS,
            lissa_h_depth=1000,
        ),
        Profile(
            "paper", "everything as in the paper, 100 seeds: for a GPU box", {"sgd": {"*": 100}, "adam": {"*": 100}}
        ),
    )
}


@dataclass(frozen=True)
class Settings:
    """What one data set runs with under one profile: everything a notebook needs, by value."""

    dataset: str
    title: str
    final: Training
    further: Training
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    test: tuple[int, ...]
    damping_multiples: tuple[float, ...]
    lissa_depth: int
    lissa_h_depth: int
    cg_tolerance: float | None
    lft_segments: int


def settings(task: Task, profile: str, optimizer: str = "sgd") -> Settings:
    """The settings of a task under a profile.

    Raises:
        ValueError: unknown profile, data set or optimiser.
    """
    chosen, experiment = get_profile(profile), EXPERIMENTS[_known(task.name, EXPERIMENTS, "data set")]
    further = experiment.further[_known(optimizer, experiment.further, "optimizer")]
    published = reference_left_out()[experiment.left_out] if experiment.left_out else None
    candidates = (
        published or [k * task.n_train // 100 for k in range(100)] if task.n_train >= 100 else range(task.n_train)
    )
    spread = max(len(candidates) // chosen.left_out, 1)
    return Settings(
        dataset=task.name,
        title=panel_title(task.name),
        final=experiment.final.scaled(chosen.final),
        further=further.scaled(chosen.further),
        seeds=tuple(range(chosen.n_seeds(optimizer, task.name))),
        left_out=tuple(candidates[::spread][: chosen.left_out]),
        test=tuple(range(min(experiment.n_test or task.n_test, chosen.n_test or task.n_test, task.n_test))),
        damping_multiples=experiment.damping_multiples,
        lissa_depth=chosen.lissa_depth,
        lissa_h_depth=chosen.lissa_h_depth,
        cg_tolerance=chosen.cg_tolerance,
        lft_segments=experiment.lft_segments,
    )


def choose_dataset(panel: str, profile: str, data_dir: Path | str | None = None) -> str:
    """The data set that fills one of the paper's panels on this machine under this profile.

    Profiles that may use embedded data take what is here without a network; the others try the paper's data first,
    downloading it if need be, and then a stand-in of the same kind.

    Raises:
        DataFileNotFound: none can be had; the message is that of the paper's own data set.
    """
    candidates = PANELS[_known(panel, PANELS, "panel")]
    if get_profile(profile).embedded:
        return next(name for name in candidates if available(name, data_dir))
    real = [name for name in candidates if not DATASETS[name].embedded]
    for name in real[:-1]:
        try:
            load_task(name, data_dir)
        except DataFileNotFound:
            continue
        return name
    load_task(real[-1], data_dir)
    return real[-1]


def panel_title(dataset: str) -> str:
    """A panel's title; a stand-in names what it stands in for."""
    entry = DATASETS[dataset]
    return f"{entry.title} (stands in for {entry.stand_in_for.split(' (')[0]})" if entry.stand_in_for else entry.title


def panel_letter(dataset: str) -> str:
    """The letter of the paper's panel that a data set fills, itself or as a stand-in."""
    return next(letter for letter, names in zip("abcd", PANELS.values(), strict=True) if dataset in names)


def get_profile(name: str) -> Profile:
    return PROFILES[_known(name, PROFILES, "profile")]


@cache
def reference_left_out() -> dict[str, list[int]]:
    """The paper's left-out training instances per data set (read off the authors' public notebooks)."""
    return json.loads((resources.files("fimoda_lib") / "reference" / "left_out.json").read_text())


def _known(name: str, table: dict, what: str) -> str:
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}; choose one of {', '.join(table)}.")
    return name
