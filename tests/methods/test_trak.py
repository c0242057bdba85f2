"""TRAK against a naive construction, against the damped Gauss-Newton solve it turns into, and against traker."""

import copy
import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import tiny
from torch import nn

from fimoda_lib.derivatives import gradients
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.methods import attribute
from fimoda_lib.methods.trak import Projection, output_directions
from fimoda_lib.tasks import cross_entropy, take, to

ROWS = {"train": [3, 0, 11, 7], "test": [4, 1]}
KINDS = {
    "regression": dict(kind="regression"),
    "outputs": dict(kind="regression", outputs=2),
    "classes": dict(kind="classification"),
    "binary": dict(kind="classification", outputs=2),
}


def naive(task, params, instances):
    """For every instance, by plain autograd: gradients of the model outputs [R, P] and the loss's derivatives [R]."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    result = []
    for x, y in zip(*instances, strict=True):
        f = torch.func.functional_call(task.model, leaves, (x[None],))[0]
        if y.is_floating_point():
            outputs, slopes = f, 2 * (f - y)
        else:
            p = f.softmax(0)[y]
            outputs, slopes = torch.log(p / (1 - p))[None], -(1 - p)[None]
        phi = [
            torch.cat([g.flatten() for g in torch.autograd.grad(output, list(leaves.values()), retain_graph=True)])
            for output in outputs
        ]
        result.append((torch.stack(phi).numpy(), slopes.detach().numpy()))
    return result


def naive_scores(test, train, kernel, R, ridge=0.0, powers=(1, 1)):
    """[n_test, n_train]; `powers` of the derivatives of the test and the training loss."""
    K = sum(R.T @ phi.T @ phi @ R for phi, _ in kernel) + ridge * np.eye(R.shape[1])
    inverse = np.linalg.inv(K)
    scores = np.empty((len(test), len(train)))
    for z, (phi_z, slope_z) in enumerate(test):
        for i, (phi_i, slope_i) in enumerate(train):
            scores[z, i] = slope_z ** powers[0] @ phi_z @ R @ inverse @ R.T @ phi_i.T @ slope_i ** powers[1]
    return scores


def matrix(projection):
    """R, [P, dimension]."""
    return projection.back(torch.eye(projection.dimension, dtype=projection.at.dtype)).T.numpy()


def error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("projection", ["identity", "rademacher", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_naive_construction_and_with_nothing_else(kind, projection):
    task, params = tiny(**KINDS[kind])
    rows = torch.arange(2, 19)  # the kernel is not that of the scored instances
    test = naive(task, params, take(task.test, ROWS["test"]))
    train = naive(task, params, take(task.train, ROWS["train"]))
    kernel, everything = naive(task, params, take(task.train, rows)), naive(task, params, task.train)
    at = Gradients(task, params)
    R, hyper = np.eye(at.n_params), dict(projection="identity", ridge=0.3)
    if projection != "identity":
        R, hyper = matrix(Projection(projection, at.n_params, 9, (5, 0), at)), dict(projection=projection, dimension=9)
    ridge = hyper.get("ridge", 0.0)
    ours = attribute("trak", task, params, **ROWS, curvature=rows, seed=5, **hyper).values
    expected = naive_scores(test, train, kernel, R, ridge)
    assert error(ours, expected) < 1e-8
    wrong = {
        "identity": naive_scores(test, train, [(np.eye(len(R)), 0)], np.eye(len(R))),
        "ridge": naive_scores(test, train, kernel, R, 2 * ridge + 0.1),
        "sign": -expected,
        "curvature": naive_scores(test, train, everything, R, ridge),
        "no slopes": naive_scores(test, train, kernel, R, ridge, powers=(0, 1)),
        "no slope at the training instance": naive_scores(test, train, kernel, R, ridge, powers=(1, 0)),
        "loss gradients": naive_scores(test, train, [(slope[:, None] * phi, 0) for phi, slope in kernel], R, ridge),
    }
    assert all(error(ours, scores) > 1e-2 for scores in wrong.values())


@pytest.mark.parametrize("kind", ["regression", "outputs", "binary"])
def test_unprojected_it_is_the_damped_gauss_newton_solve(kind):
    """With the loss's second derivatives as weights; for squared error they are 2 everywhere and can be left out."""
    task, params = tiny(**KINDS[kind])
    n, damping = task.n_train, 0.2
    exact = attribute("exact", task, params, damping=damping)
    weighted = attribute("trak", task, params, projection="identity", weighted=True, ridge=n * damping)
    assert error(n * weighted.values, exact.values) < 1e-10
    assert error(weighted.values, exact.values) > 1e-2
    plain = attribute("trak", task, params, projection="identity", ridge=n * damping / 2)
    assert (error(n / 2 * plain.values, exact.values) < 1e-10) == (kind != "binary")


