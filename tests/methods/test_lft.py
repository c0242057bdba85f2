"""Linearised further training against its recursion, step by step, with dense matrices and one instance at a time."""

import copy
import dataclasses
import functools
import importlib
import json
import pickle
import re
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
import xarray as xr
from problems import kept, tiny
from scipy.linalg import expm
from small_files import refusal
from torch import nn
from torch.utils.data import RandomSampler

from fimoda_lib.derivatives import gradients, linearised, spectra
from fimoda_lib.derivatives.curvature import GaussNewton
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.linearised import decay
from fimoda_lib.derivatives.trajectories import data_of, mean_run, name_of_loss, record_full_run
from fimoda_lib.groups import group_scores
from fimoda_lib.methods import attribute
from fimoda_lib.methods.ekfac import EkfacFactors
from fimoda_lib.tasks import Task, parameters_of, squared_error
from fimoda_lib.training.further_training import further_train

METHOD = importlib.import_module("fimoda_lib.methods.lft")  # the function of this name hides the module
TRAIN, TEST, N = [2, 11, 5, 20], [3, 0, 4], 23
PROBLEMS = [("regression", 1), ("regression", 2), ("classification", 2), ("classification", 3)]
# Eight steps of three epochs, at which the largest eigenvalues have long forgotten and the smallest not begun to.
RUN = dict(learning_rate=0.2, batch_size=8, seed=4)
STEPS, HORIZONS = 8, [1, 3, 8]
EVERY = list(range(1, STEPS + 1))


def check(found, expected, tolerance=1e-9):
    error = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.1e}"


def differs(found, expected, at_least=0.01):
    """The comparison above notices by far."""
    with pytest.raises(AssertionError, match="relative error"):
        check(found, expected, at_least)


# The recursion written naively


def path_by_hand(task, params, *, learning_rate, batch_size, seed, steps=STEPS, optimizer="sgd"):
    """Parameters before every step and after the last, and Adam's mean squares after every step, flat."""
    model = oracles.at(task, params)
    rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](model.parameters(), lr=learning_rate)
    sampler = RandomSampler(range(task.n_train), generator=torch.Generator().manual_seed(seed))
    batches, path, means = [], [dict(model.state_dict())], []
    while len(batches) < steps:
        batches += torch.tensor(list(sampler)).split(batch_size)
    for t, rows in enumerate(batches[:steps], 1):
        path[-1] = {k: v.clone() for k, v in path[-1].items()}
        rule.zero_grad()
        task.loss(model(task.train[0][rows]), task.train[1][rows]).mean().backward()
        rule.step()
        path.append(dict(model.state_dict()))
        if optimizer == "adam":
            squares = [rule.state[p]["exp_avg_sq"].ravel() for p in model.parameters()]
            means.append((torch.cat(squares) / (1 - 0.999**t)).numpy())
    return path, means


def slope(task, outputs, target):
    """Of the loss of one instance in its outputs, [C]."""
    outputs = torch.as_tensor(outputs, dtype=torch.float64)[None].requires_grad_()
    return torch.autograd.grad(task.loss(outputs, target).sum(), outputs)[0][0].numpy()


def loss(task, outputs, target):
    return float(task.loss(torch.as_tensor(outputs)[None], target)[0])


def outputs_at(task, params, instances):
    """Of all instances, [n, C]."""
    with torch.no_grad():
        return oracles.at(task, params)(instances[0]).numpy()


def steps_of(G, eta, steps, multiplier=None):
    """What so many steps leave of δ, and what they make of a constant gain: two matrices [P, P]."""
    P = len(G)
    left, gain = np.eye(P), np.zeros((P, P))
    if multiplier is None:
        for _ in range(steps):
            left, gain = (np.eye(P) - eta * G) @ left, (np.eye(P) - eta * G) @ gain + eta * np.eye(P)
        return left, gain
    # dδ/dt = -η D G δ + η D u, with D the diagonal matrix of the multiplier
    D = eta * multiplier[:, None]
    both = expm(steps * np.block([[-D * G, D * np.eye(P)], [np.zeros((P, 2 * P))]]))
    return both[:P, :P], both[:P, P:]


def segment_at(task, params, curvature):
    """Jacobians of TRAIN and TEST and the Gauss-Newton matrix."""
    as_train, model = dataclasses.replace(task, train=task.test), oracles.at(task, params)
    J = {i: oracles.jacobian(task, params, i, model) for i in TRAIN}
    J_test = {z: oracles.jacobian(as_train, params, z, model) for z in TEST}
    return J, J_test, oracles.gauss_newton(task, params, curvature)


