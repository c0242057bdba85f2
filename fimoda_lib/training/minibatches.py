"""Seed -> order of the data -> batches, in the full run and in the runs that leave an instance or a group out.

A batch is a pair (rows, weights): the loss of a step is the weighted sum of the losses of these training instances.
All runs of a seed see the data in the same order; `removal` says how an instance is left out of it:

    drop      the order of the full run without the instance, so that every later batch shifts by one (tabular, paper)
    mask      every batch as in the full run, the instance's weight set to zero where it occurs (the others keep 1/B)
    subtract  every batch as in the full run, and (loss of the instance)/n subtracted from each of them (text, paper)

A group of instances is left out in the same way: the order without all of them, their weights zero, the sum subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..groups import NOBODY, membership

REMOVALS = ("drop", "mask", "subtract")
MOST_SPARE = 0.25  # of the batch size: beyond, instances of weight 0 cost more than batches of one's own
FULL_RUN = NOBODY  # stands for "nothing" among the removed instances

Batch = tuple[Tensor, Tensor]  # rows [B] shared by all replicas or [M, B]; weights [M, B] (float64)


def epoch_orders(n: int, seed: int) -> Iterator[Tensor]:
    """Orders of n instances, epoch after epoch, without end: each a permutation [n].

    `torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(seed))` draws a second permutation
    at the end of every epoch and throws it away. We do the same, to see the data in the order of the usual loop.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(n, generator=generator)
        torch.randperm(n, generator=generator)


def steps_per_epoch(n: int, batch_size: int) -> int:
    return -(-n // batch_size)


def run_batches(
    n: int, batch_size: int, removed: Tensor, seed: int | Sequence[int], *, removal: str = "drop",
    fraction: float = 1.0, shared: bool = True, device: torch.device | str = "cpu",
) -> Iterator[Batch | None]:  # fmt: skip
    """The batches of a whole run, epoch after epoch, without end; see `epoch_batches`.

    Args:
        seed: or several, for runs that are trained together.
        device: where the batches are put together: that of the data, so that nothing waits for copies.
    """
    seeds = [seed] if isinstance(seed, int) else seed
    for orders in zip(*(epoch_orders(n, s) for s in seeds), strict=True):
        order = (orders[0] if isinstance(seed, int) else torch.stack(orders)).to(device)
        yield from epoch_batches(order, batch_size, removed, removal=removal, fraction=fraction, shared=shared)


def epoch_batches(
    order: Tensor, batch_size: int, removed: Tensor, *, removal: str, fraction: float = 1.0, shared: bool = True
) -> Iterator[Batch | None]:
    """The batches of one epoch for M replicas that are trained together.

    Args:
        order: permutation of the n training instances [n]; or S of them [S, n], one for each of S seeds. Then there are
            S x M replicas, those of the first seed first, and rows that replicas share are [S, B].
        removed: the instances that each replica of a seed leaves out [M] or [M, g], FULL_RUN for none. With
            `removal="drop"` all replicas of an ensemble leave out as many, for their last batches differ otherwise.
        fraction: how much of an instance's weight is removed, from 0 to 1 (`drop` removes all of it).
        shared: whether `drop` may take one batch for all replicas; not with dropout, whose masks go by place.

    Yields:
        `steps_per_epoch(n, batch_size)` times (rows, weights), or None for the last steps if they have become empty.
    """
    one, order = order.dim() == 1, order.reshape(-1, order.shape[-1])
    seeds, n = order.shape
    removed = removed.reshape(len(removed), -1)
    left = n - int((removed[0] != FULL_RUN).sum())
    removed = removed.to(order.device)
    gone = membership(removed, n)[:, order].transpose(0, 1)  # [S, M, n], by place
    if removal == "drop":
        shared = 0 < n - left <= batch_size * MOST_SPARE and shared
        found = (together if shared else each_its_own)(order, batch_size, ~gone, left)
        yield from (b if b is None or not (one and shared) else (b[0][0], b[1]) for b in found)
        return
    for batch, out in zip(order.split(batch_size, 1), gone.split(batch_size, 2), strict=True):
        weights = torch.full_like(out, 1 / batch.shape[1], dtype=torch.float64).flatten(0, 1)
        if removal == "mask":
            weights = torch.where(out.flatten(0, 1), weights * (1 - fraction), weights)
            yield batch[0] if one else batch, weights
        else:
            own = removed.clamp(min=0).repeat(seeds, 1)  # the full run takes instance 0 along with weight 0
            share = (-fraction / n * (removed != FULL_RUN).double()).repeat(seeds, 1)
            rows = batch.repeat_interleave(len(removed), 0)
            yield torch.cat([rows, own], 1), torch.cat([weights, share], 1)


def together(order: Tensor, batch_size: int, kept: Tensor, left: int) -> Iterator[Batch | None]:
    """Batches of what each replica keeps of an order, where every replica leaves out as many, g: `removal="drop"`.

    A replica's batch begins at most g places after that of the full run, so that all of them lie within B + g places
    of the order. Where g is small against B, one batch of these serves all replicas of a seed, in which each gives
    weight 1/B to its own instances and 0 to the others: it is gathered once, and multiplied as one matrix.

    Args:
        order: one for each seed [S, n].
        kept: which places of it each replica keeps, [S, M, n].
        left: how many these are.
    """
    turn = torch.where(kept, kept.cumsum(2) - 1, -1).div(batch_size, rounding_mode="floor").flatten(0, 1)
    n = order.shape[1]
    for number, (first, size) in enumerate(sizes(n, left, batch_size)):
        places = slice(first, first + size + n - left)
        weights = (turn[:, places] == number) / torch.tensor(size, dtype=torch.float64)
        yield (order[:, places], weights) if size > 0 else None


def each_its_own(order: Tensor, batch_size: int, kept: Tensor, left: int) -> Iterator[Batch | None]:
    """The same batches, gathered for each replica [S x M, B]."""
    rows = order.unsqueeze(1).expand_as(kept)[kept].view(-1, left)
    for first, size in sizes(order.shape[1], left, batch_size):
        batch = rows[:, first : first + size]
        weights = torch.full(batch.shape, 1 / max(size, 1), dtype=torch.float64, device=order.device)
        yield (batch, weights) if size > 0 else None


def sizes(n: int, left: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Where each of the full run's batches begins when only `left` instances are there, and how many it then holds."""
    for number in range(steps_per_epoch(n, batch_size)):
        yield number * batch_size, min(batch_size, left - number * batch_size)
