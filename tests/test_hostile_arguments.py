"""Odd values for every argument of the public functions: a sentence or a result, never any other error."""

import dataclasses
import functools
import math
import re

import counting
import numpy as np
import pytest
import torch
import xarray as xr
from problems import tiny
from small_files import refusal

from fimoda_lib import (
    attribute,
    cross_entropy,
    load_task,
    mean_loss,
    methods,
    noise_ceiling,
    seed_averaging,
    sensitivity,
    similarity,
)
from fimoda_lib.comparison import seed_blocks, seeds_needed
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.derivatives.trajectories import record_full_run
from fimoda_lib.methods import METHODS, MethodDiverged
from fimoda_lib.training import runs
from fimoda_lib.training.final_model import choose_learning_rate, train_final_model
from fimoda_lib.training.further_training import further_train

ODD = [
    *(None, math.nan, math.inf, -math.inf, -1, -3.0, 2.5, True, "x", "", b"x", 1 + 2j, 10**30, object(), len),
    *([], {}, (), [None], ["a"], [1.5], [math.nan], [True], [0, True], [[1, 2]], {"a": 1}, {3, 2}),
    *(torch.tensor([0.5, 2]), torch.float16, np.array([["a"]]), np.float64(0.5), np.int64(3), xr.Dataset()),
]
TRAINING = dict(optimizer="sgd", learning_rate=0.05, batch_size=3)
FURTHER = dict(TRAINING, epochs=1, seeds=[0, 1], left_out=[0, 7])
RUN = dict(learning_rate=0.05, batch_size=3)


class Trained(Exception):
    """Everything was accepted."""


@pytest.fixture(scope="module")
def problem():
    task, params = tiny(n=8, n_test=3)
    gold = further_train(task, params, **FURTHER, progress=False)
    return task, params, gold


def call(function, **arguments):
    """Calls, and if that is refused, checks that it is in a sentence."""
    try:
        return function(**arguments)
    except Trained:
        return None
    except (ValueError, MethodDiverged) as error:
        counting.bad_input()
        message = str(error)
        good = message.endswith(".") and "\n" not in message and not re.search(r"[.!?]\s+[A-Z]", message)
        assert good, message


def cases(problem):
    """Functions with arguments that are right."""
    task, params, gold = problem
    both = dict(task=task, params=params)
    found = [
        (further_train, dict(both, **FURTHER, removal="mask", evaluate=[1], test=[0], device="cpu", store=None,
                             weight_decay=0.1, max_grad_norm=1.0, fraction=0.5, replicas=2, compile=False)),
        (tangent_train, dict(both, **FURTHER, removal="mask", evaluate=[1], test=[0])),
        (adjoint_train, dict(both, **TRAINING, horizon=2, test=[0], seed=0)),
        (record_full_run, dict(both, **TRAINING, steps=3, seed=0, segments=1)),
        (train_final_model, dict(TRAINING, task=task, epochs=1, seed=0, device="cpu", store=None)),
        (choose_learning_rate, dict(task=task, rates=[0.1], held_out=0.3, seed=0, epochs=1, batch_size=3,
                                    optimizer="sgd")),
        (mean_loss, dict(both, instances=task.test)),
        (load_task, dict(name="wine", data_dir=None)),
        (sensitivity, dict(gold=gold, adjustment="mean")),
        (similarity, dict(scores=attribute("grad_dot", task, params), sensitivity=sensitivity(gold), metric="cosine",
                          undefined="zero")),
        (noise_ceiling, dict(gold=gold, adjustment="mean", estimate="variances")),
        (seed_averaging, dict(scores=attribute("grad_dot", task, params), gold=gold, blocks=[1])),
        (seed_blocks, dict(delta=gold.delta, k=1)),
        (seeds_needed, dict(agreement=noise_ceiling(gold), ceiling=0.9)),
    ]  # fmt: skip
    for name in METHODS:
        quick = dict(scale=50.0, depth=2, batch_size=None) if name.startswith("lissa") else {}
        quick |= (
            dict(horizon=[2], further_training=RUN) if name == "lft" else dict(dimension=3) if name == "trak" else {}
        )
        rows = dict(train=[0, 1], test=[0], curvature=None)
        found.append((functools.partial(attribute, name), {**both, **rows, **METHODS[name].defaults, **quick}))
    found.append((attribute, dict(both, method="grad_dot")))
    return found


