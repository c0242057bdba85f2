"""Names of losses and models: lasting, and never shared by two that compute differently."""

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.datasets import DATASETS
from fimoda_lib.datasets.models import mlp
from fimoda_lib.storage import naming, sources
from fimoda_lib.storage.naming import loss_name, model_name
from fimoda_lib.tasks import cross_entropy, squared_error

ROOT = Path(__file__).resolve().parents[2]


def test_names_in_stored_specifications_do_not_change():
    assert (loss_name(squared_error), loss_name(cross_entropy)) == ("squared_error", "cross_entropy")
    assert DATASETS and model_name(mlp(3, 1)) is None  # nothing is added to what `repr` says


def captured(delta):
    return lambda o, t: F.huber_loss(o, t, delta=delta, reduction="none").sum(1)


def captured_twice(delta):
    inner = captured(delta)
    return lambda o, t: inner(o, t)


def by_default(delta):
    def loss(o, t, delta=delta):
        return F.huber_loss(o, t, delta=delta, reduction="none").sum(1)

    return loss


def by_keyword_default(delta):
    def loss(o, t, *, delta=delta):
        return F.huber_loss(o, t, delta=delta, reduction="none").sum(1)

    return loss


def from_source(delta, text="def loss(o, t): return F.huber_loss(o, t, delta=DELTA)"):
    scope = {"F": F, "DELTA": delta}
    exec(text, scope)
    return scope["loss"]


def with_helper(delta):
    text = f"def helper(o, t): return F.huber_loss(o, t, delta={delta})\ndef loss(o, t): return helper(o, t)"
    return from_source(0, text)


def bound(delta):
    return functools.partial(F.huber_loss, delta=delta, reduction="none")


def positional(delta):
    return functools.partial(captured, delta)


def module(delta):
    return nn.HuberLoss(delta=delta, reduction="none")


def weights(delta):
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, delta], dtype=torch.float64), reduction="none")


class Own:
    def __init__(self, delta):
        self.delta = delta

    def loss(self, o, t):
        return F.huber_loss(o, t, delta=self.delta)

    def __call__(self, o, t):
        return self.loss(o, t)


def method_of(delta):
    return Own(delta).loss


def nested_constant(delta):
    return eval(f"lambda o, t: (lambda x: x * {delta})((o - t).abs().sum(1))")


def class_code(delta):
    scope = {}
    exec(f"class Loss:\n  def __call__(self, o, t): return (o - t).abs().sum(1) * {delta}", scope)
    return scope["Loss"]()


def class_constant(delta):
    return type("Loss", (), {"delta": delta, "__call__": lambda self, o, t: self.delta * (o - t).sum(1)})()


def base_class(delta):
    base = type("Base", (), {"delta": delta, "__call__": lambda self, o, t: self.delta * (o - t).sum(1)})
    return type("Loss", (base,), {})()


KINDS = (
    *(captured, captured_twice, by_default, by_keyword_default, from_source, with_helper, bound, positional, module),
    *(weights, Own, method_of, nested_constant, class_code, class_constant, base_class),
)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_differ_in_one_value_have_different_names(kind):
    assert loss_name(kind(1.0)) == loss_name(kind(1.0))
    assert loss_name(kind(1.0)) != loss_name(kind(1.0 + 1e-12))
    assert len(loss_name(kind(1.0)).splitlines()) == 1 and "0x" not in loss_name(kind(1.0))


def test_losses_of_different_code_have_different_names():
    texts = ["o - t", "t - o", "(o - t) ** 2", "(o - t) ** 4", "(o - t).sum()", "(o - t).mean()", "F.l1_loss(o, t)"]
    losses = [from_source(1.0, f"def loss(o, t): return {text}") for text in texts]
    names = {loss_name(loss) for loss in [*losses, *(kind(1.0) for kind in KINDS), F.mse_loss, F.l1_loss, nn.MSELoss()]}
    assert len(names) == len(losses) + len(KINDS) + 3
    helpers = [f"def helper(e, {a}, {b}): return e * {a} + {b}\n" for a, b in ("ab", "ba")]
    swapped = [from_source(1.0, f"{text}def loss(o, t): return helper(o - t, a=2, b=1)") for text in helpers]
    assert loss_name(swapped[0]) != loss_name(swapped[1])  # they differ by the names of arguments alone
    same_name = from_source(1.0, "def loss(o, t): return o\nloss.__qualname__ = 'cross_entropy'")
    assert loss_name(same_name) != loss_name(cross_entropy)


