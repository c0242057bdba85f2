"""Train the final model whose training data is to be attributed, and choose its learning rate honestly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from .. import checks
from ..devices import choose_device
from ..storage.store import cached, fingerprint
from ..tasks import Params, Task, check_params, check_task, parameters_of, take, to
from .ensembles import Ensemble, Optimizer
from .minibatches import FULL_RUN, steps_per_epoch
from .plans import Plan, check_seeds, specification
from .runs import Runner
from .trial import check_evaluation

PIECE = 1024  # instances whose mean loss is computed at once


class TrainingDiverged(ValueError):
    """Parameters, or their derivatives, are not finite after training."""


def train_final_model(
    task: Task,
    *,
    optimizer: str,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    keep_best: bool = False,
    device: str | torch.device | None = None,
    store: Path | str | None = None,
    progress: bool = True,
    compute_missing: bool = True,
) -> Params:
    """Trains the task's model from its own initial weights on all training instances.

    The arguments are those of `further_train`; the model itself is left as it was.

    Args:
        keep_best: the final model is the one after the epoch with the smallest mean loss over the task's test
            instances, as the paper does with the validation split of SST-2; else the one after the last.

    Returns:
        The final parameters, name -> tensor, on the CPU.

    Raises:
        ValueError: a bad argument, or training diverged.
    """
    check_task(task)
    initial = parameters_of(task.model)
    check_params(task.model, initial)
    (seed,) = check_seeds([seed])
    rule = Optimizer(optimizer, learning_rate, weight_decay, max_grad_norm)
    plan = Plan(rule, batch_size, epochs, "drop", 1.0, left_out=(), test=(), steps=())
    per_epoch = steps_per_epoch(task.n_train, plan.batch_size)
    steps = tuple(per_epoch * (e + 1) for e in range(plan.epochs)) if keep_best else (plan.epochs * per_epoch,)
    plan = dataclasses.replace(plan, steps=steps)
    where = choose_device(device)

    def compute() -> xr.Dataset:
        runner = Runner(task, initial, plan, device=where, replicas=1, compile=None)
        best: list[tuple[float, Params]] = []

        def look(k: int, ensemble: Ensemble) -> None:
            if keep_best:
                loss = ensemble.losses(to(task.test, ensemble.device)).mean().item()
                if not best or loss < best[0][0] or math.isnan(best[0][0]):
                    best[:] = [(loss, tree_map(torch.clone, ensemble.params))]

        with tqdm(
            total=steps[-1],
            unit="step",
            unit_scale=True,
            disable=not progress,
            desc=f"final model, {task.title or task.name}",
        ) as bar:
            final: Ensemble = runner.train(torch.tensor([FULL_RUN]), [seed], bar, look)
        return _to_dataset({name: p[0].cpu() for name, p in (best[0][1] if best else final.params).items()})

    kept = {"keep_best": True, "validation": fingerprint(task.test)} if keep_best else {}
    spec = {**specification(task, initial, plan), "seed": seed, **kept}
    stored = cached(store, f"final-{task.name}", spec, compute, compute_missing=compute_missing)
    params = _from_dataset(stored, initial)
    if not all(p.isfinite().all() for p in params.values()):
        raise TrainingDiverged(f"Training '{task.name}' with learning rate {learning_rate} diverged; try a lower one.")
    return params


def choose_learning_rate(
    task: Task, rates: Sequence[float], *, held_out: float = 0.1, seed: int = 0, **training: Any
) -> dict[float, float]:
    """Mean loss on held-out *training* instances for each learning rate (NaN where training diverges).

    The test instances play no part: they are what is explained later. Take the rate with the smallest value.
    """
    _tested_on(task, getattr(task, "train", None))
    rates = checks.elements("rates", rates, "a list of learning rates")
    k = round(checks.number("held_out", held_out, "a share between 0 and 1") * task.n_train)
    if not 1 <= k < task.n_train:
        raise ValueError(
            f"held_out: got {held_out}, which holds out {k} of {task.n_train} training instances; expected a share "
            "that leaves some on both sides."
        )
    order = torch.randperm(task.n_train, generator=torch.Generator().manual_seed(*check_seeds([seed])))
    split = dataclasses.replace(task, train=take(task.train, order[k:]), test=take(task.train, order[:k]))
    losses = {}
    for rate in rates:
        try:
            params = train_final_model(split, learning_rate=rate, seed=seed, progress=False, **training)
            losses[rate] = mean_loss(split, params, split.test, device=training.get("device"))
        except TrainingDiverged:
            losses[rate] = float("nan")
    return losses


def mean_loss(
    task: Task, params: Params, instances: tuple[Any, Tensor], *, device: str | torch.device | None = None
) -> float:
    """Mean loss of the model with the given parameters on the given instances."""
    given = _tested_on(task, instances)
    check_params(task.model, params)
    where = choose_device(device)
    check_evaluation(given, params, where, replicas="own")
    ensemble = Ensemble(task, params, 1, Optimizer("sgd", 1.0), device=where)
    pieces = (slice(k, k + PIECE) for k in range(0, given.n_test, PIECE))
    return sum(ensemble.losses(to(take(instances, p), ensemble.device)).sum().item() for p in pieces) / given.n_test


def _tested_on(task: Task, instances: tuple[Any, Tensor]) -> Task:
    """The task with other test instances, checked; its own may be anything."""
    given = dataclasses.replace(task, test=instances) if isinstance(task, Task) else task
    check_task(given)
    return given


def _to_dataset(params: Params) -> xr.Dataset:
    named = {_storable(name): p for name, p in params.items()}
    return xr.Dataset({k: ([f"{k}.{d}" for d in range(p.dim())], p.numpy()) for k, p in named.items()})


def _from_dataset(stored: xr.Dataset, like: Params) -> Params:
    return {name: torch.from_numpy(stored[_storable(name)].values) for name in like}


def _storable(name: str) -> str:
    """A parameter's name in a NetCDF file, where a slash would make a folder."""
    return name.replace("%", "%25").replace("/", "%2F")
