"""What LFT is asked for, checked: every wrong input ends here, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..derivatives.trajectories import Trajectory, check_settings, data_of, name_of_loss, name_of_model
from ..tasks import Params, Task
from ..training.ensembles import Optimizer
from ..training.minibatches import REMOVALS
from ..training.plans import MOST_STEPS

MOST_RUNS = 1_000
MODES = ("one_run", "closed_form", "split")
BACKENDS = ("auto", "gram", "krylov", "ekfac")
OF_OPTIMIZER = ("learning_rate", "weight_decay", "max_grad_norm")
SETTINGS = ("optimizer", "batch_size", "seed", "removal", *OF_OPTIMIZER)


def full_settings(further_training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a full run, checked, with those left out at their defaults; without `removal`, which is none."""
    given = {name: checks.plain(value) for name, value in further_training.items() if name != "removal"}
    settings = {"optimizer": "sgd", "seed": 0, **given}
    shape = {name: settings[name] for name in OF_OPTIMIZER if name in settings}
    settings |= {name: getattr(Optimizer(settings["optimizer"], **shape), name) for name in shape}
    check_settings(settings["batch_size"], settings["seed"])
    return settings


def removal_of(further_training: Mapping[str, Any]) -> str:
    """How further training leaves instances out, see `training.minibatches`."""
    removal = checks.plain(further_training.get("removal", "drop"))
    checks.choice("removal", removal, REMOVALS)
    return removal


def check_stored(run: Trajectory, task: Task, params: Params, segments: int) -> None:
    """Raises ValueError unless the recorded run can be one of this task from these parameters."""
    if segments not in (1, len(run.segments)):
        raise ValueError(f"segments: got {segments}, and the recorded run has {len(run.segments)}; record it anew.")
    instances = [run.train_outputs.shape[1], run.test_outputs.shape[1]]
    if instances != [task.n_train, task.n_test]:
        raise ValueError(
            f"further_training: the run was recorded with {instances[0]} training and {instances[1]} test instances; "
            f"the task has {task.n_train} and {task.n_test}."
        )
    if run.data not in ("", data_of(task)):
        raise ValueError(
            "further_training: the run was recorded on other instances (training or test) than these; record it anew."
        )
    if (model := name_of_model(task)) != run.model and model and run.model:
        raise ValueError("further_training: the run was recorded with another model than this; record it anew.")
    if (loss := name_of_loss(task)) != run.loss and loss and run.loss:
        raise ValueError(
            f"further_training: the run was recorded with the loss {run.loss}, the task has {loss}; record it anew."
        )
    start, here = run.segments[0].params, {k: p.cpu().double() for k, p in params.items()}
    same = all(k in start and start[k].shape == p.shape for k, p in params.items())
    if not (same and all(torch.allclose(start[k].cpu().double(), p, rtol=1e-5) for k, p in here.items())):
        raise ValueError("further_training: the run was recorded from other parameters than these; record it anew.")


def check_recorded(run: Trajectory, horizons: Sequence[int], train: Tensor, test: Tensor) -> None:
    """Raises ValueError unless the run holds outputs of these instances at these steps."""
    missing = sorted(set(horizons) - set(run.steps))
    if missing:
        raise ValueError(f"horizon: step {missing[0]} was not recorded; the run holds {list(run.steps)[:8]}, ...")
    for part, rows in (("train", train), ("test", test)):
        unknown = rows[getattr(run, f"{part}_outputs")[0, rows].isnan().any(1)]
        if len(unknown):
            raise ValueError(f"{part}: the run holds no outputs of instance {int(unknown[0])}; record it anew.")


def horizons(horizon: int | Sequence[int]) -> list[int]:
    """The horizons as a list; raises ValueError unless they are ascending numbers of steps."""
    expected = f"ascending numbers of optimiser steps from at least 1 to {MOST_STEPS}"
    one = checks.is_whole(checks.plain(horizon))
    steps = [checks.plain(horizon)] if one else checks.elements("horizon", horizon, expected)
    whole = all(isinstance(step, int) and checks.is_whole(step) and 1 <= step <= MOST_STEPS for step in steps)
    if not steps or not whole or steps != sorted(set(steps)):
        raise ValueError(f"horizon: got {checks.shown(steps)}, expected {expected}.")
    return steps


def check(
    horizon: list | None,
    further_training: Any,
    mode: str,
    runs: int,
    segments: int,
    backend: str,
    order: int,
    products: int = 2,
    sample: int = 1,
) -> None:
    """Raises ValueError for settings that cannot be right."""
    for name, value, choices in (("mode", mode, MODES), ("backend", backend, BACKENDS), ("order", order, (1, 2))):
        checks.choice(name, value, choices)
    checks.whole("runs", runs, at_most=MOST_RUNS)
    checks.whole("products", products, at_least=2)
    checks.whole("sample", sample)
    if not checks.is_whole(checks.plain(segments)):
        raise ValueError(f"segments: got {checks.shown(segments)}, expected a whole number of at least 1.")
    if further_training is None:
        raise ValueError(
            "lft needs further_training=dict(learning_rate=..., batch_size=...), the settings of the full run that it "
            "follows, or a run recorded by record_full_run."
        )
    if isinstance(further_training, Trajectory):
        if mode != "one_run":
            raise ValueError(f"mode: {mode!r} takes no recorded run; give its settings as a dict.")
        if runs != 1:
            raise ValueError(f"runs: got {runs} with a recorded run; average several by trajectories.mean_run.")
    elif horizon is None:
        raise ValueError("horizon: got None, expected optimiser steps of further training, such as [100, 1000].")
    elif not isinstance(further_training, Mapping):
        raise ValueError(
            f"further_training: got {checks.shown(further_training)}, expected dict(learning_rate=..., batch_size=...) "
            "or a recorded run."
        )
    elif lacking := {"learning_rate", "batch_size"} - set(further_training):
        raise ValueError(f"further_training: {sorted(lacking)[0]} is missing; give learning_rate and batch_size.")
    elif odd := sorted(set(further_training) - set(SETTINGS), key=str):
        raise ValueError(f"further_training: got {odd[0]!r}, expected some of {', '.join(SETTINGS)}.")
    else:
        removal_of(further_training)
    for name, value in (("segments", segments), ("runs", runs)):
        if mode == "closed_form" and value != 1:
            raise ValueError(f"{name}: got {value} with mode 'closed_form', which has 1.")


def check_unused(mode: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the report says of settings that mode "split" alone uses; raises ValueError for one of another mode."""
    if mode == "split":
        return {}
    for name, value in given.items():
        if value != defaults[name]:
            raise ValueError(
                f"{name}: got {checks.shown(value)} with mode {mode!r}; expected none, since only 'split' uses it."
            )
    return dict.fromkeys(given, "unused")
