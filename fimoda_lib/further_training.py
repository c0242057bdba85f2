"""The gold standard: train the final model further, on all data and with one instance left out, over seeds.

    delta_i(z, T, seed) = loss(z; final + change(data without i, T, seed)) - loss(z; final + change(data, T, seed))

with the same seed in both runs (paper, section 4). Positive: leaving i out raises the loss on z, so i is helpful to z.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from . import checks
from .ensembles import Ensemble, Optimizer, check_trainable
from .minibatches import FULL_RUN, run_batches, steps_per_epoch
from .plans import Plan, check_loss, check_seeds, evaluation_steps, has_dropout, specification, try_model
from .store import cached, specification_hash
from .tasks import Params, Task, check_params, check_task, resolve_rows, take, to

CPU_REPLICAS = 34  # per chunk: the measured optimum on CPU, where a chunk's activations stay in cache (benchmarks/)
MEMORY_BYTES = 2**30  # what the replicas of a chunk may take, by default
WORTH_COMPILING = 50_000  # model-steps of one size; below that, compiling takes longer than it saves


def further_train(
    task: Task,
    params: Params,
    *,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seeds: Iterable[int],
    left_out: Iterable[int],
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
        left_out: training instances, each left out of one run per seed.
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
        true instance numbers; `epoch` goes with `step`. Losses of a run that diverged are NaN.

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
        left_out=tuple(resolve_rows(left_out, task.n_train, "left_out").tolist()),
        test=tuple(resolve_rows(test, task.n_test, "test").tolist()),
        steps=evaluation_steps(evaluate, epochs, per_epoch),
    )
    if not plan.test:
        raise ValueError("test: no instances given; expected at least one, or None for all.")
    if task.n_train < 2:
        raise ValueError("further_train: leaving an instance out needs at least 2 training instances, got 1.")
    check_loss(task, params)
    runner = Runner(task, params, plan, device=device, replicas=replicas, compile=compile)
    spec = specification(task, params, plan)
    with tqdm(
        total=len(seeds) * runner.model_steps,
        unit="step",
        unit_scale=True,
        disable=not progress,
        desc=f"further training, {task.title or task.name}",
        smoothing=0.05,
    ) as bar:
        shards = []
        for seed in seeds:
            before = bar.n
            name = f"further-{task.name}-{optimizer}-{removal}-seed{seed}"
            shards.append(
                cached(
                    store,
                    name,
                    {**spec, "seed": seed},
                    lambda s=seed: runner.run(s, bar),
                    compute_missing=compute_missing,
                )
            )
            bar.update(before + runner.model_steps - bar.n)  # a seed found in the store counts as done
    result = xr.concat(shards, dim="seed", combine_attrs="override", join="exact")
    return result.assign_attrs(
        task=task.name,
        title=task.title or task.name,
        batch_size=batch_size,
        epochs=epochs,
        removal=removal,
        fraction=fraction,
        steps_per_epoch=per_epoch,
        specification=specification_hash(spec),
        **_plain(plan.optimizer),
    )


class Runner:
    """Trains the runs of one seed, in chunks of replicas that fit memory and cache."""

    def __init__(
        self, task: Task, params: Params, plan: Plan, *, device: Any, replicas: int | None, compile: bool | None
    ) -> None:
        self.task, self.params, self.plan = task, params, plan
        self.device = checks.device(device)
        checks.choice("compile", compile, (True, False, None))
        if replicas is not None:
            checks.whole("replicas", replicas, or_=", or None")
        dtype = next(iter(params.values())).dtype
        self.train_set = to(task.train, self.device, dtype)
        self.test_set = to(take(task.test, torch.tensor(plan.test, dtype=torch.long)), self.device)
        self.per_epoch = steps_per_epoch(task.n_train, plan.batch_size)
        self.chunks = chunks(plan, replicas or replicas_that_fit(task, params, plan, self.device))
        self.model_steps = sum(len(chunk) for chunk in self.chunks) * plan.steps[-1]
        self.noisy = has_dropout(task.model)
        if self.noisy and compile:
            raise ValueError(
                "compile: compiled code draws other dropout masks than the full run, so that the runs would "
                "not be paired; leave it out, or call model.eval() to train without dropout."
            )
        self.compile = self.model_steps >= WORTH_COMPILING and not self.noisy if compile is None else compile
        self.ensembles: dict[int, Ensemble] = {}

    def ensemble(self, size: int) -> Ensemble:
        """An ensemble at its start; one per size is kept, so that each is compiled once."""
        if size not in self.ensembles:
            worth = size > 1 or self.plan.steps[-1] >= WORTH_COMPILING
            self.ensembles[size] = Ensemble(
                self.task, self.params, size, self.plan.optimizer, device=self.device, compile=self.compile and worth
            )
        self.ensembles[size].reset()
        return self.ensembles[size]

    def train(self, removed: Tensor, seed: int, bar: tqdm, losses: Tensor | None = None) -> Ensemble:
        """Trains one chunk of replicas; writes test losses to `losses` [M, steps, test] at the planned steps."""
        plan, ensemble = self.plan, self.ensemble(len(removed))
        due = {step: k for k, step in enumerate(plan.steps)}
        if losses is not None and 0 in due:
            losses[:, due[0]] = ensemble.losses(self.test_set)
        batches = run_batches(
            self.task.n_train, plan.batch_size, removed, seed, removal=plan.removal, fraction=plan.fraction
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for step, batch in zip(range(1, plan.steps[-1] + 1), batches, strict=False):
                if self.noisy:  # dropout: the same masks in all runs of a seed, though some batches are shorter
                    torch.manual_seed(seed * 1_000_003 + step)
                if batch is not None:
                    rows, weights = batch
                    rows = rows.to(self.device).reshape(-1, rows.shape[-1])
                    ensemble.step(take(self.train_set, rows), weights.to(self.device, ensemble.dtype))
                if losses is not None and step in due:
                    losses[:, due[step]] = ensemble.losses(self.test_set)
                bar.update(len(removed))
        return ensemble

    def run(self, seed: int, bar: tqdm) -> xr.Dataset:
        """All runs of one seed: the full one and one without each left-out instance."""
        plan, started = self.plan, time.perf_counter()
        shape = (len(plan.steps), len(plan.test))
        full = None
        delta = np.empty((len(plan.left_out), *shape), dtype=np.float32)
        position = 0
        for chunk in self.chunks:
            losses = torch.empty(len(chunk), *shape, dtype=torch.float64, device=self.device)
            self.train(chunk, seed, bar, losses)
            losses = losses.cpu()
            # The full run that shared the chunk's kernels, where there is one, is the tightest partner.
            if chunk[0] == FULL_RUN:
                partner, losses = losses[0], losses[1:]
                full = partner if full is None else full
            with np.errstate(over="ignore"):  # a loss on its way to infinity
                delta[position : position + len(losses)] = (losses - partner).numpy()
            position += len(losses)
        delta[~np.isfinite(delta)] = np.nan
        full = torch.where(full.isfinite(), full, torch.nan).numpy()
        epochs = np.array(plan.steps) / self.per_epoch
        return xr.Dataset(
            {
                "full_loss": (("seed", "step", "test"), full[None]),
                "delta": (("seed", "left_out", "step", "test"), delta[None]),
                "diverged": (("seed", "left_out"), np.isnan(delta).any(axis=(1, 2))[None]),
                "seconds": ("seed", [time.perf_counter() - started]),
            },
            coords={
                "seed": [seed],
                "left_out": np.array(plan.left_out, dtype=int),
                "step": np.array(plan.steps),
                "test": np.array(plan.test),
                "epoch": ("step", epochs),
            },
        )


def chunks(plan: Plan, replicas: int) -> list[Tensor]:
    """Which instances the replicas of each chunk leave out: chunks of nearly equal size.

    With "drop" the full run comes first and alone, because its batches are longer. Otherwise each chunk carries a full
    run of its own, so that the difference is taken between runs of the same kernels and is exactly zero when nothing
    is removed.
    """
    full = torch.tensor([FULL_RUN])
    left_out = torch.tensor(plan.left_out, dtype=torch.long)
    if len(left_out) == 0:
        return [full]
    if plan.removal == "drop":
        return [full, *left_out.tensor_split(-(-len(left_out) // replicas))]
    pieces = left_out.tensor_split(-(-len(left_out) // max(replicas - 1, 1)))
    return [torch.cat([full, piece]) for piece in pieces]


def replicas_that_fit(task: Task, params: Params, plan: Plan, device: torch.device) -> int:
    """How many replicas to train at once within `MEMORY_BYTES` (half the free memory of a GPU)."""
    size = sum(p.numel() for p in params.values())
    # Parameters, gradients, two moments and the float64 copy for evaluation, plus activations of a batch, which are
    # measured on one instance: every module's output, kept for the backward pass and differentiated.
    activations = activation_numbers(task, params) * 3
    per_replica = 4 * (7 * size + activations * plan.batch_size) + 8 * activations * len(plan.test)
    budget = MEMORY_BYTES
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] // 2
    fit = max(int(budget // per_replica), 2)
    return fit if device.type == "cuda" else min(fit, CPU_REPLICAS)


def activation_numbers(task: Task, params: Params) -> int:
    """Numbers that the model's modules put out for one training instance."""
    total = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    handles = [m.register_forward_hook(add) for m in task.model.modules() if not list(m.children())]
    try:
        try_model(task, params, take(task.train, slice(0, 1)))
    finally:
        for handle in handles:
            handle.remove()
    return max(total, 1)


def _plain(optimizer: Optimizer) -> dict[str, Any]:
    values = {
        "optimizer": optimizer.name,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
    }
    return values | ({"max_grad_norm": optimizer.max_grad_norm} if optimizer.max_grad_norm else {})
