"""Train M replicas of one model at once: stacked parameters, batched matrix products, one optimiser step for all.

The runs of a seed differ in a single training instance, so they share everything but their parameters. Stacking the
parameters turns M small matrix products into one batched product that fills the machine, and one step of the whole
ensemble can be compiled into a few fused loops. Where the products of one replica fill the machine already, batching
costs more than it saves: then gradients are taken one replica after another (`batched=False`, see `engines`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from .. import checks
from ..devices import own_randomness, random_state, set_random_state
from ..tasks import Instances, Params, Task, take, to
from .working import Working

log = logging.getLogger(__name__)
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Optimizer:
    """SGD, Adam or AdamW, with the definitions and defaults of `torch.optim` (but no weight decay unless asked for).

    `max_grad_norm` clips the norm of each replica's whole gradient as `torch.nn.utils.clip_grad_norm_` does.
    """

    name: str
    learning_rate: float
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        checks.choice("optimizer", self.name, OPTIMIZERS)
        values = {
            "learning_rate": checks.number("learning_rate", self.learning_rate),
            "weight_decay": checks.number("weight_decay", self.weight_decay, "zero or more", zero=True),
        }
        if self.max_grad_norm is not None:
            values["max_grad_norm"] = checks.number("max_grad_norm", self.max_grad_norm, "a positive number or None")
        self.__dict__.update(values)  # plain numbers, which JSON can hold

    def initial_state(self, params: Params) -> dict[str, Params]:
        """Adam's two moments, zero; nothing for SGD."""
        if self.name == "sgd":
            return {}
        return {moment: {k: torch.zeros_like(p) for k, p in params.items()} for moment in ("mean", "square")}

    def update(self, params: Params, grads: Params, state: dict[str, Params], correction: Tensor) -> None:
        """One step in place on stacked parameters [M, ...]; `correction` [2] holds Adam's 1 - beta^t of this step."""
        if self.max_grad_norm is not None:
            grads = clip_grad_norm(grads, self.max_grad_norm)
        for name, p in params.items():
            g = grads[name]
            if self.weight_decay and self.name == "adamw":
                p.mul_(1 - self.learning_rate * self.weight_decay)
            elif self.weight_decay:
                g = g + self.weight_decay * p
            if self.name == "sgd":
                p.sub_(g, alpha=self.learning_rate)
                continue
            mean, square = state["mean"][name], state["square"][name]
            mean.lerp_(g, 1 - self.betas[0])
            square.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            scale = square.sqrt().div(correction[1].sqrt()).add(self.epsilon)
            p.sub_(mean.div(scale).mul(self.learning_rate / correction[0]))


def clip_grad_norm(grads: Params, max_norm: float) -> Params:
    """Scales each replica's gradient (all parameters together) down to norm `max_norm` where it is longer."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)
    # The root of a gradient of exactly zero has no derivative; a clamped one has zero, and its product with 0 is right.
    norm = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()  # [M]
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {k: g * factor.reshape(-1, *[1] * (g.dim() - 1)) for k, g in grads.items()}


def check_trainable(model: nn.Module) -> None:
    """Raises ValueError for layers that mix instances through statistics that change while training."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"Layer {name!r} is {type(module).__name__} in training mode: its running statistics mix instances, so "
                "no instance can be left out honestly; call model.eval() to freeze them, or use GroupNorm/LayerNorm."
            )


