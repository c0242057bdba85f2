"""Clipped steps of SGD: how they answer to a change of their gradient.

A clipped gradient has its direction left, and no length: of a change, the part along it has no effect, and the rest is
shortened as the gradient is. Each batch is clipped by itself, so the mean answer is taken over batches as a run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import jvp

from ..training.ensembles import clip_grad_norm
from .spectra import Spectrum


@dataclass(frozen=True)
class Clipping:
    """Batches of a run at one place of it.

    Args:
        max_norm: of a gradient, longer ones are shortened to it.
        gradients: of the mean loss of each batch, [k, P]; mean: that over instances, [P].
        joining: how much of an instance's gradient, less the mean one, each batch has if it is known to be in it, [k];
            nothing where batches hold all instances.
    """

    max_norm: float
    gradients: Tensor
    mean: Tensor
    joining: Tensor

    @cached_property
    def share(self) -> float:
        """What clipping leaves of gradients, on the mean."""
        return float(torch.where(self.kept > 0, self.kept, 1.0).mean()) or 1.0

    @cached_property
    def kept(self) -> Tensor:
        """What clipping leaves of each gradient, [k]."""
        return self.clipped(self.gradients).norm(dim=1) / self.lengths

    @cached_property
    def lengths(self) -> Tensor:
        return self.gradients.norm(dim=1).clamp(min=torch.finfo(self.gradients.dtype).tiny)

    @cached_property
    def along(self) -> tuple[Tensor, Tensor]:
        """Directions of the gradients [k, P], and what the mean answer, over `share`, lacks of a change along each."""
        directions = self.gradients / self.lengths[:, None]
        answers = (directions * self.answers(self.gradients, directions)).sum(1)
        return directions, (self.kept - answers).clamp(min=0.0) / (len(answers) * self.share)

    def clipped(self, gradients: Tensor) -> Tensor:
        return clip_grad_norm({"all": gradients}, self.max_norm)["all"]

    def answers(self, gradients: Tensor, changes: Tensor) -> Tensor:
        """What changes [b, P] of gradients, [b, P] or [P], do to the clipped ones."""
        return jvp(self.clipped, (gradients.expand_as(changes).contiguous(),), (changes,))[1]

    def answer(self, batch: int, changes: Tensor) -> Tensor:
        """What changes [b, P] of the gradient of this batch do, over `share`."""
        return self.answers(self.gradients[batch], changes) / self.share

    def of_instances(self, found: Tensor) -> Tensor:
        """What gradients of instances [b, P] do in the batches that these are in, on the mean, over `share`."""
        more = found - self.mean
        beside = (g + joins * more for g, joins in zip(self.gradients, self.joining, strict=True))
        return sum(self.answers(gradient, found) for gradient in beside) / (len(self.gradients) * self.share)

    def less(self, product: Tensor) -> Tensor:
        """The mean answer, over `share`, to a change of every batch's gradient [b, P] by the same."""
        directions, lacks = self.along
        return product - (product @ directions.T * lacks) @ directions

    def steps(self, delta: Tensor, force: Tensor, spectrum: Spectrum, rate: float, steps: int) -> Tensor:
        """So many steps of δ [b, P] by G, as clipping lets it act, and a constant force, over `share`; see `Drift`.

        In the eigenbasis of G, one by one: a step of coordinates costs nothing beside a Hessian product.
        """
        directions, lacks = self.along
        inside, rate = spectrum.into(directions), rate * self.share
        values = spectrum.eigenvalues.to(delta.dtype)
        wild = values * rate > 2  # as in `propagator`
        factor = torch.where(wild, 1 / (rate * values), 1.0)
        values, start, pushed = values * factor, spectrum.into(delta), spectrum.into(force)
        now, held, total = start, pushed * factor, 0.0
        for _ in range(steps):
            moved = values * now
            taken = moved @ inside.T * lacks
            now, total = now - rate * (moved - taken @ inside + held), total + taken
        outside = rate * (total @ directions - steps * force)
        back = spectrum.out_of(now - start - rate * (total @ inside - steps * pushed))
        return delta + outside + back
