"""The linear datamodeling score: do summed scores rank random subsets by what leaving them out does?

For each test instance, the Spearman correlation over subsets between the predicted change of its loss (the sum of the
scores of the subset's members) and the change that further training measures (Park et al. 2023, with retraining).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from ..comparison import centred_ranks, sensitivity
from .panel import Panel
from .ranking import ranking_methods
from .subsets import bank, pool, predictions, resampling, shortened, studied, subset_bank, whole_predictions

DRAWS = 1000
CEILING, WHOLE = "ceiling", "lft_whole"


def subset_runs(panel: Panel) -> xr.Dataset:
    """Further training without each random subset: one bank for all methods."""
    panel = studied(panel)
    return bank(panel, subset_bank(panel)[0])


def what_is_left_out(panel: Panel) -> str:
    """The settings of the study in a clause."""
    runs, n, drawn = subset_runs(panel), panel.task.n_train, len(pool(panel))
    return (
        f"{runs.sizes['left_out']} subsets of {f'{drawn:,} of ' if drawn < n else ''}{n:,} training instances, "
        f"{runs.sizes['test']} test instances, {runs.sizes['seed']} seeds, "
        f"learning rate {runs.attrs['learning_rate']:g}, {shortened(panel)}"
    )


def datamodeling_scores(panel: Panel) -> pd.DataFrame:
    """The linear datamodeling score of every method against the amount of further training.

    Returns:
        columns method ("ceiling" for what a perfect method could reach against so many seeds, "lft_whole" for LFT that
        follows subsets as a whole and sums nothing), share (of the pool that a subset holds: of all training instances,
        unless they are too many for every method), drawn (size of the pool), step, epoch, lds, low, high (95 % interval
        by bootstrap over subsets and test instances), undefined (test instances whose scores or changes are all equal:
        they count as 0), diverged (subsets without which training diverged: they are left aside). The score of a method
        that diverged is NaN.
    """
    runs, panel = subset_runs(panel), studied(panel)
    shares = subset_bank(panel)[1]
    found = {method: predictions(panel, method).predicted for method in ranking_methods(panel)}
    if (whole := whole_predictions(panel)) is not None:
        found[WHOLE] = whole
    tables = []
    for share in np.unique(shares):
        some = np.flatnonzero(shares == share)
        finite = np.isfinite(runs.delta.isel(left_out=some)).all([d for d in runs.delta.dims if d != "left_out"])
        lost, some = int((~finite).sum()), some[finite.values]
        gold = runs.isel(left_out=some)
        measured = sensitivity(gold, "full").transpose("step", "test", "left_out").values
        scores = {
            method: lds(p.transpose(..., "test", "train").values[..., some], measured) for method, p in found.items()
        }
        scores[CEILING] = seeds_ceiling(gold.delta.transpose("seed", "step", "test", "left_out").values)
        for method, (draws, undefined) in scores.items():
            said = {"method": method, "share": share, "drawn": len(pool(panel)), "undefined": undefined}
            tables.append(_rows(draws, runs).assign(**said, diverged=lost))
    return pd.concat(tables, ignore_index=True)


def lds(predicted: np.ndarray, measured: np.ndarray, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """The score, and that of bootstrap samples of subsets and test instances.

    Ranks are those of the whole sample, also in resamples.

    Args:
        predicted: [test, subset], or [step, test, subset]; measured: [step, test, subset].

    Returns:
        [1 + draws, step], first that of the sample itself; and how many test instances had none, [step].
    """
    a, b = centred_ranks(np.broadcast_to(predicted, measured.shape)), centred_ranks(measured)
    weights = resampling(measured.shape[-1], draws, 0)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.einsum("...s,ds->d...", values, weights, optimize=True)

    with np.errstate(invalid="ignore", divide="ignore"):
        covariance, spread = mean(a * b) - mean(a) * mean(b), [mean(r * r) - mean(r) ** 2 for r in (a, b)]
        value = covariance / np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0))  # [1 + draws, step, test]
    undefined = ~np.isfinite(value[0])
    value[~np.isfinite(value)] = 0.0
    value[:, np.isnan(a).any(-1).all(-1)] = np.nan  # the method diverged
    tests = resampling(measured.shape[1], draws, 1)
    return np.einsum("dkz,dz->dk", value, tests), undefined.sum(-1)


def seeds_ceiling(delta: np.ndarray, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect method could reach against the mean of so many seeds, by how far two halves of them agree.

    With r the score of one half against the other, and h seeds in each: a seed alone agrees with another by
    r/(h - (h-1) r), and so S seeds have the ceiling √(S r₁ / (1 + (S-1) r₁)) (Spearman and Brown).

    Args:
        delta: [seed, step, test, subset].

    Returns:
        as `lds`; NaN with a single seed.
    """
    S = len(delta)
    half = S // 2
    if not half:
        return np.full((1 + draws, delta.shape[1]), np.nan), np.zeros(delta.shape[1], int)
    delta = delta.astype("float64")
    r, undefined = lds(delta[:half].mean(0), delta[half : 2 * half].mean(0), draws)
    r = r.clip(0, 1)
    one = r / (half - (half - 1) * r)
    return np.sqrt(S * one / (1 + (S - 1) * one)), undefined


def _rows(draws: np.ndarray, runs: xr.Dataset) -> pd.DataFrame:
    low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {"step": runs.step.values, "epoch": runs.epoch.values, "lds": draws[0], "low": low, "high": high}
    )
