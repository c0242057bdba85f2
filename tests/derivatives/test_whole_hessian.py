"""LFT with the whole Hessian against its recursion, dense and step by step, and against tangents."""

import dataclasses
import importlib

import numpy as np
import oracles
import pytest
import torch
from problems import tiny
from small_files import refusal
from torch import nn

from fimoda_lib.derivatives import adam, gradients, whole_hessian
from fimoda_lib.derivatives.splitting import (
    Drift,
    Force,
    Motion,
    boundaries,
    interpolated,
    midpoint,
    propagator,
)
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.derivatives.trajectories import record_full_run
from fimoda_lib.derivatives.whole_hessian import limited
from fimoda_lib.methods import attribute
from fimoda_lib.tasks import parameters_of
from fimoda_lib.training.ensembles import Optimizer

lft_module = importlib.import_module("fimoda_lib.methods.lft")  # its package has the function of this name
TRAIN, TEST, N, STEPS = [2, 11, 5], [3, 0, 4], 23, 4  # steps: one more than an epoch of batches of 8
RULES = {
    "sgd": dict(optimizer="sgd", learning_rate=0.2, weight_decay=0.05),
    "adam": dict(optimizer="adam", learning_rate=0.02, weight_decay=0.05),
    "adamw": dict(optimizer="adamw", learning_rate=0.02, weight_decay=0.5, max_grad_norm=0.3),
    "clipped adam": dict(optimizer="adam", learning_rate=0.02, weight_decay=0.05, max_grad_norm=0.1),
}


def check(found, expected, tolerance=1e-9):
    error = np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"relative error {error:.1e}"


def differs(found, expected, at_least=0.01):
    with pytest.raises(AssertionError, match="relative error"):
        check(found, expected, at_least)


def split(task, params, run, *, horizon=(1, 3, STEPS), batch_size=8, **options):
    settings = {
        "train": TRAIN,
        "order": 1,
        "mode": "split",
        "further_training": {"batch_size": batch_size, "seed": 4, **run},
        **options,
    }
    return attribute("lft", task, params, test=TEST, horizon=list(horizon), **settings)


def recursion(
    task, params, run, *, horizons=(1, 3, STEPS), batch_size=8, curvature=oracles.hessian, momentum=True, squares=True
):
    """δ step by step, with dense Hessians at every place of the usual loop; scores [horizons, TEST, TRAIN].

    Adam's moments are those that batches have on average, here over all instances in a random order. An instance is
    taken off its own batches, or off all with `removal="subtract"`.
    """
    rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run["optimizer"]]
    model = oracles.at(task, params)
    options = {"lr": run["learning_rate"], "weight_decay": run.get("weight_decay", 0.0)}
    optimizer, eta, wd = rule(model.parameters(), **options), run["learning_rate"], options["weight_decay"]
    delta, mean = np.zeros((len(TRAIN), sum(p.numel() for p in params.values()))), 0.0
    usual = square = squared = 0.0  # Adam's moments, and the change of the second
    scores, sampler = [], iter(plain_batches(batch_size))
    orders = torch.Generator().manual_seed(4)
    for t in range(1, STEPS + 1):
        here = {k: v.clone() for k, v in model.state_dict().items()}
        H = curvature(task, here, range(N))
        every = oracles.gradients(task, here, task.train, range(N))
        change = delta @ H - every[TRAIN] / N
        rows = next(sampler)
        optimizer.zero_grad()
        task.loss(model(task.train[0][rows]), task.train[1][rows]).mean().backward()
        share = 1.0
        if "max_grad_norm" in run:
            norm = nn.utils.clip_grad_norm_(model.parameters(), run["max_grad_norm"])
            share = min(1.0, run["max_grad_norm"] / (float(norm) + 1e-6))
        optimizer.step()
        adamw = run["optimizer"] == "adamw"
        decay, kept = (0.0, 1 - eta * wd) if adamw else (wd, 1.0)
        change = share * change + decay * delta
        if run["optimizer"] == "sgd":
            delta = delta - eta * change
        else:
            order = torch.randperm(N, generator=orders).tolist()
            g = square_here = squared_here = 0.0
            for k in range(0, N, batch_size):
                batch = order[k : k + batch_size]
                part, turn = len(batch) / N, 1 / len(range(0, N, batch_size))
                of_batch = share * every[batch].mean(0) + decay * flat(here, params)
                batch_change = share * delta @ curvature(task, here, batch) + decay * delta
                g, square_here = g + part * of_batch, square_here + turn * of_batch**2
                squared_here = squared_here + turn * 2 * of_batch * batch_change
            for row, i in enumerate(TRAIN):
                if run.get("removal") == "subtract":
                    squared_here[row] -= share * 2 * g * every[i] / N
                    continue
                for k in range(0, N, batch_size):  # in the batch with i, which the others join with equal chances
                    size = min(batch_size, N - k)
                    others = (every.sum(0) - every[i]) * (size - 1) / (N - 1)
                    together = share * (every[i] + others) / size + decay * flat(here, params)
                    squared_here[row] -= turn * share * size / N * 2 * together * every[i] / size
            mean = 0.9 * mean + 0.1 * change if momentum else change * (1 - 0.9**t)
            usual = 0.9 * usual + 0.1 * g
            square, squared = (0.999 * x + 0.001 * y for x, y in ((square, square_here), (squared, squared_here)))
            v = square / (1 - 0.999**t)
            root = np.sqrt(v + 0.03**2 * v.mean())
            answer = eta * usual / (1 - 0.9**t) / (root + 1e-8) ** 2 / (2 * root) * squared / (1 - 0.999**t)
            delta = kept * delta - eta * mean / (1 - 0.9**t) / (root + 1e-8) + squares * answer
        if t in horizons:
            last = {k: v.clone() for k, v in model.state_dict().items()}
            scores.append(oracles.gradients(task, last, task.test, TEST) @ delta.T)
    return np.stack(scores)


