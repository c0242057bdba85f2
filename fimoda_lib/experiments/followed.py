"""What LFT follows in a panel, and with which settings: one version for all data sets and optimisers.

Width and sample were chosen by `benchmarks/choose_width.py`, on data sets that are not the paper's; products by what
they cost; runs, segments and Adam's floor on the paper's own (`benchmarks/lft_runs.py` and trials, see docs/beyond.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..training.minibatches import steps_per_epoch
from .settings import Settings, including

LFT_SEED = 1000  # of its first full run: none of the gold standard's, whose noise it would share
LFT_RUNS = 5  # averaged
SPLIT_RUNS = 1  # likewise, where the whole Hessian is followed along each: a second one gains less than it costs
SPLIT_SEGMENTS = 10  # at least, with Adam, whose preconditioner is taken anew in each
SPLIT_LEAST, SPLIT_MOST = 64, 1_024  # training instances in one of its products
WITH_ADAM = 2  # version of the whole Hessian with Adam: scores of the first one, in an old results folder, do not count
SPLIT_CURVED = 1_000  # at most so many define its G: products of the Hessian make up for the others


def followed(s: Settings, n_train: int, *, single: bool, whole: bool, timed: bool) -> dict[str, Any]:
    """The hyper-parameters of "lft" and "timed": which further training they follow, and when to look.

    Args:
        single: gradients are kept in float32.
        whole: LFT has the whole Hessian, if the data set gives it products; else G alone.
        timed: of "timed".
    """
    training = s.further.arguments()
    epochs, steps = training.pop("epochs"), training.pop("evaluate", None)
    per_epoch = steps_per_epoch(n_train, training["batch_size"])
    horizon = list(steps or (per_epoch * (e + 1) for e in range(epochs)))
    found = {"horizon": horizon, "further_training": {**training, "seed": LFT_SEED}}
    found |= {"dtype": "float32"} if single else {}
    if timed:
        return found
    if not whole or s.lft_products is None:
        return {**found, "runs": LFT_RUNS, "segments": min(s.lft_segments, len(horizon))}
    # Together all products see as many instances as one run of further training does, which bounds their cost.
    sample = max(horizon[-1] * training["batch_size"] // (s.lft_products * SPLIT_RUNS), SPLIT_LEAST)
    split = {"mode": "split", "products": s.lft_products, "sample": min(sample, SPLIT_MOST), "dtype": "float32"}
    if s.removal == "subtract" and (training["optimizer"] != "sgd" or "max_grad_norm" in training):
        found["further_training"] |= {"removal": s.removal}  # of no effect elsewhere
    segments = max(s.lft_segments, 1 if training["optimizer"] == "sgd" else SPLIT_SEGMENTS)
    return {**found, **split, "runs": SPLIT_RUNS, "segments": min(segments, len(horizon))}


def version(hyper: Mapping[str, Any]) -> dict[str, int]:
    """What keeps scores with these hyper-parameters apart from those of an earlier version of the method."""
    adam = hyper.get("mode") == "split" and hyper["further_training"]["optimizer"] != "sgd"
    return {"version": WITH_ADAM} if adam else {}


def curved(s: Settings, n_train: int, hyper: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The instances that define the curvature for a method with these hyper-parameters; None for all."""
    if hyper.get("mode") != "split" or s.curvature or n_train <= SPLIT_CURVED:
        return s.curvature
    return tuple(including(s.left_out, n_train, SPLIT_CURVED))
