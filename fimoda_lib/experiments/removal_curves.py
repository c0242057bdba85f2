"""Removal curves: the training instances that a method holds to be most helpful to a test instance, or most harmful,
are left out of further training. How far does its loss rise, or fall?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.utils._pytree import tree_leaves

from ..comparison import sensitivity
from ..tasks import Task, take
from .panel import Panel
from .profiles import get_profile
from .ranking import epochs_of, ranking_methods
from .subsets import CURVE_SHARES, DIRECTIONS, bank, pool, predictions, resampling, shortened, studied

DRAWS = 1000
LOT, NEAR = "random", "alike"  # the controls
KEYS = ("method", "step", "direction", "share")  # of a curve's points
Choice = dict[str, np.ndarray]  # direction -> training instances [test, place], the utmost first


def curve_panel(panel: Panel) -> Panel:
    """The panel with the test instances whose curves are drawn, and an early and the last horizon."""
    s, profile = (panel := studied(panel)).settings, get_profile(panel.profile)
    steps = s.further.evaluate
    further = replace(s.further, evaluate=tuple(sorted({steps[len(steps) // 3], steps[-1]})))
    return replace(panel, given_settings=replace(s, further=further, test=s.test[: profile.curves]))


def rankings(panel: Panel) -> dict[tuple[str, float], Choice]:
    """(method, horizon that its scores were made for, NaN if none) -> what it would have removed; controls as well.

    Methods that diverged choose nothing. The control "alike" holds, for a regression, the training instances whose
    inputs are nearest; for a classification, those of the same class in random order.
    """
    short, panel, found = curve_panel(panel), studied(panel), {}
    test = list(short.settings.test)
    for method in ranking_methods(panel):
        said = predictions(panel, method).sel(test=test)
        for step in short.settings.further.evaluate if "horizon" in said.dims else [np.nan]:
            one = said if np.isnan(step) else said.sel(horizon=step)
            if np.isfinite(one.predicted).all():
                found[method, step] = {name: one[name].values for name in DIRECTIONS}
    most = next(iter(found.values()))["helpful"].shape[1] if found else 1
    for name, control in ((LOT, by_lot), (NEAR, alike)):
        found[name, np.nan] = {"helpful": control(panel.task, test, pool(panel), most)}
    return found


def by_lot(task: Task, test: Sequence[int], rows: np.ndarray, most: int) -> np.ndarray:
    """Some of these training instances in random order for each test instance, [test, most]."""
    return np.stack([np.random.default_rng([4, z]).permutation(rows)[:most] for z in test])


def alike(task: Task, test: Sequence[int], rows: np.ndarray, most: int) -> np.ndarray:
    """Training instances of the same class in random order or, of a regression, with the nearest inputs, [test, most].

    Classes may hold fewer: then others follow, in random order.
    """
    if task.kind == "classification":
        orders = by_lot(task, test, rows, len(rows))
        same = task.train[1].numpy()[orders] == task.test[1].numpy()[list(test)][:, None]
        first = np.argsort(~same, axis=1, kind="stable")
        return np.take_along_axis(orders, first, axis=1)[:, :most]
    train, tested = (
        torch.cat([leaf.flatten(1).double() for leaf in tree_leaves(instances[0])], 1)
        for instances in (take(task.train, torch.from_numpy(rows)), take(task.test, torch.tensor(test)))
    )
    return rows[torch.cdist(tested, train).argsort(dim=1, stable=True)[:, :most].numpy()]


def removed_groups(panel: Panel, found: dict[tuple[str, float], Choice]) -> tuple[pd.DataFrame, list[tuple[int, ...]]]:
    """What is removed: a row for every choice, and the groups, each once.

    Returns:
        columns method, step (for which scores were made), direction, share, test, group (its number); the groups.
    """
    n, rows, groups = len(pool(panel)), [], {}
    test = curve_panel(panel).settings.test
    for (method, step), choice in found.items():
        for direction, places in choice.items():
            for share in CURVE_SHARES:
                for z, order in zip(test, places, strict=True):
                    group = tuple(sorted(order[: max(round(share * n), 1)].tolist()))
                    number = groups.setdefault(group, len(groups))
                    rows.append((method, step, direction, share, z, number))
    names = ["method", "step", "direction", "share", "test", "group"]
    return pd.DataFrame(rows, columns=names), list(groups)


def curve_runs(panel: Panel) -> xr.Dataset:
    """Further training without each of the groups."""
    return bank(curve_panel(panel), removed_groups(panel, rankings(panel))[1])


def what_is_removed(panel: Panel) -> str:
    """The settings of the study in a clause."""
    runs = curve_runs(panel)
    return (
        f"{runs.sizes['left_out']} groups removed, {runs.sizes['test']} test instances, {runs.sizes['seed']} seeds, "
        f"learning rate {runs.attrs['learning_rate']:g}, {shortened(panel)}"
    )


def removal_curves(panel: Panel) -> pd.DataFrame:
    """By how much a test instance's loss is higher where what a method chose for it was left out.

    Returns:
        columns method ("random" and "alike" are the controls), step and epoch (the horizon that LFT's scores were made
        for; NaN for all others), direction ("helpful" instances removed, or "harmful" ones), share (of the training
        instances), after_step and after_epoch (of further training), change (of the loss, mean over test instances),
        low and high (95 % interval by bootstrap over test instances).
    """
    runs, tables = curve_runs(panel), []
    after = {"after_step": runs.step.values, "after_epoch": runs.epoch.values}
    for key, draws in curve_draws(panel).items():
        low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
        columns = {**dict(zip(KEYS, key, strict=True)), **after, "change": draws[0], "low": low, "high": high}
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(epoch=epochs_of(panel, table["step"]))


def curve_draws(panel: Panel) -> dict[tuple, np.ndarray]:
    """Method, step, direction and share (`KEYS`) -> the mean change, and that of bootstrap samples, [1 + DRAWS, step].

    All are of the same samples of test instances, so that differences between methods are paired.
    """
    chosen, _ = removed_groups(panel, rankings(panel))
    measured = sensitivity(curve_runs(panel), "full").transpose("left_out", "test", "step")
    test = measured.indexes["test"].get_indexer(chosen["test"])
    change = measured.values[chosen["group"], test]  # [choice, step], each for its own test instance
    weights = resampling(measured.sizes["test"], DRAWS, 2)
    groups = chosen.groupby(list(KEYS), dropna=False, sort=False)
    return {key: weights @ change[rows.index] for key, rows in groups}
