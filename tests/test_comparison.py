"""Adjustment, similarity, seed blocks and noise ceiling, against formulas written out by hand."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from fimoda_lib.averaging import seed_averaging
from fimoda_lib.comparison import (
    instance_similarity,
    noise_ceiling,
    seed_agreement,
    seed_blocks,
    sensitivity,
    similarity,
)

SEEDS, LEFT_OUT, STEPS, TESTS = 6, [2, 5, 9, 11, 30], [4, 8, 12], [0, 3, 7, 8]


def gold(noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((len(LEFT_OUT), len(STEPS), len(TESTS)))
    delta = signal + noise * rng.standard_normal((SEEDS, *signal.shape))
    return xr.Dataset(
        {"delta": (("seed", "left_out", "step", "test"), delta.astype("float32"))},
        coords={
            "seed": range(SEEDS),
            "left_out": LEFT_OUT,
            "step": STEPS,
            "test": TESTS,
            "epoch": ("step", [1.0, 2, 3]),
        },
    )


def scores(seed=1):
    values = np.random.default_rng(seed).standard_normal((9, 40))
    return xr.DataArray(values, dims=("test", "train"), coords={"test": range(9), "train": range(40)})


def test_sensitivity_is_the_mean_over_seeds_with_and_without_the_mean_over_instances():
    g = gold()
    mean = g.delta.values.astype(float).mean(0)
    np.testing.assert_allclose(sensitivity(g, "full"), mean, rtol=1e-12)
    np.testing.assert_allclose(sensitivity(g), mean - mean.mean(0), rtol=1e-9, atol=1e-15)
    assert sensitivity(g).dtype == np.float64


def test_a_common_shift_of_all_instances_changes_the_full_adjustment_only():
    g = gold()
    shifted = g.assign(delta=g.delta + 5)
    np.testing.assert_allclose(sensitivity(shifted), sensitivity(g), atol=1e-6)
    assert abs(sensitivity(shifted, "full") - sensitivity(g, "full")).min() > 4


def test_cosine_and_spearman_equal_the_formulas():
    s, m = scores(), sensitivity(gold())
    for metric in ("cosine", "spearman"):
        result = similarity(s, m, metric)
        for k, step in enumerate(STEPS):
            values = []
            for z in TESTS:
                a, b = s.sel(test=z, train=LEFT_OUT).values, m.sel(test=z, step=step).values
                values.append(a @ b / np.sqrt(a @ a * (b @ b)) if metric == "cosine" else spearmanr(a, b).statistic)
            assert np.isclose(result["mean"][k], np.mean(values), rtol=1e-12)
            assert np.isclose(result["sem"][k], np.std(values, ddof=1) / 2, rtol=1e-12)
    assert result["mean"].dims == ("step",) and list(result.epoch) == [1, 2, 3]


def test_similarity_matches_instances_by_number_not_by_position():
    s, m = scores(), sensitivity(gold())
    shuffled = s.isel(train=np.random.default_rng(0).permutation(40), test=[8, 7, 6, 5, 4, 3, 2, 1, 0])
    xr.testing.assert_allclose(similarity(shuffled, m), similarity(s, m))
    xr.testing.assert_allclose(similarity(s, m.isel(left_out=[3, 1, 0, 2, 4], test=[1, 0, 3, 2])), similarity(s, m))


def test_perfect_reversed_and_rescaled_scores():
    m = sensitivity(gold())
    perfect = m.isel(step=1).rename(left_out="train").transpose("test", "train")
    assert np.allclose(similarity(perfect, m)["mean"][1], 1)
    assert np.allclose(similarity(-perfect, m)["mean"][1], -1)
    for factor in (1e-200, 1e200):  # a direction survives any scale
        xr.testing.assert_allclose(similarity(factor * perfect, m), similarity(perfect, m))


@pytest.mark.parametrize(
    "value, metric",
    [
        (0.0, "cosine"),
        (0.0, "spearman"),
        (3.0, "spearman"),
        (np.nan, "cosine"),
        (np.nan, "spearman"),
        (np.inf, "cosine"),
    ],
)
def test_undefined_similarities_are_counted_and_treated_as_asked(value, metric):
    s, m = scores(), sensitivity(gold()).copy()
    m.loc[dict(test=3, step=8)] = value
    zero, skipped = (similarity(s, m, metric, undefined=how) for how in ("zero", "skip"))
    assert zero.undefined.values.tolist() == skipped.undefined.values.tolist() == [0, 1, 0]
    assert np.isclose(zero["mean"][1], 0.75 * skipped["mean"][1])
    assert zero["mean"][0] == skipped["mean"][0]


def test_a_constant_vector_still_has_a_cosine():
    s, m = scores(), sensitivity(gold()).copy()
    m.loc[dict(test=3)] = 2.0
    assert similarity(s, m)["undefined"].sum() == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, m: similarity(s, m, "pearson"), "expected one of cosine, spearman"),
        (lambda s, m: similarity(s, m, undefined="drop"), "expected 'zero' or 'skip'"),
        (lambda s, m: similarity(s.isel(train=slice(0, 30)), m), "left_out instances have none .instance 30"),
        (lambda s, m: similarity(s.isel(test=slice(0, 8)), m), "test instances have none .instance 8"),
        (lambda s, m: sensitivity(gold(), "median"), "expected 'mean' or 'full'"),
        (lambda s, m: seed_blocks(gold().delta, 7), "expected 1 to 6"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(scores(), sensitivity(gold()))


def scores_by_horizon():
    """Other scores for every step, some more steps than the sensitivity has, and not in its order."""
    steps = [12, 2, 4, 8, 16]
    return xr.concat([scores(seed=step) for step in steps], dim=xr.Variable("horizon", steps))


@pytest.mark.parametrize("metric", ["cosine", "spearman"])
def test_scores_with_horizons_are_compared_at_their_own_step(metric):
    s, m = scores_by_horizon(), sensitivity(gold())
    result = similarity(s, m, metric)
    for step in STEPS:
        alone = similarity(scores(seed=step), m.sel(step=[step]), metric)
        for name in ("mean", "sem", "undefined"):
            assert np.isclose(result[name].sel(step=step), alone[name][0], rtol=1e-12)
        # ... and not with those of another horizon
        other = similarity(scores(seed=step + 1), m.sel(step=[step]), metric)
        assert abs(result["mean"].sel(step=step) - other["mean"][0]) > 1e-3
    assert result["mean"].dims == ("step",) and list(result.epoch) == [1, 2, 3]
    values = instance_similarity(s, m, metric)
    assert values.dims == ("step", "test") and values.step.values.tolist() == STEPS
    turned = s.transpose("train", "horizon", "test").isel(test=slice(None, None, -1))
    xr.testing.assert_allclose(similarity(turned, m, metric), result)


def test_equal_scores_at_every_horizon_are_scores_without_horizons():
    s, m = scores(), sensitivity(gold())
    same = xr.concat([s] * 3, dim=xr.Variable("horizon", STEPS))
    xr.testing.assert_allclose(similarity(same, m), similarity(s, m))


def test_the_sensitivity_itself_as_scores_by_horizon_is_perfect_at_every_step():
    m = sensitivity(gold())
    perfect = m.rename(left_out="train", step="horizon").drop_vars("epoch").copy()
    np.testing.assert_allclose(similarity(perfect, m)["mean"], 1)
    perfect[dict(horizon=1)] *= -1
    np.testing.assert_allclose(similarity(perfect, m)["mean"], [1, -1, 1])


def test_undefined_scores_of_one_horizon_count_there_only():
    s, m = scores_by_horizon(), sensitivity(gold())
    s.loc[dict(horizon=8, test=3)] = 0.0
    assert similarity(s, m).undefined.values.tolist() == [0, 1, 0]


def test_seed_averaging_takes_scores_with_horizons():
    g, s = gold(), scores_by_horizon()
    result = seed_averaging(s, g, blocks=(6,))
    assert np.isclose(result["mean"][0], similarity(s, sensitivity(g))["mean"].max())


def test_a_step_without_scores_is_named():
    with pytest.raises(ValueError, match=r"none for step 4 \(they are for \[12, 2, 8, 16\].* horizon=gold\['step'\]"):
        similarity(scores_by_horizon().drop_sel(horizon=4), sensitivity(gold()))


def test_noise_ceiling_equals_the_formula():
    g = gold()
    for adjustment in ("mean", "full"):
        delta = g.delta.values.astype(float)
        if adjustment == "mean":
            delta = delta - delta.mean(1, keepdims=True)
        for k in range(len(STEPS)):
            cosines = []
            for z in range(len(TESTS)):
                for a in range(SEEDS):
                    for b in range(a):
                        u, v = delta[a, :, k, z], delta[b, :, k, z]
                        cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
            r = np.mean(cosines)
            expected = np.sqrt(SEEDS * r / (1 + (SEEDS - 1) * r))
            assert np.isclose(noise_ceiling(g, adjustment)[k], expected, rtol=1e-10)


def test_noise_ceiling_of_extreme_cases():
    assert np.allclose(noise_ceiling(gold(noise=0)), 1)
    assert np.isnan(noise_ceiling(gold().isel(seed=[0]))).all()
    opposite = gold(noise=0).isel(seed=[0, 1])
    opposite["delta"] = opposite.delta * xr.DataArray([1.0, -1.0], dims="seed")
    assert np.allclose(noise_ceiling(opposite), 0)


@pytest.mark.parametrize("adjustment", ["mean", "full"])
def test_agreement_by_variances_is_the_mean_product_of_two_seeds_over_that_of_one_with_itself(adjustment):
    g = gold()
    delta = g.delta.values.astype(float) * np.array([1.0, 3.0, 0.2, 1.0, 5.0, 1.0])[:, None, None, None]
    delta[..., 1] *= 1e-200  # of any magnitude
    loud = g.assign(delta=(g.delta.dims, delta))
    found = seed_agreement(loud, adjustment, "variances")
    if adjustment == "mean":
        delta = delta - delta.mean(1, keepdims=True)
    for k in range(len(STEPS)):
        shares = []
        for z in range(len(TESTS)):
            vectors = delta[:, :, k, z] / np.abs(delta[..., z]).max()
            products = vectors @ vectors.T
            shares.append(products[~np.eye(SEEDS, dtype=bool)].mean() / np.diag(products).mean())
        assert np.isclose(found[k], max(np.mean(shares), 0), rtol=1e-10)
    assert not np.allclose(found, seed_agreement(loud, adjustment), rtol=0.05)
    expected = np.sqrt(SEEDS * found / (1 + (SEEDS - 1) * found))
    xr.testing.assert_allclose(noise_ceiling(loud, adjustment, "variances"), expected)


def test_agreement_by_variances_of_extreme_cases():
    assert np.allclose(noise_ceiling(gold(noise=0), estimate="variances"), 1)
    assert np.isnan(noise_ceiling(gold().isel(seed=[0]), estimate="variances")).all()
    silent = gold()
    silent.delta[..., 0] = 0.0
    assert np.isfinite(noise_ceiling(silent, estimate="variances")).all()
    silent.delta[2, :, 1, :] = np.nan  # diverged
    assert np.isnan(noise_ceiling(silent, estimate="variances")).values.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="estimate: got 'variance', expected 'cosines' or 'variances'"):
        noise_ceiling(gold(), estimate="variance")


@pytest.mark.parametrize("loudness", [[1, 1, 1, 1, 1], [1, 1, 1, 1, 6], [0.2, 1, 3, 0.2, 1]])
def test_the_noise_ceiling_predicts_what_the_truth_itself_reaches(loudness):
    """Scores equal to the noise-free signal: their similarity to the noisy average is the ceiling, up to sampling."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((60, 1, 40))
    delta = signal + 2 * rng.standard_normal((5, *signal.shape)) * np.array(loudness)[:, None, None, None]
    coords = {"seed": range(5), "left_out": range(60), "step": [1], "test": range(40)}
    g = xr.Dataset({"delta": (("seed", "left_out", "step", "test"), delta)}, coords=coords)
    truth = xr.DataArray(signal[:, 0].T, dims=("test", "train"), coords={"test": range(40), "train": range(60)})
    reached = float(similarity(truth, sensitivity(g))["mean"][0])
    assert abs(reached - float(noise_ceiling(g, estimate="variances")[0])) < 0.02
    by_cosines = float(noise_ceiling(g)[0])
    if len({*loudness}) == 1:
        assert abs(reached - by_cosines) < 0.02
    else:
        assert by_cosines > reached + 0.1  # the noisiest seed dominates the mean
    silent = g.copy(deep=True)
    silent.delta[..., :10] -= signal[..., :10]  # a quarter of the test instances is mere noise
    reached = float(similarity(truth, sensitivity(silent))["mean"][0])
    assert reached < float(noise_ceiling(silent, estimate="variances")[0])  # an upper estimate where they differ


