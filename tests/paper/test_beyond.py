"""Figures beyond the paper and the runs behind them, from tiny stored results."""

import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn

from fimoda_lib.comparison import noise_ceiling, seed_agreement, sensitivity, similarity
from fimoda_lib.datasets import sentences
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.experiments import paper_settings, profiles
from fimoda_lib.experiments.exact_derivative import exact_derivative
from fimoda_lib.experiments.followed import LFT_SEED, SPLIT_LEAST, SPLIT_RUNS, SPLIT_SEGMENTS
from fimoda_lib.experiments.panel import Panel, finished
from fimoda_lib.experiments.profiles import get_profile
from fimoda_lib.experiments.studies import (
    FRACTIONS,
    UNITS,
    first_order_limit,
    first_order_runs,
    linearised_run,
    log_epochs,
    output_runs,
    removal_runs,
    removal_seeds,
    softened_tangents,
    swap_units,
    with_units,
)
from fimoda_lib.intervals import ceiling_interval
from fimoda_lib.methods import attribute
from fimoda_lib.paper import beyond, figures, over_horizons
from fimoda_lib.plots import filters, first_order, removal
from fimoda_lib.training.final_model import TrainingDiverged

pytestmark = pytest.mark.usefixtures("quick_pictures")
LEAST_PRODUCTS = get_profile("smoke").least_products


@pytest.fixture(scope="module")
def panels(tmp_path_factory, trained, computed):
    results = tmp_path_factory.mktemp("results")
    methods = ("grad_dot", "lft", "timed")
    kinds = ("further-diabetes", "tangent-diabetes", "adjoint-diabetes-sgd")
    computed(results, *kinds, *(f"scores-diabetes-{name}" for name in methods))
    for optimizer in ("sgd", "adam"):
        trained(results, "diabetes", optimizer)
    panels = {k: Panel(name, "smoke", results=results) for k, name in {"a": "diabetes", "b": "wine"}.items()}
    a = panels["a"]  # nothing of panel b is run
    for name in methods:
        a.scores(name)
    exact_derivative(a)
    a.other(optimizer="adam").scores("lft")
    assert a.gold.sizes["seed"] == a.other(optimizer="adam").gold.sizes["seed"] == 2
    first_order_runs(a)
    output_runs(a)
    softened_tangents(a)
    linearised_run(a)
    removal_runs(a)
    return {k: panel.other(compute=False) for k, panel in panels.items()}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.slow
def test_mask_and_drop_are_compared_where_both_were_evaluated(tmp_path):
    """Also where long further training is evaluated evenly on a log axis, as it is but for the smallest size."""
    panel = Panel("wine", "quick", results=tmp_path)
    few = replace(panel.settings, seeds=(0,), left_out=(3,), test=(0, 1), final=panel.settings.final.scaled(0.01))
    runs = removal_runs(replace(panel, given_settings=few))
    steps = runs["mask"].step.values
    assert steps[-1] <= 12 * 2 < panel.settings.further.evaluate[-1] and len(steps) >= 10
    np.testing.assert_array_equal(runs["drop"].step, steps)


