"""Per-instance gradients and Jacobians at fixed parameters, in blocks: the only file that calls autograd for them.

Gradients are flat: one row [P] per instance, the model's parameters in order. The task's own model is never touched;
a copy in evaluation mode and in the precision asked for does the work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import checks
from ..devices import free_memory
from ..tasks import Instances, Params, Task, check_params, check_task, count, spread, take, to
from ..training.working import Working
from .second_order import ROWS, check_product, second_derivative_of, twice_differentiable

BLOCK_BYTES = 2**24  # of gradients in one block: measured (benchmarks/peers.py); larger ones leave the cache of a CPU
KEPT_BYTES = 2**28  # of gradients that are kept for a second pass over the same instances


class Gradients:
    """A task's model at fixed parameters, ready to be differentiated.

    Args:
        dtype: precision of everything that comes out.
        device: where to compute; results come out there. By default where the parameters are.

    Attributes:
        names, shapes, sizes: of the parameters, in the order in which flat gradients hold them.
        n_params: P.
    """

    def __init__(
        self,
        task: Task,
        params: Params,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        check_task(task)
        check_params(task.model, params)
        self.device = next(iter(params.values())).device if device is None else torch.device(device)
        self.task, self.dtype = task, dtype
        self.working = Working(task, params, dtype=dtype, device=self.device)
        self.model = self.working.model
        self.names = [name for name, _ in task.model.named_parameters() if name in params]
        self.params = to({k: params[k].detach() for k in self.names}, self.device, dtype)
        self.shapes = [p.shape for p in self.params.values()]
        self.sizes = [p.numel() for p in self.params.values()]
        self.n_params = sum(self.sizes)
        self._kept: tuple[Tensor, Tensor] | None = None

    def moved(self, params: Params) -> Gradients:
        """The same model at other parameters: it is not copied again."""
        check_params(self.task.model, params)
        other = copy.copy(self)
        other.params, other._kept = to({k: params[k].detach() for k in self.names}, self.device, self.dtype), None
        return other

    def flatten(self, tree: Params) -> Tensor:
        """Parameter-shaped tensors, with any leading dimensions in common, to [..., P]."""
        lead = next(iter(tree.values())).dim() - len(self.shapes[0])
        return torch.cat(
            [tree[k].flatten(lead) if tree[k].dim() > lead else tree[k].unsqueeze(-1) for k in self.names], -1
        )

    def unflatten(self, flat: Tensor) -> Params:
        """[P] to parameter-shaped tensors."""
        pieces = flat.split(self.sizes, dim=-1)
        return {k: piece.reshape(shape) for k, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def columns(self) -> dict[str, slice]:
        """Where each parameter lies in a flat gradient."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return {k: slice(end - size, end) for k, size, end in zip(self.names, self.sizes, ends, strict=True)}

    # --- instances --------------------------------------------------------------------------------------------------

    def train(self, rows: Tensor) -> Instances:
        """The given training instances in this precision and on this device."""
        return to(take(self.task.train, rows), self.device, self.dtype)

    def test(self, rows: Tensor) -> Instances:
        """The given test instances in this precision and on this device."""
        return to(take(self.task.test, rows), self.device, self.dtype)

    def block_size(self, rows_per_instance: int = 1) -> int:
        """How many instances' gradients go into one block."""
        return max(self._budget // (self.n_params * rows_per_instance), 1)

    def product_size(self, vectors: int = 1) -> int:
        """How many instances' forward passes go into one block, for each of so many vectors at once."""
        return max(self._budget // (self.held * vectors), 1)

    @cached_property
    def held(self) -> int:
        """About how many numbers a forward pass makes of one instance."""
        counts = []
        for n in (1, 2):  # what does not grow is about parameters
            instances = self.train(torch.zeros(n, dtype=torch.long))
            with torch.no_grad(), Counted() as counted:
                self.working.losses(self.params, instances)
            counts.append(counted.numbers)
        return max(counts[1] - counts[0], 1)

    @property
    def _bytes(self) -> int:
        """Of one number."""
        return torch.finfo(self.dtype).bits // 8

    @property
    def _budget(self) -> int:
        """How many numbers go into one block."""
        return (self._bytes_on_gpu if self.device.type == "cuda" else BLOCK_BYTES) // self._bytes

    @cached_property
    def _bytes_on_gpu(self) -> int:
        """Less does not fill it; once for all: blocks stay the same."""
        return max(16 * BLOCK_BYTES, free_memory(self.device) // 16)

    # --- outputs and losses -----------------------------------------------------------------------------------------

    def outputs(self, inputs: Any, params: Params | None = None) -> Tensor:
        """Model outputs [n, C], whatever their shape, at the fixed parameters, or at the given ones."""
        return self.working.outputs(self.params if params is None else params, inputs)

    @cached_property
    def log_likelihood(self) -> bool:
        """Whether the model returns log-probabilities, and the loss is linear in them, as nn.NLLLoss is."""
        inputs, targets = self.train(spread(self.task.n_train))
        with torch.no_grad():
            outputs = self.outputs(inputs).double()
        if outputs.shape[1] == 1 or not bool((outputs.logsumexp(1).abs() < 1e-5).all()):
            return False
        return not self._hessians(self.working.loss, outputs, targets).any()

    @cached_property
    def of_classes(self) -> bool:
        """Whether targets are classes, one for each output: whole numbers below their number, and a loss that only
        looks at how outputs differ, as cross-entropy and nn.NLLLoss (of log-probabilities) do."""
        inputs, targets = self.train(spread(self.task.n_train))
        with torch.no_grad():
            outputs = self.outputs(inputs).double()
            labels = self.task.train[1]  # -100 stands for none
            if self.task.kind != "classification" or labels.amax() >= outputs.shape[1] or labels.amin() < 0:
                return False
            here, moved = (self.losses(o, targets) for o in (outputs, outputs + 1))
        return bool(torch.allclose(here, moved, rtol=1e-6, atol=1e-9))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [n] at the given outputs [n, C], in their precision.

        A log-likelihood is written as cross-entropy, for which log-probabilities are logits: the same numbers, but all
        curvature of the model's last step lies in the loss, where the Gauss-Newton matrix has it.
        """
        found = self.working.loss(outputs, targets)
        if not self.log_likelihood:
            return found
        return found + (found - self.working.loss(outputs + 1, targets)) * outputs.logsumexp(1)

    def _loss(self, params: Params, instance: Instances) -> Tensor:
        return self.working.losses(params, take(instance, None))[0]  # one instance, as a batch of one

    def of_losses(self, instances: Instances) -> Tensor:
        """Gradients of each instance's loss, [n, P]."""
        return self.flatten(vmap(grad(self._loss), in_dims=(None, 0))(self.params, instances))

    def blocks(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Loss gradients of training instances, block by block: (which of the rows, [b, P]); not to be written to.

        If they are not too many, they are kept: methods go through the same instances two or three times.
        """
        places = [slice(k, k + self.block_size()) for k in range(0, len(rows), self.block_size())]
        if self._kept is not None and torch.equal(self._kept[0], rows):
            yield from ((place, self._kept[1][place]) for place in places)
            return
        self._kept = None  # never two of them
        keep = len(rows) * self.n_params * self._bytes <= KEPT_BYTES
        kept = torch.empty(len(rows), self.n_params, dtype=self.dtype, device=self.device) if keep else None
        for place in places:
            block = self.of_losses(self.train(rows[place]))
            if kept is not None:
                kept[place] = block
            yield place, block
        if kept is not None:
            self._kept = rows.clone(), kept

    def of_outputs(self, inputs: Any, directions: Tensor) -> Tensor:
        """Gradients of directional outputs: row r of instance i is the gradient of directions[i, r] . outputs[i].

        Args:
            directions: [n, R, C], constant (they do not depend on the parameters).

        Returns:
            [n, R, P].
        """

        def one(inputs_i: Any, directions_i: Tensor) -> Tensor:
            def output(p: Params) -> Tensor:
                return self.outputs(take((inputs_i, directions_i), None)[0], p).reshape(-1)

            pull_back = vjp(output, self.params)[1]
            # One direction after the other, which takes no longer: under two nested `vmap` PReLU's rule fails.
            return torch.stack([self.flatten(pull_back(d)[0]) for d in directions_i])

        return vmap(one)(inputs, directions)

    def loss_slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """First derivative of each instance's loss in its outputs, [n, C]."""
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(self.losses(outputs, targets).sum(), outputs)[0]

    def loss_hessians(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Second derivative of each instance's loss in its outputs, [n, C, C]."""
        return self._hessians(self.losses if self.log_likelihood else self.working.loss, outputs, targets)

    def _hessians(self, losses: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        one = grad(lambda output, target: losses(output[None], target[None])[0])
        with twice_differentiable(), second_derivative_of(self.task.name):
            return vmap(jacrev(one))(outputs, targets)

    def of_mean_loss(self, instances: Instances, params: Params) -> Params:
        """Gradient of the mean loss of the instances at the given parameters."""
        return grad(lambda p: self.working.losses(p, instances).mean())(params)

    def hessian_products(self, instances: Instances, vectors: Tensor, *, each: bool = False) -> Tensor:
        """The Hessian of the mean loss of the instances times each vector: [k, P] -> [k, P].

        Backwards twice, since it is symmetric: forwards PyTorch goes through Python for every product with a constant.

        Args:
            each: every vector has instances of its own, which are [k, n, ...] then.
        """

        def pulled(instances: Instances) -> Callable[[Tensor], Tensor]:
            pull = vjp(partial(self.of_mean_loss, instances), self.params)[1]
            return lambda v: self.flatten(pull(self.unflatten(v))[0])

        n = instances[1].shape[1] if each else count(instances)
        size = max(self._budget // max(n * self.held, self.n_params * 4), 1)
        pieces = [slice(k, k + size) for k in range(0, len(vectors), size)]
        with twice_differentiable(), torch.no_grad():
            product = vmap(lambda v, own: pulled(own)(v)) if each else vmap(pulled(instances))
            given = ((vectors[p], take(instances, p)) if each else (vectors[p],) for p in pieces)
            return torch.cat([product(*some) for some in given])

    def check_hessian(self) -> None:
        """Raises ValueError if `hessian_products` are not derivatives of gradients; looks at few instances."""
        at = self if self.dtype == torch.float64 else Gradients(self.task, self.params, device=self.device)
        instances = at.train(torch.arange(min(ROWS, self.task.n_train)))
        check_product(
            self.task.name,
            at.params,
            partial(at.of_mean_loss, instances),
            lambda v: at.unflatten(at.hessian_products(instances, at.flatten(v)[None])[0]),
        )


def check_gradients(task: Task, params: Params, rows: dict[str, Tensor], device: torch.device) -> None:
    """Raises ValueError if the loss of an instance has no finite gradient, of which nothing finite can follow."""
    try:
        at = Gradients(task, params, device=device)
    except Exception:  # see below
        return
    for name, chosen in rows.items():
        chosen = chosen[chosen >= 0].unique()
        try:
            pick, pieces = at.test if name == "test" else at.train, chosen.split(at.block_size())
            odd = torch.cat([piece[~at.of_losses(pick(piece)).isfinite().all(1).cpu()] for piece in pieces])
        except Exception:  # that is what the method met, too, and what will be said
            return
        if len(odd):
            raise ValueError(
                f"Task '{task.name}': the gradient of the loss is not finite for {len(odd)} of the {name} instances "
                f"({checks.shown(odd[:9].tolist())}); expected a loss that is smooth there: look for 0/0, for log or "
                "sqrt of zero, and for a branch of torch.where that is not finite."
            )


class Counted(TorchDispatchMode):
    """Counts the numbers that operations put out while it is active."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.numbers += sum(x.numel() for x in tree_leaves(found) if isinstance(x, Tensor))
        return found
