"""Shards of the work over worker processes, on this machine or on several, through dask.distributed.

A shard is what the store keeps as one file. A worker computes it into the results folder, which all workers share, and
answers with the file's name only; so a worker that dies costs no more than the shard it was computing, which another
one begins again. dask is imported where workers are wanted, and nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..experiments.panel import Panel, one_seed
from ..storage.folders import check_writable, part_of
from ..storage.provenance import code_version
from ..storage.store import Missing, asked
from ..tasks import Task
from ..training.ensembles import OPTIMIZERS

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

CONNECT_SECONDS = 20  # a scheduler that has not answered by then is not there
KINDS = ("final model", "retraining", "further training", "scores")  # in this order: long shards before short ones


class SpreadError(RuntimeError):
    """Shards that could not be computed; one sentence says why and what to do."""


class UnfitWorker(SpreadError):
    """A worker that would compute something else, or put it elsewhere."""


@dataclass(frozen=True)
class Shard:
    """One file of the store, described in a few words that mean the same on every machine.

    Args:
        kind: one of `KINDS`.
        part: the seed of further training, the method of scores; None for the others.
    """

    dataset: str
    profile: str
    results: str
    kind: str
    optimizer: str = "sgd"
    part: int | str | None = None
    data_dir: str | None = None

    @property
    def label(self) -> str:
        """Names the shard for people, and within its profile like no other."""
        follows = self.kind == "further training" or self.part == "lft"
        part = [] if self.part is None else [f"seed {self.part}" if self.kind == "further training" else self.part]
        return ", ".join([self.kind, self.dataset, *([self.optimizer] if follows else []), *part])

    @property
    def needs_final_model(self) -> bool:
        return self.kind in ("further training", "scores")

    def shown(self, compute: bool) -> Panel:
        shown = Panel(self.dataset, self.profile, self.optimizer, self.results, self.data_dir, compute)
        vars(shown)["task"] = _task(self.dataset, self.profile, self.results, self.data_dir)
        return shown

    def piece(self, shown: Panel) -> Callable[[], Any]:
        """What loads the shard, or computes and stores it."""
        return {
            "final model": lambda: shown.params,
            "retraining": lambda: shown.retrained,
            "further training": lambda: one_seed(shown, self.part).gold,
            "scores": lambda: shown.scores(self.part),
        }[self.kind]

    def path(self, shown: Panel) -> Path:
        """The shard's file.

        Raises:
            Missing: its name depends on a final model that is not there, and is not to be computed.
        """
        if self.needs_final_model:
            _ = shown.params  # read now: inside `asked` nothing is
        return asked(self.piece(shown))

    @property
    def stored(self) -> bool:
        try:
            return self.path(self.shown(compute=False)).exists()
        except Missing:
            return False


@lru_cache(maxsize=4)
def _task(dataset: str, profile: str, results: str, data_dir: str | None) -> Task:
    return Panel(dataset, profile, results=results, data_dir=data_dir).task


def shards_of(
    work: Iterable[tuple[str, str]], profile: str, results: Path | str, data_dir: Path | str | None = None
) -> list[Shard]:
    """The shards behind a list of (data set, kind), the kinds being those of `status.lines` and "lft, <optimizer>"."""
    where = {"profile": profile, "results": str(Path(results).resolve())}
    where["data_dir"] = None if data_dir is None else str(Path(data_dir).resolve())
    found = []
    for dataset, kind in work:
        if kind in OPTIMIZERS:
            shown = Shard(dataset, kind="further training", optimizer=kind, **where).shown(compute=False)
            found += [
                Shard(dataset, kind="further training", optimizer=kind, part=seed, **where)
                for seed in shown.settings.seeds
            ]
        elif kind == "scores":
            shown = Shard(dataset, kind="scores", **where).shown(compute=False)
            found += [Shard(dataset, kind="scores", part=method, **where) for method in shown.methods]
        elif kind.startswith("lft, "):
            found.append(Shard(dataset, kind="scores", optimizer=kind.removeprefix("lft, "), part="lft", **where))
        else:
            found.append(Shard(dataset, kind=kind, **where))
    return found


# In a worker


@dataclass(frozen=True)
class Answer:
    """What a worker says of a shard: its file's name, or why it failed, or why the worker will not do. Only words:
    exceptions bring their tracebacks along, which not all can be sent."""

    file: str = ""
    failed: str = ""
    unfit: str = ""


def compute_shard(shard: Shard, sign: str, code: tuple[str, str]) -> Answer:
    """Computes a shard unless the store holds it.

    Args:
        sign: a file that the starting machine has put into the results folder.
        code: the starting machine's `this_code()`.
    """
    from distributed import get_worker

    try:
        check_worker(get_worker().address, get_worker().state.nthreads, sign, code)
        if threads := os.environ.get("OMP_NUM_THREADS"):  # it may have been set after PyTorch had looked
            torch.set_num_threads(int(threads))
        shown = shard.shown(compute=True)
        path = shard.path(shown)
        forget_compiled(shard.dataset, shard.kind, shard.optimizer)
        shard.piece(shown)()
        return Answer(file=path.name)
    except UnfitWorker as reason:
        return Answer(unfit=str(reason))
    except Exception as error:  # whatever is wrong with this shard, the others go on
        return Answer(failed=str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


def check_worker(address: str, threads: int, sign: str, code: tuple[str, str]) -> None:
    """Raises UnfitWorker unless this worker has the same code, sees the results folder and has one thread."""
    if code[0] != this_code()[0]:
        raise UnfitWorker(
            f"Worker {address} has other code in fimoda_lib (commit {this_code()[1]}) than the machine that started "
            f"this run (commit {code[1]}); bring both to the same version and start the worker anew."
        )
    if not os.path.exists(sign):
        raise UnfitWorker(
            f"Worker {address} does not see the results folder {os.path.dirname(sign)} as the machine that started "
            "this run does; give --results a folder that all machines share under the same path."
        )
    if threads != 1:
        raise UnfitWorker(
            f"Worker {address} has {threads} threads, and random numbers of shards in one process would mix; start it "
            "with --nthreads 1 (and --nworkers for several)."
        )


@cache
def this_code() -> tuple[str, str]:
    """A hash of the library's modules, and for people the commit."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:16], code_version()


