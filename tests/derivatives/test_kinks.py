"""Softened kinks against units smoothed by numerical integration, and against what switches do to a run."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import tiny
from scipy.stats import norm
from small_files import refusal
from torch import nn
from torch.func import grad, hessian, jvp, vmap

from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.kinks import softened, spreads, widen, with_kinks
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.tasks import Task, parameters_of

H = 0.1
UNITS = {
    "ReLU": nn.ReLU(),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(-1.5, 2.0),
    "PReLU": nn.PReLU(dtype=torch.float64),
    "Softshrink": nn.Softshrink(1.0),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-2, 1),
    "clamp from below": lambda x: torch.clamp_min(x, 0.3),
    "minimum": lambda x: torch.minimum(x, torch.ones_like(x)),
    "max of two": lambda x: torch.max(x, torch.ones_like(x)),
    "min of two": lambda x: x.min(other=torch.ones_like(x)),
    "fmax": lambda x: torch.fmax(x, torch.ones_like(x)),
    "fmin": lambda x: torch.fmin(torch.ones_like(x), x),
    "Threshold": nn.Threshold(0.4, 0.4),
}
POOLS = [
    nn.MaxPool1d(3),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True),
    nn.MaxPool2d(2, 2, 1, dilation=2),
    nn.MaxPool3d(2),
    nn.AdaptiveMaxPool2d((3, None)),
    nn.AdaptiveMaxPool1d(2),
]


class Calls(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def soft(function, width=H, calls=64):
    return softened(Calls(function), [width] * calls)


def derivatives(function, x):
    """Value and first derivative at every x, and how to get the second."""
    first = grad(lambda t: function(t[None])[0])
    return function(x).detach(), vmap(first)(x).detach(), lambda: vmap(grad(first))(x).detach().numpy()


def smoothed_curvature(function, x, width):
    """Second difference of the mean of function(x + width z) over Gaussian z, by the trapezoidal rule."""
    z = np.linspace(-8, 8, 20_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])

    def smooth(at):
        with torch.no_grad():
            return function(torch.from_numpy((at[:, None] + width * z).ravel())).numpy().reshape(len(at), -1) @ density

    step = 5e-3
    return (smooth(x + step) - 2 * smooth(x) + smooth(x - step)) / step**2


@pytest.mark.parametrize("name", UNITS)
def test_only_second_derivatives_of_a_unit_change_and_they_are_those_of_the_smoothed_one(name):
    unit, x = UNITS[name], torch.linspace(-4, 7, 111, dtype=torch.float64) + 1e-3
    value, slope, curvature = derivatives(soft(unit), x)
    plain = derivatives(unit, x)
    torch.testing.assert_close(value, plain[0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(slope, plain[1], rtol=1e-7 if name.startswith("Hard") else 1e-14, atol=1e-14)
    expected, found = smoothed_curvature(unit, x.numpy(), H), curvature()
    size, tolerance = np.abs(expected).max(), 0.1 if name == "Hardswish" else 2e-3  # its jump changes within a width
    assert np.abs(found - expected).max() <= tolerance * size and size > 0.5
    for wrong in (0 * found, -found, derivatives(soft(unit, 2 * H), x)[2]()):
        assert np.abs(wrong - expected).max() > 0.2 * size


def test_rrelu_in_evaluation_is_the_leaky_unit_of_its_mean_slope():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    found, expected = (derivatives(soft(unit), x) for unit in (nn.RReLU(0.1, 0.3).eval(), nn.LeakyReLU(0.2)))
    torch.testing.assert_close((*found[:2], found[2]()), (*expected[:2], expected[2]()))
    torch.testing.assert_close(found[0], nn.RReLU(0.1, 0.3).eval()(x))


def test_what_is_no_number_or_infinite_stays_what_it_was():
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -0.0, 1e-300, 1e300], dtype=torch.float64)
    value, slope, curvature = derivatives(soft(torch.relu), x)
    torch.testing.assert_close(value, torch.relu(x), equal_nan=True)
    assert slope[[0, 1, 3, 4, 5, 6]].tolist() == [0, 1, 0, 0, 1, 1]
    np.testing.assert_allclose(curvature()[3:], np.array([1, 1, 1, 0]) / (H * np.sqrt(2 * np.pi)), rtol=1e-12)
    assert not curvature()[:3].any()


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_is_what_it_was(pool):
    g = torch.Generator().manual_seed(0)
    shape = (2, 3, *(9, 8, 7)[: int(type(pool).__name__[-2])])
    x, copy = torch.randn(shape, generator=g, dtype=torch.float64), soft(pool)
    torch.testing.assert_close(copy(x), pool(x), rtol=1e-14, atol=0)
    weights = torch.randn(pool(x).shape, generator=g, dtype=torch.float64)
    slopes = [grad(lambda t, f=f: (f(t) * weights).sum())(x) for f in (copy, pool)]
    torch.testing.assert_close(*slopes, rtol=1e-13, atol=1e-13)
    direction = torch.randn(shape, generator=g, dtype=torch.float64)
    curved = [jvp(grad(lambda t, f=f: (f(t) * weights).sum()), (x,), (direction,))[1] for f in (copy, pool)]
    assert curved[0].abs().max() > 0.01 and curved[1].abs().max() == 0


@pytest.mark.parametrize("how", [lambda x: F.max_pool1d(x[None], 2)[0, 0], lambda x: torch.maximum(*x)[None][0],
                                 lambda x: x.amax(0), lambda x: -torch.amin(-x, 0), torch.max,
                                 lambda x: -(-x).min()])  # fmt: skip
def test_a_maximum_is_curved_across_the_tie(how):
    model = soft(how)
    for gap in (0.0, 0.05, -0.2):
        x = torch.tensor([0.7, 0.7 + gap], dtype=torch.float64)
        density = np.exp(-((gap / H) ** 2) / 2) / (H * np.sqrt(2 * np.pi))
        expected = density * np.array([[1, -1], [-1, 1]])
        np.testing.assert_allclose(hessian(lambda t: model(t).sum())(x).reshape(2, 2), expected, rtol=1e-9)


def rectified(n=40, width=6, seed=0, activation=nn.ReLU):
    task, _ = tiny("classification", n=n, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(3, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3)
    model = nn.Sequential(*layers).double()
    return (task := dataclasses.replace(task, model=model)), parameters_of(task.model)


def products(task, params, vectors):
    at = Gradients(task, params)
    return at.hessian_products(at.train(torch.arange(task.n_train)), vectors)


def some_vectors(params, k=3):
    size = sum(p.numel() for p in params.values())
    return torch.randn(k, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_narrow_gaussians_leave_the_derivative_between_kinks():
    task, params = rectified()
    vectors = some_vectors(params)
    between = products(task, params, vectors)
    torch.testing.assert_close(products(with_kinks(task, params, "softened", 1e-9), params, vectors), between)
    wide = products(with_kinks(task, params, "softened", 0.1), params, vectors)
    assert (wide - between).norm() > 0.1 * between.norm()


def test_the_hessian_is_symmetric_and_the_same_forwards():
    task, params = rectified()
    task = with_kinks(task, params, "softened", 0.2)
    at = Gradients(task, params)
    H = products(task, params, torch.eye(at.n_params, dtype=torch.float64))
    torch.testing.assert_close(H, H.T, rtol=1e-10, atol=1e-12)

    def gradient(flat):
        inputs, targets = task.train
        loss = lambda p: task.loss(at.outputs(inputs, at.unflatten(p)), targets).mean()  # noqa: E731
        return grad(loss)(flat)

    flat = at.flatten(at.params)
    forwards = vmap(lambda v: jvp(gradient, (flat,), (v,))[1])(torch.eye(at.n_params, dtype=torch.float64))
    torch.testing.assert_close(forwards, H, rtol=1e-10, atol=1e-12)


def test_smooth_models_are_unchanged():
    task, params = rectified(activation=nn.Tanh)
    assert spreads(task, params) == []
    assert with_kinks(task, params, "softened", 0.1).model is task.model
    task, params = rectified()
    assert with_kinks(task, params, "between").model is task.model


class Functional(nn.Module):
    """The rectified model above with its units called in the forward pass."""

    def __init__(self, layers, calls):
        super().__init__()
        self.layers, self.calls = layers, calls

    def forward(self, x):
        for call, layer in zip(self.calls, (self.layers[0], self.layers[2]), strict=True):
            x = call(layer(x))
        return self.layers[4](x)


def beside_zero(x):
    return torch.stack([x, torch.zeros_like(x)], 1)


@pytest.mark.parametrize(
    "calls",
    [
        [F.relu, torch.relu],
        [torch.Tensor.relu, lambda x: F.relu(x, True)],
        [torch.relu_, lambda x: x.relu_()],
        [lambda x: x.clamp(min=0), lambda x: F.hardtanh(x, 0.0, 1e6)],
        [lambda x: torch.clip(x, 0), lambda x: torch.maximum(x, torch.zeros(()))],
        [lambda x: F.hardtanh(x, 0.0, 1e6, True), lambda x: F.leaky_relu(x, 0.0, True)],
        [lambda x: beside_zero(x).amax(1, True)[:, 0], lambda x: -torch.amin(-beside_zero(x), 1, True)[:, 0]],
    ],
)
def test_calls_of_functions_are_softened_like_modules(calls):
    task, params = rectified()
    other = dataclasses.replace(task, model=Functional(task.model, calls))
    renamed = {f"layers.{k}": v for k, v in params.items()}
    vectors = some_vectors(params)
    found = products(with_kinks(other, renamed, "softened", 0.1), renamed, vectors)
    torch.testing.assert_close(found, products(with_kinks(task, params, "softened", 0.1), params, vectors))


def test_units_in_place_change_what_they_are_given():
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    model = soft(lambda x: (F.relu(x, inplace=True), x)[1])
    torch.testing.assert_close(model(x.clone()), x.relu())


def difference_products(at, instances, vectors, width):
    """The Hessian of the mean loss with softened kinks times each vector, from plain gradients: [k, P] -> [k, P].

    A symmetric difference of gradients sees each kink that the step between them crosses. The step moves the outputs,
    and with them about everything before them, by `width` of their spread in either direction. Knows nothing of the
    model; noisier than a Gaussian, and for each vector another width.
    """
    inputs, targets = instances

    def gradient(flat):
        params = {k: p.detach().requires_grad_() for k, p in at.unflatten(flat).items()}
        loss = at.losses(at.outputs(inputs, params), targets).mean()
        return at.flatten(dict(zip(params, torch.autograd.grad(loss, [*params.values()]), strict=True)))

    def outputs(flat):
        with torch.no_grad():
            return at.outputs(inputs, at.unflatten(flat))

    here, found = at.flatten(at.params), []
    spread = outputs(here).var(0, correction=0).mean().sqrt()
    for v in vectors:
        little = 1e-3 * here.norm() / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
        moved = (outputs(here + little * v) - outputs(here - little * v)).square().mean().sqrt() / (2 * little)
        step = width * spread / moved
        found.append((gradient(here + step * v) - gradient(here - step * v)) / (2 * step) if moved > 0 else 0 * v)
    return torch.stack(found)


def test_a_difference_of_gradients_finds_the_same_without_knowing_the_model():
    task, params = rectified(n=3000, width=32)
    at, vectors = Gradients(task, params), some_vectors(params, 4)
    between = products(task, params, vectors)
    kinks = products(with_kinks(task, params, "softened", 0.1), params, vectors) - between
    found = difference_products(at, at.train(torch.arange(3000)), vectors, 0.1) - between
    for one, other in zip(found, kinks, strict=True):
        assert one @ other / (one.norm() * other.norm()) > 0.8 and 0.7 < one.norm() / other.norm() < 1.4
    smooth, params = rectified(n=200, activation=nn.Tanh)
    at = Gradients(smooth, params)
    found = difference_products(at, at.train(torch.arange(200)), vectors := some_vectors(params), 1e-3)
    torch.testing.assert_close(found, products(smooth, params, vectors), rtol=1e-4, atol=1e-6)


def test_spreads_are_those_over_instances_of_what_goes_into_each_unit():
    task, params = rectified()
    with torch.no_grad():
        first = task.model[0](task.train[0])
        second = task.model[2](first.relu())
    expected = [float((x - x.mean(0)).square().mean().sqrt()) for x in (first, second)]
    np.testing.assert_allclose(spreads(task, params), expected, rtol=1e-9)


def test_kinks_are_as_wide_as_what_goes_into_a_unit_has_moved():
    task, params = rectified()
    soft = with_kinks(task, params, "softened")
    vectors = some_vectors(params)
    widen(soft, params)
    torch.testing.assert_close(products(soft, params, vectors), products(task, params, vectors))  # nothing moved yet
    moved = {
        k: p + 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p) for k, p in params.items()
    }
    x, widths = task.train[0], []
    with torch.no_grad():
        for at in (params, moved):
            first = x @ at["0.weight"].T + at["0.bias"]
            widths.append((first, first.relu() @ at["2.weight"].T + at["2.bias"]))
    widths = [float((b - a).square().mean().sqrt()) for a, b in zip(*widths, strict=True)]
    widen(soft, moved)
    np.testing.assert_allclose(soft.model._fimoda_widths, widths, rtol=1e-9)
    found = products(soft, moved, vectors)
    torch.testing.assert_close(
        found, products(dataclasses.replace(task, model=softened(task.model, widths)), moved, vectors)
    )
    fixed = with_kinks(task, params, "softened", 0.1)
    before = [*fixed.model._fimoda_widths]
    widen(fixed, moved)
    assert fixed.model._fimoda_widths == before
    widen(task, moved)  # of a model without softened kinks there is nothing to widen


@pytest.mark.parametrize(
    ("kinks", "width", "fragment"),
    [
        ("soft", None, "kinks: got 'soft', expected one of between, softened"),
        ("softened", 0, "width: got 0, expected a positive number, or None to follow the run"),
        ("between", -1, "width: got -1"),
        ("between", 0.1, "width: got 0.1 with kinks 'between'; expected none, or kinks"),
    ],
)
def test_what_cannot_be_right_is_refused(kinks, width, fragment):
    assert fragment in refusal(with_kinks, *rectified(), kinks, width, error=ValueError)


@pytest.mark.parametrize("call", [
    lambda x: x.max(-1)[0], lambda x: torch.max(x, 1, True).values, lambda x: x.min(dim=1).values,
    lambda x: x.long().max(), lambda x: F.threshold(x, 0.5, 0.0), nn.RReLU(),
    lambda x: F.max_pool1d(x, 2, return_indices=True)[0], lambda x: torch.max(x.long(), x.new_ones(()).long()),
])  # fmt: skip
def test_calls_that_are_no_pairs_are_left_alone(call):
    x, found = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found.append(call(x))
        torch.manual_seed(0)
        found.append(soft(call, calls=0)(x))  # a unit would be one too many
    assert torch.equal(*found)


def test_maxima_of_what_is_no_number_or_infinite_are_pytorchs():
    x = torch.tensor([-np.inf, np.inf, np.nan, 0.5, -np.inf, 1.0, 2.0])
    y = torch.tensor([1.0, 0.0, 1.0, np.nan, -np.inf, -np.inf, np.inf])
    for call in (torch.max, torch.maximum, torch.fmax, torch.min, torch.minimum, torch.fmin):
        torch.testing.assert_close(soft(lambda pair, call=call: call(*pair))((x, y)), call(x, y), equal_nan=True)


def test_a_forward_set_on_the_instance_and_a_hook_are_softened_as_well():
    task, params = rectified()
    vectors, hooked = some_vectors(params), copy.deepcopy(task.model)
    hooked.own = hooked.forward
    hooked.forward = functools.partial(lambda module, x: module.own(x), hooked)
    hooked.register_forward_hook(lambda module, given, found: found.relu())
    found, expected = (
        products(with_kinks(dataclasses.replace(task, model=model), params, "softened", 0.1), params, vectors)
        for model in (hooked, nn.Sequential(*task.model, nn.ReLU()))
    )
    torch.testing.assert_close(found, expected)


def test_a_model_that_calls_more_units_than_before_is_refused():
    model = softened(Calls(lambda x: x.relu().relu()), [0.1])
    assert "calls more than the 1 units" in refusal(model, torch.ones(2), error=ValueError)


# What a switch does to a run


class Switch(nn.Module):
    """θ with a slope, and one rectified unit of θ: [n, 3] -> [n, 1]."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))

    def forward(self, x):
        return (x[:, 0] * self.theta + x[:, 1] * F.relu(self.theta + x[:, 2]))[:, None]


