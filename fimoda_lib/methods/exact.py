"""Exact: the operator is (G + λI)⁻¹, solved directly. For small problems, and as the yardstick of the others."""

import torch
from torch import Tensor

from ..derivatives.curvature import GaussNewton, Reduction, recommended_damping
from ..derivatives.gradients import Gradients
from ..devices import eigh
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
        gram = G.gram() + G.n * damping * torch.eye(G.n * G.rank, dtype=dtype, device=at.device)
        weights = torch.linalg.solve(gram, G.overlaps(g).T).T
        return (g - G.combine(weights)) / damping

    return apply_operator(at, P, train, test), {
        "damping": damping,
        "solved_in": "instances" if in_instances else "parameters",
    }


def solved_in_instances(G: GaussNewton) -> bool:
    """Whether the rows of A are at most as many as the parameters."""
    return G.n * G.rank <= G.at.n_params


class Sweep:
    """`exact` with one damping after another, by a single eigendecomposition of G: g_zᵀ (G + λI)⁻¹ gᵢ is g_zᵀ gᵢ / λ,
    but for the part in the eigenvectors of G.

    To be given to `attribute` in place of the name, again and again with the same task, parameters and instances.
    """

    __name__ = "exact"

    def __init__(self) -> None:
        self.parts: tuple[Tensor, ...] = ()
        self.report: Report = {}

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
        if not self.parts:
            at = Gradients(task, params, dtype=dtype)
            self._decompose(at, GaussNewton(at, curvature), train, test)
            self.recommended = recommended_damping(at, curvature)
        damping = resolve_damping(damping, multiple, lambda: self.recommended)
        eigenvalues, plain, inside_test, inside_train = self.parts
        bent = 1 / (eigenvalues + damping) - 1 / damping
        scores = plain / damping + (inside_test * bent) @ inside_train.T
        return scores.cpu(), {"damping": damping, **self.report}

    def _decompose(self, at: Gradients, G: GaussNewton, train: Tensor, test: Tensor) -> None:
        if solved_in_instances(G):
            reduced = Reduction(G)
            eigenvalues, into = reduced.eigenvalues, reduced.into
        else:
            eigenvalues, vectors = eigh(G.dense())

            def into(gradients: Tensor) -> Tensor:
                return gradients @ vectors

        g_test = at.of_losses(at.test(test))
        blocks = [(g_test @ g.T, into(g)) for _, g in at.blocks(train)]
        plain, inside = torch.cat([b[0] for b in blocks], 1), torch.cat([b[1] for b in blocks])
        self.parts = (eigenvalues, plain, into(g_test), inside)
        self.report = {"solved_in": "instances" if solved_in_instances(G) else "parameters"}
