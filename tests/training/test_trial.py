"""The trial at the door: each thing that a model or a loss must not do has its own sentence, before anything is run."""

import threading

import counting
import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from small_files import refusal
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from fimoda_lib import Task, attribute, cross_entropy, further_train, mean_loss, squared_error, train_final_model
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.derivatives.trajectories import record_full_run
from fimoda_lib.tasks import parameters_of
from fimoda_lib.training import runs, trial

N, Z = 9, 4
RULE = dict(optimizer="sgd", learning_rate=0.05, batch_size=4, progress=False)
FURTHER = dict(**RULE, epochs=1, seeds=[0], left_out=[0, 5])


def data(*shape, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(n, *shape, generator=g), torch.randn(n, 1, generator=g)) for n in (N, Z))


class Own(nn.Module):
    """A linear model with a forward pass of one's own: `forward(linear, x, training)`, x [n, 3]."""

    def __init__(self, forward, inputs=3):
        super().__init__()
        self.linear, self.own = nn.Linear(inputs, 1), forward

    def forward(self, x):
        return self.own(self.linear, x, self.training)


def problem(model, loss=squared_error, train=None, test=None, dtype=torch.float32):
    torch.manual_seed(0)
    parts = data(3)
    task = Task("odd", model.to(dtype), loss, train or parts[0], test or parts[1])
    return task, parameters_of(task.model)


EVALUATING = {
    "attribute": lambda task, params: attribute("grad_dot", task, params),
    "mean_loss": lambda task, params: mean_loss(task, params, task.test),
}
TRAINING = {
    "further_train": lambda task, params: further_train(task, params, **FURTHER),
    "train_final_model": lambda task, _: train_final_model(task, **RULE, epochs=1, seed=0),
    "record_full_run": lambda task, params: record_full_run(task, params, **RULE, steps=2),
    "tangent_train": lambda task, params: tangent_train(task, params, **FURTHER),
    "adjoint_train": lambda task, params: adjoint_train(task, params, **RULE, horizon=2, test=[0]),
}


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(runs.Runner, "train", lambda *_: pytest.fail("training has started"))


def everywhere(task, params, *fragments, calls=(*EVALUATING, *TRAINING)):
    """Every public function refuses the task, in a sentence with these fragments."""
    counting.model("refused")
    for name in calls:
        message = refusal({**EVALUATING, **TRAINING}[name], task, params, error=ValueError)
        assert all(fragment in message for fragment in ("'odd'", *fragments)), (name, message)
        assert "expected" in message, (name, message)


# Random numbers


def test_random_numbers_in_evaluation_are_refused():
    always = Own(lambda linear, x, training: linear(F.dropout(x, 0.5)))
    everywhere(*problem(always), "draws random numbers in evaluation", "training=self.training")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: float(np.random.rand()),
        lambda: float(np.random.default_rng().random()),
        lambda: __import__("random").random(),
        lambda own=torch.Generator().manual_seed(0): float(torch.rand(1, generator=own)),
        lambda calls=iter(range(10**6)): float(next(calls)),
    ],
    ids=["numpy", "generator of numpy", "random", "generator of its own", "count of calls"],
)
def test_random_numbers_from_elsewhere_are_refused(draw):
    noisy = Own(lambda linear, x, training: linear(x) * (1 + draw() if training else 1))
    everywhere(*problem(noisy), "other numbers in a second pass", "numpy", calls=TRAINING)
    assert np.isfinite(attribute("grad_dot", *problem(noisy))).all()  # which only evaluates


NOISE = {
    "functional dropout": lambda linear, x, training: linear(F.dropout(x, 0.5, training)),
    "added noise": lambda linear, x, training: linear(x + 0.3 * torch.randn_like(x) if training else x),
    "a mask drawn by torch.rand": lambda linear, x, training: linear(x) * (not training or torch.rand(len(x), 1) < 0.6),
    "layers that are skipped": lambda linear, x, training: linear(x) * (not training or torch.rand(()) < 0.5),
}  # fmt: skip


