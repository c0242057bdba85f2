"""Batched or one after another: the same numbers, the faster chosen by measurement and kept; running out of memory."""

import gc
import json
import logging
import weakref

import numpy as np
import pytest
import torch
import xarray as xr
from problems import tiny
from torch import nn

from fimoda_lib import Task, further_train
from fimoda_lib.datasets import models
from fimoda_lib.tasks import cross_entropy, parameters_of, take
from fimoda_lib.training import engines, runs
from fimoda_lib.training.chunks import activation_numbers, replica_bytes
from fimoda_lib.training.engines import Engine, choose_engine, needs_measuring
from fimoda_lib.training.ensembles import Ensemble, Optimizer
from fimoda_lib.training.plans import Plan

SETTINGS = dict(learning_rate=0.05, batch_size=4, epochs=2, seeds=[3], left_out=[0, 2, 5, 7, 8], progress=False)


def problem(dropout=0.0):
    torch.manual_seed(1)
    instances = [(torch.randn(n, 1, 8, 8), torch.arange(n) % 3) for n in (10, 3)]
    layers = [*models.convnet(1, 3, side=8, width=2)]
    model = nn.Sequential(*layers[:-1], nn.Dropout(dropout), layers[-1]) if dropout else nn.Sequential(*layers)
    return Task("tiny", model, cross_entropy, *instances)


def engine(monkeypatch, batched):
    monkeypatch.setattr(runs, "choose_engine", lambda *_, **__: Engine(batched, 1e-3))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
def test_both_engines_give_the_same_runs(monkeypatch, removal, dropout):
    task = problem(dropout)
    params = {k: v.double() for k, v in parameters_of(task.model).items()}
    found = {}
    for batched in (True, False):
        engine(monkeypatch, batched)
        found[batched] = further_train(
            task, params, **SETTINGS, optimizer="adamw", removal=removal, max_grad_norm=1.0, weight_decay=0.01
        )
    if dropout and removal != "mask":  # each engine draws its own masks ...
        assert np.isfinite(found[False].delta).all()
    else:
        xr.testing.assert_allclose(found[True].full_loss, found[False].full_loss, rtol=1e-9)
        np.testing.assert_allclose(found[True].delta, found[False].delta, rtol=1e-5, atol=1e-9)
    assert float(abs(found[False].delta).max()) > 1e-5


@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_one_after_another_dropout_is_paired(monkeypatch, removal):
    engine(monkeypatch, batched=False)
    task = problem(dropout=0.5)
    gold = further_train(task, parameters_of(task.model), **SETTINGS, optimizer="sgd", removal=removal, fraction=0.0)
    assert (gold.delta == 0).all()
    again = further_train(
        task, parameters_of(task.model), **SETTINGS, optimizer="sgd", removal=removal, fraction=0.0, replicas=2
    )
    xr.testing.assert_identical(gold.full_loss, again.full_loss)


def test_shared_and_own_batches_agree():
    task = problem()
    params = parameters_of(task.model)
    weights = torch.full((3, 4), 0.25)
    rows = torch.tensor([1, 2, 3, 4])
    shared, own = (Ensemble(task, params, 3, Optimizer("sgd", 0.1), batched=False) for _ in range(2))
    shared.step(take(task.train, rows[None]), weights)
    own.step(take(task.train, rows.expand(3, 4)), weights)
    assert all(torch.equal(shared.params[k], own.params[k]) for k in params)


def test_small_dense_models_are_not_measured_and_others_are():
    dense = Task("dense", models.mlp(3, 1), cross_entropy, *[(torch.zeros(4, 3), torch.zeros(4).long())] * 2)
    assert not needs_measuring(dense, parameters_of(dense.model))
    assert needs_measuring(problem(), parameters_of(problem().model))
    wide = Task("wide", models.mlp(3, 1, width=1000), cross_entropy, dense.train, dense.test)
    assert needs_measuring(wide, parameters_of(wide.model))