class Dense:
    """The recursion along a path of parameters (one before every step, and the last).

    `starts`: the records at which gradients and curvature are taken anew.
    """

    def __init__(self, task, params, path, *, records=EVERY, starts=(0,), curvature=range(N), outputs=None):
        self.task, self.records, self.starts = task, [0, *records], starts
        self.outputs = outputs or [
            [outputs_at(task, path[t], part) for part in (task.train, task.test)] for t in self.records
        ]
        self.segments = [segment_at(task, path[self.records[k]], curvature) for k in starts]

    def __call__(
        self,
        *,
        eta=RUN["learning_rate"],
        horizons=HORIZONS,
        order=1,
        squares=None,
        G_factor=1.0,
        frozen=False,
        groups=[[i] for i in TRAIN],  # noqa: B006
    ):
        """Scores [horizons, TEST, groups] from δ(t+1) = (I - ηG) δ(t) + (η/n) Σ Jᵢᵀ rᵢ(t), between records with mean r.

        The sum is over the members of a group, of one instance each by default.
        `frozen`: r stays what it is at the beginning.
        """
        task, scores = self.task, np.full((len(horizons), len(TEST), len(groups)), np.nan)
        factors = {}
        for column, group in enumerate(groups):
            delta = 0.0
            for k, (begin, end) in enumerate(zip(self.records[:-1], self.records[1:], strict=True)):
                number = sum(start <= k for start in self.starts) - 1
                J, J_test, G = self.segments[number]
                if (number, end - begin) not in factors:
                    last = [*self.starts, len(self.records) - 1][number + 1]
                    ends = self.records[self.starts[number] + 1 : last + 1]
                    mean = None if squares is None else np.mean([squares[t - 1] for t in ends], 0)
                    multiplier = None if squares is None else 1 / (np.sqrt(mean) + 1e-8)
                    factors[number, end - begin] = steps_of(G_factor * G, eta, end - begin, multiplier)
                pushed = np.zeros(len(G))
                for i in group:
                    own = J[i] @ delta if order == 2 and k else 0.0
                    y, near = oracles.instance(task.train, i)[1], (0, 0) if frozen else (k, k + 1)
                    r = [slope(task, self.outputs[record][0][i] + own, y) for record in near]
                    mean = np.mean([r[0] + (r[1] - r[0]) * s / (end - begin) for s in range(end - begin)], 0)
                    pushed += J[i].T @ mean / task.n_train
                left, gain = factors[number, end - begin]
                delta = left @ (delta if k else np.zeros(len(G))) + gain @ pushed
                if end in horizons:
                    for row, z in enumerate(TEST):
                        y_z, f, change = oracles.instance(task.test, z)[1], self.outputs[k + 1][1][z], J_test[z] @ delta
                        scores[horizons.index(end), row, column] = (
                            loss(task, f + change, y_z) - loss(task, f, y_z)
                            if order == 2
                            else slope(task, f, y_z) @ change
                        )
        return scores


@functools.cache
def usual_path(kind, outputs):
    """What `RUN` makes of the parameters of a tiny task."""
    return path_by_hand(*kept(kind, outputs), **RUN)[0]


@functools.cache
def followed(kind, outputs, starts=(0,)):
    """The recursion along it."""
    return Dense(*kept(kind, outputs), usual_path(kind, outputs), starts=starts)


def lft(task, params, run=RUN, *, horizon=EVERY, **options):
    """What the library says of the rows and horizons above."""
    found = attribute("lft", task, params, train=TRAIN, test=TEST, horizon=horizon, further_training=run, **options)
    assert found.dims == ("horizon", "test", "train")
    return found.sel(horizon=[h for h in HORIZONS if h in found.horizon])


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_one_run_equals_the_recursion_and_nothing_else_does(kind, outputs):
    task, params = kept(kind, outputs)
    dense = followed(kind, outputs)
    for order in (1, 2):
        found = lft(task, params, order=order)
        check(found, dense(order=order))
        wrong = {
            "sign": -dense(order=order),
            "other order": dense(order=3 - order),
            "identity": dense(order=order, G_factor=0.0),
            "half the curvature": dense(order=order, G_factor=0.5),
            "frozen residual": dense(order=order, frozen=True),
            "learning rate": dense(order=order, eta=0.1),
            "other instances": found.values[:, :, ::-1],
            "other horizons": found.values[::-1],
        }
        for what, scores in wrong.items():
            assert np.isfinite(scores).all(), what
            differs(found, scores)


@pytest.mark.parametrize(
    ("kind", "outputs", "starts"),
    [
        ("regression", 1, (*range(STEPS),)),
        ("classification", 2, (0, 2, 4)),
        ("regression", 2, (0, 2, 4)),
        ("classification", 3, (*range(STEPS),)),
    ],
)
def test_segments_take_gradients_and_curvature_anew(kind, outputs, starts):
    task, params = kept(kind, outputs)
    found = lft(task, params, order=1, segments=len(starts))
    check(found, followed(kind, outputs, starts)())
    differs(found, lft(task, params, order=1))
    assert found.attrs["segments"] == len(starts) == len(json.loads(found.attrs["eigenvalues"]))


