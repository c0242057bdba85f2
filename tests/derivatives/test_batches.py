"""Batches drawn as those of a run."""

import numpy as np
import pytest
import torch

from fimoda_lib.derivatives.batches import Batches, drawn
from fimoda_lib.training.minibatches import FULL_RUN, run_batches, steps_per_epoch

N = 23


@pytest.mark.parametrize(
    ("sample", "at_least", "sizes", "used"),
    [
        (100, 1, [8, 8, 7], 3),  # all of an epoch
        (N, 1, [8, 8, 7], 3),
        (N - 1, 1, [8, 8], 2),  # full ones, for the smaller one would come too often
        (4, 1, [8], 1),
        (4, 2, [8, 8], 1),  # more for moments than for products
        (17, 9, [8, 8, 7], 2),
    ],
)
def test_batches_are_those_of_an_epoch_or_full_ones(sample, at_least, sizes, used):
    found = drawn(N, sample, 8, torch.Generator().manual_seed(0), at_least)
    assert [len(rows) for rows in found.rows] == sizes and found.used == used
    assert len({*torch.cat(found.rows).tolist()}) == sum(sizes)
    assert found.parts == [size / sum(sizes[:used]) for size in sizes[:used]] and len(found.in_products) == used
    assert not torch.equal(torch.cat(found.rows), torch.cat(drawn(N, sample, 8, torch.Generator(), at_least).rows))


def test_without_batches_a_sample_is_one():
    (all_of_them,) = drawn(N, N, None, torch.Generator()).rows
    (some,) = drawn(N, 5, None, torch.Generator()).rows
    assert torch.equal(all_of_them, torch.arange(N)) and len({*some.tolist()}) == 5


def test_an_instance_weighs_in_its_batch_what_it_does_in_a_run():
    """... on average over steps; the mean gradient is that over instances, so that a small batch counts for less."""
    gradients = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = drawn(N, N, 8, torch.Generator().manual_seed(0)).rows
    found = Batches(rows, 3, torch.stack([gradients[some].mean(0) for some in rows]))
    torch.testing.assert_close(found.mean, gradients.mean(0))
    steps, squares = steps_per_epoch(N, 8), []
    batches = run_batches(N, 8, torch.tensor([FULL_RUN]), seed=0, removal="mask")
    for _ in range(steps):
        _, weights = next(batches)
        squares.append(float(weights.square().sum()))
    # The mean over steps of the sum of squared weights: n instances, each in one batch of an epoch.
    np.testing.assert_allclose(sum(squares) / steps, found.own)
