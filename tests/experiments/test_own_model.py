"""The reader's own model, loss and method of notebook 07."""

import numpy as np
import torch
from torch.func import functional_call

from fimoda_lib import Task, attribute
from fimoda_lib.experiments.own_model import Progression, last_layer, robust
from fimoda_lib.tasks import parameters_of

N, DAMPING = 13, 0.3


def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Progression(width=5).double()
        parts = [
            (
                {"measurements": torch.randn(n, 9).double(), "sex": torch.randint(2, (n,))},
                2 * torch.randn(n, 1).double(),  # errors on both sides of the Huber loss's edge
            )
            for n in (N, 4)
        ]
    return Task("patients", model, robust, *parts), parameters_of(model)


def test_the_last_layer_is_the_influence_of_its_parameters_alone():
    task, params = problem()
    own = {k: v for k, v in params.items() if k.startswith("layers.2")}
    flat = torch.cat([v.ravel() for v in own.values()])

    def losses(flat, instances):
        pieces = flat.split([v.numel() for v in own.values()])
        given = {k: x.view_as(v) for x, (k, v) in zip(pieces, own.items(), strict=True)}
        return robust(functional_call(task.model, {**params, **given}, (instances[0],)), instances[1])

    test, train = (torch.autograd.functional.jacobian(lambda f: losses(f, part), flat).numpy()
                   for part in (task.test, task.train))  # fmt: skip
    # The model is linear in its last layer, so that the Hessian there is a Gauss-Newton matrix.
    H = torch.autograd.functional.hessian(lambda f: losses(f, task.train).mean(), flat).numpy()
    expected = test @ np.linalg.inv(H + DAMPING * np.eye(len(H))) @ train.T
    found = attribute(last_layer, task, params, damping=DAMPING)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert np.abs(attribute(last_layer, task, params, damping=1.0) / expected - 1).max() > 0.1
    assert np.abs(test @ train.T / expected - 1).max() > 0.1