def by_hand(task, params, *, seed, removed=None, fraction=0.0, steps=3):
    """Losses [steps, n_test] of the usual loop with `removal="mask"`, whose steps draw their own random numbers."""
    run = plain.train(
        task, params, optimizer="sgd", learning_rate=0.05, batch_size=4, epochs=1, seed=seed, removed=removed,
        removal="mask", fraction=fraction,
    )  # fmt: skip
    losses = []
    for step in range(1, steps + 1):
        torch.manual_seed(seed * 1_000_003 + step)
        losses.append(next(run).numpy())
    return np.stack(losses)


@pytest.mark.parametrize("noise", NOISE)
def test_noise_of_any_kind_is_paired_as_dropout_is(noise):
    task, params = problem(Own(NOISE[noise]), dtype=torch.float64)
    for seed in (0, 7):
        torch.manual_seed(seed + 1)  # nothing depends on it
        gold = further_train(task, params, **{**FURTHER, "seeds": [seed]}, removal="mask", evaluate=[1, 2, 3])
        full = by_hand(task, params, seed=seed)
        np.testing.assert_allclose(gold.full_loss[0], full, rtol=1e-10)
        for i in (0, 5):
            without = by_hand(task, params, seed=seed, removed=i, fraction=1.0)
            np.testing.assert_allclose(gold.delta.sel(seed=seed, left_out=i), without - full, rtol=1e-5, atol=1e-9)
        found = tangent_train(task, params, **{**FURTHER, "seeds": [seed]}, removal="mask", evaluate=[1, 2, 3])
        few = 1e-5
        ahead, behind = (by_hand(task, params, seed=seed, removed=5, fraction=f) for f in (few, -few))
        np.testing.assert_allclose(found.delta.sel(left_out=5)[0], (ahead - behind) / (2 * few), rtol=1e-5, atol=1e-8)
        run = record_full_run(task, params, **RULE, steps=[1, 2, 3], seed=seed)
        np.testing.assert_allclose(
            [task.loss(o, task.test[1].double()).numpy() for o in run.test_outputs[1:]], full, rtol=1e-10
        )
    quiet = further_train(task, params, **FURTHER, removal="mask", fraction=0.0)
    assert (quiet.delta == 0).all()
    with pytest.raises(ValueError, match="compile"):
        further_train(task, params, **FURTHER, compile=True)
    counting.model("noise")


def test_functional_dropout_is_dropout_of_a_module():
    """To the last digit, with every removal; and stored results of the two are told from a model without."""
    module = problem(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)))[0]
    function, _ = problem(Own(NOISE["functional dropout"]))
    with torch.no_grad():
        for mine, other in zip(function.model.parameters(), module.model.parameters(), strict=True):
            mine.copy_(other)
    for removal in ("drop", "mask", "subtract"):
        a, b = (further_train(t, parameters_of(t.model), **FURTHER, removal=removal) for t in (module, function))
        np.testing.assert_array_equal(a.delta, b.delta)
        assert abs(a.delta).max() > 1e-4