def choice(store=None, replicas=None, removal="mask"):
    task = problem()
    return choose_engine(
        task, parameters_of(task.model), Optimizer("sgd", 0.1), 4,
        removal=removal, device=torch.device("cpu"), replicas=replicas, store=store,
    )  # fmt: skip


@pytest.mark.parametrize(("seconds", "batched"), [((1.0, 2.0), True), ((2.0, 1.0), False), ((0.99, 1.0), False)])
def test_the_faster_engine_is_chosen(monkeypatch, seconds, batched):
    measured = xr.Dataset({"seconds_per_step": ("engine", list(seconds))}, coords={"engine": ["batched", "sequential"]})
    monkeypatch.setattr(engines, "measure", lambda *_: measured)
    assert choice() == Engine(batched, min(seconds) if batched or seconds[0] > 1 else 1.0)


def test_a_measurement_is_kept_and_a_single_replica_needs_none(monkeypatch, tmp_path):
    first = choice(tmp_path)
    assert first.seconds > 0
    monkeypatch.setattr(engines, "measure", lambda *_: pytest.fail("measured again"))
    assert choice(tmp_path) == first
    assert choice(replicas=1) == Engine(False)
    with pytest.raises(pytest.fail.Exception):
        choice(tmp_path, removal="subtract")


