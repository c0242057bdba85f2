"""Influence functions with the damping that belongs to the horizon, λ = 1/(ηT): no setting is tuned.

T steps of size η act as the filter (1 - (1 - ησ)^T)/σ on an eigenvalue σ of G; 1/(σ + 1/(ηT)) is its simplest likeness.
A yardstick for methods that follow a run, not one of the paper's: it is not among `METHODS`, but `attribute` takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..derivatives.curvature import GaussNewton
from ..derivatives.gradients import Gradients
from ..derivatives.spectra import choose_backend, damped, spectrum_of
from ..tasks import Params, Task
from ..training.ensembles import Optimizer
from .base import Report
from .lft_settings import check, full_settings, horizons

NEGLIGIBLE = 0.01  # of λ: smaller eigenvalues count as zero


def timed(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor,
    horizon: int | Sequence[int] = 1,
    further_training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """g_zᵀ (G + λ)⁻¹ gᵢ / n with λ = 1/(ηT), at the final model.

    With Adam, whose steps are scaled by D = 1/√v, it is g_zᵀ (G + λ D⁻¹)⁻¹ gᵢ / n; v is the mean square of a batch's
    gradient at the final model, from the mean and the variance of gradients of single instances.

    Args:
        horizon, further_training: as in `lft`; nothing is trained.

    Returns:
        scores [horizons, n_test, n_train], in units of the loss.
    """
    check(wanted := horizons(horizon), further_training, "closed_form", 1, 1, "auto", 1)
    along, at = full_settings(further_training), Gradients(task, params, dtype=dtype)
    scale = None if along["optimizer"] == "sgd" else batch_scale(at, along["batch_size"]).sqrt()
    G, rate = GaussNewton(at, curvature, scale=scale), along["learning_rate"]
    backend = choose_backend(G.n * G.rank, at.n_params)
    spectrum = spectrum_of(G, "krylov" if backend == "ekfac" else backend, NEGLIGIBLE / (rate * wanted[-1]))
    g_test = at.of_losses(at.test(test)) * (1 if scale is None else scale)
    inside_test, scores = spectrum.into(g_test), torch.empty(len(wanted), len(test), len(train), dtype=torch.float64)
    for columns, g in at.blocks(train):
        g = g if scale is None else g * scale
        dampings = [1 / (rate * steps) for steps in wanted]
        for k, found in enumerate(damped(spectrum, g_test, inside_test, g, dampings)):
            scores[k][:, columns] = (found / task.n_train).cpu().double()
    return scores, {"horizon": wanted, "further_training": along, "backend": backend}


def batch_scale(at: Gradients, batch_size: int) -> Tensor:
    """Adam's 1/(√v + ε) with v the expected square of a batch's mean gradient, [P]."""
    n, mean, square = at.task.n_train, 0.0, 0.0
    for _, g in at.blocks(torch.arange(n)):
        mean, square = mean + g.sum(0) / n, square + g.square().sum(0) / n
    v = mean.square() + (square - mean.square()).clamp(min=0) / batch_size
    return 1 / (v.sqrt() + Optimizer("adam", 1.0).epsilon)
