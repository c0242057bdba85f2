"""Shards over worker processes: a real cluster that loses a worker, GPUs, and what is refused with a sentence."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
import xarray as xr
from threadpoolctl import threadpool_info

from fimoda_lib.experiments.panel import PAPER_METHODS, Panel, one_seed
from fimoda_lib.run import command as run
from fimoda_lib.run import kernels, notebooks, spread, workers
from fimoda_lib.run.shards import Shard, in_turns, shards_of
from fimoda_lib.run.workers import SpreadError, UnfitWorker
from fimoda_lib.storage.folders import is_running

ROOT = Path(run.__file__).parents[2]
KINDS = ["final model", "sgd", "adam", "retraining", "scores", "lft, sgd", "lft, adam"]
N_SHARDS = 1 + 2 + 2 + 1 + len(PAPER_METHODS) + 2
# Loaded into a worker, it notes whatever that worker puts into the store.
NOTE_SAVED = """
import os
from fimoda_lib.storage import store

def noting(path, *rest, save=store.save, **more):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(path.name + "\\n")
    return save(path, *rest, **more)

if store.save.__module__ == "fimoda_lib.storage.store":  # this is loaded more than once
    store.save = noting
"""


def wine(folder, kinds=KINDS):
    return shards_of([("wine", kind) for kind in kinds], "smoke", folder)


def results(folder):
    return {path.name: xr.load_dataset(path).drop_vars("seconds", errors="ignore") for path in folder.glob("*.nc")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """All shards, computed in this process on one thread, one after another."""
    folder, threads = tmp_path_factory.mktemp("plain"), torch.get_num_threads()
    torch.set_num_threads(1)
    for shard in wine(folder):
        shard.piece(shard.panel(compute=True))()
    torch.set_num_threads(threads)
    return folder / "smoke"


def test_shards_are_named_each_differently_and_as_the_store_names_them(plain):
    shards = wine(plain.parent)
    assert len(shards) == N_SHARDS == len({shard.label for shard in shards}) == len(set(shards))
    assert "further training, wine, adam, seed 1" in {shard.label for shard in shards}
    names = [shard.path(shard.panel(compute=False)).name for shard in shards]
    assert sorted(names) == sorted(path.name for path in plain.glob("*.nc"))
    assert all(shard.stored for shard in shards)
    assert not any(shard.stored for shard in wine(plain.parent / "elsewhere"))
    spread.spread(shards, scheduler="nothing is missing, so nobody is asked")


def test_one_seed_leaves_the_others_alone(plain):
    panel = Panel("wine", "smoke", results=plain.parent, compute=False)
    golds = [one_seed(panel, seed).gold for seed in panel.settings.seeds]
    assert [gold.seed.values.tolist() for gold in golds] == [[0], [1]] and panel.settings.seeds == (0, 1)
    assert not golds[0].delta.values.tolist() == golds[1].delta.values.tolist()


def test_studies_that_share_pieces_do_not_run_side_by_side():
    work = [(d, k) for d in ("wine", "diabetes") for k in ("fig_lds", "final model", "fig_removal_curves")]
    shards = shards_of([*work, ("wine", "scores"), ("wine", "sgd"), ("wine", "lft, sgd")], "smoke", "nowhere")
    taken = [(s.kind, s.dataset, s.part) for s in in_turns(shards)]
    assert [(kind, dataset) for kind, dataset, _ in taken[:4]] == [
        *(("final model", name) for name in ("wine", "diabetes")), *(("further training", "wine"),) * 2
    ]  # fmt: skip
    studies = [("study", d, f) for f in ("fig_lds", "fig_removal_curves") for d in ("wine", "diabetes")]
    assert taken[4:8] == studies and {kind for kind, *_ in taken[8:]} == {"scores"}
    parts = [part for *_, part in taken[8:]]
    assert parts[:4] == ["lft", "lissa", "cg", "lissa_h"] and len({*parts}) == len(parts)  # the longest first


def test_time_left_is_told_by_what_each_shard_is_expected_to_take():
    work = [("wine", kind) for kind in ("final model", "sgd", "adam", "scores", "lft, sgd", "fig_lds", "fig_limit")]
    shards = shards_of(work, "smoke", "nowhere")
    kinds = {(s.dataset, s.counts_as) for s in shards}
    assert kinds == {("wine", k) for k in ("final model", "sgd", "adam", "scores", "lft, sgd", "studies")}
    expected = {("wine", "sgd"): 10.0, ("wine", "lft, sgd"): 7.0, ("wine", "studies"): 50.0, ("wine", "scores"): 0.0}
    share = spread.shares(shards, expected)
    by_kind = {kind: {share[s] for s in shards if s.counts_as == kind} for _, kind in kinds}
    assert (by_kind["sgd"], by_kind["lft, sgd"], by_kind["studies"]) == ({5.0}, {7.0}, {25.0})  # two seeds, two studies
    assert by_kind["scores"] == by_kind["adam"] == {(5 + 5 + 7 + 25 + 25) / 5}  # as the others, on average
    assert {*spread.shares(shards, {}).values()} == {1.0}


# A cluster of two processes, as a user would start it


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers: (address, the workers' processes, the file in which they note what they saved)."""
    (tmp_path / "note_saved.py").write_text(NOTE_SAVED)
    notes, found = tmp_path / "notes", tmp_path / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTES": str(notes), "OMP_NUM_THREADS": "1"}
    words = {
        "scheduler": ["--port", "0", "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"],
        "worker": ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--preload", str(tmp_path / "note_saved.py")],
    }

    def start(part):
        command = [sys.executable, "-m", "dask", part, "--scheduler-file", str(found), *words[part]]
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    processes = [start("scheduler")]
    try:
        for _ in range(600):
            if found.exists():
                break
            time.sleep(0.1)
        processes += [start("worker"), start("worker")]
        yield json.loads(found.read_text())["address"], processes[1:], notes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def kill_whoever_computes(path, workers, seen):
    """Sends SIGKILL to the worker that holds the lock of a shard, as soon as one does."""
    lock = str(path.with_suffix(".lock"))
    for _ in range(60_000):
        for worker in workers if os.path.exists(lock) else ():  # before, looking would only take the workers' time
            opened = {file.path for file in psutil.Process(worker.pid).open_files()}
            if lock in opened and is_running(path):
                worker.kill()
                worker.wait()
                seen.update(pid=worker.pid, unfinished=not path.exists())
                return
        time.sleep(0.001)


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_shard_it_was_at(plain, cluster, tmp_path):
    address, workers, notes = cluster
    shards = wine(tmp_path)
    (victim,) = (shard for shard in shards if shard.kind == "retraining")
    path, seen = victim.path(victim.panel(compute=False)), {}
    killer = threading.Thread(target=kill_whoever_computes, args=(path, workers, seen), daemon=True)
    killer.start()
    spread.spread(shards, scheduler=address)
    killer.join(10)
    assert seen["unfinished"] and [worker.poll() is None for worker in workers].count(True) == 1
    computed, expected = results(tmp_path / "smoke"), results(plain)
    assert computed.keys() == expected.keys() and len(expected) == N_SHARDS
    for name, result in expected.items():  # bit for bit: the same machine, one thread each
        xr.testing.assert_identical(computed[name], result)
    assert Counter(notes.read_text().split()) == dict.fromkeys(expected, 1)  # each computed to its end once
    assert not [p.name for p in (tmp_path / "smoke").iterdir() if p.suffix in (".part", ".lock")]


