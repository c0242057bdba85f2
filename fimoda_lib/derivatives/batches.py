"""Batches as those of a run, drawn at random at one place of it: their gradients, squares and lengths are its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.minibatches import steps_per_epoch

MOMENTS = 32  # so many batches give Adam's mean gradient and mean square, where products take fewer


@dataclass(frozen=True)
class Batches:
    """Batches of training instances that take part in Hessian products.

    Args:
        rows: the instances of each.
        gradients: of the mean loss of each, where they count, [k, P].
        mean: the mean gradient over instances, of these batches and maybe more, [P].
        square: the mean over steps of the square of a batch's gradient, likewise.
    """

    rows: list[Tensor]
    gradients: Tensor | None = None
    mean: Tensor | None = None
    square: Tensor | None = None

    @property
    def parts(self) -> list[float]:
        """The part of the instances that is in each batch."""
        sizes = [len(rows) for rows in self.rows]
        return [size / sum(sizes) for size in sizes]


def drawn(n: int, sample: int, batch_size: int, generator: torch.Generator) -> tuple[list[Tensor], int]:
    """The batches of an epoch of n instances, and how many of them hold about so many: all, or some of them, at least
    one, and then the smaller last one stands at a random place among them."""
    rows = [*torch.randperm(n, generator=generator).split(batch_size)]
    if sample >= n:
        return rows, len(rows)
    return [rows[k] for k in torch.randperm(len(rows), generator=generator).tolist()], max(sample // batch_size, 1)


def with_gradients(
    rows: list[Tensor], used: int, gradients: Callable[[Sequence[Tensor]], Iterable[Tensor]], at_least: int = 1
) -> Batches:
    """So many of the batches, the first ones, with their gradients; the means over at least so many, if there are.

    An epoch has a step for each of its batches, whatever its size: the mean square is that over batches.
    """
    kept, mean, square, some = [], 0.0, 0.0, rows[: max(used, at_least)]
    for k, (batch, found) in enumerate(zip(some, gradients(some), strict=True)):
        mean, square = mean + len(batch) * found, square + found.square() / len(some)
        kept += [found] if k < used else []
    return Batches(rows[:used], torch.stack(kept), mean / sum(map(len, some)), square)


def own_weight(n: int, batch_size: int) -> float:
    """The weight of an instance in the batch that it is in, averaged over the steps of an epoch."""
    full, rest = divmod(n, batch_size)
    return (full / batch_size + (1 / rest if rest else 0.0)) / steps_per_epoch(n, batch_size)
