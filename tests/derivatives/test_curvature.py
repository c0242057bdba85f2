"""Curvature against dense matrices written naively."""

import dataclasses

import numpy as np
import oracles
import pytest
import torch
from problems import tiny
from torch.func import functional_call

from fimoda_lib.derivatives import curvature as curvature_module
from fimoda_lib.derivatives.curvature import GaussNewton, layer_damping, output_factors, recommended_damping
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.linearised import output_directions
from fimoda_lib.tasks import Task, cross_entropy, parameters_of

PROBLEMS = [("regression", 1), ("regression", 2), ("classification", 2), ("classification", 3)]
ROWS = torch.tensor([3, 0, 21, 7, 8])


def close(found, expected, tolerance=1e-12):
    expected = np.asarray(expected)
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_gradients_are_those_of_autograd_in_the_order_of_the_parameters(kind, outputs):
    task, params = tiny(kind, outputs=outputs)
    at = Gradients(task, dict(reversed(params.items())))
    close(at.of_losses(at.train(ROWS)), oracles.gradients(task, params, task.train, ROWS.tolist()))
    close(at.of_losses(at.test(ROWS[:2])), oracles.gradients(task, params, task.test, [3, 0]))
    assert at.columns() == oracles.layers(task, params) and at.n_params == sum(p.numel() for p in params.values())
    flat = torch.arange(float(at.n_params))
    assert torch.equal(at.flatten(at.unflatten(flat)), flat)


def test_gradients_may_come_in_blocks(monkeypatch):
    task, params = tiny()
    at = Gradients(task, params)
    expected = at.of_losses(at.train(ROWS))
    for block, sizes in ((1, [1] * 5), (3, [3, 2]), (5, [5]), (0, [1] * 5)):
        monkeypatch.setattr("fimoda_lib.derivatives.gradients.BLOCK_BYTES", 8 * 21 * block)
        blocks = list(at.blocks(ROWS))
        assert [len(g) for _, g in blocks] == sizes
        for part, g in blocks:
            close(g, expected[part])


@pytest.mark.parametrize(("kept_bytes", "passes"), [(8 * 21 * 5, 1), (8 * 21 * 5 - 1, 2)])
def test_a_second_pass_finds_what_was_kept_where_it_is_not_too_much(kept_bytes, passes, monkeypatch):
    task, params = tiny()
    at, computed = Gradients(task, params), []
    expected = at.of_losses(at.train(ROWS))
    monkeypatch.setattr("fimoda_lib.derivatives.gradients.BLOCK_BYTES", 8 * 21 * 2)
    monkeypatch.setattr("fimoda_lib.derivatives.gradients.KEPT_BYTES", kept_bytes)
    compute = at.of_losses
    monkeypatch.setattr(at, "of_losses", lambda instances: computed.append(len(instances[1])) or compute(instances))
    for _ in range(2):
        for part, g in at.blocks(ROWS):
            close(g, expected[part])
    assert computed == [2, 2, 1] * passes
    close(torch.cat([g for _, g in at.blocks(ROWS.flip(0))]), expected.flip(0))  # other rows are not taken for these


