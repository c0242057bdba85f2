"""A store that several runs share and that any of them may be killed in."""

import logging
import multiprocessing
import os
import socket
import subprocess
import time
from pathlib import Path

import counting
import numpy as np
import pytest
import torch
import xarray as xr
from problems import tiny
from small_files import refusal

from fimoda_lib.storage import folders, store
from fimoda_lib.storage.folders import claimed, is_running, lock_of, part_of, set_aside
from fimoda_lib.storage.store import Missing, StoreError, cached, questions, read_sidecar
from fimoda_lib.training.further_training import further_train
from fimoda_lib.training.runs import Runner

# Children come from a server that has imported the library once, so that each starts at once and without our threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fimoda_lib.training.further_training", "h5netcdf", "pytest"])
SETTINGS = dict(
    optimizer="sgd", learning_rate=0.05, batch_size=5, epochs=1, seeds=[3, 1, 2], left_out=[0, 7], progress=False
)
SPEC = {"kind": "example"}
PATIENCE = 240


def small():
    return xr.Dataset({"x": ("k", np.arange(3.0))})


def names(folder):
    return sorted(p.name for p in folder.rglob("*"))


def never():
    pytest.fail("this is stored, and was computed again")


# What children do


def note(file, line):
    """Appends a line in one system call, so that the lines of two processes never mix."""
    with open(file, "ab", buffering=0) as stream:
        stream.write(f"{line}\n".encode())


def stop_here(reached):
    """Says that the moment has come, and waits to be killed."""
    reached.set()
    time.sleep(PATIENCE)
    raise AssertionError("nobody killed this process")


def at_moment(moment, reached):
    """Changes the library, in this process, so that it stops at a moment of the work on seed 1, the second one."""
    run, to_netcdf, replace, tidy = Runner.run, xr.Dataset.to_netcdf, os.replace, folders.remove_left_overs

    def second(name):
        return "seed1" in str(name)

    def slow_tidy(path):
        tidy(path)
        if second(path):
            stop_here(reached)

    def slow_run(self, seeds, bar):
        result = run(self, seeds, bar)
        if 1 in seeds:
            stop_here(reached)
        return result

    def slow_to_netcdf(self, path, **options):
        to_netcdf(self, path, **options)
        if second(path):
            os.truncate(path, os.path.getsize(path) // 2)  # the first half has been written
            stop_here(reached)

    def slow_replace(source, target):
        if second(target) and str(target).endswith(".nc"):
            stop_here(reached)
        replace(source, target)

    if moment == "before computing":
        folders.remove_left_overs = slow_tidy
    if moment == "while computing":
        Runner.run = slow_run
    if moment == "while writing":
        xr.Dataset.to_netcdf = slow_to_netcdf
    if moment == "after the sidecar":
        store.os.replace = slow_replace


def train_until(moment, folder, reached):
    at_moment(moment, reached)
    further_train(*tiny(), **SETTINGS, store=folder)


def train_and_count(folder, diary, name, start, pause=0.3):
    """Trains all seeds, slowly, with a note of every seed trained and every message."""
    run = Runner.run

    def counted(self, seeds, bar):
        note(diary, f"{name} trains {seeds[0]}")
        time.sleep(pause)
        return run(self, seeds, bar)

    class ToDiary(logging.Handler):
        def emit(self, record):
            note(diary, record.getMessage())

    Runner.run = counted
    folders.QUIET_SECONDS = 0.1
    logging.getLogger("fimoda_lib").addHandler(ToDiary())
    start.wait(PATIENCE)
    result = further_train(*tiny(), **SETTINGS, store=folder)
    result.drop_vars("seconds").to_netcdf(diary.with_name(f"{name}.nc"), engine="h5netcdf")


def hold(path, reached):
    with claimed(path):
        stop_here(reached)


@pytest.fixture
def child():
    """Starts processes; none outlives the test."""
    started = []

    def start(target, *arguments):
        process = PROCESSES.Process(target=target, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def killed_at(child, target, *arguments):
    """Runs a process up to the moment at which it stops, and ends it as `kill -9` does."""
    reached = PROCESSES.Event()
    process = child(target, *arguments, reached)
    assert reached.wait(PATIENCE), f"the process ended with status {process.exitcode} before the moment came"
    process.kill()
    process.join()
    assert process.exitcode == -9


@pytest.fixture(scope="module")
def uninterrupted():
    return further_train(*tiny(), **SETTINGS).drop_vars("seconds")


@pytest.fixture
def trained(monkeypatch):
    """The seeds that this process trains."""
    seeds, run = [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, more, bar: seeds.extend(more) or run(self, more, bar))
    return seeds


# Killed


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("before computing", ["lock"]),
        ("while computing", ["lock"]),
        ("while writing", ["lock", "part"]),
        ("after the sidecar", ["json", "lock", "part"]),
    ],
)
def test_a_killed_run_goes_on_where_it_was(tmp_path, child, uninterrupted, trained, moment, left):
    killed_at(child, train_until, moment, tmp_path)
    of_second = sorted(name.rpartition(".")[2] for name in names(tmp_path) if "seed1" in name)
    assert of_second == left  # the moment was the right one
    resumed = further_train(*tiny(), **SETTINGS, store=tmp_path).drop_vars("seconds")
    counting.fault(lost=trained.count(3))
    assert trained == [1, 2]  # seed 3 was finished, seed 1 was not
    xr.testing.assert_identical(resumed, uninterrupted)
    again = further_train(*tiny(), **SETTINGS, store=tmp_path).drop_vars("seconds")
    assert trained == [1, 2]
    xr.testing.assert_identical(again, uninterrupted)
    assert {Path(name).suffix for name in names(tmp_path)} == {".nc", ".json"} and len(names(tmp_path)) == 6


