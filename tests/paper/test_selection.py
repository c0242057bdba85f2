"""Figures on groups, mislabelled data and selection by horizon, from tiny stored results."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper import selection
from fimoda_lib.plots.captions import runs_behind
from fimoda_lib.plots.selection import _short

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture(scope="module")
def panels(tmp_path_factory, computed):
    """Two classification panels and what is stored of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "methods", ("grad_dot", "ekfac"))
        results = tmp_path_factory.mktemp("results")
        kinds = ("final", "further", "mislabelled", "selection", "groups", "whole-groups")
        computed(results, *(f"{kind}-breast_cancer" for kind in kinds))
        chosen = {k: Panel(d, "smoke", results=results) for k, d in {"c": "breast_cancer", "d": "digits"}.items()}
        assert chosen["c"].params
        for name in ("mislabelled", "selection", "lds", "removal_curves"):
            getattr(selection, name).table(chosen["c"])
        yield {k: panel.other(compute=False) for k, panel in chosen.items()}
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "alone", "says"),
    [
        ("fig_mislabelled", "fig_mislabelleda_breast_cancer", "46 of 455 labels changed, 24 training instances ranked"),
        ("fig_lds", "fig_ldsc_breast_cancer", "12 subsets of 120 of 455 training instances"),
        ("fig_removal_curves", "fig_removal_curvesc_breast_cancer", "33 groups removed, 2 test instances"),
        ("fig_selection", "fig_selectionc_breast_cancer", "2 of 24 candidates dropped (455 training instances), 57 "),
    ],
)
def test_the_figures_say_what_they_were_made_from(panels, tmp_path, name, alone, says):
    figure = selection.FIGURES[name](panels, tmp_path)
    assert figure.axes[0].get_title("left") == "(" + alone.removeprefix(name)[0] + ") " + panels["c"].title
    note = json.loads((tmp_path / f"{name}.json").read_text())
    assert says in note["runs"] and note["notebook"] == selection.NOTEBOOK and "left-out" not in note["runs"]
    assert note["datasets"]["breast_cancer"]["seconds"] > 0 and note["datasets"]["breast_cancer"]["specification"]
    assert len(note["caption"].split("Not run yet")[0].split()) <= 60
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert {"grad_dot", "ekfac", "lft"} < set(table["method"]) and set(table["dataset"]) == {"breast_cancer"}
    assert {p.suffix for p in tmp_path.glob(f"{alone}.*")} == {".csv", ".json", ".pdf", ".png"}
    if name == "fig_mislabelled":  # the other panel says what to do
        words = " ".join(" ".join(t.get_text() for t in figure.axes[1].texts).split())
        assert words == f"Not run yet: ./run_all.sh --profile smoke --only {name} --datasets digits"
    kept = {k: panel.other(results=tmp_path / "elsewhere") for k, panel in panels.items()}
    again = selection.FIGURES[name](kept, tmp_path)  # drawn from the numbers that were saved
    texts = [[t.get_text() for t in f.axes[0].texts] for f in (figure, again)]
    assert texts[0] == texts[1]


def test_numbers_in_cells_are_short():
    numbers = {12.3: "12", -3.41: "−3.4", 10.04: "10", 0.5612: ".56", -0.0784: "−.078", -0.0004: "0", 0.0996: ".10"}
    assert [*map(_short, numbers)] == [*numbers.values()]


def test_where_scores_are_computed_otherwise_than_in_the_paper_that_is_said(panels):
    panel = panels["c"]
    some = replace(panel, given_settings=replace(panel.settings, study_curvature=(3, 8, 21)))
    said = selection._said(lambda panel: "so many subsets", lambda panel: ("cg", "lissa_h"))
    entries = [said(chosen) for chosen in (some, panel)]
    sentences = [runs_behind({"c": panel}, {"datasets": {panel.dataset: {"seeds": [0], **entry}}}) for entry in entries]
    some_curvature = "curvature from 3 training instances, "
    assert sentences[0].endswith(f": 1 seed, so many subsets, {some_curvature}LiSSA-H with 6 steps.")
    assert sentences[1].endswith(": 1 seed, so many subsets, LiSSA-H with 6 steps.")
    assert selection._said(lambda panel: "", lambda panel: ("cg",))(panel) == {"says": ""}  # it is not run there


@pytest.mark.parametrize(
    ("name", "column", "value"), [("fig_lds", "share", "lds"), ("fig_removal_curves", "after_step", "change")]
)
def test_the_curves_of_groups_are_the_numbers_of_the_csv(panels, tmp_path, name, column, value):
    figure = selection.FIGURES[name](panels, tmp_path)
    table = pd.read_csv(tmp_path / f"{name}.csv")
    insets = figure.axes[0].child_axes
    assert len(insets) == table[column].nunique()
    for inset, (_, rows) in zip(insets, table.groupby(column), strict=True):
        zero = [line for line in inset.get_lines() if line.get_color() == "black"]
        curves = [line.get_ydata() for line in inset.get_lines() if line.get_linewidth() > 0 and line not in zero]
        drawn, expected = np.sort(np.concatenate(curves)), np.sort(rows[value])
        np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-9)


def test_the_heat_map_boxes_the_best_horizon_for_each_amount_of_training(panels, tmp_path):
    figure = selection.figure_selection(panels, tmp_path)
    ax = figure.axes[0]
    table = selection.selection.table(panels["c"])
    untouched = table[(table["part"] == "untouched") & (table["method"] == "lft")]
    assert len(ax.patches) == untouched["after_step"].nunique()
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[0] == "Grad-Dot" and labels[-1] == "at random" and labels[1].startswith("LFT, K = ")
    best = untouched.loc[untouched.groupby("after_step")["gain"].idxmax()]
    for box, row in zip(ax.patches, best.to_dict("records"), strict=True):
        assert labels[round(box.get_y() + 0.5)] == f"LFT, K = {row['epoch']:g}"