@pytest.mark.parametrize(("kind", "outputs"), [("regression", 1), ("classification", 3)])
def test_several_runs_are_followed_at_their_mean(kind, outputs):
    task, params = kept(kind, outputs)
    paths = [path_by_hand(task, params, **{**RUN, "seed": RUN["seed"] + k})[0] for k in range(3)]
    mean = [
        [np.mean([outputs_at(task, path[t], part) for path in paths], 0) for part in (task.train, task.test)]
        for t in [0, *EVERY]
    ]
    middle = [{k: torch.stack([path[t][k] for path in paths]).mean(0) for k in params} for t in range(STEPS + 1)]
    found = lft(task, params, order=1, runs=3)
    check(found, Dense(task, params, middle, outputs=mean)())
    followed = json.loads(found.attrs["further_training"])
    assert followed["runs"] == 3 and followed["seed"] == RUN["seed"]
    for k in range(3):  # not one of them
        differs(found, lft(task, params, {**RUN, "seed": RUN["seed"] + k}, order=1))
    in_segments = lft(task, params, order=1, runs=3, segments=3)
    check(in_segments, Dense(task, params, middle, outputs=mean, starts=(0, 2, 4))())
    differs(in_segments, found)
    differs(in_segments, Dense(task, params, paths[0], outputs=mean, starts=(0, 2, 4))(), 1e-4)


def test_with_adam_the_mean_squares_are_averaged_too():
    task, params = tiny("classification")
    run = {**RUN, "optimizer": "adam", "learning_rate": 0.02}
    records = [record_full_run(task, params, steps=EVERY, progress=False, **{**run, "seed": s}) for s in (4, 5)]
    both = mean_run(records)
    for name, values in both.segments[0].squares.items():
        first, second = (r.segments[0].squares[name] for r in records)
        assert torch.equal(values, (first + second) / 2) and not torch.equal(first, second)
    check(lft(task, params, both), lft(task, params, run, runs=2), 1e-12)
    assert mean_run(records[:1]) is records[0]


