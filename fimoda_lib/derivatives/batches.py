"""Batches as those of a run, drawn at random at one place of it: their gradients, squares and lengths are its noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTS = 32  # so many batches give Adam's mean gradient and mean square, where products take fewer


@dataclass(frozen=True)
class Batches:
    """Batches of training instances.

    Args:
        rows: the instances of each.
        used: so many of them, the first ones, in Hessian products.
        gradients: of the mean loss of each, where they count, [k, P].
    """

    rows: list[Tensor]
    used: int
    gradients: Tensor | None = None

    @property
    def in_products(self) -> list[Tensor]:
        return self.rows[: self.used]

    @property
    def parts(self) -> list[float]:
        """Of the instances in products, the part that is in each batch."""
        sizes = [len(rows) for rows in self.in_products]
        return [size / sum(sizes) for size in sizes]

    @property
    def mean(self) -> Tensor:
        """The mean gradient over instances, [P]."""
        sizes = self.gradients.new_tensor([len(rows) for rows in self.rows])
        return sizes / sizes.sum() @ self.gradients

    @property
    def own(self) -> float:
        """The weight of an instance in the batch that it is in, averaged over steps."""
        return sum(1 / len(rows) for rows in self.rows) / len(self.rows)


def drawn(n: int, sample: int, batch_size: int | None, generator: torch.Generator, at_least: int = 1) -> Batches:
    """At most so many of n training instances at random.

    Args:
        batch_size: in batches of so many: those of an epoch, whose last one may be smaller, or full ones; None for one
            batch of all.
        at_least: so many batches in all, if there are.
    """
    order = torch.randperm(n, generator=generator)
    if batch_size is None:
        return Batches([order[:sample] if n > sample else torch.arange(n)], 1)
    used = max(sample // batch_size, 1)
    most = max(used, at_least) * batch_size
    rows = [*order[: n if max(sample, most) >= n else most].split(batch_size)]
    return Batches(rows, len(rows) if sample >= n else used)
