"""An accelerator changes nothing: the same results as on the CPU, and no operation that mixes devices."""

import dataclasses
import functools
import gc
import json
import warnings
import weakref

import numpy as np
import pytest
import torch
from problems import tiny
from torch import nn

from fimoda_lib import (
    METHODS,
    Task,
    attribute,
    cross_entropy,
    further_train,
    load_task,
    sensitivity,
    similarity,
    squared_error,
    train_final_model,
)
from fimoda_lib.datasets.models import mlp
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.curvature import GaussNewton
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.devices import (
    choose_device,
    eigh,
    free_memory,
    own_randomness,
    random_devices,
    random_state,
    set_precision,
    set_random_state,
    strict_arithmetic,
)
from fimoda_lib.methods import base
from fimoda_lib.methods.trak import unpacked
from fimoda_lib.tasks import parameters_of, take, to
from fimoda_lib.training.ensembles import Ensemble, Optimizer

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # PyTorch differentiates on one kind of accelerator in a process
    from pretend_device import DEVICE, memory_of

TRAINING = dict(optimizer="sgd", learning_rate=0.05, batch_size=4)
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]
GPU = pytest.param(torch.device("cuda"), marks=NEEDS_GPU)
HYPER = {
    "cg": dict(damping=0.1),
    "lissa": dict(damping=0.1, depth=6, batch_size=4),
    "lissa_h": dict(damping=0.5, depth=6, batch_size=4),
    "trak": dict(dimension=3),
    "exact": dict(damping=0.1),
    "lft": dict(horizon=[2, 5], further_training=TRAINING),
}


@pytest.fixture(params=["pretend", GPU])
def device(request):
    if request.param != "pretend":
        return request.param
    if HAS_GPU:
        pytest.skip("the GPU here takes the place of the pretend device")
    return DEVICE


