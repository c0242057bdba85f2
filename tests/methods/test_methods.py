"""Every method against its formula written naively, and proof that the comparison would notice a wrong method."""

import dataclasses

import numpy as np
import oracles
import pytest
import torch
from problems import tiny

from fimoda_lib import methods
from fimoda_lib.derivatives import curvature as curvature_module
from fimoda_lib.derivatives import gradients
from fimoda_lib.methods import FAMILIES, METHODS, attribute
from fimoda_lib.methods.exact import Sweep

TRAIN, TEST, CURVATURE = [2, 11, 5, 20], [3, 0, 4], [0, 1, 4, 5, 7, 8, 11, 13, 16, 22]
PROBLEMS = [("regression", 1), ("regression", 2), ("classification", 2), ("classification", 3)]
# The Neumann series shrinks its error to at most 0.2 in every step with this scale and the dampings below.
FULL_BATCH = dict(scale=22, depth=14, batch_size=None)
# name -> (its oracle, damping, other hyper-parameters)
DAMPED = {
    "exact": (oracles.influence, 0.02, {}),
    "cg": (oracles.influence, 0.02, dict(tolerance=1e-12)),
    "lissa": (oracles.influence, 20.0, FULL_BATCH),
    "lissa_h": (oracles.hessian_influence, 20.0, FULL_BATCH),
    "datainf": (oracles.datainf, None, {}),
}
UNDAMPED = {"grad_dot": oracles.grad_dot, "grad_cos": oracles.grad_cos}
ALL = [*UNDAMPED, *DAMPED]


def scores(name, task, params, *, factor=1.0, short=False, **changes):
    """What the library says; `factor` on the damping; `short` for a Neumann series that need not converge."""
    hyper = {}
    if name in DAMPED:
        _, λ, hyper = DAMPED[name]
        hyper = {**hyper, **({"scale": 10.0 / factor} if name == "datainf" else {"damping": λ * factor})}
    if short and name.startswith("lissa"):
        hyper["depth"] = 10
    rows = {"train": TRAIN, "test": TEST, "curvature": CURVATURE}
    return attribute(name, task, params, **{**rows, **hyper, **changes})


def truth(name, task, params):
    if name in UNDAMPED:
        return UNDAMPED[name](task, params, TRAIN, TEST, CURVATURE)
    oracle, λ, _ = DAMPED[name]
    if name == "datainf":
        λ = {layer: value / 10 for layer, value in oracles.layer_damping(task, params, CURVATURE).items()}
    return oracle(task, params, TRAIN, TEST, CURVATURE, λ)


def check(found, expected, tolerance=1e-8):
    error = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
@pytest.mark.parametrize("name", ALL)
def test_equals_the_formula_and_nothing_else_does(name, kind, outputs):
    task, params = tiny(kind, outputs=outputs)
    expected, found = truth(name, task, params), scores(name, task, params)
    check(found, expected)
    # The check itself must notice what goes wrong most easily.
    wrong = {"sign": -found, "unscaled": found * 23, "other instances": found.values[:, ::-1]}
    if name != "grad_dot":
        wrong["identity"] = scores("grad_dot", task, params)
    if name in DAMPED:
        wrong["damping"] = scores(name, task, params, factor=1.1)
        wrong["curvature"] = scores(name, task, params, curvature=None)
        wrong["curvature of the scored"] = scores(name, task, params, curvature=TRAIN)
    for what, values in wrong.items():
        with pytest.raises(AssertionError, match="relative error"):
            check(values, expected)
            pytest.fail(f"{what} was not noticed")


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
@pytest.mark.parametrize("name", ["lissa", "lissa_h"])
def test_the_stochastic_recursion_takes_the_same_steps_on_the_same_batches(name, kind, outputs):
    task, params = tiny(kind, outputs=outputs)
    options = dict(depth=12, batch_size=3, seed=5)
    matrix = {"lissa": oracles.gauss_newton, "lissa_h": oracles.hessian}[name]
    expected = oracles.neumann_loop(task, params, TRAIN, TEST, CURVATURE, 0.5, σ=30, matrix=matrix, **options)
    check(scores(name, task, params, damping=0.5, scale=30, **options), expected)
    for wrong in (dict(seed=6), dict(depth=13), dict(batch_size=4), dict(scale=31)):
        with pytest.raises(AssertionError, match="relative error"):
            check(scores(name, task, params, **{"damping": 0.5, "scale": 30, **options, **wrong}), expected)


