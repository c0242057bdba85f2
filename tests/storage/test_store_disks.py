"""Disks that fill up or cannot be written: one sentence, before the work wherever that is possible."""

import contextlib
import os
import shutil
import subprocess

import counting
import numpy as np
import pytest
import xarray as xr
from small_files import refusal

from fimoda_lib.storage.store import StoreError, cached

SPEC = {"kind": "example"}


def small():
    return xr.Dataset({"x": ("k", np.arange(3.0))})


def names(folder):
    return sorted(p.name for p in folder.rglob("*"))


@contextlib.contextmanager
def small_disk(folder, options):
    """A file system of its own, in memory; skips where that is not allowed."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.strip()}")
    try:
        counting.fault()  # of its own kind in every test
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def never():
    pytest.fail("the work was started although its result cannot be stored")


def test_a_full_disk_is_noticed_before_the_work(tmp_path):
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        (disk / "other").write_bytes(bytes(1_900_000))
        message = refusal(cached, disk, "name", SPEC, never, error=StoreError)
        assert "No space left" in message and f"{disk}/name-" in message and "choose a folder" in message
        assert names(disk) == ["other"]


def test_a_disk_that_fills_up_while_writing(tmp_path):
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        large = xr.Dataset({"x": ("k", np.random.default_rng(0).random(1_000_000))})
        message = refusal(cached, disk, "name", SPEC, lambda: large, error=StoreError)
        assert f"{disk}/name-" in message and "(No space left on device); free space" in message
        assert names(disk) == []
        xr.testing.assert_identical(cached(disk, "name", SPEC, small), small())
        xr.testing.assert_identical(cached(disk, "name", SPEC, never), small())


def test_a_read_only_folder_can_be_read_and_is_noticed_before_the_work(tmp_path):
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        cached(disk, "name", SPEC, small)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        xr.testing.assert_identical(cached(disk, "name", SPEC, never), small())
        message = refusal(cached, disk, "other", SPEC, never, error=StoreError)
        assert "Read-only file system" in message and f"{disk}/other-" in message
        message = refusal(cached, disk / "new", "other", SPEC, never, error=StoreError)
        assert "Read-only file system" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_missing_permissions_are_noticed_before_the_work(tmp_path):
    for mode in (0o555, 0o000):
        tmp_path.chmod(mode)
        message = refusal(cached, tmp_path, "name", SPEC, never, error=StoreError)
        tmp_path.chmod(0o755)
        assert "Permission denied" in message and "choose a folder" in message


def test_a_file_in_the_way_of_the_folder_is_noticed_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        counting.fault()
        assert str(folder / "name-") in refusal(cached, folder, "name", SPEC, never, error=StoreError)
    assert names(tmp_path) == ["file"]
