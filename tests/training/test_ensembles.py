"""Replicas trained together, with and without the compiler."""

import dataclasses
import logging
import shutil

import numpy as np
import plain
import pytest
import torch
from problems import tiny
from torch import nn

from fimoda_lib.tasks import parameters_of
from fimoda_lib.training.ensembles import Ensemble, Optimizer
from fimoda_lib.training.further_training import further_train

SETTINGS = dict(
    optimizer="sgd",
    learning_rate=0.05,
    batch_size=23,
    epochs=3,
    seeds=[0],
    left_out=[0, 7],
    removal="mask",
    progress=False,
)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler here")
def test_compiled_steps_equal_plain_ones_to_rounding(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for name, value in (("compile_threads", 1), ("cpp_cache_precompile_headers", False), ("cpp.vec_isa_ok", False)):
        monkeypatch.setattr(f"torch._inductor.config.{name}", value)  # what takes longer than it saves here
    task, _ = tiny(dtype=torch.float32)
    task = dataclasses.replace(task, model=torch.nn.Linear(3, 1))
    params = parameters_of(task.model)
    plain = further_train(task, params, **SETTINGS, compile=False)
    with caplog.at_level(logging.WARNING):
        compiled = further_train(task, params, **SETTINGS, compile=True)
    assert "does not work here" not in caplog.text
    assert list(tmp_path.rglob("*.so"))  # something was compiled
    np.testing.assert_allclose(compiled.full_loss, plain.full_loss, rtol=1e-5)
    assert abs(compiled.delta - plain.delta).max() < 1e-4 * abs(plain.delta).max()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_compiler_that_fails_half_way_leaves_no_marks(optimizer, monkeypatch, caplog):
    def broken(step, **_):
        def run(params, state, *rest):
            step(params, state, *rest)
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    task, params = tiny()
    settings = {**SETTINGS, "optimizer": optimizer}
    with caplog.at_level(logging.WARNING):
        fallen_back = further_train(task, params, **settings, compile=True)
    assert caplog.text.count("torch.compile does not work here (RuntimeError)") == 1
    np.testing.assert_array_equal(fallen_back.delta, further_train(task, params, **settings, compile=False).delta)


def test_replicas_do_not_influence_each_other():
    """One replica whose step is not finite must leave the others exactly as they are without it."""
    task, params = tiny()
    batch = (task.train[0][None, :6], task.train[1][None, :6])
    weights = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    weights[1, 2] = float("inf")
    pair, trio = (Ensemble(task, params, m, Optimizer("adam", 0.01, max_grad_norm=1.0)) for m in (2, 3))
    for _ in range(3):
        trio.step(batch, weights)
        pair.step(batch, weights[[0, 2]])
    together, alone = trio.losses(task.test), pair.losses(task.test)
    assert together[1].isnan().all()
    torch.testing.assert_close(together[[0, 2]], alone, rtol=1e-12, atol=0)


def test_reset_goes_back_to_the_start():
    task, params = tiny()
    ensemble = Ensemble(task, params, 2, Optimizer("adam", 0.01))
    batch, weights = (task.train[0][None], task.train[1][None]), torch.full((2, 23), 1 / 23, dtype=torch.float64)
    runs = []
    for _ in range(2):
        ensemble.reset()
        for _ in range(3):
            ensemble.step(batch, weights)
        runs.append(ensemble.losses(task.test))
    assert torch.equal(*runs)
    assert all(torch.equal(value, params[name]) for name, value in task.model.state_dict().items())


def test_losses_are_float64_even_where_training_is_float32():
    task, _ = tiny(dtype=torch.float32)
    task.model[0].requires_grad_(False)
    losses = Ensemble(task, parameters_of(task.model), 2, Optimizer("sgd", 0.1)).losses(task.test)
    exact = task.loss(task.model.double()(task.test[0].double()), task.test[1].double()).detach()
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, exact.expand(2, -1), rtol=1e-14, atol=0)


class Scalars(nn.Module):
    """Parameters of any shape: none at all, not contiguous, fixed, in a list."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.ones(2), requires_grad=False)
        self.maps = nn.ParameterList([torch.linspace(-1, 1, 12).reshape(4, 3).t(), torch.linspace(1, 2, 8).view(4, 2)])

    def forward(self, x):
        return self.scale * (x @ self.maps[0]).tanh() @ self.maps[1] + self.shift


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parameters_without_a_dimension_are_clipped_with_the_others(optimizer):
    task = dataclasses.replace(tiny(outputs=2)[0], model=Scalars().double())
    params = parameters_of(task.model)
    rule = dict(optimizer=optimizer, learning_rate=0.05, batch_size=8, epochs=1, max_grad_norm=0.5)
    gold = further_train(task, params, **rule, seeds=[0], left_out=[4], evaluate=[1, 2, 3], progress=False)
    full, without = (np.stack([*plain.train(task, params, **rule, seed=0, removed=i)]) for i in (None, 4))
    np.testing.assert_allclose(gold.full_loss[0], full, rtol=1e-9)
    np.testing.assert_allclose(gold.delta[0, 0], without - full, rtol=1e-5, atol=1e-9)
