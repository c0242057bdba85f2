"""What holds for every input: similarity, further training and the command line, on inputs that hypothesis makes up."""

import contextlib
import io
import os
import re
import tempfile
import unittest.mock

import counting
import numpy as np
import plain
import pooch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import tiny
from scipy.stats import spearmanr

from fimoda_lib.comparison import METRICS, instance_similarity, noise_ceiling, seed_agreement, similarity
from fimoda_lib.run import command as run
from fimoda_lib.training.further_training import further_train

thorough = settings(deadline=None, max_examples=60, derandomize=True)
brief = settings(deadline=None, max_examples=15, derandomize=True)

# Similarity

number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, allow_subnormal=False))


@st.composite
def pairs(draw):
    """Scores [test, train] and a sensitivity [left_out, step, test]; often zero or constant."""
    n, z = draw(st.integers(2, 6)), draw(st.integers(1, 3))

    def vectors():
        values = [draw(st.lists(number, min_size=n, max_size=n)) for _ in range(z)]
        return np.array([[v[0]] * n if draw(st.integers(0, 4)) == 0 else v for v in values])

    scores = xr.DataArray(vectors(), dims=("test", "train"), coords={"test": range(z), "train": range(n)})
    measured = xr.DataArray(vectors().T[:, None], dims=("left_out", "step", "test"))
    return scores, measured.assign_coords(left_out=range(n), step=[7], test=range(z))


def loop(scores, measured, metric):
    """Similarities one test instance after the other, NaN where undefined."""
    for z in scores.test.values:
        a, b = scores.sel(test=z).values, measured.sel(test=z, step=7).values
        if metric == "spearman":
            yield np.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else spearmanr(a, b).statistic
        else:
            a, b = (v / max(abs(v).max(), 1e-300) for v in (a, b))
            yield a @ b / np.linalg.norm(a) / np.linalg.norm(b) if a.any() and b.any() else np.nan


@given(pair=pairs())
@thorough
def test_similarity_equals_a_plain_loop(pair):
    for metric in METRICS:
        expected = np.array(list(loop(*pair, metric)))
        np.testing.assert_allclose(instance_similarity(*pair, metric)[0], expected, atol=1e-12, err_msg=metric)
        for undefined, values in (("zero", np.nan_to_num(expected)), ("skip", expected[~np.isnan(expected)])):
            found = similarity(*pair, metric, undefined)
            assert found["undefined"].item() == np.isnan(expected).sum(), metric
            mean = values.mean() if len(values) else np.nan
            np.testing.assert_allclose(found["mean"].item(), mean, atol=1e-12, err_msg=metric)


@given(pair=pairs(), power=st.integers(-20, 20), seed=st.integers(0, 99))
@thorough
def test_similarity_keeps_to_its_symmetries(pair, power, seed):
    scores, measured = pair
    shuffled = np.random.default_rng(seed).permutation(scores.sizes["train"])
    for metric in METRICS:
        values = instance_similarity(scores, measured, metric)
        assert (abs(values.dropna("test")) <= 1 + 1e-12).all(), metric
        for changed, sign in [
            ((scores * 2.0**power, measured), 1),  # exact: ties stay ties
            ((-scores, measured), -1),
            ((scores, measured.isel(left_out=shuffled)), 1),
            ((scores.isel(train=shuffled), measured), 1),
        ]:
            found = instance_similarity(*changed, metric)
            np.testing.assert_allclose(found, sign * values, atol=1e-12, err_msg=metric)


@given(
    seeds=st.integers(2, 4), n=st.integers(2, 4), noise=st.sampled_from([0.0, 0.3, 3.0]), start=st.integers(0, 999),
    adjustment=st.sampled_from(["mean", "full"]),
)  # fmt: skip
@thorough
def test_the_noise_ceiling_is_a_share_and_grows_with_seeds(seeds, n, noise, start, adjustment):
    rng = np.random.default_rng(start)
    delta = rng.standard_normal((1, n, 2, 3)) + noise * rng.standard_normal((seeds, n, 2, 3))
    dims = ("seed", "left_out", "step", "test")
    delta = xr.DataArray(delta, dims=dims, coords=dict(zip(dims, map(range, delta.shape), strict=True)))
    shares = noise_ceiling(delta, adjustment, "variances")
    assert ((0 <= shares) & (shares <= 1 + 1e-12)).all()
    scaled = noise_ceiling(delta * xr.DataArray([1e-200, 1.0, 1e200], dims="test"), adjustment, "variances")
    np.testing.assert_allclose(scaled, shares, atol=1e-6)
    agreement, ceiling = seed_agreement(delta, adjustment), noise_ceiling(delta, adjustment)
    vectors = delta.values - (delta.values.mean(1, keepdims=True) if adjustment == "mean" else 0)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [(vectors[a] * vectors[b]).sum(0) for a in range(seeds) for b in range(a)]
    np.testing.assert_allclose(agreement, np.clip(np.mean(cosines, axis=(0, 2)), 0, 1), atol=1e-9)
    assert ((0 <= ceiling) & (ceiling <= 1 + 1e-12)).all()
    twice = xr.concat([delta, delta.assign_coords(seed=delta.seed + seeds)], "seed")
    assert (noise_ceiling(twice, adjustment) >= ceiling - 1e-12).all()


