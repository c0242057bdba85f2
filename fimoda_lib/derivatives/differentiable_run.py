"""One full run whose every step can be differentiated in parameters, optimiser state and instance weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.utils._pytree import tree_map

from ..tasks import Instances, Params, Task, take, to
from ..training.ensembles import Ensemble
from ..training.plans import Plan
from .kinks import Softened, regularised, widen
from .second_order import second_derivative_of, twice_differentiable


class DifferentiableRun:
    """A full run at one of its steps."""

    def __init__(self, task: Task, params: Params, plan: Plan, device: torch.device) -> None:
        self.device = device
        self.ensemble = Ensemble(task, params, 1, plan.optimizer, device=device)
        self.params, self.state = self.ensemble.params, self.ensemble.state
        # The root in Adam's denominator has no derivative at 0, where a parameter without gradients (an input that is
        # 0 in the batch, a dead unit) would stay; far below Adam's epsilon, this changes nothing else.
        for square in self.state.get("square", {}).values():
            square.fill_(torch.finfo(square.dtype).tiny ** 0.75)
        self.train = to(task.train, device, self.ensemble.dtype)
        self.noisy, self.softened = self.ensemble.trained.noisy, isinstance(task.model, Softened)
        self.task, self.name = task, task.name

    def batch(self, rows: Tensor) -> Instances:
        """The training instances of a step, where they are used."""
        return take(self.train, rows.to(self.device))

    def weights(self, weights: Tensor) -> Tensor:
        """Their weights, likewise."""
        return weights.to(self.device, self.ensemble.dtype)

    def gradients(self, params: Params, batch: Instances, weights: Tensor) -> Params:
        """Of the weighted loss of a batch in the stacked parameters, to be differentiated once more."""
        return self.gradients_and_losses(params, batch, weights)[0]

    def gradients_and_losses(self, params: Params, batch: Instances, weights: Tensor) -> tuple[Params, Tensor]:
        """`gradients`, and the loss of each instance of the batch [B].

        Without a `vmap` around the one replica: PyTorch's batching rules for normalising layers take mean and variance
        for constants, so that a derivative of `vmap(grad(...))` would be wrong; `vmap` around derivatives is right.
        """

        def objective(p: Params) -> tuple[Tensor, Tensor]:
            return self.ensemble.objective({k: x[0] for k, x in p.items()}, batch, weights)

        return grad(objective, has_aux=True)(params)

    def products(self, batch: Instances, weights: Tensor, along: Params, change: Tensor, own: bool = False) -> Any:
        """The gradient and its derivatives along k changes of (parameters, weights): Hessian-vector products, backwards
        twice, and gradients for the changes of the weights.

        Args:
            along: [k, 1, ...]; change: [k, B].
            own: every change has a batch of its own [k, B, ...]; then the first result has a leading dimension k, too.
        """

        def one(changes: Any, batch: Instances) -> Any:
            (here, _), pull = vjp(lambda p: self.gradients_and_losses(p, batch, weights), self.params)
            return here, pull(changes)[0]

        # In a `vmap` even where all have one batch: outside, a GPU would draw other masks than further training does.
        over = {"in_dims": (0, 0 if own else None), "out_dims": (0 if own else None, 0)}
        with twice_differentiable(), torch.no_grad():
            return vmap(one, **over, randomness="same")((along, change), batch)

    def product(self, batch: Instances, weights: Tensor, along: Params) -> Params:
        """One of `products`, along a change of the parameters [1, ...] alone."""
        no_change = weights.new_zeros(1, len(weights))
        found = self.products(batch, weights, {k: v[None] for k, v in along.items()}, no_change)[1]
        return {k: product[0] for k, product in found.items()}

    def update(self, number: int, batch: Instances, *, regular: bool = False) -> Any:
        """The optimiser step of this number as a function of parameters, state and weights; see `rule`."""

        def step(params: Params, state: dict, weights: Tensor) -> tuple[Params, dict]:
            return self.rule(number, regular=regular)(params, state, self.gradients(params, batch, weights))

        return step

    def rule(self, number: int, *, regular: bool = False) -> Any:
        """What the optimiser does in the step of this number, as a function of parameters, state and gradients.

        `regular`: the function whose derivative to take if kinks are softened, with Adam's denominator `regularised`.
        """
        optimizer, dtype = self.ensemble.optimizer, self.ensemble.dtype
        correction = torch.tensor([1 - beta**number for beta in optimizer.betas], dtype=dtype, device=self.device)

        def update(params: Params, state: dict, gradients: Params) -> tuple[Params, dict]:
            params, state = tree_map(torch.clone, (params, state))  # the update works in place
            if regular and self.softened and state:
                plain = tree_map(lambda x: x.detach().clone(), (params, gradients, state))
                optimizer.update(*plain, correction)
                state = regularised(state, plain[2]["square"], optimizer)
            optimizer.update(params, gradients, state, correction)
            return params, state

        return update

    def step(self, number: int, seed: int, rows: Tensor, weights: Tensor, change: Tensor, tangents: Any) -> Any:
        """One step of the run; returns the tangents after it.

        Args:
            rows: of the batch [B]; or of one for every tangent [k, B], whose rows differ where `weights` are 0.
            change: derivative of the weights for every tangent, [k, B].
            tangents: of (parameters, state), with a leading dimension k.
        """
        batch, weights, own = self.batch(rows), self.weights(weights), rows.dim() == 2

        def pushed(dp: Params, ds: dict, dg: Params) -> Any:
            return jvp(self.rule(number, regular=True), (self.params, self.state, here), (dp, ds, dg))[1]

        widen(self.task, {k: p[0] for k, p in self.params.items()})
        with torch.no_grad(), self.ensemble.masks(seed, number), twice_differentiable():
            here, moved = self.products(batch, weights, tangents[0], self.weights(change), own)
            here = tree_map(lambda g: g[0], here) if own else here
            tangents = vmap(pushed)(*tangents, moved)
            self.params, self.state = self.rule(number)(self.params, self.state, here)
        return tangents

    def losses(self, test: Instances, tangents: Params) -> tuple[Tensor, Tensor]:
        """Test losses [n] and their derivatives [k, n], in float64."""
        instances = to(test, self.device, torch.float64)

        def one(p: Params) -> Tensor:
            return self.ensemble.evaluated.losses(p, instances)

        here = {k: p[0].double() for k, p in self.params.items()}
        along = {k: t[:, 0].double() for k, t in tangents.items()}
        # Forwards, which attention's fused kernels cannot either.
        with torch.no_grad(), twice_differentiable(), second_derivative_of(self.name, "forward derivative"):
            return vmap(lambda dp: jvp(one, (here,), (dp,)), out_dims=(None, 0))(along)
