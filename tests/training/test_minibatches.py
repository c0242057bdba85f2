"""Orders of the data and batches, by hand and against RandomSampler."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from fimoda_lib.training import minibatches
from fimoda_lib.training.minibatches import FULL_RUN, epoch_batches, epoch_orders, steps_per_epoch


def each(batch):
    """(rows, weights) of every replica."""
    rows, weights = batch
    return list(zip(rows.expand_as(weights), weights, strict=True))


def batches(order, batch_size, removed, **options):
    """The batches of one epoch as (rows, weights) in lists, one row per replica; None for the missing last one.

    With "drop", whose batches hold rows that only some replicas train on, each replica's own rows.
    """
    found = list(epoch_batches(torch.tensor(order), batch_size, torch.tensor(removed), **options))
    if options["removal"] == "drop":
        return [b and ([r[w > 0].tolist() for r, w in each(b)], [w[w > 0].tolist() for _, w in each(b)]) for b in found]
    return [b and (b[0].expand(len(removed), -1).tolist(), b[1].tolist()) for b in found]


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("seed", [0, 5])
def test_orders_are_those_of_the_random_sampler_epoch_after_epoch(n, seed):
    sampler = RandomSampler(range(n), generator=torch.Generator().manual_seed(seed))
    for order in itertools.islice(epoch_orders(n, seed), 6):
        assert order.tolist() == list(sampler)


def test_orders_are_those_of_a_data_loader():
    sampler = RandomSampler(range(23), generator=torch.Generator().manual_seed(7))
    loader = DataLoader(range(23), batch_size=5, sampler=sampler)
    for order in itertools.islice(epoch_orders(23, 7), 4):
        assert torch.equal(order, torch.cat(list(loader)))


def test_orders_differ_between_seeds_and_epochs_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    orders = [tuple(o.tolist()) for s in range(3) for o in itertools.islice(epoch_orders(50, s), 3)]
    assert len(set(orders)) == 9 and all(sorted(o) == list(range(50)) for o in orders)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(10, 5, 2), (11, 5, 3), (3, 5, 1), (5, 1, 5)])
def test_steps_per_epoch(n, batch_size, steps):
    assert steps_per_epoch(n, batch_size) == steps
    for removal in ("drop", "mask", "subtract"):
        assert len(batches(list(range(n)), batch_size, [0], removal=removal)) == steps


def test_dropping_by_hand():
    found = batches([3, 0, 4, 1, 2], 2, [4, 3, 2], removal="drop")
    half = [[0.5, 0.5]] * 3
    assert found == [([[3, 0], [0, 4], [3, 0]], half), ([[1, 2], [1, 2], [4, 1]], half), None]
    found = batches([3, 0, 1, 2], 3, [3, 2], removal="drop")
    assert found == [([[0, 1, 2], [3, 0, 1]], [[1 / 3] * 3] * 2), None]
    assert batches([0, 1], 2, [1], removal="drop") == [([[0]], [[1.0]])]


@pytest.mark.parametrize("n", [4, 9, 10, 13])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
@pytest.mark.parametrize("g", [1, 2, 3])
@pytest.mark.parametrize("most_spare", [0, 10])  # batches of one's own; one that all share
def test_dropping_is_the_order_without_the_group(n, batch_size, g, most_spare, monkeypatch):
    """All groups of g, against the rule written naively; what is shared lies within B + g places of the order."""
    monkeypatch.setattr(minibatches, "MOST_SPARE", most_spare)
    order = next(epoch_orders(n, 0)).tolist()
    groups = list(itertools.combinations(range(n), g))
    found = batches(order, batch_size, groups, removal="drop")
    assert len(found) == steps_per_epoch(n, batch_size)
    for replica, group in enumerate(groups):
        kept = [row for row in order if row not in group]
        expected = [kept[k : k + batch_size] for k in range(0, len(kept), batch_size)]
        assert [b and b[0][replica] for b in found] == expected + [None] * (len(found) - len(expected))
        assert [b[1][replica] for b in found if b] == [[1 / len(rows)] * len(rows) for rows in expected]
    for k, batch in enumerate(epoch_batches(torch.tensor(order), batch_size, torch.tensor(groups), removal="drop")):
        if batch and most_spare:
            assert batch[0].tolist() == order[k * batch_size : (k + 1) * batch_size + g][: len(batch[0])]
        elif batch:
            assert batch[0].shape == batch[1].shape


def test_large_groups_and_dropout_have_batches_of_their_own():
    order = torch.arange(100)
    for group, shared, dims in ((2, True, 1), (2, False, 2), (3, True, 2)):
        removed = torch.arange(2 * group).reshape(2, group)
        rows, _ = next(epoch_batches(order, 8, removed, removal="drop", shared=shared))
        assert rows.dim() == dims


@pytest.mark.parametrize("n", [10, 11, 13])
def test_dropping_is_the_order_without_the_instance(n):
    order = next(epoch_orders(n, 0))
    removed = list(range(n))
    found = batches(order.tolist(), 5, removed, removal="drop")
    for replica, instance in enumerate(removed):
        rows = [row for b in found if b for row in b[0][replica]]
        assert rows == [row for row in order.tolist() if row != instance]
    sizes = [len(b[0][0]) for b in found if b]
    assert sizes[:-1] == [5] * (len(sizes) - 1) and sum(sizes) == n - 1
    assert all(b[1] == [[1 / len(b[0][0])] * len(b[0][0])] * n for b in found if b)


def test_the_full_run_is_the_order_itself():
    for removal in ("drop", "mask"):
        assert batches([3, 0, 2, 1, 4], 3, [FULL_RUN], removal=removal) == [
            ([[3, 0, 2]], [[1 / 3] * 3]),
            ([[1, 4]], [[1 / 2] * 2]),
        ]


def test_masking_by_hand():
    found = batches([3, 0, 2, 1, 4], 2, [FULL_RUN, 0, 4], removal="mask")
    assert found == [
        ([[3, 0]] * 3, [[0.5, 0.5], [0.5, 0], [0.5, 0.5]]),
        ([[2, 1]] * 3, [[0.5, 0.5]] * 3),
        ([[4]] * 3, [[1], [1], [0]]),
    ]
    assert batches([1, 0], 2, [FULL_RUN, 0], removal="mask", fraction=0.25) == [
        ([[1, 0]] * 2, [[0.5, 0.5], [0.5, 0.375]])
    ]


def test_subtracting_by_hand():
    found = batches([3, 0, 2, 1], 3, [FULL_RUN, 2], removal="subtract")
    third = 1 / 3
    assert found == [
        ([[3, 0, 2, 0], [3, 0, 2, 2]], [[third, third, third, 0], [third, third, third, -1 / 4]]),
        ([[1, 0], [1, 2]], [[1, 0], [1, -1 / 4]]),
    ]
    last = batches([1, 0], 2, [1], removal="subtract", fraction=0.5)
    assert last == [([[1, 0, 1]], [[0.5, 0.5, -0.25]])]


@pytest.mark.parametrize("fraction", [0, 0.3, 1])
def test_sums_of_weights(fraction):
    order = next(epoch_orders(11, 1))
    removed = torch.tensor([FULL_RUN, *range(11)])
    total = {}
    for removal in ("mask", "subtract"):
        found = epoch_batches(order, 4, removed, removal=removal, fraction=fraction)
        total[removal] = torch.stack([weights.sum(1) for _, weights in found])
    assert torch.allclose(total["subtract"][:, 1:], torch.tensor(1 - fraction / 11).double())
    assert (total["subtract"][:, 0] == 1).all() and (total["mask"][:, 0] == 1).all()
    # Masking takes fraction/B from the one batch that holds the instance.
    lost = 1 - total["mask"][:, 1:]
    where = (order[:, None] == torch.arange(11)).nonzero()[:, 0] // 4
    sizes = torch.tensor([4, 4, 3])
    expected = torch.zeros(3, 11, dtype=torch.float64)
    for step, instance in zip(where, order, strict=True):
        expected[step, instance] = fraction / sizes[step]
    assert torch.allclose(lost, expected)


def test_weights_are_float64_and_rows_of_common_batches_are_shared():
    for removal, shape in (("drop", (5,)), ("mask", (4,)), ("subtract", (2, 5))):
        rows, weights = next(epoch_batches(torch.arange(9), 4, torch.tensor([1, 2]), removal=removal))
        assert rows.shape == shape and weights.dtype == torch.float64 and weights.shape[1] == shape[-1]
