"""Tangent further training: the exact derivative of a run with respect to the weight of each training instance.

The difference of two runs drowns in rounding where steps are small; here the perturbation itself is carried along,
through the derivative of every optimiser step. It is the first-order limit: where a run is a smooth function of
the removed weight, no method that is linear in that weight can come closer to further training than this.

With rectified units a run is no smooth function. Its derivative between the kinks leaves out what each switch of a unit
adds; with `kinks="softened"` that is counted on the average, see `kinks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from .. import checks
from ..devices import choose_device, strict_arithmetic
from ..groups import as_matrix, coordinates, resolve_left_out
from ..tasks import Params, Task, check_params, check_task, resolve_rows, take, to
from ..training.ensembles import Optimizer
from ..training.minibatches import FULL_RUN, run_batches, steps_per_epoch
from ..training.plans import Plan, check_seeds, evaluation_steps
from ..training.trial import check_training
from ..training.working import draws_random_numbers
from .differentiable_run import DifferentiableRun
from .gradients import check_gradients
from .kinks import with_kinks
from .second_order import check_run

TANGENTS = 64  # carried at once; more leave the cache
OWN_BATCHES = 8  # likewise, where each has a batch of its own


def tangent_train(
    task: Task,
    params: Params,
    *,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seeds: Iterable[int],
    left_out: Iterable[int] | Iterable[Iterable[int]],
    removal: Literal["mask", "subtract"] = "mask",
    evaluate: Literal["epoch"] | Sequence[int] = "epoch",
    test: Iterable[int] | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    kinks: Literal["between", "softened"] = "between",
    width: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """The derivative of the test losses along further training with respect to the removed weight of each instance.

    The arguments are those of `further_train` (groups as well), whose runs with `removal="mask"` or "subtract" this is
    the derivative of; "drop" has none, for it shifts batches. Exact for all optimisers, momentum, clipping and all, in
    the precision of `params`.

    Args:
        kinks: "between" is the derivative where it exists; "softened" counts the switches of units, too: with Gaussians
            of this `width`, in units of the spread of pre-activations; by default as wide as these have moved by then
            (`kinks.widen`). With Adam, the derivative's denominator is then `kinks.regularised`.

    Returns:
        `delta[seed, left_out, step, test]` (float64: change of the loss per whole weight removed; positive = the
        instance is helpful), `full_loss[seed, step, test]` and `diverged[seed, left_out]`: whether there is a NaN.

    Raises:
        ValueError: as `further_train`; removal "drop"; an instance whose loss has no finite gradient.
    """
    check_task(task)
    check_params(task.model, params)
    checks.choice("removal", removal, ("mask", "subtract"), "'mask' or 'subtract': 'drop' has no derivative")
    batch_size, epochs = checks.whole("batch_size", batch_size), checks.whole("epochs", epochs)
    rule = Optimizer(optimizer, learning_rate, weight_decay, max_grad_norm)
    removed, rows = resolve_left_out(left_out, task.n_train), resolve_rows(test, task.n_test, "test")
    steps = evaluation_steps(evaluate, epochs, steps_per_epoch(task.n_train, batch_size))
    plan = Plan(rule, batch_size, epochs, removal, 1.0, removed, tuple(rows.tolist()), steps)
    seeds = check_seeds(seeds)
    where = choose_device(device)
    check(task, params, plan, where)
    plain, task = task, with_kinks(task, params, kinks, width)
    own_batches = removal == "subtract" and draws_random_numbers(task, params)
    pieces = as_matrix(plan.left_out).split(OWN_BATCHES if own_batches else TANGENTS)
    with tqdm(total=len(seeds) * len(pieces) * plan.steps[-1], desc="tangents", disable=not progress) as bar:
        found = [
            [chunk for piece in pieces for chunk in chunks_that_fit(task, params, plan, seed, piece, where, bar)]
            for seed in seeds
        ]
    result = gathered(found, plan, seeds, task.n_train)
    if result.diverged.any():
        check_gradients(plain, params, {"train": torch.arange(task.n_train), "test": rows}, where)
    return result


def gathered(
    found: list[list[tuple[np.ndarray, np.ndarray]]], plan: Plan, seeds: Sequence[int], n_train: int
) -> xr.Dataset:
    """What `tangent_train` returns, of the chunks of every seed."""
    delta = np.stack([np.concatenate([slopes for _, slopes in chunks]) for chunks in found])
    delta[~np.isfinite(delta)] = np.nan
    return xr.Dataset(
        {
            "full_loss": (("seed", "step", "test"), np.stack([chunks[0][0] for chunks in found])),
            "delta": (("seed", "left_out", "step", "test"), delta),
            "diverged": (("seed", "left_out"), np.isnan(delta).any(axis=(2, 3))),
        },
        coords={
            "seed": seeds,
            **coordinates(plan.left_out, n_train),
            "step": list(plan.steps),
            "test": list(plan.test),
            "epoch": ("step", np.array(plan.steps) / steps_per_epoch(n_train, plan.batch_size)),
        },
    )


def check(task: Task, params: Params, plan: Plan, device: torch.device) -> None:
    """Raises ValueError if a run has no derivative that could be computed, and relied upon."""
    for name in ("left_out", "test"):
        checks.some(name, getattr(plan, name))
    check_training(task, params, device, batched=False)
    exact = DifferentiableRun(task, to(params, dtype=torch.float64), plan, device)
    check_run(exact, exact.product)
    one = {k: p[None] for k, p in exact.params.items()}
    exact.losses(take(task.test, torch.tensor(plan.test[:1])), one)  # if there is no rule for that, now


def chunks_that_fit(
    task: Task, params: Params, plan: Plan, seed: int, removed: Tensor, device: torch.device, bar: tqdm
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`one_chunk` for all the removed instances together, or for halves of them where memory is short."""
    try:
        return [one_chunk(task, params, plan, seed, removed, device, bar)]
    except torch.OutOfMemoryError:
        if len(removed) == 1:
            raise
    halves = removed.tensor_split(2)
    return [chunk for half in halves for chunk in chunks_that_fit(task, params, plan, seed, half, device, bar)]


