"""Kinks of piecewise linear units, softened only where a derivative is differentiated again.

The derivative of a rectified unit is a step. Differentiated once more it is nothing but at the kink, and so a
perturbation that moves the moment at which a unit switches seems to have no effect. It has: each switch shifts the
later path by the jump of the gradient times the shift of the moment. Averaged over instances, steps and orders of the
data, these impulses make a density, that of pre-activations at the kink. Here the step's derivative is a Gaussian,
which estimates it; value and first derivative are what they were, so that a run of training is the same.

How wide? Along a run, a unit is as likely to be at its kink as it is anywhere between where the run began and where it
is: the width is how far what goes into the units has moved by then. A run that hardly moves has sharp kinks.

Every unit is written with the rectified one (`units`), so that there is one derivative to soften. Calls of PyTorch's
functions are intercepted, whether a module or the model's own code makes them. Other kinks stay sharp: those of maxima
with places (`x.max(dim)`, pooling with indices, `topk`, `sort`, `median`), of choices (`where`, `x * (x > 0)`), of
SELU, of ELU with another alpha than 1, of `rrelu` in training, of a kernel of one's own, of a compiled model. Jumps,
such as `hardshrink`'s or that of `threshold` to another value, are no kinks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import checks
from ..tasks import Params, Task, take, to
from ..training.ensembles import Optimizer
from ..training.working import Working
from .units import IN_PLACE, unit_of

KINKS = ("between", "softened")
FLOOR = 0.03  # of Adam's denominator where kinks are softened, in units of its root mean square
SHARE = 1.0  # width of a kink in units of how far pre-activations have moved: benchmarks/choose_width.py chose it
SAMPLE = 2_048  # training instances that tell the spread of pre-activations
FEW = 256  # that tell how far these have moved


def rectified(x: Tensor, width: float) -> Tensor:
    """max(x, 0), whose second derivative is the density of a Gaussian of the given width.

    For that, half the density times the square of the movement away from `place` is added. Itself and its slope are 0
    there, whatever is differentiated: `place` is a constant to PyTorch.
    """
    if width == 0:
        return torch.relu(x)
    place = x.detach()
    root = torch.exp(-(place / (2 * width)).square()) / math.sqrt(2 * width * math.sqrt(2 * math.pi))
    bend = torch.where(root > 0, x - place, 0.0) * root  # none at infinity, where the movement is no number
    return torch.addcmul(torch.relu(x), bend, bend)


class Intercepted(TorchFunctionMode):
    """While it is active, PyTorch's piecewise linear functions are those of `UNITS`.

    Args:
        relu: takes the place of the rectified unit in the k-th call: (k, input) -> output.
    """

    def __init__(self, relu: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.relu, self.calls = relu, 0

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "").removeprefix("_")
        if (unit := unit_of(name.rstrip("_"), args, kwargs)) is None:
            return function(*args, **kwargs)
        in_place = kwargs.pop("inplace", False) or name.endswith("_")
        if len(args) > (place := IN_PLACE.get(name, len(args))):  # relu(x, True)
            in_place, args = args[place], args[:place]
        if not in_place:
            return unit(self.next, *args, **kwargs)
        return args[0].copy_(unit(self.next, args[0].clone(), *args[1:], **kwargs))

    def next(self, input: Tensor) -> Tensor:
        self.calls += 1
        return self.relu(self.calls - 1, input)


class Softened(nn.Module):
    """Base, before their own, of models whose kinks are softened.

    By names that no model has: the widths of the Gaussians, one for every call of a unit in a forward pass; the plain
    model; and, if the widths follow a run, what went into its units where that began (`preactivations`, `widen`).
    """

    _fimoda_widths: list[float]
    _fimoda_plain: nn.Module
    _fimoda_start: list[Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # hooks, and a `forward` set on the instance, are inside
        widths = self._fimoda_widths

        def relu(k: int, x: Tensor) -> Tensor:
            if k >= len(widths):
                raise ValueError(f"kinks: the model calls more than the {len(widths)} units found in it at first.")
            return rectified(x, widths[k])

        with Intercepted(relu):
            return super().__call__(*args, **kwargs)


def softened(model: nn.Module, widths: Sequence[float], start: Sequence[Tensor] = ()) -> nn.Module:
    """A copy of the model, its kinks softened; itself if it has none.

    Args:
        widths: of the Gaussians, one for every call of a unit in a forward pass, in the order of `preactivations`.
        start: what goes into the units where a run begins, if the widths are to follow it.
    """
    if not widths:
        return model
    copied = copy.deepcopy(model)
    # Of the class: copies of the model share them.
    own = {"_fimoda_widths": [*widths], "_fimoda_plain": model, "_fimoda_start": [*start]}
    copied.__class__ = type(type(model).__name__, (Softened, type(model)), own)
    return copied


def widen(task: Task, params: Params) -> None:
    """At a place of a run, in a model whose kinks follow it: they become as wide as what goes into each unit has moved.

    Root mean square over instances and the units of a call, times `SHARE`. Other models stay as they are.
    """
    model = task.model
    if isinstance(model, Softened) and model._fimoda_start:
        now = preactivations(replace(task, model=model._fimoda_plain), params, FEW)
        pairs = [(a.to(b.device), b) for a, b in zip(model._fimoda_start, now, strict=True)]
        moved = [float((b - a).double().square().mean().sqrt()) for a, b in pairs]
        model._fimoda_widths[:] = [SHARE * distance for distance in moved]


def preactivations(task: Task, params: Params, instances: int = SAMPLE) -> list[Tensor]:
    """What goes into the units for so many training instances: a tensor [instances, ...] for every call."""
    rows = torch.arange(task.n_train)[:: -(-task.n_train // instances)]
    like = next(iter(params.values()))
    inputs, _ = to(take(task.train, rows), like.device, like.dtype)
    working = Working(task, params, dtype=like.dtype, device=like.device)
    found: list[Tensor] = []

    def keep(k: int, x: Tensor) -> Tensor:
        found.append(x.clone())
        return x.clamp(min=0)

    with torch.no_grad(), Intercepted(keep):
        working.outputs(params, inputs)
    return found


def spreads(task: Task, params: Params) -> list[float]:
    """Standard deviations of what goes into the units, over training instances: one for every call; none if smooth.

    Root mean square over the units of a call, whose means differ.
    """
    return [float(x.double().var(0, correction=0).mean().sqrt()) for x in preactivations(task, params)]


def check_kinks(kinks: str, width: float | None) -> float | None:
    """The width; raises ValueError for another word than "between" or "softened", or a width that cannot be."""
    checks.choice("kinks", kinks, KINKS)
    if width is None:
        return None
    found = checks.number("width", width, "a positive number, or None to follow the run")
    if kinks == "between":
        raise ValueError(f"width: got {found:g} with kinks 'between'; expected none, or kinks 'softened'.")
    return found


def with_kinks(task: Task, params: Params, kinks: str, width: float | None = None) -> Task:
    """The task, its model's kinks softened if that is what `kinks` says.

    Args:
        width: of the Gaussian, in units of the spread of what goes into a unit; by default it follows the run, which
            begins at `params`: see `widen`.

    Raises:
        ValueError: another word than "between" or "softened", or a width that cannot be.
    """
    width = check_kinks(kinks, width)
    if kinks == "between":
        return task
    if width is not None:
        return replace(task, model=softened(task.model, [width * spread for spread in spreads(task, params)]))
    start = preactivations(task, params, FEW)
    return replace(task, model=softened(task.model, [0.0] * len(start), start))


def regularised(state: dict, after: Params, rule: Optimizer) -> dict:
    """Adam's state before a step, changed so that the step's denominator becomes √(v̂ + τ²) + ε in place of √v̂ + ε.

    τ is `FLOOR` times the root mean square of √v̂ over all parameters, a constant for the derivative. Units that hardly
    ever fire have a tiny denominator; divided by it, the softened derivative, which sees them at their kink, would blow
    up.

    Args:
        after: v after the step, whose own correction cancels.
    """
    mean = sum(v.sum() for v in after.values()) / sum(v.numel() for v in after.values())
    return {**state, "square": {k: s + FLOOR**2 * mean / rule.betas[1] for k, s in state["square"].items()}}
