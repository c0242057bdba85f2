"""`attribute`: what goes in, what comes out, and how solvers say that they have not converged."""

import dataclasses
import json
import math
import warnings

import numpy as np
import oracles
import pytest
import torch
from problems import tiny
from small_files import refusal

from fimoda_lib.methods import METHODS, MethodDiverged, attribute

BASIC = ["grad_dot", "grad_cos", "exact", "cg", "lissa", "lissa_h", "datainf"]
DAMPED = ["exact", "cg", "lissa", "lissa_h"]
FULL_BATCH = dict(scale=20, depth=3, batch_size=None)


def quick(name):
    return dict(FULL_BATCH) if name.startswith("lissa") else {}


# What comes out


@pytest.mark.parametrize("name", BASIC)
def test_scores_carry_true_numbers_and_hyper_parameters_by_value(name):
    task, params = tiny()
    found = attribute(name, task, params, train=[7, 2], test=[4, 0, 1], **quick(name))
    assert found.dims == ("test", "train") and found.dtype == np.float64 and found.name == name
    assert found.train.values.tolist() == [7, 2] and found.test.values.tolist() == [4, 0, 1]
    assert found.attrs["method"] == name and found.attrs["label"] == METHODS[name].label
    assert found.attrs["dtype"] == "float64"
    assert set(METHODS[name].defaults) <= set(found.attrs)
    assert all(isinstance(value, int | float | str) for value in found.attrs.values())
    found.to_netcdf()  # attributes fit into a file


@pytest.mark.parametrize("name", DAMPED)
def test_recommended_damping_is_the_mean_squared_gradient_entry_of_the_curvature_instances(name):
    task, params = tiny("classification")
    rows = [1, 5, 9, 20]
    unit = oracles.damping(task, params, rows)
    for multiple in (1.0, 0.1, 1000):
        found = attribute(
            name,
            task,
            params,
            train=[2],
            curvature=rows,
            multiple=multiple,
            **{**quick(name), **({"scale": 1e6} if name.startswith("lissa") else {})},
        )
        assert found.attrs["damping"] == pytest.approx(unit * multiple, rel=1e-12)
        assert found.attrs["multiple"] == multiple
        by_value = attribute(
            name,
            task,
            params,
            train=[2],
            curvature=rows,
            damping=unit,
            multiple=multiple,
            **{**quick(name), **({"scale": 1e6} if name.startswith("lissa") else {})},
        )
        np.testing.assert_allclose(by_value, found, rtol=1e-10)


def test_damping_of_datainf_is_recommended_layer_by_layer_or_given():
    task, params = tiny("classification")
    rows = [1, 5, 9, 20]
    unit = oracles.layer_damping(task, params, rows)
    for scale in (10, 0.1):
        found = attribute("datainf", task, params, curvature=rows, scale=scale)
        damping = json.loads(found.attrs["damping"])
        assert damping == pytest.approx({k: v / scale for k, v in unit.items()}, rel=1e-12)
        given = attribute("datainf", task, params, curvature=rows, damping=damping)
        np.testing.assert_allclose(given, found, rtol=1e-12)
    for bad in ({**damping, "0.bias": 0.0}, {"0.bias": 1.0}, {**damping, "more": 1.0}):
        message = refusal(attribute, "datainf", task, params, damping=bad, error=ValueError)
        assert "one positive number for each of 0.weight, 0.bias" in message
    assert "scale: got 0" in refusal(attribute, "datainf", task, params, scale=0, error=ValueError)


# What goes in


def test_a_function_of_your_own_is_a_method():
    task, params = tiny()

    def first_feature(task, params, *, train, test, curvature, power=1.0):
        """Scores by the first feature, and a report."""
        left, right = task.test[0][test, 0], task.train[0][train, 0]
        return torch.outer(left, right) ** power, {"used": len(curvature)}

    found = attribute(first_feature, task, params, train=[3, 1], test=[2], curvature=[0, 1, 2], power=2.0)
    expected = (task.test[0][2, 0] * task.train[0][[3, 1], 0]) ** 2
    np.testing.assert_allclose(found[0], expected)
    assert found.attrs == {"method": "first_feature", "label": "first_feature", "power": 2.0, "used": 3}
    assert "no hyper-parameter 'damping'; it has power" in refusal(
        attribute, first_feature, task, params, damping=1.0, error=ValueError
    )
    known = attribute(METHODS["grad_dot"].function, task, params)
    assert known.attrs["label"] == "Grad-Dot" and known.identical(attribute("grad_dot", task, params))