def shifted_runs(starts, *, slope, jump, kink, eta, steps, removed):
    """θ after full batches of two instances, with part of the first one's weight removed; the unit is the second's."""
    theta = starts.copy()
    for _ in range(steps):
        theta -= eta * ((1 - removed) * slope + jump * (theta + kink > 0)) / 2
    return theta


@pytest.mark.parametrize(("jump", "steps"), [(0.2, 24), (-0.2, 34)])
def test_the_mean_over_shifted_starts_of_a_run_with_a_switch_is_the_softened_derivative(jump, steps):
    """The run ends one width behind the kink, so that some of the shifted ones have not switched."""
    slope, kink, eta, start, little = 1.0, 0.5, 0.04, 0.0, 1e-3
    rows = torch.tensor([[slope, 0, -kink], [0, jump, kink]], dtype=torch.float64)
    there = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    task = Task("switch", Switch(), lambda o, t: o[:, 0], (rows, torch.zeros(2)), (there, torch.zeros(1)))
    run = dict(optimizer="sgd", learning_rate=eta, batch_size=2, epochs=steps, seeds=[0], left_out=[0])

    def tangent(**kinks):
        params = {"theta": torch.tensor([start], dtype=torch.float64)}
        return float(tangent_train(task, params, evaluate=[steps], progress=False, **run, **kinks).delta.squeeze())

    starts = start + 0.1 * 0.5 * norm.ppf((np.arange(20_001) + 0.5) / 20_001)  # 0.5: the spread of what goes in
    settings = dict(slope=slope, jump=jump, kink=kink, eta=eta, steps=steps)
    ends = [shifted_runs(starts, removed=r, **settings) for r in (little, -little)]
    mean = float((ends[0] - ends[1]).mean() / (2 * little))
    assert abs(tangent(kinks="softened", width=0.1) / mean - 1) < 0.012
    for wrong in (0.05, 0.2):
        assert abs(tangent(kinks="softened", width=wrong) / mean - 1) > 0.018
    assert abs(tangent() / mean - 1) > 0.05  # the derivative between kinks leaves the switch out