OWN_FILES = {
    "helpers.py": "from deeper import scale\n",
    "deeper.py": "scale = 1\n",
    "shop/__init__.py": "",
    "shop/losses.py": "from .units import scale\n",
    "shop/units.py": "scale = 1\n",
    "shop/parts/__init__.py": "",
    "shop/parts/last.py": "scale = 1\n",
    "other.py": "",
}
OWN_LOSSES = {
    "in the body": ("", "import deeper; return deeper.scale * o"),
    "in the body, from": ("", "from helpers import scale; return scale * o"),
    "in a function inside": ("", "def inner():\n    import deeper\n    return deeper.scale\n  return inner() * o"),
    "by a module": ("import helpers", "return helpers.scale * o"),
    "by a package": ("import shop.losses", "return shop.losses.scale * o"),
    "by a package, from": ("", "from shop import losses; return losses.scale * o"),
    "deep in a package": ("import shop.parts.last", "return shop.parts.last.scale * o"),
    "relative": ("__package__ = 'shop'", "from .units import scale; return scale * o"),
}
CHANGED = {"by a package": "shop/units.py", "by a package, from": "shop/units.py", "relative": "shop/units.py"}


@pytest.mark.parametrize("kind", OWN_LOSSES)
def test_a_loss_is_named_by_all_modules_of_ones_own_that_it_imports(kind, tmp_path, monkeypatch):
    for name, text in OWN_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before, body = OWN_LOSSES[kind]

    def name():
        for module in [m for m in sys.modules if m.split(".")[0] in ("helpers", "deeper", "shop", "other")]:
            monkeypatch.delitem(sys.modules, module)
        return loss_name(from_source(1.0, f"{before}\ndef loss(o, t):\n  {body}"))

    first = name()
    (tmp_path / "other.py").write_text("scale = 3\n")
    assert name() == first
    changed = CHANGED.get(kind, "shop/parts/last.py" if "deep" in kind else "deeper.py")
    (tmp_path / changed).write_text("scale = 2\n")
    assert name() != first


@pytest.mark.parametrize("body", ["kept.rate * o", "kept.inner.rate * o", "(lambda: kept.scaled(o))()"])
def test_a_loss_is_named_by_what_modules_hold_now(body, monkeypatch):
    """A value set in a session, and not the one in the file."""
    kept, inner = types.ModuleType("kept"), types.ModuleType("inner")
    kept.inner, kept.rate, inner.rate = inner, 1, 1
    exec("def scaled(o): return rate * o", vars(kept))
    loss = from_source(1.0, f"def loss(o, t): return {body}")
    loss.__globals__["kept"] = kept
    monkeypatch.setattr(naming, "_from_library", lambda module: module not in (kept, inner))
    captured = eval(f"lambda kept: lambda o, t: {body}")(kept)
    for one in (loss, captured):
        first = loss_name(one)
        assert loss_name(one) == first
        kept.rate = inner.rate = 2
        assert loss_name(one) != first
        kept.rate = inner.rate = 1
        assert loss_name(one) == first


def test_what_libraries_import_is_not_followed():
    loss = from_source(
        1.0, "def loss(o, t):\n  import json, fimoda_lib.tasks as tasks\n  return tasks.squared_error(o, t)"
    )
    assert sources.imported_inside(loss.__code__, None) == "" == sources.source(F)


def test_a_function_that_calls_itself_has_a_name():
    text = "def loss(o, t, k=2): return loss(o, t, k - 1) if k else o"
    assert loss_name(from_source(1, text)) == loss_name(from_source(1, text))


