"""Outputs of any shape and in any wrapping, constants of another precision, labels of any type: the right numbers.

Each model here is a plain one, with outputs [n, C], in other clothes, so that the oracles of the plain one hold.
"""

import copy
import dataclasses
import functools
from collections import namedtuple

import numpy as np
import oracles
import plain
import pytest
import torch
import torch.nn.functional as F
from problems import kept, tiny
from torch import nn

from fimoda_lib import attribute, cross_entropy, further_train, mean_loss, squared_error, train_final_model
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.derivatives.trajectories import record_full_run
from fimoda_lib.methods import METHODS
from fimoda_lib.tasks import different, parameters_of, take

ROWS = dict(train=[2, 11, 5], test=[3, 0])
CURVATURE = [0, 1, 4, 5, 7, 8, 11, 13]
RULE = dict(optimizer="sgd", learning_rate=0.05, batch_size=8)
FURTHER = dict(**RULE, epochs=1, seeds=[1], left_out=[2, 11], evaluate=[1, 3])
LFT = dict(horizon=[2, 5], further_training=dict(learning_rate=0.05, batch_size=8))
# With this scale and damping the Neumann series shrinks its error to a fifth in every step.
SERIES = dict(damping=40.0, scale=45, depth=14, batch_size=None)
HYPER = {
    "exact": dict(damping=0.02),
    "cg": dict(damping=0.02),
    "lissa": SERIES,
    "lissa_h": SERIES,
    "trak": dict(projection="identity", weighted=True, ridge=0.02 * len(CURVATURE)),
    "lft": LFT,
}


