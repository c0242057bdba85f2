"""Piecewise linear units and pooling in terms of one function, the rectified unit: max(a, b) = a + relu(b - a).

Each is written for a `relu` that takes the rectified unit's place, and has the arguments of PyTorch's function. Value
and slope are PyTorch's own where bounds may be huge (what fills a mask): a + (b - a) would not be b there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..training.working import is_real

Relu = Callable[[Tensor], Tensor]


def leaky_relu(relu: Relu, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * relu(input)


def prelu(relu: Relu, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:  # one per channel, which is dimension 1
        weight = weight.reshape(-1, *[1] * (input.dim() - 2))
    return leaky_relu(relu, input, weight)


def bend(relu: Relu, input: Tensor) -> Tensor:
    """What the rectified unit of this `relu` has beyond PyTorch's: zero where it differs in second derivatives only."""
    finite = torch.where(input.isfinite(), input, 0.0)
    return relu(finite) - torch.relu(finite)


def clamp(relu: Relu, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is not None:
        input = torch.clamp(input, min=min) + bend(relu, input - min)
    return input if max is None else torch.clamp(input, max=max) - bend(relu, max - input)


def hardtanh(relu: Relu, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return clamp(relu, input, min_val, max_val)


def relu6(relu: Relu, input: Tensor) -> Tensor:
    return clamp(relu, input, 0.0, 6.0)


def hardsigmoid(relu: Relu, input: Tensor) -> Tensor:
    return relu6(relu, input + 3) / 6


def hardswish(relu: Relu, input: Tensor) -> Tensor:
    return input * hardsigmoid(relu, input)


def softshrink(relu: Relu, input: Tensor, lambd: float = 0.5) -> Tensor:
    return relu(input - lambd) - relu(-input - lambd)


def magnitude(relu: Relu, input: Tensor) -> Tensor:
    return 2 * relu(input) - input


def maximum(relu: Relu, input: Tensor, other: Tensor) -> Tensor:
    return torch.maximum(input, other) + bend(relu, other - input)


def minimum(relu: Relu, input: Tensor, other: Tensor) -> Tensor:
    return -maximum(relu, -input, -other)


def larger(relu: Relu, input: Tensor, other: Tensor) -> Tensor:
    """The maximum, or what is a number."""
    return maximum(relu, torch.where(input.isnan(), other, input), torch.where(other.isnan(), input, other))


def amax(relu: Relu, input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    dims = [dim] if isinstance(dim, int) else dim or range(input.dim())
    for d in sorted((d % input.dim() for d in dims), reverse=True):
        while input.shape[d] > 1:  # in pairs
            half = input.shape[d] // 2
            first, second, odd = input.split([half, half, input.shape[d] - 2 * half], d)
            input = torch.cat([maximum(relu, first, second), odd], d)
        input = input if keepdim else input.squeeze(d)
    return input


def pool(relu: Relu, input: Tensor, windows: Sequence[list[list[int]]]) -> Tensor:
    """Maxima over windows of the last dimensions, one dimension after the other; `windows` lists their positions."""
    for d, places in zip(range(input.dim() - len(windows), input.dim()), windows, strict=True):
        longest = max(map(len, places))  # the others take a position twice
        table = torch.tensor([(p + p[:1] * longest)[:longest] for p in places], device=input.device)
        input = amax(relu, input.index_select(d, table.flatten()).unflatten(d, table.shape), d + 1)
    return input


def max_pool(n: int) -> Callable[..., Tensor]:
    """Max pooling over the last n dimensions."""

    def each(value: Any) -> list[int]:
        return [value] * n if isinstance(value, int) else [*value] * (n // len(value))

    def pooled(
        relu: Relu, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        windows = []
        settings = map(each, (kernel_size, stride or kernel_size, padding, dilation))
        for length, k, s, p, d in zip(input.shape[-n:], *settings, strict=True):
            last = length + p - d * (k - 1) - 1  # where the last window may begin
            starts = range(-p, (min(last + s - 1, length - 1) if ceil_mode else last) + 1, s)
            windows.append([[i for i in range(b, b + d * k, d) if 0 <= i < length] for b in starts])
        return pool(relu, input, windows)

    return pooled


def adaptive_max_pool(n: int) -> Callable[..., Tensor]:
    """Max pooling over the last n dimensions to a given size."""

    def pooled(relu: Relu, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        sizes = [output_size] * n if isinstance(output_size, int) else output_size
        windows = [
            [[*range(i * length // k, -(-(i + 1) * length // k))] for i in range(k)]
            for length, k in ((length, k or length) for length, k in zip(input.shape[-n:], sizes, strict=True))
        ]
        return pool(relu, input, windows)

    return pooled


UNITS: dict[str, Callable[..., Tensor]] = {  # what PyTorch calls them
    "relu": lambda relu, input: relu(input),
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": lambda relu, input, min: clamp(relu, input, min),
    "clamp_max": lambda relu, input, max: clamp(relu, input, None, max),
    "hardtanh": hardtanh,
    "relu6": relu6,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "softshrink": softshrink,
    "abs": magnitude,
    "absolute": magnitude,
    "maximum": maximum,
    "minimum": minimum,
    "max": lambda relu, input, other=None: amax(relu, input) if other is None else maximum(relu, input, other),
    "min": lambda relu, input, other=None: -amax(relu, -input) if other is None else minimum(relu, input, other),
    "fmax": larger,
    "fmin": lambda relu, input, other: -larger(relu, -input, -other),
    "threshold": lambda relu, input, threshold, value: clamp(relu, input, threshold),
    "rrelu": lambda relu, input, lower=1 / 8, upper=1 / 3, *_, **options: leaky_relu(relu, input, (lower + upper) / 2),
    "amax": amax,
    "amin": lambda relu, input, *dims, **options: -amax(relu, -input, *dims, **options),
    **{f"max_pool{n}d": max_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive_max_pool(n) for n in (1, 2, 3)},
}

# Where PyTorch's function takes whether to overwrite its input, if that is given by position
IN_PLACE = {"relu": 1, "relu6": 1, "hardsigmoid": 1, "hardswish": 1, "leaky_relu": 2, "hardtanh": 3, "threshold": 3}
IN_PLACE |= {"rrelu": 4}


def unit_of(name: str, args: Sequence[Any], options: dict[str, Any]) -> Callable[..., Tensor] | None:
    """The unit that a call of PyTorch's function of this name is; None if it is none, or cannot be written in pairs."""
    unit = UNITS.get(name)
    if unit is None or not args or not is_real(args[0]):  # of whole numbers there is nothing to differentiate
        return None
    given = [*args[1:], *options.values()]
    if name in ("max", "min"):  # along a dimension they give places, too
        return unit if all(is_real(value) for value in given) and not {"dim", "keepdim"} & {*options} else None
    if name == "threshold":  # any other value makes a jump of it
        threshold, value = [*args[1:3], *(options[k] for k in ("threshold", "value") if k in options)]
        return unit if threshold == value else None
    random = name == "rrelu" and (options.get("training") or True in args[3:4])
    return None if random or options.get("return_indices") else unit
