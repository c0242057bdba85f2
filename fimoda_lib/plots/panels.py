"""Which panels a figure shows, and under which letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.axes import Axes

from ..experiments.panel import Panel
from ..experiments.settings import counted_in_steps

Panels = Mapping[str, Panel]  # panel letter -> what it shows
Tables = Mapping[str, pd.DataFrame | None]  # panel letter -> the numbers drawn there; None if not computed yet
Draw = Callable[[Axes, str], None]  # draws the numbers of the panel of that letter

ALL, TABULAR = {k: k for k in "abcdef"}, {k: k for k in "abcd"}
LETTERS: dict[str, dict[str, str]] = {  # figure -> letter of each of its panels -> that panel's letter in Figure 2
    "fig01": {},
    "fig02": ALL,
    "fig03": {"a": "d", "b": "f"},
    "fig04": TABULAR,
    "fig05": ALL,
    "fig06": ALL,
    "fig07": ALL,
    "fig08": TABULAR,
    "fig09": ALL,
    "fig10": {"a": "c", "b": "d", "c": "e", "d": "f"},
    "fig11": {"a": "a", "b": "b"},
    "table2": {"a": "d"},
    "table2_text": {"a": "f"},
    "fig_images": {"a": "e"},
    "fig_damping": {"a": "a", "b": "b"},
    "fig02plus": ALL,
    "fig04plus": TABULAR,
    "fig_filter": {"a": "a", "b": "b"},
    "fig_limit": {"a": "a", "b": "b"},
    "fig_units": {"a": "b", "b": "e"},
    "fig_precision": ALL,
    "fig_rounding": {"a": "f"},
    "fig_removal": {"a": "a", "b": "b"},
    "table_horizons": ALL,
    "fig_lds": {k: k for k in "abcde"},
    "fig_removal_curves": {k: k for k in "abc"},
    "fig_mislabelled": {"a": "c", "b": "d", "c": "e"},
    "fig_selection": {k: k for k in "abc"},
}


def shown_in(figure: str, panels: Panels, **changes: str | bool) -> dict[str, Panel]:
    """The panels of a figure under its own letters.

    Args:
        panels: letter in Figure 2 -> what it shows.
        changes: of what is shown (another optimiser; `compute=False`: stored results only).

    Raises:
        ValueError: the figure shows none of them.
    """
    letters = LETTERS[figure]
    chosen = {own: panels[k].other(**changes) for own, k in letters.items() if k in panels}
    if not chosen:
        raise ValueError(
            f"{figure} shows the panels {', '.join(letters.values())} of Figure 2, got {', '.join(panels) or 'none'}; "
            "add a data set that fills one of them."
        )
    return chosen


def horizon_axis(dataset: str) -> tuple[str, str]:
    """The column that counts a data set's further training, "step" or "epoch", and the label of that axis."""
    steps = counted_in_steps(dataset)
    return ("step", "optimiser steps of further training") if steps else ("epoch", "epochs of further training")
