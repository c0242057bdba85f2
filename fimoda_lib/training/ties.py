"""What ties a model to more than its parameters, inputs and outputs: a copy of the model does not see it.

Models are copied, and called with parameters that are handed in. What reaches the caller's own parameters by another
door (a view of their memory, a lambda that holds the model, a hook on a gradient, a write in a forward pass) would be
left behind, and the numbers would be wrong without a word.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..devices import own_randomness
from ..tasks import Instances, Params, Task, take
from .working import Working


def check_ties(task: str, model: nn.Module) -> None:
    """Raises ValueError, in one sentence, for what can be seen of the caller's model without calling it."""
    for name, p in model.named_parameters():
        if p.requires_grad and (p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)):
            raise ValueError(
                f"Parameter {name!r} of task '{task}' has a hook on its gradient, which is not called where gradients "
                "are taken by torch.func; expected none: remove it by handle.remove(), and multiply by a mask in the "
                "forward pass to hold some of its numbers fixed."
            )
    for name, module in model.named_modules():
        option = next((o for o in ("max_norm", "scale_grad_by_freq") if getattr(module, o, None)), None)
        if option and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            what = {"max_norm": "writes to its weights in a forward pass", "scale_grad_by_freq": "mixes instances"}
            raise ValueError(
                f"Layer {name!r} of task '{task}' has the option {option}, which {what[option]}; expected an embedding "
                "without it."
            )
    for (name, a), (other, b) in combinations(held(model), 2):
        if (a.requires_grad or b.requires_grad) and overlap(a, b):
            raise ValueError(
                f"{name!r} and {other!r} of task '{task}' share memory, so that training one would change the other "
                "unseen; expected tensors of their own, by clone(), or one parameter that is used twice."
            )


