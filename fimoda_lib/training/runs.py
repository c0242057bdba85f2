"""The runs of a seed: the full one and one without each left-out instance or group, trained together in chunks.

On a GPU those of several seeds are trained together.
"""

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
from torch import Tensor
from tqdm import tqdm

from .. import checks
from ..devices import choose_device, give_back, strict_arithmetic
from ..groups import coordinates, is_grouped
from ..tasks import Params, Task, take, to
from .chunks import GPU_REPLICAS, carries_full, chunks, replica_bytes, replicas_that_fit
from .engines import Engine, choose_engine
from .ensembles import Ensemble
from .minibatches import run_batches, steps_per_epoch
from .plans import Plan
from .trial import check_training
from .working import draws_random_numbers

log = logging.getLogger(__name__)
WORTH_COMPILING = 50_000  # model-steps of one size; below that, compiling takes longer than it saves
WORTH_SAYING = 60  # seconds: a seed that takes longer announces it


class Runner:
    """Trains the runs of one seed or several, in chunks of replicas that fit memory and cache."""

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
        """Chosen, and measured, when the first run is to be trained, after the trial of the model: a result found in
        the store needs neither."""
        removal, replicas = self.plan.removal, self.replicas if self.plan.left_out else 1
        check_training(self.task, self.params, self.device, removal=removal, replicas=replicas)
        return choose_engine(
            self.task,
            self.params,
            self.plan.optimizer,
            self.plan.batch_size,
            removal=removal,
            device=self.device,
            replicas=replicas,
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
        """An ensemble at its start; one per size is kept, so that each is compiled once.

        On a GPU not two large ones: the memory that they are planned for is half of what is free.
        """
        if size not in self.ensembles:
            held = sum(self.ensembles)
            if self.device.type == "cuda" and held and held + size > 1.5 * (self.replicas or 1):
                self.ensembles.clear()
                give_back(self.device)
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
        seeds: Sequence[int],
        bar: tqdm,
        look: Callable[[int, Ensemble], None] = lambda k, ensemble: None,
        again: bool = False,
    ) -> Ensemble:
        """Trains one chunk of replicas for each seed; at the planned steps calls `look(number of the step, ensemble)`.

        Args:
            removed: what each replica of a seed leaves out, see `minibatches.epoch_batches`.
            again: the chunk carries a full run that another one carries, too; the bar counts it once.
        """
        plan, ensemble = self.plan, self.ensemble(len(seeds) * len(removed))
        due = {step: k for k, step in enumerate(plan.steps)}
        counted = len(seeds) * (len(removed) - (1 if again else 0))
        how = {"removal": plan.removal, "fraction": plan.fraction, "shared": not self.noisy, "device": self.device}
        order = seeds[0] if len(seeds) == 1 else seeds
        batches = run_batches(self.task.n_train, plan.batch_size, removed, order, **how)
        with strict_arithmetic(self.device):
            if 0 in due:
                look(due[0], ensemble)
            for step, batch in zip(range(1, plan.steps[-1] + 1), batches, strict=False):
                if batch is not None:
                    rows, weights = batch
                    rows = rows.reshape(-1, rows.shape[-1])
                    with ensemble.masks(seeds[0], step):
                        ensemble.step(take(self.train_set, rows), weights.to(ensemble.dtype))
                if step in due:
                    look(due[step], ensemble)
                bar.update(counted)
        return ensemble

    def seeds_at_once(self) -> int:
        """How many seeds to train together: where a GPU has room for more than the runs of one. Not with dropout, whose
        masks are a seed's own."""
        if self.device.type != "cuda" or not self.engine.batched or self.noisy:
            return 1
        self.replicas = self.replicas or replicas_that_fit(self.task, self.params, self.plan, self.device, self.engine)
        return max(min(self.replicas, GPU_REPLICAS) // (1 + len(self.plan.left_out)), 1)

    def run(self, seeds: Sequence[int], bar: tqdm) -> list[xr.Dataset]:
        """All runs of each seed: the full one and one without each left-out instance or group.

        Where the device runs out of memory, fewer seeds are trained together, or the chunk is halved.
        """
        plan, started = self.plan, time.perf_counter()
        self.replicas = self.replicas or replicas_that_fit(self.task, self.params, plan, self.device, self.engine)
        shape = (len(plan.steps), len(plan.test))
        full = None
        delta = np.empty((len(seeds), len(plan.left_out), *shape), dtype=np.float32)
        position = 0
        left_out, places = list(plan.left_out), range(len(plan.left_out))
        if is_grouped(left_out):  # those of a size together: where they are dropped, only these have equal batches
            places = sorted(places, key=lambda k: len(left_out[k]))
            left_out = [left_out[k] for k in places]
        waiting = deque(chunks(left_out, plan.removal, max(self.replicas // len(seeds), 1)))
        self.announce(max(map(len, waiting)), bar)
        while waiting:
            chunk, before = waiting[0], bar.n
            losses = torch.empty(len(seeds) * len(chunk), *shape, dtype=torch.float64, device=self.device)

            def look(k: int, ensemble: Ensemble, losses: Tensor = losses) -> None:
                losses[:, k] = ensemble.losses(self.test_set)

            fits, fewest = True, 1 if plan.removal == "drop" else 2
            try:
                self.train(chunk, seeds, bar, look, len(chunk) > 1 and len(waiting) > 1 and carries_full(chunk))
            except torch.OutOfMemoryError:
                if len(chunk) == fewest and len(seeds) == 1:
                    raise
                fits = False
            if not fits:  # only here: while the error is there, so is all that was in use when it came
                self.forget(bar, before)
                if len(seeds) > 1:
                    log.warning("Out of memory with %d seeds at once; going on one by one.", len(seeds))
                    return [found for seed in seeds for found in self.run([seed], bar)]
                self.replicas = max(len(chunk) // 2, fewest)
                log.warning("Out of memory with %d replicas at once; going on with %d.", len(chunk), self.replicas)
                waiting = deque(chunks(left_out[position:], plan.removal, self.replicas, first=full is None))
                continue
            waiting.popleft()
            losses = losses.cpu().unflatten(0, (len(seeds), -1))
            # The full run that shared the chunk's kernels, where there is one, is the tightest partner.
            if carries_full(chunk):
                partner, losses = losses[:, :1], losses[:, 1:]
                full = partner if full is None else full
            with np.errstate(over="ignore"):  # a loss on its way to infinity
                here = places[position : position + losses.shape[1]]
                delta[:, [*here]] = (losses - partner).numpy()
            position += losses.shape[1]
        seconds = (time.perf_counter() - started) / len(seeds)
        return [self.result(seed, full[k, 0], delta[k], seconds) for k, seed in enumerate(seeds)]

    def forget(self, bar: tqdm, before: int) -> None:
        """Gives back what a chunk has taken that did not fit, and counts its steps as not done."""
        self.ensembles.clear()
        give_back(self.device)
        bar.update(before - bar.n)

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
