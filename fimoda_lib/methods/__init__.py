"""How does a gradient-based method score training instances, one method per file?

`attribute` runs any of them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .. import checks
from ..derivatives.gradients import check_gradients
from ..devices import choose_device, strict_arithmetic
from ..groups import as_matrix, group_scores, is_grouped, numbered, resolve_left_out
from ..tasks import Params, Task, check_params, check_task, resolve_rows
from ..training.trial import check_evaluation
from .base import FAMILIES, METHODS, Method, MethodDiverged, Report, method
from .cg import cg
from .datainf import datainf
from .ekfac import ekfac
from .exact import exact
from .grad_cos import grad_cos
from .grad_dot import grad_dot
from .lft import lft
from .lissa import lissa
from .lissa_h import lissa_h
from .trak import trak

__all__ = [
    "FAMILIES",
    "METHODS",
    "Method",
    "MethodDiverged",
    "attribute",
    "cg",
    "check_hyper",
    "datainf",
    "ekfac",
    "entry_of",
    "exact",
    "grad_cos",
    "grad_dot",
    "lft",
    "lissa",
    "lissa_h",
    "method",
    "trak",
]


def attribute(
    method: str | Callable[..., Any],
    task: Task,
    params: Params,
    *,
    train: Iterable[int] | Iterable[Iterable[int]] | None = None,
    test: Iterable[int] | None = None,
    curvature: Iterable[int] | None = None,
    device: str | torch.device | None = None,
    **hyper: Any,
) -> xr.DataArray:
    """Scores of training instances for test instances by one method.

    Args:
        method: a name in `METHODS`, or a function of your own with the signature of those in this folder; its `params`
            come on the device.
        train: the training instances that are scored (all by default); or groups of them, such as [[3, 8, 21], [5]]:
            their scores are the sums over their members, but for "lft", which follows each group as a whole.
        test: the test instances that are explained (all by default).
        curvature: the training instances that define the curvature (all by default, whatever `train` is).
        device: where to compute; a GPU if there is one. Scores come back to the CPU.
        hyper: the method's hyper-parameters, by value; see `METHODS[name].defaults`.

    Returns:
        scores[test, train] (for "lft" scores[horizon, test, train]) with the true instance numbers as coordinates;
        positive = helpful (leaving the instance out raises the test loss); for groups `train` counts them. The
        hyper-parameters and what the method reports are among the attributes.

    Raises:
        ValueError: unknown method or hyper-parameter, or a value that cannot be right.
        MethodDiverged: an iterative method has no result.
    """
    entry = entry_of(method)
    check_task(task)
    check_params(task.model, params)
    check_hyper(entry, hyper)
    hyper = {name: checks.plain(value) for name, value in hyper.items()}
    if "dtype" in hyper:
        names = {"float32": torch.float32, "float64": torch.float64}
        dtype = hyper["dtype"] if isinstance(hyper["dtype"], str) else str(hyper["dtype"]).removeprefix("torch.")
        checks.choice("dtype", dtype, names)
        hyper["dtype"] = names[dtype]
    scored = range(task.n_train) if train is None else resolve_left_out(train, task.n_train, "train")
    grouped = is_grouped(scored)
    if grouped and not entry.groups:
        chosen = {"train": {i for group in scored for i in group}, "test": test, "curvature": curvature}
        return group_scores(attribute(method, task, params, **chosen, device=device, **hyper), scored)
    rows = {
        "train": as_matrix(scored),
        "test": resolve_rows(test, task.n_test, "test"),
        "curvature": resolve_rows(curvature, task.n_train, "curvature"),
    }
    for name, chosen in rows.items():
        checks.some(name, chosen, ", or None for all")
    where = choose_device(device)
    dtype = hyper.get("dtype", torch.float64)
    check_evaluation(task, params, where, dtype=dtype, gradients=entry.name in METHODS)
    given = {k: p.detach().to(where, copy=True) for k, p in params.items()}  # a method may write to these and to rows
    with strict_arithmetic(where):
        try:
            result = entry.function(task, given, **{name: chosen.clone() for name, chosen in rows.items()}, **hyper)
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, torch.OutOfMemoryError):
                check_gradients(task, params, rows, where)
            raise
    scores, report = _parts(result, entry.name)
    horizons = {"horizon": report["horizon"]} if "horizon" in report else {}
    if isinstance(scores, Tensor) and not scores.isfinite().all():
        check_gradients(task, params, rows, where)
    _check(scores, entry.name, [len(h) for h in horizons.values()] + [len(rows["test"]), len(rows["train"])])
    settings, named = {**entry.defaults, **hyper, **report}, {"method": entry.name, "label": entry.label}
    return xr.DataArray(
        scores.detach().cpu().numpy(),
        dims=(*horizons, "test", "train"),
        name=entry.name,
        coords={**horizons, "test": rows["test"].numpy(), **(numbered(scored) if grouped else {"train": [*scored]})},
        attrs={**named, **{k: _plain(v) for k, v in settings.items()}, **named},
    )


def check_hyper(entry: Method, hyper: Iterable[str]) -> None:
    """Raises ValueError if the method has no hyper-parameter of one of these names."""
    if (unknown := set(hyper) - set(entry.defaults)) and not entry.takes_any:
        raise ValueError(
            f"{entry.name} has no hyper-parameter {sorted(unknown)[0]!r}; it has {', '.join(entry.defaults) or 'none'}."
        )


def entry_of(method: str | Callable) -> Method:
    """The registry's entry of a name or function, or a new one for a function of somebody's own.

    Raises:
        ValueError: no method has this name, or the function cannot be called as one.
    """
    if callable(method):
        _check_signature(method)
        name = getattr(method, "__name__", "custom")
        known = METHODS.get(name)
        return known if known and known.function is method else Method(name, name, "yours", "", method)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"There is no method {checks.shown(method)}; choose one of {', '.join(METHODS)}.")
    return METHODS[method]


def _check_signature(function: Callable) -> None:
    try:
        inspect.signature(function).bind(None, None, train=None, test=None, curvature=None)
    except (TypeError, ValueError):
        raise ValueError(
            f"method: got {checks.shown(function)}, which cannot be called as method(task, params, *, train, test, "
            "curvature); expected a function of that signature, or a name in METHODS."
        ) from None


def _parts(result: Any, name: str) -> tuple[Any, Report]:
    """Scores, a tensor where they are numbers of an array, and the report, {} without one."""
    if isinstance(result, tuple) and (len(result) != 2 or not isinstance(result[1], dict)):
        raise ValueError(f"{name} returned a tuple {checks.shown(result)}; expected scores, or scores and a dict.")
    scores, report = result if isinstance(result, tuple) else (result, {})
    horizon = report.get("horizon", [])
    if not isinstance(horizon, list | tuple) or len({*map(repr, horizon)}) != len(horizon):
        raise ValueError(f"{name} reported the horizon {checks.shown(horizon)}; expected different steps in a list.")
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "fiu":
        kept = np.float32 if scores.dtype == np.float32 else np.float64  # neither byte order nor strides
        scores = torch.from_numpy(np.ascontiguousarray(scores, dtype=kept))
    elif isinstance(scores, Tensor):
        dense = scores.layout == torch.strided and not scores.is_meta
        if not dense or scores.is_complex() or scores.dtype == torch.bool:
            kind = "meta" if scores.is_meta else f"{scores.dtype} {scores.layout}".replace("torch.", "")
            raise ValueError(f"{name} returned a {kind} tensor; expected a dense one of real numbers.")
        scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.double()
    return scores, report


def _check(scores: Tensor, name: str, expected: list[int]) -> None:
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"{name} returned {type(scores).__name__} {checks.shown(scores)}; expected a tensor of scores."
        )
    if list(scores.shape) != expected:
        raise ValueError(f"{name} returned scores of shape {tuple(scores.shape)}, expected {tuple(expected)}.")
    if not scores.isfinite().all():
        bad = (~scores.isfinite()).any(-1).flatten(0, -2).any(0) if scores.dim() > 2 else (~scores.isfinite()).any(1)
        raise MethodDiverged(
            f"{name} returned NaN or infinite scores for {int(bad.sum())} of {expected[-2]} test instances."
        )


def _plain(value: Any) -> Any:
    """A value that NetCDF attributes can hold."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    value = checks.plain(value)
    simple = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if simple else json.dumps(value, default=lambda one: checks.shown(checks.plain(one)))
