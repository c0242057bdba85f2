"""CG: the operator is (G + λI)⁻¹ by conjugate gradients, all test gradients at once."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checks
from ..derivatives.curvature import GaussNewton, Reduction, recommended_damping
from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import Report, add_rows, apply_operator, method, resolve_damping


@method(label="CG", family="influence function", reference="Koh & Liang 2017; Martens 2010")
def cg(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    damping: float | str = "recommended",
    multiple: float = 1.0,
    tolerance: float | None = None,
    max_iterations: int = 2000,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Damped Gauss-Newton influence by conjugate gradients.

    Args:
        damping: λ by value, or "recommended" (the mean squared entry of the loss gradients).
        multiple: factor on `damping`.
        tolerance: a column has converged when its residual is this small relative to its gradient; by default 1e-10
            in float64 and 1e-5 in float32.

    Returns:
        scores [n_test, n_train] (divided by n: the loss change of the damped Newton step that removes the instance),
        and a report: damping, iterations and residual of each test instance. Columns that did not converge are named
        in a warning.
    """
    if tolerance is None:
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    tolerance = checks.number("tolerance", tolerance, "a positive number or None")
    checks.whole("max_iterations", max_iterations)
    at = Gradients(task, params, dtype=dtype)
    damping = resolve_damping(damping, multiple, lambda: recommended_damping(at, curvature))
    G = GaussNewton(at, curvature)
    report: Report = {"damping": damping, "tolerance": tolerance}

    def solve(products: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
        solution, iterations, residual = conjugate_gradients(
            lambda v: products(v) + damping * v, g, tolerance=tolerance, max_iterations=max_iterations
        )
        here = test[len(report.get("residual", ())) :][: len(residual)]
        add_rows(report, iterations=iterations.tolist(), residual=residual.tolist())
        late = here[(residual > tolerance).cpu()].tolist()
        if late:
            warnings.warn(
                f"CG: {len(late)} of {len(here)} test instances did not converge to {tolerance:g} in "
                f"{max_iterations} iterations (instances {late[:10]}); raise damping or max_iterations.",
                stacklevel=2,
            )
        return solution

    def P(g: Tensor) -> Tensor:
        if not G.reducible:
            return solve(G.products, g)
        reduced = Reduction(
            G
        )  # the same system in far fewer coordinates; outside the range of G it is λ times identity
        inside = reduced.into(g)
        return reduced.out_of(solve(reduced.products, inside)) + (g - reduced.out_of(inside)) / damping

    return apply_operator(at, P, train, test), report


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor], right: Tensor, *, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves `operator(x) = right` for every row at once; rows that have converged no longer cost anything.

    Args:
        operator: symmetric positive definite, on rows [k, P].
        right: [m, P].

    Returns:
        x [m, P], iterations [m], and the true relative residual of each row [m], computed anew at the end.
    """
    norm = right.norm(dim=1)
    x, iterations = torch.zeros_like(right), torch.zeros(len(right), dtype=torch.long, device=right.device)
    # Recurrences drift from the true residual, in float32 by far: a second pass starts from the true one.
    for _ in range(3):
        residual = right - operator(x)
        active = (residual.norm(dim=1) > tolerance * norm).nonzero()[:, 0]
        r, p = residual[active], residual[active].clone()
        square = r.square().sum(1)
        with tqdm(total=max_iterations, desc="conjugate gradients", leave=False, disable=None) as bar:
            while len(active) and iterations[active].max() < max_iterations:
                Ap = operator(p)
                step = square / (p * Ap).sum(1)
                x[active] += step[:, None] * p
                r -= step[:, None] * Ap
                iterations[active] += 1
                new = r.square().sum(1)
                p = r + (new / square)[:, None] * p
                square = new
                keep = square.sqrt() > tolerance / 2 * norm[active]
                if not keep.all():
                    active, r, p, square = active[keep], r[keep], p[keep], square[keep]
                bar.update()
    final = (right - operator(x)).norm(dim=1) / norm.clamp(min=torch.finfo(right.dtype).tiny)
    return x, iterations, final
