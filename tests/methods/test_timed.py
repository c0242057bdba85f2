"""Influence functions whose damping belongs to the horizon, against dense matrices."""

import numpy as np
import oracles
import pytest
from problems import tiny
from small_files import refusal

from fimoda_lib.derivatives import spectra
from fimoda_lib.methods import attribute
from fimoda_lib.methods.timed import timed

TRAIN, TEST, N, STEPS, RATE = [2, 11, 5], [3, 0, 4], 23, [1, 30, 4000], 0.02


def found(task, params, optimizer="sgd", **options):
    run = dict(optimizer=optimizer, learning_rate=RATE, batch_size=8)
    return attribute(timed, task, params, train=TRAIN, test=TEST, horizon=STEPS, further_training=run, **options)


def expected(task, params, optimizer="sgd", rate=RATE, rows=range(N)):
    G, g = oracles.gauss_newton(task, params, rows), oracles.gradients(task, params, task.train, range(N))
    v = g.mean(0) ** 2 + g.var(0) / 8
    scale = np.ones(len(G)) if optimizer == "sgd" else np.sqrt(v) + 1e-8
    inverses = [np.linalg.inv(G + np.diag(scale) / (rate * steps)) for steps in STEPS]
    return np.stack([oracles.scores(task, params, TRAIN, TEST, P) / N for P in inverses])


@pytest.mark.parametrize("backend", ["gram", "krylov"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("kind", "outputs"), [("regression", 1), ("classification", 3)])
def test_equals_the_formula_and_nothing_else_does(kind, outputs, optimizer, backend, monkeypatch):
    task, params = tiny(kind, outputs=outputs)
    if backend == "krylov":
        monkeypatch.setattr(spectra, "GRAM_ROWS", 1)
    scores = found(task, params, optimizer)
    assert scores.dims == ("horizon", "test", "train") and scores.attrs["backend"] == backend
    tolerance = 1e-9 if backend == "gram" else 5e-3  # the smallest eigenvalues count as zero
    np.testing.assert_allclose(scores, expected(task, params, optimizer), rtol=tolerance, atol=1e-4 * tolerance)
    other = {"sgd": "adam", "adam": "sgd"}[optimizer]
    for wrong in (expected(task, params, other), expected(task, params, optimizer, 2 * RATE), scores.values[::-1]):
        assert np.abs(wrong - scores.values).max() > 0.1 * np.abs(scores.values).max()


def test_the_curvature_may_come_from_some_instances():
    task, params = tiny("classification")
    np.testing.assert_allclose(
        found(task, params, curvature=[0, 4, 9, 13]), expected(task, params, rows=[0, 4, 9, 13]), rtol=1e-9
    )


def test_what_cannot_be_right_is_refused():
    task, params = tiny()
    for run, fragment in ((None, "needs further_training"), (dict(learning_rate=0.1), "batch_size is missing")):
        message = refusal(attribute, timed, task, params, horizon=[3], further_training=run, error=ValueError)
        assert fragment in message
    assert "horizon: got [0]" in refusal(
        attribute, timed, task, params, horizon=[0], further_training=dict(learning_rate=0.1, batch_size=8),
        error=ValueError,
    )  # fmt: skip