@pytest.fixture
def cycles_stay():
    """A GPU that is full has nobody look for cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch, caplog, removal, cycles_stay):
    """A device with room for two replicas at most gives the same result as one with room for all."""
    engine(monkeypatch, batched=False)
    task = problem()
    arguments = dict(**SETTINGS, optimizer="sgd", removal=removal)
    expected = further_train(task, parameters_of(task.model), **arguments)
    step, asked = Ensemble.step, []

    def cramped(self, batch, weights):
        asked.append(self.size)
        if self.size > 2 and self.steps == 1:  # not at once: half of the chunk's losses may be there already
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self, batch, weights)

    forget, begun, alive = runs.Runner.forget, [], []
    start = Ensemble.__init__

    def noted(self, *arguments, **more):
        begun.append(weakref.ref(self))
        start(self, *arguments, **more)

    def looked_at(self, bar, before):
        forget(self, bar, before)
        alive.append(sum(one() is not None for one in begun))

    monkeypatch.setattr(Ensemble, "__init__", noted)
    monkeypatch.setattr(runs.Runner, "forget", looked_at)
    monkeypatch.setattr(Ensemble, "step", cramped)
    with caplog.at_level(logging.WARNING):
        found = further_train(task, parameters_of(task.model), **arguments, replicas=6)
    assert {*alive} == {0}  # what did not fit is gone before a smaller chunk begins
    xr.testing.assert_identical(found.drop_vars("seconds"), expected.drop_vars("seconds"))
    assert max(asked) > 2 and asked[-1] <= 2 and "Out of memory with" in caplog.text


@pytest.mark.parametrize(
    ("removal", "groups", "optimizer"),  # which makes batches, and what is done with their gradients
    [
        ("drop", False, "adamw"),
        ("drop", True, "sgd"),
        ("mask", False, "sgd"),
        ("mask", True, "adamw"),
        ("subtract", False, "adamw"),
        ("subtract", True, "sgd"),
    ],
)
def test_seeds_that_are_trained_together_give_what_each_gives_alone(monkeypatch, tmp_path, optimizer, removal, groups):
    """As on a GPU with room for two seeds; the second of four is in the store already."""
    task = problem()
    arguments = {**SETTINGS, "optimizer": optimizer, "removal": removal, "seeds": [3, 0, 5, 1], "store": tmp_path}
    if groups:
        arguments["left_out"] = [[4], [0, 7], [1, 2, 3]]
    alone = further_train(task, parameters_of(task.model), **{**arguments, "store": None})
    further_train(task, parameters_of(task.model), **{**arguments, "seeds": [0]})
    monkeypatch.setattr(runs.Runner, "seeds_at_once", lambda self: 2)
    run, asked = runs.Runner.run, []
    monkeypatch.setattr(runs.Runner, "run", lambda self, seeds, bar: asked.append(seeds) or run(self, seeds, bar))
    found = further_train(task, parameters_of(task.model), **arguments)
    assert asked == [[3, 5], [1]] and len(list(tmp_path.glob("further*.nc"))) == 4
    for seed, seconds in zip(found.seed.values, found.seconds.values, strict=True):  # half of what both took
        (path,) = tmp_path.glob(f"further-*seed{seed}-*.json")
        assert json.loads(path.read_text())["seconds"] == pytest.approx(seconds, abs=1e-3)
    xr.testing.assert_allclose(found.drop_vars("seconds"), alone.drop_vars("seconds"), rtol=1e-5, atol=1e-7)
    assert float(abs(alone.delta.diff("seed")).min()) > 0 or removal != "mask"  # seeds differ


def test_seeds_that_do_not_fit_together_are_trained_one_by_one(monkeypatch, caplog):
    engine(monkeypatch, batched=True)
    task = problem()
    arguments = {**SETTINGS, "optimizer": "sgd", "removal": "drop", "seeds": [3, 0]}
    expected = further_train(task, parameters_of(task.model), **arguments)
    monkeypatch.setattr(runs.Runner, "seeds_at_once", lambda self: 2)
    step, alone = Ensemble.step, len(arguments["left_out"])

    def cramped(self, batch, weights):
        if self.size > alone:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self, batch, weights)

    monkeypatch.setattr(Ensemble, "step", cramped)
    found = further_train(task, parameters_of(task.model), **arguments)
    xr.testing.assert_identical(found.drop_vars("seconds"), expected.drop_vars("seconds"))
    assert "2 seeds at once" in caplog.text


def test_out_of_memory_with_the_fewest_replicas_is_an_error(monkeypatch):
    def full(self, batch, weights):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Ensemble, "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        further_train(problem(), parameters_of(problem().model), **SETTINGS, optimizer="sgd", removal="mask")


def test_a_long_seed_is_announced_with_its_time_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(runs, "choose_engine", lambda *_, **__: Engine(False, 10.0))
    task = problem()
    further_train(task, parameters_of(task.model), **{**SETTINGS, "progress": True}, optimizer="sgd", removal="mask")
    words = capsys.readouterr().out
    # (1 + 5) runs of 6 steps of 10 s
    assert "36 model-steps" in words and "about 6 min" in words and "sequential" in words and "GB" in words


def test_chunks_hold_every_instance_once_and_a_full_run_where_it_belongs():
    for removal in ("drop", "mask"):
        for replicas in (1, 2, 3, 50):
            found = runs.chunks([4, 5, 6, 7], removal, replicas)
            left_out = [i for chunk in found for i in chunk.tolist() if i >= 0]
            full = [chunk[0].item() == -1 for chunk in found]
            assert left_out == [4, 5, 6, 7]
            assert full == ([True] + [False] * (len(found) - 1) if removal == "drop" else [True] * len(found))
    assert [c.tolist() for c in runs.chunks([4], "drop", 5, first=False)] == [[4]]


def test_what_lies_below_the_parameters_that_move_is_counted_once_for_all_replicas():
    task, params = tiny(width=50)  # Linear, Tanh, Linear: 50 + 50 + 1
    last = {k: p for k, p in params.items() if k.startswith("2.")}
    assert activation_numbers(task, params) == (101, 101) and activation_numbers(task, last) == (101, 1)
    rule, engine = Optimizer("sgd", 0.1), Engine(batched=True)
    plans = {way: Plan(rule, 8, 1, way, 1.0, left_out=(0, 1), test=(0,), steps=(1,)) for way in ("mask", "drop")}
    masked, dropped = (replica_bytes(task, last, plan, engine) for plan in plans.values())
    assert dropped - masked == 4 * 3 * (101 - 1) * 8  # with batches of their own, replicas share nothing
