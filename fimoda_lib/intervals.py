"""How certain is a similarity, and how similar could any method be? Bands of similarities, and the noise ceiling.

Both are estimates from few seeds, so both come with an interval. A test simulates data whose truth is known and counts
how often the intervals hold it (`tests/test_intervals.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from scipy.stats import f, norm

from . import checks
from .comparison import Adjustment, Metric, adjusted, centred_ranks, check_adjustment, check_metric, matching, scaled

LEVEL = 0.95
RESAMPLES = 200
TOGETHER = 2**23  # numbers: so many sensitivities of several draws are held at once
MOST_STEPS = 40  # intervals are computed at so many horizons, evenly on a log axis, and interpolated between them


def ceiling_interval(gold: xr.Dataset, adjustment: Adjustment = "mean", level: float = LEVEL) -> xr.Dataset:
    """The similarity of a perfect method to this gold standard, estimated, with an interval, [step].

    Let s̄ = μ + e be the mean over S seeds for one test instance, a vector over left-out instances: the truth and the
    seeds' remaining noise. A method that returned μ would have the cosine √(1 - |e'|²/|s̄|²), e' the part of e across μ.
    The expected |e'|² is known from the variance between seeds across s̄; the estimate takes that. What it was this
    time is not known: with m = S - 1 and D independent numbers in the noise of a seed, |e'|² over its estimate follows
    the F distribution with D and m D degrees of freedom, of which the interval takes the quantiles. D is estimated,
    too: it is large where each left-out instance has noise of its own, and 1 where all share a single number, in which
    three seeds may agree by luck. In simulations the interval at 95 % holds the truth in 90 % of cases or more, and in
    85 % with three seeds that share a single number.

    Returns:
        `mean`, `low`, `high` (averaged over test instances) and `noise_dimensions` (D), each [step]; NaN with a single
        seed. Undefined test instances (all sensitivities zero, or a run that diverged) are left out.
    """
    level = checks.share("level", level)
    found, S = [], gold.sizes["seed"]
    chosen = gold.isel(step=_some(gold.step.values))
    for s in _steps(chosen, adjustment):
        mean = s.mean(0)  # [test, left_out]
        size = np.square(mean).sum(-1)
        known = size > 0
        if S < 2 or not known.any():
            found.append((np.nan,) * 4)
            continue
        along = mean[known] / np.sqrt(size[known])[:, None]
        across = (s - mean)[:, known]
        across = (across - np.einsum("sti,ti->st", across, along)[..., None] * along) / np.sqrt(size[known])[:, None]
        shares = np.square(across).sum((0, 2)) / ((S - 1) * S)  # |e'|² over |s̄|², estimated, [test]
        D = noise_dimensions(across.reshape(S, -1))
        few, many = f.ppf([(1 - level) / 2, (1 + level) / 2], D, (S - 1) * D)
        found.append((*(np.sqrt(np.clip(1 - q * shares, 0, 1)).mean() for q in (1.0, many, few)), D))
    names = ("mean", "low", "high", "noise_dimensions")
    values = zip(names, zip(*found, strict=True), strict=True)
    return xr.Dataset({name: _between(chosen, gold, np.array(v)) for name, v in values})


def block_ceiling(gold: xr.Dataset, sizes: Sequence[int], steps: Sequence[int], adjustment: Adjustment = "mean"):
    """The similarity of a perfect method to the mean of k seeds, averaged over disjoint blocks, [steps, sizes].

    For a block's mean s and the mean s' of all other seeds, the product s·s' is |μ|² but for noise that averages out,
    so that the cosine of s and μ is s·s' / (|s| |μ|); |μ|² is the mean product of two seeds. Seeds may differ in how
    noisy they are. With all seeds in one block it is |μ| / |s̄|.

    Args:
        sizes: k, each at most the number of seeds.
        steps: horizons, of those in `gold`.
    """
    found = np.full((len(steps), len(sizes)), np.nan)
    S = gold.sizes["seed"]
    for row, s in enumerate(_steps(gold.sel(step=list(steps)), adjustment)):
        total = s.sum(0)
        common = (np.square(total).sum(-1) - np.square(s).sum((0, 2))) / max(S * (S - 1), 1)  # |μ|², [test]
        truth = np.sqrt(np.clip(common, 0, None))
        for column, k in enumerate(sizes if S > 1 else ()):
            values = []
            for start in range(0, S - k + 1, k):
                block = s[start : start + k].sum(0)
                product = common if k == S else (block * (total - block)).sum(-1) / (k * (S - k))
                size = np.linalg.norm(block, axis=-1) / k * truth
                values.append(np.divide(product, size, out=np.zeros_like(size), where=size > 0))
            found[row, column] = np.clip(np.mean(values), 0, 1)
    return xr.DataArray(
        found, dims=("step", "seeds_averaged"), coords={"step": list(steps), "seeds_averaged": list(sizes)}
    )


def noise_dimensions(deviations: np.ndarray) -> float:
    """How many independent numbers the noise of a seed has: (tr Σ)² / tr Σ² of its covariance Σ, at least 1.

    Args:
        deviations: [seed, anything], from the mean over seeds. Σ is never formed: both traces are those of the seeds'
            products, without the bias that few seeds give them (normal noise).
    """
    m = len(deviations) - 1
    products = deviations @ deviations.T
    trace, square = np.trace(products) / m, np.square(products).sum() / m**2
    if m < 2 or trace == 0:
        return 1.0
    squares = m**2 / ((m - 1) * (m + 2)) * (square - trace**2 / m)
    most = float(deviations.shape[1])
    return float(np.clip((trace**2 - 2 * squares / m) / squares, 1.0, most)) if squares > 0 else most


def bands(
    scores: Mapping[str, xr.DataArray],
    gold: xr.Dataset,
    adjustment: Adjustment = "mean",
    metric: Metric = "cosine",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> dict[str, xr.DataArray]:
    """Half the width of the interval of each method's mean similarity, [step]: normal, with the standard deviation over
    `draws`, whose arguments it takes."""
    return half_widths(draws(scores, gold, adjustment, metric, resamples), gold, level)


def half_widths(drawn: Mapping[str, xr.DataArray], gold: xr.Dataset, level: float = LEVEL) -> dict[str, xr.DataArray]:
    """`bands` of similarities that were drawn before, at every step of the gold standard."""
    width = norm.ppf((1 + checks.share("level", level)) / 2)
    return {m: _between(a, gold, width * np.std(a.values, axis=0, ddof=1)) for m, a in drawn.items()}


def draws(
    scores: Mapping[str, xr.DataArray],
    gold: xr.Dataset,
    adjustment: Adjustment = "mean",
    metric: Metric = "cosine",
    resamples: int = RESAMPLES,
) -> dict[str, xr.DataArray]:
    """Each method's mean similarity, measured anew on runs and instances that are drawn, [draw, step].

    Seeds, left-out instances and test instances are drawn anew, each with replacement and independently of the others
    (the pigeonhole bootstrap, Owen 2007), the same draws for all methods and steps: differences of them are paired. For
    Spearman correlation the ranks stay those of all left-out instances. A resample of S seeds varies less than S seeds
    do, by (S - 1) / S: deviations from the mean over draws are made larger by the root of that, of all sources alike.
    A single seed says nothing of seeds.

    Args:
        scores: method -> [test, train] or [horizon, test, train], as for `similarity`; undefined ones count as 0.

    Returns:
        method -> similarities at some of the steps, first and last among them.
    """
    check_metric(metric)
    check_adjustment(adjustment)
    if not scores:
        return {}
    delta = gold["delta"].isel(step=_some(gold.step.values))
    s = delta.transpose("step", "test", "seed", "left_out").values.astype(float)
    measured = delta.isel(seed=0, drop=True)
    every = np.stack(np.broadcast_arrays(*[_prepared(matching(a, measured), metric) for a in scores.values()]), -1)
    centred = adjustment == "mean" and metric != "spearman"  # ranks know no mean
    if centred:
        s -= s.mean(-1, keepdims=True)  # so that little is left to subtract from squares
    K, Z, S, n = s.shape
    g = np.random.default_rng(0)
    u, w, v = (g.multinomial(k, np.full(k, 1 / k), size=resamples) / k for k in (S, n, Z))  # [draw, units]
    found, together = [], max(TOGETHER // (K * Z * n), 1)
    for first in range(0, resamples, together):
        some = slice(first, first + together)
        b = u[some] @ s  # [step, test, draw, left_out]
        if metric == "spearman":
            b = centred_ranks(b)
        found.append(np.einsum("kzdm,dz->mdk", weighted_cosines(every, b, w[some], centred), v[some]))
    factor = np.sqrt(S / (S - 1) if S > 1 else 1.0)
    coords = {"step": delta.step.values}
    return {
        m: xr.DataArray(a.mean(0) + factor * (a - a.mean(0)), dims=("draw", "step"), coords=coords)
        for m, a in zip(scores, np.concatenate(found, 1), strict=True)
    }


def weighted_cosines(scores: np.ndarray, b: np.ndarray, w: np.ndarray, centred: bool) -> np.ndarray:
    """The cosines [step, test, draw, method] of scores [step or 1, test, left_out, method] with b [step, test, draw,
    left_out], maybe less its mean, the left-out instances with weights w [draw, left_out]; undefined ones are 0."""
    weighted = b * w
    product, square = weighted @ scores, np.einsum("kzdn,kzdn->kzd", weighted, b)[..., None]
    if centred:
        mean = weighted.sum(-1, keepdims=True)
        product, square = product - mean * (w @ scores), square - np.square(mean)
    lengths = square.clip(min=0) * (w @ np.square(scores))
    return np.nan_to_num(np.divide(product, np.sqrt(lengths), out=np.zeros_like(product), where=lengths > 0))


def _between(some: xr.Dataset | xr.DataArray, gold: xr.Dataset, values: np.ndarray) -> xr.DataArray:
    """Values at some of the horizons as values at all, on a log axis."""
    at, every = np.log1p(some["step"].values), np.log1p(gold["step"].values)
    return xr.DataArray(np.interp(every, at, values), dims="step", coords=gold["delta"].coords["step"].coords)


def _prepared(scores: xr.DataArray, metric: str) -> np.ndarray:
    """Scores as [step or 1, test, left_out], of any magnitude."""
    values = scores.transpose(..., "test", "left_out").values.astype(float)
    values = centred_ranks(values) if metric == "spearman" else scaled(values)
    return values if values.ndim == 3 else values[None]


def _steps(gold: xr.Dataset, adjustment: str) -> Iterator[np.ndarray]:
    """The sensitivities of every seed, [seed, test, left_out], one horizon after the other: all at once do not fit."""
    delta = gold["delta"]
    for k in range(delta.sizes["step"]):
        s = adjusted(delta.isel(step=k).astype("float64"), adjustment).transpose("seed", "test", "left_out").values
        largest = np.abs(s).max((0, 2), keepdims=True)  # down to where squares underflow; the same for all seeds
        with np.errstate(invalid="ignore"):
            yield np.divide(s, largest, out=np.zeros_like(s), where=(largest > 0) & np.isfinite(largest))


def log_spaced(steps: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """The positions of about so many of the ascending steps, evenly on a log axis, first and last among them."""
    known = np.asarray(steps)
    wanted = np.geomspace(max(known[0], 1), known[-1], count)
    return sorted({int(np.abs(known - step).argmin()) for step in wanted})


def _some(steps: np.ndarray) -> list[int]:
    """The positions at which intervals are computed."""
    return [*range(len(steps))] if len(steps) <= MOST_STEPS else log_spaced(steps, MOST_STEPS)
