"""A task's model and loss at work: in one precision, on one device, outputs always [n, C] and losses always [n].

Models return a tensor of any shape, or a tuple, a dict, an output object of Hugging Face's; losses take what they
return; both may hold numbers of another precision than the one in which they are evaluated. Here, and nowhere else, all
of this is brought into one form, found by a pass over two training instances.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .. import checks
from ..devices import own_randomness, random_state
from ..tasks import Instances, Params, Task, counterpart, different, model_to, take, to
from .causes import failure, uncopied
from .states import fingerprint


class Working:
    """A copy of a task's model, and its loss, ready to be called; the caller's own are never touched.

    Args:
        params: like those with which it will be called.
        dtype: precision of outputs and losses.
        training: the model as it was found, with dropout where that is active; else in evaluation mode.

    Attributes:
        noisy: whether a forward pass draws random numbers.

    Raises:
        ValueError: in one sentence, where model or loss fail on training instances, or give something else than one
            loss per instance.
    """

    def __init__(
        self, task: Task, params: Params, *, dtype: torch.dtype, device: torch.device, training: bool = False
    ) -> None:
        self.name, self.dtype, self.device = task.name, dtype, device
        self.model = model_to(self._copied(task.model), device, dtype)
        if not training:
            self.model.eval()
        for encoder in (m for m in self.model.modules() if isinstance(m, nn.TransformerEncoder)):
            encoder.use_nested_tensor = False  # which vmap does not know; only what is padding comes out as another
        self.criterion = self._copied(task.loss).to(device) if isinstance(task.loss, nn.Module) else task.loss
        # In the model's own precision its code, and the loss, are taken at their word.
        self.converts = any(p.dtype != dtype for p in task.model.parameters())
        instances = to(take(task.train, different(task.train, 2)), device, dtype)
        params = {k: p.detach().to(device, dtype, copy=True) for k, p in params.items()}  # some models write to them
        mode = InPrecision(dtype) if self.converts else None
        with torch.no_grad(), own_randomness(device, 0), mode or contextlib.nullcontext():
            before = random_state(device)
            try:
                found = functional_call(self.model, params, (instances[0],))
                drawn = not all(a is b or torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))
                found, self.logits, losses = self._taken(found, instances[1])
            except Exception as error:  # whatever the caller's model and loss may raise
                raise failure(task.name, "train", error, self.model) from error
            self.form = Form(found, losses, lambda outputs: self.criterion(outputs, whole(instances[1])), task.name)
        self.noisy = drawn or has_dropout(self.model)
        self.converts = mode is not None and mode.changed

    def _copied(self, part: nn.Module) -> nn.Module:
        try:
            return copy.deepcopy(part)
        except Exception as error:
            raise uncopied(self.name, part, error) from error

    def _taken(self, found: Any, targets: Tensor) -> tuple[Any, bool, Any]:
        """What the loss takes of what the model returned, whether that is its logits alone, and the losses."""
        try:
            return found, False, self.criterion(found, whole(targets))
        except Exception:
            if not hasattr(found, "logits"):
                raise
            return found.logits, True, self.criterion(found.logits, whole(targets))

    @property
    def vector(self) -> bool:
        """Whether the model returns one tensor [n, C], as a classifier returns logits."""
        return len(self.form.shapes) == 1 and len(self.form.shapes[0]) == 1

    def outputs(self, params: Params, inputs: Any) -> Tensor:
        """What the model returns for inputs [n, ...], as a matrix [n, C]."""
        with InPrecision(self.dtype) if self.converts else contextlib.nullcontext():
            found = functional_call(self.model, params, (inputs,))
            return self.form.pack(found.logits if self.logits else found, len(tree_leaves(inputs)[0]))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each instance [n] at the given outputs [n, C], in their precision."""
        converts = self.converts or outputs.dtype != self.dtype
        with InPrecision(outputs.dtype) if converts else contextlib.nullcontext():
            losses = self.criterion(self.form.unpack(outputs), whole(targets))
        return losses if losses.dim() else losses.reshape(1)  # of one instance, after a squeeze

    def losses(self, params: Params, instances: Instances) -> Tensor:
        """Loss of each of the given instances, [n]."""
        return self.loss(self.outputs(params, instances[0]), instances[1])


