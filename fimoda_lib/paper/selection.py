"""Figures on what attribution is for: groups of instances, ranked and removed, with further training as the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.figure import Figure

from ..experiments.horizons import selection_runs, what_is_dropped
from ..experiments.lds import CEILING, WHOLE, subset_runs, what_is_left_out
from ..experiments.mislabelled import accusers, final_run, what_is_flipped
from ..experiments.panel import PAPER_METHODS, Panel
from ..experiments.ranking import ranking_methods
from ..experiments.removal_curves import LOT, NEAR, curve_runs, what_is_removed
from ..plots import lds, mislabelled, removal_curves, selection
from ..plots.captions import steps_of_lissa_h
from ..plots.panels import Panels
from .beyond import study_figure

NOTEBOOK = "09_from_attribution_to_selection"
METHODS = (*PAPER_METHODS, "lft")


def _said(what: Callable[[Panel], str], methods: Callable[[Panel], Iterable[str]]) -> Callable[[Panel], dict]:
    """For provenance: the settings of a study in a clause, and where scores are computed otherwise than the paper."""
    return lambda panel: {
        "says": what(panel),
        **({"curvature": len(some)} if (some := panel.settings.study_curvature) else {}),
        **steps_of_lissa_h(methods(panel), panel.settings.group_lissa_h_depth),
    }


def figure_lds(panels: Panels, folder: Path | str) -> Figure:
    """The linear datamodeling score of every method against the amount of further training."""
    return study_figure(
        "fig_lds", panels, folder, lds.table, lds.draw, lds.WHAT, lds.MARKS, measured=subset_runs,
        how=_said(what_is_left_out, ranking_methods), title="Linear datamodeling score",
        ylabel="rank correlation over subsets", notebook=NOTEBOOK, legend=(*METHODS, WHOLE, CEILING),
    )  # fmt: skip


def figure_removal_curves(panels: Panels, folder: Path | str) -> Figure:
    """What leaving out the instances that each method chooses does to the loss of a test instance."""
    return study_figure(
        "fig_removal_curves", panels, folder, removal_curves.table, removal_curves.draw, removal_curves.WHAT,
        removal_curves.MARKS, measured=curve_runs, how=_said(what_is_removed, ranking_methods),
        title="Removal curves", ylabel="change of the test instance's loss", notebook=NOTEBOOK,
        legend=(*METHODS, LOT, NEAR),
    )  # fmt: skip


def figure_mislabelled(panels: Panels, folder: Path | str) -> Figure:
    """How well each method finds training instances whose labels were changed."""
    return study_figure(
        "fig_mislabelled", panels, folder, mislabelled.table, mislabelled.draw, mislabelled.WHAT, mislabelled.MARKS,
        measured=final_run, how=_said(what_is_flipped, accusers), title="Mislabelled instances",
        ylabel="", legend=mislabelled.legend(), notebook=NOTEBOOK,
    )  # fmt: skip


def figure_selection(panels: Panels, folder: Path | str) -> Figure:
    """What is gained by dropping instances, against the horizon of the scores and the amount of further training."""
    return study_figure(
        "fig_selection", panels, folder, selection.table, selection.draw, selection.WHAT, selection.MARKS,
        measured=selection_runs, how=_said(what_is_dropped, ranking_methods), title="Selection by horizon",
        ylabel="chosen by", notebook=NOTEBOOK,
    )  # fmt: skip


FIGURES: dict[str, Callable] = {
    "fig_lds": figure_lds,
    "fig_removal_curves": figure_removal_curves,
    "fig_mislabelled": figure_mislabelled,
    "fig_selection": figure_selection,
}