def test_seeds_in_threads_do_not_disturb_each_other():
    task, params = problem(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    options = {**FURTHER, "epochs": 5}
    alone = {seed: further_train(task, params, **{**options, "seeds": [seed]}).delta for seed in range(4)}
    torch.manual_seed(3)
    before, found = torch.get_rng_state(), {}

    def run(seed):
        found[seed] = further_train(task, params, **{**options, "seeds": [seed]}).delta

    threads = [threading.Thread(target=run, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in alone.items():
        np.testing.assert_array_equal(found[seed], expected)
    assert torch.equal(torch.get_rng_state(), before)


# Instances that depend on each other


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Linear(20, 1)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].flatten(1))


def test_attention_over_instances():
    parts = dict(zip(("train", "test"), data(5, 4), strict=True))
    everywhere(*problem(Attention(False), **parts), "which others are beside it", "batch_first=True")
    assert np.isfinite(attribute("grad_dot", *problem(Attention(True), **parts))).all()


def test_statistics_of_a_batch_of_ones_own():
    centred = Own(lambda linear, x, training: linear(x - x.mean(0)))
    everywhere(*problem(centred), "which others are beside it", "statistics of a batch")
    in_training = Own(lambda linear, x, training: linear(x - x.mean(0) if training else x))
    everywhere(*problem(in_training), "which others are beside it", calls=TRAINING)


@pytest.mark.parametrize(
    "other",
    [lambda x: x.roll(1, 0), lambda x: x.flip(0), lambda x: x[torch.randperm(len(x))], lambda x: x.amax(0)],
    ids=["the one before", "mirrored", "mixup", "largest"],
)
def test_instances_that_are_mixed_with_others_in_training_alone(other):
    mixing = Own(lambda linear, x, training: linear(0.7 * x + 0.3 * other(x) if training else x))
    everywhere(*problem(mixing), "which others are beside it", calls=TRAINING)


@pytest.mark.parametrize(
    ("loss", "fragments"),
    [
        (lambda o, t: (o[:, 0] - t).square().mean(1), ["depends on which others", "broadcast", "(3, 1)"]),
        (lambda o, t: (o[:, 0] - t).square(), ["shape (2, 2) for 2 instances", "not reduced"]),
        (lambda o, t: (o - t).square()[:, 0] / (o - t).square().mean(), ["depends on which others"]),
        (nn.MSELoss(reduction="none"), ["shape (2, 1)", "losses.squeeze(1)"]),
        (lambda o, t: (o - t).square().mean(), ["shape ()"]),
        (lambda o, t: (o - t).square().mean(0), ["shape (1,) for 2 instances"]),
        (lambda o, t: (o - t).square()[:, 0].tolist(), ["no tensor but"]),
    ],
    ids=["broadcast", "a matrix", "normalised", "a column", "reduced", "over instances", "a list"],
)
def test_losses_that_mix_instances(loss, fragments):
    everywhere(*problem(nn.Linear(3, 1), loss), *fragments)


# What is handed in stays as it is


def in_place(linear, x, training):
    x -= 1
    return linear(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_changed_in_place(dtype):
    parts = {k: tuple(t.to(dtype) for t in part) for k, part in zip(("train", "test"), data(3), strict=True)}
    task, params = problem(Own(in_place), **parts, dtype=dtype)
    before = [t.clone() for part in (task.train, task.test) for t in part]
    everywhere(task, params, "changes its inputs in place", "x - 1")
    after = [t for part in (task.train, task.test) for t in part]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("what", ["targets", "outputs"])
def test_losses_that_change_what_they_are_given(what):
    def loss(outputs, targets):
        changed, other = (targets, outputs) if what == "targets" else (outputs, targets)
        changed -= other
        return changed.square().sum(1)

    everywhere(*problem(nn.Linear(3, 1), loss), f"changes its {what} in place")


class Counting(Own):
    def __init__(self):
        super().__init__(lambda linear, x, training: linear(x))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class Scheduled(Own):
    """Counts its passes in training, and is another model after the twelfth."""

    def __init__(self):
        super().__init__(lambda linear, x, training: linear(x))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1 if self.calls < 12 else 2)


class Averaging(Own):
    """Keeps a moving average of its inputs in a plain tensor, to be used later."""

    def __init__(self):
        super().__init__(lambda linear, x, training: linear(x))
        self.mean = torch.zeros(3)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x)


class Ledger:
    def __init__(self):
        self.passes = {"seen": [0]}


class Within(Own):
    """Counts passes, or keeps what it saw, in an object of its own."""

    def __init__(self, note):
        super().__init__(lambda linear, x, training: linear(x))
        self.ledger, self.note = Ledger(), note

    def forward(self, x):
        self.note(self.ledger.passes, x)
        return super().forward(x)


def count(passes, x):
    passes["seen"][0] += 1


def test_models_that_count_within_what_they_keep():
    everywhere(*problem(Within(count)), "changes its own \"ledger.passes['seen'][0]\"", "no count of calls")
    grows = Within(lambda passes, x: passes["seen"].append(x.detach()))  # what was there stays
    assert np.isfinite(further_train(*problem(grows), **FURTHER).delta).all()


def test_a_setting_within_what_a_model_keeps_is_seen_when_it_changes():
    model = Own(lambda linear, x, training: linear(F.dropout(x, model.settings["rates"][0], training)))
    model.settings = {"rates": [0.0]}
    task, params = problem(model, dtype=torch.float64)
    assert abs(further_train(task, params, **FURTHER).delta).max() > 0
    model.settings["rates"][0] = 0.5
    fresh = Task("odd", model, task.loss, task.train, task.test)
    found, expected = (further_train(t, params, **FURTHER).delta for t in (task, fresh))
    np.testing.assert_array_equal(found, expected)


