"""EK-FAC against a dense construction written as loops over instances and positions, and against kronfluence."""

import copy
import gc
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import tiny
from torch import nn

from fimoda_lib.derivatives import gradients
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.methods import attribute
from fimoda_lib.methods.ekfac import EkfacFactors, pseudo_gradients
from fimoda_lib.methods.ekfac_moments import _input_moment
from fimoda_lib.tasks import Task, cross_entropy, parameters_of, take

ALL = torch.arange(23)
ROWS = {"train": [3, 0, 11, 7], "test": [4, 1]}
CONV = dict(kernel_size=(2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2))


def conv_net():
    """A convolution, an activation that overwrites its output, and a linear layer."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(2, 3, **CONV), relu=nn.ReLU(inplace=True), flat=nn.Flatten(), linear=nn.Linear(3 * 3 * 2, 3)
        )
    )


class Tokens(nn.Module):
    """A layer that sees several positions and is called twice, one without a bias, and parameters outside layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        return self.out(self.frozen(torch.tanh(self.mix(torch.tanh(self.mix(self.norm(x)))))).mean(1))


def problem(name):
    """(task, params): "regression" and "classification" are the tiny MLP."""
    if name in ("regression", "classification"):
        return tiny(name, outputs=2 if name == "regression" else 3)
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = {"conv": conv_net, "tokens": Tokens}[name]().double()
    shape, classes = {"conv": (2, 4, 6), "tokens": (5, 3)}[name], {"conv": 3, "tokens": 2}[name]
    data = [
        (torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(classes, (n,), generator=g))
        for n in (23, 5)
    ]
    return Task(name, model, cross_entropy, *data), parameters_of(model)


# --- the dense construction ------------------------------------------------------------------------------------------


def layer_rows(name, p, x, direction):
    """For one instance: layer -> (rows a with 1 appended, rows s), from the output's pseudo-gradient."""
    if name == "conv":
        z = F.conv2d(
            x[None],
            p["conv.weight"],
            p["conv.bias"],
            stride=CONV["stride"],
            padding=CONV["padding"],
            dilation=CONV["dilation"],
        ).requires_grad_()
        h = F.relu(z).flatten()
        s = torch.autograd.grad(h @ (p["linear.weight"].T @ direction), z)[0][0]
        padded = np.pad(x.numpy(), ((0, 0), (1, 1), (0, 0)))
        rows = [
            [padded[k, 2 * r + i, c + 2 * j] for k in range(2) for i in range(2) for j in range(3)] + [1]
            for r in range(s.shape[1])
            for c in range(s.shape[2])
        ]
        return {
            "conv": (np.array(rows), s.flatten(1).T.numpy()),
            "linear": (np.append(h.detach().numpy(), 1)[None], direction.numpy()[None]),
        }
    h = torch.tanh(p["0.weight"] @ x + p["0.bias"])
    s = (p["2.weight"].T @ direction) * (1 - h**2)
    return {"0": (np.append(x, 1)[None], s.numpy()[None]), "2": (np.append(h, 1)[None], direction.numpy()[None])}


def dense(name, task, params, directions, rows, *, corrected=True, bias="column"):
    """Layer -> (eigenvalues, one flat vector of all parameters for each), the curvature being sum of value * vvᵀ."""
    parts = [layer_rows(name, params, task.train[0][i], d) for i, d in zip(rows.tolist(), directions, strict=True)]
    ends = np.cumsum([value.numel() for value in params.values()]).tolist()
    flat_at = dict(zip(params, [0, *ends], strict=False))
    result = {}
    for layer in parts[0]:
        A = sum(a.T @ a for a, _ in (part[layer] for part in parts)) / len(rows)
        S = sum(s.T @ s for _, s in (part[layer] for part in parts)) / len(rows)
        (value_A, Q_A), (value_S, Q_S) = np.linalg.eigh(A), np.linalg.eigh(S)
        values, vectors = [], []
        for o in range(len(S)):
            for j in range(len(A)):
                matrix = np.outer(Q_S[:, o], Q_A[:, j])
                squares = [float((matrix * (s.T @ a)).sum()) ** 2 for a, s in (part[layer] for part in parts)]
                values.append(np.mean(squares) if corrected else value_S[o] * value_A[j])
                weight, constant = matrix[:, :-1].reshape(-1), matrix[:, -1]
                if bias == "appended":  # dattri's mistake: weight and bias end to end, cut into rows of in + 1
                    weight, constant = np.split(matrix.reshape(-1), [weight.size])
                vectors.append(np.zeros(ends[-1]))
                vectors[-1][flat_at[f"{layer}.weight"] :][: weight.size] = weight
                vectors[-1][flat_at[f"{layer}.bias"] :][: constant.size] = constant
        result[layer] = np.array(values), np.array(vectors)
    return result


