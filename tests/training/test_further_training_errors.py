"""What cannot be right is refused before any training, in one sentence that says what was got and expected."""

import dataclasses

import pytest
import torch
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.tasks import parameters_of
from fimoda_lib.training import runs
from fimoda_lib.training.further_training import further_train

GOOD = dict(optimizer="sgd", learning_rate=0.05, batch_size=5, epochs=3, seeds=[0], left_out=[0, 7], progress=False)


def refused(task, params, **changes):
    return refusal(further_train, task, params, error=ValueError, **{**GOOD, **changes})


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    def train(*_):
        raise AssertionError("training has started")

    monkeypatch.setattr(runs.Runner, "train", train)


def test_the_good_arguments_would_start_training():
    with pytest.raises(AssertionError, match="training has started"):
        further_train(*tiny(), **GOOD)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (dict(left_out=[0, 23]), ["left_out", "instance 23 does not exist", "0 to 22"]),
        (dict(left_out=[-1]), ["left_out", "instance -1 does not exist"]),
        (dict(left_out=[4, 5, 4]), ["left_out", "instance 4", "more than once"]),
        (dict(left_out=[1.0]), ["left_out", "whole instance numbers", "float"]),
        (dict(left_out=[True]), ["left_out", "whole instance numbers", "bool"]),
        (dict(left_out=torch.tensor([[1, 2]])), ["left_out", "flat list", "[1, 2]"]),
        (dict(test=[5]), ["test", "instance 5 does not exist", "0 to 4"]),
        (dict(test=[]), ["test", "at least one"]),
        (dict(epochs=0), ["epochs", "got 0", "at least 1"]),
        (dict(epochs=-2, evaluate=[3]), ["epochs", "got -2"]),
        (dict(epochs=1.5), ["epochs", "got 1.5", "whole number"]),
        (dict(batch_size=0), ["batch_size", "got 0", "at least 1"]),
        (dict(batch_size=0, evaluate=[3]), ["batch_size", "got 0"]),
        (dict(batch_size=True), ["batch_size", "got True"]),
        (dict(optimizer="sdg"), ["optimizer", "'sdg'", "sgd, adam, adamw"]),
        (dict(learning_rate=0), ["learning_rate", "got 0", "positive"]),
        (dict(learning_rate=float("nan")), ["learning_rate", "got nan"]),
        (dict(learning_rate=float("inf")), ["learning_rate", "got inf"]),
        (dict(weight_decay=-0.1), ["weight_decay", "got -0.1"]),
        (dict(weight_decay=float("nan")), ["weight_decay", "got nan"]),
        (dict(max_grad_norm=0), ["max_grad_norm", "got 0", "or None"]),
        (dict(removal="leave"), ["removal", "'leave'", "drop, mask, subtract"]),
        (dict(fraction=0.5), ["fraction", "got 0.5", "'drop'"]),
        (dict(fraction=1.5, removal="mask"), ["fraction", "got 1.5", "from 0 to 1"]),
        (dict(fraction=-0.1, removal="subtract"), ["fraction", "got -0.1"]),
        (dict(seeds=[]), ["seeds", "at least one"]),
        (dict(seeds=[1, 2, 1]), ["seeds", "[1, 2, 1]", "different"]),
        (dict(seeds=[-1]), ["seeds", "[-1]", "0 or more"]),
        (dict(seeds=[0.5]), ["seeds", "[0.5]", "whole"]),
        (dict(evaluate=[1, 16]), ["evaluate", "16", "from 0 to 15", "3 epochs of 5 steps"]),
        (dict(evaluate=[5, 3]), ["evaluate", "[5, 3]", "increasing"]),
        (dict(evaluate=[3, 3]), ["evaluate", "[3, 3]", "increasing"]),
        (dict(evaluate=[-1]), ["evaluate", "[-1]"]),
        (dict(evaluate=[2.5]), ["evaluate", "[2.5]"]),
        (dict(evaluate=[]), ["evaluate", "[]"]),
        (dict(evaluate="step"), ["evaluate", "'step'", "'epoch'"]),
        (dict(replicas=0), ["replicas", "got 0"]),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_right(changes, fragments):
    message = refused(*tiny(), **changes)
    assert all(fragment in message for fragment in fragments), message


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(*tiny(), device="cuda")
    assert "device" in message and "'cuda'" in message and "no GPU" in message


def test_instances_that_cannot_be_used():
    task, params = tiny()
    inputs, targets = task.train
    for changes, fragments in [
        (dict(train=(inputs, targets[:-1])), ["train", "different lengths", "[22, 23]"]),
        (dict(test=({"a": inputs, "b": inputs[:2]}, targets)), ["test", "different lengths", "[2, 23]"]),
        (dict(test=(inputs[:0], targets[:0])), ["no test instances"]),
        (dict(train=(inputs[:1], targets[:1])), ["at least 2 training instances"]),
    ]:
        message = refused(dataclasses.replace(task, **changes), params, left_out=[0], test=[0])
        assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_data_that_are_not_finite(part, what, value):
    task, params = tiny()
    getattr(task, part)[what == "targets"][3, 0] = value
    message = refused(task, params)
    assert f"the {part} {what} hold NaN or infinite values (1 of" in message and "tiny_regression" in message


def test_parameters_that_cannot_be_right():
    task, params = tiny()
    other = tiny(width=5)[1]
    message = refused(task, other)
    assert "do not belong to this model" in message and "'0.bias' (got (5,), expected (4,))" in message
    missing = {k: v for k, v in params.items() if k != "2.bias"}
    assert "'2.bias' (got None, expected (1,))" in refused(task, missing)
    assert "'more' (got (1,), expected None)" in refused(task, {**params, "more": torch.zeros(1)})
    params["2.weight"][0, 1] = float("nan")
    assert "Parameter '2.weight' holds NaN" in refused(task, params)


def test_layers_that_mix_instances():
    task, _ = tiny()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    task = dataclasses.replace(task, model=model)
    message = refused(task, parameters_of(model))
    assert "Layer '1' is BatchNorm1d in training mode" in message and "model.eval()" in message
    model.eval()
    with pytest.raises(AssertionError, match="training has started"):
        further_train(task, parameters_of(model), **GOOD)


def test_a_loss_that_is_reduced():
    task, params = tiny()
    for loss, shape in ((nn.functional.mse_loss, "()"), (lambda o, t: (o - t).square(), "(2, 1)")):
        message = refused(dataclasses.replace(task, loss=loss), params)
        assert f"returned shape {shape} for 2 instances, expected (2,)" in message


def test_dropout_in_compiled_code():
    task, _ = tiny()
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    message = refused(dataclasses.replace(task, model=model), parameters_of(model), compile=True)
    assert "compile" in message and "dropout" in message and "paired" in message
