"""The exact derivative of further training for a few test losses and all training instances at once, in reverse.

`tangents` carries one perturbation per left-out instance forwards; here one adjoint per test instance goes backwards
through every optimiser step. Both are the same derivative: the one is cheap for few instances left out, the other for
few test losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from .. import checks
from ..devices import choose_device, strict_arithmetic
from ..tasks import Instances, Params, Task, check_params, check_task, count, resolve_rows, take, to
from ..training.ensembles import Optimizer
from ..training.final_model import TrainingDiverged
from ..training.minibatches import FULL_RUN, run_batches
from ..training.plans import MOST_STEPS, Plan, check_seeds
from ..training.trial import check_training
from .differentiable_run import DifferentiableRun
from .gradients import check_gradients
from .kinks import widen, with_kinks
from .second_order import check_run, twice_differentiable


def adjoint_train(
    task: Task,
    params: Params,
    *,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    horizon: int,
    test: Iterable[int],
    seed: int = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    kinks: Literal["between", "softened"] = "between",
    width: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """The derivative of test losses after further training with respect to the removed weight of every instance.

    Args:
        horizon: number of optimiser steps of further training.
        test: test instances; memory and time grow with their number, hardly with that of the training instances.
        kinks, width: of units that are not smooth, as in `tangent_train`.

    Returns:
        [test, train], float64, positive = helpful: what `tangent_train` gives with `removal="mask"` at this step.

    Raises:
        TrainingDiverged: the derivative is not finite.
        ValueError: as `further_train`; an instance whose loss has no finite gradient.
    """
    check_task(task)
    check_params(task.model, params)
    (seed,) = check_seeds([seed])
    rows = resolve_rows(test, task.n_test, "test")
    checks.some("test", rows)
    horizon = checks.whole("horizon", horizon, at_most=MOST_STEPS)
    rule = Optimizer(optimizer, learning_rate, weight_decay, max_grad_norm)
    plan = Plan(rule, batch_size, 1, "mask", 1.0, (), tuple(rows.tolist()), (horizon,))
    where = choose_device(device)
    check_training(task, params, where, batched=False)
    exact = DifferentiableRun(task, to(params, dtype=torch.float64), plan, where)
    check_run(exact, partial(pulled, exact))
    run = DifferentiableRun(with_kinks(task, params, kinks, width), params, plan, where)
    batches = run_batches(task.n_train, plan.batch_size, torch.tensor([FULL_RUN]), seed, removal="mask")
    batches = [(r, w[0]) for _, (r, w) in zip(range(horizon), batches, strict=False)]
    scores = swept(run, batches, take(task.test, rows), seed, progress)
    if not scores.isfinite().all():
        check_gradients(task, params, {"train": torch.arange(task.n_train), "test": rows}, where)
        raise TrainingDiverged(
            f"The run diverged: with learning rate {learning_rate} its derivative is not finite; take a smaller one."
        )
    return xr.DataArray(
        scores.numpy(),
        dims=("test", "train"),
        coords={"test": rows.numpy(), "train": range(task.n_train)},
        attrs={"horizon": horizon, "seed": seed, "optimizer": optimizer},
    )


def swept(run: DifferentiableRun, batches: list, test: Instances, seed: int, progress: bool) -> Tensor:
    """Scores [test, train] after a run of these batches and the way back."""
    horizon, where = len(batches), run.device
    every = math.isqrt(horizon - 1) + 1  # steps between kept states: the others are computed anew on the way back
    scores = torch.zeros(count(test), count(run.train), dtype=torch.float64)
    bar = tqdm(total=2 * horizon, desc="adjoints", disable=not progress)
    with strict_arithmetic(where), bar:
        kept = {0: (run.params, run.state)}
        state: Any = kept[0]
        for number in range(1, horizon + 1):
            state = forward(run, number, seed, *batches[number - 1], state)
            if number % every == 0:
                kept[number] = state
            bar.update()
        adjoint = loss_gradients(run, state[0], test)
        adjoint = (adjoint, tree_map(lambda s: s.new_zeros(count(test), *s.shape), state[1]))
        for start in sorted(kept, reverse=True):
            states = [kept.pop(start)]
            end = min(start + every, horizon)
            for number in range(start + 1, end):
                states.append(forward(run, number, seed, *batches[number - 1], states[-1]))
            for number in range(end, start, -1):
                used, weights = batches[number - 1]
                adjoint, slopes = backward(run, number, seed, used, weights, states.pop(), adjoint)
                scores.index_add_(1, used, -(slopes.cpu() * weights).double())
                bar.update()
    return scores


@twice_differentiable()
def forward(run: DifferentiableRun, number: int, seed: int, rows: Tensor, weights: Tensor, state: Any) -> Any:
    """One step of the run."""
    with torch.no_grad(), run.ensemble.masks(seed, number):
        return run.update(number, run.batch(rows))(*state, run.weights(weights))


@twice_differentiable()
def backward(
    run: DifferentiableRun, number: int, seed: int, rows: Tensor, weights: Tensor, state: Any, adjoint: Any
) -> tuple[Any, Tensor]:
    """The adjoints of (parameters, state) before a step, and those of the instance weights [k, B]."""
    widen(run.task, {k: p[0] for k, p in state[0].items()})
    with run.ensemble.masks(seed, number):
        pull = vjp(run.update(number, run.batch(rows), regular=True), *state, run.weights(weights))[1]
        params, moments, slopes = vmap(pull)(adjoint)
    return tree_map(Tensor.detach, (params, moments)), slopes.detach()


def pulled(run: DifferentiableRun, batch: Instances, weights: Tensor, along: Params) -> Params:
    """The Hessian of the weighted loss of a batch times a direction [1, ...], as `backward` has it."""
    with twice_differentiable():
        pull = vjp(lambda p: run.gradients(p, batch, weights), run.params)[1]
        (found,) = vmap(pull)({k: v[None] for k, v in along.items()})
    return {k: product[0].detach() for k, product in found.items()}


@twice_differentiable()
def loss_gradients(run: DifferentiableRun, params: Params, test: Any) -> Params:
    """Gradients of every test loss in the stacked parameters [k, 1, ...], computed in float64."""
    instances = to(test, run.device, torch.float64)

    def losses(p: Params) -> Tensor:
        return run.ensemble.evaluated.losses(p, instances)

    pull = vjp(losses, {k: p[0].double() for k, p in params.items()})[1]
    (gradients,) = vmap(pull)(torch.eye(count(instances), dtype=torch.float64, device=run.device))
    return {k: g.detach()[:, None].to(run.ensemble.dtype) for k, g in gradients.items()}
