"""What a model keeps beside its parameters and buffers, where random generators stand: what may change unseen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, str)


def attributes(*parts: Any) -> dict[str, Any]:
    """Numbers, texts and copies of plain tensors that a model, or a loss that is one, keeps as its own attributes."""
    return {
        f"{name}.{key}".lstrip("."): value.detach().clone() if isinstance(value, Tensor) else value
        for name, module in modules(*parts)
        for key, value in vars(module).items()
        if isinstance(value, (Tensor, *PLAIN))
    }


def fingerprint(*parts: Any) -> tuple:
    """Another one where an attribute, a buffer, a function that is kept or a module itself is another than before."""

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), None if value.is_inference() else value._version
        return (type(value), value) if isinstance(value, PLAIN) else id(value) if callable(value) else None

    return tuple(
        (id(module), *((key, told(value)) for key, value in [*vars(module).items(), *module._buffers.items()]))
        for _, module in modules(*parts)
    )


def modules(*parts: Any) -> Iterator[tuple[str, nn.Module]]:
    """Each module of those parts that are modules, with its name."""
    for part in parts:
        yield from part.named_modules() if isinstance(part, nn.Module) else ()


def elsewhere() -> list[Any]:
    """Where the random generators of Python and NumPy stand."""
    kind, keys, *rest = np.random.get_state()
    return [random.getstate(), kind, keys.tobytes(), *rest]
