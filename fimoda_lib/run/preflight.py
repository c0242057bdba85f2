"""What does a profile take on this machine, and is all of it there? `run_all.sh check`, and before every run.

Times are measured, by a few steps of each further training; what a long run gains on these, and the times of scores and
studies, are estimated from another run (`foretold`). Sizes are counted; where a worker held more memory in that run,
that counts. Nothing is stored.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from ..datasets import DATASETS, DataFileError
from ..derivatives.curvature import HOLD_BYTES
from ..devices import choose_device, free_memory, machine
from ..experiments.panel import Panel, n_parameters, too_large
from ..experiments.paper_settings import Training
from ..experiments.settings import choose_dataset, panel_letter
from ..plots.panels import LETTERS
from ..tasks import parameters_of
from ..training.chunks import replica_bytes, replicas_that_fit
from ..training.ensembles import OPTIMIZERS
from ..training.minibatches import steps_per_epoch
from ..training.plans import Plan, evaluation_steps
from .foretold import foretold, gain, is_foretold, peak_bytes, trial
from .plan import BEYOND, PANELS, SELECTION, STUDIES, asked_for
from .shards import ALL_STUDIES, Shard
from .spread import gpus, threads_each
from .status import duration, files_of, follower, optimizer_of

FIGURE_BYTES = 100_000_000  # PDF, PNG, CSV and executed notebooks of all figures, generously
BASE_BYTES = 600_000_000  # a process with Python, PyTorch and the libraries, before any data
SOLVED = 5  # vectors of the size of the parameters for each test instance, while a method solves its systems
DRIVER = Path("/proc/driver/nvidia/version")  # there with NVIDIA's driver, on Linux
NO_GPU = ("none", "PyTorch uses none, though there is a driver: it may want another CUDA version than PyTorch's")
COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Piece:
    """What one kind of work on one data set takes.

    Args:
        seconds: of one process, measured; of scores and studies estimated, or 0 where no run foretells them.
        disk: bytes of its results.
        memory: bytes that it takes at once.
    """

    label: str
    seconds: float
    disk: int
    memory: int


@dataclass(frozen=True)
class Need:
    """One line of the table: what is needed, what there is, and in one sentence what is wrong (nothing: "")."""

    what: str
    needed: str
    here: str
    problem: str = ""


def needs(work: list[tuple[str, str]], options: argparse.Namespace) -> list[Need]:
    """Data, time, disk, memory, compiler and GPU for a list of (data set, kind of piece), see `plan.work_of`.

    The data were found and verified when the work was planned. Seconds of each are left in `options.expected`.
    """
    jobs = options.jobs
    if {"fig_damping", *BEYOND, *SELECTION} & {*asked_for(options)[0]}:
        work = [
            *work,
            *((dataset, ALL_STUDIES) for dataset in dict(work) if is_foretold(options.profile, dataset, ALL_STUDIES)),
        ]
    # One data set after the other: its data are loaded once.
    work = sorted(work, key=lambda item: item[0])
    bar = tqdm(work, desc="measuring a few steps of each training", unit="piece", leave=False, disable=None)
    pieces = [piece(dataset, kind, options) for dataset, kind in bar]
    options.expected = {one: p.seconds for one, p in zip(work, pieces, strict=True)}
    seconds = sum(p.seconds for p in pieces) / jobs
    slowest = max(pieces, key=lambda p: p.seconds, default=Piece("nothing", 0, 0, 0))
    names = list(dict.fromkeys(dataset for dataset, _ in work))
    guessed = {dataset for dataset, kind in work if is_foretold(options.profile, dataset, kind) and kind != ALL_STUDIES}
    rest = "scores, studies and figures come on top"
    if guessed:
        rest = f"scores and studies of {len(guessed)} data sets estimated from an earlier run, figures on top"
    disk = sum(p.disk for p in pieces) + FIGURE_BYTES
    # Of each worker; this process holds its own already, and it is not among what is free.
    held = [
        BASE_BYTES,
        *(BASE_BYTES + p.memory for p in pieces),
        *(peak_bytes(options.profile, dataset, kind) for dataset, kind in work),
    ]
    memory = jobs * max(held)
    data = Need("data", f"{len(names)} data sets", ", ".join(DATASETS[name].title for name in names) + ": verified")
    total = duration(seconds) if guessed else f"{duration(seconds)} for training"
    most = f"; most of it {slowest.label}, {duration(slowest.seconds / jobs)}; {rest}"
    return [data, *of_machine(options, disk, memory, total, most)]


def needs_without_data(options: argparse.Namespace) -> list[Need]:
    """The same where files of data sets are missing or are not the originals: what is wrong with each data set. How
    much the others take is not measured.
    """
    here, problems_of = [], {}
    shown = {letter for figure in options.only or LETTERS for letter in LETTERS[figure].values()}
    for name in options.datasets or PANELS:
        if panel_letter(name) in shown:
            try:
                here.append(DATASETS[choose_dataset(name, options.profile) if name in PANELS else name].title)
            except DataFileError as error:
                problems_of[DATASETS[name].title] = str(error)
    words = f"{', '.join(here) or 'none'}; without {', '.join(problems_of)}"
    data = Need("data", f"{len(here) + len(problems_of)} data sets", words, "\n".join(problems_of.values()))
    return [data, *of_machine(options)]


def of_machine(
    options: argparse.Namespace, disk: int | None = None, memory: int | None = None, total: str = "?", most: str = ""
) -> list[Need]:
    """Time, disk, memory, compiler and GPU: what is needed, if that is known, and what there is."""
    here = where_files_go(Path(options.results))
    left, free = shutil.disk_usage(here).free, free_memory(torch.device("cpu"))
    compiler = next(filter(shutil.which, (os.environ.get("CXX") or COMPILERS[0], *COMPILERS)), None)
    with_jobs = f"with {options.jobs} processes"
    return [
        Need("time", total, f"{options.jobs} x {machine(choose_device(None))}{most}"),
        Need("disk", size(disk), f"{size(left)} free at {here}", short("disk", disk, left, f"at {here}", options)),
        Need(
            "memory",
            size(memory),
            "unknown" if free is None else f"{size(free)} free",
            "" if free is None else short("memory", memory, free, with_jobs, options),
        ),
        Need("compiler", "useful", compiler or "none: training steps are not compiled, and slower"),
        Need("GPU", "for profile paper", ", ".join(gpus()) or NO_GPU[DRIVER.exists()]),
    ]


def short(what: str, needed: int | None, free: int, where: str, options: argparse.Namespace) -> str:
    """The sentence that says there is too little of something; empty if there is enough, or nobody knows."""
    if needed is None or needed <= free:
        return ""
    remedy = "give another folder to --results" if what == "disk" else "take fewer --jobs"
    return (
        f"Profile {options.profile} needs {size(needed)} of {what}, and {size(free)} are free {where}; free some, "
        f"{remedy} or take a smaller profile."
    )


def problems(found: list[Need]) -> list[str]:
    return [need.problem for need in found if need.problem]


def piece(dataset: str, kind: str, options: argparse.Namespace) -> Piece:
    """Time, disk and memory of one kind of piece of one data set; what is stored already takes no more."""
    panel = Shard(dataset, options.profile, str(options.results), kind, optimizer_of(kind)).panel(compute=False)
    s, label, params = panel.settings, f"{kind}, {dataset}", parameters_of(panel.task.model)
    numbers, outputs = n_parameters(params), list(params.values())[-1].shape[0]
    data = 2 * sum(leaf.nbytes for leaf in tree_leaves((panel.task.train, panel.task.test)))  # as loaded, and in use

    def elsewhere() -> float:
        step = trial(panel, s.further, threads_each(options.jobs)).seconds
        return foretold(options.profile, dataset, kind, step)

    if kind in STUDIES:  # counted together, below
        return Piece(label, 0, 0, 0)
    if kind == ALL_STUDIES:  # the whole of them: what is stored already is not told apart
        return Piece(label, elsewhere(), 0, 0)
    if kind == "scores" or follower(kind):
        instances = len(s.curvature or range(panel.task.n_train))
        rows = instances * max(outputs - (panel.task.kind != "regression"), 1)
        each = numbers * (4 if too_large(instances * outputs, numbers) else 8)
        held, solved = rows * each, SOLVED * len(s.test) * each
        if choose_device(None).type != "cpu":  # it lies in the device's memory
            held = solved = 0
        seconds = 0.0
        if is_foretold(options.profile, dataset, kind) and (paths := files_of(panel, kind) or [Path()]):
            share = sum(not path.is_file() for path in paths) / len(paths)
            seconds = share * elsewhere()
        return Piece(
            label, seconds, 8 * len(s.test) * len(s.left_out), data + solved + (held if held <= HOLD_BYTES else 0)
        )
    training = s.further if kind in OPTIMIZERS else s.final
    engine = trial(panel, training, threads_each(options.jobs))
    seeds = len({"retraining": s.retrain_seeds, "final model": (0,)}.get(kind, s.seeds))
    missing = seeds - sum(path.exists() for path in files_of(panel, kind))
    plan = plan_of(panel, training)
    if kind == "final model":  # one model, not compiled
        return Piece(label, missing * plan.steps[-1] * engine.seconds, missing * 4 * numbers, data)
    size_each = len(plan.steps) * len(plan.test) * (4 * len(plan.left_out) + 8)
    replicas, device = 0, choose_device(None)  # a GPU's lie in its own memory
    if device.type == "cpu":
        replicas = min(replicas_that_fit(panel.task, params, plan, device, engine), 1 + len(plan.left_out))
    return Piece(
        label,
        missing * (1 + len(plan.left_out)) * plan.steps[-1] * engine.seconds * gain(options.profile, dataset),
        missing * size_each,
        data + replicas * replica_bytes(panel.task, params, plan, engine) + 2 * size_each,
    )


def plan_of(panel: Panel, training: Training) -> Plan:
    """What `further_train` makes of a panel's settings."""
    s, per_epoch = panel.settings, steps_per_epoch(panel.task.n_train, training.batch_size)
    return Plan(
        optimizer=training.rule,
        batch_size=training.batch_size,
        epochs=training.epochs,
        removal=s.removal,
        fraction=1.0,
        left_out=s.left_out,
        test=s.test,
        steps=evaluation_steps(training.evaluate or "epoch", training.epochs, per_epoch),
    )


def where_files_go(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def size(number: float | None) -> str:
    return "?" if number is None else f"{number / 1e9:.1f} GB"


def table(found: list[Need]) -> str:
    """The needs as lines of text; what is missing is marked."""
    rows = [("", "needed", "here")] + [
        (need.what, need.needed, need.here + (" -- NOT ENOUGH" if need.problem else "")) for need in found
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows)
