"""LiSSA-H: LiSSA with the true Hessian, which need not be positive definite; it often diverges, and says so."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..derivatives.curvature import recommended_damping
from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import Report, apply_operator, method, resolve_damping
from .lissa import SCALES, check_series, neumann_solver


@method(label="LiSSA-H", family="influence function", reference="Agarwal et al. 2017; Koh & Liang 2017")
def lissa_h(
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
    """`lissa` with the Hessian of the loss in place of the Gauss-Newton matrix; arguments and results are the same."""
    scales = check_series(scale, depth, batch_size, seed)
    at = Gradients(task, params, dtype=dtype)
    at.check_hessian()
    damping = resolve_damping(damping, multiple, lambda: recommended_damping(at, curvature))

    def batch_product(h: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None:
            return at.hessian_products(at.train(curvature[positions]), h)
        pieces = curvature.split(4096)
        return sum(len(piece) * at.hessian_products(at.train(piece), h) for piece in pieces) / len(curvature)

    report: Report = {"damping": damping}
    P = neumann_solver(batch_product, len(curvature), damping, scales, depth, batch_size, seed, report)
    return apply_operator(at, P, train, test), report
