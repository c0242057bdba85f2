"""Steps of an optimiser in the eigenbasis of G exactly, with the rest of the Hessian as a force.

The Gauss-Newton matrix G is stiff: it contracts some directions in every step. In its eigenbasis any number of steps is
one product. What is left of the Hessian, H - G, is not stiff, and costs a Hessian-vector product each time; over some
steps it is held at its middle value. That is the exponential midpoint rule: its error is of second order in their
number. A single step is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..training.ensembles import Optimizer
from .clipping import Clipping
from .spectra import Spectrum

GROWTH = 1.5  # boundaries lie evenly in the step's power of 1 over this: a run moves the model most at its beginning


def boundaries(horizons: Sequence[int], intervals: int) -> list[int]:
    """Steps between which the rest of the Hessian is held: about so many intervals, longer and longer.

    The last horizon is among them, and the others are if they are few.
    """
    grid = {int(np.ceil(horizons[-1] * (k / intervals) ** GROWTH)) for k in range(1, intervals + 1)}
    few = len(horizons) <= intervals // 4
    return sorted(grid | set(horizons if few else horizons[-1:]))


def interpolated(values: Tensor, steps: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Values [steps, ...], which are 0 at step 0, taken linearly to the wanted steps."""
    values, steps, wanted = torch.cat([0 * values[:1], values]), torch.tensor([0, *steps]), torch.tensor(wanted)
    after = torch.searchsorted(steps, wanted)
    share = ((wanted - steps[after - 1]) / (steps[after] - steps[after - 1])).to(values)
    return torch.lerp(values[after - 1], values[after], share.view(-1, *[1] * (values.dim() - 1)))


def propagator(eigenvalues: Tensor, rule: Optimizer, first: int, steps: int) -> Tensor:
    """What so many steps make of δ, of the change μ of Adam's mean gradient, and of a constant force: [2, 4, q].

    With x = (δ, μ) in a direction of the given eigenvalue, the force f, which adds to the gradient, and the kick k,
    which adds to δ, x(first + steps) = propagator[:, :2] x(first) + propagator[:, 2] f + propagator[:, 3] k.
    Without momentum μ is of no use.

    Where the recursion would explode though the run did not, δ settles at once.
    """
    adam = rule.name != "sgd"
    beta = rule.betas[0] if adam else 0.0
    kept = 1 - rule.learning_rate * rule.weight_decay if rule.name == "adamw" else 1.0
    most = (1 + beta) / (1 - beta) / rule.learning_rate  # half of what makes a constant step unstable
    wild = eigenvalues > 2 * most
    used = torch.where(wild, most, eigenvalues.double())
    unit = torch.eye(4, dtype=torch.float64, device=eigenvalues.device)
    delta, mean, force, kick = unit[..., None].repeat(1, 1, len(used))
    force = torch.where(wild, used / eigenvalues.double().clamp(min=most), 1.0) * force
    for t in range(first + 1, first + steps + 1):
        mean = beta * mean + (1 - beta) * (used * delta + force)
        delta = kept * delta - rule.learning_rate / (1 - beta**t if adam else 1.0) * mean + kick
    return torch.stack([delta, mean])


@dataclass(frozen=True)
class Motion:
    """δ and the changes of Adam's mean gradient and mean square, each [b, P]; without momentum, δ alone."""

    delta: Tensor
    mean: Tensor | None = None
    square: Tensor | None = None


@dataclass(frozen=True)
class Force:
    """What adds to the change of the gradient, and with Adam the change of the gradient's square; each [b, P]."""

    gradient: Tensor
    square: Tensor | None = None


@dataclass(frozen=True)
class Drift:
    """Steps of the optimiser with G in place of the Hessian, and a constant force.

    Args:
        spectrum: of G; with a scale, of G with rows and columns scaled.
        scale: root of what Adam multiplies gradients by, [P]; None for SGD.
        answer: how a step answers to a change of Adam's mean square, [P].
        share: what clipping leaves of gradients.
        clipping: with SGD that clips, which parts of a change of the gradient it lets through.
        bounded: whether δ moves by no more than the learning rate in each parameter and step of Adam, which is about
            the length of a step: of more, its derivative knows nothing, and lets δ explode.
    """

    spectrum: Spectrum
    rule: Optimizer
    scale: Tensor | None = None
    answer: Tensor | None = None
    share: float = 1.0
    clipping: Clipping | None = None
    bounded: bool = False

    def __call__(self, start: Motion, force: Force, first: int, steps: int) -> Motion:
        """After so many steps from step `first` on."""
        if steps == 0:
            return start
        if self.clipping is not None:
            how = self.spectrum, self.rule.learning_rate, steps
            return Motion(self.clipping.steps(start.delta, force.gradient, *how))
        values = self.share * torch.cat([self.spectrum.eigenvalues, self.spectrum.eigenvalues.new_zeros(1)])
        factors = propagator(values, self.rule, first, steps).to(start.delta.dtype)
        if self.scale is None:
            return Motion(*self.applied(factors[:1, [0, 2]], [start.delta, self.share * force.gradient]))
        s, kept = self.scale, self.rule.betas[1] ** torch.arange(1.0, steps + 1, dtype=torch.float64)
        square, during = (torch.lerp(force.square, start.square, float(k)) for k in (kept[-1], kept.mean()))
        given = [start.delta / s, start.mean * s, self.share * force.gradient * s, self.answer * during / s]
        delta, mean = self.applied(factors, given)
        delta, mean = delta * s, mean / s
        if self.bounded:
            most = self.rule.learning_rate * steps
            delta = start.delta + (delta - start.delta).clamp(-most, most)
            mean = mean.clamp(-(s**-2), s**-2)
        return Motion(delta, mean, square)

    def applied(self, factors: Tensor, given: list[Tensor]) -> list[Tensor]:
        """Sums of the given vectors [b, P], each direction of them times its factor: [rows, len(given), q + 1]."""
        inside = [self.spectrum.into(vectors) for vectors in given]
        found = []
        for row in factors:
            flat = sum(c[-1] * vectors for c, vectors in zip(row, given, strict=True))
            bent = sum((c[:-1] - c[-1]) * part for c, part in zip(row, inside, strict=True))
            found.append(flat + self.spectrum.out_of(bent))
        return found

    def curvature(self, delta: Tensor) -> Tensor:
        """G, as clipping lets it act, times every row of δ, [b, P]: of the spectrum, where that was taken."""
        s = 1.0 if self.scale is None else self.scale
        held = self.spectrum.out_of(self.spectrum.into(delta / s) * self.spectrum.eigenvalues) / s
        return held if self.clipping is None else self.clipping.less(held)


def midpoint(drift: Drift, start: Motion, force: Callable[[Tensor], Force], first: int, steps: int) -> Motion:
    """So many steps with the force, a function of δ, held at its middle value."""
    held = force(start.delta)
    if steps == 1:  # the recursion itself
        return drift(start, held, first, 1)
    # Forces act at the beginnings of steps; their middle may lie between two of them.
    near = [drift(start, held, first, half).delta for half in sorted({(steps - 1) // 2, steps // 2})]
    return drift(start, force(sum(near) / len(near)), first, steps)