@pytest.fixture(scope="module")
def elsewhere():
    """What another process prints that has imported nothing but `spread`, and then names the losses."""
    code = """
import sys, fimoda_lib.run.spread
print({"dask", "distributed"} & set(sys.modules))
from test_naming import KINDS, loss_name
import torch
o = torch.rand(4, 2)
for kind in KINDS:
    loss = kind(1.0)
    try:
        for _ in range(20):  # Python rewrites code that runs often
            loss(o, o)
    except Exception:
        pass
    print(loss_name(loss))
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))),
        "PYTHONHASHSEED": "7",
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_names_are_the_same_in_another_process_and_after_use(elsewhere):
    assert elsewhere[1:] == [loss_name(kind(1.0)) for kind in KINDS]


def test_one_process_needs_no_dask(elsewhere):
    assert elsewhere[0] == "set()"


def test_what_has_no_lasting_name_is_refused():
    generator = (x for x in [1])
    message = refusal(loss_name, lambda o, t: next(generator), error=ValueError)
    assert "The loss holds a generator" in message and "keep numbers" in message


# Models


def test_models_that_repr_does_not_tell_apart_have_different_names():
    heads = [nn.MultiheadAttention(8, k) for k in (2, 4)]
    assert repr(heads[0]) == repr(heads[1]) and model_name(heads[0]) != model_name(heads[1])
    layers = [nn.TransformerEncoderLayer(4, 1, 8, activation=f) for f in (torch.tanh, torch.sigmoid)]
    assert repr(layers[0]) == repr(layers[1]) and model_name(layers[0]) != model_name(layers[1])
    texts = ["torch.relu(self.a(x))", "torch.tanh(self.a(x))"]
    models = []
    for text in texts:
        scope = {"nn": nn, "torch": torch}
        exec(
            "class Net(nn.Module):\n"
            "  def __init__(self, k=1):\n    super().__init__()\n    self.a, self.k = nn.Linear(2, 2), k\n"
            f"  def forward(self, x): return {text}",
            scope,
        )
        models.append(scope["Net"])
    assert repr(models[0]()) == repr(models[1]()) and model_name(models[0]()) != model_name(models[1]())
    assert model_name(nn.Sequential(models[0]())) != model_name(nn.Sequential(models[1]()))
    assert model_name(models[0](1)) != model_name(models[0](2))
    assert model_name(models[0]()) == model_name(models[0]())  # weights are not part of it: they travel as parameters


def test_an_edited_model_or_loss_is_not_found_in_the_store(tmp_path):
    """The whole way: same names and data, another forward pass."""
    import dataclasses

    from fimoda_lib.training.further_training import further_train

    task, params = tiny()
    settings = dict(optimizer="sgd", learning_rate=0.05, batch_size=5, epochs=1, seeds=[0], left_out=[0])
    results = []
    for text in ("torch.tanh", "torch.sin"):
        scope = {"nn": nn, "torch": torch}
        exec(f"class Act(nn.Module):\n  def forward(self, x): return {text}(x)", scope)
        edited = dataclasses.replace(task, model=nn.Sequential(task.model[0], scope["Act"](), task.model[2]))
        results.append(further_train(edited, params, **settings, store=tmp_path, progress=False))
    assert len(list(tmp_path.glob("*.nc"))) == 2 and not results[0].full_loss.equals(results[1].full_loss)


def hooked(factor):
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: output * factor)
    return layer


def with_own_forward(factor):
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x * factor
    return layer


def pooled(counted):
    return nn.AvgPool2d(2, padding=1, count_include_pad=counted)


def wrapped(code):
    """A module of one's own inside one of this library."""
    from fimoda_lib.datasets.huggingface import SequenceClassifier

    scope = {"nn": nn}
    exec(f"class Net(nn.Module):\n  config = None\n  def forward(self, x): return x * {code}", scope)
    model = SequenceClassifier.__new__(SequenceClassifier)
    nn.Module.__init__(model)
    model.network = scope["Net"]()
    return model


@pytest.mark.parametrize("make", [hooked, with_own_forward, pooled, wrapped])
def test_what_repr_leaves_out_is_part_of_the_name(make):
    assert model_name(make(True)) == model_name(make(True)) != model_name(make(False))
    assert model_name(nn.AvgPool2d(2)) is None


def test_paths_modes_and_weights_are_no_part_of_the_name():
    class Own(nn.Module):
        def __init__(self, path="a", seed=0):
            super().__init__()
            torch.manual_seed(seed)
            self.layer, self.name_or_path, self.my_hooks, self.num_hooks = nn.Linear(2, 2), path, [print], 3
            self.layer.register_forward_hook(self.seen)

        def seen(self, module, inputs, output):
            return output * 2

    with torch.random.fork_rng():
        inside = [wrapped("2") for _ in range(2)]
        for model, own in zip(inside, (Own("a", 0), Own("b", 1)), strict=True):
            model.network = own
        inside[1].train(False)
        assert model_name(inside[0]) == model_name(inside[1]) is not None
        assert model_name(Own(seed=0)) == model_name(Own(seed=1)) != model_name(Own(path="c"))


def test_buffers_that_no_state_holds_are_not_mistaken_for_each_other(tmp_path):
    import dataclasses

    from fimoda_lib.training.further_training import further_train

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64), persistent=False)

        def forward(self, x):
            return x * self.scale

    task, params = tiny()
    settings = dict(optimizer="sgd", learning_rate=0.05, batch_size=5, epochs=1, seeds=[0], left_out=[0])
    results = []
    for scale in (1.0, 3.0):
        scaled = dataclasses.replace(task, model=nn.Sequential(*task.model, Scaled(scale)))
        results.append(further_train(scaled, params, **settings, store=tmp_path, progress=False))
    assert not results[0].full_loss.equals(results[1].full_loss)
