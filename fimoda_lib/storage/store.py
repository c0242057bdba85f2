"""Results on disk: one NetCDF file per finished piece of work, found again by a hash of its whole specification.

A shard is written under a temporary name and renamed, so that it is there whole or not at all. Beside it lies a JSON
sidecar that a person can read: the specification, the file's SHA-256, versions, duration. A shard that does not match
its sidecar, or whose sidecar does not match the specification asked for, is refused by name. Several runs may share a
folder: a shard is computed by one of them, and the others wait for it (`folders`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..checks import reason, shown
from .folders import StoreError, claimed, part_of, unwritable
from .provenance import provenance

ADVICE = "move the file away to have it computed again"
SMALL = 2**20  # bytes of a shard that is kept in memory
SETTLED = 2_000_000_000  # nanoseconds: a file that was changed since may change again without a sign in its times
FORMAT = 1  # part of every specification: raise it when the meaning of stored numbers changes

_asked: ContextVar[list[Path] | None] = ContextVar("asked", default=None)


class Missing(LookupError):
    """A result that has not been computed yet, where computing was not allowed."""


@contextlib.contextmanager
def questions() -> Iterator[list[Path]]:
    """Inside, `cached` neither computes nor loads: it notes which shard it was asked for and raises `Missing`."""
    token = _asked.set([])
    try:
        yield _asked.get()
    finally:
        _asked.reset(token)


def asked(piece: Callable[[], Any]) -> Path:
    """The file of the first stored result that `piece` asks for."""
    with questions() as paths:
        try:
            piece()
        except Missing:
            pass
    return paths[0]


def of_seeds(folder: Path | str, name: str, specification: str, seeds: Sequence[int]) -> list[Path]:
    """The files of stored results that differ in their seed only, in the order of the seeds; those that are there.

    Args:
        name: what their names begin with, up to the seed.
        specification: hash of what they have in common.
    """
    found = []
    for seed in seeds:
        for path in sorted(Path(folder).glob(f"{glob.escape(name)}{seed}-*.nc")):
            common = {k: v for k, v in read_sidecar(path)["specification"].items() if k != "seed"}
            found += [path] if specification_hash(common) == specification else []
    return found


def fingerprint(*trees: Any) -> str:
    """16 hexadecimal digits that change when any tensor in the given pytrees changes in value, shape or type."""
    digest = hashlib.sha256()
    for tree in trees:
        leaves, structure = tree_flatten(tree)
        digest.update(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16:  # which NumPy does not have
                leaf = leaf.view(torch.int16)
            array = leaf.detach().cpu().contiguous().numpy() if isinstance(leaf, Tensor) else np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def specification_hash(spec: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the specification's canonical JSON."""
    return hashlib.sha256(_json({**spec, "format": FORMAT}).encode()).hexdigest()[:16]


def cached(
    folder: Path | str | None,
    name: str,
    spec: Mapping[str, Any],
    compute: Callable[[], xr.Dataset],
    *,
    compute_missing: bool = True,
    took: Callable[[xr.Dataset], float] | None = None,
) -> xr.Dataset:
    """The stored result of `spec`, or `compute()`, which is then stored.

    While one run computes a result, any other that asks for it waits, and then loads it.

    Args:
        folder: where results live, created if missing; None stores nothing.
        name: the readable beginning of the file name.
        spec: everything that determines the result, as JSON values; tensors by their `fingerprint`.
        compute_missing: whether to compute a result that is not there.
        took: the seconds that a result took, where that is not how long `compute` did: results computed together.

    Raises:
        Missing: it is not there, and is not to be computed.
        StoreError: the stored file is damaged or belongs to another specification; or nothing can be written in the
            folder, which is noticed before anything is computed.
    """
    if folder is None:
        return compute()
    if not isinstance(folder, str | Path) or "\0" in str(folder):
        raise ValueError(f"store: got {shown(folder)}, expected the path of a folder, or None.")
    path = shard_path(folder, name, spec)
    if _asked.get() is not None:
        _asked.get().append(path)
        raise Missing(f"Result {path} was asked for by name only.")
    if os.path.exists(path):  # unlike Path.exists, False where the folder cannot be searched
        return load(path, spec)
    if not compute_missing:
        raise Missing(f"Result {path} has not been computed yet.")
    with claimed(path):
        if path.exists():  # another run has finished it in the meantime
            return load(path, spec)
        started = time.perf_counter()
        dataset = compute()
        seconds = time.perf_counter() - started
        save(path, spec, dataset, seconds=took(dataset) if took else seconds)
    return dataset


