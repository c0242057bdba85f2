"""DataInf: the operator is, layer by layer, the mean of damped inverses of rank-one terms."""

import torch
from torch import Tensor

from ..checks import number, shown
from ..derivatives.curvature import layer_damping
from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import Report, apply_operator, method


@method(label="DataInf", family="first-order", reference="Kwon et al. 2024, eq. 5")
def datainf(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    damping: dict[str, float] | None = None,
    scale: float = 10.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """The mean over instances j of (λ + gⱼgⱼᵀ)⁻¹ in every layer, by the Sherman-Morrison formula, in matrix form.

    Args:
        damping: parameter name -> λ; by default the paper's rule, 1/`scale` times the layer's mean squared gradient
            entry. A layer whose gradients are zero but for rounding (unused, or the bias of attention keys, on which
            no loss depends) is then left out: over so small a λ, rounding would look like a score.
        scale: the paper's c; it plots c = 10.

    Returns:
        scores [n_test, n_train] (divided by n: a loss change), and a report with the damping of the layers.

    Raises:
        ValueError: a layer's damping is missing, unknown or not positive.
    """
    at = Gradients(task, params, dtype=dtype)
    if damping is None:
        scale = number("scale", scale)
        squares = layer_damping(at, curvature)
        rounding = (100 * torch.finfo(dtype).eps) ** 2 * max(squares.values())
        damping = {name: value / scale for name, value in squares.items() if value > rounding}
    else:
        expected = f"one positive number for each of {', '.join(at.names)}"
        if not isinstance(damping, dict) or set(damping) != set(at.names):
            raise ValueError(f"damping: got {shown(damping)}, expected {expected}.")
        for value in damping.values():
            number("damping", value, expected)

    where = {name: at.columns()[name] for name in damping}

    def P(g: Tensor) -> Tensor:
        solved = torch.zeros_like(g)
        for columns in where.values():
            solved[:, columns] = g[:, columns]
        for _, g_ref in at.blocks(curvature):
            for name, columns in where.items():
                reference = g_ref[:, columns]
                overlap = g[:, columns] @ reference.T / (damping[name] + reference.square().sum(1))  # [n_test, b]
                solved[:, columns] -= overlap @ reference / len(curvature)
        for name, columns in where.items():
            solved[:, columns] /= damping[name]
        return solved

    return apply_operator(at, P, train, test), {"damping": damping}
