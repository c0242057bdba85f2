"""Rounded test losses: what they do to sensitivities, by hand, and the figure from tiny stored runs."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fimoda_lib.comparison import sensitivity, similarity
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.rounded import published_runs, rounded, rounding_table
from fimoda_lib.paper import beyond


def runs(delta, full):
    """delta [seed, left_out, step, test] and full losses [seed, step, test]."""
    names = ("seed", "left_out", "step", "test")
    coords = {name: np.arange(n) for name, n in zip(names, delta.shape, strict=True)}
    return xr.Dataset({"delta": (names, delta), "full_loss": (("seed", "step", "test"), full)}, coords)


def test_losses_are_rounded_before_they_are_subtracted():
    g = np.random.default_rng(0)
    delta, full = 1e-8 * g.normal(size=(2, 5, 3, 4)), 0.1 + g.random((2, 3, 4))
    for shrunk in (1.0, 0.01):
        found = rounded(runs(delta, full), shrunk).delta.values
        for s, i, k, z in np.ndindex(*delta.shape):
            a, b = np.float32(full[s, k, z]), np.float32(full[s, k, z] + shrunk * delta[s, i, k, z])
            assert found[s, i, k, z] == float(b) - float(a)
    assert (found == 0).mean() > 0.5  # a hundredth of 1e-8 is nothing beside 0.1
    large = rounded(runs(1e6 * delta, full)).delta.values
    np.testing.assert_allclose(large, 1e6 * delta, atol=1e-7)  # ... and nothing changes where sensitivities are large


@pytest.mark.slow
def test_the_figure_from_tiny_runs(tmp_path, quick_pictures, computed):
    computed(tmp_path, "final-sentences", "further-sentences", "scores-sentences-grad_dot")
    panel = Panel("sentences", "smoke", results=tmp_path)
    gold = published_runs(panel)
    assert gold.sizes["seed"] == 2 and gold.attrs["removal"] == "subtract"
    table = rounding_table(panel).set_index(["losses", "shrunk", "seeds_averaged"]).sort_index()
    expected = similarity(panel.scores("grad_dot"), sensitivity(gold))["mean"]
    np.testing.assert_allclose(table.loc[("float64", 1.0, 2)]["mean"], expected, rtol=1e-9)
    by_hand = similarity(panel.scores("grad_dot"), sensitivity(rounded(gold, 0.01)))["mean"]
    np.testing.assert_allclose(table.loc[("float32", 0.01, 2)]["mean"], by_hand, rtol=1e-9)
    assert table.loc[("float32", 0.01, 2)]["zero"].mean() >= table.loc[("float32", 1.0, 2)]["zero"].mean()
    figure = beyond.figure_rounding({"f": panel.other(compute=False)}, tmp_path / "figures")
    left, right = figure.axes[0].child_axes
    assert len(left.get_lines()) == 4 * 2 + 1 and len(right.get_lines()) == 4 + 1  # nothing published of a stand-in
    best = table.loc[("float64", 1.0)].groupby("seeds_averaged")["mean"].max()
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), best, rtol=1e-12)
    note = json.loads((tmp_path / "figures" / "fig_rounding.json").read_text())
    assert len(note["caption"].split()) <= 60 and note["datasets"]["sentences"]["seeds"] == [0, 1]
    assert len(pd.read_csv(tmp_path / "figures" / "fig_rounding.csv")) == len(table)
    plt.close("all")
