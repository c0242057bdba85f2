"""Intervals: what they cover where the truth is known, and by hand on tiny data."""

import numpy as np
import pytest
import xarray as xr
from small_files import refusal

from fimoda_lib import intervals
from fimoda_lib.comparison import sensitivity, similarity
from fimoda_lib.intervals import bands, block_ceiling, ceiling_interval, draws, noise_dimensions

TESTS, LEFT_OUT, REPEATS = 8, 30, 100


def simulated(g, seeds, kind, noise=1.0, steps=1):
    """A gold standard with known truth [test, left_out]: noise of each left-out instance, or one number common to all
    of a seed, as with the full adjustment. With several horizons, each has a truth of its own, [step, test, left_out].
    """
    truth = g.normal(size=(steps, 1, TESTS, LEFT_OUT))
    if kind == "independent":
        e = g.normal(size=(steps, seeds, TESTS, LEFT_OUT))
    else:
        e = g.normal(size=(steps, seeds, 1, 1)) + 0.1 * g.normal(size=(steps, seeds, TESTS, LEFT_OUT))
    return gold(truth + noise * e), truth[:, 0] if steps > 1 else truth[0, 0]


def gold(values):
    """[step, seed, test, left_out] as `further_train` returns it."""
    values = values.transpose(1, 3, 0, 2)
    sizes = zip(("seed", "left_out", "step", "test"), values.shape, strict=True)
    coords = {name: np.arange(size) + (name == "step") for name, size in sizes}
    return xr.Dataset({"delta": (("seed", "left_out", "step", "test"), values)}, coords)


def perfect(truth):
    return xr.DataArray(truth, dims=("test", "train"), coords={"test": range(TESTS), "train": range(LEFT_OUT)})


def reached(data, truth):
    """The mean similarity of the truth, with the full adjustment, [step]."""
    found = data.delta.values.mean(0).transpose(1, 2, 0)
    cosines = (found * truth).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(truth, axis=-1)
    return cosines.mean(-1)


def test_what_is_reached_is_the_similarity():
    data, truth = simulated(np.random.default_rng(0), 3, "common")
    np.testing.assert_allclose(reached(data, truth), similarity(perfect(truth), sensitivity(data, "full"))["mean"][0])


@pytest.fixture
def every_step(monkeypatch):
    """Intervals at all horizons: each is an experiment of its own."""
    monkeypatch.setattr(intervals, "MOST_STEPS", REPEATS)


def held(seeds, kind, level=0.95):
    """How often the interval holds what the truth reaches, and how often that lies above it."""
    data, truth = simulated(np.random.default_rng(0), seeds, kind, steps=REPEATS)
    found, value = ceiling_interval(data, "full", level), reached(data, truth)
    assert (found.low <= found["mean"]).all() and (found["mean"] <= found.high).all()
    above = (value > found.high).values
    return 1 - np.mean(above | (value < found.low).values), np.mean(above)


@pytest.mark.parametrize("kind", ["independent", "common"])
@pytest.mark.parametrize("seeds", [3, 5, 10, 100])
def test_the_ceiling_holds_what_the_truth_reaches(seeds, kind, every_step):
    inside, above = held(seeds, kind)
    # With three seeds and one number in common, D is sometimes taken for too large: the interval then holds less often.
    least = 0.85 if (seeds, kind) == (3, "common") else 0.9
    assert inside >= least and above <= 0.06, (inside, above)


def test_an_interval_that_is_too_narrow_is_noticed(every_step):
    """The check above fails for an interval of a third of the level."""
    assert held(3, "common", level=0.3)[0] < 0.7


def test_the_interval_is_wide_where_seeds_share_a_number_and_narrow_where_they_are_many():
    g, width = np.random.default_rng(1), {}
    for kind, least, most in (("independent", TESTS * LEFT_OUT / 4, TESTS * LEFT_OUT), ("common", 1, 2)):
        for seeds in (3, 100):
            found = [ceiling_interval(simulated(g, seeds, kind)[0], "full").isel(step=0) for _ in range(9)]
            width[kind, seeds] = np.median([float(one.high - one.low) for one in found])
            assert least <= np.median([one.noise_dimensions for one in found]) <= most
    assert width["common", 3] > 0.3 > 3 * width["independent", 3] > 3 * width["independent", 100]
    # The mean adjustment removes what all left-out instances share.
    found = ceiling_interval(simulated(g, 3, "common")[0], "mean")
    assert float(found.high[0] - found.low[0]) < 0.05