def test_models_that_remember_other_passes():
    everywhere(*problem(Scheduled()), "changes its own 'calls'", "no count of calls", calls=TRAINING)
    everywhere(*problem(Averaging()), "changes its own 'mean'")
    assert np.isfinite(further_train(*problem(Keeps()), **FURTHER).delta).all()  # of one pass alone


def test_a_model_that_is_changed_between_calls_is_tried_anew():
    def forward(linear, x, training):
        return linear(F.dropout(x, model.p, training) - (x.mean(0) if model.mixes else 0))

    model = Own(forward)
    model.p, model.mixes = 0.0, False
    task, params = problem(model, dtype=torch.float64)
    assert abs(further_train(task, params, **FURTHER).delta).max() > 0
    model.p = 0.5
    fresh = Task("odd", model, task.loss, task.train, task.test)
    for removal in ("drop", "mask", "subtract"):
        found, expected = (further_train(t, params, **FURTHER, removal=removal).delta for t in (task, fresh))
        np.testing.assert_array_equal(found, expected)
    model.mixes = True
    everywhere(task, params, "which others are beside it")


def test_models_that_change_themselves():
    everywhere(*problem(Counting()), "changes its own 'seen'", "model.eval()")
    norm = nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten(), nn.Linear(3, 1)
    )
    everywhere(*problem(norm), "changes its own '1.running_mean'", calls=TRAINING)  # fmt: skip


# Models that torch.func cannot differentiate


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class NewTanh(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Tanh.backward


class WrongTanh(NewTanh):
    """Its derivative, under vmap alone, is another."""

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient

    @staticmethod
    def vmap(info, in_dims, x):
        return x.tanh(), in_dims[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cells(x[:, None].expand(-1, 2, -1))[0][:, -1])


def stored(linear, x, training):
    out = torch.zeros(len(x), 1)
    out[:, 0] = linear(x)[:, 0]
    return out


def masked(linear, x, training):
    h = linear(x)
    h[h < 0] = 0
    return h


def nested(linear, x, training):
    mask = torch.arange(3) < torch.ones(len(x), 1)
    return linear(torch._nested_tensor_from_mask(x[:, :, None], mask).to_padded_tensor(0.0, (len(x), 3, 1))[:, :, 0])


def branching(linear, x, training):
    return torch.stack([o if o > 0 else 2 * o for o in linear(x)[:, 0]])[:, None]


def by_items(linear, x, training):
    return linear(x) * torch.tensor([o.item() for o in linear(x)])[:, None]


CANNOT = {  # what it says, and the model, or its forward pass
    "LSTM": ("recurrent layer LSTM", Recurrent(nn.LSTM)),
    "GRU": ("recurrent layer GRU", Recurrent(nn.GRU)),
    "RNN": ("recurrent layer RNN", Recurrent(nn.RNN)),
    "checkpointing": ("it uses checkpointing", lambda f, x, _: checkpoint(f, x, use_reentrant=False)),
    "reentrant": ("reentrant checkpointing", lambda f, x, _: checkpoint(f, x, use_reentrant=True)),
    "a branch": ("branches on data", branching),
    "item": (".item()", by_items),
    "a Function": ("autograd.Function without setup_context", lambda f, x, _: Tanh.apply(f(x))),
    "no rule": ("autograd.Function without a rule for vmap", lambda f, x, _: NewTanh.apply(f(x))),
    "NumPy": ("leaves PyTorch", lambda f, x, _: f(x) * torch.from_numpy(f(x).detach().numpy())),
    "a mask": ("boolean mask", masked),
    "nested tensors": ("it uses nested tensors", nested),
    "a filled tensor": ("writes batched values", stored),
    "no gradient": ("do not depend on the parameters", lambda f, x, _: f(x).detach()),
    "a script": ("scripted model", nn.Linear(3, 1)),
}


@pytest.mark.filterwarnings("ignore:(The .grad attribute|None of the inputs):UserWarning")
@pytest.mark.parametrize("kind", CANNOT)
def test_models_that_torch_func_cannot_differentiate_are_named(kind):
    said, model = CANNOT[kind]
    model = torch.jit.script(model) if kind == "a script" else model if isinstance(model, nn.Module) else Own(model)
    everywhere(*problem(model), said, calls=("attribute", "further_train", "record_full_run"))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_embeddings_with_sparse_gradients():
    tokens = {part: (torch.arange(n)[:, None] % 4, torch.randn(n, 1)) for part, n in (("train", N), ("test", Z))}
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Flatten(), nn.Linear(3, 1))
    everywhere(*problem(model, **tokens), "sparse=False", calls=("attribute",))
    dense = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(3, 1))
    assert np.isfinite(attribute("grad_dot", *problem(dense, **tokens))).all()