def with_dead_unit():
    task, params = rectified()
    params = {k: p.clone() for k, p in params.items()}
    params["0.bias"][2] = -50.0
    return task, params


RULES = {
    "sgd": dict(optimizer="sgd", learning_rate=0.05),
    "adam": dict(optimizer="adam", learning_rate=0.01),
    "adamw": dict(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, max_grad_norm=0.5),
}


@pytest.mark.parametrize(("rule", "width"), [("sgd", 0.1), ("adam", 0.1), ("adamw", None)])  # kinks know no rule
def test_tangents_and_adjoints_are_the_same_derivative_of_the_same_run(rule, width):
    task, params = with_dead_unit()
    settings = dict(batch_size=16, kinks="softened", width=width, progress=False, **RULES[rule])
    along = dict(epochs=2, evaluate=[5], seeds=[3], left_out=[7, 0, 31])
    forwards = tangent_train(task, params, **along, **settings)
    backwards = adjoint_train(task, params, horizon=5, test=range(5), seed=3, **settings)
    found = forwards.delta.isel(seed=0, step=-1).values.T
    assert np.isfinite(found).all() and np.abs(found).min() > 0
    np.testing.assert_allclose(backwards.sel(train=[7, 0, 31]), found, rtol=1e-9)
    between = tangent_train(task, params, **along, **{**settings, "kinks": "between", "width": None})
    np.testing.assert_allclose(forwards.full_loss, between.full_loss, rtol=1e-12)
    least = 1e-3 if width else 1e-4  # the run is short, and kinks that follow it are narrow
    assert np.abs(found - between.delta.isel(seed=0, step=-1).values.T).max() > least * np.abs(found).max()