def focal(o, t):
    p = o.softmax(1).gather(1, t[:, None])[:, 0]
    return -((1 - p) ** 0.2) * p.log()


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: 3 * cross_entropy(o, t),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0], dtype=torch.float64), reduction="none"),
        focal,
    ],
    ids=["a multiple", "class weights", "focal"],
)
def test_weighted_by_the_curvature_of_ones_own_loss(loss):
    task, params = tiny(**KINDS["binary"])
    task = replace(task, loss=loss)
    exact = attribute("exact", task, params, damping=0.05)
    weighted = attribute("trak", task, params, projection="identity", weighted=True, ridge=task.n_train * 0.05)
    assert error(task.n_train * weighted.values, exact.values) < 1e-8


def test_classes_are_found_in_sorted_data_and_no_label_is_none():
    """The loss of the first class is zero."""
    task, params = tiny(**KINDS["classes"])
    order = task.train[1].argsort()

    def loss(o, t):
        return torch.where(t == 0, 0.0, (o.gather(1, t.clamp(min=0)[:, None])[:, 0] - 1).square())

    for rows in (order, order.flip(0)):
        assert not Gradients(replace(task, train=take(task.train, rows), loss=loss), params).of_classes
    labels = torch.where(torch.arange(task.n_train) < 3, -100, task.train[1])
    without = replace(task, train=(task.train[0], labels))
    assert Gradients(task, params).of_classes and not Gradients(without, params).of_classes
    assert attribute("trak", without, params, dimension=4).notnull().all()


def test_both_sides_of_the_kernel_agree():
    """Fewer rows than parameters are solved in instances, more in parameters."""
    task, params = tiny("regression", n=60)
    task, P = replace(task, train=take(task.train, torch.arange(60) % 20)), sum(p.numel() for p in params.values())
    many = attribute("trak", task, params, projection="identity", ridge=0.3)
    few = attribute("trak", task, params, projection="identity", ridge=0.1, curvature=range(20))
    assert 20 < P < 60  # every instance three times: three times the kernel, a third of the inverse
    assert error(3 * many.values, few.values) < 1e-10


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_projections_are_reproducible_and_keep_lengths_on_average(kind, monkeypatch):
    at = Gradients(*tiny("classification"))
    g = at.of_losses(at.train(torch.arange(23)))
    R = Projection(kind, at.n_params, 40, (0, 0), at)
    assert torch.equal(R(g), Projection(kind, at.n_params, 40, (0, 0), at)(g))
    torch.testing.assert_close(torch.cat([R(piece) for piece in g.split(3)]), R(g))  # alone or with others
    torch.testing.assert_close(R.back(R(g)), g @ torch.tensor(matrix(R) @ matrix(R).T))
    single = Gradients(*tiny("classification"), dtype=torch.float32)
    np.testing.assert_allclose(matrix(Projection(kind, at.n_params, 40, (0, 0), single)), matrix(R), rtol=1e-6)
    draws = np.stack([matrix(Projection(kind, at.n_params, 40, (seed, k), at)) for seed in range(30) for k in range(2)])
    assert len({draw.tobytes() for draw in draws}) == 60
    gram = np.einsum("sik,sjk->sij", draws, draws)
    np.testing.assert_allclose(gram.mean(0), np.eye(at.n_params), atol=0.1)
    assert abs(draws.mean()) < 0.005
    if kind == "rademacher":
        np.testing.assert_allclose(draws**2, 1 / 40)
    monkeypatch.setattr(importlib.import_module("fimoda_lib.methods.trak"), "CHUNK", 200)  # five parameters at a time
    (first, entries), (second, others), *_ = R.chunks()
    assert (first, second) == (slice(0, 5), slice(5, 10)) and not torch.equal(entries, others)
    torch.testing.assert_close(R.back(R(g)), g @ torch.tensor(matrix(R) @ matrix(R).T))


