"""How does similarity grow with the number of seeds that the gold standard averages?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr
from scipy.stats import norm

from . import checks
from .comparison import (
    Adjustment,
    Metric,
    check_metric,
    delta_of,
    directions,
    instance_similarity,
    matching,
    require,
    seed_blocks,
    sensitivity,
    summary,
)
from .intervals import LEVEL, RESAMPLES, weighted_cosines

BLOCKS = (1, 2, 5, 10, 20, 50, 100)  # how many seeds are averaged in the paper
AT_ONCE = 20  # horizons of all seeds are held in float64
SEVERAL = 5  # blocks


def seed_averaging(
    scores: xr.DataArray,
    gold: xr.Dataset,
    blocks: Iterable[int] = BLOCKS,
    *,
    adjustment: Adjustment = "mean",
    metric: Metric = "cosine",
) -> xr.Dataset:
    """Similarity against the number of seeds averaged (paper, Figure 3): the largest over the horizon.

    The seeds are split in disjoint blocks of k; sensitivities are averaged in each block; similarities are averaged
    over blocks and test instances. Block sizes beyond the number of seeds are left out; seeds that do not fill a block
    are not used.

    Returns:
        `mean[seeds_averaged]`, `sem[seeds_averaged]` (over test instances, after averaging over blocks, which are not
        independent), `step[seeds_averaged]`: where the maximum lies, and `rise_sem[seeds_averaged]`: the standard error
        of the difference from the first block size, taken for each test instance.
    """
    return largest(averaged_similarities({"": scores}, gold, blocks, adjustment, metric)[""])


def largest(values: xr.DataArray) -> xr.Dataset:
    """The largest mean over test instances of similarities [seeds_averaged, step, test], as in `seed_averaging`."""
    found = summary(values, values.isnull().sum("test"))[["mean", "sem"]]
    best = found["mean"].argmax("step")
    chosen = values.isel(step=best).drop_vars("step")
    rise = (chosen - chosen.isel(seeds_averaged=0, drop=True)).drop_vars("epoch", errors="ignore")
    rise = summary(rise, rise.isnull().sum("test"))["sem"]
    return found.isel(step=best).assign(rise_sem=rise).reset_coords("step").drop_vars("epoch", errors="ignore")


def averaged_similarities(
    scores: Mapping[str, xr.DataArray],
    gold: xr.Dataset | xr.DataArray,
    blocks: Iterable[int],
    adjustment: Adjustment = "mean",
    metric: Metric = "cosine",
) -> dict[str, xr.DataArray]:
    """For each method the similarity [seeds_averaged, step, test] to the mean of k seeds, averaged over their blocks.

    It is `instance_similarity` for the `sensitivity` of every block, undefined ones as 0.
    """
    delta = delta_of(gold, adjustment)
    check_metric(metric)
    S = delta.sizes["seed"]
    blocks = checks.elements("blocks", blocks, "a list of numbers of seeds")
    sizes = [k for k in blocks if checks.whole("blocks", k) <= S]
    if not sizes:
        raise ValueError(f"blocks: got {blocks}, expected a number from 1 to {S}, the number of seeds.")
    for one in scores.values():
        require("scores", one, ("test", "train"), "attribute", optional=("horizon",))
    if metric == "spearman":  # ranks of means are not means of ranks
        found = {m: [_mean_over_blocks(a, delta, k, adjustment) for k in sizes] for m, a in scores.items()}
    else:
        found = _cosines(scores, delta, sizes, adjustment)
    coords = {"seeds_averaged": sizes, **delta.coords["step"].coords, "test": delta["test"].values}
    return {m: xr.DataArray(np.array(v), coords, ("seeds_averaged", "step", "test")) for m, v in found.items()}


def _mean_over_blocks(scores: xr.DataArray, delta: xr.DataArray, k: int, adjustment: Adjustment) -> np.ndarray:
    blocks = seed_blocks(delta, k)
    return sum(
        instance_similarity(scores, sensitivity(block, adjustment), "spearman").fillna(0.0).values for block in blocks
    ) / len(blocks)


def _cosines(
    scores: Mapping[str, xr.DataArray], delta: xr.DataArray, sizes: list[int], adjustment: Adjustment
) -> dict[str, np.ndarray]:
    """With d the sensitivities of single seeds, a block's product with the scores a is a sum of a·d over its seeds, and
    its squared length a sum of d·d' over pairs of them: all blocks of all sizes take these, computed once."""
    S, K = delta.sizes["seed"], delta.sizes["step"]
    found = {name: np.zeros((len(sizes), K, delta.sizes["test"])) for name in scores}
    given = []
    for a in scores.values():
        a = matching(a, delta.isel(seed=0, drop=True)).transpose("test", ..., "left_out")
        given.append(directions(a.values if a.ndim == 3 else a.values[:, None], "cosine"))
    every = np.stack(np.broadcast_arrays(*given), -1)  # [test, step or 1, left_out, method]
    for start in range(0, K, AT_ONCE):
        some = slice(start, start + AT_ONCE)
        d = commensurate(delta.isel(step=some).transpose("test", "step", "seed", "left_out").values)
        if adjustment == "mean":
            d -= d.mean(-1, keepdims=True)
        pairs = d @ d.swapaxes(-1, -2)
        products = d @ (every[:, some] if every.shape[1] > 1 else every)  # [test, step, seed, method]
        for row, k in enumerate(sizes):
            blocks = [slice(first, first + k) for first in range(0, S - k + 1, k)]
            length = np.sqrt(np.stack([pairs[..., b, b].sum((-1, -2)) for b in blocks], -1).clip(min=0))
            sums = np.stack([products[..., b, :].sum(-2) for b in blocks], -2)
            for m, name in enumerate(found):
                cosines = np.divide(sums[..., m], length, out=np.zeros_like(length), where=length > 0)
                found[name][row, some] = np.nan_to_num(cosines).mean(-1).T
    return found


