"""The runs of one seed: the full one and one without each left-out instance or group, trained together in chunks."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from .. import checks
from ..devices import choose_device, free_memory, strict_arithmetic
from ..groups import as_matrix, coordinates, is_grouped
from ..tasks import Params, Task, take, to
from .engines import Engine, choose_engine
from .ensembles import Ensemble
from .minibatches import FULL_RUN, run_batches, steps_per_epoch
from .plans import Plan
from .working import Working, draws_random_numbers

log = logging.getLogger(__name__)
CPU_REPLICAS = 34  # per chunk: the measured optimum on CPU, where a chunk's activations stay in cache (benchmarks/)
MEMORY_BYTES = 2**30  # what the replicas of a chunk may take, by default
WORTH_COMPILING = 50_000  # model-steps of one size; below that, compiling takes longer than it saves
WORTH_SAYING = 60  # seconds: a seed that takes longer announces it


class Runner:
    """Trains the runs of one seed, in chunks of replicas that fit memory and cache."""

    def __init__(
        self,
        task: Task,
        params: Params,
        plan: Plan,
        *,
        device: Any,
        replicas: int | None,
        compile: bool | None,
        store: Path | str | None = None,
    ) -> None:
        self.task, self.params, self.plan, self.store = task, params, plan, store
        self.device = choose_device(device)
        checks.choice("compile", compile, (True, False, None))
        if replicas is not None:
            checks.whole("replicas", replicas, or_=", or None")
        dtype = next(iter(params.values())).dtype
        self.train_set = to(task.train, self.device, dtype)
        self.test_set = to(take(task.test, torch.tensor(plan.test, dtype=torch.long)), self.device)
        self.per_epoch = steps_per_epoch(task.n_train, plan.batch_size)
        self.replicas = replicas
        self.model_steps = (1 + len(plan.left_out)) * plan.steps[-1]
        self.noisy = draws_random_numbers(task, params)
        if self.noisy and compile:
            raise ValueError(
                "compile: compiled code draws other dropout masks than the full run, so that the runs would "
                "not be paired; leave it out, or call model.eval() to train without dropout."
            )
        self.compile = self.model_steps >= WORTH_COMPILING and not self.noisy if compile is None else compile
        self.ensembles: dict[int, Ensemble] = {}

    @cached_property
    def engine(self) -> Engine:
        """Measured when the first run is to be trained: a result found in the store needs none."""
        return choose_engine(
            self.task,
            self.params,
            self.plan.optimizer,
            self.plan.batch_size,
            removal=self.plan.removal,
            device=self.device,
            replicas=1 if not self.plan.left_out else self.replicas,
            store=self.store,
        )

    def announce(self, replicas: int, bar: tqdm) -> None:
        """Says how long a seed takes, before it begins, where that was measured and is long."""
        seconds = (self.engine.seconds or 0) * self.model_steps
        if seconds > WORTH_SAYING and not bar.disable:
            bytes_each = replica_bytes(self.task, self.params, self.plan, self.engine)
            bar.write(
                f"One seed of {self.task.title or self.task.name}: {self.model_steps:,} model-steps of "
                f"{self.engine.seconds * 1000:.3g} ms ({self.engine.name} replicas), about {seconds / 60:.0f} min; "
                f"{replicas} replicas at once take about {replicas * bytes_each / 1e9:.2g} GB."
            )

    def ensemble(self, size: int) -> Ensemble:
        """An ensemble at its start; one per size is kept, so that each is compiled once."""
        if size not in self.ensembles:
            worth = self.engine.batched and (size > 1 or self.plan.steps[-1] >= WORTH_COMPILING)
            self.ensembles[size] = Ensemble(
                self.task,
                self.params,
                size,
                self.plan.optimizer,
                device=self.device,
                compile=self.compile and worth,
                batched=self.engine.batched,
            )
        self.ensembles[size].reset()
        return self.ensembles[size]

    def train(
        self,
        removed: Tensor,
        seed: int,
        bar: tqdm,
        look: Callable[[int, Ensemble], None] = lambda k, ensemble: None,
        again: bool = False,
    ) -> Ensemble:
        """Trains one chunk of replicas; at the planned steps calls `look(number of the step, ensemble)`.

        Args:
            removed: what each replica leaves out, see `minibatches.epoch_batches`.
            again: the chunk carries a full run that another one carries, too; the bar counts it once.
        """
        plan, ensemble = self.plan, self.ensemble(len(removed))
        due = {step: k for k, step in enumerate(plan.steps)}
        counted = len(removed) - (1 if again else 0)
        if 0 in due:
            look(due[0], ensemble)
        how = {"removal": plan.removal, "fraction": plan.fraction, "shared": not self.noisy}
        batches = run_batches(self.task.n_train, plan.batch_size, removed, seed, **how)
        with strict_arithmetic(self.device):
            for step, batch in zip(range(1, plan.steps[-1] + 1), batches, strict=False):
                if batch is not None:
                    rows, weights = batch
                    rows = rows.to(self.device).reshape(-1, rows.shape[-1])
                    with ensemble.masks(seed, step):
                        ensemble.step(take(self.train_set, rows), weights.to(self.device, ensemble.dtype))
                if step in due:
                    look(due[step], ensemble)
                bar.update(counted)
        return ensemble

    def run(self, seed: int, bar: tqdm) -> xr.Dataset:
        """All runs of one seed: the full one and one without each left-out instance or group.

        Where the device runs out of memory, the chunk is halved and the run goes on.
        """
        plan, started = self.plan, time.perf_counter()
        self.replicas = self.replicas or replicas_that_fit(self.task, self.params, plan, self.device, self.engine)
        shape = (len(plan.steps), len(plan.test))
        full = None
        delta = np.empty((len(plan.left_out), *shape), dtype=np.float32)
        position = 0
        left_out, places = list(plan.left_out), range(len(plan.left_out))
        if is_grouped(left_out):  # those of a size together: where they are dropped, only these have equal batches
            places = sorted(places, key=lambda k: len(left_out[k]))
            left_out = [left_out[k] for k in places]
        waiting = deque(chunks(left_out, plan.removal, self.replicas))
        self.announce(max(map(len, waiting)), bar)
        while waiting:
            chunk, before = waiting[0], bar.n
            losses = torch.empty(len(chunk), *shape, dtype=torch.float64, device=self.device)

            def look(k: int, ensemble: Ensemble, losses: Tensor = losses) -> None:
                losses[:, k] = ensemble.losses(self.test_set)

            try:
                self.train(chunk, seed, bar, look, len(chunk) > 1 and len(waiting) > 1 and carries_full(chunk))
            except torch.OutOfMemoryError:
                fewest = 1 if plan.removal == "drop" else 2
                if len(chunk) == fewest:
                    raise
                self.replicas = max(len(chunk) // 2, fewest)
                log.warning("Out of memory with %d replicas at once; going on with %d.", len(chunk), self.replicas)
                self.ensembles.clear()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                waiting = deque(chunks(left_out[position:], plan.removal, self.replicas, first=full is None))
                bar.update(before - bar.n)
                continue
            waiting.popleft()
            losses = losses.cpu()
            # The full run that shared the chunk's kernels, where there is one, is the tightest partner.
            if carries_full(chunk):
                partner, losses = losses[0], losses[1:]
                full = partner if full is None else full
            with np.errstate(over="ignore"):  # a loss on its way to infinity
                delta[[*places[position : position + len(losses)]]] = (losses - partner).numpy()
            position += len(losses)
        return self.result(seed, full, delta, time.perf_counter() - started)

    def result(self, seed: int, full: Tensor, delta: np.ndarray, seconds: float) -> xr.Dataset:
        """What the runs of a seed have given, with its coordinates; what is not finite has diverged."""
        plan = self.plan
        delta[~np.isfinite(delta)] = np.nan
        full = torch.where(full.isfinite(), full, torch.nan).numpy()
        return xr.Dataset(
            {
                "full_loss": (("seed", "step", "test"), full[None]),
                "delta": (("seed", "left_out", "step", "test"), delta[None]),
                "diverged": (("seed", "left_out"), np.isnan(delta).any(axis=(1, 2))[None]),
                "seconds": ("seed", [seconds]),
            },
            coords={
                "seed": [seed],
                **coordinates(plan.left_out, self.task.n_train),
                "step": np.array(plan.steps),
                "test": np.array(plan.test),
                "epoch": ("step", np.array(plan.steps) / self.per_epoch),
            },
        )


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
    activations = activation_numbers(task, params) * 3
    rows = plan.batch_size + (as_matrix(plan.left_out)[:1].numel() if plan.removal == "subtract" else 0)
    return 4 * (7 * size + activations * rows) + 8 * activations * len(plan.test)


def activation_numbers(task: Task, params: Params) -> int:
    """Numbers that the model's modules put out for one training instance."""
    total = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    like = next(iter(params.values()))
    working = Working(task, params, dtype=like.dtype, device=like.device)
    for module in working.model.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    with torch.no_grad():
        working.outputs(params, to(take(task.train, slice(0, 1)), like.device, like.dtype)[0])
    return max(total, 1)
