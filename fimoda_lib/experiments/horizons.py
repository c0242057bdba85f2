"""Selection by horizon: instances are dropped by scores made for K steps of further training; what is gained after T?

Three sets that do not overlap: methods see the training instances and a validation set, the gain is measured on a third
set that nothing has touched. What is dropped harms the validation set most, by the method's word.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ..tasks import take
from ..training.further_training import further_train
from .panel import Panel
from .profiles import get_profile
from .ranking import epochs_of, ranking_methods, reduced_scores, some_horizons

DROPPED = 0.1  # of the candidates
KS, TS = 6, 12  # horizons at which LFT scores, and at which the gain is measured
RANDOM = 5  # groups drawn by lot, for comparison
VALIDATION = 200  # at most so many instances
DRAWS = 1000
LOT = "random"


def thirds(panel: Panel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which training instances may be dropped; which test instances are for validation, and which stay untouched."""
    random, most = np.random.default_rng(2), get_profile(panel.profile).ranked
    train, test = random.permutation(panel.task.n_train), random.permutation(panel.task.n_test)
    half = len(test) // 2
    return np.sort(train[:most]), np.sort(test[:half][:VALIDATION]), np.sort(test[half:])


def values_of(panel: Panel, method: str) -> xr.DataArray:
    """What each candidate is worth to the validation set by a method: its mean score, [train], or [horizon, train]."""
    candidates, validation, _ = thirds(panel)
    found = reduced_scores(
        panel,
        "selection",
        method,
        train=candidates.tolist(),
        test=take(panel.task.test, torch.from_numpy(validation)),
        horizons=some_horizons(panel, KS),
        reduce=lambda scores: scores.mean("test", skipna=False).to_dataset(name="value"),
    )
    return found["value"]


def most_harmful(values: xr.DataArray, share: float = DROPPED) -> tuple[int, ...]:
    """The instances that are worth least, a share of all, ascending."""
    worst = np.argsort(values.values, kind="stable")[: max(round(share * values.size), 1)]
    return tuple(np.sort(values["train"].values[worst]).tolist())


def groups_of(panel: Panel) -> tuple[pd.DataFrame, list[tuple[int, ...]]]:
    """What is dropped: a row for each choice, and the groups that are chosen, each once.

    Returns:
        columns method ("random" for groups drawn by lot), step (the horizon K of LFT), group (its number); the groups.
        Methods that diverged choose nothing.
    """
    candidates, _, _ = thirds(panel)
    rows, groups = [], {}

    def choose(method: str, step: float, group: tuple[int, ...]) -> None:
        rows.append({"method": method, "step": step, "group": groups.setdefault(group, len(groups))})

    for method in ranking_methods(panel):
        values = values_of(panel, method)
        for k, step in enumerate(values["horizon"].values if "horizon" in values.dims else [np.nan]):
            one = values.isel(horizon=k) if "horizon" in values.dims else values
            if np.isfinite(one).all():
                choose(method, step, most_harmful(one))
    random = np.random.default_rng(3)
    for _ in range(RANDOM):
        choose(LOT, np.nan, most_harmful(xr.DataArray(random.random(len(candidates)), {"train": candidates})))
    return pd.DataFrame(rows), list(groups)


def selection_runs(panel: Panel) -> xr.Dataset:
    """Further training without each of the groups, measured on the validation set and on the untouched one."""
    s = panel.settings
    _, validation, untouched = thirds(panel)
    return further_train(
        panel.task,
        panel.params,
        **replace(s.further, evaluate=tuple(some_horizons(panel, TS))).arguments(),
        seeds=s.seeds_of_studies,
        left_out=groups_of(panel)[1],
        # The same batches and as many steps as with all data: what is gained is not gained by another order.
        removal="mask" if s.removal == "drop" else s.removal,
        test=[*validation.tolist(), *untouched.tolist()],
        store=panel.folder,
        compute_missing=panel.compute,
        progress=panel.compute,
    )