def flat(here, params):
    return np.concatenate([here[k].numpy().ravel() for k in params])


def plain_batches(batch_size):
    """Of the usual loop over a DataLoader with seed 4, epoch after epoch."""
    sampler = torch.utils.data.RandomSampler(range(N), generator=torch.Generator().manual_seed(4))
    while True:
        yield from torch.tensor(list(sampler)).split(batch_size)


def test_in_single_steps_it_is_the_recursion_also_with_several_targets():
    task, params = tiny(outputs=2)
    run = RULES["clipped adam"]
    check(split(task, params, run, segments=STEPS), recursion(task, params, run))


@pytest.mark.parametrize("rule", RULES)
def test_in_single_steps_it_is_the_recursion_with_the_whole_hessian(rule):
    task, params = tiny("classification")
    run = RULES[rule]
    expected = recursion(task, params, run)
    found = split(task, params, run, segments=STEPS)
    check(found, expected)
    if rule not in ("sgd", "adam"):  # the others differ from these in no spectrum
        return
    for backend in ("krylov", "ekfac"):  # G cancels, whatever stands for it
        check(split(task, params, run, backend=backend), expected)
    if rule != "sgd":
        return
    differs(found, recursion(task, params, run, curvature=oracles.gauss_newton))
    differs(found, -expected)
    differs(split(task, params, {**run, "weight_decay": 0.0}), expected)
    check(split(task, params, run, dtype="float32"), expected, 1e-4)


def test_adams_momentum_has_its_part():
    task, params = tiny()
    found = split(task, params, RULES["adam"], segments=STEPS)
    differs(found, recursion(task, params, RULES["adam"], momentum=False))
    differs(found, recursion(task, params, RULES["adam"], squares=False), 0.001)
    differs(split(task, params, RULES["adamw"], segments=STEPS), split(
        task, params, {**RULES["adamw"], "max_grad_norm": 1e6}, segments=STEPS))  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_an_instance_may_be_taken_off_every_batch(rule):
    """... as `subtract` does; plain SGD cannot tell the difference."""
    task, params = tiny()
    run = {**RULES[rule], "removal": "subtract"}
    expected, found = recursion(task, params, run), split(task, params, run, segments=STEPS)
    check(found, expected)
    assert "subtract" in found.attrs["further_training"]
    usual = split(task, params, RULES[rule], segments=STEPS)
    (check if rule == "sgd" else differs)(usual, expected)
    for other in ("drop", "mask") if rule == "adam" else ():
        check(split(task, params, {**run, "removal": other}, segments=STEPS), usual, 0.0)


