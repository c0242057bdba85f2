"""Further training against the plain loop, and what must not change its results."""

import copy
import dataclasses
import functools
import re

import numpy as np
import pytest
import torch
from plain import test_losses as plain_losses
from plain import train
from problems import tiny
from torch import nn

from fimoda_lib.datasets.models import mlp
from fimoda_lib.tasks import Task, parameters_of, squared_error
from fimoda_lib.training import plans
from fimoda_lib.training.further_training import further_train

SETTINGS = dict(learning_rate=0.05, batch_size=5, epochs=3)
OPTIMIZERS = ("sgd", "adam", "adamw")
REMOVALS = ("drop", "mask", "subtract")


def run(task, params, **changes):
    settings = {"optimizer": "sgd", "seeds": [3], "left_out": [0, 7], **SETTINGS, **changes}
    return further_train(task, params, progress=False, **settings)


def plain_run(task, params, **settings):
    """Test losses of the plain loop after every so many steps, [steps, n_test]."""
    return torch.stack(list(train(task, params, seed=3, **settings))).numpy()


def check_against_the_plain_loop(task, params, **settings):
    gold = run(task, params, **settings)
    settings = {"optimizer": "sgd", "every": gold.attrs["steps_per_epoch"], **SETTINGS, **settings}
    full = plain_run(task, params, **settings)
    np.testing.assert_allclose(gold.full_loss[0], full, rtol=1e-10)
    for k, removed in enumerate(gold.left_out.values):
        delta = plain_run(task, params, removed=removed, **settings) - full
        assert abs(delta).max() > 1e-6
        # delta is stored in float32: that is its only rounding
        np.testing.assert_allclose(gold.delta[0, k], delta.astype(np.float32), rtol=3e-7, atol=1e-10)
    return gold


def same(a, b):
    """The same numbers where both have them; the stored float32 may round a float64 difference of 1e-16 either way."""
    common = [set(a[c].values.tolist()) & set(b[c].values.tolist()) for c in ("seed", "left_out", "step", "test")]
    assert all(common)
    chosen = {c: sorted(values) for c, values in zip(("seed", "left_out", "step", "test"), common, strict=True)}
    a, b = a.sel(chosen), b.sel(chosen)
    np.testing.assert_allclose(a.full_loss, b.full_loss, rtol=1e-12)
    np.testing.assert_allclose(a.delta, b.delta, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(  # whole batches; one instance in the last (drop: no last batch); ragged
    ("n", "kind"), [(20, "regression"), (21, "classification"), (23, "regression"), (23, "classification")]
)
def test_equals_the_plain_loop(n, kind, removal, optimizer):
    task, params = tiny(kind, n=n)
    decay = {"sgd": 0.0, "adam": 0.01, "adamw": 0.1}[optimizer]
    check_against_the_plain_loop(task, params, optimizer=optimizer, removal=removal, weight_decay=decay)


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_papers_mlp_in_float32_equals_the_plain_loop(optimizer, removal):
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 8, generator=g), torch.randn(n, 1, generator=g)) for n in (60, 7)]
    task = Task("mlp", mlp(8, 1), squared_error, *data)
    params = parameters_of(task.model)
    settings = dict(
        optimizer=optimizer,
        removal=removal,
        batch_size=16,
        epochs=3,
        learning_rate=0.03 if optimizer == "sgd" else 1e-3,
        weight_decay=0.1,
    )
    gold = run(task, params, left_out=[5, 44], **settings)
    full = plain_run(task, params, every=4, **settings)
    np.testing.assert_allclose(gold.full_loss[0], full, rtol=3e-6)
    for k, removed in enumerate([5, 44]):
        delta = plain_run(task, params, removed=removed, every=4, **settings) - full
        # The two runs of a pair differ by 0.02 or more in loss; each carries the float32 rounding of its parameters.
        assert abs(gold.delta[0, k] - delta).max() < 1e-4 * abs(delta).max()


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clipping_is_that_of_clip_grad_norm(optimizer, removal, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: norms.append(clip(*a).item()))
    task, params = tiny()
    check_against_the_plain_loop(task, params, optimizer=optimizer, removal=removal, max_grad_norm=1.0)
    # The plain loop's record: full run, run without 0, run without 7; some steps clip and some do not.
    assert 0.2 < np.mean(np.array(norms) > 1.0) < 0.8


