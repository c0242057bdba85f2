"""Grad-Dot: the operator is the identity."""

import torch
from torch import Tensor

from ..derivatives.gradients import Gradients
from ..tasks import Params, Task
from .base import apply_operator, method


@method(label="Grad-Dot", family="first-order", reference="Charpiat et al. 2019; one step of SGD")
def grad_dot(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Dot products of loss gradients.

    Returns:
        [n_test, n_train]; times learning rate / n: the change of the test loss when one step omits the instance.
    """
    return apply_operator(Gradients(task, params, dtype=dtype), lambda g: g, train, test)