def test_a_derivative_that_is_another_under_torch_func():
    def hooked(linear, x, training):
        class Now(NewTanh):
            generate_vmap_rule = True
            backward = WrongTanh.backward if torch._C._functorch.peek_interpreter_stack() else Tanh.backward

        return Now.apply(linear(x))

    everywhere(*problem(Own(hooked)), "gradients", "differ from those of a plain backward pass", calls=("attribute",))


@pytest.mark.filterwarnings("ignore")  # nested tensors are new
@pytest.mark.parametrize("layout", ["sparse", "packed", "nested"])
def test_inputs_whose_rows_cannot_be_taken(layout):
    (x, y), test = data(3)
    inputs = {
        "sparse": x.to_sparse(),
        "packed": nn.utils.rnn.pack_padded_sequence(x[:, None], torch.ones(N, dtype=torch.long), batch_first=True),
        "nested": torch.nested.nested_tensor(list(x)),
    }[layout]
    task, params = problem(nn.Linear(3, 1), train=(inputs, y), test=test)
    everywhere(task, params, layout, "dense" if layout != "packed" else "pad_packed_sequence")


@pytest.mark.parametrize("size", [1, 2])
def test_models_that_fail_on_one_part_or_size(size):
    def picky(linear, x, training):
        if len(x) == size:
            raise RuntimeError("not this size")
        return linear(x)

    everywhere(*problem(Own(picky)), "fails on its", "not this size", calls=("attribute", "further_train"))


class Keeps(Own):
    def __init__(self):
        super().__init__(lambda linear, x, training: linear(x))

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def test_models_that_cannot_be_copied():
    task, params = problem(Keeps())
    task.model(task.train[0])  # the user tries it
    everywhere(task, params, "cannot be copied", "build it anew")


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore")  # the old forms are deprecated
@pytest.mark.parametrize(
    ("dress", "advice"),
    [
        (pruned, "prune.remove(module, 'weight')"),
        (nn.utils.weight_norm, "nn.utils.parametrizations.weight_norm"),
    ],
    ids=["pruned", "weight_norm"],
)
def test_layers_whose_weights_are_made_by_a_hook(dress, advice):
    everywhere(*problem(nn.Sequential(dress(nn.Linear(3, 2)), nn.Linear(2, 1))), "cannot be copied", advice)


@pytest.mark.filterwarnings("ignore")  # quantisation has moved
def test_quantised_models_are_named():
    half = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 1)), {nn.Linear})
    everywhere(*problem(half), "'1' of task 'odd' is quantised", "give the model that was quantised")


@pytest.mark.parametrize("draw", [torch.normal, torch.bernoulli], ids=["normal", "bernoulli"])
def test_draws_from_distributions_that_a_model_computes(draw):
    drawing = Own(lambda linear, x, training: linear(x) * (draw(linear(x).sigmoid()) if training else 1))
    everywhere(*problem(drawing), "draws from distributions", "torch.rand_like(p) < p", calls=["further_train"])


@pytest.mark.filterwarnings("ignore")  # the layout CSR is new
@pytest.mark.parametrize("how", ["buffer", "attribute"])
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_sparse_constants_of_a_model(layout, how):
    model = Own(lambda linear, x, training: linear(x @ model.graph))
    graph = torch.eye(3).to_sparse(layout=getattr(torch, layout))
    if how == "buffer":
        model.register_buffer("graph", graph)
    else:
        model.graph = graph
    everywhere(*problem(model), f"'graph' of task 'odd' is a {layout} tensor", "to_dense()")


def test_models_whose_parameters_have_no_shape_yet():
    model = nn.LazyLinear(1)
    assert "'weight' has no shape yet" in refusal(parameters_of, model, error=ValueError)
    model(torch.zeros(2, 3))
    assert parameters_of(model)["weight"].shape == (1, 3)


