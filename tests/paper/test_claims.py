"""The claims: each is found reproduced on data that follow it, refused on data that break it, and open without data."""

import numpy as np
import pandas as pd
import pytest

from fimoda_lib.experiments.panel import PAPER_METHODS
from fimoda_lib.paper import claims
from fimoda_lib.paper.claims import CLAIMS
from fimoda_lib.paper.rules import labels
from fimoda_lib.paper.verdicts import (
    CANNOT_TELL,
    IN_PART,
    NOT_COMPARABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
)
from fimoda_lib.plots.published import published_curves

EPOCHS = [1, 2, 3, 4]
GOOD = {  # similarity at four epochs: the shape that the paper describes
    "grad_dot": [0.7, 0.5, 0.3, 0.2],
    "grad_cos": [0.5, 0.4, 0.3, 0.1],
    "datainf": [0.7, 0.6, 0.4, 0.2],
    "cg": [0.1, 0.2, 0.3, 0.4],
    "lissa": [0.2, 0.2, 0.3, 0.4],
    "lissa_h": [0.01, 0.02, -0.03, 0.02],
    "ekfac": [0.3, 0.3, 0.3, 0.3],
    "trak": [0.0, 0.01, 0.01, 0.02],
}
FLAT = {m: [0.05, -0.05, 0.02, 0.09] for m in PAPER_METHODS}
RISING = {m: [0.1, 0.2, 0.21, 0.211] for m in PAPER_METHODS}
FITTING = {1: GOOD, 2: GOOD, 3: RISING, 4: GOOD, 5: FLAT}  # claim -> curves for which it holds


def table(curves, *, panel="b", dataset="energy", x="epoch"):
    """A figure's CSV as a table, with the noise ceiling, which no claim is about."""
    curves = {**curves, "ceiling": [0.99] * 4}
    return pd.concat(
        [
            pd.DataFrame({x: EPOCHS, "mean": values, "method": m, "panel": panel, "dataset": dataset})
            for m, values in curves.items()
        ],
        ignore_index=True,
    )


def claim(number):
    return next(c for c in CLAIMS if c.number == number)


def verdict(number, rows):
    (result,) = claims.outcome(claim(number), rows).results
    return result.ours.verdict


def columns(number):
    return {"x": "seeds_averaged"} if number == 3 else {}


@pytest.mark.parametrize("number", FITTING)
def test_a_claim_is_reproduced_where_it_holds(number):
    outcome = claims.outcome(claim(number), table(FITTING[number], **columns(number)))
    assert outcome.verdict == REPRODUCED and outcome.summary == "holds on Energy"


def test_what_a_perfect_method_would_reach_is_said_where_the_gold_standard_is_noise():
    noisy = table(FLAT).replace({"mean": {0.99: 0.4}})
    for curves, words in ((noisy, "; a perfect method about 0.40"), (noisy[noisy.method != "ceiling"], "TRAK 0.05")):
        (result,) = claims.outcome(claim(5), curves).results
        assert result.ours.numbers.endswith(words)
    (result,) = claims.outcome(claim(4), table(GOOD)).results
    assert "perfect" not in result.ours.numbers


VIOLATIONS = [
    (1, {"grad_dot": [0.4, 0.3, 0.2, 0.1]}, "Grad-Dot starts at 0.40"),
    (1, {"grad_dot": [0.7, 0.5, 0.6, 0.64]}, "Grad-Dot ends at 0.64 after 0.70"),
    (1, {"datainf": [0.7, 0.3, 0.5, 0.65]}, "DataInf ends at 0.65 after 0.70"),
    (2, {"cg": [0.05, 0.2, 0.3, 0.58]}, "CG changes by 0.53, Grad-Dot by 0.50"),
    (2, {"lissa": [0.4, 0.75, 0.7, 0.7]}, "LiSSA reaches 0.75, first-order start 0.70"),
    (2, {"ekfac": [0.71, 0.71, 0.71, 0.71]}, "EK-FAC reaches 0.71, first-order start 0.70"),
    (3, {"trak": [0.10, 0.2, 0.3, 0.099]}, "TRAK changes by −0.001"),
    (3, {"cg": [0.10, 0.2, 0.3, 0.10]}, "CG changes by 0.000"),
    (4, {"trak": [0.1, 0.1, 0.1, 0.11]}, "TRAK is 0.10 on average"),
    (4, {"lissa_h": [0.3, -0.3, 0.3, -0.3]}, "LiSSA-H is 0.30 on average"),  # signs do not cancel
    (5, {"ekfac": [-0.2, -0.2, -0.1, -0.1]}, "EK-FAC is 0.15 on average"),
]


@pytest.mark.parametrize(("number", "change", "reason"), VIOLATIONS)
def test_a_claim_is_not_reproduced_where_it_is_broken(number, change, reason):
    rows = table({**FITTING[number], **change}, **columns(number))
    (result,) = claims.outcome(claim(number), rows).results
    assert result.ours.verdict == NOT_REPRODUCED
    assert result.ours.reason == f"{reason}."


