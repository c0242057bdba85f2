"""A results folder that several runs share and any of them may be killed in: locks, left-overs, setting aside.

Each shard has a lock while it is computed. The kernel holds it (flock) and frees it when the process ends, however it
ends, so that a killed run never blocks another. What a killed run was writing carries its process number and is
removed by the next run that needs the same shard.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PROBE_BYTES = 2**20  # what is written to see that a folder takes results: about the size of a small shard
QUIET_SECONDS = 1.0  # waiting is mentioned after this long
STALE_SECONDS = 24 * 3600  # nobody writes a shard for so long: the process number belongs to another process by now


ROOT = Path(__file__).resolve().parents[2]


class StoreError(ValueError):
    """A result that cannot be trusted or not be written; the message names it and says what to do."""


def in_project(path: Path | str) -> Path:
    """The full path of what lies in the project, so that a notebook finds it wherever it is started.

    A full path stays as it is; a library that is installed without the project around takes the current folder.
    """
    return (ROOT if (ROOT / "notebooks").is_dir() else Path.cwd()) / path


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Holds the lock of a shard, waiting for any other run that holds it; what killed runs left of it is removed.

    Raises:
        StoreError: nothing can be written in the shard's folder. This is noticed here, before any work.
    """
    check_writable(path)
    lock = _acquired(path)
    try:
        remove_left_overs(path)
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: whoever has it open sees that it is gone and asks anew
            lock_of(path).unlink()
        lock.release()


def _acquired(path: Path) -> FileLock:
    lock = FileLock(lock_of(path))
    try:
        try:
            lock.acquire(timeout=QUIET_SECONDS)
        except Timeout:
            log.warning("Waiting for %s, which another run is computing; its result will be used here.", path)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise unwritable(path, error) from error
    return lock


def lock_of(path: Path) -> Path:
    """The lock file of a shard. It may lie there without being held."""
    return path.with_suffix(".lock")


def is_running(path: Path) -> bool:
    """Whether some process holds the lock of a shard now."""
    if not lock_of(path).exists():
        return False
    try:
        with FileLock(lock_of(path)).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that this user cannot write to: the lock cannot be tried
        return False


def check_writable(path: Path) -> None:
    """Raises StoreError unless a file can be written beside `path`; makes the folder if it is missing."""
    probe = path.with_name(f"probe.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def unwritable(path: Path, error: Exception) -> StoreError:
    """What to say when a shard cannot be written."""
    told = re.search(r"error message = '(.+?)'", str(error))  # HDF5 wraps the system's words in many of its own
    reason = told[1] if told else getattr(error, "strerror", None) or str(error)
    return StoreError(f"Cannot write the result {path} ({reason}); free space, or choose a folder that can be written.")


def part_of(path: Path) -> Path:
    """Where this process writes a shard before it gets its name."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def remove_left_overs(path: Path) -> None:
    """Removes unfinished files of processes that are gone: those of this shard, whose lock the caller holds, at once;
    any others once they are a day old (they may belong to another machine, where the process lives)."""
    for part in path.parent.glob("*.part"):
        number = re.search(r"\.(\d+)(\.json)?\.part$", part.name)
        if number is None:
            continue
        with contextlib.suppress(OSError):  # another run may be tidying up, too
            stale = time.time() - part.stat().st_mtime > STALE_SECONDS
            if stale or (part.name.startswith(f"{path.name}.") and not _alive(int(number[1]))):
                part.unlink()


def set_aside(folder: Path | str) -> Path | None:
    """Renames a results folder to `<name>.set-aside-<time>`, so that everything is computed again and nothing is lost.

    Returns:
        The new name, or None if there is no such folder.

    Raises:
        StoreError: a run is at work in the folder, or it cannot be renamed.
    """
    folder = Path(folder)
    if not folder.exists():
        return None
    busy = [lock for lock in sorted(folder.rglob("*.lock")) if is_running(lock)]
    if busy:
        raise StoreError(f"Cannot set aside {folder}: a run is computing {busy[0].stem} there; stop it or wait for it.")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in range(1, 100):
        target = folder.with_name(f"{folder.name}.set-aside-{stamp}" + (f"-{number}" if number > 1 else ""))
        if not target.exists():
            break
    try:
        return folder.rename(target)
    except OSError as error:
        raise StoreError(f"Cannot set aside {folder} ({error.strerror}); rename it by hand.") from error


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