# At once


def test_two_runs_at_once_do_the_work_once(tmp_path, child, uninterrupted):
    folder, diary, start = tmp_path / "store", tmp_path / "diary", PROCESSES.Event()
    runs = [child(train_and_count, folder, diary, name, start) for name in "ab"]
    start.set()
    for run in runs:
        run.join(PATIENCE)
        assert run.exitcode == 0
    lines = diary.read_text().splitlines()
    assert sorted(line[-1] for line in lines if "trains" in line) == ["1", "2", "3"]
    for name in "ab":
        xr.testing.assert_identical(
            xr.load_dataset(tmp_path / f"{name}.nc").astype(uninterrupted.dtypes), uninterrupted
        )
    counting.fault(lost=sum("trains" in line for line in lines) - 3)
    waiting = [line for line in lines if line.startswith("Waiting for")]
    assert waiting and all(str(folder) in line and "another run is computing" in line for line in waiting)
    assert {Path(name).suffix for name in names(folder)} == {".nc", ".json"}


def test_the_waiting_run_takes_over_from_a_killed_one(tmp_path, child):
    path, diary, start, reached = tmp_path / "store", tmp_path / "diary", PROCESSES.Event(), PROCESSES.Event()
    first = child(train_until, "while computing", path, reached)
    assert reached.wait(PATIENCE)
    start.set()
    second = child(train_and_count, path, diary, "b", start, 0.0)
    deadline = time.monotonic() + PATIENCE
    while not (diary.exists() and "Waiting for" in diary.read_text()):
        assert time.monotonic() < deadline and second.is_alive()
        time.sleep(0.05)
    assert "trains" not in diary.read_text()  # it waits, and does not compute seed 1 beside the first
    first.kill()
    second.join(PATIENCE)
    assert second.exitcode == 0
    counting.fault(lost=diary.read_text().count("trains 3"))
    assert [line for line in diary.read_text().splitlines() if "trains" in line] == ["b trains 1", "b trains 2"]


def test_a_lock_is_held_while_its_process_lives(tmp_path, child):
    path = tmp_path / "shard.nc"
    assert not is_running(path)
    reached = PROCESSES.Event()
    holder = child(hold, path, reached)
    assert reached.wait(PATIENCE) and is_running(path)
    (tmp_path / "x.json").write_text("finished")
    message = refusal(set_aside, tmp_path, error=StoreError)
    assert "computing shard there" in message and str(tmp_path) in message
    holder.kill()
    holder.join()
    counting.fault()
    assert lock_of(path).exists() and not is_running(path)