def test_seed_blocks_are_disjoint_and_whole():
    blocks = seed_blocks(gold().delta, 4)
    assert [b.seed.values.tolist() for b in blocks] == [[0, 1, 2, 3]]
    assert [b.seed.values.tolist() for b in seed_blocks(gold().delta, 3)] == [[0, 1, 2], [3, 4, 5]]


def test_seed_averaging_is_the_maximum_over_the_horizon_of_block_means():
    g, s = gold(), scores()
    result = seed_averaging(s, g, blocks=(1, 2, 5, 10))
    assert result.seeds_averaged.values.tolist() == [1, 2, 5]
    for k in (1, 2, 5):
        curves = [instance_similarity(s, sensitivity(b)).mean("test") for b in seed_blocks(g.delta, k)]
        curve = sum(curves) / len(curves)
        assert np.isclose(result["mean"].sel(seeds_averaged=k), curve.max())
        assert int(result["step"].sel(seeds_averaged=k)) == STEPS[int(np.argmax(curve.values))]
    best = [
        sum(instance_similarity(s, sensitivity(b)).sel(step=int(result.step.sel(seeds_averaged=k))) for b in blocks)
        / len(blocks)
        for k, blocks in ((k, seed_blocks(g.delta, k)) for k in (1, 5))
    ]
    rise = (best[1] - best[0].values).values
    expected = rise.std(ddof=1) / np.sqrt(len(rise))
    assert np.isclose(result["rise_sem"].sel(seeds_averaged=5), expected) and result["rise_sem"][0] == 0


def test_averaging_more_seeds_brings_the_truth_closer():
    g = gold(noise=3)
    truth = sensitivity(gold(noise=0)).isel(step=0).rename(left_out="train").transpose("test", "train")
    means = seed_averaging(truth, g.isel(step=[0]), blocks=(1, 2, 6))["mean"].values
    assert means[0] < means[1] < means[2]