def test_the_estimate_equals_the_formula_by_hand():
    data, _ = simulated(np.random.default_rng(2), 4, "independent")
    s = data.delta.values[:, :, 0]  # [seed, left_out, test]
    expected = []
    for z in range(TESTS):
        mean = s[:, :, z].mean(0)
        across = [(one - mean) - (one - mean) @ mean / (mean @ mean) * mean for one in s[:, :, z]]
        variance = sum((one**2).sum() for one in across) / 3
        expected.append(max(1 - variance / 4 / (mean @ mean), 0) ** 0.5)
    np.testing.assert_allclose(ceiling_interval(data, "full")["mean"][0], np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(ceiling_interval(data * 1e-200, "full")["mean"][0], np.mean(expected), rtol=1e-9)


def test_degenerate_data_have_no_ceiling_or_the_highest():
    data, truth = simulated(np.random.default_rng(3), 3, "independent", noise=0)
    assert np.allclose([ceiling_interval(data, "full")[name] for name in ("mean", "low", "high")], 1)
    assert np.isnan(ceiling_interval(data.isel(seed=[0]))["mean"]).all()
    assert np.isnan(ceiling_interval(data * 0)["mean"]).all()
    assert np.isfinite(ceiling_interval(data.where(data.test > 0))["mean"]).all()
    with pytest.raises(ValueError, match="level: got 1, expected a number between 0 and 1"):
        ceiling_interval(data, level=1)


@pytest.mark.parametrize(("spread", "expected"), [((1, 0, 0, 0), 1), ((1, 1, 1, 1), 4), ((3, 1, 1, 1), 144 / 84)])
def test_noise_dimensions_of_known_noise(spread, expected):
    e = np.random.default_rng(4).normal(size=(4000, 4)) * np.array(spread)
    assert abs(noise_dimensions(e - e.mean(0)) - expected) < 0.1
    few = [noise_dimensions(x - x.mean(0)) for x in e.reshape(-1, 5, 4)]
    assert abs(np.median(few) - expected) < 0.35 * expected


@pytest.mark.parametrize("loudness", [(1,) * 6, (0.2, 0.2, 0.2, 0.2, 0.2, 4)])
def test_the_ceiling_of_blocks_is_what_the_truth_reaches(loudness):
    """On average over many gold standards; also where one seed is much noisier than the others."""
    g, sizes, found, value = np.random.default_rng(5), [1, 2, 3, 6], [], []
    for _ in range(40):
        data, truth = simulated(g, 6, "independent", noise=np.array(loudness)[:, None, None])
        found.append(block_ceiling(data, sizes, [1], "full").values[0])
        blocks = [[data.isel(seed=slice(a, a + k)) for a in range(0, 6, k)] for k in sizes]
        value.append([np.mean([reached(b, truth) for b in some]) for some in blocks])
    np.testing.assert_allclose(np.mean(found, 0), np.mean(value, 0), atol=0.03)
    assert np.isnan(block_ceiling(data.isel(seed=[0]), [1], [1])).all()


def test_bands_cover_similarities_over_new_seeds_and_instances(every_step):
    """A method that is wrong in part; the truth is its mean similarity over many more seeds and instances."""
    g = np.random.default_rng(6)
    expected = 1 / np.sqrt(2 * (1 + 1 / 5))  # of cos(truth + error, truth + noise / √5), all of unit variance
    data, truth = simulated(g, 5, "independent", steps=REPEATS)
    wrong = truth + g.normal(size=truth.shape)
    scores = xr.DataArray(wrong, dims=("horizon", "test", "train"), coords={"horizon": data.step.values})
    scores = scores.assign_coords(test=range(TESTS), train=range(LEFT_OUT))
    mean = similarity(scores, sensitivity(data, "full"))["mean"]
    half = bands({"one": scores}, data, "full", resamples=60)["one"]
    assert (abs(mean - expected) < half).mean() > 0.88


def test_bands_do_not_depend_on_scale_or_order_and_know_what_varies():
    data, truth = simulated(np.random.default_rng(7), 5, "independent")
    wrong = perfect(np.random.default_rng(8).normal(size=truth.shape))
    for metric in ("cosine", "spearman"):
        half = bands({"a": wrong}, data, metric=metric)["a"]
        xr.testing.assert_allclose(half, bands({"b": 1e-180 * wrong[::-1, ::-1]}, data, metric=metric)["b"])
        xr.testing.assert_allclose(half, bands({"a": wrong, "b": wrong * 2}, data, metric=metric)["b"])
        assert (half > 0).all()
    still, _ = simulated(np.random.default_rng(9), 3, "independent", noise=0)
    exact = sensitivity(still, "full").isel(step=0, drop=True).rename(left_out="train")
    assert bands({"a": exact}, still, "full")["a"].max() < 1e-9  # always 1, whatever is drawn


@pytest.mark.parametrize("call", [bands, draws])
def test_another_adjustment_is_no_full_one(call):
    data, truth = simulated(np.random.default_rng(10), 3, "independent")
    for found in (
        refusal(call, {"a": perfect(truth)}, data, "Mean", error=ValueError),
        refusal(ceiling_interval, data, "none", error=ValueError),
        refusal(block_ceiling, data, [1], [1], "none", error=ValueError),
    ):
        assert "adjustment: got" in found and "expected 'mean' or 'full'" in found