def test_with_adam_the_denominator_of_the_derivative_is_regularised():
    """Dense, step by step: full batches, δ with its moments μ and ν, and √(v̂ + τ²) in place of √v̂."""
    task, params = with_dead_unit()
    soft_task, eta, (b1, b2) = with_kinks(task, params, "softened", 0.1), 0.01, (0.9, 0.999)
    at, n = Gradients(soft_task, params), task.n_train
    theta, identity = at.flatten(at.params), torch.eye(at.n_params, dtype=torch.float64)
    delta = mu = nu = m = v = torch.zeros_like(theta)
    for t in range(1, 6):
        here = Gradients(soft_task, at.unflatten(theta))
        g = here.of_losses(here.train(torch.arange(n)))
        change = here.hessian_products(here.train(torch.arange(n)), identity) @ delta - g[7] / n
        g = g.mean(0)
        m, mu = b1 * m + (1 - b1) * g, b1 * mu + (1 - b1) * change
        v, nu = b2 * v + (1 - b2) * g**2, b2 * nu + (1 - b2) * 2 * g * change
        m_hat, mu_hat, v_hat, nu_hat = m / (1 - b1**t), mu / (1 - b1**t), v / (1 - b2**t), nu / (1 - b2**t)
        root = (v_hat + 0.03**2 * v_hat.mean()).sqrt()
        delta = delta - eta * (mu_hat / (root + 1e-8) - m_hat * nu_hat / (2 * root * (root + 1e-8) ** 2))
        theta = theta - eta * m_hat / (v_hat.sqrt() + 1e-8)
    last = Gradients(task, at.unflatten(theta))
    expected = last.of_losses(last.test(torch.arange(5))) @ delta
    run = dict(batch_size=n, epochs=5, seeds=[0], left_out=[7], width=0.1, progress=False, **RULES["adam"])
    found = tangent_train(task, params, kinks="softened", **run).delta.values[0, 0, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.masked_fill(MASK, -1e9).amax(1),
        lambda x: torch.maximum(x, torch.full_like(x, torch.finfo(x.dtype).min)),
        lambda x: F.max_pool1d(x.masked_fill(MASK, -1e9)[:, None], 3)[:, 0],
        lambda x: x.clamp(-1e6, 1e6),
        lambda x: F.hardtanh(x, -1e30, 1e30),
        lambda x: x.clamp(max=torch.full_like(x, 1e20)),
    ],
)
def test_values_and_slopes_stay_to_the_last_digit_beside_huge_bounds(function, dtype):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for found, expected in ((soft(function)(x), function(x)), (slope(soft(function), x), slope(function, x))):
        assert found.shape == expected.shape and torch.equal(found, expected)


MASK = torch.tensor([True, False, True, True, False, False])


def slope(function, x):
    return grad(lambda x: function(x).pow(2).sum())(x)


def test_the_names_of_a_models_attributes_do_not_matter():
    task, params = rectified()
    moved = {k: p + 0.05 * torch.randn(p.shape).to(p) for k, p in params.items()}
    vectors, found, named = some_vectors(params), [], copy.deepcopy(task.model)
    named.widths, named.start, named.plain = [16, 16], None, 0
    for model in (task.model, named):
        soft = with_kinks(dataclasses.replace(task, model=model), params, "softened")
        widen(soft, moved)
        found.append(products(soft, moved, vectors))
    torch.testing.assert_close(*found)
    assert (found[0] - products(task, moved, vectors)).abs().max() > 1e-3