def test_gradients_of_directional_outputs():
    task, params = tiny("classification")
    at, directions = Gradients(task, params), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    found = at.of_outputs(at.train(ROWS)[0], directions)
    for k, i in enumerate(ROWS.tolist()):
        close(found[k], directions[k].numpy() @ oracles.jacobian(task, params, i))


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_gauss_newton_as_operator_gram_matrix_and_dense(kind, outputs, hold, monkeypatch):
    task, params = tiny(kind, outputs=outputs)
    expected = oracles.gauss_newton(task, params, ROWS.tolist())
    at = Gradients(task, params)
    monkeypatch.setattr("fimoda_lib.derivatives.gradients.BLOCK_BYTES", 8 * at.n_params * 2 * outputs)
    G = GaussNewton(at, ROWS, hold=hold)
    assert (G.held is not None) is hold
    close(G.dense(), expected)
    vectors = torch.randn(3, at.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(G.products(vectors), vectors.numpy() @ expected)
    gram = G.gram(torch.float64)
    assert gram.shape == (5 * G.rank, 5 * G.rank)
    A = torch.cat(list(G.blocks()))
    close(gram, A @ A.T)
    close(A.T @ A / 5, expected)
    overlaps = G.overlaps(vectors, torch.float64)
    close(overlaps, vectors @ A.T)
    close(G.combine(overlaps), vectors @ A.T @ A)
    assert G.overlaps(vectors.float(), torch.float64).dtype == torch.float64
    spectrum = np.linalg.eigvalsh(expected)[::-1][: 5 * G.rank]
    close(torch.linalg.eigvalsh(gram).flip(0)[: len(spectrum)] / 5, spectrum, 1e-11)


@pytest.mark.parametrize("hold", [True, False])
def test_factors_of_a_random_batch(hold):
    task, params = tiny("classification")
    G = GaussNewton(Gradients(task, params), ROWS, hold=hold)
    A = G.factor_at(torch.tensor([4, 1, 1]))
    close(A.T @ A / 3, oracles.gauss_newton(task, params, [8, 0, 0]))


@pytest.mark.parametrize(
    ("kind", "outputs", "rank"),
    [
        ("classification", 2, 1),
        ("classification", 3, 2),
        ("classification", 5, 4),
        ("regression", 1, 1),
        ("regression", 3, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_directions_of_the_loss_are_left_out(kind, outputs, rank, dtype):
    task, params = tiny(kind, outputs=outputs)
    assert GaussNewton(Gradients(task, params, dtype=dtype), ROWS).rank == rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("margin", [5, 10, 15, 20, 30, 40, 100])
def test_saturated_probabilities_do_not_spoil_the_factors(classes, margin, dtype):
    """The curvature p(1 - p) of an instance that is fitted well is smaller than the rounding of p itself."""
    task, params = tiny("classification", outputs=classes)
    params["2.bias"] += torch.linspace(margin, 0, classes, dtype=torch.float64)
    at = Gradients(task, params, dtype=dtype)
    factors = output_factors(at, at.train(ROWS))
    assert factors.shape == (5, classes - 1, classes) and factors.isfinite().all()
    outputs = functional_call(task.model, params, (task.train[0][ROWS],)).detach()
    for factor, p in zip(factors.double(), outputs.softmax(1), strict=True):
        # H = sum over pairs of classes of p_a p_b (e_a - e_b)(e_a - e_b)', which has no cancellation
        d = torch.eye(classes).double()[:, None] - torch.eye(classes).double()
        exact = torch.einsum("a,b,abi,abj->ij", p, p, d, d) / 2
        tolerance = {torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
        assert (factor.T @ factor - exact).abs().max() <= tolerance + 10 * tolerance * exact.abs().max()


def test_a_loss_that_is_not_convex_in_the_outputs_has_no_gauss_newton_matrix():
    task, params = tiny()
    task = dataclasses.replace(task, loss=lambda o, t: -(o - t).square().sum(1))
    with pytest.raises(ValueError, match="The loss of task 'tiny_regression' is not convex in the outputs"):
        GaussNewton(Gradients(task, params), ROWS)


def test_factors_are_held_only_if_they_are_small(monkeypatch):
    at = Gradients(*tiny("classification"))
    size = 5 * 2 * at.n_params * 8
    for limit, held in ((size, True), (size - 1, False)):
        monkeypatch.setattr(curvature_module, "HOLD_BYTES", limit)
        assert (GaussNewton(at, ROWS).held is not None) is held
    monkeypatch.setattr(curvature_module, "free_memory", lambda device: 100)
    assert [curvature_module.largest_held(torch.device(d)) for d in ("cpu", "cuda")] == [size - 1, 50]


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_hessian_products_are_those_of_the_dense_hessian(kind, outputs, monkeypatch):
    task, params = tiny(kind, outputs=outputs)
    at = Gradients(task, params)
    inputs, targets = task.train[0][ROWS], task.train[1][ROWS]

    def mean_loss(flat):
        return task.loss(functional_call(task.model, at.unflatten(flat), (inputs,)), targets).mean()

    dense = torch.autograd.functional.hessian(mean_loss, at.flatten(at.params))
    close(dense, oracles.hessian(task, params, ROWS.tolist()))
    vectors = torch.randn(4, at.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = [[0, 3], [5, 1], [3, 3], [2, 4]]  # instances for each vector
    of_own = torch.stack([torch.as_tensor(oracles.hessian(task, params, rows)) for rows in own])
    for _ in range(2):
        close(at.hessian_products(at.train(ROWS), vectors), vectors @ dense)
        found = at.hessian_products(at.train(torch.tensor(own)), vectors, each=True)
        close(found, (vectors[:, None] @ of_own)[:, 0])
        monkeypatch.setattr("fimoda_lib.derivatives.gradients.BLOCK_BYTES", 1)  # one vector at a time


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_dampings_are_mean_squared_gradient_entries(kind, outputs, monkeypatch):
    task, params = tiny(kind, outputs=outputs)
    at = Gradients(task, params)
    monkeypatch.setattr("fimoda_lib.derivatives.gradients.BLOCK_BYTES", 8 * at.n_params * 2)
    assert recommended_damping(at, ROWS) == pytest.approx(oracles.damping(task, params, ROWS.tolist()), rel=1e-12)
    assert layer_damping(at, ROWS) == pytest.approx(oracles.layer_damping(task, params, ROWS.tolist()), rel=1e-12)


def of_probabilities(o, t):
    """Binary cross-entropy of several labels, with its pole at zero outputs."""
    return -(t * (o + 1e-12).log() + (1 - t) * (1 - o + 1e-12).log()).sum(1)


def test_a_pole_at_zero_outputs_is_no_scale():
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sigmoid()).double()
    labels = torch.nn.functional.one_hot(torch.randint(3, (23,), generator=g), 4).double()  # the last one is never true
    data = torch.randn(23, 3, generator=g, dtype=torch.float64), labels
    task = Task("labels", model, of_probabilities, train=data, test=tuple(x[:5] for x in data))
    params = parameters_of(model)
    G = GaussNewton(Gradients(task, params), ROWS)
    assert G.rank == 4
    close(G.dense(), oracles.gauss_newton(task, params, ROWS.tolist()), 1e-9)
    assert len(output_directions(Gradients(task, params))) == 4


def test_output_directions_are_those_of_all_instances():
    """Of two tasks that share a layer, the second's instances stand behind thousands of the first's; and a test
    instance may have a direction of its own."""

    class Chosen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 3).double()

        def forward(self, x):
            return self.layer(x)

    g, n = torch.Generator().manual_seed(0), 4200
    of = torch.zeros(n, dtype=torch.long)
    of[-50:] = 1
    targets = torch.stack([torch.randn(n, generator=g, dtype=torch.float64), of.double()], 1)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64)

    def loss(o, t):
        return (o.gather(1, t[:, 1:].long()) - t[:, :1]).square().sum(1)

    test = x[:2], torch.tensor([[0.5, 0.0], [0.5, 2.0]], dtype=torch.float64)
    task = Task("two", Chosen(), loss, train=(x, targets), test=test)
    D = output_directions(Gradients(task, parameters_of(task.model)))
    assert torch.allclose((D.T @ D), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1, 5, 10, 30, 100, 1000])
@pytest.mark.parametrize("size", [0.01, 1, 30])
def test_a_softmax_with_a_temperature_is_convex_and_has_one_direction_less_than_classes(temperature, size):
    task, params = tiny("classification")
    params = {k: p * (size if k.startswith("2") else 1) for k, p in params.items()}
    task = dataclasses.replace(task, loss=lambda o, t: cross_entropy(temperature * o, t))
    at = Gradients(task, params)
    assert output_factors(at, at.train(torch.arange(23))).shape[1] == 2
    if temperature * size < 10_000:  # beyond, rounding is all there is, and may add one
        assert len(output_directions(at)) == 2


def test_a_loss_that_is_concave_at_zero_outputs_has_all_its_directions():
    task, params = tiny(outputs=2)
    outputs = torch.func.functional_call(task.model, params, (task.train[0],)).detach()
    shift = torch.tensor([0.5, 3.0], dtype=torch.float64)  # convex where the model fits, and concave at zero
    far = dataclasses.replace(
        task, loss=lambda o, t: (o - t).square().add(1).log().sum(1), train=(task.train[0], outputs + 0.1 * shift)
    )
    assert len(output_directions(Gradients(far, params))) == 2