def dense_scores(layers, g_test, g_train, damping=None, factor=1.0):
    """g_zᵀ P gᵢ with P a dense matrix; damping None: 0.1 times each layer's mean eigenvalue, times `factor`."""
    P = sum(
        np.einsum("e,ep,eq->pq", 1 / (v + factor * (0.1 * v.mean() if damping is None else damping)), u, u)
        for v, u in layers.values()
    )
    return g_test @ P @ g_train.T


def loss_gradients(task, params, instances, rows):
    """[n, P] by plain autograd, one instance at a time."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    result = []
    for i in rows:
        outputs = torch.func.functional_call(task.model, leaves, (instances[0][i : i + 1],))
        loss = task.loss(outputs, instances[1][i : i + 1])[0]
        result.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))]))
    return torch.stack(result).numpy()


def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("name", ["regression", "classification", "conv"])
def test_agrees_with_the_dense_construction_and_with_nothing_else(name, fisher):
    task, params = problem(name)
    rows = torch.arange(2, 19)  # the curvature is not that of the scored instances
    directions = pseudo_gradients(Gradients(task, params), rows, fisher, seed=3)
    g_test = loss_gradients(task, params, task.test, ROWS["test"])
    g_train = loss_gradients(task, params, task.train, ROWS["train"])
    layers = dense(name, task, params, directions, rows)
    hyper = dict(**ROWS, curvature=rows, fisher=fisher, seed=3)
    ours, fixed = attribute("ekfac", task, params, **hyper), attribute("ekfac", task, params, damping=0.03, **hyper)
    assert error(ours.values, dense_scores(layers, g_test, g_train)) < 1e-8
    assert error(fixed.values, dense_scores(layers, g_test, g_train, damping=0.03)) < 1e-8
    other_rows = dense(name, task, params, pseudo_gradients(Gradients(task, params), ALL, fisher, 3), ALL)
    kfac, scrambled = (
        dense(name, task, params, directions, rows, **mistake)
        for mistake in ({"corrected": False}, {"bias": "appended"})
    )
    wrong = {
        "identity": g_test @ g_train.T,
        "damping": dense_scores(layers, g_test, g_train, factor=2),
        "sign": -dense_scores(layers, g_test, g_train),
        "K-FAC": dense_scores(kfac, g_test, g_train),
        "bias": dense_scores(scrambled, g_test, g_train),
        "curvature": dense_scores(other_rows, g_test, g_train),
    }
    assert {what: error(ours.values, scores) > 1e-2 for what, scores in wrong.items()} == dict.fromkeys(wrong, True)


@pytest.mark.parametrize("loss", ["squared error", "cross-entropy", "another"])
def test_pseudo_gradients_have_the_curvature_of_the_loss_as_covariance(loss):
    task, params = problem("regression" if loss == "squared error" else "classification")
    if loss == "another":
        task = replace(task, loss=lambda outputs, targets: 3 * cross_entropy(outputs, targets))
    params = {key: 3 * value for key, value in params.items()}  # probabilities far from uniform
    task = replace(task, train=take(task.train, torch.arange(3).repeat(4000)))
    at, rows = Gradients(task, params), torch.arange(task.n_train)
    draws = pseudo_gradients(at, rows).unflatten(0, (4000, 3))
    H = at.loss_hessians(at.outputs(at.train(rows[:3])[0]), at.train(rows[:3])[1])
    assert draws.mean(0).abs().max() < 0.1
    assert torch.allclose(torch.einsum("dni,dnj->nij", draws, draws) / len(draws), H, atol=0.06 * H.abs().max().item())
    few = torch.tensor([7000, 2, 3])  # a draw belongs to its instance
    assert torch.allclose(pseudo_gradients(at, few), draws.flatten(0, 1)[few], atol=1e-12)
    assert not torch.allclose(pseudo_gradients(at, few, seed=1), draws.flatten(0, 1)[few], atol=1e-12)


@pytest.mark.parametrize("name", ["classification", "conv", "tokens"])
def test_blocks_rows_and_precision_do_not_matter(name, monkeypatch):
    task, params = problem(name)
    scores = attribute("ekfac", task, params, curvature=range(20))
    few = attribute("ekfac", task, params, curvature=list(range(20))[::-1], **ROWS)
    np.testing.assert_allclose(few, scores.sel(**ROWS), rtol=1e-9, atol=1e-10)
    single = attribute("ekfac", task, params, curvature=range(20), dtype=torch.float32)
    assert single.dtype == np.float32 and error(single.values, scores.values) < 1e-4
    monkeypatch.setattr(gradients, "BLOCK_BYTES", 3 * 8 * sum(p.numel() for p in params.values()))
    np.testing.assert_allclose(attribute("ekfac", task, params, curvature=range(20)), scores, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("odd", ["no label", "soft labels"])
def test_labels_that_are_no_classes_are_taken_as_by_a_loss_of_ones_own(odd):
    """Their curvature is the loss's: none without a label, as much as soft labels sum to."""
    task, params = tiny(kind="classification")
    labels = torch.where(torch.arange(task.n_train) < 15, -100, task.train[1])
    if odd == "soft labels":
        labels = 5 * F.one_hot(task.train[1], 3).to(task.train[0].dtype)
    built_in = replace(task, train=(task.train[0], labels), loss=cross_entropy)
    own = replace(built_in, loss=lambda o, t: F.cross_entropy(o, t, reduction="none"))
    found, expected = (attribute("ekfac", one, params) for one in (built_in, own))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    drawn = pseudo_gradients(Gradients(built_in, params), ALL)[:15]
    assert bool(drawn.any()) == (odd == "soft labels")