@pytest.mark.parametrize(
    ("change", "half", "expected"),
    [
        (0.05, 0.045, REPRODUCED),  # a margin just beyond its interval
        (0.05, 0.047, CANNOT_TELL),  # which few draws know to some ten percent only
        (-0.05, 0.047, CANNOT_TELL),
        (0.05, 0.06, CANNOT_TELL),  # just within it
        (-0.05, 0.06, CANNOT_TELL),
        (-0.05, 0.04, NOT_REPRODUCED),
        (-0.0004, 0.001, CANNOT_TELL),  # from one seed to two: no refutation
        (0.0, 0.0, NOT_REPRODUCED),
    ],
)
@pytest.mark.parametrize("columns", ["low and high", "sem"])
def test_a_verdict_needs_more_than_the_interval(change, half, expected, columns):
    half = half / 2**0.5  # of each of the two similarities that are compared
    rows = table({m: [0.4, 0.4, 0.4, 0.4 + change] for m in PAPER_METHODS}, x="seeds_averaged")
    if columns == "sem":
        rows = rows.assign(sem=half / claims.NORMAL)
    else:
        rows = rows.assign(low=rows["mean"] - half, high=rows["mean"] + half)
    (result,) = claims.outcome(claim(3), rows).results
    assert result.ours.verdict == expected
    paired = rows.assign(low=-9, high=9, rise_sem=half * 2**0.5 / claims.NORMAL)  # of the same test instances
    assert claims.outcome(claim(3), paired).results[0].ours.verdict == expected
    paired = rows.assign(low=-9, high=9, rise_half=half * 2**0.5)
    assert claims.outcome(claim(3), paired).results[0].ours.verdict == expected
    if expected == CANNOT_TELL:
        assert result.ours.reason.startswith("Within its interval: Grad-Dot changes by ")
        assert claims.outcome(claim(3), rows).summary == "cannot be told on Energy"


@pytest.mark.parametrize(
    ("panel", "dataset", "profile", "expected"),
    [
        ("b", "energy", "laptop", REPRODUCED),
        ("b", "energy", "quick", NOT_COMPARABLE),  # the paper's data, but fewer epochs
        ("b", "wine", "paper", NOT_COMPARABLE),  # other data
        ("d", "adult", "paper", NOT_COMPARABLE),
        ("f", "sst2", "laptop", NOT_COMPARABLE),  # a smaller model
        ("f", "sst2", "paper", REPRODUCED),
        ("e", "cifar10", "laptop", NOT_COMPARABLE),
        ("e", "cifar10", "paper", NOT_COMPARABLE),  # the paper's code for images is not public
    ],
)
def test_what_is_not_the_papers_experiment_is_no_evidence(panel, dataset, profile, expected):
    for curves in (GOOD, GOOD | {"grad_dot": [0.1, 0.2, 0.3, 0.4]}):
        outcome = claims.outcome(claim(1), table(curves, panel=panel, dataset=dataset), profile)
        found = outcome.results[0].ours
        assert found.numbers
        if expected == NOT_COMPARABLE:
            assert outcome.verdict == found.verdict == expected and "Not the paper's experiment: " in found.reason
        else:
            assert found.verdict == (expected if curves is GOOD else NOT_REPRODUCED)


def test_methods_with_other_settings_than_the_papers_are_no_evidence():
    (result,) = claims.outcome(claim(4), table(GOOD), "laptop").results
    assert result.ours.verdict == NOT_COMPARABLE and "LiSSA-H with 500 of the paper's 5,000 steps" in result.ours.reason
    (result,) = claims.outcome(claim(3), table(RISING), "laptop").results
    assert result.ours.verdict == NOT_COMPARABLE
    assert claims.outcome(claim(4), table(GOOD), "overnight").verdict == REPRODUCED
    assert claims.outcome(claim(1), table(GOOD), "laptop").verdict == REPRODUCED  # LiSSA-H has no part in it
    # What the runs say counts more than what the profile would do today.
    assert claims.outcome(claim(4), table(GOOD), "laptop", {"energy": {"lissa_h_steps": 5000}}).verdict == REPRODUCED
    (result,) = claims.outcome(claim(4), table(GOOD), "overnight", {"energy": {"lissa_h_steps": 50}}).results
    assert result.ours.verdict == NOT_COMPARABLE and "LiSSA-H with 50 of the paper's" in result.ours.reason


def test_curvature_of_a_sample_is_no_evidence_on_what_curvature_adds(tmp_path):
    (tmp_path / "fig02.json").write_text('{"profile": "laptop", "datasets": {"energy": {"curvature": 50}}}')
    table(GOOD).to_csv(tmp_path / "fig02.csv")
    found = {o.claim.number: o for o in claims.check_claims(tmp_path)}
    assert found[1].verdict == REPRODUCED and found[2].verdict == NOT_COMPARABLE
    assert "some of the training instances" in found[2].results[0].ours.reason