def test_scores_are_averaged_over_projections():
    task, params = tiny("classification")
    at, everything = Gradients(task, params), torch.arange(23)
    test, train = (naive(task, params, part) for part in (task.test, take(task.train, everything)))
    expected = np.mean(
        [
            naive_scores(test, train, train, matrix(Projection("rademacher", at.n_params, 8, (4, k), at)))
            for k in range(3)
        ],
        0,
    )
    ours = attribute("trak", task, params, dimension=8, n_projections=3, seed=4)
    assert error(ours.values, expected) < 1e-8
    assert error(attribute("trak", task, params, dimension=8, seed=4).values, expected) > 1e-2


@pytest.mark.parametrize("hyper", [{}, dict(projection="identity", ridge=0.3), dict(ridge=2.0, dimension=30)])
def test_blocks_rows_and_precision_do_not_matter(hyper, monkeypatch):
    task, params = tiny("classification")
    scores = attribute("trak", task, params, curvature=range(20), **hyper)
    few = attribute("trak", task, params, curvature=list(range(20))[::-1], **ROWS, **hyper)
    np.testing.assert_allclose(few, scores.sel(**ROWS), rtol=1e-9, atol=1e-12)
    single = attribute("trak", task, params, curvature=range(20), dtype=torch.float32, **hyper)
    assert single.dtype == np.float32 and error(single.values, scores.values) < 1e-3
    monkeypatch.setattr(gradients, "BLOCK_BYTES", 3 * 8 * sum(p.numel() for p in params.values()))
    blocks = attribute("trak", task, params, curvature=range(20), **hyper)
    np.testing.assert_allclose(blocks, scores, rtol=1e-9, atol=1e-12)


def test_the_margin_is_precise_for_confident_models():
    task, params = tiny("classification")
    params = {k: 60 * v for k, v in params.items()}
    at = Gradients(task, params)
    instances = at.train(torch.arange(23))
    directions = output_directions(at, instances, weighted=True)[:, 0]
    logits = at.outputs(instances[0]).detach()
    label = instances[1][:, None]
    margin = logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).logsumexp(1)
    assert margin.max() > 40  # there 1 - p is below float64's resolution
    assert directions.isfinite().all() and (directions.abs().amax(1) > 0).all()
    assert torch.allclose(directions.sum(1), torch.zeros(23, dtype=torch.float64), atol=1e-14)
    log_weight = -margin.abs() - 2 * torch.log1p((-margin.abs()).exp())  # of p (1 - p)
    assert torch.allclose(2 * directions.amax(1).log(), log_weight, atol=1e-9)