def rectified(dead=False):
    task, _ = tiny("classification", n=N)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3)).double()
    params = parameters_of(model)
    if dead:
        params["0.bias"][2] = -50.0
    return dataclasses.replace(task, model=model), params


@pytest.mark.parametrize(
    ("problem", "width", "optimizer"),  # kinks know no optimiser
    [
        ("smooth", None, "sgd"),
        ("smooth", None, "adam"),
        ("smooth", None, "adamw"),
        ("rectified", None, "sgd"),
        ("rectified", 0.3, "sgd"),
        ("rectified", 0.05, "adam"),
        ("rectified", None, "adamw"),
    ],
)
def test_by_full_batches_it_is_the_tangent(problem, width, optimizer, monkeypatch):
    if problem == "smooth":  # tangents have a floor under Adam's denominator where kinks are softened
        monkeypatch.setattr(adam, "FLOOR", 0.0)
    task, params = tiny("classification") if problem == "smooth" else rectified(dead=True)
    run = dict(optimizer=optimizer, learning_rate=0.2 if optimizer == "sgd" else 0.02)
    run |= {} if optimizer == "sgd" else dict(weight_decay=0.1)
    kinks = dict(kinks="softened", width=width)
    found = split(task, params, run, batch_size=N, **kinks)
    tangents = tangent_train(
        task, params, batch_size=N, epochs=STEPS, seeds=[4], left_out=TRAIN, test=TEST, progress=False, **run, **kinks
    )
    check(found, tangents.delta.isel(seed=0).sel(step=[1, 3, STEPS]).transpose("step", "test", "left_out"))
    between = split(task, params, run, batch_size=N, kinks="between")
    (check if problem == "smooth" else differs)(found, between, 1e-12 if problem == "smooth" else 1e-4)


@pytest.mark.parametrize("problem", ["smooth", "rectified"])
def test_clipped_sgd_by_full_batches_is_the_tangent(problem):
    task, params = tiny("classification") if problem == "smooth" else rectified()
    run, left_out = dict(optimizer="sgd", learning_rate=0.5, weight_decay=0.05, max_grad_norm=0.1), [[2, 11], [5]]
    found = split(task, params, run, batch_size=N, width=0.3, train=left_out)
    tangents = tangent_train(
        task, params, batch_size=N, epochs=STEPS, seeds=[4], left_out=left_out, test=TEST, progress=False, **run,
        kinks="softened", width=0.3,
    )  # fmt: skip
    expected = tangents.delta.isel(seed=0).sel(step=[1, 3, STEPS]).transpose("step", "test", "left_out")
    check(found, expected)
    differs(split(task, params, {**run, "max_grad_norm": 0.2}, batch_size=N, width=0.3, train=left_out), expected, 0.1)
    check(split(task, params, run, batch_size=N, width=0.3, train=left_out, dtype="float32"), expected, 1e-4)


def test_clipped_sgd_by_batches_is_close_to_the_mean_tangent():
    task, params = rectified()
    run = dict(optimizer="sgd", learning_rate=0.05, max_grad_norm=0.25)
    found = split(task, params, run, horizon=[12], batch_size=4, runs=2, width=0.1)
    tangents = tangent_train(
        task, params, batch_size=4, epochs=2, seeds=range(12), left_out=TRAIN, test=TEST, evaluate=[12],
        progress=False, kinks="softened", width=0.1, **run,
    )  # fmt: skip
    expected = tangents.delta.mean("seed").transpose("step", "test", "left_out").values
    check(found, expected, 0.1)


def test_clipped_sgd_that_takes_an_instance_off_every_batch_is_close_to_the_mean_tangent():
    task, params = tiny("classification")
    run = dict(optimizer="sgd", learning_rate=0.05, max_grad_norm=0.1)
    subtract, mask = (
        split(task, params, {**run, "removal": how}, horizon=[6], batch_size=4, runs=2) for how in ("subtract", "mask")
    )
    tangents = tangent_train(
        task, params, batch_size=4, epochs=1, seeds=range(4), left_out=TRAIN, test=TEST, evaluate=[6],
        progress=False, removal="subtract", **run,
    )  # fmt: skip
    expected = tangents.delta.mean("seed").transpose("step", "test", "left_out").values
    check(subtract, expected, 0.1)
    differs(mask, expected, 0.3)


