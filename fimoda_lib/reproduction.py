"""The pieces of the paper's panels, computed once and kept: final model, gold standard, scores.

Each function returns what the store holds, or computes and stores it. With `compute=False` a missing piece raises
`Missing` instead, so that figures can be drawn from whatever is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .datasets import load_task
from .experiments import Settings, panel_title, settings
from .final_model import train_final_model
from .further_training import further_train
from .methods import METHODS, MethodDiverged, attribute
from .minibatches import steps_per_epoch
from .store import Missing, cached, fingerprint
from .tasks import Params, Task, parameters_of, take

log = logging.getLogger(__name__)

# The paper's methods in the paper's order; "exact" is the yardstick of the influence functions and is not drawn there.
LFT_SEED = 1000  # of its full run: none of the gold standard's, whose noise it would share
PAPER_METHODS = ("grad_dot", "grad_cos", "datainf", "cg", "lissa", "lissa_h", "ekfac", "trak")
HOLD_FLOAT64 = 5_000  # training instances x outputs; beyond, gradients are kept in float32 to fit memory


@dataclass(frozen=True)
class Reproduction:
    """One data set with one optimiser under one profile.

    Args:
        results: folder of the stored results.
        compute: whether missing pieces are computed.
    """

    dataset: str
    profile: str = "quick"
    optimizer: str = "sgd"
    results: Path | str = "results"
    data_dir: Path | str | None = None
    compute: bool = True

    @property
    def folder(self) -> Path:
        return Path(self.results) / self.profile

    @cached_property
    def task(self) -> Task:
        return load_task(self.dataset, self.data_dir)

    @cached_property
    def settings(self) -> Settings:
        return settings(self.task, self.profile, self.optimizer)

    @property
    def title(self) -> str:
        return panel_title(self.dataset)

    @cached_property
    def params(self) -> Params:
        """The final model's parameters (training seed 0)."""
        return train_final_model(
            self.task, **asdict(self.settings.final), seed=0, store=self.folder, compute_missing=self.compute
        )

    @cached_property
    def gold(self) -> xr.Dataset:
        """Further training with every seed and left-out instance."""
        s = self.settings
        return further_train(
            self.task,
            self.params,
            **asdict(s.further),
            seeds=s.seeds,
            left_out=s.left_out,
            test=s.test,
            store=self.folder,
            compute_missing=self.compute,
            progress=self.compute,
        )

    @cached_property
    def retrained(self) -> xr.Dataset:
        """Training from scratch without each left-out instance: further training from the initial weights."""
        s = self.settings
        return further_train(
            self.task,
            parameters_of(self.task.model),
            **asdict(s.final),
            seeds=[0],
            left_out=s.left_out,
            test=s.test,
            store=self.folder,
            compute_missing=self.compute,
            progress=self.compute,
        )

    def hyper(self, method: str) -> dict[str, Any]:
        """The hyper-parameters that the paper plots for a method on this data set."""
        if method == "lft":  # needs no choice but the further training that it follows, and when to look
            training = asdict(self.settings.further)
            per_epoch = steps_per_epoch(self.task.n_train, training["batch_size"])
            epochs = training.pop("epochs")
            return {
                "horizon": [per_epoch * (e + 1) for e in range(epochs)],
                "further_training": {**training, "seed": LFT_SEED},
                "segments": min(self.settings.lft_segments, epochs),
                **({"dtype": "float32"} if self.large else {}),
            }
        hyper: dict[str, Any] = {}
        if "multiple" in METHODS[method].defaults and method in ("cg", "lissa", "lissa_h", "exact"):
            hyper["multiple"] = max(self.settings.damping_multiples)
        if "depth" in METHODS[method].defaults:
            hyper["depth"] = self.settings.lissa_h_depth if method == "lissa_h" else self.settings.lissa_depth
        if method == "cg" and self.settings.cg_tolerance is not None:
            hyper["tolerance"] = self.settings.cg_tolerance
        if method == "lissa_h" or self.large:
            hyper["dtype"] = "float32"
        return hyper

    @property
    def large(self) -> bool:
        """Whether gradients are kept in float32 to fit memory."""
        return self.task.n_train * list(self.params.values())[-1].shape[0] > HOLD_FLOAT64

    def scores(self, method: str, **hyper: Any) -> xr.DataArray:
        """Scores of the left-out instances for the tested ones, with the paper's hyper-parameters unless given.

        A method that diverges leaves an array of NaN whose attribute `outcome` says why.
        """
        s, chosen = self.settings, self.hyper(method) | hyper
        spec = {
            "method": method,
            "hyper": chosen,
            "task": self.dataset,
            "left_out": s.left_out,
            "test": s.test,
            "model": repr(self.task.model),
            "params": fingerprint(self.params),
            "data": fingerprint(self.task.train, take(self.task.test, list(s.test))),
        }

        def compute() -> xr.Dataset:
            log.info("%s on %s: computing scores %s", METHODS[method].label, self.title, chosen or "")
            return attribute_or_outcome(
                method, self.task, self.params, train=s.left_out, test=s.test, **chosen
            ).to_dataset(name="scores")

        return cached(self.folder, f"scores-{self.dataset}-{method}", spec, compute, compute_missing=self.compute)[
            "scores"
        ]

    def other(self, **changes: Any) -> Reproduction:
        """The same with another optimiser, profile, ...; itself, with all that it has loaded, if nothing changes."""
        unchanged = all(getattr(self, name) == value for name, value in changes.items())
        return self if unchanged else replace(self, **changes)


def attribute_or_outcome(method: str, task: Task, params: Params, **arguments: Any) -> xr.DataArray:
    """`attribute`, with divergence as a result: scores of NaN and the reason in the attribute `outcome`."""
    try:
        return attribute(method, task, params, **arguments).assign_attrs(outcome="finished")
    except MethodDiverged as reason:
        log.warning("%s", reason)
        rows = {"test": list(arguments["test"]), "train": list(arguments["train"])}
        values = np.full((len(rows["test"]), len(rows["train"])), np.nan)
        return xr.DataArray(
            values, dims=("test", "train"), coords=rows, attrs={"method": method, "outcome": f"diverged: {reason}"}
        )


def finished(pieces: Callable[[], Any]) -> Any | None:
    """What `pieces` returns, or None if something it needs has not been computed."""
    try:
        return pieces()
    except Missing:
        return None
