"""Linear datamodeling scores and removal curves where the answer is known: one tiny step changes losses by Grad-Dot."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from problems import tiny
from scipy.stats import spearmanr

from fimoda_lib import sensitivity
from fimoda_lib.experiments import lds, removal_curves, subsets
from fimoda_lib.experiments.panel import PAPER_METHODS, Panel
from fimoda_lib.experiments.paper_settings import Training
from fimoda_lib.experiments.profiles import PROFILES
from fimoda_lib.plots import lds as lds_plot
from fimoda_lib.plots import removal_curves as curves_plot

N = 40


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """A step of full batches so short that leaving out a group changes losses by η/n times its Grad-Dot scores."""
    task, params = tiny("regression", n=N, n_test=6)
    made = Panel("diabetes", "quick", results=tmp_path_factory.mktemp("results"))
    further = Training("sgd", 1e-5, 1, N)
    settings = replace(made.settings, further=further, seeds=(0, 1), test=tuple(range(6)), without=("lissa_h",))
    return replace(made, given_task=task, given_params=params, given_settings=settings)


@pytest.fixture(scope="module")
def far(panel, tmp_path_factory):
    """Steps that are large enough for the ranking to change between three horizons; Grad-Dot and LFT."""
    others = tuple(name for name in PAPER_METHODS if name != "grad_dot")
    further = Training("sgd", 0.1, 60, N, evaluate=(1, 8, 60))
    settings = replace(panel.settings, further=further, without=others)
    return replace(panel, given_settings=settings, results=tmp_path_factory.mktemp("far"))


@pytest.fixture(scope="module")
def exact(panel):
    """Changes of the test losses [test, train] by leaving out single instances."""
    return 1e-5 / N * oracles.grad_dot(panel.task, panel.params, range(N), range(6), None)


def test_the_score_is_one_of_what_is_true_and_it_is_measured_once(panel):
    table = lds.datamodeling_scores(panel)
    assert set(table.share) == {0.01, 0.1, 0.5} and set(table.epoch) == {1.0}
    for method in ("grad_dot", "lft", "ceiling"):
        rows = table[table.method == method]
        assert (rows[["lds", "low", "high"]] > 0.999).all(axis=None) and (rows.undefined == 0).all()
    for method in ("ekfac", "trak"):  # they say something else
        assert (table[table.method == method].lds < 0.99).all()
    again = replace(panel, compute=False)
    assert lds_plot.table(again).equals(table)
    assert lds_plot.table(replace(again, results="nowhere")) is None


def test_every_horizon_is_judged_by_the_scores_that_were_made_for_it(far):
    table, studied = lds.datamodeling_scores(far), subsets.studied(far)
    some = subsets.subset_bank(studied)[1] == 0.1
    predicted = subsets.predictions(studied, "lft").predicted.transpose("horizon", "test", "train").values[..., some]
    measured = sensitivity(lds.subset_runs(far), "full").transpose("step", "test", "left_out").values[..., some]
    rows = table[(table.method == "lft") & (table.share == 0.1)]
    assert rows.step.tolist() == [1, 8, 60] and rows.lds.min() > 0.9
    np.testing.assert_allclose(rows.lds, lds.lds(predicted, measured)[0][0], rtol=1e-9)
    assert (lds.lds(predicted[::-1], measured)[0][0, [0, 2]] < rows.lds.iloc[[0, 2]] - 0.05).all()


def test_a_removal_curve_takes_the_choice_that_was_made_for_its_horizon(far):
    chosen, groups = removal_curves.removed_groups(far, removal_curves.rankings(far))
    said = subsets.predictions(subsets.studied(far), "lft")
    lft = chosen[(chosen.method == "lft") & (chosen.share == 0.05)]
    assert len(set(lft.step)) == 2
    for row in lft.itertuples():
        ranked = said[row.direction].sel(horizon=row.step, test=row.test).values
        assert set(groups[row.group]) == set(ranked[: round(0.05 * N)].tolist())
    early, late = (rows.sort_values(["test", "direction"]).group.values for _, rows in lft.groupby("step"))
    assert (early != late).any()


def test_a_subset_whose_run_diverged_is_left_aside_and_counted(panel, monkeypatch):
    runs, whole = lds.subset_runs(panel), lds.datamodeling_scores(panel)
    broken = runs.copy(deep=True)
    broken.delta.loc[{"left_out": broken.left_out[0]}] = np.nan
    monkeypatch.setattr(lds, "subset_runs", lambda panel: broken)
    table = lds.datamodeling_scores(panel)
    assert {*table.groupby("share").diverged.first()} == {0, 1} and (whole.diverged == 0).all()
    assert (table[table.method == "lft"].lds > 0.999).all()


def test_the_score_is_the_mean_rank_correlation_over_subsets():
    random = np.random.default_rng(0)
    measured, predicted = random.normal(size=(3, 7, 30)), random.normal(size=(3, 7, 30)).round(1)
    by_hand = [[spearmanr(a, b).statistic for a, b in zip(*pair, strict=True)] for pair in zip(predicted, measured)]
    draws, undefined = lds.lds(predicted, measured)
    np.testing.assert_allclose(draws[0], np.mean(by_hand, 1), rtol=1e-9)
    assert draws.shape == (1001, 3) and (undefined == 0).all()
    one, _ = lds.lds(predicted[0], measured)  # without horizons: the same at all of them
    np.testing.assert_allclose(one[0, 0], draws[0, 0], rtol=1e-12)
    predicted[0, 2] = 1.0
    assert lds.lds(predicted, measured)[1].tolist() == [1, 0, 0]
    np.testing.assert_allclose(lds.lds(predicted, measured)[0][0, 0], np.mean(np.delete(by_hand[0], 2)) * 6 / 7)
    assert np.isnan(lds.lds(np.full((7, 30), np.nan), measured)[0]).all()  # diverged, not 0


def test_shuffled_scores_have_a_score_of_zero_within_its_interval_and_true_ones_have_one():
    random = np.random.default_rng(1)
    effects, covered = random.normal(size=(20, 200)), []
    member = np.stack([np.isin(np.arange(200), random.choice(200, 20, replace=False)) for _ in range(100)], 1)
    measured = (effects @ member)[None]
    assert (lds.lds(effects @ member, measured)[0] > 0.999999).all()
    for k in range(20):
        shuffled = np.random.default_rng(k).permuted(effects, axis=1) @ member
        low, high = np.quantile(lds.lds(shuffled, measured, draws=200)[0][1:, 0], [0.025, 0.975])
        assert high - low < 0.25
        covered.append(low < 0 < high)
    assert np.mean(covered) >= 0.85
    mixed = lds.lds(0.5 * shuffled + effects @ member, measured)[0][0, 0]
    assert 0.5 < mixed < 0.99


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_the_ceiling_is_what_a_perfect_method_reaches(seeds):
    random = np.random.default_rng(seeds)
    truth = random.normal(size=(1, 1, 50, 400))
    delta = truth + 1.2 * random.normal(size=(seeds, 1, 50, 400))
    reached = lds.lds(truth[0], delta.mean(0), draws=2)[0][0, 0]
    assert abs(lds.seeds_ceiling(delta, draws=2)[0][0, 0] - reached) < 0.02
    assert np.isnan(lds.seeds_ceiling(delta[:1], draws=2)[0]).all()


def test_subsets_are_different_random_and_of_the_size_asked_for():
    found = subsets.random_subsets(50, 0.1, 30)
    assert len(set(found)) == 30 and {len(set(group)) for group in found} == {5}
    assert found == subsets.random_subsets(50, 0.1, 30) != subsets.random_subsets(50, 0.1, 30, seed=1)
    assert len({i for group in found for i in group}) > 40
    assert sorted(subsets.random_subsets(4, 0.01, 30)) == [(0,), (1,), (2,), (3,)]  # there are no more
    assert all(len(group) == 1 for group in subsets.random_subsets(2, 0.9, 5))  # something is left over


def test_removal_curves_are_the_sums_of_the_largest_effects(panel, exact):
    table = removal_curves.removal_curves(panel)
    tested = removal_curves.curve_panel(panel).settings.test
    ordered = np.sort(exact[list(tested)], axis=1)
    for (method, direction, share), rows in table.groupby(["method", "direction", "share"]):
        k = max(round(share * N), 1)
        most = {"helpful": ordered[:, ::-1], "harmful": ordered}[direction][:, :k].sum(1).mean()
        for change in rows.change:
            if method in ("grad_dot", "lft"):
                assert change == pytest.approx(most, rel=1e-3)
            else:
                assert change <= most * 1.001 if direction == "helpful" else change >= most * 1.001
    assert {*table.method} >= {"random", "alike", "ekfac"} and {*table.direction} == {"helpful", "harmful"}
    lot = table[(table.method == "random") & (table.share == 0.05)].change.iloc[0]
    orders = removal_curves.by_lot(panel.task, tested, np.arange(N), 2)
    by_hand = np.mean([exact[z, order].sum() for z, order in zip(tested, orders, strict=True)])
    assert lot == pytest.approx(by_hand, rel=1e-3)
    assert curves_plot.table(replace(panel, compute=False)).equals(table)


def test_controls_by_hand():
    task, _ = tiny("regression", n=30)
    distance = [[float((a - b).square().sum()) for b in task.train[0]] for a in task.test[0]]
    near, everyone = np.argsort(np.array(distance)[[3, 1]], axis=1), np.arange(30)
    assert np.array_equal(removal_curves.alike(task, [3, 1], everyone, 4), near[:, :4])
    odd = near[near % 2 == 1].reshape(2, 15)
    assert np.array_equal(removal_curves.alike(task, [3, 1], everyone[1::2], 4), odd[:, :4])
    task, _ = tiny("classification", n=30)
    found = removal_curves.alike(task, [4, 0], everyone, 30)
    for z, order in zip([4, 0], found, strict=True):
        same = task.train[1][torch.from_numpy(order)] == task.test[1][z]
        assert same[: same.sum()].all() and sorted(order) == list(range(30))
    assert removal_curves.by_lot(task, [4, 0], everyone, 5).shape == (2, 5)
    assert not np.array_equal(*removal_curves.by_lot(task, [4, 0], everyone, 5))


def test_groups_come_from_a_pool_where_data_are_many(panel, monkeypatch):
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], pool=20))
    rows = subsets.pool(panel)
    assert len(set(rows)) == 20 and rows.max() >= 20
    studied = subsets.studied(panel)
    groups, shares = subsets.subset_bank(studied)
    assert {i for group in groups for i in group} == set(rows) and {len(g) for g in groups} == {1, 2, 10}
    said = subsets.predictions(studied, "grad_dot")
    assert {*said.helpful.values.ravel(), *said.harmful.values.ravel()} <= set(rows)
    found = lds.datamodeling_scores(panel)
    assert (found[found.method == "grad_dot"].lds > 0.999).all()


def test_what_others_do_beside_lft_is_measured_on_the_same_test_instances(panel, exact):
    script = Path(removal_curves.__file__).parents[2] / "benchmarks" / "removal_curves.py"
    spec = importlib.util.spec_from_file_location("many_removal_curves", script)
    many = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(many)
    rows = many.rows(panel)
    one = rows[(rows.direction == "helpful") & (rows.share == 0.05)].set_index("method")
    assert (one.loc["grad_dot", ["less_lft", "less_low", "less_high"]] == 0).all()  # the same choice
    tested = removal_curves.curve_panel(panel).settings.test
    orders = removal_curves.by_lot(panel.task, tested, np.arange(N), 2)
    less = [exact[z, o].sum() - np.sort(exact[z])[-2:].sum() for z, o in zip(tested, orders, strict=True)]
    draws = subsets.resampling(len(tested), removal_curves.DRAWS, 2)[1:] @ less
    assert one.less_lft["random"] == pytest.approx(np.mean(less), rel=1e-3)
    assert one.less_low["random"] == pytest.approx(np.quantile(draws, 0.025), rel=1e-3)
    assert one.less_high["random"] == pytest.approx(np.quantile(draws, 0.975), rel=1e-3)
    assert (one.change - one.change["lft"]).to_numpy() == pytest.approx(one.less_lft.to_numpy(), abs=1e-12)
    assert set(rows.tests) == {len(tested)} and set(rows.after_step) == {1}