def test_a_function_of_your_own_cannot_change_the_final_model():
    task, params = tiny()
    before = {k: p.clone() for k, p in params.items()}

    def writes(task, params, *, train, test, curvature):
        for p in params.values():
            p.sub_(0.5)
        for rows in (train, test, curvature):
            rows += 1
        return torch.zeros(len(test), len(train))

    found = attribute(writes, task, params)
    assert found.test.values.tolist() == [*range(task.n_test)] and found.train.values.tolist() == [*range(task.n_train)]
    assert all(torch.equal(before[k], p) for k, p in params.items())


def test_a_function_of_your_own_that_returns_nonsense_is_refused():
    task, params = tiny()

    def transposed(task, params, *, train, test, curvature):
        return torch.zeros(len(train), len(test))

    def undefined(task, params, *, train, test, curvature):
        return torch.tensor([[1.0, math.nan], [2.0, 3.0], [math.inf, 0.0]])

    rows = dict(train=[0, 1], test=[0, 1, 2])
    message = refusal(attribute, transposed, task, params, **rows, error=ValueError)
    assert "transposed returned scores of shape (2, 3)" in message and "(3, 2)" in message
    message = refusal(attribute, undefined, task, params, **rows, error=MethodDiverged)
    assert "undefined returned NaN or infinite scores for 2 of 3 test instances" in message


def returning(what):
    def own(task, params, *, train, test, curvature):
        return what(torch.arange(1.0, 1 + len(train) * len(test)).reshape(len(test), len(train)))

    return own


@pytest.mark.parametrize(
    ("what", "fragment"),
    [
        (lambda s: (s, {}, 1), "own returned a tuple"),
        (lambda s: (s, None), "own returned a tuple"),
        (lambda s: (s, {"horizon": 5}), "own reported the horizon 5; expected different steps in a list"),
        (lambda s: (s.expand(2, *s.shape), {"horizon": [5, 5]}), "own reported the horizon [5, 5]"),
        (lambda s: s.to_sparse(), "own returned a float32 sparse_coo tensor; expected a dense one"),
        (lambda s: s.to("meta"), "own returned a meta tensor"),
        (lambda s: s > 2, "own returned a bool strided tensor"),
        (lambda s: s.to(torch.complex64), "own returned a complex64 strided tensor"),
    ],
)
def test_what_a_function_of_your_own_returns_is_named_where_it_is_wrong(what, fragment):
    task, params = tiny()
    assert fragment in refusal(attribute, returning(what), task, params, train=[0, 1], test=[0], error=ValueError)


@pytest.mark.parametrize(
    "what",
    [
        lambda s: s.bfloat16(),
        lambda s: s.int(),
        lambda s: s.numpy().astype(np.longdouble),
        lambda s: s.numpy().astype(">f8"),
        lambda s: s.numpy()[:, ::-1][:, ::-1],
        lambda s: s.flip(1).numpy()[:, ::-1],
        lambda s: (s, {"label": "mine", "method": "mine"}),
    ],
)
def test_a_function_of_your_own_may_return_numbers_of_any_kind(what):
    task, params = tiny()
    found = attribute(returning(what), task, params, train=[0, 1], test=[0, 3])
    np.testing.assert_array_equal(found, [[1, 2], [3, 4]])
    assert found.attrs["label"] == found.attrs["method"] == "own"


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (dict(method="grad_dott"), ["no method 'grad_dott'", "grad_dot, "]),
        (dict(damping_factor=1), ["exact has no hyper-parameter 'damping_factor'", "damping, multiple, dtype"]),
        (dict(method="grad_dot", damping=1.0), ["grad_dot has no hyper-parameter 'damping'", "dtype"]),
        (dict(train=[23]), ["train", "instance 23 does not exist", "0 to 22"]),
        (dict(test=[0, 5]), ["test", "instance 5 does not exist", "0 to 4"]),
        (dict(curvature=[-1]), ["curvature", "instance -1"]),
        (dict(train=[1, 1]), ["train", "instance 1", "more than once"]),
        (dict(train=[0.0]), ["train", "whole instance numbers"]),
        (dict(train=[]), ["train", "at least one"]),
        (dict(test=[]), ["test", "at least one"]),
        (dict(curvature=[]), ["curvature", "at least one"]),
        (dict(damping=0), ["damping", "got 0", "positive"]),
        (dict(damping=-1.0), ["damping", "got -1.0"]),
        (dict(damping="auto"), ["damping", "'auto'", "'recommended'"]),
        (dict(damping=float("nan")), ["damping", "got nan"]),
        (dict(multiple=0), ["damping", "times 0"]),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(changes, fragments):
    task, params = tiny()
    message = refusal(attribute, **{"method": "exact", "task": task, "params": params, **changes}, error=ValueError)
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("name", BASIC)
def test_data_and_parameters_that_cannot_be_right_are_refused(name):
    task, params = tiny()
    assert "do not belong" in refusal(attribute, name, task, tiny(width=5)[1], error=ValueError)
    broken = {**params, "2.bias": torch.tensor([math.nan]).double()}
    assert "'2.bias' holds NaN" in refusal(attribute, name, task, broken, error=ValueError)
    task.train[0][3, 1] = math.inf
    assert "train inputs hold NaN or infinite" in refusal(attribute, name, task, params, error=ValueError)


