"""LFT on a small transformer as text is fine-tuned: AdamW, clipped gradients, dropout; against exact tangents."""

import numpy as np
import pytest
import torch
from torch import nn

from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.methods import attribute
from fimoda_lib.tasks import Task, cross_entropy, parameters_of

WORDS, WIDTH, TRAIN, TEST = 12, 8, [0, 7, 19, 33], [0, 2, 5]
RUN = dict(optimizer="adamw", learning_rate=2e-3, weight_decay=0.01, max_grad_norm=0.5)
HORIZONS = [5, 10]  # not the first step, which Adam makes by the signs of gradients: its derivative is nothing


class Reader(nn.Module):
    """Words, one layer of attention, and the mean over places."""

    def __init__(self, dropout):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout, "gelu", batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, sentences):
        return self.head(self.layer(self.words(sentences)).mean(1))


def reader(dropout):
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Reader(dropout).double()

    def data(k):
        sentences = torch.randint(WORDS, (k, 5), generator=g)
        return sentences, (sentences.sum(1) > 5 * WORDS / 2 - 2).long()

    task = Task("reader", model, cross_entropy, train=data(40), test=data(6))
    return task, parameters_of(model)


def cosines(found, expected):
    """At each horizon, over all scores."""
    return [float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(found, expected, strict=True)]


@pytest.fixture(scope="module")
def measured():
    """The task, its parameters, and the mean derivative of some runs [horizon, test, train]."""
    task, params = reader(dropout=0.1)
    tangents = tangent_train(
        task, params, batch_size=8, epochs=2, seeds=range(8), left_out=TRAIN, test=TEST, evaluate=HORIZONS,
        progress=False, **RUN,
    )  # fmt: skip
    return task, params, tangents.delta.mean("seed").transpose("step", "test", "left_out").values


def lft(task, params, run=RUN, **options):
    run = {"batch_size": 8, "seed": 100, **run}
    rows = dict(train=TRAIN, test=TEST, horizon=HORIZONS)
    options = {"runs": 2, "order": 1, **options}
    return attribute("lft", task, params, further_training=run, **rows, **options).values


@pytest.mark.slow
def test_with_the_whole_hessian_it_is_the_mean_derivative_of_runs(measured):
    task, params, expected = measured
    found = lft(task, params, mode="split")
    assert (np.array(cosines(found, expected)) > [0.93, 0.98]).all()
    assert 0.8 < np.linalg.norm(found) / np.linalg.norm(expected) < 1.25
    fast = lft(task, params, {**RUN, "learning_rate": 4 * RUN["learning_rate"]}, mode="split", runs=1)
    assert not 0.8 < np.linalg.norm(fast) / np.linalg.norm(expected) < 1.25
    assert min(cosines(found[..., [1, 2, 3, 0]], expected)) < 0.5  # the wrong instances


def test_a_few_products_correct_the_filter_of_kronecker_factors(measured):
    """G alone points the same way, and has no size that could be compared; four intervals of 10 steps have both."""
    task, params, expected = measured
    alone = lft(task, params, backend="ekfac")
    few = lft(task, params, mode="split", backend="ekfac", products=8)
    assert (np.array(cosines(alone, expected)) > [0.88, 0.96]).all()
    assert (np.array(cosines(few, expected)) > cosines(alone, expected)).all()
    errors = [np.linalg.norm(found - expected) / np.linalg.norm(expected) for found in (few, alone)]
    assert errors[0] < 0.3 < errors[1]
