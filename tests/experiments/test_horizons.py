"""Selection by horizon: who is dropped, and what is gained, on sets that do not overlap."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from plain import train as train_plainly

from fimoda_lib import attribute, load_task
from fimoda_lib.experiments import horizons as study
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.settings import settings
from fimoda_lib.intervals import log_spaced
from fimoda_lib.plots import selection as plot
from fimoda_lib.storage.store import asked
from fimoda_lib.tasks import parameters_of


@pytest.fixture(scope="module")
def panel(tmp_path_factory, computed):
    """Wine at the smallest size; two methods, and LFT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "methods", ("grad_dot", "ekfac"))
        results = tmp_path_factory.mktemp("results")
        computed(results, "final-wine", "selection-wine")
        yield Panel("wine", "smoke", results=results)


def test_the_three_sets_do_not_overlap(panel):
    candidates, validation, untouched = study.thirds(panel)
    assert not {*validation} & {*untouched} and len(validation) + len(untouched) == panel.task.n_test
    assert len({*candidates}) == len(candidates) == 24 and candidates.max() < panel.task.n_train


def test_values_are_mean_scores_for_the_validation_set(panel):
    candidates, validation, _ = study.thirds(panel)
    scores = attribute("grad_dot", panel.task, panel.params, train=candidates, test=validation)
    np.testing.assert_allclose(study.values_of(panel, "grad_dot"), scores.mean("test"), rtol=1e-6)
    lft = study.values_of(panel, "lft")
    assert lft.dims == ("horizon", "train") and lft["horizon"].values[-1] == panel.hyper("lft")["horizon"][-1]


def test_the_most_harmful_are_dropped():
    values = xr.DataArray([3.0, -1.0, 0.5, -2.0, 0.0], {"train": [10, 20, 30, 40, 50]})
    assert study.most_harmful(values, share=0.4) == (20, 40) and study.most_harmful(values, share=0.01) == (40,)
    assert study.most_harmful(-values, share=0.4) == (10, 30)


def test_every_choice_is_a_group_and_equal_ones_are_run_once(panel):
    rows, groups = study.groups_of(panel)
    assert len({*groups}) == len(groups) and {*rows["group"]} == {*range(len(groups))}
    assert {*map(len, groups)} == {2} and (rows["method"] == study.LOT).sum() == study.RANDOM
    mine = rows[rows["method"] == "grad_dot"].iloc[0]
    assert groups[mine["group"]] == study.most_harmful(study.values_of(panel, "grad_dot"))


def test_what_lft_drops_for_a_horizon_is_chosen_by_its_scores_for_that_horizon(panel, monkeypatch):
    values = xr.DataArray(
        np.random.default_rng(0).normal(size=(3, 24)), {"horizon": [1, 5, 9], "train": study.thirds(panel)[0]}
    )
    monkeypatch.setattr(study, "values_of", lambda panel, method: values if method == "lft" else values[0] * 0 + 1)
    rows, groups = study.groups_of(panel)
    chosen = {row.step: groups[row.group] for row in rows[rows["method"] == "lft"].itertuples()}
    assert chosen == {k: study.most_harmful(values.sel(horizon=k)) for k in (1, 5, 9)} and len({*chosen.values()}) == 3


def test_the_gain_is_that_of_a_plain_loop_without_the_group(panel):
    rows, groups = study.groups_of(panel)
    table, (_, _, untouched), s = study.gains(panel), study.thirds(panel), panel.settings
    chosen = table[(table["method"] == "grad_dot") & (table["part"] == "untouched")]
    inputs, targets = panel.task.test
    task = replace(panel.task, test=(inputs[untouched].double(), targets[untouched].double()))
    params = {k: p.double() for k, p in panel.params.items()}
    group = groups[rows[rows["method"] == "grad_dot"]["group"].iloc[0]]

    def mean_losses(removed):
        runs = [
            [float(step.mean()) for step in train_plainly(
                task, params, optimizer="sgd", learning_rate=s.further.learning_rate, batch_size=s.further.batch_size,
                epochs=s.further.epochs, seed=seed, removal="mask", removed=removed)]
            for seed in s.seeds
        ]  # fmt: skip
        return np.mean(runs, axis=0)[chosen["after_step"].to_numpy() - 1]

    full, without = mean_losses(None), mean_losses(group)
    np.testing.assert_allclose(chosen["gain"], 100 * (full - without) / full, rtol=1e-3)
    other = mean_losses(next(g for g in groups if not {*g} & {*group}))
    assert not np.allclose(chosen["gain"], 100 * (full - other) / full, rtol=1e-1)


