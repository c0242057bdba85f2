"""How well do a method's scores agree with further training? Adjustment, similarity, seed blocks, noise ceiling.

Arrays carry named dimensions, and instances are matched by their numbers, never by position:
gold has `delta[seed, left_out, step, test]`, scores are `[test, train]`.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from . import checks

Adjustment = Literal["mean", "full"]
Metric = Literal["cosine", "spearman"]
Estimate = Literal["cosines", "variances"]
METRICS = ("cosine", "spearman")


def sensitivity(gold: xr.Dataset | xr.DataArray, adjustment: Adjustment = "mean") -> xr.DataArray:
    """Sensitivity of the test losses to each left-out instance, averaged over seeds.

    Args:
        gold: what `further_train` returns (or its `delta`).
        adjustment: "full" subtracts the run on all data (paper, eq. 17), which `delta` already does; "mean" also
            subtracts the mean over the left-out instances (eq. 13, the paper's main figures).

    Returns:
        [left_out, step, test], float64, positive = helpful; NaN where a run diverged in any of the seeds.
    """
    delta = delta_of(gold, adjustment).transpose("seed", ...)
    total = delta.isel(seed=0, drop=True).astype("float64")
    for one in delta.values[1:]:  # one at a time, so that a hundred of them are never held in float64
        total.values += one
    return adjusted(total / delta.sizes["seed"], adjustment)


def similarity(
    scores: xr.DataArray,
    sensitivity: xr.DataArray,
    metric: Metric = "cosine",
    undefined: Literal["zero", "skip"] = "zero",
) -> xr.Dataset:
    """Similarity of scores and sensitivity over the left-out instances, averaged over test instances.

    Args:
        scores: [test, train], or [horizon, test, train] with a horizon for every step of the sensitivity; must cover
            the sensitivity's test and left-out instances, in any order.
        undefined: a test instance whose scores or sensitivities are all zero (for Spearman: all equal), or not finite,
            has no similarity; it counts as 0 ("zero") or is left out of the mean ("skip").

    Returns:
        `mean[step]`, `sem[step]` (standard error over test instances) and `undefined[step]`, how many there were.

    Raises:
        ValueError: unknown option, or scores that do not cover the instances.
    """
    checks.choice("undefined", undefined, ("zero", "skip"), "'zero' or 'skip'")
    values = instance_similarity(scores, sensitivity, metric)
    missing = values.isnull().sum("test")
    return summary(values.fillna(0.0) if undefined == "zero" else values, missing)


def instance_similarity(scores: xr.DataArray, sensitivity: xr.DataArray, metric: Metric = "cosine") -> xr.DataArray:
    """Similarity for each test instance on its own, [step, test]; NaN where it is undefined."""
    check_metric(metric)
    require("scores", scores, ("test", "train"), "attribute", optional=("horizon",))
    require("sensitivity", sensitivity, ("left_out", "step", "test"), "sensitivity")
    a = directions(matching(scores, sensitivity).transpose(..., "test", "left_out").values, metric)
    b = directions(sensitivity.transpose("step", "test", "left_out").values, metric)
    values = np.einsum("...i,...i->...", a, b)
    steps = sensitivity.coords["step"].coords
    return xr.DataArray(values, dims=("step", "test"), coords={**steps, "test": sensitivity["test"].values})


def noise_ceiling(gold: xr.Dataset, adjustment: Adjustment = "mean", estimate: Estimate = "cosines") -> xr.DataArray:
    """The similarity that a perfect method could reach against this many seeds, [step].

    With r the agreement of the S seeds (`seed_agreement`): √(S r / (1 + (S-1) r)); with a single seed the ceiling is
    unknown (NaN). The estimate by "cosines" is the textbook's, for seeds that are equally noisy. Figures over horizons
    take "variances", which is lower where some seeds are noisier than others: a plain mean over seeds weighs those
    most. Both are upper estimates where test instances differ, for r is averaged over these first.
    """
    S = delta_of(gold, adjustment).sizes["seed"]
    return ceiling_of(seed_agreement(gold, adjustment, estimate), S)


def ceiling_of(agreement: Any, seeds: float) -> Any:
    """The noise ceiling of so many seeds with this mutual agreement."""
    return np.sqrt(seeds * agreement / (1 + (seeds - 1) * agreement))


def seed_agreement(
    gold: xr.Dataset | xr.DataArray, adjustment: Adjustment = "mean", estimate: Estimate = "cosines"
) -> xr.DataArray:
    """How far two seeds agree, averaged over test instances, [step].

    Args:
        estimate: "cosines", the mean cosine between the sensitivities of two seeds, or "variances", the share of a
            seed's squared sensitivities that all seeds have in common (the intraclass correlation). They differ where
            seeds have noise of different sizes, which cosines cannot tell.

    Returns:
        r; a negative mean counts as 0; with a single seed it is unknown (NaN).
    """
    checks.choice("estimate", estimate, ("cosines", "variances"), "'cosines' or 'variances'")
    delta = delta_of(gold, adjustment)
    S = delta.sizes["seed"]
    steps = delta.coords["step"].coords
    if S < 2:
        return xr.DataArray(np.full(delta.sizes["step"], np.nan), dims="step", coords=steps)

    def one(k: int) -> np.ndarray:  # at a time, so that a hundred of them are never held in float64
        values = adjusted(delta.isel(seed=k).astype("float64"), adjustment)
        return values.transpose("step", "test", "left_out").values

    # A scale of its own for every test instance, down to where squares underflow; by "variances" all seeds share it.
    shared = None
    if estimate == "variances":
        shared = reduce(np.maximum, (np.abs(one(k)).max(-1, keepdims=True) for k in range(S)))
    total = squares = 0.0
    for k in range(S):
        vectors = scaled(one(k)) if shared is None else one(k)
        scale = np.linalg.norm(vectors, axis=-1, keepdims=True) if shared is None else shared
        vectors = np.divide(vectors, scale, out=np.full_like(vectors, np.nan), where=scale > 0)
        total, squares = total + vectors, squares + np.square(vectors).sum(-1)
    common = (np.square(total).sum(-1) - squares) / (S * (S - 1))  # mean product of two seeds: |sum|² less the squares
    each = squares / S
    pairwise = np.divide(common, each, out=np.full_like(common, np.nan), where=each > 0)
    known = np.isfinite(pairwise)
    r = np.where(known, pairwise, 0).sum(-1) / np.maximum(known.sum(-1), 1)
    r = np.where(known.any(-1), np.clip(r, 0, 1), np.nan)
    return xr.DataArray(r, dims="step", coords=steps)


def seeds_needed(agreement: xr.DataArray, ceiling: float = 0.95) -> xr.DataArray:
    """How many seeds with this mutual agreement r have that noise ceiling c: c²(1 - r) / (r (1 - c²)), at least 1."""
    ceiling = checks.share("ceiling", ceiling)
    needed = ceiling**2 * (1 - agreement) / (agreement.where(agreement > 0) * (1 - ceiling**2))
    return needed.clip(min=1.0)


def seed_blocks(delta: xr.DataArray, k: int) -> list[xr.DataArray]:
    """The seeds in disjoint blocks of k; the rest that fills no block is left out."""
    n = delta_of(delta, "full").sizes["seed"]
    if checks.whole("seed blocks", k) > n:
        raise ValueError(f"seed blocks: got size {k}, expected 1 to {n}, the number of seeds.")
    return [delta.isel(seed=slice(start, start + k)) for start in range(0, n - k + 1, k)]


def delta_of(gold: xr.Dataset | xr.DataArray, adjustment: str) -> xr.DataArray:
    """The differences of losses in what further training returned; both arguments checked."""
    check_adjustment(adjustment)
    delta = gold["delta"] if isinstance(gold, xr.Dataset) and "delta" in gold else gold
    require("gold", delta, ("seed", "left_out", "step", "test"), "further_train")
    return delta


def adjusted(delta: xr.DataArray, adjustment: str) -> xr.DataArray:
    """Differences to the full run, under the mean adjustment less their mean over the left-out instances."""
    check_adjustment(adjustment)
    return delta - delta.mean("left_out", skipna=False) if adjustment == "mean" else delta


def check_metric(metric: str) -> None:
    """Raises ValueError for a metric that there is not."""
    checks.choice("metric", metric, METRICS)


def check_adjustment(adjustment: str) -> None:
    """Raises ValueError for an adjustment that there is not."""
    checks.choice("adjustment", adjustment, ("mean", "full"), "'mean' or 'full'")


def require(name: str, array: Any, dims: tuple[str, ...], origin: str, optional: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless this is an array of real numbers with these dimensions and instance numbers on them."""
    good = (
        isinstance(array, xr.DataArray)
        and {*dims} <= {*array.dims} <= {*dims, *optional}
        and all(dim in array.coords and array.sizes[dim] and array.indexes[dim].is_unique for dim in array.dims)
        and array.dtype.kind in "fiu"
    )
    if not good:
        got = (
            f"dimensions {dict(array.sizes)} of type {array.dtype}"
            if isinstance(array, xr.DataArray)
            else checks.shown(array)
        )
        raise ValueError(
            f"{name}: got {got}, expected an xarray.DataArray of real numbers over {', '.join(dims)}, each with its "
            f"own numbers and none empty, such as {origin} returns."
        )


def matching(scores: xr.DataArray, sensitivity: xr.DataArray) -> xr.DataArray:
    """The scores of the sensitivity's instances and horizons, in its order; their dimension is `left_out`, too."""
    of_groups = "group" in sensitivity.coords
    if of_groups != ("group" in scores.coords):
        single, groups = ("scores", "sensitivity") if of_groups else ("sensitivity", "scores")
        raise ValueError(
            f"{single}: got single instances with {groups} of groups; expected both alike: group_scores(scores, gold) "
            "sums scores over groups."
        )
    for ours, theirs in (("train", "left_out"), ("test", "test")):
        missing = np.setdiff1d(sensitivity[theirs].values, scores[ours].values)
        if len(missing) and of_groups and ours == "train":
            raise ValueError(
                f"scores: {len(missing)} of the groups left out have none (group {missing[0]}, say); take "
                "group_scores(scores, gold)."
            )
        if len(missing):
            raise ValueError(
                f"scores: {len(missing)} of the {theirs} instances have none (instance {missing[0]}, say); "
                f"compute scores with {ours}=gold['{theirs}']."
            )
    if "horizon" in scores.dims:
        missing = np.setdiff1d(sensitivity["step"].values, scores["horizon"].values)
        if len(missing):
            raise ValueError(
                f"scores: none for step {missing[0]} (they are for {scores['horizon'].values[:5].tolist()}, ...); "
                "compute them with horizon=gold['step'], or select gold's steps."
            )
        scores = scores.sel(horizon=sensitivity["step"].values)
    chosen = scores.sel(train=sensitivity["left_out"].values, test=sensitivity["test"].values)
    if of_groups and not np.array_equal(chosen["group"], sensitivity["group"]):
        raise ValueError("scores: got other groups than were left out; take group_scores(scores, gold).")
    return chosen.rename(train="left_out")


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors along the last axis divided by their largest entry; zero vectors stay zero, others that are not finite
    become NaN as a whole."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0.0)
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=(largest > 0) & np.isfinite(largest))
    scaled[~np.isfinite(largest[..., 0])] = np.nan
    return scaled


def directions(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Vectors along the last axis (for Spearman, their ranks) at length 1, of any magnitude, down to where squares
    underflow; NaN for those without a direction."""
    vectors = centred_ranks(vectors) if metric == "spearman" else scaled(vectors.astype(float, copy=False))
    norms = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return np.divide(vectors, norms, out=np.full_like(vectors, np.nan), where=norms > 0)


def centred_ranks(vectors: np.ndarray) -> np.ndarray:
    """Ranks along the last axis less their mean; NaN for a vector that is not finite."""
    ranks = rankdata(vectors, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    ranks[~np.isfinite(vectors).all(-1)] = np.nan
    return ranks


def summary(values: xr.DataArray, undefined: xr.DataArray) -> xr.Dataset:
    known = values.notnull().sum("test")
    sem = values.std("test", ddof=1) / np.sqrt(known)
    return xr.Dataset({"mean": values.mean("test"), "sem": sem, "undefined": undefined})
