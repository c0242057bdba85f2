"""Images: the loaders of both forms of CIFAR-10, the models, per-instance gradients of convolutions."""

import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import archive, batch, put, refusal

from fimoda_lib import Task, attribute, further_train, load_task
from fimoda_lib.datasets import images, models
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.methods import METHODS
from fimoda_lib.plots.pictures import gallery, pictures_of
from fimoda_lib.tasks import cross_entropy, parameters_of


def test_the_python_version_is_read_in_its_order(tmp_path):
    *train, test = images.parse_cifar10(archive(tmp_path / "c.tar.gz", extra=[("readme.html", b"<p>")]))
    assert len(train) == 5 and test[0].shape == (20, 3, 32, 32) and test[0].dtype == torch.uint8
    for k, (pixels, labels) in enumerate([*train, test]):
        expected = batch(20, k)
        # Red first, row by row, then green and blue.
        assert pixels[3, 1, 2, 5] == expected[b"data"][3, 1024 + 2 * 32 + 5]
        assert labels.tolist() == expected[b"labels"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({images.BATCHES[0]: pickle.dumps(Evil())}, "it asks for posix.mkdir"),
        ({images.BATCHES[0]: b"\x80\x02}q"}, "pickle data was truncated"),
        ({images.BATCHES[1]: batch(20, 0, **{"labels": 1}) | {b"labels": [99] * 20}}, "a label 99"),
        ({images.BATCHES[1]: {b"data": np.zeros((20, 7), np.uint8), b"labels": [0] * 20}}, "(20, 7)"),
        ({images.BATCHES[1]: {b"labels": [0]}}, "b'data'"),
    ],
)
def test_a_damaged_or_hostile_archive_is_refused_by_name(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    message = refusal(images.parse_cifar10, archive(tmp_path / "cifar.tar.gz", change))
    assert "cifar.tar.gz" in message and words in message
    assert not (tmp_path / "unpickled").exists()


def test_archives_that_are_cut_off_incomplete_or_too_large_are_refused(tmp_path, monkeypatch):
    whole = archive(tmp_path / "whole.tar.gz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) * 9 // 10):
        assert "cut.tar.gz" in refusal(images.parse_cifar10, put(tmp_path / "cut.tar.gz", whole[:size]))
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    assert "data_batch_1" in refusal(images.parse_cifar10, tmp_path / "empty.tar.gz")
    monkeypatch.setattr(images, "BATCH_BYTES", 1000)
    assert "expected at most 1000" in refusal(images.parse_cifar10, tmp_path / "whole.tar.gz")


def jpeg(colour, size=(32, 32), mode="RGB", format="JPEG"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format)
    return file.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def names(part, n):
    return [f"{part}/{images.CLASSES[k % 10]}/{k // 10:04d}.jpg" for k in range(n)]


def test_jpeg_files_are_read_one_of_each_class_in_turn(tmp_path):
    members = {name: jpeg((10 * k, 0, 100)) for k, name in enumerate(names("train", 12))}
    path = zipped(tmp_path / "cifar.zip", dict(sorted(members.items())))
    pixels, labels = images.parse_jpeg(path, "train", 12)
    assert labels.tolist() == [*range(10), 0, 1]
    assert (pixels[:, 0].float().mean((1, 2)) - 10 * torch.arange(12)).abs().max() < 4  # JPEG is lossy
    assert "test/airplane/0000.jpg" in refusal(images.parse_jpeg, path, "test", 1)
    assert "train/bird/0001.jpg" in refusal(images.parse_jpeg, path, "train", 13)


@pytest.mark.parametrize(
    "content", [b"", b"no image", jpeg(0, mode="L"), jpeg((0, 0, 0), (33, 32)), jpeg((0, 0, 0), format="PNG")]
)
def test_what_is_no_small_colour_jpeg_is_refused(tmp_path, content):
    path = zipped(tmp_path / "cifar.zip", {names("train", 1)[0]: content})
    assert "cifar.zip" in refusal(images.parse_jpeg, path, "train", 1)
    whole = zipped(tmp_path / "w.zip", {names("train", 1)[0]: jpeg((0, 0, 0))}).read_bytes()
    assert "half.zip" in refusal(images.parse_jpeg, put(tmp_path / "half.zip", whole[: len(whole) // 2]), "train", 1)


def test_scaling_is_undone_for_pictures():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    shown = images.pictures(images.scaled(pixels))
    assert shown.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(shown[0, ..., 1] * 255, pixels[0, 1], atol=1e-4)
    assert images.scaled(pixels).min() == -2 and images.scaled(pixels).max() == 2


@pytest.mark.skipif(not os.environ.get("FIMODA_DATA"), reason="needs the data files (FIMODA_DATA)")
def test_cifar10_as_jpeg():
    if not (Path(os.environ["FIMODA_DATA"]) / images.JPEG_FILE.path).exists():
        pytest.skip(f"needs {images.JPEG_FILE.path}")
    task = load_task("cifar10_jpeg", model="convnet")
    assert task.train[0].shape == (50_000, 3, 32, 32) and task.n_test == 10_000
    assert task.test_table["class"][:11].tolist() == [*images.CLASSES, "airplane"]
    assert task.stand_in_for == "CIFAR-10" and abs(float(task.train[0].mean())) < 0.5


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
