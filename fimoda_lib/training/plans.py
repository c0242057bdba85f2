"""What further training is asked to do, checked: every wrong input ends here, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .. import checks
from ..groups import Groups, as_matrix, is_grouped
from ..storage.naming import loss_name, model_name
from ..storage.store import fingerprint
from ..tasks import Params, Task, take
from .ensembles import Optimizer
from .minibatches import REMOVALS
from .working import draws_random_numbers

MOST_EPOCHS = MOST_STEPS = 10_000_000  # far beyond what is useful, and still to be held in a list
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Plan:
    """A checked specification of further training; everything but the task, the parameters and the seed."""

    optimizer: Optimizer
    batch_size: int
    epochs: int
    removal: str
    fraction: float
    left_out: tuple[int, ...] | Groups
    test: tuple[int, ...]
    steps: tuple[int, ...]  # evaluation after these many optimiser steps

    def __post_init__(self) -> None:
        values = {
            "batch_size": checks.whole("batch_size", self.batch_size),
            "epochs": checks.whole("epochs", self.epochs, at_most=MOST_EPOCHS),
        }
        checks.choice("removal", self.removal, REMOVALS)
        expected = (
            f"with removal '{self.removal}' a number from 0 to 1 (and 1 with 'drop', which can only remove a whole "
            "instance)"
        )
        values["fraction"] = fraction = checks.number("fraction", self.fraction, expected, zero=True)
        if fraction > 1 or (self.removal == "drop" and fraction != 1):
            raise ValueError(f"fraction: got {fraction}, expected {expected}.")
        for name, value in values.items():
            object.__setattr__(self, name, value)  # plain numbers, which JSON can hold


def check_seeds(seeds: Iterable[int] | int) -> list[int]:
    """Seeds as a list, each once and not negative."""
    expected = f"at least one, each a different whole number of 0 or more (up to {LARGEST_SEED})"
    seeds = [checks.plain(seeds)] if checks.is_whole(checks.plain(seeds)) else checks.elements("seeds", seeds, expected)
    whole = all(checks.is_whole(seed) and 0 <= seed <= LARGEST_SEED for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: got {checks.shown(seeds)}, expected {expected}.")
    return [int(seed) for seed in seeds]


def evaluation_steps(evaluate: Any, epochs: int, per_epoch: int) -> tuple[int, ...]:
    """Optimiser steps after which to evaluate, from "epoch" or a list of steps."""
    epochs = checks.whole("epochs", epochs, at_most=MOST_EPOCHS)
    if isinstance(evaluate, str):
        if evaluate != "epoch":
            raise ValueError(f"evaluate: got {evaluate!r}, expected 'epoch' or a list of optimiser steps.")
        return tuple(per_epoch * (e + 1) for e in range(epochs))
    total = epochs * per_epoch
    expected = f"increasing optimiser steps from 0 to {total} ({epochs} epochs of {per_epoch} steps), or 'epoch'"
    steps = checks.elements("evaluate", evaluate, expected)
    whole = all(map(checks.is_whole, steps))
    if not steps or not whole or steps != sorted(set(steps)) or steps[0] < 0 or steps[-1] > total:
        raise ValueError(f"evaluate: got {checks.shown(steps)}, expected {expected}.")
    return tuple(int(s) for s in steps)


def shard_name(task: str, optimizer: str, removal: str) -> str:
    """What the names of stored further training begin with, up to the seed."""
    return f"further-{task}-{optimizer}-{removal}-seed"


def specification(task: Task, params: Params, plan: Plan) -> dict[str, Any]:
    """Everything that determines the numbers, as JSON values."""
    return {
        "task": task.name,
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(task.model)),  # of a function that a module shows
        **computed_with(task, params),
        "data": fingerprint(task.train, take(task.test, torch.tensor(plan.test, dtype=torch.long))),
        "params": fingerprint(params),
        **asdict(plan),
        **({"left_out": groups_in_short(plan.left_out)} if is_grouped(plan.left_out) else {}),
        **({"dropout": drawing(task.model)} if draws_random_numbers(task, params) else {}),
    }


def drawing(model: nn.Module) -> str | list[str]:
    """Which modules are in training mode, where some are not: dropout may be frozen in a few layers."""
    modes = {name: m.training for name, m in model.named_modules()}
    return "active" if all(modes.values()) else [name for name, active in modes.items() if active]


def computed_with(task: Task, params: Params) -> dict[str, str]:
    """What else than data, parameters and the `repr` of a model determines its losses, as JSON values: the loss, code
    of one's own, and what is not trained."""
    state = task.model.state_dict()
    aside = {name: value for name, value in task.model.named_buffers() if name not in state}  # kept out of it
    frozen = {name: value for name, value in {**state, **aside}.items() if name not in params}
    return {
        "loss": loss_name(task.loss),
        **({"model_code": code} if (code := model_name(task.model)) else {}),
        **({"frozen": fingerprint(frozen)} if frozen else {}),
    }


def groups_in_short(groups: Groups) -> dict[str, Any]:
    """Groups in a specification: they may hold half of the data, a hundred times."""
    return {"groups": len(groups), "largest": max(map(len, groups)), "members": fingerprint(as_matrix(groups))}