def test_replicas_are_clipped_one_by_one():
    """A replica whose gradient is too long must not shorten that of the others: it is the outlier that matters."""
    task, params = tiny()
    task.train[1][7] = 60.0
    mean_loss = task.loss(task.model(task.train[0]), task.train[1]).mean()
    norms = [g.norm() for g in torch.autograd.grad(mean_loss, list(task.model.parameters()))]
    assert torch.stack(norms).norm() > 4
    check_against_the_plain_loop(task, params, batch_size=23, removal="mask", max_grad_norm=2.0)


@pytest.mark.parametrize("removal", ["mask", "subtract"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fraction_of_an_instance_can_be_removed(removal, optimizer):
    task, params = tiny("classification")
    gold = check_against_the_plain_loop(task, params, optimizer=optimizer, removal=removal, fraction=0.3)
    assert not np.allclose(gold.delta, run(task, params, optimizer=optimizer, removal=removal).delta, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("removal", ["mask", "subtract"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removing_nothing_changes_nothing_at_all(optimizer, removal, dtype):
    task, params = tiny("classification", dtype=dtype, n=21)
    settings = dict(optimizer=optimizer, removal=removal, fraction=0, left_out=range(3), epochs=1)
    for replicas in (1, 3):
        gold = run(task, params, replicas=replicas, **settings)
        assert (gold.delta == 0).all()


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize(
    "changes",
    [
        dict(replicas=1),
        dict(replicas=2),
        dict(replicas=3),
        dict(replicas=100),
        dict(left_out=[7, 2, 0, 11, 9]),
        dict(left_out=[2]),
        dict(seeds=[3]),
        dict(seeds=[6, 4, 3]),
        dict(seeds=4),
        dict(test=[4, 1]),
        dict(evaluate="epoch"),
        dict(evaluate=[3, 10]),
        dict(evaluate=[9]),
    ],
    ids=str,
)
def test_what_must_not_change_the_results(removal, changes):
    task, params = tiny()
    same(yardstick(removal), run(task, params, **{**COMMON, "removal": removal, **changes}))


COMMON = dict(optimizer="adam", left_out=[0, 2, 7, 9, 11], seeds=[3, 4], evaluate=range(11), epochs=2)


@functools.cache
def yardstick(removal):
    return run(*tiny(), removal=removal, **COMMON)


def test_seeds_differ_and_the_state_of_the_generator_is_left_alone():
    task, params = tiny()
    before = torch.get_rng_state()
    gold = run(task, params, seeds=[1, 2])
    assert (torch.get_rng_state() == before).all()
    assert abs(gold.delta[0] - gold.delta[1]).max() > 1e-4


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_duplicate_is_helpful_and_a_mislabelled_one_harmful(kind, removal, optimizer):
    task, params = tiny(kind)
    (inputs, targets), right, output = task.train, task.test[1][0], task.model(task.test[0][:1])[0].detach()
    # Wrong is on the far side of what the model says: between the two, both labels would pull the right way.
    wrong = output + 4 * (output - right).sign() if kind == "regression" else (right + 1) % 3
    inputs[7:9], targets[7], targets[8] = task.test[0][0], right, wrong
    rate = 0.02 if optimizer == "sgd" else 0.005
    gold = run(
        task,
        params,
        removal=removal,
        optimizer=optimizer,
        learning_rate=rate,
        left_out=[7, 8],
        test=[0],
        seeds=range(3),
        epochs=2,
    ).delta.mean("seed")
    assert (gold.sel(left_out=7) > 0).all()
    assert (gold.sel(left_out=8) < 0).all()


# Models that are not a plain stack of trained layers


def with_dropout(dtype=torch.float64):
    task, _ = tiny("classification", dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3), nn.Dropout(0.2)).to(dtype)
    return dataclasses.replace(task, model=model), parameters_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_dropout_is_the_same_in_the_runs_of_a_seed(removal, dtype):
    task, params = with_dropout(dtype)
    for replicas in (1, 4):
        gold = run(task, params, removal=removal, fraction=0, left_out=range(3), replicas=replicas)
        assert (gold.delta == 0).all()
    assert abs(run(task, params, removal=removal).delta).max() > 1e-4


@pytest.mark.parametrize("removal", REMOVALS)
def test_dropout_does_not_depend_on_the_chunks(removal):
    task, params = with_dropout()
    whole = run(task, params, removal=removal, left_out=range(4))
    for replicas in (1, 3):
        same(whole, run(task, params, removal=removal, left_out=range(4), replicas=replicas))


def test_dropout_acts_in_training_and_not_in_evaluation():
    task, params = with_dropout()
    gold = run(task, params, evaluate=[0, 15])
    np.testing.assert_allclose(gold.full_loss[0, 0], plain_losses(task, task.model), rtol=1e-12)
    assert task.model.training
    without = dataclasses.replace(task, model=with_dropout()[0].model.eval())
    assert abs(run(without, params, evaluate=[15]).full_loss[0, 0] - gold.full_loss[0, 1]).max() > 1e-3


def test_which_layers_drop_out_is_part_of_what_is_stored(tmp_path):
    task, params = with_dropout()
    assert plans.drawing(task.model) == "active"
    frozen = copy.deepcopy(task.model)
    next(m for m in frozen.modules() if isinstance(m, nn.Dropout)).eval()
    some = dataclasses.replace(task, model=nn.Sequential(frozen, nn.Dropout(0.1)))
    every = dataclasses.replace(task, model=nn.Sequential(copy.deepcopy(task.model), nn.Dropout(0.1)))
    params = {f"0.{k}": p for k, p in params.items()}
    found = [run(t, params, store=tmp_path).attrs["specification"] for t in (every, some)]
    assert found[0] != found[1]


class Drift(nn.Module):
    """Output = w times dropout of 1: the gradient of a loss that is the output itself is the dropout mask."""

    def __init__(self):
        super().__init__()
        self.w, self.dropout = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Dropout(0.5)

    def forward(self, x):
        return self.w * self.dropout(torch.ones_like(x))


def test_dropout_stays_paired_when_dropping_has_shortened_an_epoch():
    def output(outputs, targets):
        return outputs[:, 0]

    data = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1))
    task = Task("drift", Drift(), output, data, data)
    gold = run(
        task,
        parameters_of(task.model),
        batch_size=1,
        epochs=20,
        evaluate=range(81),
        left_out=[0],
        test=[0],
        seeds=[3, 4],
    )
    assert abs(gold.full_loss[0] - gold.full_loss[1]).max() > 0.01  # each seed has masks of its own
    lead = gold.delta[0, 0, :, 0].values.astype(np.float64).round(9)
    # Runs part in the fourth step of an epoch, which the shorter run does not have, and nowhere else.
    assert set(np.nonzero(np.diff(lead))[0] % 4) == {3}


def test_frozen_parameters_stay():
    task, _ = tiny()
    task.model[0].weight.requires_grad_(False)
    params = parameters_of(task.model)
    assert list(params) == ["0.bias", "2.weight", "2.bias"]
    check_against_the_plain_loop(task, params)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    single = dataclasses.replace(task, model=task.model.float())  # frozen parameters follow the precision of the others
    assert abs(run(single, params).full_loss - run(task, params).full_loss).max() == 0
    assert all(torch.equal(v.float(), task.model.state_dict()[k]) for k, v in before.items())


def test_batch_norm_with_frozen_statistics_is_accepted():
    task, _ = tiny()
    norm = nn.BatchNorm1d(4).double()
    norm.running_mean.uniform_(-1, 1)
    model = nn.Sequential(task.model[0], norm, task.model[1], task.model[2]).eval()
    task = dataclasses.replace(task, model=model)
    check_against_the_plain_loop(task, parameters_of(model), optimizer="adam")


class TwoInputs(nn.Module):
    """The first features scaled before they join the others; one parameter plays no part."""

    def __init__(self, net):
        super().__init__()
        self.unused, self.net = nn.Parameter(torch.ones(2, 2, dtype=torch.float64)), net

    def forward(self, inputs):
        return self.net(torch.cat([inputs["scaled"][0] / 2, inputs["rest"]], 1))


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_inputs_may_be_any_pytree_and_a_parameter_may_be_unused(removal, optimizer):
    task, params = tiny()

    def as_tree(instances):
        return {"scaled": [2 * instances[0][:, :1]], "rest": instances[0][:, 1:]}, instances[1]

    model = TwoInputs(task.model)
    nested = dataclasses.replace(task, model=model, train=as_tree(task.train), test=as_tree(task.test))
    settings = dict(removal=removal, optimizer=optimizer, weight_decay=0.01, max_grad_norm=3.0)
    same(run(task, params, **settings), run(nested, parameters_of(model), **settings))


# What comes out


def test_results_carry_true_numbers_and_their_specification():
    task, params = tiny(dtype=torch.float32)
    task = dataclasses.replace(task, title="Tiny")
    gold = run(
        task,
        params,
        seeds=[4, 2],
        left_out=[9, 3, 5],
        test=[4, 1],
        evaluate=[0, 2, 5, 13],
        removal="mask",
        fraction=0.5,
        optimizer="adamw",
        weight_decay=0.1,
        max_grad_norm=7.0,
    )
    assert gold.full_loss.dims == ("seed", "step", "test") and gold.full_loss.dtype == np.float64
    assert gold.delta.dims == ("seed", "left_out", "step", "test") and gold.delta.dtype == np.float32
    assert gold.diverged.dims == ("seed", "left_out") and gold.diverged.dtype == bool and not gold.diverged.any()
    found = {name: gold[name].values.tolist() for name in ("seed", "left_out", "step", "test", "epoch")}
    assert found == {
        "seed": [4, 2],
        "left_out": [9, 3, 5],
        "step": [0, 2, 5, 13],
        "test": [4, 1],
        "epoch": [0, 0.4, 1.0, 2.6],
    }
    assert gold.epoch.dims == ("step",)
    assert re.fullmatch("[0-9a-f]{16}", gold.attrs["specification"])
    assert {name: value for name, value in gold.attrs.items() if name != "specification"} == {
        "task": "tiny_regression",
        "title": "Tiny",
        "optimizer": "adamw",
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "max_grad_norm": 7.0,
        "batch_size": 5,
        "epochs": 3,
        "removal": "mask",
        "fraction": 0.5,
        "steps_per_epoch": 5,
    }
    start = plain_losses(task, task.model)[[4, 1]]
    np.testing.assert_allclose(gold.full_loss.sel(seed=4, step=0), start, rtol=1e-12)
    assert (gold.delta.sel(step=0) == 0).all()


def test_no_instance_left_out_gives_the_full_run_alone():
    task, params = tiny()
    for removal in REMOVALS:
        gold = run(task, params, left_out=[], removal=removal)
        assert gold.delta.shape == (1, 0, 3, 5)
        np.testing.assert_array_equal(gold.full_loss, run(task, params, removal=removal).full_loss)


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_full_run_that_diverges_leaves_nothing_to_compare_with(removal):
    task, params = tiny()
    gold = run(task, params, learning_rate=1e6, epochs=10, removal=removal, evaluate=[0, 1, 50])
    assert gold.diverged.all()
    assert np.isnan(gold.full_loss[0, 2]).all() and np.isnan(gold.delta[0, :, 2]).all()
    assert np.isfinite(gold.delta[0, :, :2]).all()


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_a_run_that_diverges_alone_is_recorded_alone(replicas):
    """Instance 0 holds the weight down, instance 1 drives it up without bound, instance 2 does nothing."""

    def tug(outputs, targets):
        return torch.where(targets > 0, outputs.square(), -outputs.square().square()).sum(1)

    data = (torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[1.0], [-1.0], [1.0]]))
    model = nn.Linear(1, 1, bias=False)
    task = Task("tug", model, tug, data, data)
    gold = run(
        task,
        {"weight": torch.full((1, 1), 0.5)},
        batch_size=3,
        epochs=60,
        learning_rate=0.3,
        removal="mask",
        left_out=[2, 0, 1],
        replicas=replicas,
    )
    assert gold.diverged.values.tolist() == [[False, True, False]]
    assert np.isnan(gold.delta.sel(left_out=0, step=60)).any()
    assert np.isfinite(gold.delta.sel(left_out=[2, 1])).all() and np.isfinite(gold.full_loss).all()
    assert not np.isinf(gold.delta).any()