def test_resampled_means_have_the_spread_of_means():
    values = np.random.default_rng(1).normal(2.0, 1.0, (1, 4, 400))
    found = study.resampled_means(values, draws=4000)
    assert found.shape == (1, 4001) and found[0, 0] == pytest.approx(values.mean(), rel=1e-12)
    assert found[0, 1:].mean() == pytest.approx(values.mean(), abs=0.01)
    expected = np.sqrt(values.mean((0, 1)).var() / 400 + values.mean((0, 2)).var() / 4)  # seeds and instances
    assert found[0, 1:].std() == pytest.approx(expected, rel=0.3)
    same = study.resampled_means(np.full((3, 2, 5), 7.0), draws=10)
    np.testing.assert_allclose(same, 7.0)


def test_intervals_hold_the_gain_and_random_gains_nothing_over_itself(panel):
    table = study.gains(panel)
    assert (table["low"] <= table["gain"]).all() and (table["gain"] <= table["high"]).all()
    lot = table[table["method"] == study.LOT]
    assert (lot[["over_random", "over_low", "over_high"]] == 0).all(axis=None) and set(table["part"]) == {
        "validation",
        "untouched",
    }
    best = study.best_horizons(table)
    assert best["after_epoch"].is_monotonic_increasing and set(best["epoch"]) <= set(table["epoch"].dropna())
    assert plot.table(panel.other(compute=False)).equals(table)  # found, not computed again
    assert plot.table(panel.other(compute=False, results=panel.folder / "elsewhere")) is None


def test_long_further_training_is_evaluated_evenly_on_a_log_axis():
    """... at the ends of about fifty epochs, the first and the last among them; short training after every epoch."""
    task = load_task("diabetes")
    for profile, epochs, at_most in (("quick", 62, 60), ("laptop", 500, 60)):
        found = settings(task, profile).further
        steps = np.array(found.evaluate) / -(-task.n_train // found.batch_size)
        assert found.epochs == epochs and (steps == steps.round()).all() and (np.diff(steps) > 0).all()
        assert (steps[0], steps[-1]) == (1, epochs) and 30 < len(steps) <= at_most
        gaps = np.diff(np.log(steps))[np.diff(steps) > 1]
        assert gaps.max() < 0.2
    assert settings(task, "smoke").further.evaluate is None


def test_a_profile_for_two_cores_takes_some_of_many_instances_for_the_curvature():
    """... the left-out ones among them; the others and smaller data take all."""
    many = replace(load_task("diabetes"), name="folktables", train=(torch.zeros(32_091, 10), torch.zeros(32_091, 1)))
    found = settings(many, "laptop")
    assert len(found.curvature) == 2_500 and {*found.left_out} <= {*found.curvature}
    few = replace(many, train=(torch.zeros(8_883, 10), torch.zeros(8_883, 1)), name="fico")
    assert settings(few, "laptop").curvature is None
    overnight = settings(many, "overnight")
    assert overnight.curvature is None and len(overnight.study_curvature) == 5_000
    assert {*overnight.left_out} <= {*overnight.study_curvature}
    assert found.study_curvature == found.curvature
    paper = settings(many, "paper")
    assert paper.curvature is None and paper.study_curvature is None


def test_studies_may_have_fewer_seeds_and_steps_of_lissa_h_than_the_figures():
    task = replace(load_task("diabetes"), name="concrete")
    found = Panel("concrete", "overnight", given_task=task)
    s = found.settings
    assert (len(s.seeds), s.study_seeds) == (100, 5)
    assert found.hyper("lissa_h")["depth"] == 5000 and found.hyper("lissa_h", many=True)["depth"] == 500
    whole = Panel("concrete", "paper", given_task=task)
    assert whole.hyper("lissa_h", many=True)["depth"] == 5000


@pytest.mark.parametrize("stored", [Panel.scores, study.values_of], ids=["scores", "rankings"])
def test_scores_with_another_loss_are_others(stored, tmp_path):
    own = load_task("wine")
    kept = {"results": tmp_path, "compute": False, "given_params": parameters_of(own.model)}

    def huber(o, t):
        return torch.nn.functional.huber_loss(o, t, reduction="none").sum(1)

    def path(task):
        panel = Panel("wine", "smoke", given_task=task, **kept)
        return asked(lambda: stored(panel, "grad_dot"))

    assert path(own) == path(None) != path(replace(own, loss=huber))


def test_horizons_are_picked_by_their_steps_not_by_their_place():
    def picked(steps, count):
        return [steps[k] for k in log_spaced(steps, count)]

    assert picked([8, 16, 24, 32, 40, 48, 56, 64], 4) == [8, 16, 32, 64]
    assert picked([8, 16, 32, 64], 4) == [8, 16, 32, 64]
    assert picked([1, 2, 5, 10, 20, 50, 100], 3) == [1, 10, 100] and picked([7], 5) == [7]
