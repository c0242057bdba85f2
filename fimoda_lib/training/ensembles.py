"""Train M replicas of one model at once: stacked parameters, batched matrix products, one optimiser step for all.

The runs of a seed differ in a single training instance, so they share everything but their parameters. Stacking the
parameters turns M small matrix products into one batched product that fills the machine, and one step of the whole
ensemble can be compiled into a few fused loops. Where the products of one replica fill the machine already, batching
costs more than it saves: then gradients are taken one replica after another (`batched=False`, see `engines`).
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from .. import checks
from ..devices import own_randomness, random_state, set_random_state
from ..tasks import Instances, Params, Task, take, to
from .fused import Fused, Replayed
from .working import Working

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
        for name, value in values.items():
            object.__setattr__(self, name, value)  # plain numbers, which JSON can hold

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
    squares = torch.stack([g.unsqueeze(-1).flatten(1).square().sum(1) for g in grads.values()]).sum(0)
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
        self.start = {k: p.detach().to(device) for k, p in params.items()}
        self.params = {k: p.expand(size, *p.shape).clone() for k, p in self.start.items()}
        self.state = optimizer.initial_state(self.params)
        self.reset()
        self.update = self.evaluate = None  # faster ways, where there are any
        if self.device.type == "cuda" and batched:
            me = weakref.proxy(self)  # a cycle would keep its memory on the GPU after the last use
            if not self.evaluated.noisy:
                self.evaluate = Replayed(partial(Ensemble.float64_losses, me), self.params)
            if not self.trained.noisy:
                self.update = Replayed(partial(Ensemble.training_step, me), self.params, self.state)
        elif compile and not self.trained.converts:
            self.update = partial(Fused(self.training_step), self.params, self.state)

    def reset(self) -> None:
        """Back to the start, in place: a further run can reuse what was compiled or recorded for this one."""
        for name, p in self.params.items():
            p.copy_(self.start[name])
        for moment in self.state.values():
            for m in moment.values():
                m.zero_()
        self.steps = 0
        self.powers = torch.ones(2, dtype=torch.float64, device=self.device)

    def training_step(
        self, params: Params, state: dict, batch: Instances, weights: Tensor, batches: int, correction: Tensor
    ) -> None:
        """Updates stacked parameters and optimiser state in place; see `step`."""
        self.optimizer.update(params, self.gradients(params, batch, weights, batches), state, correction)

    def objective(self, params: Params, batch: Instances, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss of one replica, whose parameters are not stacked, and the loss of each instance [B]."""
        losses = self.trained.losses(params, batch)
        return (weights * losses).sum(), losses

    def gradient(self, params: Params, batch: Instances, weights: Tensor) -> Params:
        """Of the weighted loss of one replica."""
        return grad(lambda p: self.objective(p, batch, weights)[0])(params)

    def gradients(self, params: Params, batch: Instances, weights: Tensor, batches: int) -> Params:
        """Of every replica's weighted loss in its parameters; to differentiate it again, see `differentiable_run`.

        Args:
            batch: one for each replica [M, B, ...]; or, for `batches` of them, one for each M/batches replicas in turn
                [batches, B, ...]; a single one without its leading 1.
        """
        shared = batches < self.size
        if self.batched:
            # randomness="same": every replica draws the same dropout mask, as paired runs must.
            each = vmap(self.gradient, in_dims=(0, None if shared else 0, 0), randomness="same")
            if not 1 < batches < self.size:
                return each(params, batch, weights)
            apart = tree_map(lambda t: t.unflatten(0, (batches, -1)), (params, weights))
            found = vmap(each, randomness="same")(apart[0], batch, apart[1])
            return {k: g.flatten(0, 1) for k, g in found.items()}
        found: Params = {k: torch.empty_like(p) for k, p in params.items()}
        state = random_state(weights.device)
        for m in range(self.size):
            set_random_state(state, weights.device)  # for the same reason
            own = batch if batches == 1 < self.size else take(batch, m * batches // self.size)
            for name, g in self.gradient({k: p[m] for k, p in params.items()}, own, weights[m]).items():
                found[name][m] = g
        return found

    def masks(self, seed: int, step: int) -> AbstractContextManager:
        """Inside, dropout and the like draw what belongs to this step of a seed: the same in all of its runs."""
        return own_randomness(self.device, seed * 1_000_003 + step) if self.trained.noisy else nullcontext()

    def step(self, batch: Instances, weights: Tensor) -> None:
        """One optimiser step of every replica on its own weighted batch.

        Args:
            batch: inputs and targets, [M, B, ...]; or [S, B, ...] for S batches, each shared by M/S replicas in turn.
            weights: [M, B]; the loss of replica m is the sum over b of weights[m, b] x the loss of instance b.
        """
        self.steps += 1
        batches = len(batch[1])
        if batches == 1 < self.size:
            batch = take(batch, 0)
        if self.state:  # Adam's; by a product, on the device: nothing waits for a copy
            self.powers[0] *= self.optimizer.betas[0]
            self.powers[1] *= self.optimizer.betas[1]
        with torch.no_grad():
            inputs = batch, weights, batches, (1 - self.powers).to(self.dtype)
            if self.update is None:
                self.training_step(self.params, self.state, *inputs)
            else:
                self.update(*inputs)

    def losses(self, instances: Instances) -> Tensor:
        """Loss of every replica on every given instance, [M, n], computed in float64 with dropout off.

        Differences between runs reach 1e-9: in float32 they would drown in rounding.
        """
        with torch.no_grad():
            instances = to(instances, dtype=torch.float64)
            if self.evaluate is None:
                return self.float64_losses(self.params, instances)
            return self.evaluate(instances).clone()

    def float64_losses(self, params: Params, instances: Instances) -> Tensor:
        """`losses` of stacked parameters."""

        def one(p: Params) -> Tensor:
            return self.evaluated.losses(p, instances)

        if self.batched:
            return vmap(one)({k: p.double() for k, p in params.items()})
        return torch.stack([one({k: p[m].double() for k, p in params.items()}) for m in range(self.size)])

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
