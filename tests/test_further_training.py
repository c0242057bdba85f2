"""Further training against the plain loop, and what must not change its results."""

import dataclasses

import numpy as np
import pytest
import torch
from plain import train
from problems import tiny
from torch import nn

from fimoda_lib.further_training import further_train, train_final_model
from fimoda_lib.models import mlp
from fimoda_lib.tasks import Task, cross_entropy, parameters_of, squared_error

SETTINGS = dict(learning_rate=0.05, batch_size=5, epochs=3)


def run(task, params, **changes):
    settings = {"optimizer": "sgd", "seeds": [3], "left_out": [0, 7], **SETTINGS, **changes}
    return further_train(task, params, progress=False, **settings)


def plain_delta(task, params, removed, *, every, **settings):
    """Leave-one-out minus full losses of the plain loop after every `every` steps, [steps, n_test]."""
    full = torch.stack(list(train(task, params, **settings)))
    without = torch.stack(list(train(task, params, removed=removed, **settings)))
    return full[every - 1 :: every].numpy(), (without - full)[every - 1 :: every].numpy()


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("n", [20, 21, 23])  # whole batches; one instance in the last (drop: no last batch); ragged
def test_equals_the_plain_loop(kind, removal, optimizer, n):
    task, params = tiny(kind, n=n)
    decay = {"sgd": 0.0, "adam": 0.01, "adamw": 0.1}[optimizer]
    gold = run(task, params, optimizer=optimizer, removal=removal, weight_decay=decay)
    for k, removed in enumerate([0, 7]):
        full, delta = plain_delta(task, params, removed, every=-(-n // 5), optimizer=optimizer, removal=removal,
                                  seed=3, weight_decay=decay, **SETTINGS)
        np.testing.assert_allclose(gold.full_loss[0], full, rtol=1e-10)
        assert abs(delta).max() > 1e-6
        # delta is stored in float32: that is its only rounding
        np.testing.assert_allclose(gold.delta[0, k], delta.astype(np.float32), rtol=3e-7, atol=1e-10)
