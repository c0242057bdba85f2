"""Derivatives of second order of every layer that PyTorch has, against central differences in float64."""

import dataclasses
import functools
import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import counting
import layers
import numpy as np
import oracles
import plain
import pytest
import torch
import torch.nn.functional as F
from problems import tiny
from small_files import refusal
from torch import nn
from torch.func import grad, jvp
from torch.utils._pytree import tree_map

from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.differentiable_run import DifferentiableRun
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.second_order import check_product, check_run, twice_differentiable
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.methods import attribute
from fimoda_lib.tasks import cross_entropy, parameters_of, squared_error
from fimoda_lib.training.ensembles import Optimizer
from fimoda_lib.training.minibatches import epoch_orders
from fimoda_lib.training.plans import Plan

RUN, CHANGE, SMALL = dict(optimizer="sgd", learning_rate=0.05, batch_size=3), 2e-5, 1e-6
STEPS = 2  # of which the second has a difference that the Hessian acts on
LEFT_OUT = [4, 2]  # of seven; they are in the first and in the second batch
NOT_ONCE_MORE = {  # PyTorch has no rule for the second derivative, forwards, in reverse, or under vmap
    "Hardsigmoid": "both", "EmbeddingBag": "both", "EmbeddingBag sum": "both", "RReLU": "forward"
}  # fmt: skip
RIGHT = [name for name in (*layers.LAYERS, *layers.TOKENS) if name not in NOT_ONCE_MORE]


def error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


def tangents(task, params, **options):
    options = {**RUN, "epochs": 1, "seeds": [0], "left_out": LEFT_OUT, "evaluate": [STEPS], **options}
    return tangent_train(task, params, progress=False, **options).delta.values[0, :, -1]


def adjoints(task, params, **options):
    options = {**RUN, "horizon": STEPS, "test": range(task.n_test), **options}
    return adjoint_train(task, params, progress=False, **options).sel(train=LEFT_OUT).values.T


def difference_of_runs(task, params, **options):
    def run(i, fraction):
        options_of_run = {**RUN, "epochs": 1, "seed": 0, "removal": "mask", **options}
        return next(plain.train(task, params, removed=i, fraction=fraction, every=STEPS, **options_of_run)).numpy()

    return np.array([(run(i, CHANGE) - run(i, -CHANGE)) / (2 * CHANGE) for i in LEFT_OUT])


def moved(at, params, v, step):
    return {k: params[k] + step * d for k, d in at.unflatten(v).items()}


def gradient(task, params):
    model = oracles.at(task, params)
    loss = task.loss(model(task.train[0]), task.train[1]).mean()
    return oracles.vector(torch.autograd.grad(loss, oracles.trained(model), allow_unused=True), oracles.trained(model))