@pytest.mark.slow
def test_with_adam_it_is_close_to_the_mean_tangent():
    task, params = rectified()
    run, steps = dict(optimizer="adam", learning_rate=0.003), [12, 24]
    kinks = dict(kinks="softened", width=0.1)
    found = split(task, params, run, horizon=steps, batch_size=2, runs=2, products=10, **kinks)
    tangents = tangent_train(
        task, params, batch_size=2, epochs=2, seeds=range(3), left_out=TRAIN, test=TEST, evaluate=steps,
        progress=False, **run, **kinks,
    )  # fmt: skip
    expected = tangents.delta.mean("seed").transpose("step", "test", "left_out").values
    for one, other, close in zip(found.values, expected, (0.98, 0.98), strict=True):
        assert (one * other).sum() > close * np.linalg.norm(one) * np.linalg.norm(other)


@pytest.mark.parametrize("rule", RULES)
def test_dead_units_and_zero_gradients_stay_finite(rule):
    task, params = rectified(dead=True)
    task.train[0][:, 1] = 0
    assert np.isfinite(split(task, params, RULES[rule], width=0.01)).all()


# Many steps at once


class DenseSpectrum:
    def __init__(self, G):
        self.eigenvalues, self.vectors = torch.linalg.eigh(G)

    def into(self, v):
        return v @ self.vectors

    def out_of(self, c):
        return c @ self.vectors.T


def symmetric(seed, size=6):
    M = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (M + M.T) / 2


@pytest.mark.parametrize(
    "rule", [Optimizer("sgd", 1e-3), Optimizer("adam", 2e-3), Optimizer("adamw", 1e-3, weight_decay=0.3)]
)
def test_the_error_is_of_second_order_in_the_number_of_steps_at_once(rule):
    steps, G, B, s = 2 * 3**5, symmetric(0), symmetric(1), symmetric(2)[:2]
    G = G @ G
    scale = None if rule.name == "sgd" else torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    answer = None if scale is None else -1e-3 * torch.linspace(2, 1, 6, dtype=torch.float64)
    drift = Drift(DenseSpectrum(G if scale is None else scale[:, None] * G * scale), rule, scale, answer, share=0.9)

    def after(m):
        motion = Motion(*[torch.zeros_like(s)] * 3)
        for first in range(0, steps, m):
            motion = midpoint(drift, motion, lambda delta: Force(delta @ B - s, delta @ B.T), first, m)
        return motion.delta

    delta, mean, square = [torch.zeros_like(s)] * 3
    for t in range(1, steps + 1):
        change = 0.9 * (delta @ (G + B) - s)
        mean = 0.9 * mean + 0.1 * change
        square = 0.999 * square + 0.001 * delta @ B.T
        update = change if scale is None else mean / (1 - 0.9**t) * scale**2 - answer * square / rule.learning_rate
        delta = (1 - rule.learning_rate * rule.weight_decay) * delta - rule.learning_rate * update
    torch.testing.assert_close(after(1), delta, rtol=1e-9, atol=1e-12)
    errors = [float((after(m) - delta).norm() / delta.norm()) for m in (81, 27, 9)]
    assert errors[-1] < 1e-3
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 6 < coarse / fine < 20, errors


@pytest.mark.parametrize("bounded", [True, False])
def test_where_an_instance_is_gone_a_step_of_adam_changes_by_no_more_than_its_length(bounded):
    rule, scale, b = Optimizer("adam", 0.01), torch.linspace(0.5, 1.5, 6, dtype=torch.float64), 2
    G, nothing = symmetric(0) @ symmetric(0), torch.zeros(b, 6, dtype=torch.float64)
    drift = Drift(DenseSpectrum(scale[:, None] * G * scale), rule, scale, 0 * scale, bounded=bounded)
    start = Motion(1e-3 * symmetric(3)[:b], nothing, nothing)
    small, large = (drift(start, Force(size * symmetric(1)[:b], nothing), 0, 5).delta for size in (1e-9, 1e9))
    differs(small.numpy(), start.delta.numpy())  # by no more than the bounds
    exact = Drift(drift.spectrum, rule, scale, 0 * scale)
    torch.testing.assert_close(small, exact(start, Force(1e-9 * symmetric(1)[:b], nothing), 0, 5).delta)
    assert ((large - start.delta).abs().max() <= 0.01 * 5 + 1e-12) == bounded