def test_what_cannot_be_done_is_said():
    task, params = tiny("classification")
    for hyper, sentence in [
        (dict(dimension=24), "dimension 24 exceeds the number of rows of the kernel, 23"),
        (dict(projection="identity"), "dimension 31 exceeds the number of rows"),
        (dict(dimension=10, curvature=range(9)), "dimension 10 exceeds the number of rows of the kernel, 9"),
        (dict(projection="sparse"), "got 'sparse', expected one of rademacher, gaussian, identity"),
        (dict(ridge=-1.0), "ridge: got -1.0"),
        (dict(n_projections=0), "n_projections: got 0, expected a whole number of at least 1"),
        (dict(projection="identity", dimension=5), "leave out dimension"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            attribute("trak", task, params, **hyper)
    twice = replace(task, train=take(task.train, torch.arange(23) % 5))  # 23 rows of rank 5
    with pytest.raises(ValueError, match="the kernel of 23 rows in dimension 8 with ridge 0 is singular"):
        attribute("trak", twice, params, dimension=8)
    attribute("trak", twice, params, dimension=8, ridge=1e-3)


def test_the_model_is_left_as_it_was_and_the_report_says_what_was_used():
    task, params = tiny("classification")
    task.model.train()
    state = copy.deepcopy(task.model.state_dict())
    scores = attribute("trak", task, {k: 2 * v for k, v in params.items()})
    assert scores.attrs["dimension"] == 11 and len(scores.attrs["condition"]) > 2
    with pytest.raises(ValueError):
        attribute("trak", task, params, dimension=24)
    assert task.model.training and all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())


# --- traker ----------------------------------------------------------------------------------------------------------


def traker_scores(task, params, folder, lambda_reg):
    """traker's scores without a projection, [n_test, n_train], in float32: of the model output, on a free scale."""
    pytest.importorskip("trak", reason="traker 0.3.2 is not installed")
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput, ImageClassificationModelOutput
    from trak.projectors import NoOpProjector

    class Output(AbstractModelOutput):
        """For squared error: the output f itself, with the derivative 2(f - y)."""

        def __init__(self):
            pass

        @staticmethod
        def get_output(model, weights, buffers, x, y):
            return torch.func.functional_call(model, (weights, buffers), x[None]).sum()

        def get_out_to_loss_grad(self, model, weights, buffers, batch):
            f = torch.func.functional_call(model, (weights, buffers), batch[0])
            return 2 * (f - batch[1]).detach()

    model = copy.deepcopy(task.model)
    model.load_state_dict(params)
    model, train, test = model.float(), *(to(part, dtype=torch.float32) for part in (task.train, task.test))
    output = Output() if task.kind == "regression" else ImageClassificationModelOutput()
    traker = TRAKer(
        model,
        output,
        len(train[1]),
        save_dir=str(folder),
        device="cpu",
        use_half_precision=False,
        projector=NoOpProjector(device="cpu"),
        lambda_reg=lambda_reg,
        logging_level=100,
    )
    traker.load_checkpoint(model.state_dict(), model_id=0)
    traker.featurize(train, num_samples=len(train[1]))
    traker.finalize_features()
    traker.start_scoring_checkpoint("test", model.state_dict(), model_id=0, num_targets=len(test[1]))
    traker.score(test, num_samples=len(test[1]))
    return np.array(traker.finalize_scores("test")).T


@pytest.mark.parametrize("kind", ["regression", "classes", "binary"])
def test_agrees_with_traker(kind, tmp_path):
    """Its scores lack the test loss's derivative, carry the scale 1 / mean |inverse|, and 1 - p for -(1 - p)."""
    task, params = tiny(**KINDS[kind])
    n_params, lambda_reg = sum(p.numel() for p in params.values()), 1e-2
    slopes = np.stack([slope for _, slope in naive(task, params, task.test)])
    theirs = traker_scores(task, params, tmp_path, lambda_reg) * (slopes if kind == "regression" else -slopes)
    # It divides gradients by the square root of P, so that its ridge is lambda_reg * P in ours.
    ours = attribute("trak", task, params, projection="identity", ridge=lambda_reg * n_params).values
    scale = (ours * theirs).sum() / (theirs * theirs).sum()
    assert scale > 0 and error(scale * theirs, ours) < 1e-4
    other = attribute("trak", task, params, projection="identity", ridge=lambda_reg).values
    assert error((other * theirs).sum() / (theirs * theirs).sum() * theirs, other) > 1e-2


def test_whole_numbers_are_classes_only_where_the_loss_takes_them_for_some():
    """Counts, and a model of their mean and log-variance."""

    def likelihood(o, t):
        return 0.5 * (o[:, 1] + (t - o[:, 0]).square() * (-o[:, 1]).exp())

    task, params = tiny(outputs=2)
    counts = torch.arange(23) % 7, torch.arange(5)
    found = []
    for kind in (torch.long, torch.double):
        train, test = ((part[0], t.to(kind)) for part, t in zip((task.train, task.test), counts, strict=True))
        counted = replace(task, loss=likelihood, train=train, test=test)
        found.append(attribute("trak", counted, params, dimension=12, ridge=0.1))
    np.testing.assert_allclose(found[0], found[1])