def shard_path(folder: Path | str, name: str, spec: Mapping[str, Any]) -> Path:
    """Where `cached` keeps the result of a specification."""
    return Path(folder) / f"{name}-{specification_hash(spec)}.nc"


def is_stored(folder: Path | str | None, name: str, spec: Mapping[str, Any]) -> bool:
    """Whether `cached` would find the result of a specification."""
    return folder is not None and os.path.exists(shard_path(folder, name, spec))


def save(path: Path, spec: Mapping[str, Any], dataset: xr.Dataset, *, seconds: float = float("nan")) -> None:
    """Writes a shard and its sidecar; the shard's final name appears last, so a shard without sidecar never exists."""
    import dask  # as xarray does, when it writes

    temporary = part_of(path)
    note = temporary.with_suffix(".json.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with dask.config.set(scheduler="synchronous"):  # else xarray writes under a lock of the scheduler that is set
            dataset.to_netcdf(temporary, engine="h5netcdf")
        sidecar = {"specification": {**spec, "format": FORMAT}, "sha256": _sha256(temporary), **provenance(seconds)}
        note.write_text(_json(sidecar, indent=1))
        for part in (note, temporary):
            _flush(part)
        os.replace(note, path.with_suffix(".json"))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: HDF5, when it cannot flush
        raise unwritable(path, error) from error
    finally:
        for left_over in (temporary, note):
            with contextlib.suppress(OSError):
                left_over.unlink()


def load(path: Path, spec: Mapping[str, Any]) -> xr.Dataset:
    """Reads a shard after checking it against its sidecar and the specification asked for."""
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        stored, sha256 = dict(sidecar["specification"]), sidecar["sha256"]
    except FileNotFoundError:
        raise StoreError(f"Result {path} has no sidecar {path.with_suffix('.json').name}; {ADVICE}.") from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise StoreError(f"The sidecar of result {path} cannot be read ({reason(error)}); {ADVICE}.") from error
    wanted = json.loads(_json({**spec, "format": FORMAT}))
    if stored != wanted:
        keys = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
        raise StoreError(f"Result {path} belongs to another specification (it differs in {', '.join(keys)}); {ADVICE}.")
    try:
        status = os.stat(path)
        file = (path, sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if status.st_size > SMALL or time.time_ns() - status.st_mtime_ns < SETTLED:
            return _read(*file)
        return _read_once(*file).copy(deep=True)  # callers may write into theirs
    except StoreError:
        raise
    except Exception as error:  # HDF5 answers a file that is none with errors of many types
        raise StoreError(f"Result {path} cannot be read ({reason(error)}); {ADVICE}.") from error


def _read(path: Path, sha256: str, *file: int) -> xr.Dataset:
    """The content of a shard, after checking it; `file` tells it from another of the same name."""
    if _sha256(path) != sha256:
        raise StoreError(f"Result {path} is damaged: its SHA-256 is not the one in its sidecar; {ADVICE}.")
    return xr.load_dataset(path, engine="h5netcdf")


_read_once = lru_cache(maxsize=512)(_read)  # a figure asks for the same shards as the one before


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of a shard: specification, sha256, versions, duration."""
    return json.loads(path.with_suffix(".json").read_text())


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent)


def _flush(path: Path) -> None:
    """Has the system write a file to the disk, so that a power cut cannot leave its name without its content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