@lru_cache(maxsize=1)
def forget_compiled(dataset: str, kind: str, optimizer: str) -> None:
    """Drops what `torch.compile` made, when other shards begin; it gives up silently after some dozens of kernels."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


# On the machine that starts the run


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
    from distributed import Nanny, Scheduler, SpecCluster

    here = {"host": "127.0.0.1", "port": 0}
    quiet = {"silence_logs": logging.WARNING}
    one = {"nthreads": 1, "memory_limit": None, **here, **quiet}
    found = gpus()
    workers = {k: {"cls": Nanny, "options": {**one, "env": worker_environment(k, jobs, found)}} for k in range(jobs)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", **here}}
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


def spread(shards: list[Shard], *, jobs: int = 1, scheduler: str | None = None) -> None:
    """Computes all shards that the store lacks; the final model of a data set before what depends on it.

    Args:
        shards: of one profile and one results folder.
        jobs: number of worker processes on this machine; not used with a scheduler.
        scheduler: address of a running dask scheduler.

    Raises:
        SpreadError: a worker or the scheduler cannot be used; or, after everything else is done, a shard failed.
    """
    missing = sorted((s for s in shards if not s.stored), key=lambda s: KINDS.index(s.kind))
    if not missing:
        return
    folder = Path(missing[0].results) / missing[0].profile
    with signed(folder) as sign, connected(jobs, scheduler) as client:
        failed = _run(client, missing, sign, len(shards))
    if failed:
        label, reason = next(iter(failed.items()))
        raise SpreadError(f"{len(failed)} of {len(missing)} shards failed, the first ({label}) with: {reason}")


def _run(client: Client, missing: list[Shard], sign: str, total: int) -> dict[str, str]:
    """Has the workers compute the missing shards; returns why some failed, by their labels."""
    from distributed import as_completed

    to_train = {s.dataset for s in missing if s.kind == "final model"}
    later = [s for s in missing if s.needs_final_model and s.dataset in to_train]
    waiting, failed = {}, {}

    def submit(some: list[Shard]) -> list:
        futures = client.map(
            compute_shard, some, sign=sign, code=this_code(), pure=False, key=[f"{s.label}-{sign}" for s in some]
        )
        waiting.update(zip(futures, some, strict=True))
        return futures

    with tqdm(total=total, initial=total - len(missing), unit="shard", desc="shards", smoothing=0) as bar:
        done = as_completed(submit([s for s in missing if s not in later]), loop=client.loop, raise_errors=False)
        for future in done:
            shard = waiting.pop(future)
            follow = [s for s in later if shard.kind == "final model" and s.dataset == shard.dataset]
            if reason := why_it_failed(shard, future):
                failed[shard.label] = reason
                bar.total -= len(follow)
            else:
                bar.update()
                if follow:
                    done.update(submit(follow))
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
        expected = shard.path(shard.shown(compute=False)).name
    except Missing:  # a network file system may show a new final model a little later
        return None
    if answer.file != expected:
        raise UnfitWorker(
            f"A worker made {answer.file} where this machine looks for {expected} ({shard.label}): its data or "
            "its packages are not the same; give both the same --data and the versions in pyproject.toml."
        )
    return None
