"""The reverse derivative of further training against the forward one, and against differences of two runs."""

import numpy as np
import plain
import pytest
from problems import tiny
from small_files import refusal

from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train

RULES = {
    "sgd": dict(optimizer="sgd", learning_rate=0.1),
    "adam": dict(optimizer="adam", learning_rate=0.01),
    "adamw": dict(optimizer="adamw", learning_rate=0.01, weight_decay=0.3, max_grad_norm=0.4),
}
CHANGE = 1e-4


def adjoint(task, params, rule, **options):
    options = {"batch_size": 6, "horizon": 10, "seed": 3, "test": range(task.n_test), **options}
    return adjoint_train(task, params, **RULES[rule], **options, progress=False)


def forward(task, params, rule, horizon, batch_size=6):
    found = tangent_train(
        task,
        params,
        **RULES[rule],
        batch_size=batch_size,
        epochs=2,
        seeds=[3],
        left_out=range(task.n_train),
        evaluate=[horizon],
        progress=False,
    )
    return found.delta.values[0, :, 0].T


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("horizon", [1, 4, 5])  # before, at and after steps whose state is kept
def test_equals_the_forward_derivative(kind, rule, horizon):
    task, params = tiny(kind)
    found, expected = adjoint(task, params, rule, horizon=horizon).values, forward(task, params, rule, horizon)
    assert error(found, expected) < 1e-8  # the first step of Adam is a sign: its derivative is what cancellation leaves
    assert error(-found, expected) > 1 and error(np.abs(found), expected) > 0.01
    if rule == "sgd" and horizon > 1:  # another seed is another run
        assert error(adjoint(task, params, rule, horizon=horizon, seed=4).values, expected) > 0.01


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_difference_of_two_runs(rule):
    task, params = tiny("classification", n=9)

    def losses(fraction):
        options = dict(batch_size=4, epochs=2, seed=3, removed=5, removal="mask", fraction=fraction)
        return list(plain.train(task, params, **RULES[rule], **options))[5].numpy()

    expected = (losses(CHANGE) - losses(-CHANGE)) / (2 * CHANGE)
    found = adjoint(task, params, rule, horizon=6, batch_size=4).sel(train=5).values
    assert error(found, expected) < 1e-6


def test_coordinates_are_the_instance_numbers():
    task, params = tiny()
    some, all_ = adjoint(task, params, "sgd", test=[3, 1]), adjoint(task, params, "sgd")
    np.testing.assert_allclose(some.values, all_.sel(test=[3, 1]).values, rtol=1e-12)
    assert some.dims == ("test", "train") and some.test.values.tolist() == [3, 1] and some.sizes["train"] == 23


def test_instances_that_have_not_been_seen_have_no_effect():
    task, params = tiny()
    after_one_step = adjoint(task, params, "sgd", horizon=1)
    assert (after_one_step != 0).any("test").sum() == 6  # one batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(horizon=0), "horizon: got 0"),
        (dict(horizon=2.5), "horizon: got 2.5"),
        (dict(test=[99]), "test: instance 99 does not exist"),
        (dict(batch_size=0), "batch_size: got 0"),
        (dict(seed=-1), "seeds: got"),
    ],
)
def test_wrong_inputs_end_in_a_sentence(options, words):
    task, params = tiny()
    assert words in refusal(adjoint, task, params, "sgd", error=ValueError, **options)
