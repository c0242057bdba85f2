"""Grad-Cos: the operator is the identity, on gradients of length 1."""

import torch
from torch import Tensor

from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import apply_operator, method, unit


@method(label="Grad-Cos", family="first-order", reference="Charpiat et al. 2019")
def grad_cos(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Cosines of loss gradients.

    Returns:
        [n_test, n_train], between -1 and 1, without a unit; 0 where a gradient is zero.
    """
    return apply_operator(Gradients(task, params, dtype=dtype), unit, train, test, normalise=True)
