"""The paper's figures: one function each, from stored results to PDF, PNG, and a CSV of the plotted numbers.

`panels` are keyed by their letters in Figure 2, (a) to (f), whatever they fill; a figure that shows only some of them,
or under other letters, takes what it needs (`LETTERS`). Results are read, not computed (but for `figure_damping`): a
panel whose results are missing says how to make them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.panel import PAPER_METHODS
from ..plots import access, damping, extremes, retraining, sorted_scores, thumbnails
from ..plots.captions import caption, provenance, runs_behind, scores_of
from ..plots.damping import table as damping_sweep
from ..plots.drawing import foot, panel_figure, save, save_numbers, say
from ..plots.kept import panels_and_tables
from ..plots.look import LOOK, STYLE, Look
from ..plots.panels import LETTERS, Panels, shown_in
from ..plots.pictures import gallery
from ..plots.published import published_curves
from .claims import margins
from .curves import legend_of, seeds_figure, similarity_figure

__all__ = ["FIGURES", "LETTERS", "LOOK", "STYLE", "Look", "damping_sweep", "published_curves", "shown_in"]


def figure1(panels: Panels, folder: Path | str) -> Figure:
    """Figure 1: levels of access, and further training: a drawing. `panels` only say for which profile."""
    note = provenance(panels, figure="fig01", title="Levels of access, and further training", measured=None)
    note["caption"] = access.CAPTION
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(2, 1, figsize=(7.1, 5.6), layout="constrained", height_ratios=(2.75, 2.3))
        access.draw_levels(axes[0])
        access.draw_further_training(axes[1])
        axes[0].set_title("(a) Levels of access")
        axes[1].set_title("(b) Further training, the gold standard with the final model only")
        save(figure, None, folder, "fig01", note)
    return figure


# --- Similarity against the amount of further training --------------------------------------------------------------


def figure2(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS, *, axis: str = "log") -> Figure:
    """Figure 2: cosine similarity against the amount of further training, mean adjustment, SGD (text: AdamW).

    Args:
        axis: of the amount: "log", where the decay is, or "linear", as in the paper.
    """
    return similarity_figure("fig02", panels, folder, methods, axis=axis)


def figure4(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS, *, axis: str = "log") -> Figure:
    """Figure 4: as Figure 2, with Adam."""
    return similarity_figure("fig04", panels, folder, methods, optimizer="adam", axis=axis)


def figure5(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS, *, axis: str = "log") -> Figure:
    """Figure 5: as Figure 2, with the full adjustment."""
    return similarity_figure("fig05", panels, folder, methods, adjustment="full", axis=axis)


def figure6(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS, *, axis: str = "log") -> Figure:
    """Figure 6: as Figure 2, with Spearman correlation."""
    return similarity_figure("fig06", panels, folder, methods, metric="spearman", axis=axis)


# --- Similarity against the number of seeds averaged ----------------------------------------------------------------


def figure3(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 3: cosine similarity against the number of seeds averaged; two panels of Figure 7."""
    return seeds_figure("fig03", panels, folder, methods)


