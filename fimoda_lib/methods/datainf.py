"""DataInf: the operator is, layer by layer, the mean of damped inverses of rank-one terms."""

import torch
from torch import Tensor

from ..checks import number, shown
from ..curvature import layer_damping
from ..gradients import Gradients
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
            entry.
        scale: the paper's c; it plots c = 10.

    Returns:
        scores [n_test, n_train] (divided by n: a loss change), and a report with the damping of every layer.

    Raises:
        ValueError: a layer's damping is missing, unknown or not positive.
    """
    at = Gradients(task, params, dtype=dtype)
    if damping is None:
        scale = number("scale", scale)
        damping = {name: value / scale for name, value in layer_damping(at, curvature).items()}
    expected = f"one positive number for each of {', '.join(at.names)}"
    if not isinstance(damping, dict) or set(damping) != set(at.names):
        raise ValueError(f"damping: got {shown(damping)}, expected {expected}.")
    for value in damping.values():
        number("damping", value, expected)

    def P(g: Tensor) -> Tensor:
        solved = g.clone()
        for _, g_ref in at.blocks(curvature):
            for name, columns in at.columns().items():
                reference = g_ref[:, columns]
                overlap = g[:, columns] @ reference.T / (damping[name] + reference.square().sum(1))  # [n_test, b]
                solved[:, columns] -= overlap @ reference / len(curvature)
        for name, columns in at.columns().items():
            solved[:, columns] /= damping[name]
        return solved

    return apply_operator(at, P, train, test), {"damping": damping}