# Names


@pytest.mark.parametrize("name", ["income/year", "a/b/c", "per cent %", "%2F", "größe", "a b ", "x/"])
def test_parameters_of_any_name_are_stored(name, tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Linear(3, 1)})

        def forward(self, x):
            return self.parts[name](x)

    task, params = problem(Named())
    options = dict(**RULE, epochs=1, seed=0)
    without, first, second = (train_final_model(task, **options, store=s) for s in (None, tmp_path, tmp_path))
    assert list(first) == list(second) == list(params) == [f"parts.{name}.weight", f"parts.{name}.bias"]
    assert all(torch.equal(without[k], first[k]) and torch.equal(first[k], second[k]) for k in params)
    assert len(list(tmp_path.glob("final-*.nc"))) == 1
    gold = further_train(task, first, **FURTHER, store=tmp_path)
    assert np.array_equal(gold.delta, further_train(task, first, **FURTHER, store=tmp_path).delta)


def test_the_trial_leaves_no_trace(no_training):
    task, params = problem(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)))
    model, torch_state, numpy_state = repr(task.model.state_dict()), torch.get_rng_state(), np.random.get_state()[1]
    attribute("cg", task, params)
    with pytest.raises(pytest.fail.Exception, match="training has started"):
        further_train(task, params, **FURTHER)
    assert repr(task.model.state_dict()) == model and task.model.training
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


def test_another_thread_that_draws_is_not_the_model(monkeypatch):
    """A worker of dask draws from Python's generator whenever it likes."""
    states = iter([0, 1])  # it moves during the first pass, and then stays
    monkeypatch.setattr(trial, "elsewhere", lambda: next(states, 1))
    task, params = problem(nn.Linear(3, 1))
    assert not further_train(task, params, **FURTHER).diverged.any()


