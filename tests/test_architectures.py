"""Small random architectures: all methods, further training and tangents, against plain loops and dense matrices.

Layers of a table in any order, skip connections, a layer that is used twice, frozen parts, any form of the outputs.
"""

import dataclasses
from collections import defaultdict

import counting
import layers
import numpy as np
import oracles
import plain
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fimoda_lib import Task, attribute, cross_entropy, further_train
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.tasks import parameters_of
from fimoda_lib.training.minibatches import epoch_orders

WIDTH, N, N_TEST = 6, 6, 2
TRAIN, TEST, CURVATURE = [1, 4], [1, 0], [0, 1, 2, 4, 5]
RULE = dict(learning_rate=0.05, batch_size=3)
SMOOTH = (
    "CELU GELU Mish SELU SiLU Sigmoid Softplus Tanh Tanhshrink LogSigmoid Softmax Softmin GLU Linear LayerNorm RMSNorm "
    "Identity Bilinear Conv1d Conv2d ConvTranspose1d BatchNorm1d GroupNorm InstanceNorm1d AvgPool2d LocalResponseNorm "
    "MultiheadAttention Upsample PixelUnshuffle AdaptiveAvgPool1d CircularPad1d"
).split()


class Piece(nn.Module):
    """A layer of the table between linear maps of vectors, with or without its input added."""

    def __init__(self, name, skip):
        super().__init__()
        shape, make = layers.LAYERS[name]
        size = torch.Size(shape).numel()
        self.before = nn.Identity() if size == WIDTH else nn.Linear(WIDTH, size)
        self.layer, self.shape, self.skip = make(), shape, skip
        with torch.no_grad():
            size = self.layer(torch.randn(2, *shape)).flatten(1).shape[1]
        self.after = nn.Identity() if size == WIDTH else nn.Linear(size, WIDTH)

    def forward(self, x):
        y = self.after(self.layer(self.before(x).unflatten(1, self.shape)).flatten(1))
        return x + y if self.skip else y


class Net(nn.Module):
    def __init__(self, pieces, order, outputs):
        super().__init__()
        self.pieces, self.order = nn.ModuleList(pieces), order
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x):
        for k in self.order:
            x = self.pieces[k](x)
        return self.head(x)