class Dressed(nn.Module):
    """A model whose outputs [n, C] are handed on in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


def own_squares(outputs, targets):
    """A loss as people write it, which knows no shapes."""
    return (outputs - targets).square().reshape(len(targets), -1).sum(1)


def dressed(task, params, form, loss, targets=lambda t: t):
    """The task with its outputs in another form, a loss that takes them, and targets to match."""
    parts = {part: (getattr(task, part)[0], targets(getattr(task, part)[1])) for part in ("train", "test")}
    odd = dataclasses.replace(task, model=Dressed(task.model, form), loss=loss, **parts)
    return odd, {f"net.{k}": p for k, p in params.items()}


def relative(found, expected, tolerance=1e-7):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.1e}"


def once(function):
    """What is found of a task and its parameters is computed once."""
    known = {}

    @functools.wraps(function)
    def found(task, params, *rest, **more):
        key = id(task), id(params), *rest, *sorted(more.items())
        if key not in known:
            known[key] = task, params, function(task, params, *rest, **more)  # kept, so that no other has their ids
        return known[key][-1]

    return found


@once
def plain_losses(task, params, **removal):
    """Of the plain loop, at two steps."""
    return np.stack([step.numpy() for step in plain.train(task, params, **RULE, epochs=1, seed=1, **removal)])[[0, 2]]


@once
def trained(task, params):
    """Of no use are the parameters: training starts anew."""
    return train_final_model(task, **RULE, epochs=2, seed=3, progress=False)


@once
def expected_scores(task, params, name):
    """By the oracle of the plain task; where there is none, by the library itself, which its own tests compare."""
    arguments = (task, params, ROWS["train"], ROWS["test"], CURVATURE)
    n = len(CURVATURE)
    if name in ("grad_dot", "grad_cos"):
        return getattr(oracles, name)(*arguments)
    if name in ("exact", "cg", "lissa"):
        return oracles.influence(*arguments, HYPER[name]["damping"])
    if name == "trak" and task.loss is squared_error:  # with these settings, n times its scores are those of exact
        return oracles.influence(*arguments, 0.02) / n
    if name == "lissa_h":
        return oracles.hessian_influence(*arguments, HYPER[name]["damping"])
    if name == "datainf":
        damping = {k: v / 10 for k, v in oracles.layer_damping(task, params, CURVATURE).items()}
        return oracles.datainf(*arguments, damping)
    return attribute(name, task, params, **ROWS, curvature=CURVATURE, **HYPER.get(name, {}))


def all_methods(odd, odd_params, task, params, names=tuple(METHODS)):
    for name in names:
        found = attribute(name, odd, odd_params, **ROWS, curvature=CURVATURE, **HYPER.get(name, {}))
        relative(found, expected_scores(task, params, name))


def all_functions(odd, odd_params, task, params, final_model=1e-10, recorded=None):
    """Further training and its relatives, by the plain loop on the plain task."""
    losses = functools.partial(plain_losses, task, params)
    full = losses()
    for removal in ("drop", "mask", "subtract"):
        gold = further_train(odd, odd_params, **FURTHER, removal=removal, progress=False)
        relative(gold.full_loss[0], full, 1e-10)
        for i in FURTHER["left_out"]:
            relative(gold.delta.sel(left_out=i)[0], losses(removed=i, removal=removal) - full, 1e-5)
    little = 1e-5
    found = tangent_train(odd, odd_params, **FURTHER, removal="mask", progress=False)
    for i in FURTHER["left_out"]:
        ahead, behind = (losses(removed=i, removal="mask", fraction=f) for f in (little, -little))
        relative(found.delta.sel(left_out=i)[0], (ahead - behind) / (2 * little), 1e-6)
    back = adjoint_train(odd, odd_params, **RULE, horizon=3, test=range(5), seed=1, progress=False)
    relative(back.sel(train=FURTHER["left_out"]).T, found.delta[0, :, 1], 1e-9)
    run = record_full_run(odd, odd_params, **RULE, steps=[1, 3], seed=1, progress=False)
    relative([(recorded or task.loss)(o, task.test[1]) for o in run.test_outputs[1:]], full, 1e-10)
    final = trained(odd, odd_params), trained(task, params)
    relative(*(np.concatenate([p.numpy().ravel() for p in params.values()]) for params in final), final_model)
    here = oracles.at(task, params)(task.test[0]).detach()
    assert mean_loss(odd, odd_params, odd.test) == pytest.approx(task.loss(here, task.test[1]).mean().item(), rel=1e-12)


@once
def softened_runs(task, params):
    """Their derivatives; the model gets rectified units, in its `net`."""
    model = copy.deepcopy(task.model)
    model.net[1] = nn.ReLU()
    given, options = (dataclasses.replace(task, model=model), params), dict(kinks="softened", progress=False)
    return (
        tangent_train(*given, **FURTHER, **options).delta,
        tangent_train(*given, **FURTHER, **options, width=0.1).delta,
        adjoint_train(*given, **RULE, horizon=3, test=range(5), **options),
        attribute("lft", *given, **ROWS, **LFT, mode="split", products=8),
    )


def softened(odd, odd_params, task, params):
    """Runs whose kinks are softened, by those of the plain task."""
    for found, expected in zip(softened_runs(odd, odd_params), softened_runs(task, params), strict=True):
        relative(found, expected, 1e-9)


SHAPES = {  # columns of the plain model, and what becomes of its outputs and targets
    "[n]": (1, lambda o: o.squeeze(-1)),
    "[n, 1]": (1, lambda o: o),
    "[n, k]": (4, lambda o: o),
    "[n, k, l]": (4, lambda o: o.unflatten(1, (2, 2))),
    "squeezed": (1, lambda o: o.squeeze()),
}


@pytest.mark.parametrize(
    "loss", [own_squares, squared_error, nn.MSELoss(reduction="none")], ids=["own", "ours", "torch"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_any_shape(shape, loss):
    columns, form = SHAPES[shape]
    if isinstance(loss, nn.Module) and columns > 1:
        pytest.skip("gives one loss per output")
    if isinstance(loss, nn.Module) and shape == "[n, 1]":
        pytest.skip("gives losses [n, 1]")
    task, params = kept("regression", columns)
    odd, odd_params = dressed(task, params, form, loss, lambda t: form(t) if len(t) > 1 else t)
    all_methods(odd, odd_params, task, params)
    if loss is own_squares:
        all_functions(odd, odd_params, task, params)


@pytest.mark.parametrize("size", [1, 8, 22, 23])
def test_a_squeeze_in_a_batch_or_test_set_of_one(size):
    """Whichever batches come to be of one: all, the last of 23 instances, that of an instance left out."""
    task, params = tiny()
    task = dataclasses.replace(task, test=tuple(t[:1] for t in task.test))
    options = dict(RULE, batch_size=size, epochs=1)
    full = np.stack([s.numpy() for s in plain.train(task, params, **options, seed=0)])
    without = np.stack([s.numpy() for s in plain.train(task, params, **options, seed=0, removed=4)])
    expected = oracles.influence(task, params, [4], [0], range(23), 0.02)
    for loss in (own_squares, lambda o, t: (o - t.squeeze()).square()):
        odd, odd_params = dressed(task, params, torch.squeeze, loss, lambda t: t[:, 0])
        gold = further_train(
            odd, odd_params, **options, seeds=[0], left_out=[4], progress=False, evaluate=range(1, len(full) + 1)
        )
        relative(gold.full_loss[0], full, 1e-9)
        relative(gold.delta[0, 0], without - full, 1e-5)
        found = attribute("cg", odd, odd_params, damping=0.02, train=[4], test=[0])
        relative(found, expected)


Pair = namedtuple("Pair", ["logits", "features"])


def hugging(o):
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=o, hidden_states=(o.detach() * 2, torch.zeros(3)))


def nested_parts(o, t):
    return cross_entropy(torch.cat([o["a"][0], o["a"][1][0][:, None]], 1), t)


def by_key(o, t):
    return cross_entropy(o["logits"], t)


WRAPPINGS = {
    "tuple": (lambda o: (o, o * 2), lambda o, t: cross_entropy(o[0], t)),
    "list": (lambda o: [o.sin(), o], lambda o, t: cross_entropy(o[-1], t)),
    "dict": (lambda o: {"hidden": o[:, :1], "logits": o}, by_key),
    "in two parts": (lambda o: (o[:, :1], o[:, 1:]), lambda o, t: cross_entropy(torch.cat(o, 1), t)),
    "nested": (lambda o: {"a": (o[:, :2], [o[:, 2]])}, nested_parts),
    "namedtuple": (lambda o: Pair(o, 2 * o), lambda o, t: cross_entropy(o.logits, t)),
    "with a loss": (lambda o: {"logits": o, "loss": o.mean(), "labels": o.argmax(1)}, by_key),
    "namedtuple, ours": (lambda o: Pair(o, 2 * o), cross_entropy),
    "hub": (hugging, lambda o, t: cross_entropy(o.logits, t)),
    "hub, by key": (hugging, by_key),
    "hub, ours": (hugging, cross_entropy),
    "hub, torch": (hugging, nn.CrossEntropyLoss(reduction="none")),
    "[n, 1, C]": (lambda o: o[:, None], lambda o, t: cross_entropy(o[:, 0], t)),
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_outputs_in_any_wrapping(wrapping):
    form, loss = WRAPPINGS[wrapping]
    task, params = kept("classification", 3)
    odd, odd_params = dressed(task, params, form, loss)
    # TRAK and EK-FAC know classes by logits [n, C] and by our own loss; of others they take the outputs as they are.
    names = [n for n in METHODS if n not in ("trak", "ekfac")]
    all_methods(odd, odd_params, task, params, names)
    if "ours" in wrapping:
        all_methods(odd, odd_params, task, params, ["trak", "ekfac"])
    all_functions(odd, odd_params, task, params)


# Constants


WEIGHTS = torch.tensor([0.3, 1.7, 0.9])
MATRIX = torch.tensor([[1.0, 0.5, 0.1], [0.0, 2.0, 0.3], [0.2, 0.0, 1.5]])


class Constants(nn.Module):
    """A classifier with float32 constants in all places where people keep them."""

    def __init__(self, net):
        super().__init__()
        self.net, self.scale, self.parts = net, torch.tensor([0.7, 1.1, 0.9]), [torch.tensor([0.1, -0.2, 0.3])]

    def forward(self, x):
        mask = (x > 0).float()  # half of the constants are made on the way
        shift = torch.zeros(3) + torch.tensor([0.01, 0.02, 0.03])
        return self.net((x * self.scale + mask * self.parts[0]) @ MATRIX + shift.float()).to(torch.float32)


class Twin(nn.Module):
    """The same in float64."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        scale, part = (torch.tensor(v).double() for v in ([0.7, 1.1, 0.9], [0.1, -0.2, 0.3]))
        shift = torch.tensor([0.01, 0.02, 0.03]).double()
        return self.net((x * scale + (x > 0).double() * part) @ MATRIX.double() + shift)


