"""Similarity against the number of seeds averaged: a plain loop, and intervals where the truth is known."""

import numpy as np
import pytest
import xarray as xr

from fimoda_lib.averaging import averaged_similarities, averaging_bands, seed_averaging
from fimoda_lib.comparison import instance_similarity, seed_blocks, sensitivity
from fimoda_lib.intervals import bands

SEEDS, LEFT_OUT, STEPS, TESTS = 7, 12, [2, 4, 8, 16, 32], 3


def gold(g, seeds=SEEDS, left_out=LEFT_OUT, steps=STEPS, tests=TESTS, signal=0.0):
    coords = {"seed": range(seeds), "left_out": range(left_out), "step": steps, "test": range(tests)}
    noise = g.normal(size=(seeds, left_out, len(steps), tests)) + 2  # with a mean that the adjustment takes
    return xr.Dataset({"delta": (tuple(coords), signal + noise)}, coords)


def scores(g, *horizons, left_out=LEFT_OUT, tests=TESTS):
    sizes = {"horizon": list(horizons), "test": range(tests), "train": range(left_out)}
    sizes = sizes if horizons else {k: v for k, v in sizes.items() if k != "horizon"}
    return xr.DataArray(g.normal(size=[len(v) for v in sizes.values()]), sizes)


@pytest.mark.parametrize("metric", ["cosine", "spearman"])
@pytest.mark.parametrize("adjustment", ["mean", "full"])
def test_all_methods_at_once_are_a_loop_over_blocks(adjustment, metric, monkeypatch):
    monkeypatch.setattr("fimoda_lib.averaging.AT_ONCE", 2)
    g = np.random.default_rng(0)
    data, both = gold(g), {"one": scores(g), "other": scores(g, *STEPS, 64)}
    data.delta[2, :, 1, 0] = np.nan  # a run that diverged
    data.delta[3, 4, 2, 1] = np.inf
    both["one"][1] = 0.0  # without a direction
    for scale in (1.0, 1e-200):
        found = averaged_similarities(both, data * scale, (1, 2, 3, 7, 20), adjustment, metric)
        for name, one in both.items():
            assert found[name].seeds_averaged.values.tolist() == [1, 2, 3, 7]
            for k in (1, 2, 3, 7):
                loop = [
                    instance_similarity(one, sensitivity(block, adjustment), metric).fillna(0)
                    for block in seed_blocks(data.delta, k)
                ]
                np.testing.assert_allclose(found[name].sel(seeds_averaged=k), sum(loop) / len(loop), atol=1e-12)


def test_with_all_seeds_in_one_block_bands_are_those_of_other_figures():
    g = np.random.default_rng(1)
    data, one = gold(g, signal=g.normal(size=(LEFT_OUT, 1, TESTS))), {"a": scores(g), "b": scores(g, *STEPS)}
    for adjustment in ("mean", "full"):
        other = bands(one, data, adjustment, resamples=2000)
        found = averaging_bands(one, data, {m: {7: 8} for m in one}, adjustment, resamples=2000)
        for m in one:
            assert np.isclose(found[m].half[0], other[m].sel(step=8), rtol=0.08)
            assert float(found[m].rise_half[0]) == 0


@pytest.mark.parametrize("k", [1, 5, 10])
def test_bands_cover_similarities_over_new_seeds_and_instances(k):
    """10 seeds: all blocks drawn, and few made up anew. The check fails for a band of a third of the width."""
    g, inside, repeats = np.random.default_rng(2), np.zeros(2), 60
    expected = 1 / np.sqrt(2 * (1 + 1 / k))  # of cos(truth + error, truth + noise / √k), all of unit variance
    for _ in range(repeats):
        truth = g.normal(size=(40, 1, 8))
        data = gold(g, 10, 40, [1], 8, truth - 2)
        one = {"a": xr.DataArray(truth[:, 0].T + g.normal(size=(8, 40)), {"test": range(8), "train": range(40)})}
        mean = float(seed_averaging(one["a"], data, [k], adjustment="full")["mean"][0])
        half = float(averaging_bands(one, data, {"a": {k: 1}}, "full", resamples=60)["a"].half[0])
        inside += abs(mean - expected) < np.array([1, 1 / 3]) * half
    whole, third = inside / repeats
    assert third <= 0.87 < whole, (third, whole)


def test_a_rise_is_sure_where_every_instance_shows_it():
    g = np.random.default_rng(3)
    truth = g.normal(size=(LEFT_OUT, 1, TESTS))
    data, steps = gold(g, signal=truth), {"a": {1: 8, 7: 8}}
    right = {"a": xr.DataArray(truth[:, 0].T, {"test": range(TESTS), "train": range(LEFT_OUT)})}
    wrong = {"a": scores(g)}
    for one, sure in ((right, True), (wrong, False)):
        found = seed_averaging(one["a"], data.sel(step=[8]), [1, 7])["mean"].values
        half = float(averaging_bands(one, data, steps)["a"].rise_half[1])
        assert (found[1] - found[0] > half) == sure