@pytest.mark.parametrize(
    ("kind", "outputs", "rows"),
    [
        ("regression", 1, 10),
        ("regression", 2, 5),
        ("classification", 3, 5),
    ],
)
def test_lissa_takes_the_same_steps_where_parameters_are_many(kind, outputs, rows):
    """The recursion then runs in the span of the curvature instances; some of them are nearly or exactly alike."""
    task, params = tiny(kind, outputs=outputs, width=12)
    chosen = CURVATURE[:rows]
    task.train[0][chosen[1]] = task.train[0][chosen[0]]
    task.train[0][chosen[3]] = task.train[0][chosen[2]] + 1e-6
    options = dict(depth=20, batch_size=3, seed=5)
    expected = oracles.neumann_loop(task, params, TRAIN, TEST, chosen, 0.5, σ=30, **options)
    check(scores("lissa", task, params, damping=0.5, scale=30, curvature=chosen, **options), expected)
    expected = oracles.influence(task, params, TRAIN, TEST, chosen, DAMPED["lissa"][1])
    check(scores("lissa", task, params, curvature=chosen), expected)
    check(scores("lissa", task, params, curvature=chosen, dtype=torch.float32), expected, 2e-5)


@pytest.mark.parametrize("name", ["exact", "cg"])
def test_small_and_large_problems_are_solved_alike(name):
    """Exact solves in instances or in parameters, whichever are fewer."""
    for width, n in ((4, 30), (12, 8)):
        task, params = tiny("classification", n=n, width=width)
        for damping in (0.01, 1.0):
            found = attribute(name, task, params, damping=damping)
            check(found, oracles.influence(task, params, range(n), range(5), range(n), damping))
        if name == "exact":
            assert found.attrs["solved_in"] == ("parameters" if n == 30 else "instances")


@pytest.mark.parametrize(("width", "n"), [(4, 30), (12, 8)])
def test_a_sweep_of_dampings_is_exact_for_each(width, n):
    task, params = tiny("classification", n=n, width=width)
    sweep, rows = Sweep(), {"train": [5, 2], "test": TEST, "curvature": range(1, n)}
    for damping in (1.0, 1e-3, 50.0):
        found = attribute(sweep, task, params, damping=damping, multiple=2, **rows)
        expected = oracles.influence(task, params, [5, 2], TEST, range(1, n), 2 * damping)
        check(found, expected)
        with pytest.raises(AssertionError, match="relative error"):
            check(found, oracles.influence(task, params, [5, 2], TEST, range(1, n), damping))
    assert found.attrs["damping"] == 100 and found.attrs["solved_in"] == ("parameters" if n == 30 else "instances")
    one, other = (attribute(method, task, params, **rows) for method in (sweep, "exact"))
    check(one, other.values)
    assert one.attrs["damping"] == other.attrs["damping"]


@pytest.mark.parametrize("name", ALL)
def test_frozen_parameters_play_no_part(name):
    task, _ = tiny("classification")
    task.model[0].weight.requires_grad_(False)
    params = {k: p.detach() for k, p in task.model.named_parameters() if p.requires_grad}
    check(scores(name, task, params), truth(name, task, params))


@pytest.mark.parametrize("relative_damping", [1e-6, 1e-3])
def test_cg_in_float32_loses_no_small_curvature(relative_damping):
    """Instances nearly alike: most of what the inverse enlarges lies in directions of small curvature."""
    task, params = tiny(width=40)
    inputs, targets = task.train
    inputs[:] = (inputs[:1] + 0.03 * inputs).float()  # the same numbers in either precision
    targets[:] = targets.float()
    params = {k: v.float().double() for k, v in params.items()}
    λ = relative_damping * np.linalg.eigvalsh(oracles.gauss_newton(task, params, CURVATURE))[-1]
    found = scores("cg", task, params, damping=λ, tolerance=1e-6, dtype=torch.float32)
    check(found, oracles.influence(task, params, TRAIN, TEST, CURVATURE, λ), 2e-3)


# What must not change the scores


