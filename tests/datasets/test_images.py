"""Images: scaling, digits, the models, per-instance gradients of convolutions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_files import refusal

from fimoda_lib import Task, attribute, further_train, load_task
from fimoda_lib.datasets import images, models
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.methods import METHODS
from fimoda_lib.plots.pictures import gallery, pictures_of
from fimoda_lib.tasks import cross_entropy, parameters_of


def test_scaling_is_undone_for_pictures():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    shown = images.pictures(images.scaled(pixels))
    assert shown.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(shown[0, ..., 1] * 255, pixels[0, 1], atol=1e-4)
    assert images.scaled(pixels).min() == -2 and images.scaled(pixels).max() == 2


def test_digits_as_images():
    task = load_task("digit_images")
    assert task.train[0].shape == (1437, 1, 8, 8) and task.n_test == 360 and task.kind == "classification"
    assert sorted(set(task.train[1].tolist())) == list(range(10))
    shown = pictures_of(task, "test")
    assert shown.shape == (360, 8, 8) and 0 <= shown.min() and shown.max() <= 1
    import xarray as xr

    scores = xr.DataArray([[1.0, -1.0, 0.5]], dims=("test", "train"), coords={"test": [3], "train": [0, 5, 9]})
    assert len(gallery(task, scores, n=1).axes[0].images) == 3


def test_models_to_choose_from_are_named():
    assert "expected one of resnet9, convnet" in refusal(load_task, "cifar10", model="resnet18", error=ValueError)
    assert "it has only one" in refusal(load_task, "digit_images", model="convnet", error=ValueError)


@pytest.mark.parametrize("build", [lambda: models.resnet9(width=4), lambda: models.convnet(width=2)])
def test_models_do_not_mix_instances_and_leave_the_random_state_alone(build):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = build().double()
    assert torch.rand(1) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build().double().parameters(), strict=True))
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]))
    assert not list(model.buffers())  # no running statistics


def test_resnet9_has_the_usual_size():
    assert sum(p.numel() for p in models.resnet9().parameters()) == 6_573_130


@pytest.fixture(scope="module")
def problem():
    """Twelve tiny colour images, a ResNet-9 of width 4."""
    torch.manual_seed(0)
    instances = [(torch.randn(n, 3, 32, 32), torch.arange(n) % 3) for n in (12, 4)]
    task = Task("tiny", models.resnet9(3, 3, width=4), cross_entropy, *instances)
    return task, parameters_of(task.model)


def test_per_instance_gradients_of_convolutions_are_those_of_one_at_a_time(problem):
    task, params = problem
    at = Gradients(task, params)
    found = at.of_losses(at.train(torch.arange(12)))
    model = at.model
    for k in range(12):
        inputs, targets = at.train(torch.tensor([k]))
        loss = cross_entropy(model(inputs), targets)[0]
        own = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.cat([g.reshape(-1) for g in own])
        torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("removal", ["subtract", "mask"])
def test_nothing_removed_changes_nothing(problem, removal):
    task, params = problem
    gold = further_train(
        task, params, optimizer="sgd", learning_rate=0.1, batch_size=5, epochs=1, seeds=[0], left_out=[0, 7],
        removal=removal, fraction=0.0, progress=False,
    )  # fmt: skip
    assert (gold.delta == 0).all() and float(abs(gold.full_loss.isel(step=-1) - gold.full_loss.isel(step=0)).max()) >= 0


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("lissa_h", "lft")])
def test_every_method_scores_images(problem, name):
    task, params = problem
    hyper = {"depth": 50, "scale": 500.0, "multiple": 10.0} if name == "lissa" else {}
    scores = attribute(name, task, params, train=[0, 1, 5], test=[0, 1], curvature=range(10), **hyper)
    assert scores.shape == (2, 3) and np.isfinite(scores).all() and float(abs(scores).max()) > 0


def test_lft_scores_images(problem):
    task, params = problem
    training = dict(optimizer="sgd", learning_rate=0.01, batch_size=6, seed=1)
    scores = attribute("lft", task, params, train=[0, 5], test=[0, 1], horizon=[1, 4], further_training=training)
    gold = further_train(
        replace(task), {k: v.double() for k, v in params.items()}, **{k: v for k, v in training.items() if k != "seed"},
        epochs=2, seeds=[1], left_out=[0, 5], test=[0, 1], removal="subtract", evaluate=[1, 4], progress=False,
    )  # fmt: skip
    measured = gold.delta.isel(seed=0, step=-1).transpose("test", "left_out").values
    found = scores.isel(horizon=-1).values
    assert (found * measured).sum() / np.linalg.norm(found) / np.linalg.norm(measured) > 0.95
