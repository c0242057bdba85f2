"""Results on disk: one NetCDF file per finished piece of work, found again by a hash of its whole specification.

A shard is written under a temporary name and renamed, so that it is there whole or not at all. Beside it lies a JSON
sidecar that a person can read: the specification, the file's SHA-256, versions, duration. A shard that does not match
its sidecar, or whose sidecar does not match the specification asked for, is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_flatten

FORMAT = 1  # part of every specification: raise it when the meaning of stored numbers changes


class StoreError(ValueError):
    """A result file that cannot be trusted; the message names it and says what to do."""


class Missing(LookupError):
    """A result that has not been computed yet, where computing was not allowed."""


def fingerprint(*trees: Any) -> str:
    """16 hexadecimal digits that change when any tensor in the given pytrees changes in value, shape or type."""
    digest = hashlib.sha256()
    for tree in trees:
        leaves, structure = tree_flatten(tree)
        digest.update(str(structure).encode())
        for leaf in leaves:
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
) -> xr.Dataset:
    """The stored result of `spec`, or `compute()`, which is then stored.

    Args:
        folder: where results live, created if missing; None stores nothing.
        name: the readable beginning of the file name.
        spec: everything that determines the result, as JSON values; tensors by their `fingerprint`.
        compute_missing: whether to compute a result that is not there.

    Raises:
        Missing: it is not there, and is not to be computed.
        StoreError: the stored file is damaged, or belongs to another specification, or cannot be written.
    """
    if folder is None:
        return compute()
    path = Path(folder) / f"{name}-{specification_hash(spec)}.nc"
    if path.exists():
        return load(path, spec)
    if not compute_missing:
        raise Missing(f"Result {path} has not been computed yet.")
    started = time.perf_counter()
    dataset = compute()
    save(path, spec, dataset, seconds=time.perf_counter() - started)
    return dataset


def save(path: Path, spec: Mapping[str, Any], dataset: xr.Dataset, *, seconds: float = float("nan")) -> None:
    """Writes a shard and its sidecar; the shard's final name appears last, so a shard without sidecar never exists."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_netcdf(temporary, engine="h5netcdf")
        sidecar = {"specification": {**spec, "format": FORMAT}, "sha256": _sha256(temporary), **provenance(seconds)}
        note = temporary.with_suffix(".json.part")
        note.write_text(_json(sidecar, indent=1))
        os.replace(note, path.with_suffix(".json"))
        os.replace(temporary, path)
    except OSError as error:
        for left_over in (temporary, temporary.with_suffix(".json.part")):
            with contextlib.suppress(OSError):
                left_over.unlink()
        raise StoreError(f"Cannot write the result {path} ({error}); free space or choose another folder.") from error


def load(path: Path, spec: Mapping[str, Any]) -> xr.Dataset:
    """Reads a shard after checking it against its sidecar and the specification asked for."""
    advice = "move the file away to have it computed again"
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        stored, sha256 = sidecar["specification"], sidecar["sha256"]
    except FileNotFoundError:
        raise StoreError(f"Result {path} has no sidecar {path.with_suffix('.json').name}; {advice}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"The sidecar of result {path} cannot be read ({error}); {advice}.") from error
    wanted = json.loads(_json({**spec, "format": FORMAT}))
    if stored != wanted:
        keys = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
        raise StoreError(f"Result {path} belongs to another specification (it differs in {', '.join(keys)}); {advice}.")
    if _sha256(path) != sha256:
        raise StoreError(f"Result {path} is damaged: its SHA-256 is not the one in its sidecar; {advice}.")
    return xr.load_dataset(path, engine="h5netcdf")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of a shard: specification, sha256, versions, duration."""
    return json.loads(path.with_suffix(".json").read_text())


def provenance(seconds: float) -> dict[str, Any]:
    """Versions, machine, duration and peak memory, for sidecars and figures."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "seconds": round(seconds, 3),
        "peak_memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "device": device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
