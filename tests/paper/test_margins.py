"""Intervals of margins: what two curves of the same runs have in common must not widen them, nor what they have not
narrow them."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_claims import GOOD, claim, table

from fimoda_lib.comparison import sensitivity, similarity
from fimoda_lib.intervals import draws, half_widths
from fimoda_lib.paper import claims
from fimoda_lib.paper.rules import Condition, Curve, paired_halves
from fimoda_lib.plots.similarity import DRAWN, curves_with_intervals

SEEDS, LEFT_OUT, TESTS = 10, 30, 20


def gold_and_scores(g, shared):
    """A gold standard of two horizons, and two methods at a similarity of about .6 to it, wrong in the same way or each
    in its own."""
    truth = g.normal(size=(TESTS, LEFT_OUT))
    runs = truth + g.normal(size=(2, SEEDS, TESTS, LEFT_OUT))
    coords = {"seed": range(SEEDS), "left_out": range(LEFT_OUT), "step": [1, 2], "test": range(TESTS)}
    dims = ("seed", "left_out", "step", "test")
    gold = xr.Dataset({"delta": (dims, runs.transpose(1, 3, 0, 2))}, coords)
    common = g.normal(size=truth.shape)
    scores = {}
    for name in ("a", "b"):
        wrong = common + 0.2 * g.normal(size=truth.shape) if shared else g.normal(size=truth.shape)
        scores[name] = xr.DataArray(truth + wrong, dims=("test", "train"), coords={"test": range(TESTS)})
        scores[name] = scores[name].assign_coords(train=range(LEFT_OUT))
    return gold, scores


def a_beats_b(curves):
    """A rule with one condition, whose true margin in `gold_and_scores` is zero."""
    first = {m: c.first for m, c in curves.items()}
    half = float(np.hypot(first["a"].half, first["b"].half))
    return [Condition("a beats b", first["a"].value - first["b"].value, half, "")], ""


@pytest.mark.parametrize("shared", [True, False])
def test_the_interval_of_a_margin_holds_the_truth_as_often_as_it_says(shared):
    g, repeats, inside, ratios = np.random.default_rng(0), 60, 0, []
    for _ in range(repeats):
        gold, scores = gold_and_scores(g, shared)
        measured, drawn = sensitivity(gold, "full"), draws(scores, gold, "full", resamples=60)
        halves = half_widths(drawn, gold)
        curves = {
            m: Curve(gold.step.values, similarity(a, measured)["mean"].values, halves[m].values)
            for m, a in scores.items()
        }
        ((alone,), _), half = a_beats_b(curves), paired_halves(a_beats_b, drawn)["a beats b"]
        inside += abs(alone.margin) < half
        ratios.append(half / alone.half)
    assert 0.88 < inside / repeats
    if shared:  # the independent interval is several times too wide
        assert np.mean(ratios) < 0.6
    else:
        assert 0.8 < np.mean(ratios) < 1.1


def test_draws_are_the_same_for_all_methods_and_know_the_order_of_none():
    gold, scores = gold_and_scores(np.random.default_rng(1), shared=False)
    scores["c"] = 2 * scores["a"][::-1, ::-1]
    drawn = draws(scores, gold)
    xr.testing.assert_allclose(drawn["a"], drawn["c"])
    xr.testing.assert_allclose(drawn["a"], draws({"a": scores["a"]}, gold)["a"])
    assert drawn["a"].dims == ("draw", "step") and abs(drawn["a"] - drawn["b"]).max() > 0.01


def test_a_draw_is_the_similarity_on_what_is_drawn():
    """By hand, with numpy's own counts: instances are repeated as often as they are drawn, nothing is weighted."""
    gold, scores = gold_and_scores(np.random.default_rng(2), shared=False)
    g, R = np.random.default_rng(0), 7
    counts = [g.multinomial(k, np.full(k, 1 / k), size=R) for k in (SEEDS, LEFT_OUT, TESTS)]
    by_hand = []
    for seeds, left_out, test in zip(*counts, strict=True):
        u, w, v = (np.repeat(np.arange(len(c)), c) for c in (seeds, left_out, test))
        delta = gold["delta"].values[u][:, w][..., v].mean(0)
        some = xr.DataArray(delta - delta.mean(0), dims=("left_out", "step", "test"))
        a = xr.DataArray(scores["a"].values[v][:, w].T, dims=("left_out", "test"))
        cosine = (some * a).sum("left_out") / np.sqrt(np.square(some).sum("left_out") * np.square(a).sum("left_out"))
        by_hand.append(cosine.mean("test").values)
    by_hand = np.array(by_hand)
    wider = by_hand.mean(0) + np.sqrt(SEEDS / (SEEDS - 1)) * (by_hand - by_hand.mean(0))
    np.testing.assert_allclose(draws(scores, gold, "mean", resamples=R)["a"].values, wider, rtol=1e-9)


def test_one_seed_is_not_made_wider():
    gold, scores = gold_and_scores(np.random.default_rng(3), shared=False)
    assert np.isfinite(draws(scores, gold.isel(seed=[0]))["a"]).all()


def test_a_verdict_takes_the_margin_of_the_figure_where_there_is_one(tmp_path):
    rows = table(GOOD)
    rows = rows.assign(low=rows["mean"] - 0.4, high=rows["mean"] + 0.4)
    rows.to_csv(tmp_path / "fig02.csv", index=False)
    names = [c.name for c in claim(2).check(claims.curves_of(rows))[0]]
    assert len(names) == len({*names}) == 6

    def verdict(**halves):
        note = {"profile": "paper", "datasets": {"energy": {"margins": halves}}}
        (tmp_path / "fig02.json").write_text(json.dumps(note))
        return next(o.verdict for o in claims.check_claims(tmp_path) if o.claim.number == 2)

    assert verdict() == "cannot be told"
    assert verdict(**dict.fromkeys(names, 0.01)) == "reproduced"
    assert verdict(**{**dict.fromkeys(names, 0.01), "cg stays below": 0.9}) == "cannot be told"


def test_the_margins_of_a_figure_are_those_of_its_draws():
    gold, scores = gold_and_scores(np.random.default_rng(4), shared=True)
    methods = {"grad_dot": scores["a"], "datainf": scores["b"]}
    tables, drawn = curves_with_intervals(gold, methods, "full")
    found = pd.concat(tables)
    assert claims.margins("fig02", found) == {} == claims.margins("fig02", None)
    found.attrs[DRAWN] = drawn
    margins = claims.margins("fig02", found)["margins"]
    firsts = drawn["grad_dot"].isel(step=0).values
    assert margins["grad_dot starts high"] == pytest.approx(1.96 * firsts.std(ddof=1), rel=1e-3)
    assert {*margins} >= {"datainf decays", "grad_dot decays"} and claims.margins("fig05", found) == {}
    mean = similarity(scores["a"], sensitivity(gold, "full"))["mean"].values
    assert abs(firsts.mean() - mean[0]) < margins["grad_dot starts high"]
