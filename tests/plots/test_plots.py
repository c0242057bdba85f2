"""The parts of the plots that need no results: published numbers, sorted curves, ceilings, the page of a table."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fimoda_lib.experiments.profiles import PROFILES
from fimoda_lib.intervals import block_ceiling
from fimoda_lib.plots import extremes, seeds, similarity, sorted_scores
from fimoda_lib.plots.drawing import save
from fimoda_lib.plots.look import LOOK, STYLE
from fimoda_lib.plots.published import draw_published, published_points


@pytest.fixture
def ax():
    yield plt.figure().add_subplot()
    plt.close("all")


def test_published_points_are_drawn_as_open_markers(ax):
    draw_published(ax, published_points("2b", "energy"))
    points = {line.get_markeredgecolor(): line for line in ax.get_lines()}
    first = points[LOOK["grad_dot"].colour]
    assert first.get_markerfacecolor() == "none"
    assert first.get_xdata()[0] == 1 and abs(first.get_ydata()[0] - 0.704596) < 1e-9
    assert len(points) == 8


def test_published_points_over_seeds_are_all_drawn(ax):
    ax.set_xscale("log")
    draw_published(ax, published_points("7b", "energy"))
    assert all(line.get_xdata().tolist() == list(seeds.BLOCKS) for line in ax.get_lines())


def test_published_points_belong_to_one_panel_and_one_data_set():
    assert published_points("3a", "folktables").equals(published_points("7d", "folktables"))
    assert len(published_points("3a", "folktables")) == 8 * len(seeds.BLOCKS)
    assert published_points("2d", "adult").empty  # a stand-in has other numbers
    assert published_points("4b", "energy").empty and not published_points("6b", "energy").empty


def test_scores_are_sorted_per_test_instance_before_averaging():
    scores = xr.DataArray([[3.0, -1.0, 0.0], [-5.0, 0.0, 5.0]], dims=("test", "train"))
    np.testing.assert_allclose(sorted_scores.sorted_curve(scores), np.array([-3, 0, 4]) / 5)
    np.testing.assert_allclose(sorted_scores.sorted_curve(scores.T), np.array([-3, 0, 4]) / 5)
    assert sorted_scores.sorted_curve(scores * 0).tolist() == [0, 0, 0]


def test_the_ceiling_is_at_the_horizons_that_are_drawn():
    g = np.random.default_rng(0)
    coords = {"seed": range(4), "left_out": range(9), "step": [3, 6], "test": range(2)}
    values = g.normal(size=(1, 9, 2, 2)) + g.normal(size=(4, 9, 2, 2))
    gold = xr.Dataset({"delta": (tuple(coords), values)}, coords)
    drawn = pd.DataFrame({"method": ["cg", "trak"] * 2, "seeds_averaged": [1, 1, 4, 4], "step": [3, 6, 6, 6]})
    table = seeds.ceiling(gold, drawn, "mean")
    at = block_ceiling(gold, [1, 4], [3, 6])
    np.testing.assert_allclose(table["mean"], [at[:, 0].mean(), at[1, 1]])
    np.testing.assert_allclose(table["low"], [at[:, 0].min(), at[1, 1]])
    np.testing.assert_allclose(table["high"], [at[:, 0].max(), at[1, 1]])
    assert table["seeds_averaged"].tolist() == [1, 4]
    diverged = pd.DataFrame({"method": ["cg"]})  # no method has a horizon
    assert seeds.ceiling(gold, diverged, "mean").empty


def test_a_band_is_one_standard_error(ax):
    table = pd.DataFrame({"method": "cg", "epoch": [1, 2], "mean": [0.5, 0.4], "sem": [0.1, 0.2]})
    similarity.draw(ax, table, "energy")
    (band,) = ax.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert {(1.0, 0.4), (1.0, 0.6), (2.0, 0.2), (2.0, 0.6)} <= corners


def test_a_page_is_bold_where_instances_agree():
    table = pd.DataFrame(
        {
            "test": [7, 7, 7],
            "role": extremes.ROLES,
            "instance": [7, 4, 2],
            "score": [np.nan, 0.0123, -0.5],
            "hours": [38.5, 40.0, 40.0],
            "job": ["<clerk>", "<clerk>", "nurse"],
        }
    )
    page = extremes.html(table, "What it is.")
    bold = page[page.index("<style") : page.index("</style>")]
    (rule,) = [line for line in bold.splitlines() if line.startswith("#T_table2_row")]
    assert "row1_col5" in rule and "row0_col5" not in rule and "row2_col5" not in rule and "col4" not in rule
    assert "+0.012" in page and "−0.5" in page and "nan" not in page
    assert ">38.5<" in page and ">40<" in page
    assert "What it is." in page and "&lt;clerk&gt;" in page


def test_fonts_are_embedded_as_text_in_all_that_people_read(tmp_path):
    kinds = {}
    for profile in PROFILES:
        with plt.rc_context(STYLE):
            figure = plt.figure()
            figure.text(0.1, 0.5, "words")
            save(figure, None, tmp_path, profile, {"figure": "fig02", "profile": profile, "datasets": {}, "commit": ""})
        pdf = (tmp_path / f"{profile}.pdf").read_bytes()
        kinds[profile] = b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert kinds == {profile: profile != "smoke" for profile in PROFILES}