# GPUs and cores


@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1", "2"]), ("5,2,7", ["5", "2", "7"])])
def test_gpus_are_taken_in_turn(monkeypatch, visible, names):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert spread.gpus() == names
    taken = [spread.worker_environment(k, 4, spread.gpus())["CUDA_VISIBLE_DEVICES"] for k in range(4)]
    assert taken == [*names, names[0]]
    assert "CUDA_VISIBLE_DEVICES" not in spread.worker_environment(0, 4, [])


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [spread.worker_environment(0, n, [])["OMP_NUM_THREADS"] for n in (1, 3, 8, 20)] == ["8", "2", "1", "1"]


@pytest.mark.parametrize(
    ("arguments", "count", "jobs"),
    [([], 0, 1), ([], 1, 1), ([], 4, 4), (["--jobs", "2"], 4, 2), (["--scheduler", "tcp://x:1"], 4, 1)],
)
def test_without_jobs_there_is_one_process_for_each_gpu(monkeypatch, tmp_path, arguments, count, jobs):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(run, "run", lambda stages, options: taken.append(options.jobs) or 0)
    assert run.main(["--profile", "smoke", "--datasets", "wine", "--results", str(tmp_path), *arguments]) == 0
    assert taken == [jobs]


@pytest.mark.parametrize(
    ("profile", "cores", "jobs"), [("quick", 1, 1), ("quick", 2, 2), ("quick", 64, 4), ("laptop", 2, 2)]
)
def test_without_a_gpu_small_models_take_a_process_for_each_core(monkeypatch, profile, cores, jobs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert run.choose_jobs(run.parser().parse_args(["--profile", profile])) == jobs


@pytest.mark.parametrize("theirs", [None, "3"])
def test_a_notebook_that_runs_alone_has_all_cores_and_shows_its_progress(monkeypatch, tmp_path, theirs):
    """... after two that shared them, of which one showed its own."""
    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", theirs or "")
    if theirs is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    as_dask = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "6640"}
    before = [os.environ.get(name) for name in as_dask]
    monkeypatch.setattr(notebooks, "spread_out", lambda stages, options: os.environ.update(as_dask))
    monkeypatch.setattr(notebooks, "write_report", lambda options: None)
    monkeypatch.setattr(
        notebooks, "execute", lambda item, folder, shown: seen.append((item, shown, os.environ.get("OMP_NUM_THREADS")))
    )
    items = [run.NotebookRun(name, name, {}) for name in "abc"]
    options = run.parser().parse_args(["--jobs", "4", "--results", str(tmp_path)])
    assert run.run([items[:2], items[2:]], options) == 0
    assert sorted(seen, key=lambda found: found[0].label) == [
        (items[0], False, "4"), (items[1], True, "4"), (items[2], True, theirs)
    ]  # fmt: skip
    assert [os.environ.get(name) for name in as_dask] == before


