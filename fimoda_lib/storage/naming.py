"""Names of losses and models that last: the same in every process, and another for anything that computes otherwise.

Stored results are found by these names, so that two losses under one name would be mistaken for each other. A name
therefore follows code and values wherever a loss may keep them: its own code, what it captures, its default values,
the globals it reads, the attributes of an object. Libraries are taken by name, not followed inside.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..tasks import cross_entropy, squared_error
from .sources import LIBRARIES, imported_inside, source
from .store import fingerprint

PLAIN = {squared_error: "squared_error", cross_entropy: "cross_entropy"}
# Layers whose `repr` says everything about them but their weights.
TOLD_BY_REPR = {
    *(nn.Sequential, nn.ModuleList, nn.Identity, nn.Flatten, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding),
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.LeakyReLU, nn.Dropout, nn.Dropout2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
}
SIMPLE = (bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType)
SETTINGS = (*SIMPLE, tuple, types.FunctionType, types.BuiltinFunctionType)  # torch.tanh is one of the last
HELD = (*SIMPLE, list, tuple, dict, set, frozenset, np.ndarray, Tensor, types.FunctionType)  # of a module, described
ASIDE = ("training", "name_or_path")  # of a module: where it came from, and how it was used last
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def loss_name(loss: Any) -> str:
    """The name of a loss in specifications: readable, then 16 hexadecimal digits of all that determines it.

    Raises:
        ValueError: the loss holds something that cannot be told from another of its kind.
    """
    if isinstance(loss, types.FunctionType) and loss in PLAIN:
        return PLAIN[loss]
    return f"{_readable(loss)}#{_digest('loss', [loss])}"


def model_name(model: nn.Module) -> str | None:
    """16 hexadecimal digits of what `repr(model)` does not say: code and settings of its modules, but no weights.

    None if there is nothing to add: layers that `repr` tells everything about, and this library's own models.
    """
    parts = list(_modules(model, ""))
    return _digest("model", parts) if parts else None


def _modules(module: nn.Module, path: str, ours: bool = False) -> Iterator[Any]:
    """What is to be told of a module and those in it; `ours`: it lies in one of this library, which tells its settings.

    Of a library's modules it is settings only: beside them lie paths, caches and the like.
    """
    kind = type(module)
    kept = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
    added = {k: [*map(_hook, v.values())] for k, v in kept.items() if k in HOOKS and v}  # not by their numbers
    added |= {k: v for k, v in kept.items() if k == "forward"}
    in_package = kind.__module__.split(".")[0] == "fimoda_lib"
    ours, own = ours or in_package, not (in_package or _of_library(kind))
    if in_package or _told_by_repr(module) or (ours and not own):
        kept = added
    elif ours:
        kept = {k: v for k, v in kept.items() if _is_setting(v) and k not in ASIDE and not k.startswith("_")} | added
    elif own:
        kept |= added
    else:
        kept = {k: v for k, v in kept.items() if isinstance(v, SETTINGS)} | added
    if kept or own:
        yield [path, kind, kept]
    for name, child in module.named_children():
        yield from _modules(child, f"{path}.{name}", ours)


def _is_setting(value: Any) -> bool:
    several = isinstance(value, list) and all(isinstance(one, SIMPLE) for one in value)
    return several or isinstance(value, (*SETTINGS, Tensor))


def _hook(hook: Any) -> Any:
    """A hook without the weights of the module that it may be a method of."""
    own = isinstance(hook, types.MethodType) and isinstance(hook.__self__, nn.Module)
    return [hook.__func__, type(hook.__self__)] if own else hook


def _told_by_repr(module: nn.Module) -> bool:
    if type(module) is nn.AvgPool2d:
        return (module.ceil_mode, module.count_include_pad, module.divisor_override) == (False, True, None)
    return type(module) in TOLD_BY_REPR


def _readable(value: Any) -> str:
    if isinstance(value, functools.partial):
        return _readable(value.func)
    return getattr(value, "__qualname__", None) or type(value).__name__


def _digest(what: str, parts: list[Any]) -> str:
    return hashlib.sha256(_describe(parts, {}, what).encode()).hexdigest()[:16]


def _describe(value: Any, seen: dict[int, tuple[int, Any]], what: str) -> str:
    """A text that differs for values that differ. `seen`: id -> number and value of what has been described already."""
    if isinstance(value, SIMPLE):
        return f"{type(value).__name__}:{value!r}"
    if id(value) in seen:
        return f"<{seen[id(value)][0]}>"
    if not isinstance(value, tuple | types.CodeType):  # whether Python shares these is its own affair
        seen[id(value)] = len(seen), value

    def inside(*pieces: Any) -> str:
        return f"{type(value).__name__}({','.join(_describe(piece, seen, what) for piece in pieces)})"

    if isinstance(value, Tensor | np.ndarray):
        return f"array:{fingerprint(value)}"
    if isinstance(value, tuple | list):
        return inside(*value)
    if isinstance(value, set | frozenset):
        return f"set({','.join(sorted(_describe(v, {}, what) for v in value))})"
    if isinstance(value, Mapping):
        return inside(*(part for key in sorted(value, key=repr) for part in (key, value[key])))
    if isinstance(value, functools.partial):
        return inside(value.func, value.args, value.keywords)
    if isinstance(value, types.MethodType):
        return inside(value.__func__, value.__self__)
    if isinstance(value, staticmethod | classmethod):
        return inside(value.__func__)
    if isinstance(value, property):
        return inside(value.fget)
    if isinstance(value, types.ModuleType):
        return f"module:{value.__name__}:{source(value)}"
    if isinstance(value, types.FunctionType):
        return inside(*_function_parts(value))
    if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
        return f"builtin:{getattr(value, '__module__', None)}.{value.__qualname__}"
    if isinstance(value, types.CodeType):
        arguments = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]  # callers may name them
        return inside(value.co_code, value.co_names, value.co_consts, arguments)
    if isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        return name if _of_library(value) else inside(value.__qualname__, _class_members(value), value.__bases__)
    if hasattr(value, "__dict__"):
        return inside(type(value), vars(value))
    try:
        return f"{type(value).__name__}:{hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()}"
    except Exception as error:
        raise ValueError(
            f"The {what} holds a {type(value).__name__}, which has no lasting name, so that stored results could be "
            "mistaken for each other; keep numbers, strings, tensors or functions there instead."
        ) from error


def _function_parts(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    parts = [function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__, cells]
    if function.__code__.co_filename.startswith(LIBRARIES):
        return [function.__module__, *parts]
    globals_read = {name: function.__globals__[name] for name in _globals(function.__code__) & {*function.__globals__}}
    imported = imported_inside(function.__code__, function.__globals__.get("__package__"))
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    names = {**globals_read, **{name: cell.cell_contents for name, cell in free if _filled(cell)}}
    own = [imported, _held_by_modules(function.__code__, names)]
    return [*parts, globals_read, vars(function), *filter(None, own)]


def _held_by_modules(code: types.CodeType, names: Mapping[str, Any]) -> dict[str, Any]:
    """What a code object, with nested ones, reads of modules of one's own, as it is now: "settings.rate" -> its value.

    Their files say what it was when they were read.
    """
    found: dict[str, Any] = {}
    place, value = "", None
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
            place, value = step.argval, names.get(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType):
            own, place, value = not _from_library(value), f"{place}.{step.argval}", getattr(value, step.argval, None)
            if own and isinstance(value, HELD):
                found[place] = value
        else:
            value = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _held_by_modules(constant, names)
    return found


def _globals(code: types.CodeType) -> set[str]:
    """The global names that a code object reads, in nested functions as well."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    nested = [_globals(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return names.union(*nested)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a local function that is not defined yet
        return False
    return True


def _class_members(kind: type) -> dict[str, Any]:
    function = (types.FunctionType, staticmethod, classmethod, property)
    slot = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return {
        name: member
        for name, member in vars(kind).items()
        if isinstance(member, function)
        or not (name.startswith("__") or name == "_abc_impl" or isinstance(member, slot))
    }


def _of_library(kind: type) -> bool:
    """Whether a class is found under its name in a library's module (classes made by `exec` may claim to be)."""
    module = sys.modules.get(kind.__module__)
    found: Any = module
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind and _from_library(module)


def _from_library(module: types.ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return module is not None and (file.startswith(LIBRARIES) if file else module.__name__ != "__main__")