def test_a_layer_that_no_gradient_reaches_is_left_out():
    """Its inputs are always zero."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.alive, self.dead = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.alive(x) + self.dead(0 * x)

    task, _ = tiny(outputs=2)
    task = replace(task, model=Branches().to(task.train[0].dtype))
    found = attribute("ekfac", task, parameters_of(task.model))
    assert "dead.weight" in found.attrs["not_covered"]
    alone = replace(task, model=task.model.alive)
    same = attribute("ekfac", alone, parameters_of(alone.model))
    np.testing.assert_allclose(found, same, rtol=1e-9)


def test_the_eigenbasis_is_orthogonal_and_what_no_layer_covers_is_named():
    task, params = problem("tokens")
    at = Gradients(task, params)
    factors = EkfacFactors(at, ALL)
    assert factors.not_covered == ["norm.weight", "norm.bias"] and list(factors.layers) == ["mix", "out"]
    g = at.of_losses(at.train(ALL))
    rotated = factors.to_eigenbasis(g)
    assert rotated.shape == (23, 3 * 4 + 2 * 3) and factors.eigenvalues.shape == (18,)
    back = factors.from_eigenbasis(rotated)
    assert torch.allclose(back[:, 6:], g[:, 6:], atol=1e-12) and not back[:, :6].any()
    assert attribute("ekfac", task, params).attrs["not_covered"] == '["norm.weight", "norm.bias"]'
    # the mean square along every direction of the basis is the eigenvalue
    empirical = EkfacFactors(at, ALL, fisher="empirical")
    assert torch.allclose(empirical.to_eigenbasis(g).square().mean(0), empirical.eigenvalues)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid", "stride": 2},
        {"padding": (2, 1)},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "dilation": 2},
    ],
)
def test_a_convolution_is_a_matrix_on_its_input_rows(options):
    conv = nn.Conv2d(2, 3, (2, 3), **options).double()
    x = torch.randn(4, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1).detach()
    outputs = conv(x).detach().movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(W @ _input_moment(x, conv, True) @ W.T, outputs.T @ outputs)


def test_what_cannot_be_done_is_said():
    task, params = problem("classification")
    for hyper, sentence in [
        ({"fisher": "exact"}, "fisher: got 'exact', expected 'true' or 'empirical'"),
        ({"damping": 0.0}, "expected a positive number or 'recommended'"),
        ({"damping": {"0": 1.0}}, "expected 0, 2"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            attribute("ekfac", task, params, **hyper)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    grouped = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 3, 1, groups=3), nn.Flatten())
    for model, sentence in [
        (nn.LayerNorm(3), "has none that trains"),
        (tied, "with weights of their own"),
        (grouped, "the convolution '1' has 3 groups, expected 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            attribute("ekfac", replace(task, model=model.double()), parameters_of(model))


def test_the_model_is_left_as_it_was_also_after_an_error(monkeypatch):
    task, params = problem("conv")
    task.model.train()
    state = copy.deepcopy(task.model.state_dict())
    attribute("ekfac", task, {k: 2 * v for k, v in params.items()})
    at = Gradients(task, params)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        EkfacFactors(at, ALL)
    for model in (task.model, at.model):
        assert not any(module._forward_hooks for module in model.modules())
    assert task.model.training and all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())


# --- kronfluence -----------------------------------------------------------------------------------------------------


def kronfluence_scores(task, params, folder, dampings):
    pytest.importorskip("kronfluence", reason="kronfluence 1.0.1 is not installed (pip install --no-deps kronfluence)")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task as KronfluenceTask
    from kronfluence.utils.common.factor_arguments import pytest_factor_arguments
    from kronfluence.utils.common.score_arguments import pytest_score_arguments

    class Summed(KronfluenceTask):
        # Its usual path keeps one call only of a layer that is called twice (pairwise_score.py: `=` for `+=`).
        enable_post_process_per_sample_gradient = True

        def compute_train_loss(self, batch, model, sample=False):
            return task.loss(model(batch[0]), batch[1]).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):  # all linear layers by default, frozen or not
            return [
                name
                for name, module in task.model.named_modules()
                if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad
            ]

    model = copy.deepcopy(task.model)
    model.load_state_dict({**model.state_dict(), **params})
    analyzer = Analyzer(
        "peer",
        prepare_model(model, Summed()),
        Summed(),
        cpu=True,
        disable_tqdm=True,
        output_dir=str(folder),
        disable_model_save=True,
    )
    train, test = (torch.utils.data.TensorDataset(*part) for part in (task.train, task.test))
    factors = pytest_factor_arguments()  # the empirical Fisher in float64
    factors.has_shared_parameters = task.name == "tokens"
    analyzer.fit_all_factors("factors", train, per_device_batch_size=8, factor_args=factors)
    for damping in dampings:
        analyzer.compute_pairwise_scores(
            f"{damping}",
            "factors",
            test,
            train,
            per_device_query_batch_size=5,
            per_device_train_batch_size=8,
            score_args=pytest_score_arguments(damping),
        )
    return [analyzer.load_pairwise_scores(f"{damping}")["all_modules"].numpy() for damping in dampings]


@pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")
@pytest.mark.parametrize("name", ["regression", "classification", "conv", "tokens"])
def test_agrees_with_kronfluence(name, tmp_path, monkeypatch):
    """Its heuristic damping (`None`) is our recommended one; its default, 1e-8, is not."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # it collects after every batch, all that other tests have left
    task, params = problem(name)
    heuristic, fixed = kronfluence_scores(task, params, tmp_path, [None, 0.02])
    for damping, theirs, agrees in (("recommended", heuristic, True), (0.02, fixed, True), (0.03, fixed, False)):
        ours = attribute("ekfac", task, params, fisher="empirical", damping=damping)
        assert error(ours.values, theirs) < 1e-12 if agrees else error(ours.values, theirs) > 1e-2
