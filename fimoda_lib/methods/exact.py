"""Exact: the operator is (G + λI)⁻¹, solved directly. For small problems, and as the yardstick of the others."""

import torch
from torch import Tensor

from ..derivatives.curvature import GaussNewton, Reduction, recommended_damping
from ..derivatives.gradients import Gradients
from ..derivatives.spectra import Dense, Spectrum, damped
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
    in_instances = solved_in_instances(G)

    def P(g: Tensor) -> Tensor:
        if not in_instances:
            return torch.linalg.solve(
                G.dense() + damping * torch.eye(at.n_params, dtype=dtype, device=at.device), g.T
            ).T
        # Woodbury: (AᵀA/n + λI)⁻¹ g = (g - Aᵀ (AAᵀ + nλI)⁻¹ A g) / λ
        gram = G.gram(dtype) + G.n * damping * torch.eye(G.n * G.rank, dtype=dtype, device=at.device)
        weights = torch.linalg.solve(gram, G.overlaps(g, dtype).T).T
        return (g - G.combine(weights)) / damping

    return apply_operator(at, P, train, test), {
        "damping": damping,
        "solved_in": "instances" if in_instances else "parameters",
    }


def solved_in_instances(G: GaussNewton) -> bool:
    """Whether the rows of A are at most as many as the parameters."""
    return G.n * G.rank <= G.at.n_params


class Sweep:
    """`exact` with one damping after another, by a single eigendecomposition of G.

    To be given to `attribute` in place of the name, again and again with the same task, parameters and curvature.
    """

    __name__ = "exact"

    def __init__(self) -> None:
        self.decomposed: tuple[Gradients, Spectrum, float] | None = None

    def __call__(
        self,
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
        """As `exact`."""
        if self.decomposed is None:
            at = Gradients(task, params, dtype=dtype)
            G = GaussNewton(at, curvature)
            spectrum = Reduction(G) if solved_in_instances(G) else Dense(G)
            self.decomposed = at, spectrum, recommended_damping(at, curvature)
        at, spectrum, recommended = self.decomposed
        damping = resolve_damping(damping, multiple, lambda: recommended)
        g_test = at.of_losses(at.test(test))
        inside = spectrum.into(g_test)
        scores = [next(damped(spectrum, g_test, inside, g, [damping])) for _, g in at.blocks(train)]
        solved_in = "instances" if isinstance(spectrum, Reduction) else "parameters"
        return torch.cat(scores, 1).cpu(), {"damping": damping, "solved_in": solved_in}
