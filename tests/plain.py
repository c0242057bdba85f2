"""The usual way, written naively: one model, a DataLoader-like loop, an optimiser object. Oracles for the tests."""

import copy

import numpy as np
import torch
from torch.utils.data import RandomSampler

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def train(
    task,
    params,
    *,
    optimizer,
    learning_rate,
    batch_size,
    epochs,
    seed,
    removed=None,
    removal="drop",
    fraction=1.0,
    weight_decay=0.0,
    max_grad_norm=None,
    every=1,
):
    """Yields, after every so many optimiser steps of the full run, the test losses [n_test] in float64 of one run.

    `removed` is an instance, several of them, or None.
    """
    gone = set() if removed is None else set(np.ravel(removed).tolist())
    dtype = next(iter(params.values())).dtype
    model = copy.deepcopy(task.model).to(dtype)
    model.load_state_dict({**model.state_dict(), **params})
    trained = [p for p in model.parameters() if p.requires_grad]
    rule = OPTIMIZERS[optimizer](trained, lr=learning_rate, weight_decay=weight_decay)
    inputs, targets = (part.to(dtype) if part.is_floating_point() else part for part in task.train)
    n = len(targets)
    sampler = RandomSampler(range(n), generator=torch.Generator().manual_seed(seed))
    full_steps = -(-n // batch_size)
    for epoch in range(epochs):
        order = list(sampler)
        if removal == "drop":
            order = [i for i in order if i not in gone]
        for k in range(full_steps):
            rows = order[k * batch_size : (k + 1) * batch_size]
            if rows:
                rule.zero_grad()
                losses = task.loss(model(inputs[rows]), targets[rows])
                weights = torch.full((len(rows),), 1 / len(rows), dtype=dtype)
                if removal == "mask":
                    for i in gone & set(rows):
                        weights[rows.index(i)] *= 1 - fraction
                loss = (weights * losses).sum()
                if removal == "subtract":
                    for i in gone:
                        loss = loss - fraction * task.loss(model(inputs[[i]]), targets[[i]])[0] / n
                loss.backward()
                if max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                rule.step()
            if (epoch * full_steps + k + 1) % every == 0:
                yield test_losses(task, model)


def test_losses(task, model):
    evaluated = copy.deepcopy(model).double().eval()
    inputs, targets = (part.double() if part.is_floating_point() else part for part in task.test)
    with torch.no_grad():
        return task.loss(evaluated(inputs), targets)
