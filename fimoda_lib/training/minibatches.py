"""Seed -> order of the data -> batches, in the full run and in the runs that leave one instance out.

A batch is a pair (rows, weights): the loss of a step is the weighted sum of the losses of these training instances.
All runs of a seed see the data in the same order; `removal` says how an instance is left out of it:

    drop      the order of the full run without the instance, so that every later batch shifts by one (tabular, paper)
    mask      every batch as in the full run, the instance's weight set to zero where it occurs (the others keep 1/B)
    subtract  every batch as in the full run, and (loss of the instance)/n subtracted from each of them (text, paper)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

REMOVALS = ("drop", "mask", "subtract")
FULL_RUN = -1  # stands for "nothing" among the removed instances

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
    n: int, batch_size: int, removed: Tensor, seed: int, *, removal: str = "drop", fraction: float = 1.0
) -> Iterator[Batch | None]:
    """The batches of a whole run, epoch after epoch, without end; see `epoch_batches`."""
    for order in epoch_orders(n, seed):
        yield from epoch_batches(order, batch_size, removed, removal=removal, fraction=fraction)


def epoch_batches(
    order: Tensor, batch_size: int, removed: Tensor, *, removal: str, fraction: float = 1.0
) -> Iterator[Batch | None]:
    """The batches of one epoch for M replicas that are trained together.

    Args:
        order: permutation of the n training instances [n].
        removed: the instance that each replica leaves out [M], FULL_RUN for none. With `removal="drop"` the full run
            cannot share an ensemble with the others: its last batch is longer.
        fraction: how much of the instance's weight is removed, from 0 to 1 (`drop` removes all of it).

    Yields:
        `steps_per_epoch(n, batch_size)` times (rows, weights), or None for the last step if it has become empty.
    """
    n, replicas = len(order), len(removed)
    if removal == "drop":
        if (removed == FULL_RUN).any():
            rows = order.expand(replicas, n)
        else:
            position = torch.empty_like(order).scatter_(0, order, torch.arange(n))[removed]
            kept = torch.arange(n - 1).expand(replicas, n - 1)
            rows = order[kept + (kept >= position[:, None])]
        for batch in rows.split(batch_size, dim=1):
            yield batch, torch.full(batch.shape, 1 / batch.shape[1], dtype=torch.float64)
        if steps_per_epoch(rows.shape[1], batch_size) < steps_per_epoch(n, batch_size):
            yield None
        return
    for batch in order.split(batch_size):
        weights = torch.full((replicas, len(batch)), 1 / len(batch), dtype=torch.float64)
        if removal == "mask":
            weights[batch == removed[:, None]] *= 1 - fraction
            yield batch, weights
        else:
            own = removed.clamp(min=0)[:, None]  # the full run takes instance 0 along with weight 0: same shapes
            share = -fraction / n * (removed != FULL_RUN).double()[:, None]
            yield torch.cat([batch.expand(replicas, -1), own], 1), torch.cat([weights, share], 1)
