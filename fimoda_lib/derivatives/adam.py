"""What Adam does to gradients on the way, on average over orders of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..training.ensembles import Optimizer
from .kinks import FLOOR


class Moments:
    """Adam's mean gradient and mean square as they are on average over orders of the data.

    Those of the run itself would do after some hundred steps; the first ones divide by the noise of single batches.
    """

    def __init__(self, rule: Optimizer) -> None:
        self.rule, self.mean, self.square, self.step = rule, 0.0, 0.0, 0

    def advance(self, gradient: Tensor, square: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """So many steps whose gradient and its square have these means, [P]: how they move the parameters, on average.

        Returns:
            The root of what multiplies the mean gradient, besides the learning rate (`splitting.Drift.scale`), and how
            a step answers to a change of the mean square (`splitting.Drift.answer`).
        """
        time, held = self.step + (steps + 1) / 2, []
        for beta, before, target in zip(self.rule.betas, (self.mean, self.square), (gradient, square), strict=True):
            kept = beta ** torch.arange(1.0, steps + 1, dtype=torch.float64)
            held += [(target + float(k) * (before - target)) for k in (kept.mean(), kept[-1])]
        mean, self.mean, square, self.square = held
        self.step += steps
        correction = [1 - beta**time for beta in self.rule.betas]
        estimate = square / correction[1]
        root = (estimate + FLOOR**2 * estimate.mean()).sqrt().clamp(min=torch.finfo(estimate.dtype).tiny ** 0.5)
        divisor = root + self.rule.epsilon  # that of derivatives, `kinks.regularised`
        moved = self.rule.learning_rate * mean / correction[0]
        return divisor.rsqrt(), moved / divisor**2 / (2 * root * correction[1])