@pytest.mark.parametrize(("gpus", "spreads"), [([], True), (["0"], False), (["0", "1"], True)])
def test_notebooks_on_a_single_gpu_train_for_themselves(monkeypatch, tmp_path, gpus, spreads):
    """... many seeds at once; processes with a seed each would be slower there."""
    seen = []
    monkeypatch.setattr(spread, "gpus", lambda: gpus)
    monkeypatch.setattr(notebooks, "spread_out", lambda stages, options: seen.append(options.jobs))
    monkeypatch.setattr(notebooks, "write_report", lambda options: None)
    assert run.run([], run.parser().parse_args(["--jobs", "3", "--results", str(tmp_path)])) == 0
    assert seen == [3] * spreads


def test_each_worker_of_a_machine_gets_its_gpu_and_its_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with spread.connected(2, None) as client:
        client.wait_for_workers(2)
        found = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]))
    threads = str(spread.threads_each(2))
    assert sorted(found.values()) == [("0", threads), ("1", threads)]


def test_workers_without_a_gpu_are_forked_with_as_many_threads_as_they_may_use(monkeypatch):
    def look():
        blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
        return psutil.Process().parent().ppid(), {library["num_threads"] for library in blas}

    monkeypatch.setattr(kernels, "IMPORTED", ("numpy",))
    with spread.connected(1, None) as client:
        client.wait_for_workers(1)
        (found,) = client.run(look).values()
    assert found == (os.getpid(), {1})  # its parent is the process that forks


# What goes wrong


