"""Results on disk: found again, never mistaken, refused by name when they cannot be trusted."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.storage import store
from fimoda_lib.storage.store import StoreError, cached, fingerprint, read_sidecar
from fimoda_lib.tasks import parameters_of
from fimoda_lib.training.further_training import further_train
from fimoda_lib.training.runs import Runner

SETTINGS = dict(
    optimizer="sgd", learning_rate=0.05, batch_size=5, epochs=1, seeds=[2, 0], left_out=[0, 7], progress=False
)


@pytest.fixture
def trained(monkeypatch):
    """The seeds that were trained and not found, in order."""
    seeds, run = [], Runner.run

    def counted(self, together, bar):
        seeds.extend(together)
        return run(self, together, bar)

    monkeypatch.setattr(Runner, "run", counted)
    return seeds


def files(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_a_second_call_finds_the_first(tmp_path, trained):
    task, params = tiny()
    fresh = further_train(task, params, **SETTINGS)
    first = further_train(task, params, **SETTINGS, store=tmp_path / "new" / "folder")
    assert trained == [2, 0, 2, 0]
    second = further_train(*tiny(), **SETTINGS, store=tmp_path / "new" / "folder")
    assert trained == [2, 0, 2, 0]
    xr.testing.assert_identical(first, second)
    xr.testing.assert_identical(fresh.drop_vars("seconds"), second.drop_vars("seconds"))
    assert [second[name].dtype for name in ("full_loss", "delta", "diverged")] == [np.float64, np.float32, bool]
    names = files(tmp_path / "new" / "folder")
    assert len(names) == 4 and all(name.startswith("further-tiny_regression-sgd-drop-seed") for name in names)
    further_train(task, params, **{**SETTINGS, "seeds": [0, 1, 2]}, store=tmp_path / "new" / "folder")
    assert trained == [2, 0, 2, 0, 1]


def other_data():
    task, params = tiny()
    task.train[1][22] += 1e-9
    return task, params, {}


def other_loss():
    task, params = tiny()
    return dataclasses.replace(task, loss=lambda o, t: (o - t).abs().sum(1)), params, {}


def other_local_loss(power):
    task, params = tiny()
    if power == 2:
        return dataclasses.replace(task, loss=lambda o, t: (o - t).abs().pow(2).sum(1)), params, {}
    return dataclasses.replace(task, loss=lambda o, t: (o - t).abs().pow(3).sum(1)), params, {}


def other_bound_loss(delta):
    task, params = tiny()
    return dataclasses.replace(task, loss=functools.partial(huber, delta=delta)), params, {}


def huber(outputs, targets, delta):
    return nn.functional.huber_loss(outputs, targets, reduction="none", delta=delta).sum(1)


def other_frozen_layer(value):
    task, _ = tiny()
    task.model[0].requires_grad_(False)
    task.model[0].weight[0, 0] = value
    return task, parameters_of(task.model), {}


def other_statistics(value):
    task, _ = tiny()
    norm = nn.BatchNorm1d(4).double()
    norm.running_mean[0] = value
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 1)).double().eval()
    return dataclasses.replace(task, model=model), {k: v.fill_(0.1) for k, v in parameters_of(model).items()}, {}


def other_mode(training):
    task, params = tiny()
    model = nn.Sequential(task.model[0], nn.Dropout(0.3), task.model[2]).train(training)
    return dataclasses.replace(task, model=model), params, {}


def other_params(scale=1, dtype=torch.float64):
    task, params = tiny()
    return task, {k: (v * scale).to(dtype) for k, v in params.items()}, {}


def other_setting(**changes):
    return *tiny(), changes


@pytest.mark.parametrize(
    "problems",
    [
        *(
            (other_setting, functools.partial(other_setting, **changes))
            for changes in (
                dict(learning_rate=0.0500001),
                dict(optimizer="adam"),
                dict(batch_size=6),
                dict(epochs=2),
                dict(test=[1, 0]),
                dict(left_out=[7, 0]),
                dict(removal="mask"),
                dict(removal="mask", fraction=0.5),
                dict(evaluate=[1]),
                dict(weight_decay=0.1),
                dict(max_grad_norm=1.0),
            )
        ),
        (other_setting, other_data),
        (other_setting, other_loss),
        (functools.partial(other_local_loss, 2), functools.partial(other_local_loss, 3)),
        (functools.partial(other_bound_loss, 1.0), functools.partial(other_bound_loss, 2.0)),
        (other_setting, functools.partial(other_params, scale=1 + 1e-15)),
        (other_setting, functools.partial(other_params, dtype=torch.float32)),
        (functools.partial(other_frozen_layer, 0.1), functools.partial(other_frozen_layer, 0.2)),
        (functools.partial(other_statistics, 0.1), functools.partial(other_statistics, 0.2)),
        (functools.partial(other_mode, True), functools.partial(other_mode, False)),
    ],
    ids=lambda pair: str(getattr(pair[1], "keywords", "")) + getattr(pair[1], "func", pair[1]).__name__,
)
def test_whatever_changes_the_numbers_changes_the_file(problems, tmp_path, trained):
    for count, problem in enumerate(problems, 1):
        task, params, changes = problem()
        further_train(task, params, **{**SETTINGS, "seeds": [0], **changes}, store=tmp_path)
        assert len(trained) == count and len(list(tmp_path.glob("*.nc"))) == count


def test_what_does_not_change_the_numbers_keeps_the_file(tmp_path, trained):
    task, params = tiny()
    further_train(task, params, **SETTINGS, store=tmp_path)
    further_train(task, params, **SETTINGS, store=tmp_path, replicas=1, compile=False, device="cpu")
    further_train(dataclasses.replace(task, title="A title"), params, **SETTINGS, store=tmp_path)
    assert trained == [2, 0]
    for _ in range(2):
        task, params, _ = other_bound_loss(1.0)
        further_train(task, params, **SETTINGS, store=tmp_path)
    assert trained == [2, 0] * 2


def test_an_interrupted_call_goes_on_where_it_was(tmp_path, trained, monkeypatch):
    task, params = tiny()
    counted = Runner.run

    def interrupted(self, together, bar):
        if 5 in together:
            raise KeyboardInterrupt
        return counted(self, together, bar)

    settings = {**SETTINGS, "seeds": [2, 5, 9]}
    monkeypatch.setattr(Runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        further_train(task, params, **settings, store=tmp_path)
    monkeypatch.setattr(Runner, "run", counted)
    resumed = further_train(task, params, **settings, store=tmp_path)
    assert trained == [2, 5, 9]
    uninterrupted = further_train(task, params, **settings)
    xr.testing.assert_identical(resumed.drop_vars("seconds"), uninterrupted.drop_vars("seconds"))


def test_a_divergence_is_remembered(tmp_path):
    task, params = tiny()
    settings = {**SETTINGS, "learning_rate": 1e6, "epochs": 10}
    for _ in range(2):
        gold = further_train(task, params, **settings, store=tmp_path)
        assert gold.diverged.all() and np.isnan(gold.delta[:, :, -1]).all()


# Files that cannot be trusted

SPEC = {"kind": "example", "rate": 0.1, "rows": (1, 2)}


def computed():
    return xr.Dataset({"x": ("k", [1.0, 2.0, np.nan])}, coords={"k": [3, 1, 2]}, attrs={"a": "b"})


@pytest.fixture
def shard(tmp_path):
    cached(tmp_path, "name", SPEC, computed)
    (path,) = tmp_path.glob("*.nc")
    return path


def ask(path):
    return cached(path.parent, "name", SPEC, lambda: pytest.fail("computed again"))


def test_what_is_stored_comes_back(shard):
    assert shard.name == f"name-{store.specification_hash(SPEC)}.nc"
    assert files(shard.parent) == [shard.with_suffix(".json").name, shard.name]  # nothing temporary is left
    xr.testing.assert_identical(ask(shard), computed())
    sidecar = read_sidecar(shard)
    assert sidecar["specification"] == {"kind": "example", "rate": 0.1, "rows": [1, 2], "format": store.FORMAT}
    assert sidecar["seconds"] >= 0 and sidecar["versions"]["torch"] == torch.__version__


def test_damaged_files_are_refused_and_kept(shard):
    content = shard.read_bytes()
    altered = bytearray(content)
    altered[len(content) // 2] ^= 1
    for bad in (content[: len(content) // 2], b"", bytes(altered), content + b"\0"):
        shard.write_bytes(bad)
        message = refusal(ask, shard, error=StoreError)
        assert str(shard) in message and "damaged" in message and "move the file away" in message
        assert shard.read_bytes() == bad
    shard.write_bytes(content)
    xr.testing.assert_identical(ask(shard), computed())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"specification": {}}'])
def test_an_unreadable_sidecar_is_refused(shard, text):
    shard.with_suffix(".json").write_text(text)
    message = refusal(ask, shard, error=StoreError)
    assert str(shard) in message and "sidecar" in message and "move the file away" in message


def test_a_missing_sidecar_is_refused(shard):
    shard.with_suffix(".json").unlink()
    message = refusal(ask, shard, error=StoreError)
    assert str(shard) in message and f"no sidecar {shard.stem}.json" in message


def test_a_foreign_file_is_refused_and_says_in_what_it_differs(shard):
    for changes, named in (
        ({"rate": 0.2}, "rate"),
        ({"rows": [1], "more": 0}, "more, rows"),
        ({"format": store.FORMAT - 1}, "format"),
    ):
        sidecar = read_sidecar(shard)
        original = shard.with_suffix(".json").read_text()
        sidecar["specification"] |= changes
        shard.with_suffix(".json").write_text(json.dumps(sidecar))
        message = refusal(ask, shard, error=StoreError)
        assert str(shard) in message and f"another specification (it differs in {named})" in message
        shard.with_suffix(".json").write_text(original)


def test_further_training_refuses_a_damaged_file(tmp_path, trained):
    task, params = tiny()
    further_train(task, params, **SETTINGS, store=tmp_path)
    shard = next(tmp_path.glob("*-seed0-*.nc"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert str(shard) in refusal(further_train, task, params, **SETTINGS, store=tmp_path, error=StoreError)
    assert trained == [2, 0]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refusal(cached, tmp_path / "file", "name", SPEC, computed, error=StoreError)
    assert "Cannot write the result" in message and str(tmp_path / "file" / "name-") in message
    assert files(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full_disk)
    assert "No space left on device" in refusal(cached, tmp_path, "name", SPEC, computed, error=StoreError)
    assert files(tmp_path) == []


def test_a_fingerprint_sees_values_shapes_types_and_places():
    a = torch.arange(6.0)
    trees = [
        (a,),
        (a + 1e-6,),
        (a.double(),),
        (a.int(),),
        (a.reshape(2, 3),),
        ({"x": a},),
        ({"y": a},),
        ([a, a],),
        (a, a),
        (a[:0],),
    ]
    assert len({fingerprint(*tree) for tree in trees}) == len(trees)
    assert fingerprint(a.reshape(2, 3).T.contiguous().T) == fingerprint(a.reshape(2, 3))
    assert fingerprint(a) == fingerprint(a.clone().requires_grad_()) and len(fingerprint(a)) == 16


def test_the_hash_of_a_specification_does_not_change_between_versions():
    """Stored results would no longer be found: raise FORMAT if that is what you want."""
    assert store.FORMAT == 1
    assert store.specification_hash({"b": [1, 0.1], "a": "x"}) == store.specification_hash({"a": "x", "b": (1, 0.1)})
    assert store.specification_hash({"b": [1, 0.1], "a": "x"}) == "90efc3e472c56a18"


def test_a_scheduler_that_is_set_but_not_there_does_not_matter(tmp_path):
    """As dask.distributed leaves it behind when clients end in an unlucky order, or a user's dask.yaml may say."""
    import dask

    with dask.config.set(scheduler="dask.distributed"):
        stored = cached(tmp_path, "name", {"a": 1}, lambda: xr.Dataset({"x": ("k", [1.0, 2.0])}))
        xr.testing.assert_identical(cached(tmp_path, "name", {"a": 1}, lambda: pytest.fail("it is stored")), stored)
