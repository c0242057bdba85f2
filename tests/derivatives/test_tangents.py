"""Tangent further training against differences of two runs that hardly differ, in float64."""

import dataclasses
import functools

import numpy as np
import plain
import pytest
import torch
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.derivatives import tangents
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.tasks import parameters_of
from fimoda_lib.training.final_model import TrainingDiverged
from fimoda_lib.training.further_training import further_train
from fimoda_lib.training.minibatches import epoch_orders

LEFT_OUT, SEEDS = [4, 0, 17], [1, 5]
RUN = dict(batch_size=12, epochs=2)
RULES = {
    "sgd": dict(optimizer="sgd", learning_rate=0.1),
    "adam": dict(optimizer="adam", learning_rate=0.01),
    "adamw": dict(optimizer="adamw", learning_rate=0.01, weight_decay=0.5, max_grad_norm=0.4),
}
CHANGE = 2e-5  # of the removed weight, in both directions: errors of its square


def tangent(task, params, rule, **options):
    options = {**RULES[rule], **RUN, "seeds": SEEDS, "left_out": LEFT_OUT, **options}
    return tangent_train(task, params, progress=False, **options)


def run_by_hand(task, params, rule, seed, steps=4, **options):
    """Test losses [steps, n_test] of the usual loop, with the dropout masks that belong to each step."""
    losses, run = [], plain.train(task, params, **RULES[rule], **RUN, seed=seed, **options)
    with torch.random.fork_rng():
        for step in range(1, steps + 1):
            torch.manual_seed(seed * 1_000_003 + step)
            losses.append(next(run).numpy())
    return np.stack(losses)


def difference(task, params, rule, removal):
    """What `tangent` should say after every step, one instance and one seed at a time: [seed, left_out, step, test]."""

    def run(seed, i, fraction):
        return run_by_hand(task, params, rule, seed, removed=i, removal=removal, fraction=fraction)

    return np.array([[(run(s, i, CHANGE) - run(s, i, -CHANGE)) / (2 * CHANGE) for i in LEFT_OUT] for s in SEEDS])


def check(found, expected, tolerance=1e-6):
    error = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.1e}"


def differs(found, expected):
    with pytest.raises(AssertionError, match="relative error"):
        check(found, expected, 0.01)


def with_dropout(task, params):
    model = nn.Sequential(*task.model[:2], nn.Dropout(0.4), task.model[2])
    return dataclasses.replace(task, model=model), {k.replace("2.", "3."): v for k, v in params.items()}


@functools.cache
def at_every_step(rule, kind, outputs, removal):
    return tangent(*tiny(kind, outputs=outputs), rule, removal=removal, evaluate=range(1, 5))


@pytest.mark.parametrize("removal", ["mask", "subtract"])
@pytest.mark.parametrize(
    ("rule", "kind", "outputs"), [("sgd", "regression", 2), ("adam", "classification", 3), ("adamw", "regression", 1)]
)
def test_it_is_the_derivative_of_further_training(rule, kind, outputs, removal):
    task, params = tiny(kind, outputs=outputs)
    found = at_every_step(rule, kind, outputs, removal)
    assert found.delta.dims == ("seed", "left_out", "step", "test") and found.delta.dtype == np.float64
    expected = difference(task, params, rule, removal)
    check(found.delta, expected)
    for seed in SEEDS:
        np.testing.assert_allclose(found.full_loss.sel(seed=seed), run_by_hand(task, params, rule, seed), rtol=1e-9)
    other = "mask" if removal == "subtract" else "subtract"
    wrong = {
        "sign": -found.delta,
        "removal": at_every_step(rule, kind, outputs, other).delta,
        "instances": found.delta[:, ::-1],
        "seeds": found.delta[::-1],
        "steps": np.roll(found.delta, 1, 2),
        "test instances": found.delta[..., ::-1],
    }
    for values in wrong.values():
        differs(values, expected)
    changed = {
        "sgd": (dict(learning_rate=0.02), dict(batch_size=8)),
        "adamw": (dict(weight_decay=0.0), dict(max_grad_norm=None)),
    }
    for changes in changed.get(rule, ()) if removal == "mask" else ():  # each has its part in it
        differs(tangent(task, params, rule, removal=removal, evaluate=range(1, 5), **changes).delta, expected)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_with_dropout_the_masks_are_those_of_further_training(rule):
    task, params = with_dropout(*tiny())
    found = tangent(task, params, rule, evaluate=range(1, 5))
    check(found.delta, difference(task, params, rule, "mask"))
    evaluated = dataclasses.replace(task, model=nn.Sequential(*task.model).eval())
    differs(tangent(evaluated, params, rule, evaluate=range(1, 5)).delta, found.delta)
    task.model.train()


@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_of_a_group_it_is_the_sum_over_the_members(removal):
    task, params = tiny("classification")
    single = tangent(task, params, "adamw", removal=removal, left_out=range(8)).delta
    groups = [[0, 1, 2, 3, 4, 5], [7], [6, 2]]
    found = tangent(task, params, "adamw", removal=removal, left_out=groups)
    check(found.delta, np.stack([single[:, group].sum("left_out") for group in groups], 1), 1e-9)
    assert found.group.values.tolist() == ["0 1 2 3 4 5", "7", "2 6"] and found.left_out.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("rule", "removal"), [("sgd", "mask"), ("adamw", "subtract")])