def twin_loss(o, t):
    return F.cross_entropy(o, t, weight=WEIGHTS.double(), reduction="none")


@functools.cache
def with_twin():
    """A float32 task and its parameters, and their float64 twins, without constants of float32."""
    task, params = tiny("classification", dtype=torch.float32)
    named = {f"net.{k}": p for k, p in params.items()}
    parts = {part: (getattr(task, part)[0].double(), getattr(task, part)[1]) for part in ("train", "test")}
    twin = dataclasses.replace(task, model=Twin(copy.deepcopy(task.model).double()), loss=twin_loss, **parts)
    return task, named, twin, {k: p.double() for k, p in named.items()}


WEIGHTED = {
    "module": nn.CrossEntropyLoss(weight=WEIGHTS, reduction="none"),
    "function": lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS, reduction="none"),
    "on the way": lambda o, t: F.cross_entropy(o.float(), t, weight=torch.tensor([0.3, 1.7, 0.9]), reduction="none"),
    "by hand": lambda o, t: -(torch.eye(3)[t] @ torch.diag(WEIGHTS) * o.log_softmax(1)).sum(1),
}


@pytest.mark.parametrize("loss", WEIGHTED)
def test_float32_constants_in_float64(loss):
    """Float64 evaluation must not round to float32 on its way, nor fail where the two meet."""
    task, named, twin, exact = with_twin()
    odd = dataclasses.replace(task, model=Constants(task.model), loss=WEIGHTED[loss])
    names = [n for n in METHODS if n not in ("trak", "lft")]
    all_methods(odd, named, twin, exact, names)
    for name in names:  # and in their own precision
        here = dict(curvature=CURVATURE, dtype="float32", **HYPER.get(name, {}))
        if name != "ekfac":  # whose draws change where float32 does
            relative(attribute(name, odd, named, **ROWS, **here), expected_scores(twin, exact, name), 2e-3)
    all_functions(odd, exact, twin, exact, final_model=1e-5)  # trained in float64, but for the final model
    gold = further_train(odd, named, **FURTHER, progress=False)  # in float32; evaluated in float64
    losses = [s.numpy() for s in plain.train(twin, exact, **RULE, epochs=1, seed=1)]
    relative(gold.full_loss[0], np.stack(losses)[[0, 2]], 1e-5)
    start = further_train(odd, named, **{**FURTHER, "evaluate": [0]}, progress=False).full_loss[0, 0]
    with torch.no_grad():
        relative(start, twin_loss(twin.model(twin.test[0]), twin.test[1]), 1e-14)
    softened(odd, exact, twin, exact)