def what_is_dropped(panel: Panel) -> str:
    """The settings of the study in a clause."""
    s = panel.settings
    candidates, validation, untouched = thirds(panel)
    return (
        f"{len(groups_of(panel)[1][0]):,} of {len(candidates):,} candidates dropped ({panel.task.n_train:,} training "
        f"instances), {len(validation):,} validation and {len(untouched):,} untouched instances, "
        f"{len(s.seeds_of_studies)} seeds, learning rate {s.further.learning_rate:g}"
    )


def gains(panel: Panel) -> pd.DataFrame:
    """By how much the mean loss is lower where the chosen instances were dropped, in percent of the loss with all data.

    Returns:
        columns method ("random" for the mean over groups drawn by lot), step and epoch (the horizon K of LFT, NaN for
        all others), after_step and after_epoch (T), part ("validation" or "untouched"), gain, low and high (95 %
        interval), over_random, over_low and over_high (the gain less that of the groups drawn by lot, paired).
        Intervals are by bootstrap over seeds and test instances.
    """
    chosen, _ = groups_of(panel)
    runs = selection_runs(panel)
    by_lot = (chosen["method"] == LOT).to_numpy()
    rows = pd.concat([chosen[~by_lot], chosen[by_lot][:1]], ignore_index=True).drop(columns="group")
    steps = {"after_step": runs["step"].values, "after_epoch": runs["epoch"].values}
    tables = []
    for part, instances in zip(("validation", "untouched"), thirds(panel)[1:], strict=True):
        measured = runs[["delta", "full_loss"]].sel(test=instances).transpose("left_out", "step", "seed", "test")
        full, changes = measured["full_loss"].values, measured["delta"].values[chosen["group"]].astype("float64")
        changes = np.concatenate([changes[~by_lot], changes[by_lot].mean(0, keepdims=True)])
        found = -100 * resampled_means(changes) / resampled_means(full)  # [choice, step, 1 + draws]
        for row, gain in zip(rows.to_dict("records"), found, strict=True):
            over = gain - found[-1]
            columns = {f"{k}low": np.quantile(v[:, 1:], 0.025, axis=1) for k, v in (("", gain), ("over_", over))}
            columns |= {f"{k}high": np.quantile(v[:, 1:], 0.975, axis=1) for k, v in (("", gain), ("over_", over))}
            columns |= {"gain": gain[:, 0], "over_random": over[:, 0], "part": part}
            tables.append(pd.DataFrame({**row, **steps, **columns}))
    return pd.concat(tables, ignore_index=True).assign(epoch=lambda t: epochs_of(panel, t["step"]))


def resampled_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means over seeds and test instances, [..., seed, test] -> [..., 1 + draws]: first that of the sample itself.

    The resamples, of seeds and of test instances, are the same for all values of these sizes.
    """
    random = np.random.default_rng(seed)
    shares = [random.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in values.shape[-2:]]
    resampled = np.einsum("...sd,ds->...d", values @ shares[1].T, shares[0])
    return np.concatenate([values.mean((-2, -1))[..., None], resampled], axis=-1)


def best_horizons(table: pd.DataFrame, part: str = "untouched") -> pd.DataFrame:
    """For each T the K whose choice by LFT gained most: columns after_epoch, epoch (K), gain, over_low, over_high."""
    lft = table[(table["method"] == "lft") & (table["part"] == part)]
    best = lft.loc[lft.groupby("after_step")["gain"].idxmax()]
    return best[["after_epoch", "epoch", "gain", "over_low", "over_high"]].reset_index(drop=True)


def follows(best: pd.DataFrame) -> float:
    """The rank correlation of T and the K of `best_horizons`; 0 where one K is best for all."""
    return best["after_epoch"].corr(best["epoch"], method="spearman") if best["epoch"].nunique() > 1 else 0.0
