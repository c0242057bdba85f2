"""CIFAR-10 in every form it is published in: the same tensors, each batch verified; damaged ones are refused."""

import hashlib
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from small_files import BATCHES, archive, batch, members, put, refusal

from fimoda_lib import load_task
from fimoda_lib.datasets import available, cifar10, fetch
from fimoda_lib.experiments.standards import read_standard

REAL = os.environ.get("FIMODA_DATA") or None


@pytest.fixture
def unverified(monkeypatch):
    """Batches are read whatever their MD5: what lies behind that check has to hold without it."""
    monkeypatch.setattr(cifar10, "check_published", lambda *_: None)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The small batches of these tests are the published ones."""
    known = {name: hashlib.md5(content).hexdigest() for v in ("py", "bin") for name, content in members(v).items()}
    monkeypatch.setattr(cifar10, "PUBLISHED", known)
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    monkeypatch.setenv("FIMODA_CACHE", str(tmp_path / "cache"))


def unpacked(folder, version):
    for name, content in members(version).items():
        put(folder / name, content)


FORMS = {
    "cifar-10-python.tar.gz": lambda path: archive(path),
    "cifar-10-binary.tar.gz": lambda path: archive(path, version="bin"),
    "cifar-10-binary.tar.xz": lambda path: archive(path, version="bin"),
    "cifar-10-batches-bin": lambda path: unpacked(path.parent, "bin"),
    "cifar-10-batches-py": lambda path: unpacked(path.parent, "py"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_task(form, small, tmp_path):
    assert not available("cifar10", tmp_path)
    FORMS[form](tmp_path / "cifar10" / form)
    assert available("cifar10", tmp_path)
    task = load_task("cifar10", tmp_path, model="convnet")
    batches = [batch(20, k) for k in range(6)]
    pixels = torch.from_numpy(np.concatenate([b[b"data"] for b in batches])).reshape(-1, 3, 32, 32)
    expected = pixels.float() / 255 * 4 - 2
    torch.testing.assert_close(torch.cat([task.train[0], task.test[0]]), expected, rtol=0, atol=1e-6)
    assert torch.cat([task.train[1], task.test[1]]).tolist() == [k for b in batches for k in b[b"labels"]]
    assert (task.n_train, task.n_test) == (100, 20)
    python = cifar10.parse_cifar10(archive(tmp_path / "other.tar.gz"))
    found = cifar10.parse_cifar10(fetch.find_local(cifar10.CIFAR10_FILE, tmp_path))
    assert all(
        torch.equal(a, b) for one, other in zip(found, python, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", ["py", "bin"])
def test_one_exchanged_batch_is_named(form, version, small, tmp_path):
    """The second batch in the place of the third: readable, and not what was published."""
    if form.endswith(version) or ("binary" if version == "bin" else "python") in form:
        names = list(members(version))
        wrong = {names[2]: members(version)[names[1]]}
        if "tar" in form:
            archive(tmp_path / "cifar10" / form, wrong, version=version)
        else:
            unpacked(tmp_path / "cifar10", version)
            put(tmp_path / "cifar10" / names[2], wrong[names[2]])
        message = refusal(load_task, "cifar10", tmp_path)
        assert repr(names[2]) in message and "got MD5" in message and "expected" in message


def test_a_folder_without_one_batch_is_refused(small, tmp_path):
    unpacked(tmp_path / "cifar10", "bin")
    (tmp_path / "cifar10/cifar-10-batches-bin/test_batch.bin").unlink()
    assert "has no 'cifar-10-batches-bin/test_batch.bin'" in refusal(load_task, "cifar10", tmp_path)


def test_batches_other_than_the_published_are_refused(tmp_path):
    """With the published MD5, the small batches of these tests are not CIFAR-10."""
    assert cifar10.PUBLISHED[BATCHES[0]] in refusal(cifar10.parse_cifar10, archive(tmp_path / "c.tar.gz"))
    unpacked(tmp_path, "bin")
    message = refusal(cifar10.parse_cifar10, tmp_path / "cifar-10-batches-bin/data_batch_1.bin")
    assert "5dd7e06a14cb22eb9f671a540d1b7c25" in message


@pytest.fixture(scope="module")
def batches():
    """Those of CIFAR-10 itself, unpacked once."""
    if not (REAL and available("cifar10", REAL)):
        pytest.skip("needs the files of CIFAR-10 (FIMODA_DATA)")
    return cifar10.load_batches(REAL)


@pytest.fixture
def original(batches, monkeypatch):
    """The folder with CIFAR-10 itself."""
    monkeypatch.setattr(cifar10, "load_batches", lambda data_dir: batches)
    return REAL


@pytest.mark.slow
def test_the_original(original):
    task = load_task("cifar10", original, model="convnet")
    assert (task.n_train, task.n_test) == (50_000, 10_000)
    assert task.train_table["class"][:4].tolist() == ["frog", "truck", "truck", "deer"]
    assert task.train[1].bincount().tolist() == [5000] * 10 and task.test[1].bincount().tolist() == [1000] * 10


def test_the_committed_gold_standard_is_that_of_the_original(original):
    panel, gold, rows, _ = read_standard("cifar10", original)
    assert panel.settings.left_out == tuple(gold.left_out.values) and {"grad_dot", "lft"} <= {*rows.method}


def test_the_python_version_is_read_in_its_order(unverified, tmp_path):
    *train, test = cifar10.parse_cifar10(archive(tmp_path / "c.tar.gz", extra=[("readme.html", b"<p>")]))
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
        ({BATCHES[0]: pickle.dumps(Evil())}, "it asks for posix.mkdir"),
        ({BATCHES[0]: b"\x80\x02}q"}, "pickle data was truncated"),
        ({BATCHES[1]: batch(20, 0, **{"labels": 1}) | {b"labels": [99] * 20}}, "a label 99"),
        ({BATCHES[1]: {b"data": np.zeros((20, 7), np.uint8), b"labels": [0] * 20}}, "(20, 7)"),
        ({BATCHES[1]: {b"labels": [0]}}, "b'data'"),
    ],
)
def test_a_damaged_or_hostile_archive_is_refused_by_name(unverified, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    message = refusal(cifar10.parse_cifar10, archive(tmp_path / "cifar.tar.gz", change))
    assert "cifar.tar.gz" in message and words in message
    assert not (tmp_path / "unpickled").exists()


def test_archives_that_are_cut_off_incomplete_or_too_large_are_refused(unverified, tmp_path, monkeypatch):
    whole = archive(tmp_path / "whole.tar.gz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) * 9 // 10):
        assert "cut.tar.gz" in refusal(cifar10.parse_cifar10, put(tmp_path / "cut.tar.gz", whole[:size]))
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    assert "data_batch_1" in refusal(cifar10.parse_cifar10, tmp_path / "empty.tar.gz")
    monkeypatch.setattr(cifar10, "BATCH_BYTES", 1000)
    assert "expected at most 1000" in refusal(cifar10.parse_cifar10, tmp_path / "whole.tar.gz")