# Solvers


def test_cg_reports_iterations_and_residuals_and_names_those_that_are_late():
    task, params = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = attribute("cg", task, params, damping=1e-3, test=[4, 0, 2])
    assert len(json.loads(found.attrs["iterations"])) == 3 and max(json.loads(found.attrs["residual"])) <= 1e-10
    assert found.attrs["tolerance"] == 1e-10 and min(json.loads(found.attrs["iterations"])) > 3
    with pytest.warns(
        UserWarning,
        match=r"CG: 3 of 3 test instances did not converge to 1e-10 in 2 iterations "
        r"\(instances \[4, 0, 2\]\)",
    ):
        late = attribute("cg", task, params, damping=1e-3, test=[4, 0, 2], max_iterations=2)
    assert json.loads(late.attrs["iterations"]) == [2, 2, 2] and min(json.loads(late.attrs["residual"])) > 1e-10


def test_the_residuals_that_cg_reports_are_true():
    task, params = tiny()
    with pytest.warns(UserWarning):
        found = attribute("cg", task, params, damping=0.1, max_iterations=3)
    # Scores are solutions times training gradients, of which there are more than parameters: solve back for them.
    g, v = (oracles.gradients(task, params, part, range(n)) for part, n in ((task.train, 23), (task.test, 5)))
    solution = np.linalg.lstsq(g, found.values.T, rcond=None)[0].T
    matrix = oracles.gauss_newton(task, params, range(23)) + 0.1 * np.eye(21)
    residual = np.linalg.norm(v - solution @ matrix, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(json.loads(found.attrs["residual"]), residual, rtol=1e-6)


def test_cg_in_float32_says_what_it_reaches():
    task, params = tiny()
    found = attribute("cg", task, params, damping=0.1, dtype=torch.float32)
    assert found.attrs["tolerance"] == 1e-5 and max(json.loads(found.attrs["residual"])) <= 1e-5
    with pytest.warns(UserWarning, match="did not converge to 1e-12"):
        attribute("cg", task, params, damping=0.1, dtype=torch.float32, tolerance=1e-12, max_iterations=60)


@pytest.mark.parametrize("name", BASIC)
def test_a_test_instance_without_gradient_has_scores_and_residuals_of_zero(name):
    def margin(outputs, targets):
        return (outputs - targets).square().clamp(min=0.01).sum(1)

    task, params = tiny()
    task = dataclasses.replace(task, loss=margin)
    task.test[1][2] = task.model(task.test[0][2:3])[0].detach()
    for rows in (range(10), range(4)):
        found = attribute(name, task, params, curvature=rows, **quick(name))
        assert (found.sel(test=2) == 0).all() and (found.sel(test=1) != 0).any()
        assert json.loads(found.attrs.get("residual", "[0, 0, 0]"))[2] == 0


@pytest.mark.parametrize("curvature", [range(10), range(4)])  # many and few beside the 21 parameters
def test_lissa_takes_the_smallest_scale_that_converges_and_names_the_others(curvature):
    task, params = tiny()
    λ, rows = 0.5, dict(curvature=curvature, test=[1, 3])
    matrix = oracles.gauss_newton(task, params, curvature) + λ * np.eye(21)
    largest = np.linalg.eigvalsh(matrix)[-1]  # the series converges for scales above half of it
    scales = [s * largest for s in (0.2, 0.35, 0.7, 2)]
    found = attribute("lissa", task, params, **rows, damping=λ, scale=scales, depth=60, batch_size=None)
    assert found.attrs["scale"] == scales[2]
    assert json.loads(found.attrs["diverged_scales"]) == scales[:2]
    v = oracles.gradients(task, params, task.test, [1, 3])
    error = v @ np.linalg.matrix_power(np.eye(21) - matrix / scales[2], 61)
    residual = np.linalg.norm(error, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(json.loads(found.attrs["residual"]), residual, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("name", ["lissa", "lissa_h"])
def test_a_series_that_diverges_for_every_scale_is_an_error(name):
    task, params = tiny()
    message = refusal(attribute, name, task, params, damping=0.5, scale=[0.1, 0.2], depth=12, error=MethodDiverged)
    assert "diverged for every scale tried (0.1, 0.2) with damping 0.5" in message and "larger scales" in message


def test_lissa_h_diverges_where_the_hessian_is_not_positive():
    task, params = tiny()
    assert np.linalg.eigvalsh(oracles.hessian(task, params, range(23)))[0] < -0.5
    with pytest.raises(MethodDiverged):
        attribute("lissa_h", task, params, damping=0.01, scale=[1.9, 2.2], depth=100, batch_size=None, test=[0])


def test_scores_of_groups_are_sums_over_their_members():
    task, params = tiny("classification")
    groups = [[3, 8, 21], [5], [0, 8]]
    for method, hyper in (("grad_dot", {}), ("cg", dict(damping=0.5)), (own_method, {})):
        found = attribute(method, task, params, train=groups, **hyper)
        single = attribute(method, task, params, **hyper)
        expected = np.stack([single.sel(train=group).sum("train") for group in groups], 1)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert found.group.values.tolist() == ["3 8 21", "5", "0 8"] and found.attrs == single.attrs
    assert "group 1" in refusal(attribute, "cg", task, params, train=[[3], []], error=ValueError)


def own_method(task, params, *, train, test, curvature=None):
    return (test[:, None] + 1.0) * (train + 2.0) ** 2


# What has no finite gradient, or none at all


@pytest.mark.parametrize("name", [*BASIC, "ekfac", "trak", "lft"])
def test_instances_whose_gradient_is_not_finite_are_named(name):
    """A mean over the outputs that count, where for one instance there is none: 0/0."""
    task, params = tiny()
    hyper = quick(name) if name != "lft" else dict(horizon=[2], further_training=dict(learning_rate=0.1, batch_size=8))
    targets = task.train[1].clone()
    targets[[4, 9]] = 0.0

    def masked(o, t):
        counts = (t != 0).to(o.dtype)
        return ((o - t).square() * counts).sum(1) / counts.sum(1)

    odd = dataclasses.replace(task, loss=masked, train=(task.train[0], targets))
    message = refusal(attribute, name, odd, params, train=[2, 4, 9], test=[1], error=ValueError, **hyper)
    assert "not finite for 2 of the train instances ([4, 9])" in message and "0/0" in message


def test_where_all_gradients_are_zero_no_damping_is_recommended():
    task, _ = tiny()
    model = torch.nn.Linear(3, 1, bias=False).double()
    odd = dataclasses.replace(task, model=model, train=(0 * task.train[0], task.train[1]))
    for name in (*DAMPED, "ekfac"):
        message = refusal(attribute, name, odd, {"weight": model.weight.detach()}, error=ValueError, **quick(name))
        assert "the recommended one is 0" in message


def test_a_single_training_instance():
    """Of which the size of a forward pass is measured, too."""
    task, params = tiny(n=1)
    pair = (task, params, [0], range(5), [0])
    found = attribute("lissa_h", task, params, damping=12.0, scale=14, depth=30, batch_size=None)
    np.testing.assert_allclose(found, oracles.hessian_influence(*pair, 12.0), rtol=1e-7)
    along = dict(horizon=[1], further_training=dict(learning_rate=1e-6, batch_size=4), order=1)
    for mode in ("one_run", "split"):
        found = attribute("lft", task, params, mode=mode, **along)[0]
        np.testing.assert_allclose(found, oracles.grad_dot(*pair) * 1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-25), ("float32", 1e25), ("float64", 1e-200), ("float64", 1e160)]
)
def test_cosines_of_gradients_whose_squares_leave_the_range_of_numbers(dtype, size):
    task, params = tiny("classification")
    scaled = dataclasses.replace(task, loss=lambda o, t: size * task.loss(o, t))
    found = attribute("grad_cos", scaled, params, dtype=dtype)
    expected = oracles.grad_cos(task, params, range(23), range(5), None)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if dtype == "float64" else 1e-4, atol=1e-6)


def test_a_layer_that_is_called_under_vmap_has_no_kronecker_factors():
    task, params = tiny()
    inner = task.model

    class Each(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = inner

        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda v: self.net(v).sum()))(x)[:, :1]

    odd = dataclasses.replace(task, model=Each())
    named = {f"net.{k}": p for k, p in params.items()}
    assert "expected batches" in refusal(attribute, "ekfac", odd, named, error=ValueError)
    expected = oracles.grad_dot(odd, named, range(23), range(5), None)
    np.testing.assert_allclose(attribute("grad_dot", odd, named), expected, rtol=1e-9)


def test_a_function_of_your_own_may_be_called_as_it_likes():
    task, params = tiny()

    def ones(instances, theta, *, train, test, curvature, weights=np.ones(3), unit=torch.tanh, **options):
        return torch.full((len(test), len(train)), float(options.get("level", 1)), dtype=torch.float64)

    found = attribute(ones, task, params, level=np.float32(2), kinds={"a", "b"})
    assert (found == 2).all() and found.attrs["level"] == 2 and "1., 1., 1." in found.attrs["weights"]
    given = attribute("datainf", task, params, damping={name: np.float32(0.1) for name in params})
    assert given.attrs["damping"].count("0.1") == len(params)
