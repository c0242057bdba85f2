"""Which way of training the replicas of a model is faster here, batched or one after another: measured, and kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xarray as xr
from torch import nn

from ..devices import give_back, machine, own_randomness, strict_arithmetic
from ..storage.naming import model_name
from ..storage.store import cached
from ..tasks import Params, Task, take, to
from .ensembles import Ensemble, Optimizer
from .minibatches import run_batches

MEASURED_ABOVE = 200_000  # parameters; smaller models without convolutions gain from batching everywhere
REPLICAS = 6  # in the measurement
MARGIN = 0.9  # batching must win by so much: it takes more memory, and hence chunks that carry a full run each


@dataclass(frozen=True)
class Engine:
    """How replicas are trained.

    Args:
        batched: all at once, or one after another.
        seconds: measured, of one step of one model; None where it was not measured.
    """

    batched: bool
    seconds: float | None = None

    @property
    def name(self) -> str:
        return "batched" if self.batched else "sequential"


def needs_measuring(task: Task, params: Params) -> bool:
    """Whether batching may lose: convolutions, or matrices large enough to fill the machine one at a time."""
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in task.model.modules())
    return convolutions or sum(p.numel() for p in params.values()) > MEASURED_ABOVE


def choose_engine(
    task: Task,
    params: Params,
    optimizer: Optimizer,
    batch_size: int,
    *,
    removal: str,
    device: torch.device,
    replicas: int | None = None,
    store: Path | str | None = None,
) -> Engine:
    """The faster engine for further training on this machine.

    Args:
        replicas: how many are trained at once, if that is known; a single one gains nothing from batching.
        store: keeps the measurement, so that a run that is taken up again goes on with the same engine.
    """
    if not needs_measuring(task, params):
        return Engine(batched=True)
    if replicas == 1:
        return Engine(batched=False)
    spec = {
        "model": repr(task.model),
        "model_code": model_name(task.model),
        "optimizer": asdict(optimizer),
        "batch_size": batch_size,
        "removal": removal,
        "dtype": str(next(iter(params.values())).dtype),
        "machine": machine(device),
    }
    found = cached(
        store, f"engine-{task.name}", spec, lambda: measure(task, params, optimizer, batch_size, removal, device)
    ).seconds_per_step
    return faster(found)


def faster(seconds_per_step: xr.DataArray) -> Engine:
    """The engine to take, by what `measure` found."""
    batched, sequential = (seconds_per_step.sel(engine=name).item() for name in ("batched", "sequential"))
    return Engine(True, batched) if batched <= MARGIN * sequential else Engine(False, sequential)


def measure(
    task: Task, params: Params, optimizer: Optimizer, batch_size: int, removal: str, device: torch.device
) -> xr.Dataset:
    """Seconds of one step of one model with either engine, on a batch as they come: `seconds_per_step[engine]`."""
    dtype = next(iter(params.values())).dtype
    removed = torch.arange(REPLICAS) % task.n_train
    rows, weights = next(run_batches(task.n_train, batch_size, removed, seed=0, removal=removal))
    batch = to(take(task.train, rows.reshape(-1, rows.shape[-1])), device, dtype)
    weights = weights.to(device, dtype)
    seconds = {}
    with own_randomness(device, 0), strict_arithmetic(device):
        for engine in (Engine(True), Engine(False)):
            ensemble = Ensemble(task, params, REPLICAS, optimizer, device=device, batched=engine.batched)
            taken = []
            for _ in range(4):  # the first warms up
                started = time.perf_counter()
                ensemble.step(batch, weights)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken.append(time.perf_counter() - started)
            seconds[engine.name] = min(taken[1:]) / REPLICAS
            del ensemble
            give_back(device)  # not to weigh on what is measured next, or on another process
    return xr.Dataset({"seconds_per_step": ("engine", list(seconds.values()))}, coords={"engine": list(seconds)})