def test_float64_constants_in_float32():
    table = torch.from_numpy(np.array([0.3, 1.7, 0.9]))
    task, params = tiny("classification", dtype=torch.float32)
    weighted = dataclasses.replace(task, loss=lambda o, t: table[t] * cross_entropy(o, t))
    plainly = dataclasses.replace(task, loss=lambda o, t: table[t].float() * cross_entropy(o, t))
    for name in ("grad_dot", "cg", "datainf"):
        for dtype in ("float32", "float64"):
            a, b = (attribute(name, t, params, dtype=dtype, **ROWS) for t in (weighted, plainly))
            relative(a, b, 1e-3 if dtype == "float32" else 1e-6)
    a, b = (further_train(t, params, **FURTHER, progress=False) for t in (weighted, plainly))
    relative(a.delta, b.delta, 1e-2)


class Turned(nn.Module):
    """Instances as complex numbers, turned by a buffer or a constant of complex64: rotary embeddings, in short."""

    def __init__(self, net, turn, kind):
        super().__init__()
        self.net, self.kind = net, kind
        if kind == "buffer":
            self.register_buffer("turn", turn)
        else:
            self.turn = turn

    def forward(self, x):
        z = torch.complex(x, x.flip(1)) * self.turn
        if self.kind == "cast":
            z = (x.cfloat() + 1j * x.flip(1).to(torch.complex64)) * self.turn.cfloat()
        return self.net(z.real + z.imag.tanh())


class Apart(nn.Module):
    """The same in real numbers."""

    def __init__(self, net, turn):
        super().__init__()
        self.net, self.cos, self.sin = net, turn.real.double(), turn.imag.double()

    def forward(self, x):
        y = x.flip(1)
        return self.net(x * self.cos - y * self.sin + (x * self.sin + y * self.cos).tanh())