@pytest.fixture
def here():
    """Address of a scheduler with one worker, both in this process."""
    from distributed import LocalCluster

    with LocalCluster(1, processes=False, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def sentence(caught):
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_a_shard_that_fails_does_not_stop_the_others(here, tmp_path, monkeypatch, capsys):
    def bad(self):
        raise ValueError("The data is bad; mend it.")

    monkeypatch.setattr(Panel, "retrained", property(bad))
    shards = wine(tmp_path, ["final model", "sgd"]) + wine(tmp_path, ["retraining"])
    monkeypatch.setattr(Shard, "stored", False)
    with pytest.raises(SpreadError) as caught:
        spread.spread(shards, scheduler=here)
    assert sentence(caught) == (
        "1 of 4 shards failed, the first (retraining, wine, seed 0) with: The data is bad; mend it."
    )
    assert {p.name[:12] for p in (tmp_path / "smoke").glob("*.nc")} == {"final-wine-3", "further-wine"}
    last = capsys.readouterr().err.split("\r")[-1]
    assert "shards 3/4: 100%" in last and "00:00 left" in last  # the failed one is no longer waited for


def test_without_a_final_model_nothing_that_needs_it_is_tried(here, tmp_path, monkeypatch):
    def bad(self):
        raise RuntimeError("It diverged.")

    monkeypatch.setattr(Shard, "stored", False)
    monkeypatch.setattr(Shard, "path", lambda self, panel: Path(self.label))
    monkeypatch.setattr(Panel, "params", property(bad))
    with pytest.raises(SpreadError) as caught:
        spread.spread(wine(tmp_path), scheduler=here)
    expected = f"1 of {N_SHARDS} shards failed, the first (final model, wine) with: RuntimeError: It diverged."
    assert "retraining" not in sentence(caught) and sentence(caught) == expected


def test_a_worker_that_names_a_shard_differently_is_refused(here, tmp_path, monkeypatch):
    answer = workers.Answer("final-wine-of-other-data.nc")
    monkeypatch.setattr(spread, "compute_shard", lambda shard, sign, code: answer)
    with pytest.raises(UnfitWorker) as caught:
        spread.spread(wine(tmp_path, ["final model"]), scheduler=here)
    assert "made final-wine-of-other-data.nc where this machine looks for final-wine-" in sentence(caught)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "http://127.0.0.1:9"])
def test_a_scheduler_that_is_not_there(address, tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "CONNECT_SECONDS", 0.3)
    with pytest.raises(SpreadError) as caught:
        spread.spread(wine(tmp_path, ["final model"]), scheduler=address)
    assert f"no scheduler answers at {address!r}" in sentence(caught)
    assert not [*tmp_path.rglob("*.part")]


def test_the_command_line_says_it_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spread, "CONNECT_SECONDS", 0.3)
    words = ["--profile", "smoke", "--datasets", "wine", "--results", str(tmp_path), "--scheduler", "tcp://127.0.0.1:9"]
    assert run.main(words) == 1
    assert "run_all.sh: --scheduler: no scheduler answers at 'tcp://127.0.0.1:9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threads", "sign", "code", "message"),
    [
        (1, "sign", ("0123456789abcdef", "abc"), "has other code in fimoda_lib"),
        (1, "elsewhere/sign", None, "does not see the results folder"),
        (8, "sign", None, "has 8 threads"),
    ],
)
def test_a_worker_that_does_not_fit(threads, sign, code, message, tmp_path):
    (tmp_path / "sign").touch()
    workers.check_worker("tcp://far:1", 1, str(tmp_path / "sign"), workers.this_code())
    with pytest.raises(UnfitWorker) as caught:
        workers.check_worker("tcp://far:1", threads, str(tmp_path / sign), code or workers.this_code())
    assert message in sentence(caught) and "Worker tcp://far:1" in sentence(caught)


def test_a_worker_with_two_threads_is_refused_by_a_run(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address=None) as cluster:
        with pytest.raises(UnfitWorker, match="has 2 threads"):
            spread.spread(wine(tmp_path, ["final model"]), scheduler=cluster.scheduler_address)
    assert not [*(tmp_path / "smoke").iterdir()]


def test_a_shard_that_kills_its_workers_and_a_lost_scheduler_are_said():
    from distributed import KilledWorker

    class Future:
        def __init__(self, status, error=None):
            self.status, self.exception = status, lambda: error

    shard = wine("x", ["final model"])[0]
    killed = spread.why_it_failed(shard, Future("error", KilledWorker("key", None, allowed_failures=3)))
    assert killed.startswith("the 4 workers that tried it were all killed") and killed.endswith(".")
    with pytest.raises(SpreadError, match="The scheduler is gone"):
        spread.why_it_failed(shard, Future("cancelled"))