class Dressed(nn.Module):
    """The same model with its outputs in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


FORMS = {  # what becomes of the outputs, and how the loss gets them back
    "matrix": (lambda o: o, lambda o: o),
    "deep": (lambda o: o.unflatten(1, (-1, 1)), lambda o: o[..., 0]),
    "tuple": (lambda o: (o.sin(), o), lambda o: o[1]),
    "dict": (lambda o: {"first": o[:, :1], "rest": o[:, 1:]}, lambda o: torch.cat([o["first"], o["rest"]], 1)),
}


@st.composite
def architectures(draw):
    """A task, the same with its outputs in another form, and their parameters, in float64."""
    names = draw(st.lists(st.sampled_from(SMOOTH), min_size=1, max_size=3))
    skips = [draw(st.booleans()) for _ in names]
    order = [*range(len(names)), *draw(st.lists(st.integers(0, len(names) - 1), max_size=1))]  # one may come twice
    frozen = draw(st.sets(st.integers(0, len(names) - 1), max_size=1))
    classes, form = draw(st.booleans()), draw(st.sampled_from(sorted(FORMS)))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        net = Net(list(map(Piece, names, skips)), order, 3 if classes else 2).double()
        for k in frozen:
            net.pieces[k].requires_grad_(False)
        parts = [
            (torch.randn(n, WIDTH).double(), torch.arange(n) % 3 if classes else torch.randn(n, 2).double())
            for n in (N, N_TEST)
        ]
    dress, undress = FORMS[form]
    loss = cross_entropy if classes else lambda o, t: (o - t).square().sum(1)
    task = Task("drawn", net, loss, *parts)
    odd = dataclasses.replace(task, model=Dressed(net, dress), loss=lambda o, t: loss(undress(o), t))
    counting.model("architectures")
    return task, odd, parameters_of(net), parameters_of(odd.model)


def agree(found, expected, tolerance):
    found, expected = np.asarray(found), np.asarray(expected)
    scale = max(np.linalg.norm(expected), 1e-9)
    assert np.linalg.norm(found - expected) <= tolerance * scale, np.linalg.norm(found - expected) / scale


def lft_by_hand(task, params, G, rate, horizons):
    """The recursion with dense matrices; residuals along the run of a plain loop."""
    J = [oracles.jacobian(task, params, i) for i in TRAIN]
    swapped = dataclasses.replace(task, train=task.test)
    J_test = [oracles.jacobian(swapped, params, z) for z in TEST]
    keep = np.eye(J[0].shape[1]) - rate * G
    model = oracles.at(task, params)
    rule = torch.optim.SGD(model.parameters(), lr=rate)

    def slope(instances, i):
        outputs = model(instances[0][i : i + 1]).detach().requires_grad_()
        return torch.autograd.grad(task.loss(outputs, instances[1][i : i + 1]).sum(), outputs)[0][0].numpy()

    orders, rows = epoch_orders(N, 0), []
    effects, scores = [np.zeros(J[0].shape[1]) for _ in TRAIN], []
    for step in range(1, horizons[-1] + 1):
        rows = rows or list(next(orders).split(RULE["batch_size"]))
        effects = [keep @ d + rate / N * slope(task.train, i) @ j for d, i, j in zip(effects, TRAIN, J, strict=True)]
        batch = rows.pop(0)
        rule.zero_grad()
        task.loss(model(task.train[0][batch]), task.train[1][batch]).mean().backward()
        rule.step()
        if step in horizons:
            scores.append([[slope(task.test, z) @ j @ d for d in effects] for z, j in zip(TEST, J_test, strict=True)])
    return scores


@given(case=architectures())
@settings(deadline=None, max_examples=12, derandomize=True)
def test_all_methods_on_architectures_made_up(case):
    task, odd, params, odd_params = case
    rows = (task, params, TRAIN, TEST, CURVATURE)
    series = dict(depth=4, batch_size=2, seed=3)
    λ, G = 0.3, oracles.gauss_newton(task, params, CURVATURE)
    rate = min(RULE["learning_rate"], 1 / np.linalg.eigvalsh(G)[-1])  # with larger ones the recursion would explode
    influence = oracles.influence(*rows, λ)
    expected = {
        "grad_dot": (oracles.grad_dot(*rows), {}),
        "grad_cos": (oracles.grad_cos(*rows), {}),
        "exact": (influence, dict(damping=λ)),
        "cg": (influence, dict(damping=λ)),
        "lissa": (oracles.neumann_loop(*rows, λ, σ=50.0, **series), dict(damping=λ, scale=50.0, **series)),
        "datainf": (
            oracles.datainf(*rows, {k: λ for k in params}), dict(damping={f"net.{k}": λ for k in params})
        ),
        "lft": (
            lft_by_hand(task, params, G, rate, (1, 3)),
            dict(horizon=[1, 2, 3], order=1, further_training=dict(RULE, learning_rate=rate)),
        ),
    }  # fmt: skip
    if sum(p.numel() for p in params.values()) < 150:  # a Hessian takes a backward pass for each of them
        by_hand = oracles.neumann_loop(*rows, λ, σ=50.0, **series, matrix=oracles.hessian)
        expected["lissa_h"] = by_hand, dict(damping=λ, scale=50.0, **series)
    for name, (scores, hyper) in expected.items():
        found = attribute(name, odd, odd_params, train=TRAIN, test=TEST, curvature=CURVATURE, **hyper)
        found = found.sel(horizon=[1, 3]) if name == "lft" else found
        assert name, name
        agree(found, scores, 0.02 if name == "lft" else 1e-7)  # LFT drops eigenvalues whose filter is within 1 %


def ekfac_by_hand(task, params, λ):
    """EK-FAC's operator [P, P], of the losses' own gradients: inputs and slopes of layers by hooks, one at a time."""
    model, calls, A, S = oracles.at(task, params), [], defaultdict(float), defaultdict(float)

    def keep(layer, inputs, outputs):
        outputs.retain_grad()
        calls.append((names[layer], layer, inputs[0], outputs))

    names = {m: k for k, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d) and m.weight.requires_grad}
    for layer in names:
        layer.register_forward_hook(keep)
    for i in CURVATURE:
        calls.clear()
        inputs, target = oracles.instance(task.train, i)
        task.loss(model(inputs), target).sum().backward()
        for name, layer, x, y in calls:
            a, s = x, y.grad
            if isinstance(layer, nn.Conv2d):
                a, s = nn.functional.unfold(x, layer.kernel_size)[0].T, y.grad[0].flatten(1).T
            a, s = torch.cat([a, torch.ones(len(a), 1)], 1).detach().numpy(), s.numpy()
            A[name], S[name] = A[name] + a.T @ a, S[name] + s.T @ s
    g = oracles.gradients(task, params, task.train, CURVATURE)
    places, P = oracles.layers(task, params), np.zeros((g.shape[1],) * 2)
    for name in A:
        weight, bias = (np.arange(g.shape[1])[places[f"{name}.{kind}"]] for kind in ("weight", "bias"))
        here = np.concatenate([weight.reshape(len(bias), -1), bias[:, None]], 1).ravel()
        U = np.kron(np.linalg.eigh(S[name])[1], np.linalg.eigh(A[name])[1])
        P[np.ix_(here, here)] = U / (((g[:, here] @ U) ** 2).mean(0) + λ) @ U.T
    return P


@given(case=architectures())
@settings(deadline=None, max_examples=12, derandomize=True)
def test_ekfac_and_trak_on_architectures_made_up(case):
    task, odd, params, odd_params = case
    λ, rows = 0.3, dict(train=TRAIN, test=TEST, curvature=CURVATURE)
    found = attribute("ekfac", odd, odd_params, **rows, damping=λ, fisher="empirical")
    agree(found, oracles.scores(task, params, TRAIN, TEST, ekfac_by_hand(task, params, λ)), 1e-7)
    if task.kind == "regression":  # else TRAK takes another output; here n times its scores are those of exact
        n = len(CURVATURE)
        found = attribute("trak", odd, odd_params, **rows, projection="identity", weighted=True, ridge=n * λ)
        agree(found, oracles.influence(task, params, TRAIN, TEST, CURVATURE, λ) / n, 1e-7)


@given(case=architectures(), optimizer=st.sampled_from(["sgd", "adam"]), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=12, derandomize=True)
def test_further_training_and_tangents_on_architectures_made_up(case, optimizer, seed):
    task, odd, params, odd_params = case
    rule = dict(RULE, optimizer=optimizer, learning_rate=0.05 if optimizer == "sgd" else 0.01)
    options = dict(rule, epochs=1, seeds=[seed], left_out=TRAIN, evaluate=[1, 2], progress=False)

    def losses(**removal):
        return np.stack([step.numpy() for step in plain.train(task, params, **rule, epochs=1, seed=seed, **removal)])

    full = losses()
    for removal in ("drop", "mask", "subtract"):
        gold = further_train(odd, odd_params, **options, removal=removal)
        agree(gold.full_loss[0], full, 1e-9)
        expected = np.stack([losses(removed=i, removal=removal) - full for i in TRAIN])
        agree(gold.delta[0], expected, 1e-5)
    little = 1e-5
    slopes = [[losses(removed=i, removal="mask", fraction=f) for f in (little, -little)] for i in TRAIN]
    slopes = np.stack([(ahead - behind) / (2 * little) for ahead, behind in slopes])
    # Adam's first steps divide by gradients that may be all but zero: differences resolve less there.
    tolerance = 1e-5 if optimizer == "sgd" else 1e-3
    agree(tangent_train(odd, odd_params, **options, removal="mask").delta[0], slopes, tolerance)
    back = adjoint_train(odd, odd_params, **rule, horizon=2, test=range(N_TEST), seed=seed, progress=False)
    agree(back.sel(train=TRAIN).T, slopes[:, 1], tolerance)