def held(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every tensor that a model holds, once: parameters, buffers, and what is neither."""

    def everything() -> Iterator[tuple[str, Tensor]]:
        yield from model.named_parameters()
        yield from model.named_buffers()
        for name, module in model.named_modules():
            own = vars(module).items()
            yield from ((f"{name}.{k}".lstrip("."), value) for k, value in own if isinstance(value, Tensor))

    found = {id(t): (name, t) for name, t in everything() if t.layout == torch.strided and t.numel()}
    return [*found.values()]


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same memory, at least in part."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    (first, end), (other, other_end) = map(extent, (a, b))
    return first < other_end and other < end


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check_left_alone(task: str, few: Instances, given: Instances, outputs: Tensor, used: Tensor) -> None:
    """What is handed in may not change: `given` is what became of `few`, `used` of `outputs`."""
    if not all(map(equal, tree_leaves(given[0]), tree_leaves(few[0]))):
        raise ValueError(
            f"The model of task '{task}' changes its inputs in place, expected it to leave them as they are: every "
            "later pass would see other data; write x = x - 1 in place of x -= 1, or begin with x = x.clone()."
        )
    if not equal(given[1], few[1]) or not equal(used, outputs):
        what = "outputs" if equal(given[1], few[1]) else "targets"
        raise ValueError(
            f"The loss of task '{task}' changes its {what} in place, expected it to leave them as they are; write "
            "x = x - 1 in place of x -= 1."
        )


def check_unchanged(task: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nor may the model's buffers, its attributes and the parameters that it is called with. What is added to a list or
    a dictionary is no change of what was there."""
    changed = [k for k, value in after.items() if not (equal(value, before[k]) if k in before else "[" in k)]
    if changed:
        raise ValueError(
            f"The model of task '{task}' changes its own {changed[0]!r} in a forward pass, so that an instance "
            "would depend on all that were seen before; expected one that stays as it is: call model.eval(), use "
            "no running statistics and no count of calls, or self.weight.clamp(min=0) in place of a write to .data."
        )


def check_writes(task: str, working: Working, params: Params, few: Instances) -> None:
    """`check_unchanged` far from a trained model's parameters, which may be within what the model clips them to."""
    far = {k: -9 * p for k, p in params.items()}
    before = {k: p.clone() for k, p in far.items()}
    with torch.no_grad(), contextlib.suppress(Exception):  # where the model need not work
        working.outputs(far, tree_map(torch.clone, few[0]))
    check_unchanged(task, before, far)


def equal(a: Any, b: Any) -> bool:  # NaN being NaN
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and (a == b or a != a)
    return torch.equal(a, b) or (a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def check_doors(task: str, working: Working, params: Params, few: Instances) -> None:
    """Raises ValueError if a model or a loss computes with tensors that are trained, but are not handed in."""
    inputs, targets = tree_map(Tensor.detach, few)

    def model() -> Tensor:
        return working.outputs({k: p.detach() for k, p in params.items()}, inputs)

    def loss(outputs: Tensor) -> Tensor:
        return working.loss(outputs, targets)

    outputs = model().detach()
    for what, call in (("model", model), ("loss", partial(loss, outputs))):
        with torch.enable_grad():
            found = trained_by(call())
            # Not what a forward pass makes anew, to take a derivative in its inputs.
            stay = found and {id(t) for t in found} & {id(t) for t in trained_by(call())}
        if stay:
            raise ValueError(
                f"The {what} of task '{task}' computes with trainable tensors that are not among the parameters as "
                "they are handed in, and would stay as they are: of a loss, of layers in a plain list, or of the model "
                "itself, through a lambda or a penalty; expected all in the forward pass of the model, as self.name, "
                "weight_decay= for a penalty, and requires_grad_(False) for what is to stay fixed."
            )


def check_given(task: Task, working: Working, params: Params, few: Instances) -> None:
    """Raises ValueError if outputs depend on the parameters that a model holds, beside those that are handed in.

    They would if weights are merged, or kept, when the model goes into evaluation mode or is called for the first time.
    """
    if isinstance(task.model, torch.jit.ScriptModule):  # which has a sentence of its own
        return
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in params:
                p.mul_(1.01).add_(0.01)
        held = Working(replace(task, model=model), params, dtype=working.dtype, device=working.device)
        found = []
        for one in (working, held):
            with own_randomness(working.device, 0):
                found.append(one.outputs(params, few[0]).detach())
    close = {torch.float64: 1e-6, torch.float32: 1e-4}.get(working.dtype, 1e-2)
    finite = [x[x.isfinite()] for x in found]
    size = float(finite[0].abs().max()) if len(finite[0]) else 0.0
    if len(finite[0]) != len(finite[1]) or not torch.allclose(*finite, rtol=close, atol=close * size):
        raise ValueError(
            f"The outputs of task '{task.name}' depend on the parameters that the model holds, beside those that are "
            "handed in, expected on the latter alone: no weights that are merged or kept for evaluation mode or after "
            "a first call (merge_weights=False, no cache)."
        )


def trained_by(found: Tensor) -> list[Tensor]:
    """The tensors at which a backward pass would end."""
    ahead, seen, leaves = [found.grad_fn], set(), []
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves += [node.variable] if hasattr(node, "variable") else []
        ahead += [following for following, _ in node.next_functions]
    return leaves


def check_sum(task: str, working: Working, params: Params, few: Instances) -> None:
    """Raises ValueError unless the gradient of an instance is the same whatever else is in its batch.

    It would not be with a gradient that is normalised over a batch, say, by a hook or an autograd.Function.
    """

    def gradient(rows: list[int], weights: list[float]) -> Tensor:
        """Of the weighted losses of a batch of these instances."""
        leaves = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        instances = tree_map(torch.clone, take(few, torch.tensor(rows, device=working.device)))
        with torch.enable_grad():
            losses = working.losses(leaves, instances)
            total = (losses * losses.new_tensor(weights)).sum()
        return torch.cat([
            g.flatten() for g in torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        ])  # fmt: skip

    alone, twice, beside = gradient([0], [1.0]), gradient([0, 0], [0.5, 0.5]), gradient([0, 1, 2], [1.0, 0.0, 0.0])
    beside = beside if beside.isfinite().all() else alone  # no weight takes away what is not finite
    rounding = 1e-12 + 1e-9 * float(alone.nan_to_num().abs().max())
    near = partial(torch.allclose, alone, rtol=1e-6, atol=rounding, equal_nan=True)
    if not near(twice) or not near(beside):
        raise ValueError(
            f"The gradient of task '{task}' for an instance depends on which others are beside it in the batch, "
            "expected each on its own: no hook and no autograd.Function may use statistics of a batch."
        )
