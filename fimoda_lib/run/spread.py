"""Shards of the work over worker processes, on this machine or on several, through dask.distributed.

A shard is what the store keeps as one file. A worker computes it into the results folder, which all workers share, and
answers with the file's name only; so a worker that dies costs no more than the shard it was computing, which another
one begins again. dask is imported where workers are wanted, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..storage.folders import check_writable, part_of
from ..storage.provenance import reset_peak_memory
from ..storage.store import Missing
from .shards import Shard, in_turns
from .workers import SpreadError, UnfitWorker, compute_shard, this_code

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

CONNECT_SECONDS = 20  # a scheduler that has not answered by then is not there


def gpus() -> list[str]:
    """This machine's GPUs, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]


def threads_each(jobs: int) -> int:
    """How many cores each of so many processes gets, so that they share the machine instead of fighting for it."""
    return max((os.cpu_count() or 1) // jobs, 1)


def worker_environment(number: int, jobs: int, gpus: list[str]) -> dict[str, str]:
    """The environment variables of worker `number` of `jobs`: its share of the cores, and its GPU, taken in turn."""
    gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    return {"OMP_NUM_THREADS": str(threads_each(jobs)), "TQDM_DELAY": "1000000000", **gpu}


def _own_cluster(jobs: int) -> SpecCluster:
    """Worker processes of this machine, each with an environment of its own; one that dies is started again."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    from .kernels import warm_up

    here = {"host": "127.0.0.1", "port": 0}
    quiet = {"silence_logs": logging.WARNING}
    one = {"nthreads": 1, "memory_limit": None, **here, **quiet}
    found = gpus()
    workers = {k: {"cls": Nanny, "options": {**one, "env": worker_environment(k, jobs, found)}} for k in range(jobs)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", **here}}
    # Nobody reads the stacks that workers look at a hundred times a second, nor what processes note of themselves fifty
    # times a second: a tenth of a core, and slower small steps. Workers take this along.
    unread = {"distributed.worker.profile.enabled": False}
    unread |= {f"distributed.admin.{what}.interval": "10s" for what in ("tick", "system-monitor")}
    # Forked as kernels are, they have their imports done, six seconds of a core each. CUDA had better begin afresh;
    # a worker that is started again does.
    if not found:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's: once it is loaded, workers cannot change it
        unread |= {"distributed.worker.multiprocessing-method": "forkserver"} if warm_up() else {}
    with dask.config.set(unread):
        return SpecCluster(scheduler=scheduler, workers=workers, **quiet)


@contextlib.contextmanager
def connected(jobs: int, scheduler: str | None) -> Iterator[Client]:
    """A client of the scheduler at that address, or of `jobs` worker processes of this machine, ended afterwards."""
    from distributed import Client

    if scheduler is None:
        with _own_cluster(jobs) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise SpreadError(
            f"--scheduler: no scheduler answers at {scheduler!r} ({type(error).__name__}); start one with 'dask "
            "scheduler' and give the address that it prints, tcp://host:port."
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            print(f"Waiting for a worker; start some with: dask worker {scheduler} --nthreads 1", flush=True)
        client.wait_for_workers(1)
        yield client


@contextlib.contextmanager
def signed(folder: Path) -> Iterator[str]:
    """A file in the results folder, there for as long as this lasts, by which workers know the folder."""
    check_writable(folder / "sign")
    sign = part_of(folder / f"shared-{uuid.uuid4().hex}")
    sign.touch()
    try:
        yield str(sign)
    finally:
        sign.unlink(missing_ok=True)


def spread(
    shards: list[Shard],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    expected: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> None:
    """Computes all shards that the store lacks; the final model of a data set before what depends on it.

    Args:
        shards: of one profile and one results folder.
        jobs: number of worker processes on this machine; not used with a scheduler.
        scheduler: address of a running dask scheduler.
        expected: (data set, kind) -> seconds of all its missing shards: what time is left is told by these.

    Raises:
        SpreadError: a worker or the scheduler cannot be used; or, after everything else is done, a shard failed.
    """
    looked_at = tqdm(shards, unit="shard", desc="looking for stored results", leave=False, disable=None)
    missing = in_turns(s for s in looked_at if not s.stored)
    if not missing:
        return
    folder = Path(missing[0].results) / missing[0].profile
    reset_peak_memory()  # gives back what looking at all data sets has freed: workers need it
    with signed(folder) as sign, connected(jobs, scheduler) as client:
        failed = _run(client, missing, sign, len(shards), shares(missing, expected))
    if failed:
        label, reason = next(iter(failed.items()))
        raise SpreadError(f"{len(failed)} of {len(missing)} shards failed, the first ({label}) with: {reason}")


def shares(missing: list[Shard], expected: Mapping[tuple[str, str], float]) -> dict[Shard, float]:
    """How much each shard is of the work: seconds where these are known, else as much as the others on average."""
    kinds = {shard: (shard.dataset, shard.counts_as) for shard in missing}
    number = Counter(kinds.values())
    known = {shard: expected.get(kind, 0) / number[kind] for shard, kind in kinds.items()}
    told = [seconds for seconds in known.values() if seconds > 0]
    usual = sum(told) / len(told) if told else 1.0
    return {shard: seconds if seconds > 0 else usual for shard, seconds in known.items()}


def _run(client: Client, missing: list[Shard], sign: str, total: int, share: Mapping[Shard, float]) -> dict[str, str]:
    """Has the workers compute the missing shards; returns why some failed, by their labels."""
    from distributed import as_completed

    to_train = {s.dataset for s in missing if s.kind == "final model"}
    later = [s for s in missing if s.needs_final_model and s.dataset in to_train]
    ready = deque(s for s in missing if s not in later)
    waiting, failed = {}, {}

    def submit() -> list:
        """As many as there are workers without one: handed out before, a short shard would wait for a long one."""
        free = max(sum(client.nthreads().values()) - len(waiting), 0 if waiting else 1)
        some = [ready.popleft() for _ in range(min(free, len(ready)))]
        futures = client.map(
            compute_shard, some, sign=sign, code=this_code(), pure=False, key=[f"{s.label}-{sign}" for s in some]
        )
        waiting.update(zip(futures, some, strict=True))
        return futures

    finished = total - len(missing)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
    with tqdm(total=sum(share.values()), desc=f"shards {finished}/{total}", bar_format=layout, smoothing=0) as bar:
        done = as_completed(submit(), loop=client.loop, raise_errors=False)
        for future in done:
            shard = waiting.pop(future)
            follow = [s for s in later if shard.kind == "final model" and s.dataset == shard.dataset]
            if reason := why_it_failed(shard, future):
                failed[shard.label] = reason
                bar.total -= share[shard] + sum(share[s] for s in follow)
            else:
                finished += 1
                bar.set_description_str(f"shards {finished}/{total}", refresh=False)
                bar.update(share[shard])
                ready = deque(in_turns([*ready, *follow]))
            done.update(submit())
    return failed


def why_it_failed(shard: Shard, future: Any) -> str | None:
    """Why a shard is not in the store, though a worker is through with it; None if it is there.

    Raises:
        SpreadError: what is wrong is wrong for all shards.
    """
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise SpreadError("The scheduler is gone; finished shards are kept, and the same command goes on from there.")
    error = future.exception()
    if isinstance(error, KilledWorker):
        return (
            f"the {error.allowed_failures + 1} workers that tried it were all killed; memory may be short, so try "
            "fewer at once."
        )
    if error is not None:
        raise UnfitWorker(
            f"A worker cannot take {shard.label} ({type(error).__name__}: {error}); start the scheduler and the "
            "workers with the Python environment of this project."
        )
    answer = future.result()
    if answer.unfit:
        raise UnfitWorker(answer.unfit)
    if answer.failed:
        return answer.failed
    try:
        expected = shard.path(shard.panel(compute=False)).name
    except Missing:  # a network file system may show a new final model a little later
        return None
    if answer.file != expected:
        raise UnfitWorker(
            f"A worker made {answer.file} where this machine looks for {expected} ({shard.label}): its data or "
            "its packages are not the same; give both the same --data and the versions in pyproject.toml."
        )
    return None