@functools.cache
def made(kind):
    """A tiny task in float64 and its parameters."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "regression":
        task = Task(
            "r", mlp(3, 1, width=4), squared_error, (normal(10, 3), normal(10, 1)), (normal(4, 3), normal(4, 1))
        )
    else:
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
        images = [(normal(n, 1, 4, 4), torch.arange(n) % 3) for n in (10, 4)]
        task = Task("c", model.eval() if kind == "images" else model, cross_entropy, *images)
    task.model.double()
    for p in task.model.parameters():
        p.data = 0.5 * normal(*p.shape)
    return task, parameters_of(task.model)


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert abs(a).max() > 0


@pytest.mark.skipif(HAS_GPU, reason="the GPU here takes the place of the pretend device")
def test_the_pretend_device_computes_keeps_views_and_refuses_to_mix():
    x = torch.arange(6.0).reshape(2, 3)
    on = x.to(DEVICE)
    assert on.device == DEVICE and on.sum().item() == 15 and torch.equal((on.T @ on).cpu(), x.T @ x)
    on.T[1:].mul_(2)
    assert torch.equal(memory_of(on), torch.tensor([[0.0, 2, 4], [3, 8, 10]]))
    assert torch.equal(on[:, torch.tensor([2])].cpu(), torch.tensor([[4.0], [10]]))
    first, values = torch.tensor([0]), torch.zeros(1, 3)
    for mixed in (
        lambda: on + x,
        lambda: on @ x.T,
        lambda: torch.cat([on, x]),
        lambda: torch.where(on > 0, on, x),
        lambda: x[first.to(DEVICE)],
        lambda: on.__setitem__(first, values),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mixed()


@pytest.mark.parametrize("kind", ["regression", "images"])
@pytest.mark.parametrize("name", METHODS)
def test_methods(name, kind, device):
    task, params = made(kind)
    rows = dict(train=range(0, 10, 2), test=range(3), curvature=range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny problems converge badly
        found, expected = (
            attribute(name, task, params, **rows, device=d, **HYPER.get(name, {})) for d in (device, "cpu")
        )
    same(found.values, expected.values)


@pytest.mark.parametrize("name", METHODS)
def test_as_many_test_instances_at_once_as_a_gpu_holds(name, monkeypatch):
    """Here two, and batches of the series in pieces; what is reported for each test instance is complete."""
    task, params = made("images")
    rows = dict(train=range(0, 10, 2), test=range(3), curvature=range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attribute(name, task, params, **rows, **HYPER.get(name, {}))
        monkeypatch.setattr(base, "solved_at_once", lambda at: 2)
        monkeypatch.setattr(GaussNewton, "at_once", 3)
        found = attribute(name, task, params, **rows, **HYPER.get(name, {}))
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # CG stops at 1e-10 of each column
    for key in ("residual", "iterations"):
        assert len(json.loads(found.attrs.get(key, "[]"))) == len(json.loads(expected.attrs.get(key, "[]")))


def test_signs_are_unpacked_on_a_device_as_on_the_cpu(device):
    bits = np.random.default_rng(0).integers(0, 256, 9, dtype=np.uint8)
    assert torch.equal(unpacked(bits, 67, device).cpu(), unpacked(bits, 67, torch.device("cpu")))


@pytest.mark.parametrize(
    "more",
    [
        dict(backend="gram"),
        dict(backend="krylov"),
        dict(backend="ekfac"),
        dict(mode="closed_form"),
        dict(segments=2, order=1),
        dict(further_training=TRAINING | {"optimizer": "adam"}),
        dict(mode="split", segments=2),
        dict(mode="split", horizon=list(range(1, 13)), products=6, backend="krylov"),
        dict(mode="split", products=4, further_training=TRAINING | {"optimizer": "adamw", "max_grad_norm": 0.1}),
    ],
    ids=str,
)
def test_lft(more, device):
    task, params = made("regression")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (attribute("lft", task, params, device=d, **(HYPER["lft"] | more)) for d in (device, "cpu"))
    same(found.values, expected.values)


def test_what_a_method_forgets_on_the_cpu_is_noticed(device):
    def forgetful(task, params, *, train, test, curvature):
        at = Gradients(task, params)
        return at.of_losses(at.test(test)) @ (torch.eye(at.n_params, dtype=at.dtype) @ at.of_losses(at.train(train)).T)

    task, params = made("regression")
    attribute(forgetful, task, params, device="cpu")
    with pytest.raises(RuntimeError, match="device"):
        attribute(forgetful, task, params, device=device)


RUNS = [  # every two of these: batches, gradients and updates are three things
    (optimizer, removal, ("regression", "images")[(j + k) % 2])
    for j, optimizer in enumerate(("sgd", "adam", "adamw"))
    for k, removal in enumerate(("drop", "mask", "subtract"))
]


@pytest.mark.parametrize(("optimizer", "removal", "kind"), RUNS)
def test_further_training(optimizer, removal, kind, device):
    task, params = made(kind)
    settings = dict(optimizer=optimizer, learning_rate=0.05, batch_size=4, epochs=1, removal=removal, max_grad_norm=1.0)
    settings |= dict(seeds=[3], left_out=[0, 7], weight_decay=0.01, progress=False, replicas=2)
    found, expected = (further_train(task, params, device=d, **settings) for d in (device, "cpu"))
    same(found.delta, expected.delta)
    same(found.full_loss, expected.full_loss)


def test_dropout_is_paired_there_too(device):
    task, params = made("dropout")
    settings = dict(optimizer="sgd", learning_rate=0.05, batch_size=4, epochs=1, seeds=[3, 4], progress=False)
    gold = further_train(task, params, device=device, left_out=[0, 7], removal="mask", fraction=0.0, **settings)
    assert np.abs(gold.delta).max() < 1e-12 and gold.full_loss.notnull().all()
    assert np.abs(gold.full_loss.diff("seed")).min() > 1e-6  # the masks of seeds differ


def test_final_model(device):
    task, _ = made("images")
    settings = dict(optimizer="adamw", learning_rate=0.01, batch_size=4, epochs=2, seed=0, progress=False)
    found, expected = (train_final_model(task, device=d, **settings) for d in (device, "cpu"))
    for name, p in expected.items():
        assert found[name].device.type == "cpu"
        same(found[name], p)


@pytest.mark.parametrize(("optimizer", "removal"), [("sgd", "mask"), ("adam", "subtract")])
def test_derivatives_of_further_training(optimizer, removal, device):
    task, params = made("regression")
    settings = dict(optimizer=optimizer, learning_rate=0.05, batch_size=4, progress=False)
    found, expected = (
        tangent_train(task, params, epochs=1, seeds=[0], left_out=[1, 2], removal=removal, device=d, **settings)
        for d in (device, "cpu")
    )
    same(found.delta, expected.delta)
    found, expected = (
        adjoint_train(task, params, horizon=3, test=[0, 2], device=d, **settings) for d in (device, "cpu")
    )
    same(found, expected)


def test_kinks_softened_along_a_run(device):
    task, params = made("regression")
    settings = dict(optimizer="sgd", learning_rate=0.05, batch_size=4, progress=False, kinks="softened")
    for derivative in (
        lambda d: tangent_train(task, params, epochs=1, seeds=[0], left_out=[1, 2], device=d, **settings).delta,
        lambda d: adjoint_train(task, params, horizon=3, test=[0, 2], device=d, **settings),
    ):
        same(derivative(device), derivative("cpu"))


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("compile", [False, True])
def test_float32_on_a_gpu_is_float32(compile, device):
    """As it is run: losses agree with the CPU's up to float32's rounding, not TF32's, and a second run is the same."""
    task = load_task("wine")
    training = dict(optimizer="sgd", batch_size=32)
    params = train_final_model(task, learning_rate=0.1, epochs=20, seed=0, device="cpu", **training)
    settings = dict(learning_rate=0.01, epochs=5, seeds=[0, 1], left_out=range(20), **training)
    runs = [further_train(task, params, device=d, compile=compile, **settings) for d in (device, device, "cpu")]
    np.testing.assert_array_equal(runs[0].delta, runs[1].delta)
    np.testing.assert_allclose(runs[0].full_loss, runs[2].full_loss, rtol=1e-4, atol=1e-6)
    assert (similarity(as_scores(runs[0]), sensitivity(runs[2], "full").isel(step=[-1]))["mean"] > 0.999).all()


