"""The pieces of the paper's panels, computed once and kept: final model, gold standard, scores.

Each function returns what the store holds, or computes and stores it. With `compute=False` a missing piece raises
`Missing` instead, so that figures can be drawn from whatever is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..datasets import load_task
from ..datasets.encoders import cached_task
from ..groups import is_grouped, numbered
from ..methods import METHODS, MethodDiverged, attribute
from ..methods.timed import timed
from ..storage.store import Missing, cached, fingerprint
from ..tasks import Params, Task, cross_entropy, parameters_of, squared_error, take
from ..training.final_model import train_final_model
from ..training.further_training import further_train
from ..training.plans import computed_with
from .followed import curved, followed, version
from .settings import Settings, experiment_of, panel_title, settings, training_rows

log = logging.getLogger(__name__)

YARDSTICKS = {"timed": timed}  # not registered as methods
# The paper's methods in the paper's order.
PAPER_METHODS = ("grad_dot", "grad_cos", "datainf", "cg", "lissa", "lissa_h", "ekfac", "trak")
GIVEN = ("given_task", "given_params", "given_settings")
HOLD_FLOAT64 = 5_000  # training instances x outputs; beyond, gradients are kept in float32 to fit memory


@dataclass(frozen=True)
class Panel:
    """One data set with one optimiser under one profile.

    Args:
        results: folder of the stored results.
        compute: whether missing pieces are computed.
        given_task, given_params, given_settings: in place of the data set's own, which are loaded when first needed.
    """

    dataset: str
    profile: str = "quick"
    optimizer: str = "sgd"
    results: Path | str = "results"
    data_dir: Path | str | None = None
    compute: bool = True
    given_task: Task | None = field(default=None, compare=False, repr=False)
    given_params: Params | None = field(default=None, compare=False, repr=False)
    given_settings: Settings | None = field(default=None, compare=False, repr=False)

    @property
    def folder(self) -> Path:
        return Path(self.results) / self.profile

    @cached_property
    def task(self) -> Task:
        if self.given_task is not None:
            return self.given_task
        experiment = experiment_of(self.dataset, self.profile)
        task = load_task(self.dataset, self.data_dir, model=experiment.model)
        if experiment.trained_layers is None:
            return task
        rows = training_rows(experiment)
        return upper_task(task, experiment.trained_layers, rows, self.folder)

    @cached_property
    def settings(self) -> Settings:
        return self.given_settings or settings(self.task, self.profile, self.optimizer)

    @property
    def title(self) -> str:
        return panel_title(self.dataset, self.profile)

    @cached_property
    def params(self) -> Params:
        """The final model's parameters (training seed 0)."""
        if self.given_params is not None:
            return self.given_params
        return train_final_model(
            self.task, **self.settings.final.arguments(), seed=0, store=self.folder, compute_missing=self.compute
        )

    @cached_property
    def gold(self) -> xr.Dataset:
        """Further training with every seed and left-out instance."""
        s = self.settings
        return further_train(
            self.task,
            self.params,
            **s.further.arguments(),
            removal=s.removal,
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
            **s.final.arguments(),
            seeds=s.retrain_seeds,
            left_out=s.left_out,
            test=s.test,
            store=self.folder,
            compute_missing=self.compute,
            progress=self.compute,
        )

    def hyper(self, method: str, *, many: bool = False) -> dict[str, Any]:
        """The hyper-parameters that the paper plots for a method on this data set.

        Args:
            many: for more instances than the left-out ones, or for groups. Then LiSSA-H may take fewer steps, and LFT
                takes G alone, in whose eigenbasis all are scored at once; elsewhere it has the whole Hessian, and
                follows each on its own.
        """
        s = self.settings
        if method in ("lft", "timed"):
            return followed(s, self.task.n_train, single=self.large, whole=not many, timed=method == "timed")
        hyper: dict[str, Any] = {}
        if method in ("cg", "lissa", "lissa_h", "exact"):
            hyper |= {"multiple": max(s.damping_multiples)} if s.damping is None else {"damping": s.damping}
        if "depth" in METHODS[method].defaults:
            of_hessian = s.group_lissa_h_depth if many else s.lissa_h_depth
            hyper["depth"] = of_hessian if method == "lissa_h" else s.lissa_depth
        if method == "lissa" and s.lissa_scale is not None:
            hyper["scale"] = s.lissa_scale
        if method == "cg" and s.cg_tolerance is not None:
            hyper["tolerance"] = s.cg_tolerance
        if method == "lissa_h" or self.large:
            hyper["dtype"] = "float32"
        return hyper

    @property
    def methods(self) -> tuple[str, ...]:
        """The paper's methods that are run on this data set."""
        return tuple(m for m in PAPER_METHODS if m not in self.settings.without)

    @property
    def left_aside(self) -> tuple[str, ...]:
        """The paper's methods that are not run here, for their cost."""
        return tuple(m for m in PAPER_METHODS if m in self.settings.without)

    @property
    def lft(self) -> bool:
        """Whether LFT is run on this data set."""
        return "lft" not in self.settings.without

    @property
    def large(self) -> bool:
        """Whether gradients are kept in float32 to fit memory."""
        n = len(self.settings.curvature or range(self.task.n_train))
        return too_large(n * list(self.params.values())[-1].shape[0], n_parameters(self.params))

    @property
    def computed_with(self) -> dict[str, str]:
        """`plans.computed_with`, without the loss if it is that of the data sets with such targets."""
        usual = squared_error if self.task.kind == "regression" else cross_entropy
        found = computed_with(self.task, self.params)
        return {k: v for k, v in found.items() if k != "loss" or self.task.loss is not usual}

    def scores(self, method: str, *, by: Callable | None = None, **hyper: Any) -> xr.DataArray:
        """Scores of the left-out instances for the tested ones, with the paper's hyper-parameters unless given.

        A method that diverges leaves an array of NaN whose attribute `outcome` says why.

        Args:
            by: what computes the method's scores where they are missing, if not the method itself.
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
            **self.computed_with,
            **({"curvature": s.curvature} if s.curvature else {}),
            **version(chosen),
        }

        def compute() -> xr.Dataset:
            log.info("%s on %s: computing scores %s", method, self.title, chosen or "")
            rows = {"train": s.left_out, "test": s.test, "curvature": curved(s, self.task.n_train, chosen)}
            function = by or YARDSTICKS.get(method, method)
            found = attribute_or_outcome(function, self.task, self.params, **rows, **chosen)
            return found.to_dataset(name="scores")

        return cached(self.folder, f"scores-{self.dataset}-{method}", spec, compute, compute_missing=self.compute)[
            "scores"
        ]

    def stored(self, methods: Iterable[str]) -> tuple[xr.Dataset | None, dict[str, xr.DataArray]]:
        """What has been computed: further training (None if it has not), and method -> scores."""
        found = {name: finished(lambda name=name: self.scores(name)) for name in methods}
        return finished(lambda: self.gold), {name: scores for name, scores in found.items() if scores is not None}

    def other(self, **changes: Any) -> Panel:
        """The same with another optimiser, profile, ...; itself, with all that it has loaded, if nothing changes. What
        was given in place of its own stays as long as it is the same piece of the paper."""
        if all(getattr(self, name) == value for name, value in changes.items()):
            return self
        own = {} if changes.keys() <= {"compute", "results"} else dict.fromkeys(GIVEN)
        return replace(self, **{**own, **changes})


def one_seed(panel: Panel, seed: int) -> Panel:
    """The same with a single seed of further training; data and final model are shared."""
    return replace(
        panel,
        given_task=panel.task,
        given_params=panel.params,
        given_settings=replace(panel.settings, seeds=(seed,)),
    )


def one_retraining(panel: Panel, seed: int) -> Panel:
    """The same with a single seed of re-training, which needs no final model."""
    return replace(panel, given_task=panel.task, given_settings=replace(panel.settings, retrain_seeds=(seed,)))


def upper_task(task: Task, trained_layers: int, rows: Sequence[int] | None, folder: Path) -> Task:
    """`encoders.cached_task`, with what the lower layers put out kept in the store, rounded to half precision.

    It counts as loading of data: computed even where results are not to be, half a minute for 5,000 sentences.
    Rounded, because it depends on the number of threads in its last digits, and stored, because it is part of the
    data by which all other results are found.
    """
    chosen = {"trained_layers": trained_layers, "rows": rows}
    spec = {
        **chosen,
        "data": fingerprint(task.train, task.test),
        "model": repr(task.model),
        "params": fingerprint(dict(task.model.named_parameters())),
    }

    def compute() -> xr.Dataset:
        cached = cached_task(task, **chosen)
        hidden = {
            p: ((f"{p}_row", f"{p}_position", "feature"), getattr(cached, p)[0]["hidden"].half().numpy())
            for p in ("train", "test")
        }
        found = xr.Dataset(hidden)
        for part in hidden:
            found[part].encoding = {"zlib": True, "complevel": 1}  # most of it is padding
        return found

    stored = cached(folder, f"hidden-{task.name}", spec, compute)
    return cached_task(task, **chosen, hidden={p: torch.from_numpy(stored[p].values).float() for p in stored})


def too_large(outputs: int, parameters: int) -> bool:  # by all instances' outputs; then methods compute in float32
    return outputs > HOLD_FLOAT64 or parameters > 500_000


def n_parameters(params: Params) -> int:
    return sum(p.numel() for p in params.values())


def attribute_or_outcome(method: str | Callable, task: Task, params: Params, **arguments: Any) -> xr.DataArray:
    """`attribute`, with divergence as a result: scores of NaN and the reason in the attribute `outcome`."""
    try:
        return attribute(method, task, params, **arguments).assign_attrs(outcome="finished")
    except MethodDiverged as reason:
        log.warning("%s", reason)
        train = list(arguments["train"])
        rows = {"test": list(arguments["test"]), **(numbered(train) if is_grouped(train) else {"train": train})}
        values = np.full((len(rows["test"]), len(train)), np.nan)
        return xr.DataArray(
            values, dims=("test", "train"), coords=rows, attrs={"method": method, "outcome": f"diverged: {reason}"}
        )


def finished(pieces: Callable[[], Any]) -> Any | None:
    """What `pieces` returns, or None if something it needs has not been computed."""
    try:
        return pieces()
    except Missing:
        return None
