"""Figures from tiny stored results: what is drawn is what the CSV says."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fimoda_lib import figures
from fimoda_lib.comparison import sensitivity, similarity
from fimoda_lib.reproduction import Reproduction

METHODS = ("grad_dot", "grad_cos")


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    shown = {
        "a": Reproduction("diabetes", "smoke", results=results),
        "b": Reproduction("wine", "smoke", results=results),
    }
    for name in METHODS:
        shown["a"].scores(name)
    assert shown["a"].gold.sizes["seed"] == 2
    return shown  # nothing of panel b has been run


def test_lines_are_the_numbers_of_the_csv(panels, tmp_path):
    figure = figures.figure2(panels, tmp_path, METHODS)
    table = pd.read_csv(tmp_path / "fig02.csv")
    ax = figure.axes[0]
    lines = {line.get_color(): line for line in ax.get_lines()}
    expected = similarity(panels["a"].scores("grad_dot"), sensitivity(panels["a"].gold))
    for name in METHODS:
        rows = table[table.method == name]
        np.testing.assert_allclose(lines[figures.LOOK[name].colour].get_ydata(), rows["mean"], rtol=1e-5)
        np.testing.assert_allclose(lines[figures.LOOK[name].colour].get_xdata(), rows["epoch"], rtol=1e-5)
    np.testing.assert_allclose(table[table.method == "grad_dot"]["mean"], expected["mean"], rtol=1e-5)
    assert set(table.method) == {*METHODS, "ceiling"}
    assert "Diabetes (stands in for Concrete)" in ax.get_title(loc="left")
    plt.close(figure)


def test_a_panel_without_results_says_what_to_do(panels, tmp_path):
    figure = figures.figure2(panels, tmp_path, METHODS)
    words = [t.get_text() for t in figure.axes[1].texts]
    assert words == ["Not run yet: ./run_all.sh --profile smoke --datasets wine"]
    assert not figure.axes[1].get_lines()
    plt.close(figure)


def test_the_four_figures_differ_in_what_they_should(panels, tmp_path):
    tables = {}
    for name, draw in (("fig02", figures.figure2), ("fig05", figures.figure5), ("fig06", figures.figure6)):
        plt.close(draw(panels, tmp_path, METHODS))
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv").query("method == 'grad_dot'")["mean"]
    gold, scores = panels["a"].gold, panels["a"].scores("grad_dot")
    full, ranks = similarity(scores, sensitivity(gold, "full")), similarity(scores, sensitivity(gold), "spearman")
    np.testing.assert_allclose(tables["fig05"], full["mean"], rtol=1e-5)
    np.testing.assert_allclose(tables["fig06"], ranks["mean"], rtol=1e-5)
    assert not np.allclose(tables["fig02"], tables["fig05"]) and not np.allclose(tables["fig02"], tables["fig06"])


def test_a_method_that_diverged_is_named_not_drawn(panels, tmp_path, monkeypatch):
    real = Reproduction.scores

    def scores(self, method, **hyper):
        found = real(self, method, **hyper)
        return (found * np.nan).assign_attrs(outcome="diverged: for the test") if method == "grad_cos" else found

    monkeypatch.setattr(Reproduction, "scores", scores)
    figure = figures.figure2(panels, tmp_path, METHODS)
    assert [t.get_text() for t in figure.axes[0].texts] == ["diverged: Grad-Cos"]
    assert figures.LOOK["grad_cos"].colour not in {line.get_color() for line in figure.axes[0].get_lines()}
    plt.close(figure)


def test_published_points_are_drawn_as_open_markers():
    ax = plt.figure().add_subplot()
    figures.draw_published(ax, "2b", "energy", "sgd", "mean", "cosine")
    points = {line.get_markeredgecolor(): line for line in ax.get_lines()}
    first = points[figures.LOOK["grad_dot"].colour]
    assert first.get_markerfacecolor() == "none"
    assert first.get_xdata()[0] == 1 and abs(first.get_ydata()[0] - 0.704596) < 1e-9
    assert len(points) == 8
    plt.close()


def test_damping_sweep_covers_dampings_and_names_them(panels, tmp_path):
    table = figures.damping_sweep(panels["a"], multiples=(0.1, 10.0))
    assert sorted(table.multiple.unique()) == [0.1, 10.0]
    ratio = table.groupby("multiple").damping.first()
    assert np.isclose(ratio[10.0] / ratio[0.1], 100)
    expected = similarity(panels["a"].scores("exact", multiple=10.0), sensitivity(panels["a"].gold))["mean"]
    np.testing.assert_allclose(table[table.multiple == 10.0]["mean"], expected)


def test_every_method_has_a_colour_of_its_own():
    colours = [look.colour for look in figures.LOOK.values()]
    assert len(set(colours)) == len(colours)
