"""What all attribution methods share: `score(z, i) = g_zᵀ P gᵢ`, and the registry.

A method is an operator P on the gradients of the test losses. It returns scores [n_test, n_train], positive = helpful
(leaving the instance out raises the test loss), or (scores, report) where there is something to report.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import number, shown
from ..derivatives.gradients import Gradients
from ..devices import free_memory

FAMILIES = ("first-order", "influence function", "projection", "ours", "yours")
WITH_EACH = 12  # vectors for each test gradient that a GPU solves for, most of them in iterations and their batches
COMMON = ("task", "params", "train", "test", "curvature")

Report = dict[str, Any]


class MethodDiverged(RuntimeError):
    """An iterative method that has no result, with the reason: a finding about the method, not to be averaged away."""


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Args:
        name: what `attribute` takes.
        label: how figures call it.
        family: one of `FAMILIES`.
        reference: where the method comes from.
        function: `function(task, params, *, train, test, curvature, **hyper)`.
        groups: whether it scores groups of instances as a whole; for others they are sums over their members.
    """

    name: str
    label: str
    family: str
    reference: str
    function: Callable[..., Any]
    groups: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyper-parameters and their default values."""
        _, _, *parameters = inspect.signature(self.function).parameters.values()  # task and params, however called
        return {p.name: p.default for p in parameters if p.name not in COMMON and p.default is not p.empty}

    @property
    def takes_any(self) -> bool:
        """Whether it has `**options`."""
        return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.function).parameters.values())


METHODS: dict[str, Method] = {}


def method(*, label: str, family: str, reference: str, groups: bool = False) -> Callable:
    """Registers a function of this name as an attribution method."""

    def register(function: Callable) -> Callable:
        name = function.__name__
        METHODS[name] = Method(name, label, family, reference, function, groups)
        return function

    return register


def apply_operator(
    at: Gradients, P: Callable[[Tensor], Tensor], train: Tensor, test: Tensor, *, normalise: bool = False
) -> Tensor:
    """`g_zᵀ P gᵢ` for all test instances z and training instances i, [n_test, n_train] on the CPU.

    Args:
        P: maps test gradients [n_test, P] to preconditioned ones of the same shape: all at once, or as many as a GPU
            holds.
        normalise: whether training gradients are scaled to length 1.
    """
    scores, start = torch.empty(len(test), len(train), dtype=at.dtype), 0
    for piece in test.split(solved_at_once(at) or len(test)):
        solved = P(at.of_losses(at.test(piece)))
        for columns, g in at.blocks(train):
            if normalise:
                g = unit(g)
            scores[start : start + len(piece), columns] = (solved @ g.T).cpu()
        start += len(piece)
    return scores


def solved_at_once(at: Gradients) -> int | None:
    """How many vectors of the size of the parameters a method solves for at once; None on a CPU: all."""
    if at.device.type != "cuda":
        return None
    return max(free_memory(at.device) // (WITH_EACH * at.n_params * torch.finfo(at.dtype).bits // 8), 1)


def add_rows(report: Report, **rows: list) -> None:
    """Adds to a report what was found for some test instances, after those before them."""
    for name, values in rows.items():
        report[name] = [*report.get(name, []), *values]


def unit(gradients: Tensor) -> Tensor:
    """Rows scaled to length 1; zero rows stay zero. First by their largest entries, whose squares may underflow."""
    for length in (lambda g: g.abs().amax(1, keepdim=True), lambda g: g.norm(dim=1, keepdim=True)):
        gradients = gradients / length(gradients).clamp(min=torch.finfo(gradients.dtype).tiny)
    return gradients


def resolve_damping(damping: float | str, multiple: float, recommended: Callable[[], float]) -> float:
    """The damping by value: `multiple` times a number, or times the method's recommended one.

    Raises:
        ValueError: not a positive number and not "recommended".
    """
    if isinstance(damping, str) and damping == "recommended":
        damping = recommended()
        if damping == 0:
            raise ValueError(
                "damping: the recommended one is 0, since all loss gradients of the curvature's instances are zero; "
                "expected a positive number."
            )
    given = float(number("damping", damping, "a positive number or 'recommended'"))
    expected = f"a positive number (the damping would be {given:g} times {shown(multiple)})"
    return given * number("multiple", multiple, expected)