def test_precision_of_steps_and_weights_of_the_papers_size(tmp_path, monkeypatch):
    """Sentences: left out by `subtract`, counted in steps; once more as if the paper had ten times as many of them."""
    monkeypatch.setattr(sentences, "N_TRAIN", 128)
    panel = Panel("sentences", "smoke", results=tmp_path)
    whole = first_order_runs(panel, fractions=[1.0])
    assert whole.step.values.tolist() == list(panel.settings.further.evaluate) == [1, 2]
    n = panel.task.n_train
    small = replace(paper_settings.EXPERIMENTS["sentences"], n_train=n, n_all=10 * n)
    further = {"adamw": replace(small.further["adamw"], learning_rate=1e-6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper_settings.SMALL, "sentences", small)
        found = first_order_runs(panel, fractions=[1.0])
        patch.setitem(paper_settings.EXPERIMENTS, "sentences", replace(small, further=further))
        slower = first_order_runs(panel, fractions=[1.0])
    ratio = found.delta.sel(run="tangent") / whole.delta.sel(run="tangent")
    np.testing.assert_allclose(ratio, 0.1, rtol=1e-6)
    sizes = [float(abs(runs.delta.sel(run="1.0")).mean()) for runs in (whole, found, slower)]
    assert sizes[1] == pytest.approx(sizes[0] / 10, rel=0.1) and sizes[2] < sizes[1] / 3
    sizes = first_order.precision_table(panel)
    assert (sizes[["sensitivity", "float32", "losses"]] > 0).all(axis=None)


def test_units_are_swapped_and_nothing_else(tmp_path, computed):
    computed(tmp_path, "final-wine", "further-wine", "tangent-wine", "scores-wine-lft")
    panel = Panel("wine", "smoke", results=tmp_path)
    table = first_order.units_table(panel)
    known = {("loss", 0.1), ("loss", 1.0), ("lft", 1.0)}
    found = set(zip(table.unit, table.quantity, table.fraction, strict=True))
    assert found == {(u, *k) for u in UNITS for k in known} | {("ReLU", "softened", 1.0)}
    by_unit = table.query("quantity == 'loss'").groupby("unit")["mean"].min()
    assert by_unit["SiLU"] > 0.995 > by_unit["ReLU"]  # units switch in a few steps
    smooth, rectified = (with_units(panel, unit) for unit in (nn.SiLU, nn.ReLU))
    assert "SiLU" in repr(smooth.task.model) and "ReLU" not in repr(smooth.task.model)
    assert repr(rectified.task.model) == repr(panel.task.model) != repr(smooth.task.model)
    for p, q in zip(smooth.task.model.parameters(), panel.task.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert rectified.params.keys() == panel.params.keys()
    assert all(torch.equal(p, panel.params[k]) for k, p in rectified.params.items())
    assert not torch.equal(smooth.params["0.weight"], panel.params["0.weight"])
    figure = beyond.figure_units({"b": panel}, tmp_path / "figures")
    assert len(figure.axes[0].get_lines()) == 7
    kept = beyond.figure_units({"b": panel.other(results=tmp_path / "elsewhere", compute=False)}, tmp_path / "figures")
    assert len(kept.axes[0].get_lines()) == 7  # drawn earlier


SHOWN = [name for name in beyond.FIGURES if name.startswith("fig") and name not in ("fig_units", "fig_rounding")]


@pytest.mark.parametrize("name", SHOWN)
def test_every_figure_draws_what_is_there_and_says_what_is_not(panels, tmp_path, name):
    figure = beyond.FIGURES[name](panels, tmp_path)
    drawn, missing = figure.axes[:2]
    assert len(drawn.get_lines()) >= 2
    words = " ".join(" ".join(t.get_text() for t in missing.texts).split())
    assert words == f"Not run yet: ./run_all.sh --profile smoke --only {name} --datasets wine"
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert set(table.panel) == {"a"}
    note = json.loads((tmp_path / f"{name}.json").read_text())
    assert note["notebook"] == "06_why_methods_decay" and note["caption"].count(". ") >= 2
    assert {p.name for p in tmp_path.glob(f"{name}a_diabetes.*")} == {
        f"{name}a_diabetes.{e}" for e in ("csv", "json", "pdf", "png")
    }


def test_the_damping_of_the_horizon_is_a_curve_and_a_row(panels, tmp_path):
    panel, label = panels["a"], figures.LOOK["timed"].label
    figure = beyond.figure2_plus({"a": panel}, tmp_path)
    line = {x.get_color(): x for x in figure.axes[0].get_lines()}[figures.LOOK["timed"].colour]
    scores = panel.scores("timed")
    np.testing.assert_allclose(line.get_ydata(), similarity(scores, sensitivity(panel.gold))["mean"], rtol=1e-9)
    last, damping = scores.isel(horizon=-1), 1 / (panel.settings.further.learning_rate * int(scores.horizon[-1]))
    chosen = {"train": panel.settings.left_out, "test": panel.settings.test}
    exact = attribute("exact", panel.task, panel.params, damping=damping, multiple=1.0, **chosen)
    np.testing.assert_allclose(last, exact / panel.task.n_train, rtol=1e-4, atol=1e-6 * abs(last).max())
    assert label in set(beyond.table_horizons({"a": panel}, tmp_path)["method"])
    assert "the horizon's own damping" in json.loads((tmp_path / "fig02plus.json").read_text())["caption"]


def test_the_exact_derivative_is_a_few_points_of_the_curve_and_a_row(panels, tmp_path):
    panel, look = panels["a"], figures.LOOK["adjoint"]
    found, gold, test = exact_derivative(panel), panel.gold, list(range(get_profile("smoke").exact_tests))
    steps = found.horizon.values
    assert found.test.values.tolist() == test and found.sizes["train"] == panel.task.n_train and len(steps) <= 5
    assert (steps[0], steps[-1]) == (gold.step.values[0], gold.step.values[-1])
    figure = beyond.figure2_plus({"a": panel}, tmp_path)
    line = {x.get_color(): x for x in figure.axes[0].get_lines()}[look.colour]
    expected = []
    for step in steps:
        s = gold.delta.sel(step=step, test=test).mean("seed").astype(float)
        s, a = s - s.mean("left_out"), found.sel(horizon=step, train=gold.left_out.values).values
        expected.append(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, s.T.values)]))
    assert line.get_linestyle() == "None" and line.get_marker() == "s"
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width  # in as many columns as fit
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-5)
    rows = pd.read_csv(tmp_path / "fig02plus.csv").query("method == 'adjoint'")
    assert rows.step.tolist() == steps.tolist() and (rows.low < rows["mean"]).all()
    np.testing.assert_allclose(rows["mean"], expected, rtol=1e-5)
    caption = json.loads((tmp_path / "fig02plus.json").read_text())["caption"]
    assert f"squares: exact derivative, {len(test)} test instances" in caption and len(caption.split()) <= 60
    row = beyond.table_horizons({"a": panel}, tmp_path).set_index("method").loc[look.label]
    assert row["last"] == pytest.approx(expected[-1], rel=1e-5) and row["seconds"] > 0 and not row["leads"]
    note = json.loads((tmp_path / "table_horizons.json").read_text())
    assert note["caption"].endswith(over_horizons.FEWER) and len(note["caption"].split()) <= 60