def figure7(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 7: as Figure 3, all panels."""
    return seeds_figure("fig07", panels, folder, methods)


def figure8(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 8: as Figure 7, with Adam."""
    return seeds_figure("fig08", panels, folder, methods, optimizer="adam")


def figure9(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 9: as Figure 7, with the full adjustment."""
    return seeds_figure("fig09", panels, folder, methods, adjustment="full")


# --- The other figures ----------------------------------------------------------------------------------------------


def figure10(panels: Panels, folder: Path | str, methods: Sequence[str] = ("grad_dot", "grad_cos")) -> Figure:
    """Figure 10: sorted attribution scores of first-order methods and of further training at two amounts."""
    panels, tables, kept = panels_and_tables(
        "fig10", panels, folder, lambda panel: sorted_scores.table(panel, methods), compute=False
    )
    note = provenance(
        panels,
        kept=kept,
        figure="fig10",
        title="Sorted attribution scores",
        scores=scores_of(methods),
        optimizer="sgd",
        adjustment="mean",
    )
    return panel_figure(
        note,
        panels,
        folder,
        tables,
        lambda ax, letter: sorted_scores.draw(ax, tables[letter], panels[letter].dataset),
        what=sorted_scores.WHAT,
        marks=sorted_scores.MARKS,
        ylabel="sorted attribution score",
    )


def figure11(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 11: cosine similarity to re-training from scratch without each left-out instance."""
    panels, tables, kept = panels_and_tables(
        "fig11", panels, folder, lambda panel: retraining.table(panel, methods), compute=False
    )
    judged = {panel.dataset: margins("fig11", tables[k]) for k, panel in panels.items()}
    note = provenance(
        panels,
        kept=kept,
        figure="fig11",
        title="Similarity to re-training from scratch",
        measured=lambda panel: panel.retrained,
        scores=scores_of(methods),
        optimizer="sgd",
        adjustment="mean",
        how=lambda panel: judged[panel.dataset],
        metric="cosine",
    )
    return panel_figure(
        note,
        panels,
        folder,
        tables,
        lambda ax, letter: retraining.draw(ax, tables[letter]),
        what=retraining.WHAT,
        marks=retraining.marks(tables),
        ylabel="cosine similarity to re-training",
        legend=legend_of((*methods, "further_last"), tables),
    )


def table2(panels: Panels, folder: Path | str, name: str = "table2") -> pd.DataFrame | None:
    """Table 2: the most helpful and most harmful training instance for a few test instances; CSV, HTML and JSON."""
    (panel,) = shown_in(name, panels, compute=False).values()
    table = extremes.table(panel)
    title = "The most helpful and the most harmful training instances"
    note = provenance({"a": panel}, figure=name, title=title, optimizer="sgd", adjustment="mean")
    note["caption"] = caption({"a": panel}, note, extremes.WHAT, extremes.MARKS)
    note["runs"] = runs_behind({"a": panel}, note)
    save_numbers(pd.DataFrame(columns=extremes.FIRST) if table is None else table, folder, name, note)
    page = extremes.html(table, f"{note['caption']} {note['runs']}".strip())
    (Path(folder) / f"{name}.html").write_text(page, encoding="utf-8")
    return table


def table2_text(panels: Panels, folder: Path | str) -> pd.DataFrame | None:
    """Table 2, its sentences."""
    return table2(panels, folder, "table2_text")


def figure_images(panels: Panels, folder: Path | str) -> Figure:
    """The most helpful and the most harmful training images for several test images."""
    (panel,) = shown_in("fig_images", panels, compute=False).values()
    note = provenance(
        {"a": panel},
        figure="fig_images",
        title="The most helpful and the most harmful training images",
        optimizer="sgd",
        adjustment="mean",
    )
    note["caption"] = caption({"a": panel}, note, thumbnails.WHAT, thumbnails.MARKS)
    note["runs"] = runs_behind({"a": panel}, note)
    scores = thumbnails.scores(panel)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        if scores is None:
            figure, ax = plt.subplots(figsize=(7.1, 2))
            say(ax, f"Not run yet: ./run_all.sh --profile {panel.profile} --only fig_images --datasets {panel.dataset}")
        else:
            figure = gallery(panel.task, scores, n=thumbnails.N_TRAIN, title=panel.title)
        foot(figure, note)
        save(figure, thumbnails.table(panel, scores), folder, "fig_images", note)
    return figure


def figure_damping(panels: Panels, folder: Path | str, method: str = "exact") -> Figure:
    """Similarity of influence functions against damping and horizon, with λ = 1/(learning rate x steps) drawn on it."""
    panels = shown_in("fig_damping", panels)  # computes what is missing, if they may: no other notebook asks for it
    tables = {k: damping.table(panel, method) for k, panel in panels.items()}

    def draw(ax: Axes, letter: str) -> None:
        chosen = panels[letter].settings
        damping.draw(ax, tables[letter], chosen.further.learning_rate, chosen.damping_multiples)

    return panel_figure(
        provenance(
            panels,
            figure="fig_damping",
            title="Damping is time",
            notebook="05_damping_is_time",
            scores=lambda panel: [partial(panel.scores, method, multiple=m) for m in damping.MULTIPLES],
            optimizer="sgd",
            adjustment="mean",
            metric="cosine",
            method=method,
        ),
        panels,
        folder,
        tables,
        draw,
        what=damping.WHAT,
        marks=damping.MARKS,
        ylabel=r"damping $\lambda$",
        legend=damping.legend(),
    )


FIGURES: dict[str, Callable[[Panels, Path | str], Figure | pd.DataFrame | None]] = {
    "fig01": figure1,
    "fig02": figure2,
    "fig03": figure3,
    "fig04": figure4,
    "fig05": figure5,
    "fig06": figure6,
    "fig07": figure7,
    "fig08": figure8,
    "fig09": figure9,
    "fig10": figure10,
    "fig11": figure11,
    "table2": table2,
    "table2_text": table2_text,
    "fig_images": figure_images,
    "fig_damping": figure_damping,
}
