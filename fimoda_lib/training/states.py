"""What a model keeps beside its parameters and buffers, where random generators stand: what may change unseen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

PLAIN = (bool, int, float, str)
INTERNAL = {*vars(nn.Module())} - {"training"}  # hooks, buffers and the like
DEPTH = 3  # of objects, lists and dictionaries within each other
MANY = 1000  # entries; in larger ones nobody counts passes


def attributes(*parts: Any) -> dict[str, Any]:
    """Numbers, texts and copies of plain tensors that a model, or a loss that is one, keeps as its own attributes, or
    within objects, lists and dictionaries that are."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in kept(*parts)
        if isinstance(value, (Tensor, *PLAIN))
    }


def fingerprint(*parts: Any) -> tuple:
    """Another one where an attribute, a buffer, a function that is kept or a module itself is another than before."""

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), None if value.is_inference() else value._version
        return (type(value), value) if isinstance(value, PLAIN) else id(value) if callable(value) else None

    own = tuple((name, told(value)) for name, value in kept(*parts))
    buffers = ((id(m), *((key, told(value)) for key, value in m._buffers.items())) for _, m in modules(*parts))
    return own, *buffers


def kept(*parts: Any) -> Iterator[tuple[str, Any]]:
    """What all modules keep as attributes, each with its name; what is kept twice, such as a configuration, once."""
    seen: set[int] = set()
    for name, module in modules(*parts):
        for key, value in vars(module).items():
            if key not in INTERNAL:
                yield from _within(f"{name}.{key}".lstrip("."), value, seen, DEPTH)


def _within(name: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, (Tensor, nn.Module, np.ndarray, *PLAIN)) or depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        entries = [(f"{name}[{key!r}]", entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        entries = [(f"{name}[{k}]", entry) for k, entry in enumerate(value)]
    elif callable(value) or isinstance(value, type):
        return
    else:
        entries = [(f"{name}.{key}", entry) for key, entry in getattr(value, "__dict__", {}).items()]
    for key, entry in entries if len(entries) <= MANY else ():
        yield from _within(key, entry, seen, depth - 1)


def modules(*parts: Any) -> Iterator[tuple[str, nn.Module]]:
    """Each module of those parts that are modules, with its name."""
    for part in parts:
        yield from part.named_modules() if isinstance(part, nn.Module) else ()


def elsewhere() -> list[Any]:
    """Where the random generators of Python and NumPy stand."""
    kind, keys, *rest = np.random.get_state()
    return [random.getstate(), kind, keys.tobytes(), *rest]