def test_the_exact_derivative_is_the_mean_of_adjoints_of_several_runs(panels, tmp_path, monkeypatch):
    panel, seeds = panels["a"], (LFT_SEED, LFT_SEED + 1)
    monkeypatch.setitem(profiles.PROFILES, "smoke", replace(get_profile("smoke"), exact_tests=2, exact_seeds=2))
    given = {"given_task": panel.task, "given_params": panel.params, "given_settings": panel.settings}
    found = exact_derivative(replace(panel, results=tmp_path, compute=True, **given)).isel(horizon=-1)
    double = {k: v.double() for k, v in panel.params.items()}
    run = {"optimizer": "sgd", "learning_rate": panel.settings.further.learning_rate, "batch_size": 128}
    run |= {"horizon": int(found.horizon), "test": [0, 1], "progress": False}
    both = [adjoint_train(panel.task, double, **run, seed=seed, kinks="softened").values for seed in seeds]
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, rtol=1e-9)
    assert not np.allclose(both[0], both[1], rtol=0.01)
    between = np.mean([adjoint_train(panel.task, double, **run, seed=seed).values for seed in seeds], axis=0)
    assert not np.allclose(found, between, rtol=1e-5, atol=0)  # few units switch in so few steps


def test_where_a_run_diverges_the_exact_derivative_has_a_gap(panels, tmp_path, monkeypatch):
    panel, steps = panels["a"], exact_derivative(panels["a"]).horizon.values

    def sometimes(*arguments, horizon, test, **more):
        if horizon == steps[-1]:
            raise TrainingDiverged("its derivative is not finite")
        rows = {"test": [*test], "train": range(panel.task.n_train)}
        values = np.random.default_rng(horizon).normal(size=(len(test), panel.task.n_train))
        return xr.DataArray(values, rows, ("test", "train"))

    monkeypatch.setattr("fimoda_lib.experiments.exact_derivative.adjoint_train", sometimes)
    without = shutil.ignore_patterns("adjoint*")
    shutil.copytree(panel.folder, tmp_path / panel.folder.name, ignore=without)
    found = exact_derivative(again := replace(panel, results=tmp_path, compute=True))
    assert found.isel(horizon=-1).isnull().all() and found.isel(horizon=slice(-1)).notnull().all()
    beyond.figure2_plus({"a": again}, tmp_path / "figures")
    rows = pd.read_csv(tmp_path / "figures" / "fig02plus.csv").query("method == 'adjoint'").set_index("step")["mean"]
    assert rows.loc[steps[:-1]].notna().all() and rows.loc[steps[-1:]].isna().all() and len(rows) == len(steps)


