"""The gold standard: train the final model further, on all data and with one instance left out, over seeds.

    delta_i(z, T, seed) = loss(z; final + change(data without i, T, seed)) - loss(z; final + change(data, T, seed))

with the same seed in both runs (paper, section 4). Positive: leaving i out raises the loss on z, so i is helpful to z.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from tqdm import tqdm

from .. import checks
from ..groups import resolve_left_out
from ..storage.store import cached, is_stored, specification_hash
from ..tasks import Params, Task, check_params, check_task, resolve_rows
from .ensembles import Optimizer, check_trainable
from .minibatches import steps_per_epoch
from .plans import Plan, check_seeds, evaluation_steps, shard_name, specification
from .runs import Runner


def further_train(
    task: Task,
    params: Params,
    *,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seeds: Iterable[int],
    left_out: Iterable[int] | Iterable[Iterable[int]],
    removal: Literal["drop", "mask", "subtract"] = "drop",
    evaluate: Literal["epoch"] | Sequence[int] = "epoch",
    test: Iterable[int] | None = None,
    device: str | torch.device | None = None,
    store: Path | str | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    fraction: float = 1.0,
    replicas: int | None = None,
    compile: bool | None = None,
    progress: bool = True,
    compute_missing: bool = True,
) -> xr.Dataset:
    """Trains a final model further, with and without each left-out instance, and evaluates the test losses.

    Args:
        params: the final model's parameters; their dtype is the precision of training (losses are float64 anyway).
        optimizer: "sgd", "adam" or "adamw", as in `torch.optim`, with `weight_decay` (none by default) and
            `max_grad_norm`. Moments start at zero.
        seeds: each fixes one order of the data, the one of `RandomSampler` with a generator of that seed.
        left_out: training instances, each left out of one run per seed; or groups of them, such as [[3, 8, 21], [5]],
            whose members are left out together.
        removal: "drop", "mask" or "subtract" (see `minibatches`).
        evaluate: after every epoch, or after the given numbers of optimiser steps of the full run.
        test: test instances to evaluate (all by default).
        device: where to train; a GPU if there is one.
        store: folder in which each finished seed is kept; a second call finds it there.
        fraction: how much of an instance's weight is removed ("mask" and "subtract" only).
        replicas: how many runs to train at once; chosen from memory and device by default. Results do not depend on it.
        compile: fuse the training step with `torch.compile`; by default where the run is long enough to gain.
        compute_missing: False raises `store.Missing` for a seed that the store does not hold.

    Returns:
        `full_loss[seed, step, test]` (float64), `delta[seed, left_out, step, test]` (float32; leave-one-out minus full,
        subtracted in float64; positive = the instance is helpful), `diverged[seed, left_out]`. The coordinates are the
        true instance numbers (of groups see `groups.coordinates`); `epoch` goes with `step`. Losses of a run that
        diverged are NaN.

    Raises:
        ValueError: in one sentence, for every input that cannot be right.
    """
    check_task(task)
    check_params(task.model, params)
    check_trainable(task.model)
    seeds = check_seeds(seeds)
    batch_size, epochs = checks.whole("batch_size", batch_size), checks.whole("epochs", epochs)
    per_epoch = steps_per_epoch(task.n_train, batch_size)
    plan = Plan(
        optimizer=Optimizer(optimizer, learning_rate, weight_decay, max_grad_norm),
        batch_size=batch_size,
        epochs=epochs,
        removal=removal,
        fraction=fraction,
        left_out=resolve_left_out(left_out, task.n_train),
        test=tuple(resolve_rows(test, task.n_test, "test").tolist()),
        steps=evaluation_steps(evaluate, epochs, per_epoch),
    )
    _check_enough(task, plan)
    runner = Runner(task, params, plan, device=device, replicas=replicas, compile=compile, store=store)
    spec = specification(task, params, plan)
    name = shard_name(task.name, optimizer, removal)
    pieces = {seed: (f"{name}{seed}", {**spec, "seed": seed}) for seed in seeds}
    with tqdm(
        total=len(seeds) * runner.model_steps,
        unit="step",
        unit_scale=True,
        disable=not progress,
        desc=f"further training, {task.title or task.name}",
        smoothing=0.05,
    ) as bar:
        shards = list(_each_seed(runner, pieces, bar, store, compute_missing))
    result = xr.concat(shards, dim="seed", combine_attrs="override", join="exact")
    return result.assign_attrs(_attributes(task, plan, per_epoch), specification=specification_hash(spec))


def _each_seed(
    runner: Runner, pieces: dict[int, tuple[str, dict]], bar: tqdm, store: Path | str | None, compute_missing: bool
) -> Iterator[xr.Dataset]:
    """What the store holds for each seed, or else is computed: together for seeds that are trained together.

    Args:
        pieces: seed -> name and specification of its shard.
    """
    computed: dict[int, xr.Dataset] = {}

    def compute(seed: int) -> xr.Dataset:
        if seed not in computed:
            seeds = list(pieces)[list(pieces).index(seed) :]
            together = [s for s in seeds if not is_stored(store, *pieces[s])][: runner.seeds_at_once()]
            computed.update(zip(together, runner.run(together, bar), strict=True))
        return computed.pop(seed)

    for number, (seed, piece) in enumerate(pieces.items(), start=1):
        yield cached(store, *piece, partial(compute, seed), compute_missing=compute_missing, took=seconds_of)
        bar.update((number + len(computed)) * runner.model_steps - bar.n)  # what was found in the store counts as done


def seconds_of(result: xr.Dataset) -> float:
    """Seconds that the runs of a result took."""
    return result.seconds.sum().item()


def _check_enough(task: Task, plan: Plan) -> None:
    checks.some("test", plan.test, ", or None for all")
    if task.n_train < 2:
        raise ValueError("further_train: leaving an instance out needs at least 2 training instances, got 1.")


def _attributes(task: Task, plan: Plan, per_epoch: int) -> dict[str, Any]:
    """What a result says of how it was made."""
    rule = plan.optimizer
    return {
        "task": task.name,
        "title": task.title or task.name,
        "batch_size": plan.batch_size,
        "epochs": plan.epochs,
        "removal": plan.removal,
        "fraction": plan.fraction,
        "steps_per_epoch": per_epoch,
        "optimizer": rule.name,
        "learning_rate": rule.learning_rate,
        "weight_decay": rule.weight_decay,
        **({"max_grad_norm": rule.max_grad_norm} if rule.max_grad_norm else {}),
    }
