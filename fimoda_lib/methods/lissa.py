"""LiSSA: the operator is (G + λI)⁻¹ by a Neumann series over random batches, all test gradients on the same batches."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checks
from ..derivatives.curvature import GaussNewton, Reduction, recommended_damping
from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import MethodDiverged, Report, add_rows, apply_operator, method, resolve_damping, unit

SCALES = (10, 20, 50, 100, 150, 200, 250, 300, 400, 500)  # the paper's: the smallest that converges is taken
EXPLODED = 1e8  # growth of the iterate, relative to its start, that counts as divergence
CHECK_EVERY = 50  # steps between looks at the growth


@method(label="LiSSA", family="influence function", reference="Agarwal et al. 2017; Koh & Liang 2017")
def lissa(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    damping: float | str = "recommended",
    multiple: float = 1.0,
    scale: float | Sequence[float] = SCALES,
    depth: int = 5000,
    batch_size: int | None = 128,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Damped Gauss-Newton influence by the recursion h <- v + h - (G_batch h + λh)/σ, result h/σ.

    Args:
        damping: λ by value, or "recommended" (the mean squared entry of the loss gradients).
        multiple: factor on `damping`.
        scale: σ, or several in ascending order of which the first that converges is taken.
        depth: number of steps.
        batch_size: instances per batch, drawn with replacement; None takes all of them in every step.

    Returns:
        scores [n_test, n_train] (divided by n: a loss change), and a report: damping, scale, the scales that diverged,
        and the relative residual of each test instance with respect to all curvature instances.

    Raises:
        MethodDiverged: no scale converged.
    """
    scales = check_series(scale, depth, batch_size, seed)
    at = Gradients(task, params, dtype=dtype)
    damping = resolve_damping(damping, multiple, lambda: recommended_damping(at, curvature))
    G = GaussNewton(at, curvature)

    report: Report = {"damping": damping}

    def P(v: Tensor) -> Tensor:
        if not G.reducible:
            solve = neumann_solver(
                partial(batch_product, G.factor_at, G.products, at_once=G.at_once),
                len(curvature),
                damping,
                scales,
                depth,
                batch_size,
                seed,
                report,
            )
            return solve(v)
        # All iterates stay in the span of v and the range of G: the same recursion in far fewer coordinates, and one
        # more for the part of v outside the range, along which G is zero.
        reduced = Reduction(G)
        A = torch.nn.functional.pad(reduced.factor, (0, 1))
        product = partial(batch_product, A.view(G.n, G.rank, -1).__getitem__, lambda h: (h @ A.T) @ A / G.n)
        solve = neumann_solver(product, len(curvature), damping, scales, depth, batch_size, seed, report)
        inside = reduced.into(v)
        outside = v - reduced.out_of(inside)
        solved = solve(torch.cat([inside, outside.norm(dim=1, keepdim=True)], 1))
        return reduced.out_of(solved[:, :-1]) + unit(outside) * solved[:, -1:]

    return apply_operator(at, P, train, test), report


def batch_product(
    factor: Callable[[Tensor], Tensor],
    full: Callable[[Tensor], Tensor],
    h: Tensor,
    positions: Tensor | None,
    at_once: int | None = None,
) -> Tensor:
    """The Gauss-Newton matrix of a batch, or with positions None of all instances, times each row of h.

    Args:
        at_once: of how many instances to hold the factor.
    """
    if positions is None:
        return full(h)
    factors = (factor(piece).flatten(0, -2) for piece in positions.split(at_once or len(positions)))
    return sum((h @ A.T) @ A for A in factors) / len(positions)


def check_series(scale: float | Sequence[float], depth: int, batch_size: int | None, seed: int) -> list[float]:
    """The scales to try; raises ValueError for settings of a series that cannot be right."""
    one = isinstance(checks.plain(scale), int | float)
    scales = [scale] if one else checks.elements("scale", scale, "a positive number, or several in ascending order")
    if not scales or [checks.number("scale", sigma) for sigma in scales] != sorted(scales):
        raise ValueError(f"scale: got {checks.shown(scale)}, expected at least one, in ascending order.")
    checks.whole("depth", depth)
    if batch_size is not None:
        checks.whole("batch_size", batch_size, or_=", or None for all instances")
    checks.whole("seed", seed, at_least=0)
    return scales


def neumann_solver(
    batch_product: Callable[[Tensor, Tensor | None], Tensor],
    n: int,
    damping: float,
    scales: Sequence[float],
    depth: int,
    batch_size: int | None,
    seed: int,
    report: Report,
) -> Callable[[Tensor], Tensor]:
    """The operator P of LiSSA for any curvature; fills the report.

    Args:
        batch_product: curvature on the instances at the given positions (None: all), times rows [k, P].
    """

    def P(v: Tensor) -> Tensor:
        diverged = []
        for sigma in scales:
            h = neumann_series(batch_product, v, n, damping, sigma, depth, batch_size, seed)
            if h is not None:
                solution = h / sigma
                residual = v - batch_product(solution, None) - damping * solution
                relative = (residual.norm(dim=1) / length(v)).tolist()
                report.update(scale=sigma, diverged_scales=diverged)
                add_rows(report, residual=relative)
                worse = sum(r > 1 for r in relative)
                if worse:
                    warnings.warn(
                        f"Neumann series: with scale {sigma:g} the result is worse than zero (residual above 1) for "
                        f"{worse} of {len(v)} test instances; raise the depth, the batch size or the damping.",
                        stacklevel=2,
                    )
                return solution
            diverged.append(sigma)
        raise MethodDiverged(
            f"The Neumann series diverged for every scale tried ({', '.join(map(str, diverged))}) with "
            f"damping {damping:.3g}; try larger scales or more damping."
        )

    return P


def neumann_series(
    batch_product: Callable,
    v: Tensor,
    n: int,
    damping: float,
    sigma: float,
    depth: int,
    batch_size: int | None,
    seed: int,
) -> Tensor | None:
    """h after `depth` steps, or None if it exploded."""
    generator = torch.Generator().manual_seed(seed)
    h = v.clone()
    for step in tqdm(range(depth), desc=f"Neumann series, scale {sigma:g}", leave=False, disable=None):
        positions = None if batch_size is None else torch.randint(n, (batch_size,), generator=generator)
        h = v + h - (batch_product(h, positions) + damping * h) / sigma
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == depth:
            if not (h.norm(dim=1) / length(v) < EXPLODED).all():  # also true for NaN
                return None
    return h


def length(rows: Tensor) -> Tensor:
    """Their norms, to divide by: a gradient of zero has the solution, and the residual, zero."""
    return rows.norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