def one_chunk(
    task: Task, params: Params, plan: Plan, seed: int, removed: Tensor, device: torch.device, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [steps, test] of one full run, and their derivatives [k, steps, test] for k removed instances."""
    run = DifferentiableRun(task, params, plan, device)
    test = take(task.test, torch.tensor(plan.test))
    tangents = tree_map(lambda p: p.new_zeros(len(removed), *p.shape), (run.params, run.state))
    losses, slopes = [], []

    def record() -> None:
        value, slope = run.losses(test, tangents[0])
        losses.append(value.cpu().numpy())
        slopes.append(slope.cpu().numpy())

    if 0 in plan.steps:
        record()
    everyone = torch.cat([torch.full_like(removed[:1], FULL_RUN), removed])
    own_rows = -removed[0].numel()  # under "subtract", the last ones of a batch
    batches = run_batches(task.n_train, plan.batch_size, everyone, seed, removal=plan.removal)
    with strict_arithmetic(device):
        for number, (rows, weights) in zip(range(1, plan.steps[-1] + 1), batches, strict=False):
            if rows.dim() == 1:
                weights_full, change = weights[0], weights[1:] - weights[0]
            elif run.noisy:  # every removed instance must draw the same masks: in the same place of a batch of its own
                rows, change, weights_full = rows[1:], weights[1:] - weights[0], weights[0]
            else:  # rows differ between replicas only under "subtract", in the last places: one batch holds them all
                own = torch.block_diag(*weights[1:, own_rows:])
                weights_full = torch.cat([weights[0, :own_rows], own.new_zeros(own.shape[1])])
                change = torch.cat([own.new_zeros(len(removed), rows.shape[1] + own_rows), own], 1)
                rows = torch.cat([rows[0, :own_rows], rows[1:, own_rows:].flatten()])
            tangents = run.step(number, seed, rows, weights_full, change, tangents)
            bar.update()
            if number in plan.steps:
                record()
    return np.stack(losses), np.stack(slopes, 1)
