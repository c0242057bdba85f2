"""The picture of one switching unit: its numbers are those of runs."""

import matplotlib.pyplot as plt
import numpy as np

from fimoda_lib.plots import switching


def test_the_softened_derivative_is_the_mean_over_shifted_starts_and_the_other_is_not():
    table = switching.table().set_index("step")
    before, last = table.loc[:20], table.iloc[-1]
    np.testing.assert_allclose(before["between"], before["difference"], atol=1e-9)
    assert abs(last["softened"] / last["mean"] - 1) < 0.05 and last["between"] / last["mean"] > 1.2


def test_it_is_drawn():
    figure, axes = plt.subplots(1, 2)
    table = switching.table()
    switching.draw(axes, table)
    lines = {line.get_label(): line.get_ydata() for ax in axes for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["derivative, kink softened"], table["softened"])
    np.testing.assert_array_equal(lines["without the instance"], table["without"])
    plt.close(figure)