def in_float64(odd, named, model):
    """A float32 task and its parameters in float64, with another model."""
    parts = {part: tuple(x.double() for x in getattr(odd, part)) for part in ("train", "test")}
    return dataclasses.replace(odd, model=model.double(), **parts), {k: p.double() for k, p in named.items()}


TURN = torch.polar(torch.ones(3), torch.tensor([0.5, 1.3, 2.0]))


@functools.cache
def turned_and_apart():
    """A float32 task, and in float64 and real numbers what it is with its instances turned, with the parameters."""
    task, params = tiny(dtype=torch.float32)
    named = {f"net.{k}": p for k, p in params.items()}
    return task, *in_float64(task, named, Apart(copy.deepcopy(task.model), TURN))


@pytest.mark.parametrize("kind", ["buffer", "constant", "cast"])
def test_complex_numbers_stay_complex_in_any_precision(kind):
    task, twin, exact = turned_and_apart()
    odd = dataclasses.replace(task, model=Turned(task.model, TURN, kind))
    named = parameters_of(odd.model)
    all_methods(odd, named, twin, exact, ["grad_dot", "cg", "lissa_h"])
    all_functions(odd, exact, twin, exact, final_model=1e-5)
    with torch.no_grad():  # in its own precision, too
        expected = task.loss(odd.model(odd.test[0]), odd.test[1])
    relative(further_train(odd, named, **{**FURTHER, "evaluate": [0]}, progress=False).full_loss[0, 0], expected, 1e-6)


def test_whole_numbers_as_inputs_of_a_float32_model():
    """Pictures as they are stored, `x.float()` in the forward pass: evaluated in float64."""

    class Scaled(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x.float() if x.dtype == torch.uint8 else x) / 16)

    task, _ = tiny(dtype=torch.float32)
    whole = {part: ((getattr(task, part)[0] * 3 + 9).byte(), getattr(task, part)[1]) for part in ("train", "test")}
    odd = dataclasses.replace(task, model=Scaled(task.model), **whole)
    named = parameters_of(odd.model)
    twin, exact = in_float64(odd, named, Scaled(tiny(dtype=torch.float32)[0].model))
    all_methods(odd, named, twin, exact, ["grad_dot", "cg", "lissa_h"])
    all_functions(odd, exact, twin, exact, final_model=1e-5)
    softened(odd, exact, twin, exact)


# Labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_whole_type(dtype):
    task, params = kept("classification", 2 if dtype == torch.bool else 3)
    odd, odd_params = dressed(task, params, lambda o: o, cross_entropy, lambda t: t.to(dtype))
    all_methods(odd, odd_params, task, params)
    all_functions(odd, odd_params, task, params)


def logistic(o, t):
    return F.binary_cross_entropy_with_logits(o, t.to(o.dtype), reduction="none")


def of_one_column(o, t):
    return logistic(o[:, 0], t[:, 0])


def of_all_columns(o, t):
    return logistic(o, t).sum(1)


@functools.cache
def with_labels(columns, loss):
    """The tiny regression with 0 and 1 for its targets."""
    task, params = tiny(outputs=columns)
    parts = {part: (getattr(task, part)[0], (getattr(task, part)[1] > 0).double()) for part in ("train", "test")}
    return dataclasses.replace(task, loss=loss, **parts), params


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64])
def test_binary_labels_with_one_logit(dtype):
    """The usual binary classifier: one logit [n], labels of whole numbers."""
    labels, params = with_labels(1, of_one_column)
    odd, odd_params = dressed(labels, params, lambda o: o.squeeze(1), logistic, lambda t: t[:, 0].to(dtype))
    all_methods(odd, odd_params, labels, params)
    all_functions(odd, odd_params, labels, params)


def test_several_labels_of_an_instance():
    """Multi-label classification, targets [n, L] of whole numbers."""
    labels, params = with_labels(3, of_all_columns)
    odd, odd_params = dressed(labels, params, lambda o: o, of_all_columns, lambda t: t.long())
    all_methods(odd, odd_params, labels, params)
    all_functions(odd, odd_params, labels, params)


