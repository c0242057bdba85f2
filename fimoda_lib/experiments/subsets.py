"""What the studies of groups share: which horizons, seeds and test instances; random subsets; what methods predict.

Leaving out a group is measured by further training with `mask`, whatever the panel's own way: full and shortened runs
share every batch, and so need fewest seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from ..groups import Groups, group_scores
from ..tasks import take
from ..training.further_training import further_train
from ..training.plans import groups_in_short
from .panel import Panel
from .profiles import get_profile
from .ranking import reduced_scores, some_horizons

LDS_SHARES = (0.01, 0.1, 0.5)  # of the training instances (see `pool`), removed at random
CURVE_SHARES = (0.01, 0.02, 0.05)  # likewise, removed by rank
HORIZONS = 8
SHORT = 0.2  # of the length of runs that are too long for a profile
MOST_WHOLE = 2_000  # training instances x outputs, up to which LFT also follows subsets as a whole
DIRECTIONS = ("helpful", "harmful")


def studied(panel: Panel) -> Panel:
    """The panel with the seeds, test instances and horizons of the studies of groups."""
    s, profile = panel.settings, get_profile(panel.profile)
    steps = panel.hyper("lft")["horizon"][-1]
    further = s.further
    if steps > profile.group_steps:
        further = further.scaled(SHORT).within(round(steps * SHORT))
    shorter = replace(
        panel, given_task=panel.task, given_params=panel.params, given_settings=replace(s, further=further)
    )
    changed = replace(
        s,
        further=replace(further, evaluate=tuple(some_horizons(shorter, HORIZONS))),
        seeds=s.seeds[: profile.group_seeds],
        test=s.test[: profile.explained],
    )
    return replace(shorter, given_settings=changed)


def shortened(panel: Panel) -> str:
    """How long the runs are, in words, of a panel that was not made by `studied`."""
    last, all_of_it = studied(panel).settings.further.evaluate[-1], panel.hyper("lft")["horizon"][-1]
    return f"{last:,} steps" if last >= all_of_it else f"the first {last:,} of {all_of_it:,} steps"


def pool(panel: Panel) -> np.ndarray:
    """The training instances that groups are drawn from, ascending: all, or so many that every method can score them.

    LFT holds the Jacobian of every output of each of them.
    """
    n, n_outputs = panel.task.n_train, list(panel.params.values())[-1].shape[0]
    most = max(get_profile(panel.profile).pool // n_outputs, 2)
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(5).choice(n, most, replace=False))


def random_subsets(n: int, share: float, count: int, seed: int = 0) -> Groups:
    """Different random groups of a share of n training instances, at least one each; fewer if there are not so many."""
    size = min(max(round(share * n), 1), n - 1)
    random, found = np.random.default_rng([seed, size]), {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found[tuple(np.sort(random.choice(n, size, replace=False)).tolist())] = None
    return tuple(found)


def subset_bank(panel: Panel) -> tuple[Groups, np.ndarray]:
    """The random subsets of all `LDS_SHARES` of the pool, and the share that each belongs to."""
    count, rows = get_profile(panel.profile).n_subsets(panel.dataset), pool(panel)
    drawn = {share: random_subsets(len(rows), share, count) for share in LDS_SHARES}
    banks = {share: [tuple(rows[list(group)].tolist()) for group in bank] for share, bank in drawn.items()}
    groups = dict.fromkeys(group for bank in banks.values() for group in bank)  # of few data, shares may coincide
    shares = [next(share for share, bank in banks.items() if group in set(bank)) for group in groups]
    return tuple(groups), np.array(shares)


def ranks_kept(n: int) -> int:
    """How many of n instances are kept from either end of a ranking."""
    return max(round(max(CURVE_SHARES) * n), 1)


def predictions(panel: Panel, method: str) -> xr.Dataset:
    """What a method says of groups, of a panel made by `studied`; [horizon, ...] for LFT.

    Returns:
        `predicted[test, train]`, the sum of scores over each subset of the bank, and `helpful[test, place]`,
        `harmful[test, place]`, the instances at either end of the ranking of each test instance, the utmost first.
        Predictions of a method that diverged are NaN.
    """
    train, groups = pool(panel), subset_bank(panel)[0]
    rows, most = list(panel.settings.test), ranks_kept(len(train))

    def reduce(scores: xr.DataArray) -> xr.Dataset:
        order = train[np.argsort(scores.transpose(..., "train").values, axis=-1, kind="stable")].astype("int32")
        ends = {"helpful": order[..., ::-1][..., :most], "harmful": order[..., :most]}
        dims = (*(d for d in scores.dims if d != "train"), "place")
        found = {name: (dims, places) for name, places in ends.items()}
        return xr.Dataset({"predicted": group_scores(scores, groups), **found}).assign_coords(test=rows)

    return reduced_scores(
        panel,
        "groups",
        method,
        train=train.tolist(),
        test=take(panel.task.test, torch.tensor(rows)),
        horizons=panel.settings.further.evaluate,
        reduce=reduce,
        about={"groups": [list(LDS_SHARES), get_profile(panel.profile).n_subsets(panel.dataset)], "kept": most},
    )


def whole_predictions(panel: Panel) -> xr.DataArray | None:
    """What LFT says of the subsets followed as a whole, in place of the sum over their members, [horizon, test, train].

    None where data are so many that these do not fit (`MOST_WHOLE`), or LFT is not run.
    """
    n_outputs = list(panel.params.values())[-1].shape[0]
    if not panel.lft or len(pool(panel)) * n_outputs > MOST_WHOLE:
        return None
    groups = subset_bank(panel)[0]
    return reduced_scores(
        panel,
        "whole-groups",
        "lft",
        train=groups,
        test=take(panel.task.test, torch.tensor(panel.settings.test)),
        horizons=panel.settings.further.evaluate,
        reduce=lambda scores: scores.to_dataset(name="predicted"),
        about={"train": groups_in_short(groups)},
    ).predicted


def bank(panel: Panel, groups: Sequence[tuple[int, ...]]) -> xr.Dataset:
    """Further training without each of the groups, of a panel made by `studied`."""
    s = panel.settings
    return further_train(
        panel.task,
        panel.params,
        **s.further.arguments(),
        seeds=s.seeds,
        left_out=groups,
        removal="mask",
        test=s.test,
        store=panel.folder,
        compute_missing=panel.compute,
        progress=panel.compute,
    )


def resampling(n: int, draws: int, seed: int) -> np.ndarray:
    """How much each of n counts in bootstrap samples, [1 + draws, n]: rows of sum 1, the first the sample itself."""
    even = np.full(n, 1 / n)
    return np.concatenate([even[None], np.random.default_rng(seed).multinomial(n, even, size=draws) / n])