class Ensemble:
    """M replicas of a task's model that start from the same parameters.

    Args:
        task: gives the model (used as found: dropout is active if it is in training mode) and the loss.
        params: where every replica starts; their dtype is the precision of training.
        size: M.
        compile: fuse the training step with `torch.compile`; goes on without, with a warning, where that is impossible.
        batched: gradients and losses of all replicas at once, or one replica after another; equal up to rounding.
    """

    def __init__(
        self,
        task: Task,
        params: Params,
        size: int,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        compile: bool = False,
        batched: bool = True,
    ) -> None:
        check_trainable(task.model)
        self.dtype = next(iter(params.values())).dtype
        self.device = torch.device(device)
        self.trained = Working(task, params, dtype=self.dtype, device=self.device, training=True)
        self.evaluated = Working(task, params, dtype=torch.float64, device=self.device)
        self.optimizer, self.size, self.batched = optimizer, size, batched
        self.update = Fused(self.training_step) if compile and not self.trained.converts else self.training_step
        self.start = {k: p.detach().to(device) for k, p in params.items()}
        self.reset()

    def reset(self) -> None:
        """Back to the start: a further run can reuse what was compiled for this one."""
        self.params = {k: p.expand(self.size, *p.shape).clone() for k, p in self.start.items()}
        self.state = self.optimizer.initial_state(self.params)
        self.steps = 0

    def training_step(
        self, params: Params, state: dict, batch: Instances, weights: Tensor, shared: bool, correction: Tensor
    ) -> None:
        """Updates stacked parameters and optimiser state in place; see `step`."""
        self.optimizer.update(params, self.gradients(params, batch, weights, shared), state, correction)

    def gradient(self, params: Params, batch: Instances, weights: Tensor) -> Params:
        """Of the weighted loss of one replica, whose parameters are not stacked."""

        def objective(p: Params) -> Tensor:
            return (weights * self.trained.losses(p, batch)).sum()

        return grad(objective)(params)

    def gradients(self, params: Params, batch: Instances, weights: Tensor, shared: bool) -> Params:
        """Of every replica's weighted loss in its parameters; not to be differentiated again (see `tangents`)."""
        if self.batched:
            # randomness="same": every replica draws the same dropout mask, as paired runs must.
            over = {"in_dims": (0, None if shared else 0, 0), "randomness": "same"}
            return vmap(self.gradient, **over)(params, batch, weights)
        found: Params = {k: torch.empty_like(p) for k, p in params.items()}
        state = random_state(weights.device)
        for m in range(self.size):
            set_random_state(state, weights.device)  # for the same reason
            own = batch if shared else take(batch, m)
            for name, g in self.gradient({k: p[m] for k, p in params.items()}, own, weights[m]).items():
                found[name][m] = g
        return found

    def masks(self, seed: int, step: int) -> AbstractContextManager:
        """Inside, dropout and the like draw what belongs to this step of a seed: the same in all of its runs."""
        return own_randomness(self.device, seed * 1_000_003 + step) if self.trained.noisy else nullcontext()

    def step(self, batch: Instances, weights: Tensor) -> None:
        """One optimiser step of every replica on its own weighted batch.

        Args:
            batch: inputs and targets, [M, B, ...]; or [1, B, ...] for a batch that all replicas share.
            weights: [M, B]; the loss of replica m is the sum over b of weights[m, b] x the loss of instance b.
        """
        self.steps += 1
        shared = len(batch[1]) == 1 < self.size
        if shared:
            batch = take(batch, 0)
        corrections = [1 - beta**self.steps for beta in self.optimizer.betas]
        correction = torch.tensor(corrections, dtype=self.dtype, device=weights.device)
        with torch.no_grad():
            self.update(self.params, self.state, batch, weights, shared, correction)

    def losses(self, instances: Instances) -> Tensor:
        """Loss of every replica on every given instance, [M, n], computed in float64 with dropout off.

        Differences between runs reach 1e-9: in float32 they would drown in rounding.
        """
        instances = to(instances, dtype=torch.float64)

        def one(p: Params) -> Tensor:
            return self.evaluated.losses(p, instances)

        with torch.no_grad():
            if self.batched:
                return vmap(one)({k: p.double() for k, p in self.params.items()})
            return torch.stack([one({k: p[m].double() for k, p in self.params.items()}) for m in range(self.size)])

    def outputs(self, inputs: Any) -> Tensor:
        """Outputs of every replica on every given input, [M, n, C], computed as `losses` are."""
        params = {k: p.double() for k, p in self.params.items()}
        n = len(tree_leaves(inputs)[0])

        with torch.no_grad():
            all_replicas = vmap(self.evaluated.outputs, in_dims=(0, None))
            pieces = [
                all_replicas(params, to(take(inputs, slice(k, k + 4096)), self.device, torch.float64))
                for k in range(0, n, 4096)
            ]
        return torch.cat(pieces, 1)


class Fused:
    """A training step run through `torch.compile`, or as it is where the machine cannot compile (no C++ compiler)."""

    def __init__(self, step: Callable) -> None:
        torch._dynamo.config.recompile_limit = 64  # one entry per ensemble and batch shape; the default is 8
        self.step, self.compiled, self.proven = step, torch.compile(step, dynamic=False), False

    def __call__(self, params: Params, state: dict, *rest: Any) -> None:
        if self.proven or self.compiled is self.step:
            return self.compiled(params, state, *rest)
        trial = tree_map(torch.clone, (params, state))  # a step that fails half-way must not leave its marks
        try:
            self.compiled(*trial, *rest)
        except Exception as error:  # the compiler's failures have no common type
            log.warning("torch.compile does not work here (%s); training goes on without it.", type(error).__name__)
            self.compiled = self.step
        self.proven = True
        self.compiled(params, state, *rest)
