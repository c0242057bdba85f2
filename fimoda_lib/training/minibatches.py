"""Seed -> order of the data -> batches, in the full run and in the runs that leave an instance or a group out.

A batch is a pair (rows, weights): the loss of a step is the weighted sum of the losses of these training instances.
All runs of a seed see the data in the same order; `removal` says how an instance is left out of it:

    drop      the order of the full run without the instance, so that every later batch shifts by one (tabular, paper)
    mask      every batch as in the full run, the instance's weight set to zero where it occurs (the others keep 1/B)
    subtract  every batch as in the full run, and (loss of the instance)/n subtracted from each of them (text, paper)

A group of instances is left out in the same way: the order without all of them, their weights zero, the sum subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..groups import NOBODY, membership

REMOVALS = ("drop", "mask", "subtract")
MOST_SPARE = 0.25  # of the batch size: beyond, instances of weight 0 cost more than batches of one's own
FULL_RUN = NOBODY  # stands for "nothing" among the removed instances

Batch = tuple[Tensor, Tensor]  # rows [R] shared by all replicas or [M, R]; weights [M, R] (float64)


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
    n: int, batch_size: int, removed: Tensor, seed: int, *, removal: str = "drop", fraction: float = 1.0,
    shared: bool = True,
) -> Iterator[Batch | None]:  # fmt: skip
    """The batches of a whole run, epoch after epoch, without end; see `epoch_batches`."""
    for order in epoch_orders(n, seed):
        yield from epoch_batches(order, batch_size, removed, removal=removal, fraction=fraction, shared=shared)


def epoch_batches(
    order: Tensor, batch_size: int, removed: Tensor, *, removal: str, fraction: float = 1.0, shared: bool = True
) -> Iterator[Batch | None]:
    """The batches of one epoch for M replicas that are trained together.

    Args:
        order: permutation of the n training instances [n].
        removed: the instances that each replica leaves out [M] or [M, g], FULL_RUN for none. With `removal="drop"`
            all replicas of an ensemble leave out as many, for their last batches differ otherwise.
        fraction: how much of an instance's weight is removed, from 0 to 1 (`drop` removes all of it).
        shared: whether `drop` may take one batch for all replicas; not with dropout, whose masks go by place.

    Yields:
        `steps_per_epoch(n, batch_size)` times (rows, weights), or None for the last steps if they have become empty.
    """
    n, replicas = len(order), len(removed)
    removed = removed.reshape(replicas, -1)
    gone = membership(removed, n)
    if removal == "drop":
        yield from shortened_batches(order, batch_size, ~gone[:, order], shared)
        return
    for batch in order.split(batch_size):
        weights = torch.full((replicas, len(batch)), 1 / len(batch), dtype=torch.float64)
        if removal == "mask":
            yield batch, torch.where(gone[:, batch], weights * (1 - fraction), weights)
        else:
            own = removed.clamp(min=0)  # the full run takes instance 0 along with weight 0: same shapes
            share = -fraction / n * (removed != FULL_RUN).double()
            yield torch.cat([batch.expand(replicas, -1), own], 1), torch.cat([weights, share], 1)


def shortened_batches(order: Tensor, batch_size: int, kept: Tensor, shared: bool) -> Iterator[Batch | None]:
    """Batches of what each replica keeps of an order, where every replica leaves out as many, g: `removal="drop"`.

    A replica's batch begins at most g places after that of the full run, so that all of them lie within B + g places
    of the order. Where g is small against B, one batch of these serves all replicas (if it may be `shared`), in which
    each gives weight 1/B to its own instances and 0 to the others: it is gathered once, and multiplied as one matrix.

    Args:
        kept: which places of the order [n] each replica keeps, [M, n].
    """
    replicas, n = kept.shape
    n_kept = int(kept[0].sum())
    shared = 0 < n - n_kept <= batch_size * MOST_SPARE and shared
    if shared:
        turn = torch.where(kept, kept.cumsum(1) - 1, -1) // batch_size  # number of the batch; -1 is in none
    else:
        rows = order.expand(replicas, n)[kept].view(replicas, n_kept)
    for number in range(steps_per_epoch(n, batch_size)):
        first = number * batch_size
        size = min(batch_size, n_kept - first)
        if size <= 0:
            yield None
        elif shared:
            places = slice(first, first + size + n - n_kept)
            yield order[places], (turn[:, places] == number) / torch.tensor(size, dtype=torch.float64)
        else:
            batch = rows[:, first : first + size]
            yield batch, torch.full(batch.shape, 1 / size, dtype=torch.float64)