@pytest.mark.parametrize("name", ALL)
def test_blocks_and_held_factors_do_not_matter(name, monkeypatch):
    task, params = tiny("classification")
    changes = {"curvature": CURVATURE[:5], **({"batch_size": 4} if name.startswith("lissa") else {})}
    expected = scores(name, task, params, short=True, **changes)
    for instances_per_block in (1, 3):
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * 31 * instances_per_block)
        monkeypatch.setattr(gradients, "KEPT_BYTES", 8 * 31 * 10)
        monkeypatch.setattr(curvature_module, "HOLD_BYTES", 2**30)
        check(scores(name, task, params, short=True, **changes), expected, 1e-12)
        monkeypatch.setattr(curvature_module, "HOLD_BYTES", 0)
        check(scores(name, task, params, short=True, **changes), expected, 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_rows_are_scored_one_by_one_and_in_any_order(name):
    task, params = tiny("classification")
    expected = scores(name, task, params, short=True)
    shuffled = scores(name, task, params, short=True, train=TRAIN[::-1], test=[0, 4, 3], curvature=CURVATURE[::-1])
    check(shuffled.sel(train=TRAIN, test=TEST), expected, 1e-9)
    for z in TEST:
        check(scores(name, task, params, short=True, test=[z]), expected.sel(test=[z]), 1e-9)
    check(scores(name, task, params, short=True, train=[5]), expected.sel(train=[5]), 1e-12)
    every = scores(name, task, params, short=True, train=None, test=None)
    assert every.shape == (5, 23)
    check(every.sel(train=TRAIN, test=TEST), expected, 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(name):
    task, params = tiny("classification")
    changes = {"tolerance": None} if name == "cg" else {}
    single = scores(name, task, params, short=True, dtype=torch.float32, **changes)
    assert single.dtype == np.float32
    check(single.astype(np.float64), scores(name, task, params, short=True), 2e-5)
    stored = {k: v.float() for k, v in params.items()}  # the parameters of a model trained in float32
    if name != "lissa_h":  # the slowest
        check(scores(name, task, stored), truth(name, task, stored))


@pytest.mark.parametrize("name", ALL)
def test_inputs_may_be_any_pytree_and_a_parameter_may_be_unused(name):
    class Tree(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.unused = net, torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, inputs):
            return self.net(torch.cat([inputs["a"], inputs["b"][0]], 1))

    task, params = tiny("classification")
    nested = dataclasses.replace(
        task,
        model=Tree(task.model),
        **{
            part: ({"a": x[:, :1], "b": (x[:, 1:],)}, y)
            for part, (x, y) in (("train", task.train), ("test", task.test))
        },
    )
    more = dict(nested.model.named_parameters())
    options = {}
    if name == "datainf":  # its own rule has no damping for a layer without gradients
        options["damping"] = {**dict.fromkeys(params, 0.1)}
        expected = attribute(name, task, params, **options)
        options["damping"] = {k: 0.1 for k in more}
        check(attribute(name, nested, more, **options), expected, 1e-12)
    else:
        check(scores(name, nested, more, short=True), scores(name, task, params, short=True), 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_found_also_after_an_error(name, monkeypatch):
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) > 1:  # the first looks what the loss takes
            raise RuntimeError("the loss fails")
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    task, params = tiny("classification")
    model = torch.nn.Sequential(*task.model, torch.nn.Dropout(0.5))
    model[0].bias.requires_grad_(False)
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    params = {k: v for k, v in params.items() if k != "0.bias"}
    given = {k: v.clone() for k, v in params.items()}
    random = torch.get_rng_state()
    good = dataclasses.replace(task, model=model)
    # Dropout is off, so there is no randomness.
    check(scores(name, good, params, short=True), scores(name, good, params, short=True), 0)
    monkeypatch.setattr(methods, "check_evaluation", lambda *_, **__: None)  # which would notice, and say so
    with pytest.raises(RuntimeError, match="the loss fails"):
        scores(name, dataclasses.replace(good, loss=failing), params)
    assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    assert all(torch.equal(value, given[k]) and value.grad is None for k, value in params.items())
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


# Sign and registry


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
@pytest.mark.parametrize("name", ALL)
def test_a_duplicate_of_a_test_instance_is_helpful(name, kind, outputs):
    task, params = tiny(kind, outputs=outputs)
    for part in (0, 1):
        task.train[part][TRAIN[1]] = task.test[part][TEST[0]]
    assert scores(name, task, params).sel(train=TRAIN[1], test=TEST[0]) > 0


def test_exact_predicts_the_newton_step_that_removes_an_instance():
    """The sign and the unit, seen on the loss itself: (change of the test loss) = score / n, to second order."""
    task, params = tiny(n=40)
    model = oracles.at(task, params)
    inputs, targets = task.train
    step = oracles.inverse(oracles.gauss_newton(task, params, range(40)), 0.5)
    for i in (3, 8):
        g = oracles.gradients(task, params, task.train, [i])[0]
        moved = oracles.at(task, params)
        flat = torch.nn.utils.parameters_to_vector(moved.parameters()).detach() + 1e-5 * torch.from_numpy(step @ g)
        torch.nn.utils.vector_to_parameters(flat, moved.parameters())
        with torch.no_grad():
            change = task.loss(moved(task.test[0]), task.test[1]) - task.loss(model(task.test[0]), task.test[1])
        found = attribute("exact", task, params, damping=0.5, train=[i])[:, 0]
        np.testing.assert_allclose(found, change.numpy() / 1e-5, rtol=1e-3, atol=1e-4)


def test_methods_are_described():
    assert set(ALL) <= set(METHODS)
    assert len({m.label for m in METHODS.values()}) == len(METHODS)
    for name, method in METHODS.items():
        assert (method.name, method.function.__name__) == (name, name)
        assert method.label and method.reference and method.family in FAMILIES
        assert "Returns" in method.function.__doc__ or "results are the same" in method.function.__doc__
        assert "dtype" in method.defaults and not set(method.defaults) & {"task", "train", "test", "curvature"}
    assert METHODS["datainf"].defaults == {"damping": None, "scale": 10.0, "dtype": torch.float64}
    assert METHODS["grad_cos"].family == "first-order" and METHODS["cg"].family == "influence function"