LOG_LIKELIHOODS = {  # a model that puts out log-probabilities or probabilities, with the loss that goes with them
    "log-softmax": (3, lambda o: o.log_softmax(1), nn.NLLLoss(reduction="none"), cross_entropy),
    "sigmoid": (
        1,
        lambda o: o.sigmoid(),
        lambda o, t: F.binary_cross_entropy(o[:, 0], t.to(o.dtype), reduction="none"),
        lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.to(o.dtype), reduction="none"),
    ),
}


@pytest.mark.parametrize("kind", LOG_LIKELIHOODS)
def test_log_likelihoods_of_probabilities(kind):
    """Gradients, runs and the Hessian are those of logits; the Gauss-Newton matrix is that of logits where the loss is
    linear in the outputs, else that of these outputs."""
    columns, form, loss, of_logits = LOG_LIKELIHOODS[kind]
    task, params = tiny("classification", outputs=max(columns, 2))
    if columns == 1:
        task = dataclasses.replace(task, model=nn.Sequential(*task.model[:2], nn.Linear(4, 1).double()))
        params = parameters_of(task.model)
    plainly = dataclasses.replace(task, loss=of_logits)
    odd, odd_params = dressed(task, params, form, loss)
    all_methods(odd, odd_params, plainly, params, ["grad_dot", "grad_cos", "lissa_h", "datainf"])
    all_functions(odd, odd_params, plainly, params, recorded=loss)
    if kind == "log-softmax":
        for name in ("cg", "exact", "lissa", "ekfac", "trak", "lft"):
            hyper = dict(curvature=CURVATURE) | HYPER.get(name, {})
            fisher = {"fisher": "empirical"} if name == "ekfac" else {}  # which draws no labels
            expected = attribute(name, plainly, params, **ROWS, **hyper, **fisher)
            relative(attribute(name, odd, odd_params, **ROWS, **hyper, **fisher), expected)
            assert abs(expected - attribute("grad_dot", plainly, params, **ROWS)).max() > 1e-3
    else:
        as_it_is = dataclasses.replace(task, model=nn.Sequential(task.model, Dressed(nn.Identity(), form)), loss=loss)
        expected = oracles.influence(
            as_it_is, {f"0.{k}": p for k, p in params.items()}, ROWS["train"], ROWS["test"], CURVATURE, 0.02
        )
        relative(attribute("cg", odd, odd_params, **ROWS, curvature=CURVATURE, damping=0.02), expected)
    # After the first step LFT is Grad-Dot, along a run that has hardly moved.
    run = dict(horizon=[1], further_training=dict(learning_rate=1e-6, batch_size=8), order=1)
    found = attribute("lft", odd, odd_params, **ROWS, **run)[0]
    relative(found, oracles.grad_dot(plainly, params, ROWS["train"], ROWS["test"], None) * 1e-6 / 23, 1e-4)


@pytest.mark.parametrize("name", ["cg", "exact", "lissa", "ekfac", "lft"])
def test_a_loss_without_curvature_has_no_gauss_newton_matrix(name):
    task, params = tiny(outputs=2)
    absolute = dataclasses.replace(task, loss=lambda o, t: (o - t).abs().sum(1))
    with pytest.raises(ValueError, match="'tiny_regression' is linear in the model's outputs.*expected a curved one"):
        attribute(name, absolute, params, **ROWS, **HYPER.get(name, {}))
    assert np.isfinite(attribute("grad_dot", absolute, params, **ROWS)).all()


def test_an_output_that_a_loss_uses_for_some_classes_only():
    """None of the two instances that models are tried on may be of such a class."""
    task, params = kept("classification", 3)
    rare = next(c for c in range(3) if c not in take(task.train, different(task.train, 2))[1])

    def extra(o, t):
        return cross_entropy(o, t) + torch.where(t == rare, o.square().sum(1), 0.0)

    def by_parts(o, t):
        return cross_entropy(o[0], t) + (0 if o[1] is None else torch.where(t == rare, o[1], 0.0))

    task = dataclasses.replace(task, loss=extra)
    odd, odd_params = dressed(task, params, lambda o: (o, o.square().sum(1)), by_parts)
    all_methods(odd, odd_params, task, params, ["grad_dot", "lissa_h"])  # Gauss-Newton and LFT depend on the form
    gold = further_train(odd, odd_params, **FURTHER, progress=False)
    relative(gold.full_loss[0], plain_losses(task, params), 1e-10)
