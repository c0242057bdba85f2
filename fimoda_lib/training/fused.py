"""A training step without the cost of launching its operations one by one: compiled, or recorded and replayed on a GPU.

The operations of a small model take microseconds, and Python takes longer to start each of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

log = logging.getLogger(__name__)


class Fused:
    """A training step run through `torch.compile`, or as it is where the machine cannot compile (no C++ compiler)."""

    def __init__(self, step: Callable) -> None:
        torch._dynamo.config.recompile_limit = 64  # one entry per ensemble and batch shape; the default is 8
        self.step, self.compiled, self.proven = step, torch.compile(step, dynamic=False), False

    def __call__(self, params: Any, state: Any, *rest: Any) -> None:
        if self.proven or self.compiled is self.step:
            return self.compiled(params, state, *rest)
        trial = tree_map(torch.clone, (params, state))  # a step that fails half-way must not leave its marks
        try:
            self.compiled(*trial, *rest)
        except Exception as error:  # the compiler's failures have no common type
            log.warning("torch.compile does not work here (%s); training goes on without it.", type(error).__name__)
            self.compiled = self.step
        self.proven = True
        self.compiled(params, state, *rest)


class Replayed:
    """A function recorded as a CUDA graph, once for each shape of its inputs, and replayed; as it is where that fails.

    Args:
        function: `function(*fixed, *inputs)`; draws no random numbers, and does the same for all inputs of a shape.
        fixed: pytrees of tensors, the same at every call: read, or changed in place.
    """

    def __init__(self, function: Callable, *fixed: Any) -> None:
        self.function, self.fixed = function, fixed
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}
        self.pool, self.works = torch.cuda.graph_pool_handle(), True

    def __call__(self, *inputs: Any) -> Any:
        """The function's result; its tensors are overwritten by the next call."""
        leaves, structure = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        constants = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        key = (structure, constants, *((t.shape, t.dtype) for t in tensors))
        if self.works and key not in self.recorded:
            try:
                self.recorded[key] = self.record(leaves, structure)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # what cannot be recorded has no common type
                log.warning("Cannot be recorded as a CUDA graph (%s); goes on without, and slower.", error)
                self.works = False
        if not self.works:
            return self.function(*self.fixed, *inputs)
        graph, own, result = self.recorded[key]
        for mine, given in zip(own, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return result

    def record(self, leaves: list[Any], structure: Any) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        """The graph, the tensors that it reads its inputs from, and those that it writes its result to."""
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs, here = tree_unflatten(leaves, structure), torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # libraries set themselves up at the first calls, which cannot be recorded
            for _ in range(2):
                self.function(*tree_map(torch.clone, self.fixed), *inputs)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = self.function(*self.fixed, *inputs)
        return graph, [leaf for leaf in leaves if isinstance(leaf, Tensor)], result