@pytest.mark.filterwarnings("ignore")  # of methods that do not converge
@pytest.mark.parametrize("number", range(15 + len(METHODS)))
def test_odd_arguments_end_in_a_sentence_or_a_result(number, problem, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    function, right = cases(problem)[number]

    def stop(*_, **__):
        raise Trained

    if function in (further_train, train_final_model):
        monkeypatch.setattr(runs.Runner, "train", stop)
    # It looks for a better reason once all is refused; here gradients are finite whatever the argument.
    if function is not attribute:
        monkeypatch.setattr(methods, "check_gradients", lambda *_: None)
    if function is not load_task:
        assert function(**right) is not None if function not in (further_train, train_final_model) else True
    for argument in right:
        for odd in ODD:
            if argument == "agreement":  # an array that this library makes
                continue
            call(function, **{**right, argument: odd})


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("cg", dict(damping=None)),
        ("exact", dict(damping=[1.0])),
        ("datainf", dict(scale="10")),
        ("cg", dict(multiple=-1)),
        ("cg", dict(tolerance=0)),
        ("cg", dict(max_iterations=0)),
        ("lissa", dict(depth=2.5)),
        ("lissa", dict(depth=0)),
        ("lissa", dict(scale=[20, 10])),
        ("lissa", dict(scale=math.nan)),
        ("lissa_h", dict(batch_size=1.5)),
        ("ekfac", dict(seed=-1)),
        ("trak", dict(dimension=2.5)),
        ("trak", dict(weighted="yes")),
        ("lft", dict(horizon=[2], further_training=RUN, segments=2.5)),
        ("lft", dict(horizon=[2], further_training=RUN, runs=2.5)),
        ("lft", dict(horizon=[2], further_training=RUN, mode="split", sample=2.5)),
        ("lft", dict(horizon=[2], further_training=RUN, runs=10**30)),
        ("lft", dict(horizon=10**30, further_training=RUN)),
        ("lft", dict(horizon=[2], further_training=[1])),
        ("lft", dict(horizon=[2], further_training={**RUN, "removal": "keep"})),
        ("lft", dict(horizon=[2], further_training={**RUN, "removal": 1}, mode="split")),
        ("grad_dot", dict(train=5)),
        ("grad_dot", dict(test=[0, True])),
    ]
    + [(name, dict(dtype=torch.float16)) for name in METHODS],
    ids=str,
)  # fmt: skip
def test_methods_refuse(method, changes, problem):
    message = refusal(attribute, method, *problem[:2], **changes, error=ValueError)
    assert "got" in message and "expected" in message


@pytest.mark.parametrize(
    "changes",
    [
        *(dict(left_out=odd) for odd in (5, "0", [0, True], {0: 1}, [None])),
        *(dict(seeds=odd) for odd in ([1.5], [True], True, None, "1", [2**32])),
        *(dict(evaluate=odd) for odd in (3, None, [None], [True], 2.5)),
        *(dict(epochs=odd) for odd in (True, 10**30, None, "1")),
        *(dict(batch_size=odd) for odd in (None, "3", 10**30)),
        *(dict(learning_rate=odd) for odd in (None, "0.1", [0.1], True)),
        *(dict(device=odd) for odd in ("gpu", "meta", 1.5, "cuda:99")),
        *(dict(replicas=odd) for odd in (2.5, "all", True)),
        *(dict(store=odd) for odd in (5, b"x", "a\0b")),
    ],
    ids=str,
)
def test_further_training_refuses(changes, problem):
    message = refusal(further_train, *problem[:2], **{**FURTHER, **changes}, progress=False, error=ValueError)
    assert "got" in message and "expected" in message


def test_numbers_of_numpy_and_pytorch_are_numbers(problem):
    task, params, gold = problem
    arrays = dict(learning_rate=np.float64(0.05), batch_size=np.int64(3), epochs=torch.tensor(1))
    lists = dict(seeds=np.array([0, 1]), left_out=gold.left_out)
    again = further_train(task, params, **{**FURTHER, **arrays, **lists}, progress=False)
    xr.testing.assert_identical(again.drop_vars("seconds"), gold.drop_vars("seconds"))
    scores = attribute("cg", task, params, damping=torch.tensor(0.5), max_iterations=np.int64(50))
    xr.testing.assert_identical(scores, attribute("cg", task, params, damping=0.5, max_iterations=50))


def test_models_and_instances_that_do_not_fit_each_other(problem):
    task, params, _ = problem
    inputs, targets = task.train
    for changes in (
        dict(train=(inputs[:, :2], targets)),
        dict(test=(inputs[:, :2], targets)),
        dict(train=(inputs, targets.repeat(1, 2))),
        dict(train=({"a": inputs, "b": inputs[:3]}, targets)),
        dict(train=(inputs.numpy(), targets)),
        dict(train=(inputs, targets, targets)),
        dict(test=inputs),
        dict(model=len),
        dict(loss="mse"),
        dict(name="../up"),
    ):
        wrong = dataclasses.replace(task, **changes)
        refusal(further_train, wrong, params, **FURTHER, progress=False, error=ValueError)
        refusal(attribute, "grad_dot", wrong, params, error=ValueError)


def test_the_part_of_instances_that_is_none_is_named(problem):
    task, params, _ = problem
    inputs, targets = task.train
    for train, shown in (
        ((inputs, ["yes", "no"]), "holds 'yes'"),
        (({"a": inputs, "b": None}, targets), "holds None"),
        ((torch.tensor(1.0), targets), "holds tensor(1.)"),
    ):
        message = refusal(attribute, "grad_dot", dataclasses.replace(task, train=train), params, error=ValueError)
        assert shown in message and "numbered first" in message


def test_cross_entropy_of_one_logit_is_refused(problem):
    """It would be zero whatever the model, and so would all scores."""
    task, params, _ = problem
    labels = [(x, (y[:, :1] > 0).double()) for x, y in (task.train, task.test)]
    one = dataclasses.replace(task, loss=cross_entropy, train=labels[0], test=labels[1])
    assert "binary_cross_entropy_with_logits" in refusal(attribute, "grad_dot", one, params, error=ValueError)