class Form:
    """How what a model returns, and a loss takes, is written as a matrix [n, C].

    Args:
        found: what the model returned for n = 2 instances, as the loss takes it.
        losses: what the loss gave for it; `loss`: of anything else of this kind.

    Attributes:
        shapes: of what an instance's outputs consist of: one tensor, or several that the loss uses.
    """

    def __init__(self, found: Any, losses: Any, loss: Callable[[Any], Any], task: str, n: int = 2) -> None:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else f"no tensor but {checks.shown(losses)}"
        if shape != (n,):
            column = ": of its one column, losses.squeeze(1)" if shape == (n, 1) else ""
            raise ValueError(
                f"The loss of task '{task}' returned shape {shape} for {n} instances, expected ({n},): one "
                f"value per instance, not reduced{column}."
            )
        leaves, self.structure = tree_flatten(found)
        self.size, self.used = len(leaves), []
        reached = _reached(leaves, lambda several: loss(tree_unflatten(several, self.structure)))
        for k in range(len(leaves)):
            if k in reached:  # a loss may use it for other instances only
                self.used.append(k)
                continue
            with contextlib.suppress(Exception):  # what the loss can do without is none of its: hidden states, say
                if torch.equal(loss(tree_unflatten([*leaves[:k], None, *leaves[k + 1 :]], self.structure)), losses):
                    continue
            self.used.append(k)
        for leaf in (leaves[k] for k in self.used):
            if not is_real(leaf) or leaf.shape[:1] != (n,):
                what = f"shape {tuple(leaf.shape)}" if is_real(leaf) else checks.shown(leaf)
                raise ValueError(
                    f"The model of task '{task}' returned {what} for {n} instances, expected real numbers with "
                    "instances along dimension 0: a tensor, a tuple, list or dict of tensors, or an object with "
                    "logits; wrap the model in a module that returns such."
                )
        self.shapes = [leaves[k].shape[1:] for k in self.used]
        self.plain = isinstance(found, Tensor) and found.dim() == 2

    def pack(self, found: Any, n: int) -> Tensor:
        """What the model returned for n instances, as [n, C]."""
        if not isinstance(found, Tensor):
            leaves = tree_leaves(found)
            pieces = [leaves[k].reshape(n, -1) for k in self.used]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        return found if found.dim() == 2 and len(found) == n else found.reshape(n, -1)

    def unpack(self, outputs: Tensor) -> Any:
        """[n, C] as the loss takes it."""
        if self.plain:
            return outputs
        pieces = outputs.split([shape.numel() for shape in self.shapes], 1)
        leaves: list[Any] = [None] * self.size
        for k, piece, shape in zip(self.used, pieces, self.shapes, strict=True):
            leaves[k] = piece.reshape(len(outputs), *shape)
        return tree_unflatten(leaves, self.structure)


class InPrecision(TorchFunctionMode):
    """Inside, all real numbers that PyTorch computes with are of one precision, whatever a model or loss holds.

    A model that was moved to float64 still holds what is no parameter and no buffer (class weights, a constant in the
    code, `x.float()`) in float32: mixed, many operations fail, and the others would round to float32 unseen.

    Attributes:
        changed: whether there was anything to convert.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.changed = dtype, False

    def convert(self, value: Any) -> Any:
        """Tensors and types of real and complex numbers in this precision; anything else as it is."""
        if not isinstance(value, Tensor | torch.dtype):
            return value
        kind = value.dtype if isinstance(value, Tensor) else value
        wanted = counterpart(kind, self.dtype)
        if kind == wanted:
            return value
        self.changed = True
        return value.to(wanted) if isinstance(value, Tensor) else wanted

    def within(self, value: Any) -> Any:
        """The same in lists, tuples and whatever else holds tensors; most arguments are none of these."""
        if type(value) in (tuple, list):
            return type(value)(map(self.within, value))
        return self.convert(value) if isinstance(value, SINGLE) else tree_map(self.convert, value)

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if function in CASTS:  # of whole numbers, too: x.float() / 255
            return args[0].to(self.convert(CASTS[function]))
        # What is written to stays what it is.
        kept = 1 if name in WRITING or (name.endswith("_") and not name.endswith("__")) else 0
        args = (*args[:kept], *map(self.within, args[kept:]))
        kwargs = {k: value if k == "out" else self.within(value) for k, value in kwargs.items()}
        result = function(*args, **kwargs)
        if kept or "out" in kwargs or isinstance(result, torch.Size):
            return result
        return self.within(result) if type(result) in (tuple, list) else self.convert(result)


SINGLE = (Tensor, torch.dtype, int, float, str, type(None))
CASTS = {getattr(Tensor, dtype_name): getattr(torch, dtype_name) for dtype_name in (
    "float", "double", "half", "bfloat16", "cfloat", "cdouble", "chalf"
)}  # fmt: skip
WRITING = ("__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")


def _reached(leaves: list[Any], losses: Callable[[list[Any]], Any]) -> set[int]:
    """Those of the leaves that a gradient of the losses passes by, be it zero."""
    tracked = {k: leaf.detach().requires_grad_() for k, leaf in enumerate(leaves) if is_real(leaf)}
    with torch.enable_grad():
        total = losses([tracked[k].clone() if k in tracked else leaf for k, leaf in enumerate(leaves)]).sum()
    if not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, list(tracked.values()), allow_unused=True)
    return {k for k, gradient in zip(tracked, gradients, strict=True) if gradient is not None}


def is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def whole(targets: Tensor) -> Tensor:
    """Targets; whole numbers in the one type that every operation takes for classes."""
    return targets if targets.dtype == torch.bool or targets.is_floating_point() else targets.long()


def has_dropout(model: nn.Module) -> bool:
    """Whether a module draws dropout masks."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in model.modules())


def draws_random_numbers(task: Task, params: Params) -> bool:
    """Whether training does: dropout, in modules or in a forward pass's own code, noise, layers that are skipped."""
    like = next(iter(params.values()))

    def find() -> bool:
        return Working(task, params, dtype=like.dtype, device=like.device, training=True).noisy

    return has_dropout(task.model) or once(task, params, "noise", find)


_known: WeakKeyDictionary[Task, dict[Any, Any]] = WeakKeyDictionary()


def once(task: Task, params: Params, question: Any, answer: Callable[[], Any]) -> Any:
    """What is found about a task, kept while there is the task and its model, mode and all, stays as it is.

    Results are asked for by the hundred, and what their trials look at does not change.
    """
    like = [(k, p.dtype, p.device) for k, p in params.items()]
    code = [getattr(f, "__code__", None) for f in (*(m.forward for m in task.model.modules()), task.loss)]
    key = (question, fingerprint(task.model, task.loss), tuple(like), tuple(code))  # code, where a notebook edits it
    found = _known.setdefault(task, {})
    if key not in found:
        found[key] = answer()
    return found[key]