@pytest.mark.parametrize("device", [GPU])
def test_what_is_recorded_on_a_gpu_is_gone_with_its_ensemble(device):
    task, params = made("regression")
    ensemble = Ensemble(task, params, 2, Optimizer("sgd", 0.05), device=device)
    batch = to(take(task.train, torch.arange(4).expand(2, 4)), device)
    ensemble.step(batch, torch.full((2, 4), 0.25, dtype=torch.float64, device=device))
    ensemble.losses(to(task.test, device))
    assert len(ensemble.update.recorded) == len(ensemble.evaluate.recorded) == 1
    gone = weakref.ref(ensemble)
    gc.disable()
    del ensemble
    gc.enable()
    assert gone() is None


def as_scores(gold):
    return sensitivity(gold, "full").isel(step=-1, drop=True).rename(left_out="train")


def test_gradients_are_computed_where_the_parameters_are(device):
    task, params = made("regression")
    at = Gradients(task, {k: p.to(device) for k, p in params.items()})
    assert at.device.type == device.type == at.of_losses(at.train(torch.arange(2))).device.type
    assert Gradients(task, params).device.type == "cpu" == Gradients(task, at.params, device="cpu").device.type


# Arithmetic on a GPU


def flags():
    tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    return tf32, torch.are_deterministic_algorithms_enabled()


def test_arithmetic_is_strict_on_a_gpu_and_as_before_afterwards():
    assert flags() == (True, False)  # PyTorch's defaults
    with pytest.raises(KeyError), strict_arithmetic(torch.device("cuda")):
        assert flags() == (False, True) and torch.is_deterministic_algorithms_warn_only_enabled()
        raise KeyError
    assert flags() == (True, False)
    with strict_arithmetic(torch.device("cpu")):
        assert flags() == (True, False)


def test_arithmetic_is_strict_whichever_way_it_was_loose():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    try:
        torch.set_float32_matmul_precision("medium")
        with strict_arithmetic(torch.device("cuda")):
            assert flags() == (False, True)
        assert torch.get_float32_matmul_precision() == "medium"
        for backend in backends:
            backend.fp32_precision = "tf32"  # the newer way, in which the older settings cannot be read
        with strict_arithmetic(torch.device("cuda")):
            assert flags() == (False, True)
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        set_precision("highest", True)


@pytest.mark.parametrize("where", [torch.device("cpu"), GPU])
def test_memory_and_random_state_of_a_device(where):
    assert free_memory(where) > 0 and random_devices(where) == ([where] if where.type == "cuda" else [])
    state = random_state(where)
    first = torch.rand(3, device=where)
    set_random_state(state, where)
    assert torch.equal(torch.rand(3, device=where), first)
    assert choose_device(where) == where


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_random_numbers_are_those_of_the_seed_and_the_callers_go_on(seed, monkeypatch):
    """... and on a CPU no other kind of device is seeded, which takes a millisecond for each."""
    expected, after = torch.rand(3, generator=torch.Generator().manual_seed(seed)), torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded GPUs"))
    with own_randomness(torch.device("cpu"), seed):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_eigendecompositions_take_one_thread_and_leave_the_others_as_they_were(monkeypatch):
    matrix = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    values, vectors = eigh(matrix)
    torch.testing.assert_close(vectors * values @ vectors.T, matrix)
    before, threads = torch.get_num_threads(), []

    def fails(_):
        threads.append(torch.get_num_threads())
        raise RuntimeError

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError):
            eigh(matrix)
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_callers_autocast_rounds_nothing(dtype):
    task, params = tiny(dtype=dtype)
    rule = dict(optimizer="sgd", learning_rate=0.05, batch_size=8)

    def results():
        again = dataclasses.replace(task)  # of which nothing is known
        return [
            attribute("cg", again, params, dtype=str(dtype).removeprefix("torch."), damping=0.1).values,
            further_train(again, params, **rule, epochs=1, seeds=[0], left_out=[2], progress=False).delta.values,
            train_final_model(again, **rule, epochs=1, seed=0, progress=False)["0.weight"].numpy(),
        ]

    plainly = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = results()
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16  # it is on again
    for a, b in zip(inside, plainly, strict=True):
        np.testing.assert_array_equal(a, b)
