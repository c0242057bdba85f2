"""The recorded full run: the one of `further_train`, with all outputs and the places where segments begin."""

import copy
import dataclasses

import numpy as np
import plain
import pytest
import torch
from problems import tiny
from small_files import refusal
from torch import nn
from torch.utils.data import RandomSampler

from fimoda_lib import attribute
from fimoda_lib.derivatives.trajectories import record_full_run, recorded_steps, segment_cuts
from fimoda_lib.training.further_training import further_train

RUN = dict(learning_rate=0.05, batch_size=8)
RULES = {
    "sgd": dict(optimizer="sgd", **RUN),
    "adam": dict(optimizer="adam", **RUN),
    "adamw": dict(optimizer="adamw", **RUN, weight_decay=0.1, max_grad_norm=0.5),
}


def record(task, params, **options):
    return record_full_run(task, params, progress=False, **{"optimizer": "sgd", **RUN, "steps": 7, **options})


def test_losses(task, run):
    """At every record, [records, n_test]."""
    return np.stack([task.loss(outputs, task.test[1]).numpy() for outputs in run.test_outputs])


test_losses.__test__ = False


def with_dropout(task):
    return dataclasses.replace(task, model=nn.Sequential(*task.model[:2], nn.Dropout(0.4), task.model[2]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dropout", [False, True])
def test_it_is_the_full_run_of_further_training(rule, dropout):
    task, params = tiny("classification")
    if dropout:
        task = with_dropout(task)
        params = {k.replace("2.", "3."): v for k, v in params.items()}
    steps = [0, 1, 4, 7]
    for seed in (0, 3):
        run = record(task, params, **RULES[rule], steps=steps, seed=seed)
        gold = further_train(
            task, params, **RULES[rule], epochs=3, seeds=[seed], left_out=[2], evaluate=steps, progress=False
        )
        assert run.steps == tuple(steps)
        found = test_losses(task, run)
        np.testing.assert_allclose(found, gold.full_loss.isel(seed=0), rtol=1e-12)
        assert abs(found[1] - found[0]).max() > 1e-3  # it moves
    other = further_train(
        task, params, **RULES[rule], epochs=3, seeds=[5], left_out=[2], evaluate=steps, progress=False
    )
    assert abs(found - other.full_loss.isel(seed=0).values).max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_run_of_the_usual_loop(rule):
    task, params = tiny(outputs=2)
    expected = torch.stack([*plain.train(task, params, **RULES[rule], epochs=3, seed=2)]).numpy()
    run = record(task, params, **RULES[rule], steps=list(range(1, 10)), seed=2)
    np.testing.assert_allclose(test_losses(task, run)[1:], expected, rtol=1e-10)


def test_outputs_are_those_of_all_instances_at_the_parameters_of_the_step():
    task, params = tiny("classification")
    run = record(task, params, segments=3, steps=9)
    assert run.steps == (0, 3, 6, 9) and [(s.first, s.last) for s in run.segments] == [(0, 1), (1, 2), (2, 3)]
    assert run.train_outputs.shape == (4, 23, 3) and run.test_outputs.shape == (4, 5, 3)
    assert run.learning_rate == 0.05 and run.settings["batch_size"] == 8 and run.settings["optimizer"] == "sgd"
    for k, segment in enumerate(run.segments):
        for part, found in ((task.train, run.train_outputs), (task.test, run.test_outputs)):
            with torch.no_grad():
                expected = torch.func.functional_call(task.model, segment.params, (part[0],))
            torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(run.segments[0].params[k], p) for k, p in params.items())
    single = record(task, {k: p.float() for k, p in params.items()})
    assert single.train_outputs.dtype == torch.float64  # though trained in float32


def test_adams_multiplier_is_that_of_the_mean_square_over_the_segment():
    task, params = tiny("classification")
    run = record(task, params, optimizer="adam", steps=[1, 2, 3, 4, 5], segments=2, seed=2)
    model = copy.deepcopy(task.model)
    model.load_state_dict(params)
    rule, after = torch.optim.Adam(model.parameters(), lr=0.05), []
    sampler = RandomSampler(range(23), generator=torch.Generator().manual_seed(2))
    order = torch.tensor(list(sampler) + list(sampler))
    for t, rows in enumerate([*order[:23].split(8), *order[23:].split(8)], 1):
        rule.zero_grad()
        task.loss(model(task.train[0][rows]), task.train[1][rows]).mean().backward()
        rule.step()
        squares = {k: rule.state[p]["exp_avg_sq"] for k, p in model.named_parameters()}
        after.append({k: v / (1 - 0.999**t) for k, v in squares.items()})
    for segment, records in zip(run.segments, ([1, 2], [3, 4, 5]), strict=True):
        assert [run.steps[k] for k in range(segment.first + 1, segment.last + 1)] == records
        for k, found in segment.preconditioner.items():
            mean = sum(after[t - 1][k] for t in records) / len(records)
            torch.testing.assert_close(segment.squares[k], mean, rtol=1e-9, atol=0)
            torch.testing.assert_close(found, 1 / (mean.sqrt() + 1e-8), rtol=1e-9, atol=0)
    assert record(task, params).segments[0].preconditioner is None


@pytest.mark.parametrize(
    ("steps", "recorded"),
    [
        (9, (0, 3, 6, 9)),
        (7, (0, 3, 6, 7)),
        (2, (0, 2)),
        ([5], (0, 5)),
        ([0, 2, 9], (0, 2, 9)),
        (np.array([2, 4]), (0, 2, 4)),
        (range(1, 4), (0, 1, 2, 3)),
    ],
)
def test_a_number_of_steps_stands_for_the_ends_of_epochs(steps, recorded):
    assert recorded_steps(steps, 3) == recorded


def test_segments_are_cut_evenly_on_a_log_axis():
    assert segment_cuts([0, *range(1, 501)], 5) == [0, 4, 12, 42, 144, 500]
    assert segment_cuts([0, 1, 2, 4, 8, 16], 5) == [0, 1, 2, 3, 4, 5]
    assert segment_cuts([0, 1000, 1001, 1002, 1003], 3) == [0, 2, 3, 4]
    assert segment_cuts([0, 7], 1) == [0, 1]


def test_only_the_instances_asked_for_are_recorded():
    task, params = tiny("classification")
    whole = record(task, params, optimizer="adam", segments=2)
    some = record(task, params, optimizer="adam", segments=2, train=[2, 7], test=[1])
    assert some.train_outputs.shape == whole.train_outputs.shape
    torch.testing.assert_close(some.train_outputs[:, [2, 7]], whole.train_outputs[:, [2, 7]])
    torch.testing.assert_close(some.test_outputs[:, [1]], whole.test_outputs[:, [1]])
    assert some.train_outputs[:, [0, 3]].isnan().all() and some.test_outputs[:, [0, 2]].isnan().all()
    settings = dict(test=[1], horizon=[3], further_training=some)
    scores = [
        attribute("lft", task, params, train=[7, 2], **settings | {"further_training": run}) for run in (some, whole)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-9)
    with pytest.raises(ValueError, match="train: the run holds no outputs of instance 3; record it anew"):
        attribute("lft", task, params, train=[2, 3], **settings)


def test_nothing_else_changes():
    task, params = tiny("classification")
    task = with_dropout(task)
    params = {k.replace("2.", "3."): v for k, v in params.items()}
    before, random = {k: v.clone() for k, v in params.items()}, torch.get_rng_state()
    run = record(task, params)
    assert not torch.equal(run.train_outputs[0], run.train_outputs[-1])
    assert all(torch.equal(params[k], v) for k, v in before.items()) and task.model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(record(task, params).train_outputs, run.train_outputs)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (dict(steps=0), "steps: got 0, expected a number of at least 1, or increasing optimiser steps"),
        (dict(steps=-3), "steps: got -3"),
        (dict(steps=[]), "steps: got []"),
        (dict(steps=[0]), "steps: got [0]"),
        (dict(steps=[3, 1]), "steps: got [3, 1]"),
        (dict(steps=[1, 1]), "steps: got [1, 1]"),
        (dict(steps=[-1, 3]), "steps: got [-1, 3]"),
        (dict(steps=[1.5, 3]), "steps: got [1.5, 3]"),
        (dict(steps=2.5), "steps: got 2.5"),
        (dict(segments=0), "segments: got 0, expected 1 to 3, the number of intervals recorded"),
        (dict(segments=4), "segments: got 4, expected 1 to 3"),
        (dict(batch_size=0), "batch_size: got 0, expected a whole number of at least 1"),
        (dict(batch_size=8.0), "batch_size: got 8.0"),
        (dict(seed=-1), "seeds: got [-1]"),
        (dict(learning_rate=0), "learning_rate: got 0, expected a positive number"),
        (dict(optimizer="sdg"), "optimizer: got 'sdg', expected one of sgd, adam, adamw"),
        (dict(weight_decay=-1), "weight_decay: got -1"),
        (dict(max_grad_norm=0), "max_grad_norm: got 0"),
        (dict(learning_rate=1e60), "The full run diverged: with learning rate 1e+60 its outputs are not finite"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(changes, fragment):
    task, params = tiny()
    assert fragment in refusal(record, task, params, error=ValueError, **changes)


def test_tasks_and_parameters_that_cannot_be_right_are_refused():
    task, params = tiny()
    assert "do not belong" in refusal(record, task, tiny(width=5)[1], error=ValueError)
    reduced = dataclasses.replace(task, loss=lambda o, t: (o - t).square().mean())
    assert "one value per instance" in refusal(record, reduced, params, error=ValueError)
    task.train[0][3, 1] = float("inf")
    assert "train inputs hold NaN or infinite" in refusal(record, task, params, error=ValueError)