@pytest.mark.parametrize("call", [*EVALUATING.values(), *TRAINING.values()])
@pytest.mark.parametrize("words", ["CUDA out of memory.", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."])
def test_a_device_without_memory_is_not_taken_for_a_wrong_model(call, words):
    def full(linear, x, training):
        raise (torch.OutOfMemoryError if "out" in words else RuntimeError)(words)

    with pytest.raises(torch.OutOfMemoryError, match="memory is full.*--jobs"):
        call(*problem(Own(full)))


# What ties a model to more than its parameters, inputs and outputs


class Tied(nn.Module):
    """Two layers, the second of which is reached as `reach(self, h)`; `prepare(self)` may tie them in other ways."""

    def __init__(self, reach=None, prepare=lambda model: None):
        super().__init__()
        self.first, self.second, self.reach = nn.Linear(3, 3), nn.Linear(3, 1), reach
        prepare(self.double())

    def forward(self, x):
        h = self.first(x).tanh()
        return self.reach(self, h) if self.reach else self.second(h)


def through_a_lambda(model):
    model.reach = lambda _, h: model.second(h)


def penalised(model):
    return lambda o, t: squared_error(o, t) + sum(p.square().sum() for p in model.parameters())


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, o, t):
        return squared_error(o, t) * torch.exp(-self.log_variance) + self.log_variance


def a_view(model):
    model.register_buffer("view", model.second.weight.detach().t())


def an_attribute(model):
    model.view = model.first.weight.data[1:]


def of_one_memory(model):
    model.third = nn.Linear(3, 3)
    model.third.weight = nn.Parameter(model.first.weight.data)


def clipped(model, h):
    model.second.weight.data.clamp_(min=0)
    return model.second(h)


class Normalised(torch.autograd.Function):
    """Normalises gradients over a batch: a rule of one's own that mixes instances."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g / (g.square().mean() + 1).sqrt() / len(g)


class Centred(Normalised):
    """Takes the mean over a batch away from gradients."""

    @staticmethod
    def backward(ctx, g):
        return g - g.mean(0)


TIES = {  # a model, a loss of it, and words of the refusal
    "a lambda that holds the model": (lambda: Tied(prepare=through_a_lambda), None, "The model of task"),
    "layers in a plain list": (
        lambda: Tied(lambda model, h, hidden=[nn.Linear(3, 1).double()]: hidden[0](h)), None, "not among the parameters"
    ),
    "a penalty in the loss": (Tied, penalised, "weight_decay="),
    "a loss that learns": (Tied, lambda _: Weighted(), "The loss of task"),
    "a buffer that is a view": (lambda: Tied(prepare=a_view), None, "'second.weight' and 'view' of task"),
    "an attribute that is a view": (lambda: Tied(prepare=an_attribute), None, "share memory"),
    "two parameters in one memory": (lambda: Tied(prepare=of_one_memory), None, "'first.weight' and 'third.weight'"),
    "a hook on a gradient": (
        lambda: Tied(prepare=lambda model: model.first.weight.register_hook(lambda g: 0 * g)), None, "handle.remove()"
    ),
    "weights that are clipped": (lambda: Tied(clipped), None, "changes its own 'second.weight'"),
    "weights that may be clipped": (
        lambda: Tied(clipped, lambda model: model.second.weight.data.abs_()), None, "changes its own 'second.weight'"
    ),
    "embeddings of a largest norm": (
        lambda: nn.Sequential(nn.Embedding(7, 3, max_norm=0.1), nn.Flatten(), nn.Linear(9, 1)), None, "max_norm"
    ),
    "embeddings with shared gradients": (
        lambda: nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(9, 1)),
        None, "scale_grad_by_freq",
    ),
}  # fmt: skip


@pytest.mark.parametrize("tie", TIES)
def test_what_a_copy_of_the_model_would_not_see(tie):
    make, loss, fragment = TIES[tie]
    model = make()
    tokens = [(torch.arange(3 * n).reshape(n, 3) % 7, data(3)[0][1][:n]) for n in (N, Z)]
    parts = tokens if "embeddings" in tie else (None, None)
    task, params = problem(model, loss(model) if loss else squared_error, *parts, dtype=torch.float64)
    before = {k: p.clone() for k, p in params.items()}
    everywhere(task, params, fragment)
    assert all(torch.equal(p, before[k]) for k, p in params.items())


def test_gradients_that_mix_instances():
    for rule, masks in ((Normalised, False), (Centred, False), (Normalised, True), (Centred, True)):
        mixing = Tied(
            lambda model, h, rule=rule, on=masks: model.second(rule.apply(F.dropout(h, 0.5, on and model.training)))
        )
        everywhere(*problem(mixing, dtype=torch.float64), "gradient", "depends on which others", calls=TRAINING)


def test_what_is_tied_in_ways_that_are_seen():
    """One parameter in two places, one that is fixed, views that are taken anew in every pass."""
    model = Tied(
        lambda model, h: model.second(h @ model.first.weight.t()[:, :3]), lambda m: m.second.weight.data.abs_()
    )
    model.again, model.first.bias.requires_grad = model.first, False
    model.fixed = nn.Linear(1, 1).requires_grad_(False).weight.data.expand(3, 1)
    task, params = problem(model, dtype=torch.float64)
    gold = further_train(task, params, **FURTHER, removal="mask", evaluate=[1, 2, 3])
    np.testing.assert_allclose(gold.full_loss[0], by_hand(task, params, seed=0), rtol=1e-10)


def test_a_derivative_in_the_inputs_is_no_tie():
    """Of a forward pass that makes a tensor anew to differentiate in it: what cannot be done has its own sentence."""

    def force(linear, x, training):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(linear(x.sin()).sum(), x, create_graph=True)[0][:, :1]

    everywhere(*problem(Own(force)), "derivatives in its forward pass", "torch.func.grad", calls=["attribute"])


# Numbers, and where they were made


def test_complex_and_empty_parameters():
    for extra, words in ((torch.ones(2, dtype=torch.complex64), "complex64"), (torch.zeros(0, 3), "no numbers")):
        task, _ = problem(nn.Linear(3, 1))
        task.model.extra = nn.Parameter(extra)
        for call in (*EVALUATING.values(), *TRAINING.values()):
            message = refusal(call, task, parameters_of(task.model), error=ValueError)
            assert "'extra'" in message and words in message and "expected real ones" in message


@pytest.mark.parametrize("call", [*EVALUATING.values(), *TRAINING.values()])
def test_inference_mode_is_named_and_no_grad_does_no_harm(call):
    task, params = problem(nn.Linear(3, 1), dtype=torch.float64)
    with torch.inference_mode():
        assert "expected torch.no_grad()" in refusal(call, task, params, error=ValueError)
        made = {k: p.clone() for k, p in params.items()}
        inputs = task.train[0].clone()
    odd = problem(nn.Linear(3, 1), train=(inputs, task.train[1]))[0]
    assert "train was made in torch.inference_mode()" in refusal(call, odd, params, error=ValueError)
    if call is not TRAINING["train_final_model"]:
        assert "Parameter 'weight' was made in" in refusal(call, task, made, error=ValueError)
    again, _ = problem(nn.Linear(3, 1), dtype=torch.float64)
    with torch.no_grad():
        found = call(again, params)
    assert str(found) == str(call(task, params)) or not hasattr(found, "shape")


def test_bfloat16_and_wrappers_are_named(tmp_path):
    task, params = problem(nn.Linear(3, 1).bfloat16(), dtype=torch.bfloat16)
    for call in TRAINING.values():
        assert "expected float32 or float64" in refusal(call, task, params, error=ValueError)
    half = {k: p.half() for k, p in params.items()}  # whose squares overflow: clipping would end all training
    mixed = {"weight": params["weight"].float(), "bias": half["bias"]}
    for wrong, words in ((half, "got float16,"), (mixed, "got float16 and float32,")):
        assert words in refusal(TRAINING["further_train"], task, wrong, error=ValueError)
    everywhere(*problem(nn.DataParallel(nn.Linear(3, 1))), "nn.DataParallel", "model.module")


class Merging(nn.Linear):
    """A fixed weight and a trained product of low rank, which goes into that weight in evaluation mode."""

    def __init__(self, inputs, outputs, merges):
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.low, self.rank = nn.Parameter(torch.randn(1, inputs)), nn.Parameter(torch.zeros(outputs, 1))
        self.merges, self.merged = merges, False

    def train(self, mode=True):
        super().train(mode)
        if self.merges and mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.rank @ self.low).detach()
            self.merged = not mode
        return self

    def forward(self, x):
        fixed = nn.functional.linear(x, self.weight, self.bias)
        return fixed if self.merged else fixed + x @ self.low.T @ self.rank.T


class Keeping(nn.Linear):
    """Keeps a multiple of its weight, in evaluation mode."""

    def train(self, mode=True):
        self.kept = None if mode else 2 * self.weight.detach()
        return super().train(mode)

    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight if self.training else self.kept, self.bias)


@pytest.mark.parametrize("model", [lambda: Merging(3, 1, True), lambda: nn.Sequential(Keeping(3, 1))])
def test_models_that_keep_weights_for_evaluation_are_named(model):
    everywhere(*problem(model()), "depend on the parameters that the model holds")
    attribute("grad_dot", *problem(Merging(3, 1, False)))


def test_a_forward_pass_that_was_edited_is_tried_again(monkeypatch):
    task, params = problem(nn.Sequential(Keeping(3, 1)), dtype=torch.float64)
    monkeypatch.setattr(Keeping, "forward", nn.Linear.forward)
    attribute("grad_dot", task, params)
    monkeypatch.setattr(Keeping, "forward", lambda self, x: nn.Linear.forward(self, x - x.mean(0)))
    everywhere(task, params, "depend on which others are beside it")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("value", [7, -1])
@pytest.mark.parametrize("what", ["classes", "tokens"])
def test_classes_and_tokens_that_do_not_exist_are_named_with_their_instance(what, value, part):
    """In an instance that is none of the few that are tried first."""
    parts = {}
    for name, n in (("train", 9), ("test", 7)):
        tokens, classes = torch.arange(3 * n).reshape(n, 3) % 7, torch.arange(n) % 4
        if name == part:
            ({"classes": classes[:, None], "tokens": tokens}[what])[5, 0] = value
        parts[name] = tokens, classes
    model = nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 4))
    task, params = problem(model, cross_entropy, **parts, dtype=torch.float64)
    calls = [*EVALUATING, *TRAINING] if part == "test" else [k for k in ("attribute", *TRAINING)]
    calls = [k for k in calls if k != "train_final_model" or part == "train"]
    everywhere(task, params, f"fails on its {part} instance 5", calls=calls)
