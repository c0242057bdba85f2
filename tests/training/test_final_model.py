"""The final model against the plain loop; its learning rate chosen on training instances only."""

import dataclasses
import math

import pytest
import torch
from plain import OPTIMIZERS
from problems import tiny
from small_files import refusal
from torch.utils.data import DataLoader, TensorDataset

from fimoda_lib.tasks import parameters_of, take
from fimoda_lib.training import final_model
from fimoda_lib.training.ensembles import Ensemble
from fimoda_lib.training.final_model import TrainingDiverged, choose_learning_rate, train_final_model

SETTINGS = dict(optimizer="sgd", epochs=4, batch_size=5)


def fit(task, **changes):
    return train_final_model(task, progress=False, **{"learning_rate": 0.05, "seed": 3, **SETTINGS, **changes})


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("n", [20, 23])
def test_equals_training_with_a_data_loader(kind, optimizer, n):
    task, before = tiny(kind, n=n)
    found = fit(task, optimizer=optimizer, weight_decay=0.1, max_grad_norm=1.0)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    rule = OPTIMIZERS[optimizer](task.model.parameters(), lr=0.05, weight_decay=0.1)
    # A generator for the sampler alone: the DataLoader itself would draw from it, too.
    loader = DataLoader(
        TensorDataset(*task.train),
        batch_size=5,
        sampler=torch.utils.data.RandomSampler(range(n), generator=torch.Generator().manual_seed(3)),
    )
    for _ in range(4):
        for inputs, targets in loader:
            rule.zero_grad()
            task.loss(task.model(inputs), targets).mean().backward()
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            rule.step()
    expected = parameters_of(task.model)
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
        assert (value - before[name]).abs().max() > 1e-3


def test_the_seed_matters_and_the_precision_is_that_of_the_model():
    task, _ = tiny(dtype=torch.float32)
    runs = [fit(task, seed=seed)["2.weight"] for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].dtype == torch.float32


def test_frozen_parameters_are_neither_trained_nor_returned():
    task, _ = tiny()
    task.model[0].requires_grad_(False)
    assert list(fit(task)) == ["2.weight", "2.bias"]


def test_a_second_call_finds_the_first(tmp_path, monkeypatch):
    task, _ = tiny(dtype=torch.float32)
    first = fit(task, store=tmp_path)
    assert len(list(tmp_path.glob("final-tiny_regression-*.nc"))) == 1
    monkeypatch.setattr(final_model.Runner, "train", lambda *_: pytest.fail("trained again"))
    second = fit(task, store=tmp_path)
    assert all(torch.equal(first[name], second[name]) and second[name].dtype == torch.float32 for name in first)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        fit(task, store=tmp_path, seed=4)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (dict(batch_size=0), "batch_size: got 0"),
        (dict(epochs=0), "epochs: got 0"),
        (dict(optimizer="x"), "optimizer: got 'x'"),
        (dict(learning_rate=0), "learning_rate: got 0"),
        (dict(weight_decay=-1), "weight_decay: got -1"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_right(changes, fragment):
    task, _ = tiny()
    assert fragment in refusal(fit, task, **changes, error=ValueError)
    rates = [changes.get("learning_rate", 0.1)]
    options = {**SETTINGS, **{k: v for k, v in changes.items() if k != "learning_rate"}}
    assert fragment in refusal(choose_learning_rate, task, rates, **options, error=ValueError)


def test_a_final_model_that_diverges_is_an_error():
    task, _ = tiny()
    message = refusal(fit, task, learning_rate=1e6, epochs=20, error=TrainingDiverged)
    assert issubclass(TrainingDiverged, ValueError)
    assert "'tiny_regression' with learning rate 1000000.0 diverged" in message


def test_the_learning_rate_is_chosen_by_held_out_training_instances():
    task, _ = tiny(n=40)
    settings = {**SETTINGS, "epochs": 20}
    losses = choose_learning_rate(task, [1e6, 1e-6, 0.05], held_out=0.25, seed=1, **settings)
    assert list(losses) == [1e6, 1e-6, 0.05] and math.isnan(losses[1e6])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    held, kept = order[:10], order[10:]
    model = train_final_model(
        dataclasses.replace(task, train=tuple(t[kept] for t in task.train)),
        learning_rate=0.05,
        seed=1,
        progress=False,
        **settings,
    )
    outputs = torch.func.functional_call(task.model, model, (task.train[0][held],))
    assert losses[0.05] == pytest.approx(task.loss(outputs, task.train[1][held]).mean().item(), rel=1e-10)
    # The test instances are for what comes later: their values must not be looked at.
    task.test[0].fill_(float("nan"))
    assert choose_learning_rate(task, [0.05], held_out=0.25, seed=1, **settings)[0.05] == losses[0.05]


def test_the_instances_that_choose_the_best_epoch_are_part_of_its_name(tmp_path):
    task, _ = tiny(n_test=3)
    other = dataclasses.replace(task, test=take(task.train, torch.arange(3)))
    best = [fit(t, keep_best=True, learning_rate=0.3, epochs=6, store=tmp_path) for t in (task, other)]
    assert len([*tmp_path.glob("final-*.nc")]) == 2
    alone = fit(other, keep_best=True, learning_rate=0.3, epochs=6)
    assert all(torch.equal(best[1][k], p) for k, p in alone.items())


def test_an_epoch_without_a_number_is_not_the_best(monkeypatch):
    """Validation losses that begin as NaN: the root of an output that is negative at first, say."""
    task, _ = tiny()
    told, losses = [], Ensemble.losses

    def sometimes(self, instances):
        told.append(losses(self, instances).mean() * (math.nan if len(told) < 2 else 1))
        return told[-1]

    monkeypatch.setattr(Ensemble, "losses", sometimes)
    found = fit(task, keep_best=True, learning_rate=0.01, epochs=6)
    best = told.index(min(told[2:]))
    expected = fit(task, learning_rate=0.01, epochs=best + 1)
    assert best >= 2 and all(torch.equal(found[k], p) for k, p in expected.items())
