"""Training instances ranked by what a method says of them, for studies that act on the ranking.

Scores of many instances are large and their means are not: only the means are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from ..intervals import log_spaced
from ..methods import METHODS
from ..storage.store import cached, fingerprint
from ..tasks import Instances
from ..training.minibatches import steps_per_epoch
from .panel import Panel, attribute_or_outcome

log = logging.getLogger(__name__)


def ranking_methods(panel: Panel) -> tuple[str, ...]:
    """The methods that rank: those that the panel runs, and LFT."""
    return (*panel.methods, *(["lft"] if panel.lft else []))


def some_horizons(panel: Panel, count: int) -> list[int]:
    """About so many of the steps at which further training is evaluated, evenly on a log axis, the last among them."""
    steps = panel.hyper("lft")["horizon"]
    return [steps[k] for k in log_spaced(steps, count)]


def epochs_of(panel: Panel, steps: Sequence[int]) -> np.ndarray:
    """Optimiser steps of further training in epochs."""
    return np.asarray(steps) / steps_per_epoch(panel.task.n_train, panel.settings.further.batch_size)


def reduced_scores(
    panel: Panel,
    study: str,
    method: str,
    *,
    train: Sequence[Any],
    test: Instances,
    horizons: Sequence[int],
    reduce: Callable[[xr.DataArray], xr.Dataset],
    about: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """What `reduce` makes of a method's scores, computed once and kept.

    Args:
        study: what `reduce` belongs to, for the name of the stored result.
        train: the training instances, or groups of them, that are scored.
        test: the instances that they are scored for, in place of the task's test instances.
        horizons: optimiser steps at which LFT scores; for all other methods there is one ranking, and no horizon.
        reduce: takes scores [test, train], or [horizon, test, train], which are NaN where the method diverged.
        about: what else determines what `reduce` makes, as JSON values; or what is to stand for one of the above.
    """
    chosen = panel.hyper(method, many=True) | ({"horizon": list(horizons)} if method == "lft" else {})
    task = replace(panel.task, test=test)
    spec = {
        "study": study,
        "method": method,
        "hyper": chosen,
        "task": panel.dataset,
        "train": list(train),
        "model": repr(task.model),
        "params": fingerprint(panel.params),
        "data": fingerprint(task.train, test),
        **panel.computed_with,
        "curvature": panel.settings.study_curvature,
        **(about or {}),
    }

    def compute() -> xr.Dataset:
        log.info("%s on %s: ranking %d training instances", METHODS[method].label, panel.title, len(train))
        rows = {"train": train, "test": range(task.n_test), "curvature": panel.settings.study_curvature}
        scores = attribute_or_outcome(method, task, panel.params, **rows, **chosen)
        return reduce(scores.astype("float64"))

    return cached(panel.folder, f"{study}-{panel.dataset}-{method}", spec, compute, compute_missing=panel.compute)
