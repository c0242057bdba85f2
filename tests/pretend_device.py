"""A pretend accelerator: tensors on the device "pretend" cannot be mixed with the CPU's, as on a GPU, but it is the CPU
that computes.

PyTorch lets a backend be written in Python. Here a tensor on the device stands for a view, of the same shape and
strides, of memory of the CPU: operations that only move shapes and strides then work by themselves, and all others
are looked up, computed, and looked at for tensors of another device.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module; its random numbers are the CPU's."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("pretend", Backend())
DEVICE = torch.device("pretend", 0)
MEMORY: dict[int, Tensor] = {}  # address of a tensor's storage -> the memory of the CPU that it stands for
COPIES = ("aten::_copy_from", "aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::_index_put_impl_", "aten::_unsafe_index")
AS_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)


def is_pretend(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == DEVICE.type


def memory_of(x: Tensor) -> Tensor:
    """The view of the CPU's memory that a tensor on the device stands for."""
    return MEMORY[x.untyped_storage()._cdata].as_strided(x.shape, x.stride(), x.storage_offset())


def on_device(values: Tensor, sources: list[Tensor]) -> Tensor:
    """Values on the CPU as a tensor on the device; a view of a source stays one."""
    for source in filter(is_pretend, sources):
        storage = MEMORY[source.untyped_storage()._cdata].untyped_storage()
        if values.numel() and values.untyped_storage().data_ptr() == storage.data_ptr():
            place = list(values.shape), list(values.stride()), values.storage_offset()
            return torch.ops.aten.as_strided.default.redispatch(AS_META, source, *place)
    made = torch._C._acc.create_empty_tensor(list(values.shape), values.dtype)
    MEMORY[made.untyped_storage()._cdata] = values.detach().flatten().clone()
    return made


def as_tensor(x: Any) -> Any:
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None) if isinstance(x, int | float) else x


def leaves(x: Any) -> list[Any]:
    """What is in lists and tuples; PyTorch's own function of this name takes longer than most operations here."""
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, list | tuple) else [x]


def each(function: Callable[[Any], Any], x: Any) -> Any:
    """The function of all leaves."""
    return type(x)([each(function, part) for part in x]) if type(x) in (list, tuple) else function(x)


@functools.cache
def told(op: Any) -> tuple[str, list[bool], list[bool], list[str]]:
    """An operation's name; which of its arguments are tensors, which are written to, and the names of its outputs."""
    schema = op._schema.arguments
    written = [a.alias_info is not None and a.alias_info.is_write for a in schema]
    return op._schema.name, [str(a.type) == "Tensor" for a in schema], written, [a.name for a in schema if a.is_out]


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation with a tensor on the device among its arguments, or the device itself."""
    name, takes_tensor, writes, outputs = told(op)
    tensors = [x for x in leaves((args, [*kwargs.values()])) if isinstance(x, Tensor)]
    looked_at = [] if name in COPIES else tensors
    if name.startswith(INDEXING) and is_pretend(tensors[0]):  # indices may lie on the CPU, but not the other way round
        looked_at = [x for x in args if isinstance(x, Tensor)]
    if len({x.device for x in looked_at if x.dim() or is_pretend(x)}) > 1 or kwargs.get("generator") is not None:
        raise RuntimeError(f"{name} mixes devices: {[(str(x.device), tuple(x.shape)) for x in tensors]}")

    def here(x: Any) -> Any:
        if is_pretend(x):
            return memory_of(x)
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == DEVICE.type else x

    # A number that stands where the operation takes a tensor arrives as a number.
    args = [as_tensor(x) if tensor else x for x, tensor in zip(args, takes_tensor, strict=False)]
    plain_args, plain_kwargs = each(here, args), {k: each(here, x) for k, x in kwargs.items()}
    if name == "aten::_copy_from":
        plain_args[1].copy_(plain_args[0])
        return args[1]
    result = REPLACED.get(name, op)(*plain_args, **plain_kwargs)
    written = [x for x, write in zip(args, writes, strict=False) if write]
    written += [kwargs[output] for output in outputs if output in kwargs]
    for x, values in zip(written, leaves(result), strict=False):
        if x.shape != values.shape:  # an output that had no shape yet
            x.data = on_device(values.clone(), [])
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    if isinstance(kwargs.get("device"), torch.device) and kwargs["device"].type == "cpu":
        return result
    return each(lambda x: on_device(x, tensors) if isinstance(x, Tensor) else x, result)


REPLACED = {  # what PyTorch asks of a backend that has convolutions of its own
    "aten::convolution_overrideable": torch.ops.aten.convolution,
    "aten::convolution_backward_overrideable": lambda grad, x, w, *rest: torch.ops.aten.convolution_backward(
        grad, x, w, [w.shape[0]], *rest
    ),
}
LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(compute, "PrivateUse1")
OVERRIDES = torch.library.Library("aten", "IMPL")
for name in (*REPLACED, "aten::_new_zeros_with_same_feature_meta"):  # the last asks for the size of the storage
    op = getattr(torch.ops.aten, name.removeprefix("aten::")).default
    OVERRIDES.impl(op, lambda *args, op=op, **kwargs: compute(op, *args, **kwargs), "PrivateUse1")