def test_no_exact_derivative_where_none_is_stored_or_data_are_large(panels, trained, tmp_path):
    trained(tmp_path, "diabetes")
    without = Panel("diabetes", "smoke", results=tmp_path, compute=False)
    assert finished(lambda: exact_derivative(without)) is None
    figure = beyond.figure2_plus({"a": without}, tmp_path / "figures")
    assert figures.LOOK["adjoint"].colour not in {x.get_color() for x in figure.axes[0].get_lines()}
    assert "squares" not in json.loads((tmp_path / "figures" / "fig02plus.json").read_text())["caption"]
    assert exact_derivative(Panel("breast_cancer", "smoke", results=tmp_path / "empty")) is None
    assert not (tmp_path / "empty").exists()
    assert exact_derivative(panels["a"]) is not None


def test_lft_follows_the_whole_hessian_and_g_alone_for_many_instances(panels):
    panel = panels["a"]
    settings = replace(panel.settings, lft_products=None)
    alone = replace(panel, given_settings=settings, given_task=panel.task, given_params=panel.params, compute=True)
    assert alone.hyper("lft") == panel.hyper("lft", many=True) and "mode" not in alone.hyper("lft")
    usual, found = panel.scores("lft"), alone.scores("lft")
    assert (usual.attrs["mode"], usual.attrs["products"], usual.attrs["runs"]) == ("split", LEAST_PRODUCTS, SPLIT_RUNS)
    assert found.dims == usual.dims and np.isfinite(found).all() and not np.array_equal(found, usual)
    # All products of all runs see as many instances as further training does.
    visits = int(usual.horizon[-1]) * json.loads(usual.attrs["further_training"])["batch_size"]
    adam = panel.other(optimizer="adam", compute=False).hyper("lft")
    assert (panel.hyper("lft")["segments"], adam["segments"]) == (1, min(SPLIT_SEGMENTS, len(usual.horizon)))
    assert usual.attrs["sample"] == max(visits // (LEAST_PRODUCTS * SPLIT_RUNS), SPLIT_LEAST)


def test_lft_is_drawn_at_every_horizon_and_follows_a_run_of_its_own(panels, tmp_path):
    figure = beyond.figure2_plus(panels, tmp_path)
    line = {x.get_color(): x for x in figure.axes[0].get_lines()}[figures.LOOK["lft"].colour]
    scores, measured = panels["a"].scores("lft"), sensitivity(panels["a"].gold)
    np.testing.assert_allclose(line.get_ydata(), similarity(scores, measured)["mean"], rtol=1e-5)
    assert scores.horizon.values.tolist() == panels["a"].gold.step.values.tolist()
    followed = json.loads(scores.attrs["further_training"])
    assert followed["runs"] == SPLIT_RUNS and followed["seed"] == LFT_SEED > panels["a"].gold.seed.max()
    note = json.loads((tmp_path / "fig02plus.json").read_text())
    assert note["datasets"]["diabetes"]["lft"] == {"runs": SPLIT_RUNS, "segments": 1, "products": LEAST_PRODUCTS}
    assert note["datasets"]["diabetes"]["ceiling"] == "interval"
    assert f"LFT follows {SPLIT_RUNS} run with {LEAST_PRODUCTS} products of the whole Hessian)" in note["runs"]
    ceiling = {x.get_color(): x for x in figure.axes[0].get_lines()}[figures.LOOK["ceiling"].colour]
    np.testing.assert_allclose(ceiling.get_ydata(), ceiling_interval(panels["a"].gold)["mean"], rtol=1e-5)


def test_softened_tangents_are_those_of_the_same_runs_and_smooth_models_need_none(panels):
    panel, runs = panels["a"], first_order_runs(panels["a"])
    found = softened_tangents(panel)
    assert found.delta.dims == runs.delta.dims[1:] and found.step.equals(runs.step)
    np.testing.assert_allclose(found.full_loss, runs.full_loss, rtol=1e-9)
    between = runs.delta.sel(run="tangent").values
    assert 0 < abs(found.delta.values - between).max() < abs(between).max()
    smooth = replace(panel.task, model=swap_units(panel.task.model, nn.SiLU))
    assert softened_tangents(replace(panel, given_task=smooth, given_params=panel.params)) is None


def test_the_table_has_similarities_and_seconds(panels, tmp_path):
    table = beyond.table_horizons(panels, tmp_path)
    assert table["method"].tolist() == ["Grad-Dot", *(figures.LOOK[m].label for m in ("timed", "lft", "adjoint"))]
    gold = panels["a"].gold
    mean = similarity(panels["a"].scores("grad_dot"), sensitivity(gold))["mean"].values
    row = table.iloc[0]
    assert row["first"] == mean[0] and row["last"] == mean[-1] and row["lowest"] == mean.min()
    assert mean.min() <= row["mean over horizons"] <= mean.max() and row["seconds"] > 0
    assert len(pd.read_csv(tmp_path / "table_horizons.csv")) == 4
    one_seed = round(float(gold.seconds.sum()), 1) / gold.sizes["seed"]
    np.testing.assert_allclose(table["of one seed"], table["seconds"] / one_seed)
    half = (pd.read_csv(tmp_path / "table_horizons.csv")["±"] > 0).all()
    assert half and len(json.loads((tmp_path / "table_horizons.json").read_text())["caption"].split()) <= 60
    assert "Grad-Dot" in (tmp_path / "table_horizons.html").read_text()


def test_what_leads_is_bold_only_beyond_the_intervals():
    curve = pd.DataFrame({"epoch": [1.0, 2.0, 8.0], "mean": [0.2, 0.4, 0.8]})
    found = over_horizons.over_horizons(curve.assign(low=curve["mean"] - 0.1, high=curve["mean"] + 0.1))
    assert np.isclose(found["mean over horizons"], (0.2 + 0.4 + 2 * 0.8) / 4)
    assert np.isclose(found["±"], 0.1) and (found["first"], found["lowest"], found["last"]) == (0.2, 0.2, 0.8)
    assert np.isnan(over_horizons.over_horizons(curve)["±"])
    rows = [{"mean over horizons": mean, "±": 0.03} for mean in (0.9, 0.84, 0.2)]
    assert [over_horizons.leads(row, rows) for row in rows] == [True, False, False]
    rows[1]["mean over horizons"] = 0.87  # within 0.03 √2
    assert not any(over_horizons.leads(row, rows) for row in rows)
    rows[0]["±"] = np.nan  # as an earlier version left it
    assert not any(over_horizons.leads(row, rows) for row in rows)
    table = pd.DataFrame([dict.fromkeys(over_horizons.SHOWN, 0.5) | {"leads": lead} for lead in (True, False)])
    for lft, word in ((0.9, "leads."), (0.8, "cannot be told from it."), (0.5, "loses.")):
        rows = pd.DataFrame({"data set": "X", "method": ["CG", figures.LOOK["lft"].label], "±": 0.05}).assign(
            **{"mean over horizons": [0.78, lft]}
        )
        assert [s.endswith(word) for s in over_horizons.lft_beside_others(rows)] == [True]
    assert over_horizons.lft_beside_others(pd.DataFrame()) == []
    labels = [figures.LOOK[m].label for m in ("adjoint", "lft", "cg")]  # the first is a yardstick of fewer instances
    rows = [
        {"data set": "X", "method": m, "mean over horizons": a, "±": 0.01} for m, a in zip(labels, (0.95, 0.9, 0.5))
    ]
    assert [row["leads"] for row in over_horizons.compared(rows)] == [False, True, False]
    assert "CG with 0.50; LFT, with 0.90, leads." in over_horizons.lft_beside_others(pd.DataFrame(rows))[0]
    page = over_horizons.html(table)
    assert page.count("row0_col2 {") == 1 and "row1_col2 {" not in page and "font-weight: bold" in page


def test_the_table_keeps_panels_drawn_earlier(panels, tmp_path):
    beyond.figure2_plus({"a": panels["a"]}, tmp_path)
    first = beyond.table_horizons({"a": panels["a"]}, tmp_path)
    again = beyond.table_horizons({"b": panels["b"]}, tmp_path)  # of which nothing is run
    pd.testing.assert_frame_equal(again, first, rtol=1e-4)
    note = json.loads((tmp_path / "table_horizons.json").read_text())
    assert note["datasets"]["diabetes"]["drawn"] == note["commit"] and note["profile"] == "smoke"
    (tmp_path / "table_horizons.csv").unlink()
    without = beyond.table_horizons({"b": panels["b"]}, tmp_path)
    assert without["seconds"].isna().all() and len(without) == 4
    assert beyond.table_horizons({"b": panels["b"]}, tmp_path / "elsewhere").empty


def test_horizons_weigh_evenly_on_a_log_axis():
    np.testing.assert_allclose(beyond.log_weights(np.array([1.0, 2.0, 4.0, 8.0])), np.log(2))
    assert beyond.log_weights(np.array([3.0])).tolist() == [1.0]


# The runs


def test_first_order_runs_are_per_whole_weight_whatever_the_fraction(panels):
    delta = first_order_runs(panels["a"]).delta
    assert delta.sizes["left_out"] == min(get_profile("smoke").study_left_out, len(panels["a"].settings.left_out))
    assert delta.run.values.tolist() == ["0.1", "0.5", "1.0", "float32", "tangent"]

    def distance(run):
        return float(np.linalg.norm(delta.sel(run=run) - delta.sel(run="tangent")))

    size = float(np.linalg.norm(delta.sel(run="tangent")))
    for fraction in FRACTIONS:  # in so few steps the runs differ from their derivative by rounding of what is stored
        assert 0 < distance(str(fraction)) < 1e-3 * size
    assert 0 < np.linalg.norm(delta.sel(run="float32") - delta.sel(run="1.0")) < 1e-2 * size
    limit = first_order_limit(first_order_runs(panels["a"])).similarity.mean(["step", "test"])
    assert limit.fraction.values.tolist() == list(FRACTIONS) and (limit > 0.95).all()


def test_output_runs_are_the_outputs_behind_the_losses(panels):
    """(r + change)² - r² is the change of the loss, where r² is the loss itself."""
    losses, outputs = first_order_runs(panels["a"]), output_runs(panels["a"])
    change, moved = outputs.delta.sel(run="1.0"), losses.delta.sel(run="1.0")
    residual = (moved - change**2) / (2 * change)
    sure = abs(change) > 1e-2 * abs(change).max()  # they are stored in float32
    assert sure.sum() > 100
    squared = (residual**2).where(sure, losses.full_loss)
    np.testing.assert_allclose(squared, squared * 0 + losses.full_loss, rtol=1e-3, atol=1e-5)
    limit = first_order_limit(outputs).similarity
    assert limit.fraction.values.tolist() == [1.0] and (limit.mean(["step", "test"]) > 0.95).all()


def test_beside_the_limit_stand_lft_along_the_same_run_and_the_noise_ceiling(panels):
    panel, runs = panels["a"], first_order_runs(panels["a"])
    rows = first_order.limit_table(panel).set_index(["quantity", "fraction"]).sort_index()
    assert set(rows.index) == {
        *(("loss", f) for f in FRACTIONS),
        ("output", 1.0),
        ("softened", 1.0),
        ("lft", 1.0),
        ("ceiling", 1.0),
    }
    scores = linearised_run(panel).sel(train=runs.left_out.values, horizon=runs.step.values)
    followed = json.loads(scores.attrs["further_training"])
    assert followed["seed"] == runs.seed.item() == 0 and followed.get("runs", 1) == 1
    task, double = panel.task, {k: v.double() for k, v in panel.params.items()}  # as the runs are
    training = {**{k: followed[k] for k in ("optimizer", "learning_rate", "batch_size")}, "seed": 0}
    chosen = {"train": runs.left_out, "test": runs.test, "horizon": runs.step}
    how = {k: v for k, v in panel.hyper("lft").items() if k not in ("horizon", "further_training", "runs", "dtype")}
    how["segments"] = scores.attrs["segments"]
    by_hand = attribute("lft", task, double, further_training=training, runs=1, dtype="float64", **how, **chosen)
    np.testing.assert_allclose(scores.transpose(*by_hand.dims), by_hand, rtol=1e-7)
    a = scores.transpose("horizon", "test", "train").values
    b = runs.delta.sel(run="1.0").isel(seed=0).transpose("step", "test", "left_out").values
    b = b - b.mean(-1, keepdims=True)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(rows.loc[("lft", 1.0)]["mean"], cosines.mean(-1), rtol=1e-9)
    np.testing.assert_allclose(rows.loc[("lft", 1.0)]["median"], np.median(cosines, -1), rtol=1e-9)
    same = removal_runs(panel)["mask"]  # the removal of the curves; over a fifth of the horizon
    found = rows.loc[[("ceiling", 1.0)]].set_index("step")["mean"]
    ceiling = noise_ceiling(same, estimate="variances").sel(step=found.index.values)
    np.testing.assert_allclose(found, ceiling)
    assert found.index.tolist() == sorted({*runs.step.values} & {*same.step.values})


def test_the_limit_is_low_where_the_derivative_is_wrong(panels):
    runs = first_order_runs(panels["a"]).copy(deep=True)
    runs.delta.loc[{"run": "tangent"}] = -runs.delta.sel(run="tangent")
    assert (first_order_limit(runs).similarity.mean(["step", "test"]) < -0.95).all()


def test_removal_runs_share_seeds_and_steps(panels):
    runs = removal_runs(panels["a"])
    assert runs["mask"].attrs["removal"] == "mask" and runs["drop"].attrs["removal"] == "drop"
    for coordinate in ("seed", "step", "left_out", "test"):
        np.testing.assert_array_equal(runs["mask"][coordinate], runs["drop"][coordinate])
    fewer = removal_runs(replace(panels["a"], given_settings=replace(panels["a"].settings, study_seeds=1)))
    for way in runs:
        np.testing.assert_array_equal(fewer[way].delta, runs[way].delta.isel(seed=[0]))
    found = removal_seeds(runs)
    r = found.agreement
    for way, delta in runs.items():
        np.testing.assert_allclose(r.sel(removal=way), seed_agreement(delta, "mean", "variances"))
    expected = np.maximum(0.95**2 * (1 - r) / (r * (1 - 0.95**2)), 1)
    np.testing.assert_allclose(found.seeds.values[r > 0], expected.values[r > 0])
    # with that many seeds the ceiling is what was asked for
    S = found.seeds
    ceiling = np.sqrt(S * r / (1 + (S - 1) * r))
    np.testing.assert_allclose(ceiling.values[(r > 0) & (S > 1)], 0.95)


def test_epochs_are_spread_on_a_log_axis():
    assert log_epochs(1) == [1] and log_epochs(500)[0] == 1 and log_epochs(500)[-1] == 500
    assert len(log_epochs(500)) == 14


# The filter


def test_the_filter_is_grad_dot_at_first_and_the_inverse_at_last():
    moved = np.array([1e-6, 0.1, 0.5])
    np.testing.assert_allclose(filters.kept(moved, 1), 1)
    np.testing.assert_allclose(filters.kept(moved, 10**8), 1 / (moved * 10**8), rtol=1e-6)
    for steps in (2, 7):
        np.testing.assert_allclose(filters.kept(moved, steps), sum((1 - moved) ** k for k in range(steps)) / steps)


def test_shares_of_the_test_gradients_add_up_to_at_most_one(panels):
    table = filters.table(panels["a"])
    assert (table.share >= 0).all() and 0.5 < table.share.sum() <= 1 + 1e-9
    assert (table.eigenvalue > 0).all()


@pytest.mark.parametrize("table", [first_order.limit_table, first_order.precision_table, removal.table])
def test_tables_are_none_where_runs_are_missing(panels, table):
    assert table(panels["b"]) is None