def test_of_a_group_with_dropout_it_is_what_removing_a_little_of_it_does(rule, removal):
    task, params = with_dropout(*tiny("classification"))
    settings = dict(**RULES[rule], **RUN, seeds=SEEDS, left_out=[[3, 8, 21], [5]], removal=removal, progress=False)
    little = further_train(task, params, fraction=1e-6, **settings)
    check(tangent_train(task, params, **settings).delta, little.delta / 1e-6, 1e-5)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("rule", "removal"), [("sgd", "mask"), ("sgd", "subtract"), ("adamw", "subtract")])
def test_it_is_what_removing_a_little_weight_does(rule, removal, dropout):
    task, params = tiny("classification")
    if dropout:
        task, params = with_dropout(task, params)
    little = further_train(
        task, params, **RULES[rule], **RUN, seeds=SEEDS, left_out=LEFT_OUT, removal=removal, fraction=1e-6,
        progress=False,
    )  # fmt: skip
    found = tangent(task, params, rule, removal=removal)
    check(found.delta, little.delta / 1e-6, 1e-5)
    for name in ("seed", "left_out", "step", "test", "epoch"):
        assert np.array_equal(found[name], little[name])
    np.testing.assert_allclose(found.full_loss, little.full_loss, rtol=1e-12)


class Tree(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(torch.cat([inputs["a"], inputs["b"][0]], 1))


@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_inputs_may_be_any_pytree(removal):
    task, params = tiny("classification")
    parts = {
        part: ({"a": x[:, :1], "b": (x[:, 1:],)}, y) for part, (x, y) in (("train", task.train), ("test", task.test))
    }
    nested = dataclasses.replace(task, model=Tree(task.model), **parts)
    found = tangent(nested, {f"net.{k}": v for k, v in params.items()}, "adam", removal=removal)
    check(found.delta, tangent(task, params, "adam", removal=removal).delta, 1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_an_input_that_is_zero_in_every_batch_does_no_harm(rule):
    """Nor does a unit that is dead: their gradients are exactly zero, where roots have no derivative."""
    task, params = tiny()
    for part in (task.train, task.test):
        part[0][:, 1] = 0
    task = dataclasses.replace(task, model=nn.Sequential(task.model[0], nn.ReLU(), task.model[2]))
    params["0.bias"][2] = -50.0
    found = tangent(task, params, rule, evaluate=range(1, 5))
    check(found.delta, difference(task, params, rule, "mask"))


def test_it_is_zero_until_the_instance_has_occurred():
    task, params = tiny()
    order = next(epoch_orders(23, 1)).tolist()
    early, late = order[0], order[22]  # in the first and in the third batch
    steps = [0, 1, 2, 3, 4]
    found = tangent(task, params, "adam", batch_size=8, seeds=[1], left_out=[late, early], evaluate=steps).delta[0]
    happened = (found != 0).all("test")
    assert (found.sel(left_out=late, step=[0, 1, 2]) == 0).all() and happened.sel(left_out=late, step=[3, 4]).all()
    assert (found.sel(left_out=early, step=0) == 0).all() and happened.sel(left_out=early, step=[1, 2, 3, 4]).all()


@pytest.mark.parametrize("removal", ["mask", "subtract"])
@pytest.mark.parametrize("dropout", [False, True])
def test_chunks_order_and_subsets_do_not_matter(removal, dropout, monkeypatch):
    task, params = tiny("classification")
    if dropout:
        task, params = with_dropout(task, params)
    expected = tangent(task, params, "sgd", removal=removal)
    monkeypatch.setattr(tangents, "TANGENTS", 2)
    monkeypatch.setattr(tangents, "OWN_BATCHES", 2)
    found = tangent(task, params, "sgd", removal=removal, left_out=[0, 17, 4], seeds=[5, 1])
    check(found.delta.sel(left_out=LEFT_OUT, seed=SEEDS), expected.delta, 1e-10)
    alone = tangent(task, params, "sgd", removal=removal, left_out=[17], seeds=[5], test=[3, 1], evaluate=[1, 4])
    check(alone.delta.sel(step=[4]), expected.delta.sel(left_out=[17], seed=[5], test=[3, 1], step=[4]), 1e-10)
    assert alone.step.values.tolist() == [1, 4] and alone.test.values.tolist() == [3, 1]


def test_in_float32_it_is_as_precise_as_float32():
    task, params = tiny("classification")
    single = tangent(task, {k: p.float() for k, p in params.items()}, "sgd")
    check(single.delta, tangent(task, params, "sgd").delta, 1e-5)
    assert single.delta.dtype == single.full_loss.dtype == np.float64


def test_the_model_the_parameters_and_the_random_state_are_left_as_found():
    task, params = with_dropout(*tiny())
    before, random = {k: v.clone() for k, v in params.items()}, torch.get_rng_state()
    assert tangent(task, params, "adam").identical(tangent(task, params, "adam"))
    assert all(torch.equal(params[k], v) and v.grad is None for k, v in before.items())
    assert all(torch.equal(task.model.state_dict()[k], v) for k, v in before.items()) and task.model.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (dict(removal="drop"), "removal: got 'drop', expected 'mask' or 'subtract': 'drop' has no derivative"),
        (dict(removal="masked"), "removal: got 'masked', expected 'mask' or 'subtract'"),
        (dict(batch_size=0), "batch_size: got 0, expected a whole number of at least 1"),
        (dict(batch_size=2.5), "batch_size: got 2.5"),
        (dict(epochs=0), "epochs: got 0"),
        (dict(seeds=[]), "seeds: got []"),
        (dict(seeds=[1, 1]), "seeds: got [1, 1]"),
        (dict(left_out=[23]), "left_out: instance 23 does not exist; expected numbers from 0 to 22"),
        (dict(left_out=[1, 1]), "left_out: instance 1 is listed more than once"),
        (dict(left_out=[]), "left_out: no instances given; expected at least one"),
        (dict(test=[5]), "test: instance 5 does not exist"),
        (dict(test=[]), "test: no instances given; expected at least one"),
        (dict(evaluate="step"), "evaluate: got 'step', expected 'epoch' or a list of optimiser steps"),
        (dict(evaluate=[5]), "evaluate: got [5], expected increasing optimiser steps from 0 to 4"),
        (dict(optimizer="sdg"), "optimizer: got 'sdg'"),
        (dict(learning_rate=-1), "learning_rate: got -1"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(changes, fragment):
    task, params = tiny()
    assert fragment in refusal(tangent, task, params, "sgd", error=ValueError, **changes)


def test_tasks_and_parameters_that_cannot_be_right_are_refused():
    task, params = tiny()
    assert "do not belong" in refusal(tangent, task, tiny(width=5)[1], "sgd", error=ValueError)
    reduced = dataclasses.replace(task, loss=lambda o, t: (o - t).square().mean())
    assert "one value per instance" in refusal(tangent, reduced, params, "sgd", error=ValueError)
    task.train[0][3, 1] = float("nan")
    assert "train inputs hold NaN or infinite" in refusal(tangent, task, params, "sgd", error=ValueError)


def test_out_of_memory_halves_what_is_carried_at_once(monkeypatch):
    task, params = tiny()
    settings = dict(optimizer="sgd", learning_rate=0.1, batch_size=8, epochs=1, seeds=[0], left_out=[3, 1, 4, 0, 9])
    expected = tangent_train(task, params, **settings, progress=False)
    one_chunk, tried = tangents.one_chunk, []

    def small_machine(task, params, plan, seed, removed, device, bar):
        tried.append(removed.tolist())
        if len(removed) > 2:
            raise torch.OutOfMemoryError
        return one_chunk(task, params, plan, seed, removed, device, bar)

    monkeypatch.setattr(tangents, "one_chunk", small_machine)
    found = tangent_train(task, params, **settings, progress=False)
    assert tried == [[3, 1, 4, 0, 9], [3, 1, 4], [3, 1], [4], [0, 9]]
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-12)


class Length(nn.Module):
    """The length of a linear map of the input, whose derivative does not exist where that is zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.linear(x).square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_instance_without_a_gradient_is_named(part):
    """Whichever it is: more than the first few, which are tried at the door."""
    task, _ = tiny(n_test=13)
    parts = {name: (getattr(task, name)[0].clone(), getattr(task, name)[1]) for name in ("train", "test")}
    parts[part][0][11] = 0
    task = dataclasses.replace(task, model=Length().double(), **parts)
    params, rule = parameters_of(task.model), dict(optimizer="sgd", learning_rate=1e-3, batch_size=8, progress=False)
    for call in (
        lambda: tangent_train(task, params, **rule, epochs=1, seeds=[0], left_out=[1]),
        lambda: tangent_train(task, params, **rule, epochs=1, seeds=[0], left_out=[1], kinks="softened"),
        lambda: adjoint_train(task, params, **rule, horizon=3, test=range(13)),
    ):
        assert f"not finite for 1 of the {part} instances ([11])" in refusal(call, error=ValueError)


def test_a_run_that_diverges_is_said_to():
    task, params = tiny()
    rule = dict(optimizer="sgd", learning_rate=1e60, batch_size=8, progress=False)
    found = tangent_train(task, params, **rule, epochs=2, seeds=[0], left_out=[1, 2], removal="mask")
    assert found.diverged.all() and np.isnan(found.delta[..., -1, :]).all()
    assert "The run diverged: with learning rate 1e+60" in refusal(
        adjoint_train, task, params, **rule, horizon=6, test=[0], error=TrainingDiverged
    )
    quiet = tangent_train(task, params, **{**rule, "learning_rate": 0.1}, epochs=2, seeds=[0], left_out=[1, 2])
    assert not quiet.diverged.any()
