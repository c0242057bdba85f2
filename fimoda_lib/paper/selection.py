"""Figures on what attribution is for: groups of instances, ranked and removed, with further training as the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from ..experiments.horizons import selection_runs, what_is_dropped
from ..experiments.mislabelled import final_run, what_is_flipped
from ..plots import mislabelled, selection
from ..plots.panels import Panels
from .beyond import study_figure

NOTEBOOK = "09_from_attribution_to_selection"


def figure_mislabelled(panels: Panels, folder: Path | str) -> Figure:
    """How well each method finds training instances whose labels were changed."""
    return study_figure(
        "fig_mislabelled", panels, folder, mislabelled.table, mislabelled.draw, mislabelled.WHAT, mislabelled.MARKS,
        measured=final_run, how=lambda panel: {"says": what_is_flipped(panel)}, title="Mislabelled instances",
        ylabel="", notebook=NOTEBOOK,
    )  # fmt: skip


def figure_selection(panels: Panels, folder: Path | str) -> Figure:
    """What is gained by dropping instances, against the horizon of the scores and the amount of further training."""
    return study_figure(
        "fig_selection", panels, folder, selection.table, selection.draw, selection.WHAT, selection.MARKS,
        measured=selection_runs, how=lambda panel: {"says": what_is_dropped(panel)}, title="Selection by horizon",
        ylabel="chosen by", notebook=NOTEBOOK,
    )  # fmt: skip


FIGURES: dict[str, Callable] = {
    "fig_mislabelled": figure_mislabelled,
    "fig_selection": figure_selection,
}
