"""Where numbers come from: the commit of the code, versions, device, duration and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch


def provenance(seconds: float) -> dict[str, Any]:
    """What a sidecar says beside the specification; nothing in it names the machine or its user."""
    return {
        "seconds": round(seconds, 3),
        "peak_memory_MiB": round(_peak()),
        **({"peak_gpu_memory_MiB": torch.cuda.max_memory_allocated() // 2**20} if torch.cuda.is_available() else {}),
        "device": device_description(),
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": code_version(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """After the block, the list holds what memory the block needed: MiB at its peak beyond what was held before it.

    The GPU's counts if there is one. NaN where the system does not say, which only Linux does.
    """
    used: list[float] = []
    before = reset_peak_memory()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated() / 2**20
    try:
        yield used
    finally:
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _held("VmHWM")
        used.append(round(max(peak - before, 0.0), 1))


def reset_peak_memory() -> float:
    """Gives back what earlier work has freed, and has the peak memory of this process begin with what it holds now.

    Returns:
        MiB that it holds. NaN where the system cannot do so, which only Linux can.
    """
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _held("VmRSS")


def _peak() -> float:
    """MiB that this process has held at most since `reset_peak_memory`; where that is not told, since it began."""
    held = _held("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if math.isnan(held) else held


def _held(entry: str) -> float:
    """MiB of this process by an entry of Linux's table of it."""
    try:
        return int(re.search(rf"^{entry}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024
    except (OSError, TypeError):
        return float("nan")


CODE = (".", "../notebooks", ":(exclude)experiments/benchmark")  # what determines results, seen from the package


@cache
def device_description() -> str:
    """The GPU if PyTorch sees one, else the kind and number of CPU cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        kind = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        kind = None
    return f"{os.cpu_count()} CPU cores, {kind[1].strip() if kind else platform.machine()}"


@cache
def code_version() -> str:
    """The commit of the code, with "+" if files of the package or notebooks beside it have changed since (but for the
    stored gold standards, which are results); "unknown" outside a git checkout of its own."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # fails where the library is installed inside another project
        git("ls-files", "--error-unmatch", "storage/store.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
