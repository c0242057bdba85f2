"""What Adam does to a gradient on the way, and how its steps answer to a change of the gradient's mean square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.ensembles import Optimizer
from .kinks import FLOOR


@dataclass(frozen=True)
class Answer:
    """How Adam's step, a mean gradient over the root of a mean square, answers to a change of the mean square.

    Args:
        step: the step itself [P], which is taken off the parameters.
        slope: its derivative, [P], with the opposite sign.
        whole: an instance is gone. Then a step changes by no more than its length: beyond that the derivative knows
            nothing, and could let the difference explode. Else to first order.
    """

    step: Tensor
    slope: Tensor
    whole: bool

    def kick(self, change: Tensor) -> Tensor:
        """What adds to the parameters after the step if the mean square changes so, [b, P]."""
        kick, most = self.slope * change, self.step.abs()
        return kick.clamp(-most, most) if self.whole else kick


class Moments:
    """Adam's mean gradient and mean square as they are on average over orders of the data.

    Those of the run itself would do after some hundred steps; the first ones divide by the noise of single batches.
    """

    def __init__(self, rule: Optimizer, *, whole: bool) -> None:
        self.rule, self.whole, self.mean, self.square, self.step = rule, whole, 0.0, 0.0, 0

    def advance(self, gradient: Tensor, square: Tensor, steps: int) -> tuple[Tensor, Answer]:
        """So many steps whose gradient and its square have these means, [P]: how they move the parameters, on average.

        Returns:
            The root of what multiplies the mean gradient, besides the learning rate (`splitting.Drift.scale`), and how
            a step answers to a change of the mean square.
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
        step = self.rule.learning_rate * mean / correction[0] / divisor
        return divisor.rsqrt(), Answer(step, step / divisor / (2 * root * correction[1]), self.whole)
