"""What a worker process does: computes a shard into the shared results folder, and answers in words."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from functools import cache, lru_cache, partialmethod
from pathlib import Path

import torch
from tqdm import tqdm

from ..storage.provenance import code_version, reset_peak_memory
from .shards import Shard


class SpreadError(RuntimeError):
    """Shards that could not be computed; one sentence says why and what to do."""


class UnfitWorker(SpreadError):
    """A worker that would compute something else, or put it elsewhere."""


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
        if delay := os.environ.get("TQDM_DELAY"):  # likewise
            delay_bars(float(delay))
        panel = shard.panel(compute=True)
        path = shard.path(panel)
        forget_compiled(shard.dataset, shard.kind, shard.optimizer)
        reset_peak_memory()  # its sidecar says what this shard took
        shard.piece(panel)()
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


@cache
def delay_bars(seconds: float) -> None:
    """Has progress bars appear after so many seconds."""
    tqdm.__init__ = partialmethod(tqdm.__init__, delay=seconds)


@lru_cache(maxsize=1)
def forget_compiled(dataset: str, kind: str, optimizer: str) -> None:
    """Drops what `torch.compile` made, when other shards begin; it gives up silently after some dozens of kernels."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