def test_a_failure_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, "name", SPEC, lambda: 1 / 0)
    counting.fault()
    assert names(tmp_path) == []
    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, small), small())


# Left-overs


def test_left_overs_are_removed_when_nobody_can_be_writing_them(tmp_path, child):
    gone = child(time.sleep, 0)
    gone.join()
    path, day = tmp_path / "a.nc", 24 * 3600 + 60
    files = {
        f"a.nc.{gone.pid}.part": False,
        f"a.nc.{gone.pid}.json.part": False,
        f"a.nc.{os.getpid()}.part": True,  # a live process
        f"b.nc.{gone.pid}.part": True,  # another shard: its process may live on another machine
        "of-something-else.part": True,
    }
    for name in files:
        (tmp_path / name).write_text("half")
    (tmp_path / "c.nc.1.part").write_text("half")
    os.utime(tmp_path / "c.nc.1.part", (time.time() - day,) * 2)
    with claimed(path):
        pass
    assert names(tmp_path) == sorted(name for name, stays in files.items() if stays)


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, path, **_):
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "name", SPEC, small)
    counting.fault()
    assert names(tmp_path) == []


# Setting aside, asking, sidecars


def test_set_aside_renames_and_loses_nothing(tmp_path):
    folder = tmp_path / "laptop"
    assert set_aside(folder) is None
    kept = []
    for value in (1.0, 2.0):  # twice within a second
        cached(folder, "name", SPEC, lambda v=value: small() * v)
        kept.append(set_aside(str(folder)))
        assert not folder.exists() and kept[-1].name.startswith("laptop.set-aside-20")
    assert len(set(kept)) == 2
    for value, place in zip((1.0, 2.0), kept, strict=True):
        xr.testing.assert_identical(cached(place, "name", SPEC, never), small() * value)


def test_asking_computes_and_reads_nothing(tmp_path):
    cached(tmp_path, "name", SPEC, small)
    before = names(tmp_path)
    with questions() as asked:
        for name in ("name", "other"):
            with pytest.raises(Missing):
                cached(tmp_path, name, SPEC, never)
    assert [path.name.partition("-")[0] for path in asked] == ["name", "other"]
    assert [path.exists() for path in asked] == [True, False] and names(tmp_path) == before
    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, never), small())


def test_a_sidecar_says_what_computed_it_but_not_whose_machine(tmp_path):
    cached(tmp_path, "name", SPEC, small)
    (path,) = tmp_path.glob("*.nc")
    sidecar = read_sidecar(path)
    assert sidecar["torch_threads"] == torch.get_num_threads() and "core" in sidecar["device"] + "core"
    assert str(os.cpu_count()) in sidecar["device"] or torch.cuda.is_available()
    root = Path(store.__file__).parents[2]
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if git.returncode == 0:
        assert git.stdout.startswith(sidecar["commit"].rstrip("+")) and len(sidecar["commit"]) >= 10
    else:
        assert sidecar["commit"] == "unknown"
    assert socket.gethostname() not in path.with_suffix(".json").read_text()


def test_results_of_earlier_versions_stay_valid(tmp_path):
    """Sidecars without threads and commit, and shards written without locks."""
    import json

    cached(tmp_path, "name", SPEC, small)
    (path,) = tmp_path.glob("*.nc")
    sidecar = {k: v for k, v in read_sidecar(path).items() if k not in ("torch_threads", "commit", "device")}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, never), small())


def test_a_writer_without_locks_is_left_alone(tmp_path):
    """An earlier version that is still at work: its unfinished file stays, and it may finish first."""
    path = tmp_path / f"name-{store.specification_hash(SPEC)}.nc"

    def overtaken():
        store.save(path, SPEC, small())
        part_of(path).write_text("a live process writes here")
        return small()

    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, overtaken), small())
    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, never), small())