# Further training


@st.composite
def trainings(draw):
    n = draw(st.integers(3, 8))
    return dict(
        n=n,
        kind=draw(st.sampled_from(["regression", "classification"])),
        settings=dict(
            optimizer=draw(st.sampled_from(["sgd", "adam", "adamw"])),
            learning_rate=draw(st.sampled_from([0.01, 0.1])),
            batch_size=draw(st.integers(1, n + 2)),  # larger than n, too
            epochs=draw(st.integers(1, 2)),
            removal=draw(st.sampled_from(["drop", "mask", "subtract"])),
            weight_decay=draw(st.sampled_from([0.0, 0.1])),
            max_grad_norm=draw(st.sampled_from([None, 0.5])),
        ),
        left_out=draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True)),
        seeds=draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2, unique=True)),
        replicas=draw(st.integers(1, 4)),
    )


@given(case=trainings())
@brief
def test_further_training_equals_the_plain_loop(case):
    task, params = tiny(case["kind"], n=case["n"], n_test=2)
    steps = case["settings"]["epochs"] * -(-case["n"] // case["settings"]["batch_size"])
    options = dict(progress=False, compile=False, evaluate=range(1, steps + 1), **case["settings"])
    gold = further_train(task, params, seeds=case["seeds"], left_out=case["left_out"], **options)
    for seed in case["seeds"]:
        full = np.array(list(map(np.asarray, plain.train(task, params, seed=seed, **case["settings"]))))
        np.testing.assert_allclose(gold.full_loss.sel(seed=seed), full, rtol=1e-8, atol=1e-10)
        for i in case["left_out"]:
            without = np.array(
                list(map(np.asarray, plain.train(task, params, seed=seed, removed=i, **case["settings"])))
            )
            np.testing.assert_allclose(gold.delta.sel(seed=seed, left_out=i), without - full, rtol=1e-5, atol=1e-9)
    again = further_train(
        task, params, seeds=case["seeds"][::-1], left_out=case["left_out"][::-1], replicas=case["replicas"], **options
    ).sel(seed=gold.seed, left_out=gold.left_out)
    for name in ("delta", "full_loss"):
        np.testing.assert_allclose(again[name], gold[name], rtol=1e-5, atol=1e-9)


# The command line

word = st.one_of(
    st.sampled_from([*run.PROFILES, *run.FIGURES, *run.PANELS, *run.STAND_INS, "status", "0", "1", "-1", "2.5", "nan"]),
    st.text(max_size=8),
)
option = st.sampled_from(
    ["--profile", "--only", "--datasets", "--data", "--results", "--figures", "--jobs", "--skip-tutorial", "--fresh"]
    + ["--help", "--profil", "-h", "--", "-", "--only=", "--jobs=x", "--data=.", "--results="]
)
valid = st.one_of(
    st.tuples(st.just("--profile"), st.sampled_from(sorted(run.PROFILES))),
    st.tuples(st.just("--only"), st.sampled_from(run.FIGURES)),
    st.tuples(st.just("--datasets"), st.sampled_from(run.STAND_INS)),
    st.tuples(st.just("--fresh")),
    st.tuples(st.just("--jobs"), st.sampled_from(["1", "2", "0", "x"])),
)
lines = st.one_of(
    st.lists(st.one_of(option, word), max_size=6),
    st.lists(valid, max_size=4).map(lambda parts: [word for part in parts for word in part]),
)


@given(arguments=lines)
@settings(thorough, max_examples=100)
def test_the_command_line_plans_or_says_what_is_wrong(arguments):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(unittest.mock.patch.dict(os.environ, FIMODA_CACHE=folder, clear=False))
        stack.enter_context(unittest.mock.patch.object(run, "run", return_value=0))
        stack.enter_context(unittest.mock.patch.object(run, "preflight", return_value=False))  # it has its own tests
        stack.enter_context(unittest.mock.patch.object(pooch, "retrieve", side_effect=OSError("no network")))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            status = run.main(arguments)
        except SystemExit as stop:
            status = stop.code
    assert status in (0, 2)
    if status == 2:
        counting.bad_input()
        assert re.search(r"^run_all.sh: (error: )?\S", errors.getvalue(), re.M), errors.getvalue()
    else:
        assert all(line.startswith("Downloading ") for line in errors.getvalue().splitlines())
