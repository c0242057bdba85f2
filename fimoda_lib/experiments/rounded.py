"""Text as it was published: sensitivities of tiny steps and weights, from test losses rounded to float32.

Is a curve that starts low, and falls, made by rounding?
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from ..averaging import BLOCKS, averaged_similarities
from ..training.further_training import further_train
from ..training.minibatches import steps_per_epoch
from .panel import Panel
from .paper_settings import EXPERIMENTS
from .profiles import get_profile
from .settings import experiment_of
from .studies import log_epochs, paper_sized, study_arguments

SHRUNK = (1.0, 0.1, 0.01)  # as if all sensitivities were so much smaller before test losses are rounded


def published_runs(panel: Panel) -> xr.Dataset:
    """Further training with every seed, the paper's learning rate and weight of an instance, and the paper's steps.

    Only a profile with the paper's model goes as far as the paper; others stop after the steps of `paper_sized`.
    """
    (further, whole), here = paper_sized(panel), experiment_of(panel.dataset, panel.profile)
    if get_profile(panel.profile).full_size:
        last = steps_per_epoch(here.n_all or panel.task.n_train, further.batch_size)
        per_epoch = steps_per_epoch(panel.task.n_train, further.batch_size)
        steps = [step for step in EXPERIMENTS[panel.dataset].further[further.optimizer].evaluate if step < last]
        chosen = (*(steps[k - 1] for k in log_epochs(len(steps))), last)
        further = replace(further, epochs=-(-last // per_epoch), evaluate=chosen)
    return further_train(
        panel.task,
        panel.params,
        **{**study_arguments(panel, further), "seeds": range(get_profile(panel.profile).rounding_seeds)},
        fraction=whole,
        store=panel.folder,
        compute_missing=panel.compute,
        progress=panel.compute,
    )


def rounded(runs: xr.Dataset, shrunk: float = 1.0) -> xr.Dataset:
    """The runs as if both test losses had been rounded to float32 before they were subtracted.

    Args:
        shrunk: the differences are made so much smaller first.
    """
    full = runs["full_loss"].astype("float64")
    with_instance, without = full.astype("float32"), (full + shrunk * runs["delta"].astype("float64")).astype("float32")
    return runs.assign(delta=(without - with_instance).astype("float64").transpose(*runs["delta"].dims))


def rounding_table(panel: Panel) -> pd.DataFrame:
    """Similarity of Grad-Dot to these runs, for single seeds and for means of more of them.

    Returns:
        columns losses ("float64" or "float32"), shrunk, seeds_averaged, step, epoch, mean (over blocks of seeds and
        test instances), zero (the share of differences that are zero).
    """
    runs = published_runs(panel)
    scores = {"grad_dot": panel.scores("grad_dot")}
    sizes = sorted({*(k for k in BLOCKS if k <= runs.sizes["seed"]), runs.sizes["seed"]})
    measured = {("float64", 1.0): runs} | {("float32", shrunk): rounded(runs, shrunk) for shrunk in SHRUNK}
    tables = []
    for (losses, shrunk), one in measured.items():
        found = averaged_similarities(scores, one, sizes)["grad_dot"].mean("test")
        zero = (one["delta"] == 0).mean([dim for dim in one["delta"].dims if dim != "step"])
        table = found.to_dataframe("mean").reset_index().assign(losses=losses, shrunk=shrunk)
        tables.append(table.merge(zero.to_dataframe("zero").reset_index()[["step", "zero"]], on="step"))
    columns = ["losses", "shrunk", "seeds_averaged", "step", "epoch", "mean", "zero"]
    return pd.concat(tables, ignore_index=True).astype({"mean": np.float64})[columns]