def direction(at):
    return torch.randn(at.n_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", RIGHT)
def test_every_layer(name):
    """The forward and the reverse derivative of a run; the Hessian of LiSSA-H; the Jacobians behind LFT."""
    task, params = layers.problem(name)
    expected = difference_of_runs(task, params)
    assert error(tangents(task, params), expected) < 1e-6
    assert error(adjoints(task, params), expected) < 1e-6
    at = Gradients(task, params)
    v, instances = direction(at), at.train(torch.arange(task.n_train))
    ahead, behind = (moved(at, params, v, step) for step in (SMALL, -SMALL))
    product = (gradient(task, ahead) - gradient(task, behind)) / (2 * SMALL)
    assert error(at.hessian_products(instances, v[None])[0], product) < 1e-7
    J = at.of_outputs(instances[0], torch.eye(2, dtype=torch.float64).expand(task.n_train, 2, 2))
    change = (oracles.at(task, ahead)(task.train[0]) - oracles.at(task, behind)(task.train[0])) / (2 * SMALL)
    assert error(J @ v, change.detach().numpy()) < 1e-7
    counting.model("layers")


@pytest.mark.parametrize("name", NOT_ONCE_MORE)
def test_a_layer_without_a_second_derivative_is_refused(name):
    """By the trial of the model, or where the derivative is first asked for."""
    task, params = layers.problem(name)
    says = ("PyTorch has no second derivative of the model or the loss (", "by torch.func (RuntimeError: ")
    found = [
        refusal(tangents, task, params, error=ValueError),
        refusal(attribute, "lissa_h", task, params, depth=1, error=ValueError),
    ]
    if NOT_ONCE_MORE[name] == "both":
        found.append(refusal(adjoints, task, params, error=ValueError))
    else:
        assert error(adjoints(task, params), difference_of_runs(task, params)) < 1e-6
    assert all(any(words in message for words in says) for message in found), found


NO_LAYERS = """
    Container DataParallel Module ModuleDict ModuleList ParameterDict ParameterList Sequential
    Lazy RNNBase RNNCellBase
"""
REFUSED_AT_THE_DOOR = "RNN GRU LSTM RNNCell GRUCell LSTMCell CrossMapLRN2d FractionalMaxPool AdaptiveLogSoftmaxWithLoss"


def test_no_layer_of_pytorch_is_forgotten():
    tried = {name.split()[0] for name in (*layers.LAYERS, *layers.TOKENS)} | {"MaxUnpool1d", "MaxUnpool3d"}
    others = tuple(f"{NO_LAYERS} {REFUSED_AT_THE_DOOR}".split())
    names = [name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    forgotten = [n for n in names if n not in tried and not n.startswith(others) and "Loss" not in n]
    assert forgotten == [] and len(tried) > 100


WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
LOSSES = {
    "squared error": (squared_error, None),
    "cross-entropy": (cross_entropy, 3),
    "label smoothing": (lambda o, t: F.cross_entropy(o, t, reduction="none", label_smoothing=0.1), 3),
    "weighted": (lambda o, t: F.cross_entropy(o, t, WEIGHTS, reduction="none"), 3),
    "absolute error": (lambda o, t: (o - t).abs().sum(1), None),
    "Huber": (lambda o, t: F.huber_loss(o, t, reduction="none").sum(1), None),
    "smooth L1": (lambda o, t: F.smooth_l1_loss(o, t, reduction="none", beta=0.7).sum(1), None),
    "logistic": (lambda o, t: F.binary_cross_entropy_with_logits(o, (t > 0).double(), reduction="none").sum(1), None),
    "Poisson": (lambda o, t: F.poisson_nll_loss(o, t.abs(), reduction="none").sum(1), None),
    "divergence": (lambda o, t: F.kl_div(o.log_softmax(1), t.softmax(1), reduction="none").sum(1), None),
    "cosine": (lambda o, t: 1 - F.cosine_similarity(o, t), None),
    "normalised": (lambda o, t: (F.layer_norm(o, (3,), WEIGHTS, WEIGHTS) - t).square().sum(1), None),
    "soft margin": (lambda o, t: F.soft_margin_loss(o, t.sign(), reduction="none").sum(1), None),
}
NOT_TWICE = {
    "Gaussian": (lambda o, t: F.gaussian_nll_loss(o, t, 1 + o.square(), reduction="none").sum(1), None),
    "margin": (lambda o, t: F.multi_margin_loss(o, t, p=2, reduction="none"), 3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_of_losses(name):
    loss, classes = LOSSES[name]
    task, params = tiny("classification" if classes else "regression", outputs=3)
    at = Gradients(dataclasses.replace(task, loss=loss), params)
    outputs, targets = task.model(task.train[0]).detach(), task.train[1]
    found = at.loss_hessians(outputs, targets)
    columns = []
    for k in range(3):
        step = SMALL * torch.eye(3, dtype=torch.float64)[k]
        ahead, behind = ((outputs + s).requires_grad_() for s in (step, -step))
        slopes = [torch.autograd.grad(loss(o, targets).sum(), o)[0] for o in (ahead, behind)]
        columns.append((slopes[0] - slopes[1]) / (2 * SMALL))
    torch.testing.assert_close(found, torch.stack(columns, 2), rtol=1e-6, atol=1e-8)
    v = direction(at)
    ahead, behind = (gradient(at.task, moved(at, params, v, step)) for step in (SMALL, -SMALL))
    assert error(at.hessian_products(at.task.train, v[None])[0], (ahead - behind) / (2 * SMALL)) < 1e-6


@pytest.mark.parametrize("name", NOT_TWICE)
def test_a_loss_without_a_second_derivative_is_refused(name):
    loss, classes = NOT_TWICE[name]
    task, params = tiny("classification" if classes else "regression", outputs=3)
    task = dataclasses.replace(task, loss=loss)
    said = "PyTorch has no second derivative of the model or the loss"
    found = refusal(attribute, "cg", task, params, error=ValueError)
    assert said in found or "by torch.func" in found
    at, (inputs, targets) = Gradients(task, params), task.train
    assert said in refusal(at.loss_hessians, task.model(inputs).detach(), targets, error=ValueError)


def test_a_loss_whose_gradient_has_no_forward_derivative():
    """... has a reverse one."""
    task, params = tiny("regression", n=9, outputs=3)
    task = dataclasses.replace(task, loss=LOSSES["soft margin"][0])
    exact, cg = (attribute(name, task, params, damping=0.1, train=[0, 1], test=[2]).values for name in ("exact", "cg"))
    assert error(cg, exact) < 1e-6
    expected = difference_of_runs(task, params)
    assert error(adjoints(task, params), expected) < 1e-6 and error(tangents(task, params), expected) < 1e-6
    with pytest.raises(RuntimeError, match="forward AD"):
        jvp(grad(lambda o: task.loss(o, task.train[1]).sum()), (task.train[1],), (task.train[1],))


class Tripled(torch.autograd.Function):
    """Without a rule for forward derivatives."""

    generate_vmap_rule = True
    forward = staticmethod(lambda x: 3 * x)
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(lambda ctx, gradient: 3 * gradient)


def test_a_model_without_a_forward_derivative_is_refused_before_anything_is_followed(monkeypatch):
    task, params = tiny("regression", n=9)
    calls = nn.Module()
    calls.forward = Tripled.apply
    task = dataclasses.replace(task, model=nn.Sequential(*task.model, calls))
    assert error(adjoints(task, params), difference_of_runs(task, params)) < 1e-6
    monkeypatch.setattr(importlib.import_module("fimoda_lib.methods.lft"), "LiveRun", None)
    split = dict(further_training=dict(learning_rate=0.1, batch_size=3), horizon=2, mode="split")
    for call in (tangents, functools.partial(attribute, "lft", **split)):
        assert "PyTorch has no forward derivative of the model or" in refusal(call, task, params, error=ValueError)


# What a run checks of its own


def exact_run(task, params):
    rule = Optimizer("sgd", 0.1)
    return DifferentiableRun(task, params, Plan(rule, 3, 1, "mask", 1.0, (0,), (0,), (1,)), torch.device("cpu"))


@pytest.mark.parametrize("name", ["LayerNorm", "LayerNorm without bias", "TransformerEncoderLayer"])
def test_the_check_notices_what_the_batching_rules_of_normalising_layers_lose(name):
    task, params = layers.problem(name)
    run = exact_run(task, params)

    def under_vmap(batch, weights, along):
        def gradients(p):
            return run.ensemble.gradients(p, tree_map(lambda t: t[None], batch), weights[None], 1)

        with twice_differentiable():
            return jvp(gradients, (run.params,), (along,))[1]

    found = refusal(check_run, run, under_vmap, error=ValueError)
    assert "PyTorch's second derivative of the loss is wrong for parameter '" in found and "elementary" in found
    check_run(run, run.product)


class Careless(torch.autograd.Function):
    """A cube whose derivative takes its own factor for a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].detach())
        ctx.save_for_forward(inputs[0].detach())

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * slope

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * tangent


class Cube(nn.Module):
    def forward(self, x):
        return Careless.apply(x)


def test_the_check_notices_a_layer_that_derives_itself_wrongly():
    layer = nn.Sequential(nn.Linear(3, 4), Cube(), nn.Linear(4, 1)).double()
    task = dataclasses.replace(tiny()[0], model=layer, name="cubes")
    params, message = parameters_of(layer), "Task 'cubes': PyTorch's second derivative of the loss is wrong"
    assert message in refusal(tangents, task, params, error=ValueError)
    assert message in refusal(adjoints, task, params, error=ValueError)
    assert message in refusal(attribute, "lissa_h", task, params, depth=1, error=ValueError)
    single = {k: p.float() for k, p in params.items()}
    assert message in refusal(tangents, task, single, error=ValueError)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


KINKS = {
    "rectified": F.relu,
    "absolute": torch.abs,
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "clipped": lambda x: x.clamp(-0.5, 0.5),
    "exponential": F.elu,  # the second derivative jumps at 0
    "shrunk": lambda x: F.hardshrink(x, 0.2),
    "largest": lambda x: x.max(1, keepdim=True).values * x,
    "in float32": lambda x: F.silu(x.float()).double(),
    "rounded": lambda x: x.round() * x,
    "norm": lambda x: x * x.norm(dim=1, keepdim=True),
    "random": lambda x: x * torch.rand_like(x),
}


@pytest.mark.parametrize("at_zero", [False, True])
@pytest.mark.parametrize("name", KINKS)
def test_kinks_raise_no_false_alarm(name, at_zero):
    """Not even where units stand exactly on one, as dead inputs with zero biases do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = [nn.Linear(3, 300), Function(KINKS[name]), nn.Linear(300, 300), Function(KINKS[name]), nn.Linear(300, 1)]
        model = nn.Sequential(*net).double()
        task = dataclasses.replace(tiny()[0], model=model, loss=lambda o, t: F.l1_loss(o, t, reduction="none").sum(1))
        if at_zero:
            for layer in (model[0], model[2]):
                layer.bias.data.zero_()
            task.train[0][::2] = 0
            task.train[1][:] = model(task.train[0]).detach()
        run = exact_run(task, parameters_of(model))
        check_run(run, run.product)
        if name != "random":
            Gradients(task, parameters_of(model)).check_hessian()


def test_dropout_draws_the_same_masks_for_the_check():
    task, params = tiny()
    noisy = nn.Sequential(*task.model[:2], nn.Dropout(0.5), task.model[2])
    run = exact_run(dataclasses.replace(task, model=noisy), parameters_of(noisy))
    before = torch.get_rng_state()
    check_run(run, run.product)
    assert torch.equal(torch.get_rng_state(), before)
    wrong = lambda batch, weights, along: {k: 1.03 * p for k, p in run.product(batch, weights, along).items()}  # noqa: E731
    assert "wrong for parameter" in refusal(check_run, run, wrong, error=ValueError)


def test_a_product_that_is_not_finite_is_noticed():
    params = {"w": torch.ones(2, dtype=torch.float64)}
    nothing = {"w": torch.full((2,), torch.nan, dtype=torch.float64)}
    assert "wrong for parameter 'w'" in refusal(
        check_product, "t", params, lambda p: {"w": p["w"] ** 3}, lambda v: nothing, error=ValueError
    )


def test_a_gradient_that_is_not_finite_is_noticed():
    task, params = tiny(n=9)
    task.train[0][0], params["0.bias"][:] = 0.0, 0.0
    root = dataclasses.replace(task, model=nn.Sequential(task.model[0], Function(torch.sqrt), task.model[2]))
    assert "the gradient of the loss is not finite" in refusal(tangents, root, params, error=ValueError)


def test_attention_is_as_fast_as_before_afterwards():
    torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(KeyError), twice_differentiable():
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()


IN_THREADS = {
    "tangents": lambda task, params, seed: tangents(task, params, seeds=[seed]),
    "adjoints": lambda task, params, seed: adjoints(task, params, seed=seed),
    "cg": lambda task, params, seed: attribute("cg", task, params, damping=0.5, test=[seed]).values,
    "lissa_h": lambda task, params, seed: attribute("lissa_h", task, params, scale=50.0, depth=9, seed=seed).values,
    "split": lambda task, params, seed: attribute(
        "lft", task, params, mode="split", horizon=3, further_training=dict(learning_rate=0.1, batch_size=3, seed=seed)
    ).values,
}  # fmt: skip


@pytest.mark.parametrize("call", IN_THREADS)
def test_derivatives_in_threads_do_not_disturb_each_other(call):
    """PyTorch's forward derivatives and attention kernels belong to the process, whose threads take turns."""
    task, params = tiny(n=9)
    noisy = call == "adjoints"  # masks are another thing that threads share
    task = dataclasses.replace(task, model=nn.Sequential(*task.model, nn.Dropout(0.2))) if noisy else task
    alone = [IN_THREADS[call](task, params, seed) for seed in range(3)]
    flags = kernels()
    together, every = threading.Barrier(len(alone)), sys.getswitchinterval()

    def run(seed):
        together.wait()
        return [IN_THREADS[call](task, params, seed) for _ in range(2)]

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(alone)) as threads:
            found = list(threads.map(run, range(len(alone))))
    finally:
        sys.setswitchinterval(every)
    for expected, runs in zip(alone, found, strict=True):
        for values in runs:
            np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert kernels() == flags


def kernels():
    cuda = torch.backends.cuda
    return torch.backends.mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()


# Clipping


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_without_any_gradient_does_not_end_in_nan(dtype):
    """Its norm has no derivative there, and needs none: such a batch is not clipped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False)).double()
    task, params = dataclasses.replace(tiny(n=9)[0], model=model), parameters_of(model)
    first_batch, second_batch, _ = next(epoch_orders(9, 0)).split(3)
    for part in task.train:
        part[second_batch] = 0.0
    LEFT_OUT[:] = first_batch[:2].tolist()
    expected = difference_of_runs(task, params, max_grad_norm=0.4)
    params = {k: p.to(dtype) for k, p in params.items()}
    for derivative in (tangents, adjoints):
        found = derivative(task, params, max_grad_norm=0.4)
        assert error(found, expected) < (1e-6 if dtype == torch.float64 else 1e-4)
        assert error(derivative(task, params), expected) > 0.1