@pytest.mark.parametrize("scale", [None, torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)])
def test_a_unit_that_lingers_at_its_kink_cannot_let_the_difference_explode(scale):
    rest = torch.tensor([[1.0, -2.0, 3.0], [1e-6, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    delta = torch.tensor([[0.1, -0.3, 0.2], [0.5, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    nothing, drift = 0 * delta, Drift(None, Optimizer("sgd" if scale is None else "adam", 0.1), scale, share=0.5)
    found, s = limited(rest, nothing, delta, drift, 8), 1.0 if scale is None else scale
    moved, length = (0.1 * 8 * 0.5 * found * s).norm(dim=1), (delta / s).norm(dim=1)
    torch.testing.assert_close(moved[0], 0.5 * length[0])
    torch.testing.assert_close(found[0] / found[0].norm(), rest[0] / rest[0].norm())
    assert torch.equal(found[1:], rest[1:])
    assert torch.equal(limited(rest, nothing, delta, drift, 1), rest)  # the recursion itself
    back = limited(-1e-3 * rest, nothing, delta, drift, 8)  # along -δ: it makes δ grow
    if scale is None:
        assert torch.equal(back, -1e-3 * rest)
    else:
        np.testing.assert_allclose((back * delta).sum(1), 0, atol=1e-9)
        across = -1e-3 * rest[0] - back[0]
        torch.testing.assert_close(
            across * s**2 / across.norm(), delta[0] / across.norm() * (across * s**2 / delta[0])[0]
        )
        assert torch.equal(limited(-1e-3 * rest, 100 * delta, delta, drift, 8), -1e-3 * rest)  # G takes more back


def test_directions_in_which_steps_would_explode_settle_at_once():
    found = propagator(torch.tensor([50.0, 15.0, 0.0]), Optimizer("sgd", 0.1), 0, 4)[0]
    np.testing.assert_allclose(found[:3, 0], [0, 0, -1 / 50], atol=1e-7)
    np.testing.assert_allclose(found[[0, 2], 1], [0.5**4, -(1 - 0.5**4) / 15], rtol=1e-6)
    np.testing.assert_allclose(found[[0, 2], 2], [1, -0.4])


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "most", "far", "products", "backends"),
    [
        ("sgd", 0.2, None, [6, 18], 10, ["gram", "ekfac"]),
        ("adam", 0.003, None, [12, 36], 20, ["gram", "ekfac"]),  # of which the first steps are the hardest
        ("sgd", 0.3, 0.03, [6, 18], 10, ["ekfac"]),
    ],
)
def test_many_steps_at_once_come_close_to_single_ones(optimizer, learning_rate, most, far, products, backends):
    task, params = rectified()
    run = dict(optimizer=optimizer, learning_rate=learning_rate, max_grad_norm=most)
    expected = tangent_train(
        task, params, batch_size=N, epochs=far[-1], seeds=[4], left_out=TRAIN, test=TEST, evaluate=far, progress=False,
        kinks="softened", width=0.3, **run,
    ).delta[0].transpose("step", "test", "left_out")  # fmt: skip
    how = dict(horizon=far, products=products, width=0.3, batch_size=N, segments=4)
    for backend in backends:
        scores = split(task, params, run, backend=backend, **how)
        alone = split(task, params, run, horizon=far, batch_size=N, backend=backend, mode="one_run")
        errors = [np.linalg.norm(x.values - expected.values) / np.linalg.norm(expected) for x in (scores, alone)]
        assert errors[0] < 0.1 and errors[0] < errors[1] / 2, errors  # true products correct the filter


def test_boundaries_hold_the_horizons_where_they_are_few():
    assert boundaries([5], 100) == [1, 2, 3, 4, 5]
    assert set(boundaries([7, 333, 4000], 60)) >= {7, 333, 4000} and len(boundaries([4000], 60)) <= 60
    many = boundaries(range(1, 4001), 60)
    assert many[-1] == 4000 and len(many) <= 60 and np.diff(many)[-1] > 5 * np.diff(many)[0]


def test_between_boundaries_scores_are_interpolated():
    values = torch.tensor([[2.0], [4.0], [0.0]])
    np.testing.assert_allclose(interpolated(values, [2, 3, 7], [1, 2, 3, 5, 7])[:, 0], [1, 2, 4, 2, 0])


# What must not matter, and what cannot be


def test_runs_are_averaged_and_subsets_do_not_matter():
    task, params = rectified()
    run = RULES["adam"]
    both = split(task, params, run, runs=2, horizon=[2])
    alone = [
        split(task, params, run, further_training={"batch_size": 8, "seed": s, **run}, horizon=[2]) for s in (4, 5)
    ]
    check(both, (alone[0].values + alone[1].values) / 2, 1e-12)
    settings = dict(mode="split", order=1, horizon=[2])
    every = attribute("lft", task, params, further_training={"batch_size": 8, "seed": 4, **run}, **settings)
    check(alone[0], every.sel(train=TRAIN, test=TEST), 1e-10)


def test_a_sample_is_another_in_each_interval_and_comes_close_to_all_as_it_grows(monkeypatch):
    task, params = tiny("classification")
    drawn, plain, errors, steps = [], whole_hessian.Batches, [], 7
    expected = split(task, params, RULES["sgd"], horizon=[steps])
    monkeypatch.setattr(whole_hessian, "Batches", lambda rows: (drawn.append(rows), plain(rows))[1])
    for sample in (4, 20):
        found = split(task, params, RULES["sgd"], horizon=[steps], sample=sample).values
        errors.append(np.linalg.norm(found - expected.values) / np.linalg.norm(expected))
        rows = [frozenset(batch.tolist()) for (batch,) in drawn[-steps:]]
        assert {len(some) for some in rows} == {sample} and len({*rows}) > steps - 2
        assert len(frozenset.union(*rows)) > 0.6 * N
    assert 0 < 2 * errors[1] < errors[0] < 0.5


def test_scores_do_not_depend_on_how_many_instances_fit_the_memory(monkeypatch):
    task, params = rectified()
    options = dict(run=RULES["adam"], batch_size=4, sample=10, runs=2, width=0.3, train=[[2, 11], [11], [5, 8]])
    options["horizon"] = [2]
    expected, followed, follow = split(task, params, **options), [], lft_module.follow_whole
    of_one = 18 * 8 * sum(p.numel() for p in params.values())
    monkeypatch.setattr(lft_module, "follow_whole", lambda *given: (followed.append(len(given[2])), follow(*given))[1])
    for copies, sizes in ((2.5, [2, 1]), (0.5, [1, 1, 1])):
        monkeypatch.setattr(lft_module, "largest_held", lambda device, copies=copies: int(copies * of_one))
        check(split(task, params, **options), expected, 1e-11)
        assert followed == [size for size in sizes for _ in range(2)]
        followed.clear()


def test_scores_do_not_depend_on_how_many_batches_are_taken_at_once(monkeypatch):
    """... of the five of 4 instances, that is, times three left-out ones; the sixth has 3 instances."""
    task, params = tiny()
    settings = dict(run=RULES["clipped adam"], batch_size=4, horizon=[2])
    expected, taken = split(task, params, **settings), []
    plain = gradients.Gradients.hessian_products

    def noting(at, instances, vectors, *, each=False):
        taken.append(len(instances[1]) if each else 0)
        return plain(at, instances, vectors, each=each)

    monkeypatch.setattr(gradients.Gradients, "hessian_products", noting)
    held = gradients.Gradients(task, params).held
    for together, pairs in ((1, [0, 0]), (2, [2 * 3, 2 * 3, 0, 0]), (9, [5 * 3, 0])):
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 8 * held * 4 * 3 * together)
        check(split(task, params, **settings), expected, 1e-12)
        assert taken[1 : len(pairs) + 1] == pairs  # the first one is a trial
        taken.clear()


def test_whole_instances_are_removed_by_default():
    task, params = tiny()
    first = split(task, params, RULES["sgd"])
    second = split(task, params, RULES["sgd"], order=2)
    differs(second, first, 1e-3)
    check(second, first, 0.3)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (dict(products=1), "products: got 1, expected a whole number of at least 2"),
        (dict(kinks="hard"), "kinks: got 'hard', expected one of between, softened"),
        (dict(width=-1), "width: got -1"),
        (dict(width=0.2, kinks="between"), "width: got 0.2 with kinks 'between'; expected none, or kinks 'softened'"),
        (
            dict(width=0.2, mode="one_run"),
            "width: got 0.2 with mode 'one_run'; expected none, since only 'split' uses it",
        ),
        (dict(kinks="between", mode="closed_form"), "kinks: got 'between' with mode 'closed_form'"),
        (dict(products=60, mode="one_run"), "products: got 60 with mode 'one_run'"),
        (dict(sample=10, mode="one_run"), "sample: got 10 with mode 'one_run'"),
        (dict(run={**RULES["adam"], "optimizer": "sdg"}), "optimizer: got 'sdg'"),
        (dict(run=dict(learning_rate=1e60)), "The full run diverged"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused(changes, fragment):
    task, params = rectified()
    assert fragment in refusal(split, task, params, error=ValueError, **{"run": RULES["sgd"], **changes})


def test_scores_name_no_settings_that_had_no_part_in_them():
    task, params = rectified()
    alone, whole = (split(task, params, RULES["sgd"], mode=mode, horizon=[2]).attrs for mode in ("one_run", "split"))
    assert {alone[name] for name in ("kinks", "width", "products", "sample")} == {"unused"}
    assert (whole["kinks"], whole["width"], whole["products"], whole["sample"]) == ("softened", "null", 240, 4096)


def test_a_recorded_run_is_refused():
    task, params = rectified()
    stored = record_full_run(task, params, steps=3, batch_size=8, progress=False, **RULES["sgd"])
    message = refusal(split, task, params, {}, further_training=stored, error=ValueError)
    assert "mode: 'split' takes no recorded run; give its settings as a dict" in message


class Attentive(nn.Module):
    """Attention as PyTorch has it: its fused kernels have no forward derivative."""

    def __init__(self, causal):
        super().__init__()
        self.up, self.causal = nn.Linear(1, 4), causal
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        h = self.up(x[..., None])
        if self.causal:
            q = self.layer.out_proj(h).unflatten(2, (2, 2)).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(q, q.sin(), q.cos(), is_causal=True)
            return self.out(mixed.transpose(1, 2).flatten(2)[:, -1])
        padded = (x < 0) & (x < x.amax(1, keepdim=True))
        return self.out(self.layer(h, h, h, key_padding_mask=padded, need_weights=False)[0].mean(1))


@pytest.mark.filterwarnings("ignore")  # attention has no batching rule, and is slow
@pytest.mark.parametrize("causal", [False, True])
def test_attention_has_a_forward_derivative(causal):
    torch.manual_seed(0)
    task, _ = tiny()
    task = dataclasses.replace(task, model=Attentive(causal).double())
    if causal:  # which does without them
        task.model.layer.in_proj_weight.requires_grad = task.model.layer.in_proj_bias.requires_grad = False
    params = parameters_of(task.model)
    expected = oracles.grad_dot(task, params, TRAIN, TEST, None) * 1e-6 / N
    for order in (1, 2):
        tiny_step = split(task, params, dict(optimizer="sgd", learning_rate=1e-6), horizon=[1], order=order)
        check(tiny_step[0], expected, 1e-4)
    rule = dict(optimizer="sgd", learning_rate=1e-3)
    full = split(task, params, rule, horizon=[3], batch_size=N, kinks="between")
    tangent = tangent_train(
        task, params, **rule, batch_size=N, epochs=3, seeds=[4], left_out=TRAIN, test=TEST, evaluate=[3], progress=False
    )
    check(full[0], tangent.delta[0, :, 0].T, 1e-6)


def test_a_model_that_changes_as_it_is_trained_is_refused():
    task, _ = tiny()
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    odd = dataclasses.replace(task, model=nn.Sequential(layer, nn.Linear(3, 1)).double())
    run = dict(optimizer="sgd", learning_rate=0.1)
    message = refusal(split, odd, parameters_of(odd.model), run, error=ValueError)
    assert "changes its own" in message and "model.eval()" in message
