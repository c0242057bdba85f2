"""The two sides of EK-FAC's Kronecker factors: second moments of what goes into a layer, and of what comes back."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ..derivatives import gradients
from ..derivatives.gradients import Gradients


class PaddingMatters(Exception):
    """A layer gets gradients from positions that the inputs call padding."""


def second_moments(
    at: Gradients, modules: dict[str, nn.Module], rows: Tensor, directions: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and S of every layer that the forward pass calls, summed over positions and calls; only their directions count.

    Padding counts as no position: what a layer sees there never reaches the loss. Where it does in spite of an
    "attention_mask", all positions count.
    """
    try:
        return _second_moments(at, modules, rows, directions, padding=False)
    except PaddingMatters:
        return _second_moments(at, modules, rows, directions, padding=True)


def _second_moments(
    at: Gradients, modules: dict[str, nn.Module], rows: Tensor, directions: Tensor, padding: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """`second_moments`, where padding counts or does not.

    Every call's output gets a zero added whose gradient is read: the output itself may be overwritten in place.
    """
    A, S = dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0.0)
    probes: list[tuple[str, Tensor]] = []
    present: Tensor | None = None

    def recorder(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            x = (args[0] if args else kwargs["input"]).detach()
            if is_functorch_wrapped_tensor(x):
                raise ValueError(f"EK-FAC: layer '{name}' is called under torch.func, expected batches; freeze it.")
            if _by_position(x, present):
                x = x[present]
            A[name] = A[name] + _input_moment(x, module, joined(name, "bias") in at.names)
            probes.append((name, torch.zeros_like(output, requires_grad=True)))
            return output + probes[-1][1]

        return record

    handles = [module.register_forward_hook(recorder(name), with_kwargs=True) for name, module in modules.items()]
    try:
        for piece, direction in in_blocks(at, rows, directions):
            probes.clear()
            inputs, _ = at.train(piece)
            present = None if padding else _not_padding(inputs)
            with torch.enable_grad():
                outputs = at.outputs(inputs)
            if probes:
                pulled = torch.autograd.grad(
                    outputs, [probe for _, probe in probes], direction.view_as(outputs), materialize_grads=True
                )
                for (name, _), g in zip(probes, pulled, strict=True):
                    if _by_position(g, present) and g[~present].any():
                        if "mask" not in inputs:  # what the model makes of an "attention_mask" is its own affair
                            raise PaddingMatters
                        raise ValueError(
                            f"EK-FAC: the inputs' \"mask\" is false at positions that layer '{name}' gets gradients "
                            "from; expected true at tokens and false at padding, or another name for it."
                        )
                    s = (g.movedim(1, -1) if isinstance(modules[name], nn.Conv2d) else g).flatten(0, -2)
                    S[name] = S[name] + s.T @ s
    finally:
        for handle in handles:
            handle.remove()
    return {name: (A[name], S[name]) for name in modules if isinstance(A[name], Tensor)}


def scaled(A: Tensor, S: Tensor, scale: Tensor, weight: slice, bias: slice | None) -> tuple[Tensor, Tensor]:
    """A and S of a layer whose gradients are scaled, entry by entry, if the scale were a product of its two sides'."""
    squares = scale[weight].square().unflatten(0, (len(S), -1))
    if bias is not None:
        squares = torch.cat([squares, scale[bias].square()[:, None]], 1)
    outputs, inputs = squares.mean(1).sqrt(), squares.mean(0).sqrt()
    return A * torch.outer(inputs, inputs), S * torch.outer(outputs, outputs)


def _not_padding(inputs: Any) -> Tensor | None:
    """[n, L], true at tokens, of inputs that say so: in a boolean entry "mask" [n, L], or, as those of `transformers`
    do, in an "attention_mask" of ones and zeros; None for any others."""
    if not isinstance(inputs, dict):
        return None
    mask, ones = inputs.get("mask"), inputs.get("attention_mask")
    if mask is not None:
        return mask if mask.dtype == torch.bool and mask.dim() == 2 else None
    return ones.bool() if ones is not None and ones.dim() == 2 and bool(((ones == 0) | (ones == 1)).all()) else None


def _by_position(x: Tensor, present: Tensor | None) -> bool:
    """Whether x [n, L, features] has a row for each position of the sentences."""
    return present is not None and x.dim() == 3 and x.shape[:2] == present.shape


def _input_moment(x: Tensor, module: nn.Module, bias: bool) -> Tensor:
    """Sum of aaᵀ over the rows a that the layer's weight matrix [out, in (+ 1)] multiplies, one for every position."""

    def rows(x: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)  # also right for padding="same"
            x = F.unfold(x, module.kernel_size, dilation=module.dilation, stride=module.stride).mT
        x = x.flatten(0, -2)
        return torch.cat([x, x.new_ones(len(x), 1)], 1) if bias else x

    # A few instances at a time: the patches of an image are many times larger than the image.
    size = max(gradients.BLOCK_BYTES // (rows(x[:1]).numel() * x.element_size()), 1)
    return sum(a.T @ a for a in map(rows, x.split(size)))


def in_blocks(at: Gradients, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(min(at.block_size(), 4096)) for x in tensors), strict=True)


def joined(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
