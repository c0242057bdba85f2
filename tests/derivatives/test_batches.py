"""Batches drawn as those of a run, and what instances add to the mean square of their gradients."""

from functools import partial
from itertools import permutations

import numpy as np
import oracles
import pytest
import torch
from problems import tiny

from fimoda_lib.derivatives.batches import drawn, own_weight, with_gradients
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.splitting import Drift
from fimoda_lib.derivatives.whole_hessian import Pull, Surroundings
from fimoda_lib.groups import as_matrix
from fimoda_lib.training.ensembles import Optimizer
from fimoda_lib.training.minibatches import FULL_RUN, run_batches, steps_per_epoch

N = 23


@pytest.mark.parametrize(("sample", "used"), [(100, 3), (N, 3), (N - 1, 2), (8, 1), (4, 1)])
def test_batches_are_those_of_an_epoch(sample, used):
    rows, number = drawn(N, sample, 8, torch.Generator().manual_seed(0))
    assert sorted(map(len, rows)) == [7, 8, 8] and number == used
    assert sorted(torch.cat(rows).tolist()) == [*range(N)]
    assert not torch.equal(torch.cat(rows), torch.cat(drawn(N, sample, 8, torch.Generator().manual_seed(1))[0]))


def test_the_smaller_batch_is_taken_as_often_as_it_comes_in_a_run():
    g = torch.Generator().manual_seed(0)
    first = [len(rows[0]) for rows, _ in (drawn(N, 8, 8, g) for _ in range(600))]
    assert 0.27 < np.mean(np.array(first) == 7) < 0.4
    assert [len(rows) for rows in drawn(N, N, 8, g)[0]] == [8, 8, 7]  # all of them: in the order of a run


def test_means_are_over_instances_and_mean_squares_over_steps():
    gradients = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows, _ = drawn(N, N, 8, torch.Generator().manual_seed(0))
    of_batches = torch.stack([gradients[some].mean(0) for some in rows])
    for used, at_least, count in ((3, 1, 3), (1, 3, 3), (1, 9, 3), (1, 1, 1), (2, 1, 2)):
        found = with_gradients(rows, used, lambda some: (gradients[one].mean(0) for one in some), at_least)
        torch.testing.assert_close(found.gradients, of_batches[:used])
        torch.testing.assert_close(found.mean, gradients[torch.cat(rows[:count])].mean(0))
        torch.testing.assert_close(found.square, of_batches[:count].square().mean(0))
        assert found.parts == [len(some) / sum(map(len, rows[:used])) for some in rows[:used]]


@pytest.mark.parametrize(("n", "batch_size"), [(N, 8), (24, 8), (5, 8), (9, 8), (1, 1)])
def test_an_instance_weighs_in_its_batch_what_it_does_in_a_run(n, batch_size):
    steps, squares = steps_per_epoch(n, batch_size), 0.0
    batches = run_batches(n, batch_size, torch.tensor([FULL_RUN]), seed=0, removal="mask")
    for _ in range(steps):
        squares += float(next(batches)[1].square().sum())
    # Each of n instances is in one batch of an epoch, with one over its size as weight.
    np.testing.assert_allclose(squares / steps, own_weight(n, batch_size))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_what_instances_add_to_the_mean_square_of_gradients(removal, whole):
    """... of a batch, with weight decay and clipping: on average over all orders of five instances by twos."""
    (task, params), n, size, decay, groups = tiny(n=5), 5, 2, 0.3, [[0], [1, 3], [4, 2, 0]]
    at, drift = Gradients(task, params), Drift(None, Optimizer("adam", 0.1, weight_decay=decay), share=0.5)
    around = Surroundings(at, as_matrix(groups), whole=whole, everywhere=removal == "subtract")
    gradients = partial(around.gradients, decay=decay / drift.share)
    batches = with_gradients(*drawn(n, n, size, torch.Generator().manual_seed(0)), gradients)
    nothing = torch.zeros(len(groups), at.n_params, dtype=torch.float64)
    found = Pull(around, drift, 1, batches, own_weight(n, size)).lost(*around.source(nothing))

    every = oracles.gradients(task, params, task.train, range(n))
    decayed, expected, count = decay / drift.share * at.flatten(at.params).numpy(), 0.0, 0
    for order in permutations(range(n)):
        for batch in (order[:2], order[2:4], order[4:]):
            full = every[[*batch]].mean(0) + decayed
            taken = [
                every[group].sum(0) / n
                if removal == "subtract"
                else every[[i for i in group if i in batch]].sum(0) / len(batch)
                for group in groups
            ]
            expected = expected + np.stack([2 * full * t - (t**2 if whole else 0.0) for t in taken])
            count += 1
    np.testing.assert_allclose(found, expected / count, rtol=1e-9, atol=1e-14)
