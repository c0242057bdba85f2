"""Exact: the operator is (G + λI)⁻¹, solved directly. For small problems, and as the yardstick of the others."""

import torch
from torch import Tensor

from ..derivatives.curvature import GaussNewton, recommended_damping
from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import Report, apply_operator, method, resolve_damping


@method(label="Exact", family="influence function", reference="Koh & Liang 2017, with the Gauss-Newton matrix")
def exact(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    damping: float | str = "recommended",
    multiple: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Damped Gauss-Newton influence by a direct solve, in parameters or, if smaller, in training instances.

    Args:
        damping: λ by value, or "recommended" (the mean squared entry of the loss gradients).
        multiple: factor on `damping`.

    Returns:
        [n_test, n_train]; divided by n: the loss change of the damped Newton step that removes the instance.
    """
    at = Gradients(task, params, dtype=dtype)
    G = GaussNewton(at, curvature)
    damping = resolve_damping(damping, multiple, lambda: recommended_damping(at, curvature))
    in_instances = G.n * G.rank <= at.n_params

    def P(g: Tensor) -> Tensor:
        if not in_instances:
            return torch.linalg.solve(
                G.dense() + damping * torch.eye(at.n_params, dtype=dtype, device=at.device), g.T
            ).T
        # Woodbury: (AᵀA/n + λI)⁻¹ g = (g - Aᵀ (AAᵀ + nλI)⁻¹ A g) / λ
        gram = G.gram() + G.n * damping * torch.eye(G.n * G.rank, dtype=dtype, device=at.device)
        weights = torch.linalg.solve(gram, G.overlaps(g).T).T
        return (g - G.combine(weights)) / damping

    return apply_operator(at, P, train, test), {
        "damping": damping,
        "solved_in": "instances" if in_instances else "parameters",
    }