@pytest.mark.parametrize(
    "changes",
    [
        dict(steps=[2, 8]),
        dict(segments=2),
        dict(optimizer="adam"),
        dict(learning_rate=0.1),
        dict(params={k: 2 * p for k, p in tiny()[1].items()}),
        dict(task=tiny(n=22)[0], batch_size=8),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_that_differ_in_more_than_their_seeds_have_no_mean(changes):
    task, params = tiny()
    usual = dict(task=task, params=params, optimizer="sgd", steps=EVERY, progress=False, **RUN)
    one = record_full_run(**usual)
    other = record_full_run(**{**usual, "seed": 9, **changes})
    for runs in ([one, other], [other, one]):
        assert "mean_run: the runs differ in more than their seeds" in refusal(mean_run, runs, error=ValueError)
    assert "mean_run: got no runs" in refusal(mean_run, [], error=ValueError)


def test_between_records_the_residual_is_the_mean_over_the_steps():
    (task, params), path = kept("classification", 3), usual_path("classification", 3)
    dense, every = Dense(task, params, path, records=[3, 6, 8]), followed("classification", 3)
    for order in (1, 2):
        found = lft(task, params, order=order, horizon=[8])  # and the ends of epochs, 3 and 6
        check(found, dense(horizons=[8], order=order))
        differs(found, every(horizons=[8], order=order), 1e-4)
        check(found, every(horizons=[8], order=order), 0.05)


def test_another_curvature_and_other_precision():
    (task, params), path = kept("classification", 3), usual_path("classification", 3)
    rows = [0, 1, 4, 5, 7, 8, 13, 22]
    found, expected = lft(task, params, order=1, curvature=rows), followed("classification", 3)()
    check(found, Dense(task, params, path, curvature=rows)())
    differs(found, expected)
    check(lft(task, params, order=1, dtype=torch.float32), expected, 1e-5)


@pytest.mark.parametrize("learning_rate", [0.45, 0.6])
def test_directions_in_which_steps_overshoot_alternate(learning_rate):
    """1 < ησ < 2: the factor 1 - ησ is negative, its powers shrink."""
    task, params = tiny()
    run = {**RUN, "learning_rate": learning_rate}
    assert 1 < np.linalg.eigvalsh(oracles.gauss_newton(task, params, range(N)))[-1] * learning_rate < 2
    dense = Dense(task, params, path_by_hand(task, params, **run)[0])
    check(lft(task, params, run, order=1), dense(eta=learning_rate))


def test_what_steps_leave_of_a_direction_and_what_they_gain():
    """Step by step; and where the recursion would explode (ησ > 2) though the run did not, δ settles at once."""
    run = SimpleNamespace(learning_rate=0.25, settings={"optimizer": "sgd"})
    moved = torch.tensor([0, 1e-15, 1e-5, 0.3, 1, 1.5, 1.99, 2.5, 40], dtype=torch.float64)
    for steps in (1, 2, 7, 50):
        found = decay(SimpleNamespace(eigenvalues=moved / 0.25), run, steps)
        left, gain = torch.ones_like(moved), torch.zeros_like(moved)
        for _ in range(steps):
            left, gain = (1 - moved) * left, (1 - moved) * gain + 0.25
        left[-2:], gain[-2:] = 0.0, 0.25 / moved[-2:]
        torch.testing.assert_close(found[0], left, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(found[1], gain, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("starts", [(0,), (0, 2, 4)])
@pytest.mark.parametrize(("kind", "outputs"), [("regression", 2), ("classification", 2)])
def test_adam_follows_its_recorded_preconditioner(kind, outputs, starts):
    task, params = kept(kind, outputs)
    run = {**RUN, "optimizer": "adam", "learning_rate": 0.01}
    path, squares = path_by_hand(task, params, **run)
    dense = Dense(task, params, path, starts=starts)
    found = lft(task, params, run, order=1, segments=len(starts))
    check(found, dense(eta=0.01, squares=squares))
    differs(found, dense(eta=0.01))  # SGD
    differs(found, dense(eta=0.01, squares=squares, G_factor=0.0))
    differs(found, dense(eta=0.01, squares=[squares[0]] * STEPS))


# Its limits


def linear(n=N, inputs=3, outputs=1, seed=0, n_test=5):
    """A linear model of noisy linear data, not at its optimum."""
    task, _ = tiny(n=n, n_test=n_test, inputs=inputs, outputs=outputs, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    truth = torch.randn(inputs, outputs, generator=g, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Linear(inputs, outputs).double()
    parts = {part: (x, x @ truth + 0.5 * y) for part, (x, y) in (("train", task.train), ("test", task.test))}
    return (task := Task("linear", model, squared_error, **parts)), parameters_of(task.model)


def optimum(task):
    """The least-squares solution of a linear model."""
    X = np.c_[task.train[0], np.ones(task.n_train)]
    solution = torch.from_numpy(np.linalg.lstsq(X, task.train[1].numpy(), rcond=None)[0].T)
    return {"weight": solution[:, :-1].clone(), "bias": solution[:, -1].clone()}


@pytest.mark.parametrize("mode", ["one_run", "closed_form"])
@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_one_tiny_step_is_grad_dot(kind, outputs, mode):
    task, params = kept(kind, outputs)
    run = dict(learning_rate=1e-8, batch_size=N)
    found = attribute("lft", task, params, horizon=1, further_training=run, mode=mode).sel(horizon=1)
    check(found, 1e-8 / N * oracles.grad_dot(task, params, range(N), range(5), None), 1e-6)


def test_many_steps_at_the_optimum_are_the_exact_influence_function():
    task, _ = linear()
    params = optimum(task)
    limit = attribute("exact", task, params, damping=1e-12) / N
    check(limit, oracles.influence(task, params, range(N), range(5), range(N), 1e-12) / N)
    for steps, close in ((5_000, True), (20, False)):
        run = dict(learning_rate=0.05, batch_size=1)  # records at the ends of epochs
        found = attribute("lft", task, params, horizon=steps, further_training=run, mode="closed_form", order=1)
        (check if close else differs)(found.sel(horizon=steps), limit)


def losses_of_full_batches(task, params, eta, steps, removed=None):
    """Test losses [n_test] after steps of full batches, instance `removed` masked: a linear model by hand."""
    X, Y = (np.c_[part[0], np.ones(len(part[0]))] for part in (task.train, task.test))
    W = np.c_[params["weight"], params["bias"]]
    kept = 1.0 * ~np.isin(np.arange(task.n_train), [] if removed is None else removed)
    for _ in range(steps):
        W = W - eta / task.n_train * 2 * (kept[:, None] * (X @ W.T - task.train[1].numpy())).T @ X
    return ((Y @ W.T - task.test[1].numpy()) ** 2).sum(1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_of_a_linear_model_the_second_order_is_leaving_out_itself(outputs):
    task, params = linear(outputs=outputs)
    run = dict(learning_rate=0.05, batch_size=N, seed=0)
    steps = [1, 5, 30]
    settings = dict(horizon=steps, further_training=run)
    gold = further_train(
        task, params, optimizer="sgd", epochs=30, seeds=[0], left_out=range(N), removal="mask", evaluate=steps,
        **{k: v for k, v in run.items() if k != "seed"}, progress=False,
    )  # fmt: skip
    gold = gold.delta.isel(seed=0).transpose("step", "test", "left_out")
    hand = np.stack(
        [
            np.stack([losses_of_full_batches(task, params, 0.05, t, i) for i in range(N)], 1)
            - losses_of_full_batches(task, params, 0.05, t)[:, None]
            for t in steps
        ]
    )
    for mode in ("one_run", "closed_form"):
        second = attribute("lft", task, params, order=2, mode=mode, **settings)
        check(second, hand)
        check(second, gold, 1e-6)  # stored in float32
        differs(attribute("lft", task, params, order=1, mode=mode, **settings), hand)


GROUPS = [[2, 11, 5], [20], [5, 20], TRAIN]  # of the instances above


@pytest.mark.parametrize("starts", [(0,), (0, 2, 4)])
@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_a_group_follows_the_recursion_of_all_its_members(kind, outputs, starts):
    task, params = kept(kind, outputs)
    dense = followed(kind, outputs, starts)
    settings = dict(test=TEST, horizon=EVERY, further_training=RUN, segments=len(starts))
    whole = attribute("lft", task, params, train=GROUPS, **settings).sel(horizon=HORIZONS)
    expected = dense(order=2, groups=GROUPS)
    check(whole, expected)
    single = attribute("lft", task, params, train=TRAIN, **settings).sel(horizon=HORIZONS)
    differs(group_scores(single, GROUPS), expected, 1e-4)
    differs(whole[..., [0, 1, 3, 2]], expected)
    first = attribute("lft", task, params, train=GROUPS, order=1, **settings).sel(horizon=HORIZONS)
    check(first, dense(order=1, groups=GROUPS))
    assert whole.group.values.tolist() == ["2 5 11", "20", "5 20", "2 5 11 20"]


@pytest.mark.parametrize(
    "options", [{}, dict(segments=3, runs=2), dict(mode="closed_form"), dict(optimizer="adam"), dict(backend="krylov"),
     dict(mode="split", runs=2), dict(mode="split", optimizer="adam")],
    ids=str,
)  # fmt: skip
def test_to_first_order_a_group_is_the_sum_and_a_group_of_one_the_instance(options):
    task, params = kept("classification", 3)
    options = {"further_training": RUN, "horizon": [1, 3, 5], "test": TEST, **options}
    if "optimizer" in options:
        options["further_training"] = {**RUN, "learning_rate": 0.02, "optimizer": options.pop("optimizer")}
    single = attribute("lft", task, params, train=TRAIN, order=1, **options)
    check(attribute("lft", task, params, train=GROUPS, order=1, **options), group_scores(single, GROUPS), 1e-9)
    alone = attribute("lft", task, params, train=[[i] for i in TRAIN], **options)
    check(alone, attribute("lft", task, params, train=TRAIN, **options), 1e-9)


@pytest.mark.parametrize("mode", ["one_run", "closed_form", "split"])
def test_of_a_linear_model_a_whole_group_is_leaving_it_out(mode):
    task, params = linear(outputs=2)
    groups, steps = [[3, 8, 21], [5], [*range(0, 22, 2)]], [1, 5, 15]
    settings = dict(horizon=steps, further_training=dict(learning_rate=0.05, batch_size=N, seed=0), mode=mode)
    hand = np.stack(
        [
            np.stack([losses_of_full_batches(task, params, 0.05, t, group) for group in groups], 1)
            - losses_of_full_batches(task, params, 0.05, t)[:, None]
            for t in steps
        ]
    )
    check(attribute("lft", task, params, train=groups, **settings), hand)
    differs(attribute("lft", task, params, train=groups, order=1, **settings), hand, 0.1)
    differs(group_scores(attribute("lft", task, params, **settings), groups), hand, 0.1)


def test_groups_whose_jacobians_do_not_fit_are_refused(monkeypatch):
    task, params = tiny()
    monkeypatch.setattr(linearised, "GROUP_BYTES", 8 * 31 * 2)
    arguments = dict(train=GROUPS, horizon=[2], further_training=RUN)
    message = refusal(attribute, "lft", task, params, **arguments, error=ValueError)
    assert "4 different instances" in message and "at most" in message and "group_scores" in message


def test_of_a_linear_model_the_first_order_is_leaving_out_up_to_one_over_n():
    sizes, errors = (50, 100, 200), {"mask": [], "drop": []}
    for n in sizes:
        task, params = linear(n=n, n_test=20)
        run = dict(learning_rate=0.05, batch_size=n)
        first = attribute("lft", task, params, horizon=10, further_training=run, order=1).sel(horizon=10)
        first = first - first.mean("train")
        for removal, found in errors.items():
            gold = further_train(
                task, params, optimizer="sgd", epochs=10, seeds=[0], left_out=range(n), removal=removal,
                evaluate=[10], **run, compile=False, progress=False,
            )  # fmt: skip
            delta = gold.delta.isel(seed=0, step=0).transpose("test", "left_out").astype(float)
            delta = delta - delta.mean("left_out")  # the gold standard's mean adjustment
            found.append(np.linalg.norm(first.values - delta.values) / np.linalg.norm(delta))
    for found in errors.values():
        order = np.polyfit(np.log(sizes), np.log(found), 1)[0]
        assert -1.3 < order < -0.7 and found[0] < 0.2, found


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
def test_closed_form_is_full_batches_in_the_linearised_model(kind, outputs):
    """Outputs along the way that the parameters take there replace those of the recorded run."""
    task, params = kept(kind, outputs)
    G, model = oracles.gauss_newton(task, params, range(N)), oracles.at(task, params)
    mean = oracles.gradients(task, params, task.train, range(N)).mean(0)
    parts = (task.train, task.test)
    J = [
        np.stack(
            [oracles.jacobian(dataclasses.replace(task, train=part), params, i, model) for i in range(len(part[1]))]
        )
        for part in parts
    ]
    moved, along = np.zeros(len(G)), []
    for _ in range(STEPS + 1):
        along.append([outputs_at(task, params, part) + J_part @ moved for part, J_part in zip(parts, J, strict=True)])
        moved = moved - RUN["learning_rate"] * (mean + G @ moved)
    dense = Dense(task, params, [params], outputs=along)
    for order in (1, 2):
        # Full batches: every step is the end of an epoch.
        found = lft(task, params, {**RUN, "batch_size": N}, horizon=[1, 3, 8], mode="closed_form", order=order)
        check(found, dense(order=order))
        differs(found, dense(order=order, frozen=True))
        differs(found, lft(task, params, order=order))


# Back-ends


@pytest.mark.parametrize(("kind", "outputs"), PROBLEMS)
@pytest.mark.parametrize("options", [{}, dict(segments=3), dict(mode="closed_form"), dict(optimizer="adam")], ids=str)
def test_gram_and_krylov_agree(kind, outputs, options, monkeypatch):
    task, params = kept(kind, outputs)
    run = {**RUN, **({"optimizer": "adam", "learning_rate": 0.01} if "optimizer" in options else {})}
    options = {k: v for k, v in options.items() if k != "optimizer"}
    monkeypatch.setattr(METHOD, "NEGLIGIBLE", 1e-12)
    gram, krylov = (lft(task, params, run, backend=backend, **options) for backend in ("gram", "krylov"))
    check(krylov, gram, 1e-8)
    assert krylov.attrs["backend"] == "krylov" and gram.attrs["backend"] == "gram"


def test_krylov_leaves_out_what_does_not_matter():
    task, params = tiny(inputs=40, width=8, n=60)
    run = dict(learning_rate=0.002, batch_size=60)
    rows = dict(horizon=[1, 10, 40], further_training=run, order=1)
    gram, krylov = (attribute("lft", task, params, backend=backend, **rows) for backend in ("gram", "krylov"))
    assert json.loads(krylov.attrs["eigenvalues"])[0] < json.loads(gram.attrs["eigenvalues"])[0]
    check(krylov, gram, 0.01)
    differs(attribute("lft", task, params, backend="gram", **{**rows, "horizon": [1, 10, 20]}), gram)


@pytest.mark.parametrize("outputs", [1, 2])
def test_ekfac_agrees_with_gram_where_the_curvature_is_a_kronecker_product(outputs, monkeypatch):
    """One linear layer with squared error, and pseudo-gradients with exactly their covariance, 2I, for every input."""
    task, params = linear(n=12, outputs=outputs)
    repeated = tuple(part.repeat_interleave(outputs, 0) for part in task.train)
    task = dataclasses.replace(task, train=repeated)
    drawn = np.sqrt(2 * outputs) * torch.eye(outputs, dtype=torch.float64).repeat(12, 1)
    monkeypatch.setattr(importlib.import_module("fimoda_lib.methods.ekfac"), "pseudo_gradients", lambda *_: drawn)
    for options in (dict(), dict(segments=3), dict(mode="closed_form")):
        run = dict(learning_rate=0.1, batch_size=8, seed=1)
        rows = dict(horizon=[1, 3, 8], further_training=run, **options)
        gram, kfac = (attribute("lft", task, params, backend=backend, **rows) for backend in ("gram", "ekfac"))
        check(kfac, gram, 1e-8)
        differs(attribute("lft", task, params, backend="gram", **{**rows, "curvature": range(6)}), kfac)


@pytest.mark.parametrize("product", [True, False])
def test_ekfac_scales_gradients_as_adam_does(product, monkeypatch):
    task, params = linear(n=12, outputs=2)
    task = dataclasses.replace(task, train=tuple(part.repeat_interleave(2, 0) for part in task.train))
    drawn = 2 * torch.eye(2, dtype=torch.float64).repeat(12, 1)
    monkeypatch.setattr(importlib.import_module("fimoda_lib.methods.ekfac"), "pseudo_gradients", lambda *_: drawn)
    at, rows = Gradients(task, params, dtype=torch.float64), torch.arange(24)
    by_input = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    s = torch.stack([by_input, 5 * by_input if product else by_input.flip(0)])
    s = torch.cat([s[:, :3].flatten(), s[:, 3]])  # weight, then bias
    found = EkfacFactors(at, rows, scale=s)
    matrix = found.from_eigenbasis(found.to_eigenbasis(torch.eye(8, dtype=torch.float64)) * found.eigenvalues)
    dense = s[:, None] * GaussNewton(at, rows).dense() * s
    check(matrix.trace(), float(dense.trace()), 1e-10)
    (check if product else differs)(matrix, dense.numpy(), 1e-10)
    differs(matrix, GaussNewton(at, rows).dense().numpy())


def test_what_ekfac_does_not_cover_is_not_forgotten():
    """Directions outside the layers have eigenvalue 0: the gradients add up there."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.net = nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Linear(3, 1).double()

        def forward(self, x):
            return self.net(x + self.shift)

    task, _ = linear()
    task = dataclasses.replace(task, model=Shifted())
    params = parameters_of(task.model)
    run = dict(learning_rate=1e-9, batch_size=N)  # nothing is forgotten anywhere
    found = attribute("lft", task, params, horizon=[5], further_training=run, backend="ekfac", order=1)
    check(found[0], 5e-9 / N * oracles.grad_dot(task, params, range(N), range(5), None), 1e-6)


def test_the_back_end_is_chosen_by_size(monkeypatch):
    task, params = tiny()
    assert lft(task, params).attrs["backend"] == "gram"
    monkeypatch.setattr(spectra, "GRAM_ROWS", N - 1)
    assert lft(task, params).attrs["backend"] == "krylov"
    monkeypatch.setattr(spectra, "KRYLOV_PARAMETERS", 20)
    assert lft(task, params).attrs["backend"] == "ekfac"
    assert lft(task, params, backend="gram").attrs["backend"] == "gram"


# What must not change the scores


@pytest.mark.parametrize("options", [{}, dict(segments=3, runs=2), dict(mode="closed_form")], ids=str)
def test_blocks_subsets_and_order_do_not_matter(options, monkeypatch):
    task, params = kept("classification", 3)
    rows = [0, 1, 4, 5, 13, 22]
    options = {**options, "curvature": rows}
    everything = attribute("lft", task, params, horizon=EVERY, further_training=RUN, **options)
    assert everything.shape == (STEPS, 5, N)
    expected = everything.sel(train=TRAIN, test=TEST, horizon=HORIZONS)
    check(lft(task, params, **options), expected, 1e-12)
    turned = {**options, "train": TRAIN[::-1], "test": [0, 4], "curvature": rows[::-1]}
    found = attribute("lft", task, params, horizon=EVERY, further_training=RUN, **turned)
    check(found.sel(train=TRAIN, horizon=HORIZONS), expected.sel(test=[0, 4]), 1e-10)
    monkeypatch.setattr(METHOD, "TEST_BLOCKS", 1)
    for instances_per_block, together in ((1, 1), (2, 1), (3, 1), (1, 3)):  # of 4 training and 3 test instances
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * 31 * 2 * instances_per_block)
        monkeypatch.setattr(linearised, "TOGETHER", together)
        check(lft(task, params, **options), expected, 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stored_run_gives_what_its_settings_give(optimizer):
    task, params = tiny("classification")
    run = {**RUN, "optimizer": optimizer, "learning_rate": 0.02}
    stored = record_full_run(task, params, steps=EVERY, segments=3, progress=False, **run)
    expected = lft(task, params, run, segments=3)
    found = lft(task, params, stored)
    assert np.array_equal(found, expected.sel(horizon=found.horizon)) and len(found) == 3
    assert json.loads(found.attrs["further_training"])["optimizer"] == optimizer and found.attrs["segments"] == 3
    last = attribute("lft", task, params, train=TRAIN, test=TEST, further_training=stored)
    assert last.horizon.values.tolist() == [STEPS] and np.array_equal(last[0], expected.sel(horizon=STEPS))
    one = lft(task, params, stored, horizon=[3])
    assert np.array_equal(one[0], expected.sel(horizon=3))


def test_horizons_may_come_from_the_gold_standard_or_alone():
    task, params = tiny()
    steps = xr.DataArray(EVERY, dims="step")
    expected = lft(task, params)
    assert np.array_equal(lft(task, params, horizon=steps), expected)
    assert np.array_equal(lft(task, params, horizon=np.array(EVERY)), expected)
    full_batch = dict(learning_rate=0.05, batch_size=N)
    for alone in (8, np.int64(8), [8]):  # all steps are ends of epochs, whichever horizons are asked for
        assert np.array_equal(lft(task, params, full_batch, horizon=alone)[0], lft(task, params, full_batch)[2])


def test_a_duplicate_of_a_test_instance_is_helpful():
    for kind, outputs in PROBLEMS:
        task, params = tiny(kind, outputs=outputs)
        for part in (0, 1):
            task.train[part][TRAIN[1]] = task.test[part][TEST[0]]
        assert (lft(task, params).sel(train=TRAIN[1], test=TEST[0]) > 0).all()


def test_the_model_and_the_random_state_are_left_as_found():
    task, params = tiny("classification")
    model = nn.Sequential(*task.model, nn.Dropout(0.5))
    task = dataclasses.replace(task, model=model)
    before, random = {k: v.clone() for k, v in params.items()}, torch.get_rng_state()
    assert np.array_equal(lft(task, params), lft(task, params))
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(params[k], v) and torch.equal(model.state_dict()[k], v) for k, v in before.items())


# What cannot be right


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (dict(further_training=None), "lft needs further_training=dict(learning_rate=..., batch_size=...)"),
        (dict(further_training={"learning_rate": 0.1}), "further_training: batch_size is missing"),
        (dict(further_training={"batch_size": 8}), "further_training: learning_rate is missing"),
        (dict(further_training={**RUN, "epochs": 3}), "further_training: got 'epochs', expected some of"),
        (dict(further_training={**RUN, "batch_size": 0}), "batch_size: got 0, expected a whole number"),
        (dict(further_training={**RUN, "batch_size": 2.5}), "batch_size: got 2.5, expected a whole number"),
        (dict(further_training={**RUN, "learning_rate": -1}), "learning_rate: got -1"),
        (dict(further_training={**RUN, "optimizer": "sdg"}), "optimizer: got 'sdg', expected one of sgd, adam, adamw"),
        (dict(further_training={**RUN, "seed": -1}), "seeds: got [-1]"),
        (dict(horizon=None), "horizon: got None, expected optimiser steps"),
        (dict(horizon=[]), "horizon: got [], expected ascending"),
        (dict(horizon=0), "horizon: got [0]"),
        (dict(horizon=[3, 2]), "horizon: got [3, 2]"),
        (dict(horizon=[3, 3]), "horizon: got [3, 3]"),
        (dict(horizon=[1.5]), "horizon: got [1.5], expected ascending numbers of optimiser steps"),
        (dict(mode="closed"), "mode: got 'closed', expected one of one_run, closed_form"),
        (dict(backend="dense"), "backend: got 'dense', expected one of auto, gram, krylov, ekfac"),
        (dict(order=3), "order: got 3, expected one of 1, 2"),
        (dict(segments=0), "segments: got 0, expected 1 to 3"),
        (dict(segments=4), "segments: got 4, expected 1 to 3, the number of intervals recorded"),
        (dict(mode="closed_form", segments=2), "segments: got 2 with mode 'closed_form'"),
        (dict(mode="closed_form", runs=2), "runs: got 2 with mode 'closed_form'"),
        (dict(runs=0), "runs: got 0, expected a whole number"),
        (dict(runs=1.5), "runs: got 1.5, expected a whole number"),
        (dict(mode="closed_form", further_training={**RUN, "optimizer": "adam"}), "follows SGD; got optimizer 'adam'"),
        (dict(mode="closed_form", further_training={**RUN, "learning_rate": 0}), "learning_rate: got 0"),
        (dict(further_training={**RUN, "learning_rate": 1e60}), "The full run diverged: with learning rate 1e+60"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(changes, fragment):
    task, params = kept()
    settings = {"horizon": [8], "further_training": RUN, **changes}
    assert fragment in refusal(attribute, "lft", task, params, error=ValueError, **settings)


def test_a_gram_matrix_that_is_too_large_is_refused(monkeypatch):
    task, params = tiny("classification", outputs=3)
    monkeypatch.setattr(spectra, "GRAM_LIMIT", 45)
    message = refusal(attribute, "lft", task, params, horizon=8, further_training=RUN, backend="gram", error=ValueError)
    assert re.search("'gram' needs a 46 x 46 matrix; take 'krylov' beyond 45 rows", message)


def test_a_stored_run_that_does_not_fit_is_refused():
    task, params = tiny()
    stored = record_full_run(task, params, steps=[2, 4], progress=False, optimizer="sgd", **RUN)

    def refused(task=task, params=params, **options):
        return refusal(attribute, "lft", task, params, further_training=stored, error=ValueError, **options)

    assert "step 3 was not recorded; the run holds [0, 2, 4]" in refused(horizon=[2, 3])
    assert "mode: 'closed_form' takes no recorded run" in refused(mode="closed_form")
    assert "segments: got 2, and the recorded run has 1" in refused(segments=2)
    assert "runs: got 2 with a recorded run; average several by trajectories.mean_run" in refused(runs=2)
    assert "recorded from other parameters" in refused(params={k: 1.1 * p for k, p in params.items()})
    assert "recorded with 23 training and 5 test instances" in refused(task=tiny(n=22)[0])
    other = dataclasses.replace(task, train=(task.train[0], -task.train[1]))
    assert "recorded on other instances (training or test) than these; record it anew" in refused(task=other)
    other = dataclasses.replace(task, test=(task.test[0] + 1, task.test[1]))
    assert "recorded on other instances" in refused(task=other)
    bent = copy.deepcopy(task.model)
    bent.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)  # parameters of the same names
    assert "recorded with another model" in refused(task=dataclasses.replace(task, model=bent))
    halved = dataclasses.replace(task, loss=lambda o, t: task.loss(o, t) / 2)
    assert "recorded with the loss squared_error, the task has" in refused(task=halved)
    same = dataclasses.replace(task, train=tuple(x.clone() for x in task.train))
    assert attribute("lft", same, params, further_training=stored, horizon=[4]).shape == (1, 5, 23)
    single = {part: tuple(x.float() for x in getattr(task, part)) for part in ("train", "test")}
    single = dataclasses.replace(task, **single)
    assert data_of(single) == data_of(task) == stored.data
    assert pickle.loads(pickle.dumps(dataclasses.replace(stored, loss=name_of_loss(halved)))).loss == name_of_loss(
        halved
    )
    runs = [record_full_run(t, params, steps=[2], progress=False, optimizer="sgd", **RUN) for t in (task, halved)]
    assert "mean_run: the runs differ in more than their seeds" in refusal(mean_run, runs, error=ValueError)
