"""Mislabelled instances: labels that are changed, evidence against each instance, and how well it tells them apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fimoda_lib import attribute
from fimoda_lib.datasets import load_task
from fimoda_lib.experiments import mislabelled as study
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.plots import mislabelled as plot
from fimoda_lib.tasks import parameters_of


@pytest.fixture(scope="module")
def panel(tmp_path_factory, computed):
    """Breast cancer at the smallest size; two methods, and LFT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "methods", ("grad_dot", "ekfac"))
        results = tmp_path_factory.mktemp("results")
        computed(results, "final-breast_cancer", "mislabelled-breast_cancer")
        yield Panel("breast_cancer", "smoke", results=results)


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_labels_are_changed_on_a_tenth_and_on_nothing_else(name):
    task = load_task(name)
    other, flipped = study.flip_labels(task)
    changed = (other.train[1] != task.train[1]).nonzero()[:, 0]
    assert changed.tolist() == flipped.tolist() and len(flipped) == round(0.1 * task.n_train)
    assert set(other.train[1].tolist()) == set(task.train[1].tolist()) and other.test is task.test
    assert torch.equal(other.train[0], task.train[0])
    assert np.array_equal(study.flip_labels(task)[1], flipped) and not np.array_equal(
        study.flip_labels(task, seed=1)[1], flipped
    )


@pytest.mark.parametrize(
    ("name", "share", "sentence"),
    [
        ("wine", 0.1, "a regression task; expected one with classes"),
        ("digits", 1.0, "expected a share between 0 and 1"),
    ],
)
def test_what_cannot_be_flipped_is_refused(name, share, sentence):
    with pytest.raises(ValueError, match=sentence):
        study.flip_labels(load_task(name), share)


def test_the_area_is_that_of_scikit_learn_ties_and_resamples_too():
    random = np.random.default_rng(0)
    values, positive = random.integers(0, 12, 60).astype(float), random.random(60) < 0.3
    found = study.auc(values, positive, draws=20, seed=5)
    assert found[0] == pytest.approx(roc_auc_score(positive, values), rel=1e-12)
    assert found[0] != pytest.approx(roc_auc_score(positive, -values), rel=1e-2)
    again = np.random.default_rng(5)
    sizes = [positive.sum(), (~positive).sum()]
    times = [again.multinomial(n, np.full(n, 1 / n), size=20) for n in sizes]
    weights = np.empty(60)
    for k in range(20):
        weights[positive], weights[~positive] = times[0][k], times[1][k]
        assert found[1 + k] == pytest.approx(roc_auc_score(positive, values, sample_weight=weights), rel=1e-12)
    assert np.isnan(study.auc(np.full(60, np.nan), positive)).all()


def test_methods_that_iterate_are_left_aside_where_data_are_many_and_that_is_said(panel, monkeypatch):
    monkeypatch.setattr(Panel, "methods", ("grad_dot", "cg", "ekfac"))
    assert study.accusers(panel) == ("grad_dot", "cg", "ekfac", "lft") and "not run" not in study.what_is_flipped(panel)
    many = replace(panel, given_settings=replace(panel.settings, study_curvature=tuple(range(50))))
    assert study.accusers(many) == ("grad_dot", "ekfac", "lft")
    assert study.what_is_flipped(many).endswith("; not run, for their cost: CG")


def test_harm_and_self_influence_are_means_and_the_diagonal_of_scores(panel):
    other, flipped = study.mislabelled(panel)
    rows = study.ranked_rows(other, flipped)
    found = study.evidence(other, "grad_dot", rows)
    held_out = attribute("grad_dot", other.task, other.params, train=rows, test=other.settings.test)
    np.testing.assert_allclose(found["harm"], -held_out.mean("test"), rtol=1e-10)
    model = other.task.model
    own = []
    for i in rows:  # the squared length of each gradient, by autograd alone
        inputs, target = other.task.train[0][[i]].double(), other.task.train[1][[i]]
        params = {k: p.double().requires_grad_() for k, p in other.params.items()}
        loss = other.task.loss(torch.func.functional_call(model, params, (inputs,)), target).sum()
        own.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, [*params.values()])))
    np.testing.assert_allclose(found["self-influence"], own, rtol=1e-8)
    assert found["train"].values.tolist() == rows.tolist()


def test_ranked_are_the_mislabelled_ones_and_others(panel):
    other, flipped = study.mislabelled(panel)
    rows = study.ranked_rows(other, flipped)
    assert len(rows) == len({*rows}) == 24 and np.isin(rows, flipped).sum() == 12 and (np.diff(rows) > 0).all()
    some = study.ranked_rows(other, flipped[:5])
    assert len(some) == 24 and {*flipped[:5]} < {*some}


def test_the_final_model_learns_from_the_changed_labels(panel):
    other, _ = study.mislabelled(panel)
    assert other.params.keys() == panel.params.keys() == parameters_of(panel.task.model).keys()
    assert any(not torch.equal(other.params[k], p) for k, p in panel.params.items())


def test_every_method_is_compared_with_the_loss(panel, monkeypatch):
    table = study.detection(panel)
    kinds = {(m, e) for m in ("grad_dot", "ekfac", "lft") for e in study.EVIDENCE} | {("loss", "loss")}
    assert {*zip(table["method"], table["evidence"], strict=True)} == kinds
    assert (table["low"] <= table["auc"]).all() and (table["auc"] <= table["high"]).all()
    loss = table.iloc[0]
    assert loss["above_loss"] == loss["above_low"] == loss["above_high"] == 0 and loss["auc"] > 0.8
    np.testing.assert_allclose(table["above_loss"], table["auc"] - loss["auc"])
    lft = table[table["method"] == "lft"]
    assert (
        lft["step"].notna().all() and lft["epoch"].min() == 1 and table[table["method"] == "ekfac"]["step"].isna().all()
    )
    stored = panel.other(compute=False)
    assert plot.table(stored).equals(table)  # found, not computed again
    assert plot.table(panel.other(compute=False, results=panel.folder / "elsewhere")) is None


def test_a_method_that_diverges_has_no_area(panel, monkeypatch):
    other, flipped = study.mislabelled(panel)
    nothing = study.evidence(other, "grad_dot", study.ranked_rows(other, flipped)) * np.nan
    monkeypatch.setattr(study, "evidence", lambda *arguments: nothing)
    table = study.detection(panel)
    assert table[table["method"] == "ekfac"]["auc"].isna().all() and np.isfinite(table.iloc[0]["auc"])
