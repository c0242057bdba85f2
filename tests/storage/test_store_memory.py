"""Shards are read once as long as their files stay the same."""

import os
import time
from functools import lru_cache

import pytest
import xarray as xr

from fimoda_lib.storage import store
from fimoda_lib.storage.store import StoreError, cached


def dataset(value, size=4):
    return xr.Dataset({"x": ("place", [float(value)] * size)})


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A shard written a while ago: (path, what reads it), and the paths that were read."""
    monkeypatch.setattr(store, "_read_once", lru_cache(maxsize=3)(store._read))
    read, original = [], xr.load_dataset

    def load_dataset(path, **more):
        read.append(path)
        return original(path, **more)

    monkeypatch.setattr(xr, "load_dataset", load_dataset)
    cached(tmp_path, "some", {"a": 1}, lambda: dataset(3))
    (path,) = tmp_path.glob("*.nc")
    settle(path)
    return path, lambda: cached(tmp_path, "some", {"a": 1}, lambda: pytest.fail("computed again")), read


def settle(path, seconds=10):
    """As if it had last been written so long ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_an_unchanged_file_is_read_once_and_nobody_can_write_into_what_is_kept(stored):
    _, ask, read = stored
    for _ in range(3):
        found = ask()
        xr.testing.assert_identical(found, dataset(3))
        found["x"][:] = 7
    assert len(read) == 1


def test_a_file_that_changed_is_read_and_checked_again(stored):
    path, ask, read = stored
    ask()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settle(path, 5)
    with pytest.raises(StoreError, match="is damaged: its SHA-256"):
        ask()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settle(path, 3)
    xr.testing.assert_identical(ask(), dataset(3))
    assert len(read) == 2


def test_a_file_that_was_written_just_now_is_not_kept(stored):
    path, ask, read = stored
    os.utime(path)
    ask(), ask()
    assert len(read) == 2


def test_a_sidecar_is_checked_every_time(stored):
    path, ask, _ = stored
    ask()
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(StoreError, match="belongs to another specification"):
        ask()


def test_memory_is_bounded_and_the_oldest_goes_first(stored, tmp_path):
    _, _, read = stored

    def ask(number, size=4):
        if not [*tmp_path.glob(f"n{number}-*.nc")]:
            cached(tmp_path, f"n{number}", {}, lambda: dataset(number, size))
            settle(*tmp_path.glob(f"n{number}-*.nc"))
        before = len(read)
        xr.testing.assert_identical(cached(tmp_path, f"n{number}", {}, pytest.fail), dataset(number, size))
        return len(read) > before

    assert all(ask(number) for number in (0, 1, 2))
    assert not ask(0)  # asked for just now
    assert ask(3)
    assert not ask(0) and ask(1)
    assert ask(9, size=store.SMALL // 8 + 1) and ask(9, size=store.SMALL // 8 + 1)  # too large to be kept
