"""How figures look and where they go: colours, layout, files, provenance, captions."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from .captions import caption, line_of, runs_behind
from .look import LOOK, PUBLISHED, STYLE
from .panels import Draw, Panels, Tables


def panel_figure(
    note: dict,
    panels: Panels,
    folder: Path | str,
    tables: Tables,
    draw: Draw,
    *,
    what: str,
    marks: str,
    ylabel: str,
    legend: Sequence[str | Artist] = (),
    below: tuple[str, Draw] | None = None,
) -> Figure:
    """Draws all panels in one figure and each alone, and saves them with their numbers and provenance.

    Args:
        note: from `provenance`; its "figure" names the files, its "title" goes with them.
        what, marks: the caption's sentences on what is drawn, and on what bands, markers and lines mean.
        legend: what the legend below the panels explains: names in `LOOK`, PUBLISHED, or whatever has a label.
        below: another drawing of the same numbers, below the first where a panel is alone, and its title.
    """

    def one(name: str, chosen: Panels, note: dict, below: tuple[str, Draw] | None = None) -> Figure:
        note = {**note, "caption": caption(chosen, note, what, marks), "runs": runs_behind(chosen, note)}
        figure = _layout(chosen, tables, draw, ylabel, legend, note, below)
        save(figure, numbers({k: tables[k] for k in chosen}, chosen), folder, name, note)
        return figure

    with mpl.rc_context(STYLE):
        figure = one(note["figure"], panels, note)
        for letter, panel in panels.items():
            if "drawn" in note["datasets"].get(panel.dataset, {}):
                continue  # from its own file
            own = {k: v for k, v in note["datasets"].items() if k == panel.dataset}
            title = f"{note['title']}: {panel.title}"
            alone = f"{note['figure']}{letter}_{panel.dataset}"
            plt.close(one(alone, {letter: panel}, {**note, "datasets": own, "title": title}, below))
    return figure


def numbers(tables: Tables, panels: Panels) -> pd.DataFrame:
    """The tables of all panels in one, with columns "panel" (its letter) and "dataset"."""
    known = [t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame({"panel": [], "dataset": []})


def _layout(
    panels: Panels,
    tables: Tables,
    draw: Draw,
    ylabel: str,
    legend: Sequence[str | Artist],
    note: dict,
    twice: tuple[str, Draw] | None = None,
) -> Figure:
    twice = None if any(tables[letter] is None for letter in panels) else twice
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns) + (twice is not None)
    names = all(isinstance(entry, str) for entry in legend)  # short ones
    across = min(len(legend), (5 if names else 3) if columns > 1 else (3 if names else 2))
    legend_rows = -(-len(legend) // across) if legend else 0
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(3.9 * columns + 0.5 * (columns == 1), 2.75 * rows + 0.25 + 0.2 * legend_rows),
        layout="constrained",
    )
    for ax, (letter, panel) in zip(axes.flat, panels.items(), strict=False):
        ax.set_title(f"({letter}) {panel.title}")
        if tables[letter] is None:
            say(ax, f"Not run yet: ./run_all.sh --profile {panel.profile} --only {note['figure']} "
                f"--datasets {panel.dataset}")  # fmt: skip
        else:
            draw(ax, letter)
    if twice:
        axes[1, 0].set_title(twice[0])
        twice[1](axes[1, 0], *panels)
    for ax in axes.flat[len(panels) + (twice is not None) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        fits = len(ylabel) <= (30 if rows == 1 else 12)
        ax.set_ylabel(ylabel if fits else "\n".join(_halves(ylabel)))
    figure.align_ylabels(axes[:, 0])
    below = 0.16 / figure.get_figheight()  # what the panels leave free, as a share of the height: the foot ...
    if legend:
        box = _legend(figure, legend, below, across)
        below += box.get_window_extent().height / figure.bbox.height  # ... and the legend
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    foot(figure, note)
    return figure


def foot(figure: Figure, note: dict) -> None:
    """The line of provenance at the foot of a figure."""
    low = 0.03 / figure.get_figheight()
    figure.text(0.995, low, line_of(note), fontsize=5.5, color="#777777", ha="right", va="bottom")


def _legend(figure: Figure, entries: Sequence[str | Artist], below: float, across: int) -> Legend:
    """The legend at the foot of a figure, in so many columns, or as many of them as fit."""
    handles = [_handle(entry) if isinstance(entry, str) else entry for entry in entries]
    box = figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, below),
        ncols=across,
        handlelength=2.4,
        columnspacing=1.4,
        borderaxespad=0,
    )
    box.set_in_layout(False)
    if across > 1 and box.get_window_extent().width > figure.bbox.width:
        box.remove()
        return _legend(figure, entries, below, across - 1)
    return box


def _handle(name: str) -> mpl.lines.Line2D:
    """A method's entry in the legend."""
    if name == PUBLISHED:
        return mpl.lines.Line2D([], [], color="#444444", marker="o", mfc="none", ls="none", ms=4.5, label=PUBLISHED)
    look = LOOK[name]
    shown = dict(color=look.colour, ls=look.line, lw=look.width, marker=look.marker, ms=3.5)
    return mpl.lines.Line2D([], [], **shown, label=look.label)


def _halves(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]


def say(ax: Axes, sentence: str) -> None:
    """An empty panel with one sentence that says what to do."""
    ax.set_xticks([])
    ax.set_yticks([])
    text = textwrap.fill(sentence, 42, break_on_hyphens=False, break_long_words=False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#555555", fontsize=8)


def save(figure: Figure, table: pd.DataFrame | None, folder: Path | str, name: str, note: dict) -> None:
    """Writes `<name>.pdf`, `.png`, `.csv` (the plotted numbers; none for a drawing) and `.json` (provenance)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (layout := figure.get_layout_engine()) is not None:  # once for both files: it takes as long as drawing
        layout.execute(figure)
        figure.set_layout_engine(None)
    # Journals want fonts as fonts. That takes longer than all the rest, and nobody reads what a test draws.
    with mpl.rc_context({"pdf.fonttype": 3, "savefig.dpi": 40} if note["profile"] == "smoke" else {}):
        figure.savefig(folder / f"{name}.pdf", metadata={"Subject": line_of(note), "CreationDate": None})
        figure.savefig(folder / f"{name}.png", metadata={"Description": line_of(note)})
    save_numbers(table, folder, name, note)


def save_numbers(table: pd.DataFrame | None, folder: Path | str, name: str, note: dict) -> None:
    """Writes `<name>.csv`, if there is a table, and `<name>.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if table is not None:
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", quoting=csv.QUOTE_MINIMAL)
    (folder / f"{name}.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