def test_every_claim_says_where_the_paper_makes_it():
    assert all("igure" in c.source for c in CLAIMS)


def test_where_the_published_numbers_fail_the_rule_that_is_said_first():
    outcome = claims.outcome(claim(1), table(GOOD, panel="f", dataset="sst2"), "laptop")
    expected = (
        "by this rule the published numbers themselves do not show it on SST-2; not comparable on SST-2 (small model)"
    )
    assert outcome.summary == expected


@pytest.mark.parametrize("number", FITTING)
def test_without_numbers_a_claim_is_not_run(number, tmp_path):
    assert claims.outcome(claim(number), None).verdict == NOT_RUN
    assert {o.verdict for o in claims.check_claims(tmp_path)} == {NOT_RUN}
    empty = pd.DataFrame({"panel": [], "dataset": [], "method": []})
    assert claims.outcome(claim(number), empty).verdict == NOT_RUN
    rows = table(FITTING[number], **columns(number))
    assert verdict(number, rows.assign(mean=np.nan)) == NOT_RUN  # every method diverged
    assert verdict(number, rows[rows[columns(number).get("x", "epoch")] == 1]) == NOT_RUN  # one point is no shape


@pytest.mark.parametrize("number", FITTING)
def test_a_claim_needs_numbers_for_each_method_it_names(number):
    for method in claim(number).methods:
        rows = table({m: c for m, c in FITTING[number].items() if m != method}, **columns(number))
        (result,) = claims.outcome(claim(number), rows).results
        assert result.ours.verdict == NOT_RUN and labels([method]) in result.ours.reason, method


def test_a_curve_with_a_gap_is_not_taken_for_a_whole_one():
    rows = table(GOOD)
    rows.loc[(rows.method == "grad_dot") & (rows.epoch == 3), "mean"] = np.nan
    assert verdict(1, rows) == NOT_RUN


def test_a_broken_claim_stays_broken_when_other_methods_are_missing():
    assert verdict(4, table({"trak": [0.3] * 4})) == NOT_REPRODUCED


def test_the_order_of_rows_does_not_matter():
    assert verdict(1, table(GOOD).iloc[::-1]) == REPRODUCED


def test_a_claim_is_reproduced_only_if_it_is_on_every_data_set_that_can_be_compared():
    broken = {**GOOD, "trak": [0.5] * 4}
    both = pd.concat([table(GOOD), table(broken, panel="c", dataset="fico")])
    outcome = claims.outcome(claim(4), both)
    assert outcome.verdict == IN_PART
    assert outcome.summary == "holds on Energy; does not hold on FICO HELOC"
    pending = pd.concat([table(GOOD), table({"grad_dot": [1.0] * 4}, panel="c", dataset="fico")])
    outcome = claims.outcome(claim(4), pending)
    assert outcome.verdict == REPRODUCED and outcome.summary == "holds on Energy; not run on FICO HELOC"


def test_text_and_image_panels_are_judged_by_the_methods_that_the_paper_runs_there():
    rows = table({m: c for m, c in GOOD.items() if m not in ("cg", "lissa_h")}, panel="f", dataset="sst2")
    assert verdict(2, rows) == REPRODUCED
    assert claims.outcome(claim(4), rows).results == ()  # a claim about tabular data
    high = table(GOOD | {"cg": [0.3, 0.6, 0.99, 0.9]}, panel="e", dataset="cifar10")  # run on images, so it counts
    assert claim(2).judge(claims.curves_of(high), "e").verdict == NOT_REPRODUCED


def test_the_published_numbers_satisfy_the_rules():
    """Otherwise the bounds would be wrong: the claims are read off these numbers."""
    found = 0
    for c in CLAIMS:
        for panel in "bd":
            rows = claims.published_panel(c.figure, panel, "")
            if len(rows):
                finding = c.judge(claims.curves_of(rows), panel)
                assert finding.verdict == REPRODUCED, (c.number, panel, finding)
                found += 1
    assert found == 8


def test_published_numbers_stand_beside_ours():
    (result,) = claims.outcome(claim(1), table(GOOD)).results
    rows = published_curves().query("figure == '2b' and method == 'grad_dot'").sort_values("x")
    first, last = rows.value.iloc[0], rows.value.iloc[-1]
    assert result.published.numbers.startswith(f"Grad-Dot {first:.2f}\u00a0→\u00a0{last:.2f}")
    (result,) = claims.outcome(claim(1), table(GOOD, panel="d", dataset="adult")).results
    assert (result.title, result.published_title) == ("Adult", "Folktables")
    (result,) = claims.outcome(claim(1), table(GOOD, panel="a", dataset="concrete")).results
    assert result.published is None  # nothing was published
    (result,) = claims.outcome(claim(1), table(GOOD, dataset="wine")).results
    assert result.published is None  # wine fills the panel of Energy, but is other data


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "fig02.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"fig02\.csv is not a readable CSV table .* draw the figure anew\.$"):
        claims.check_claims(tmp_path)
