"""Where tensors are computed: the device, its free memory and random state, and arithmetic to be trusted there."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checks import shown

# Without it matrix products on a GPU are not deterministic; PyTorch reads it once, at the first of them.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def choose_device(value: str | torch.device | None) -> torch.device:
    """The device of this name; a GPU if there is one for None.

    Raises:
        ValueError: there is none of that name, or it cannot compute here.
    """
    try:
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu") if value is None else torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"device: got {shown(value)}, expected 'cpu', 'cuda' or None.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got '{value}', but PyTorch sees no GPU here; expected 'cpu' or None.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got '{value}', but there are only {torch.cuda.device_count()} GPUs here; number them from 0."
        )
    try:
        torch.empty(1, device=found).tolist()
    except (RuntimeError, NotImplementedError):
        raise ValueError(f"device: got '{value}', which cannot compute here; expected 'cpu', 'cuda' or None.") from None
    return found


@contextlib.contextmanager
def strict_arithmetic(device: torch.device) -> Iterator[None]:
    """Inside, nothing is computed in less than its own precision, and a GPU adds up in an order that does not change.

    That is so whatever torch.autocast the caller is in; a model's own stays. By default convolutions run in TF32, which
    keeps 10 bits after the point: a run and its partner without one instance differ by far less than that. A kernel
    that has no deterministic version is named in a warning of PyTorch's.
    """
    with contextlib.ExitStack() as inside:
        if torch.is_autocast_enabled(device.type):
            inside.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            inside.enter_context(on_gpu())
        yield


@contextlib.contextmanager
def on_gpu() -> Iterator[None]:
    """`strict_arithmetic` of GPUs."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    precisions = [backend.fp32_precision for backend in backends]
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # they were set in PyTorch's newer way, in which the older one cannot be read
        before = None
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    set_precision("highest", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        if before is not None:
            set_precision(*before)
        else:
            for backend, precision in zip(backends, precisions, strict=True):
                backend.fp32_precision = precision


def set_precision(products: str, convolutions_in_tf32: bool) -> None:
    """Of float32 on a GPU, in a way that PyTorch's older and newer settings both follow."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions_in_tf32


def machine(device: torch.device) -> str:
    """What a measured time holds for: the device, and on a CPU the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix; on a CPU by one thread.

    LAPACK's threads wait for each other thousands of times: where other work takes a core, two are many times slower
    than one, and on idle cores not much faster.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    if device.type == "cuda":  # with what PyTorch holds and does not use
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if (found := Path("/proc/meminfo")).exists():  # Linux: what its caches hold can be had, too
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", found.read_text())[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def give_back(device: torch.device) -> None:
    """Memory of a GPU that nothing uses any more, to the system: PyTorch keeps it for this process otherwise."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def check_memory(error: Exception) -> None:
    """Raises OutOfMemoryError with advice if that is what an error of PyTorch's says, in whatever words."""
    if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
        raise torch.OutOfMemoryError(
            "The device's memory is full; expected room for the model and a few instances. Where several processes "
            "share a GPU, take fewer at once (--jobs)."
        ) from error


# What belongs to the whole process in PyTorch: generators, the levels of forward derivatives, the choice of attention
# kernels. Threads that used them at the same time would change each other's numbers. With one lock for all of them, no
# two can wait for each other.
ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, random numbers are those of this seed, and no other thread's; outside nothing has changed."""
    with ONE_THREAD, torch.random.fork_rng(devices=random_devices(device)):
        if device.type == "cpu":
            # torch.manual_seed would seed all kinds of devices, and for each that is not in use it would write down the
            # whole stack of callers, which takes longer than a small model's gradient.
            torch.default_generator.manual_seed(int(seed))
        else:
            torch.manual_seed(seed)
        yield


def random_devices(device: torch.device) -> list[torch.device]:
    """What `torch.random.fork_rng` is to keep beside the CPU's state."""
    return [device] if device.type == "cuda" else []


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the random generators stand that dropout on a device draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
