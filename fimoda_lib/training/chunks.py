"""How many replicas are trained at once, and which: chunks of runs that fit the memory, and on a CPU the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import free_memory
from ..groups import as_matrix
from ..tasks import Params, Task, take, to
from .engines import Engine
from .minibatches import FULL_RUN
from .plans import Plan
from .working import Working, draws_random_numbers

GPU_REPLICAS = 2_048  # in all seeds that are trained together: more take memory and gain little (benchmarks/gpu.py)
CPU_REPLICAS = 34  # per chunk: the measured optimum on CPU, where a chunk's activations stay in cache (benchmarks/)
MEMORY_BYTES = 2**30  # what the replicas of a chunk may take, by default


def carries_full(chunk: Tensor) -> bool:
    """Whether the first replica of a chunk is a full run."""
    return bool((chunk[0] == FULL_RUN).all())


def chunks(left_out: Sequence[Any], removal: str, replicas: int, *, first: bool = True) -> list[Tensor]:
    """Which instances the replicas of each chunk leave out [M], or which groups [M, g]: chunks of nearly equal size.

    With "drop" the full run comes first and alone, because its batches are longer; not again if it is no longer the
    `first`. Otherwise each chunk carries a full run of its own, so that the difference is taken between runs of the
    same kernels and is exactly zero when nothing is removed.

    Args:
        left_out: instances, or groups by ascending size.
    """
    rows = as_matrix(left_out)
    full = torch.full((1, *rows.shape[1:]), FULL_RUN)
    if len(rows) == 0:
        return [full]
    if removal == "drop":
        sizes = (rows.reshape(len(rows), -1) != FULL_RUN).sum(1)
        alike = rows.split(sizes.unique_consecutive(return_counts=True)[1].tolist())
        return [full] * first + [piece for same in alike for piece in same.tensor_split(-(-len(same) // replicas))]
    pieces = rows.tensor_split(-(-len(rows) // max(replicas - 1, 1)))
    return [torch.cat([full, piece]) for piece in pieces]


def replicas_that_fit(task: Task, params: Params, plan: Plan, device: torch.device, engine: Engine) -> int:
    """How many replicas to train at once: within half the free memory of a GPU; on a CPU, as many as stay in cache
    (batched) or fit a quarter of the free memory (one after another)."""
    free = free_memory(device)
    if device.type == "cuda":
        budget = free // 2
    else:
        budget = MEMORY_BYTES if engine.batched or free is None else free // 4
    fit = max(int(budget // replica_bytes(task, params, plan, engine)), 2)
    return min(fit, CPU_REPLICAS) if engine.batched and device.type == "cpu" else fit


def replica_bytes(task: Task, params: Params, plan: Plan, engine: Engine) -> int:
    """What one replica takes: parameters, gradients, two moments and the float64 copy for evaluation; with the
    batched engine also its activations, which are measured on one instance: every module's output, kept for the
    backward pass and differentiated."""
    size = sum(p.numel() for p in params.values())
    if not engine.batched:
        return 4 * 5 * size
    everything, moving = (3 * numbers for numbers in activation_numbers(task, params))
    # Where replicas share their batches, what lies below the first parameter that moves is computed once for all.
    activations = moving if plan.removal == "mask" and not draws_random_numbers(task, params) else everything
    rows = plan.batch_size + (as_matrix(plan.left_out)[:1].numel() if plan.removal == "subtract" else 0)
    return 4 * (7 * size + activations * rows) + 8 * moving * len(plan.test)


def activation_numbers(task: Task, params: Params) -> tuple[int, int]:
    """Numbers that the model's modules put out for one training instance: all, and those that depend on `params`."""
    everything, moving = 0, 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal everything, moving
        numbers = output.numel() if isinstance(output, Tensor) else 0
        everything += numbers
        moving += numbers if numbers and output.requires_grad else 0

    like = next(iter(params.values()))
    working = Working(task, params, dtype=like.dtype, device=like.device)
    working.model.requires_grad_(False)
    for module in working.model.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    with torch.enable_grad():
        working.outputs(leaves, to(take(task.train, slice(0, 1)), like.device, like.dtype)[0])
    return max(everything, 1), max(moving, 1)