def commensurate(values: np.ndarray) -> np.ndarray:
    """Sensitivities [..., seed, left_out] in float64, divided by the largest of all seeds, so that squares do not
    underflow; NaN where they are not finite."""
    values = values.astype(float)
    if not np.isfinite(values.sum()):
        values[~np.isfinite(values)] = np.nan
    most = np.fmax.reduce(np.abs(values), axis=(-1, -2), keepdims=True)
    values /= np.where(most > 0, most, 1)
    return values


def averaging_bands(
    scores: Mapping[str, xr.DataArray],
    gold: xr.Dataset,
    steps: Mapping[str, Mapping[int, int]],
    adjustment: Adjustment = "mean",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> dict[str, xr.Dataset]:
    """Half the width of the interval of each method's mean cosine similarity to the mean of k seeds, at one horizon.

    As `bands`: seeds, left-out and test instances are drawn anew. Blocks are drawn if there are several; a few are made
    up anew of seeds that are drawn. For the rise from the first k, seeds stay as they are: one that is drawn twice adds
    nothing to a mean.

    Args:
        steps: method -> k -> the horizon, such as `seed_averaging` finds.

    Returns:
        method -> `half[seeds_averaged]` and `rise_half[seeds_averaged]`.
    """
    delta, width = delta_of(gold, adjustment), norm.ppf((1 + checks.share("level", level)) / 2)
    S, n, Z = (delta.sizes[dim] for dim in ("seed", "left_out", "test"))
    g, found = np.random.default_rng(0), {}

    def draw(units: int, size: int = resamples) -> np.ndarray:
        return g.multinomial(units, np.full(units, 1 / units), size=size) / units

    w, v = draw(n), draw(Z)
    for name, a in scores.items():
        halves, own = {}, None
        for k, step in steps[name].items():
            one = a.sel(horizon=step) if "horizon" in a.dims else a
            measured = delta.sel(step=[step])
            u = directions(
                matching(one, measured.isel(seed=0, drop=True)).transpose("test", "left_out").values, "cosine"
            )
            d = commensurate(measured.isel(step=0).transpose("test", "seed", "left_out").values).swapaxes(0, 1)
            d = d - d.mean(-1, keepdims=True) if adjustment == "mean" else d
            B = S // k
            blocks = d[: B * k].reshape(B, k, Z, n).mean(1)
            fixed = np.einsum("bzr,rz->br", _weighted(blocks, u, w.T, adjustment), v)
            if B >= SEVERAL:
                drawn, units = (fixed * draw(B).T).sum(0), B
            else:
                chosen = g.integers(0, S, (resamples, B, k))
                counts = (chosen[..., None] == np.arange(S)).sum(2).swapaxes(0, 1) / k  # [block, draw, seed]
                drawn_blocks = counts[:, None] @ d.swapaxes(0, 1)  # [block, test, draw, left_out]
                each = weighted_cosines(u[None, ..., None], drawn_blocks, w, adjustment == "mean")[..., 0]
                drawn, units = np.einsum("bzr,rz->r", each, v) / B, S
            factor = np.sqrt(units / (units - 1) if units > 1 else 1.0)
            own = fixed if own is None else own
            halves[k] = width * factor * np.std(drawn, ddof=1), width * np.std(fixed.mean(0) - own.mean(0), ddof=1)
        columns = zip(("half", "rise_half"), np.array([*halves.values()]).T, strict=True)
        found[name] = xr.Dataset({c: ("seeds_averaged", x) for c, x in columns}, {"seeds_averaged": [*halves]})
    return found


def _weighted(b: np.ndarray, a: np.ndarray, w: np.ndarray, adjustment: Adjustment) -> np.ndarray:
    """The cosines [block, test, draw] of scores a [test, left_out] with b [block, test, left_out], the left-out
    instances with the weights w [left_out, draw] of each draw; undefined ones are 0."""
    product, square = (b * a) @ w, np.square(b) @ w
    if adjustment == "mean":
        mean = b @ w
        product, square = product - mean * (a @ w), square - np.square(mean)
    length = np.sqrt(square.clip(min=0) * (np.square(a) @ w))
    return np.nan_to_num(np.divide(product, length, out=np.zeros_like(length), where=length > 0))
