"""Tiny problems in float64 that every test can solve exactly in a moment."""

import functools

import torch
from torch import nn

from fimoda_lib.tasks import Task, cross_entropy, parameters_of, squared_error


def tiny(kind="regression", *, n=23, n_test=5, inputs=3, width=4, outputs=None, dtype=torch.float64, seed=0):
    """A biased two-layer MLP with fewer than 200 parameters and random data; returns (task, params)."""
    g = torch.Generator().manual_seed(seed)
    outputs = outputs or (1 if kind == "regression" else 3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).to(dtype)

    def data(k):
        x = torch.randn(k, inputs, generator=g, dtype=dtype)
        if kind == "regression":
            return x, torch.randn(k, outputs, generator=g, dtype=dtype)
        return x, torch.randint(outputs, (k,), generator=g)

    loss = squared_error if kind == "regression" else cross_entropy
    task = Task(f"tiny_{kind}", model, loss, train=data(n), test=data(n_test))
    return task, parameters_of(model)


@functools.cache
def kept(kind="regression", outputs=None):
    """The same objects each time, for tests that leave them as they are: the library tries a task only once."""
    return tiny(kind, outputs=outputs)
