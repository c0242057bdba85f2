"""How figures look and where they go: colours, layout, files, provenance."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .reproduction import Reproduction, finished


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure. Colours are told apart by colour-blind readers; families by line style:
    solid for first-order methods, dashed for influence functions, dotted for projections. CG, LiSSA and LiSSA-H often
    lie on each other: their dashes interleave."""

    label: str
    colour: str
    marker: str
    line: str | tuple = "-"


LOOK: dict[str, Look] = {
    "grad_dot": Look("Grad-Dot", "#0072B2", "o"),
    "grad_cos": Look("Grad-Cos", "#56B4E9", "s"),
    "datainf": Look("DataInf", "#332288", "^"),
    "cg": Look("CG", "#D55E00", "v", (0, (4, 5))),
    "lissa": Look("LiSSA", "#E69F00", "D", (3, (4, 5))),
    "lissa_h": Look("LiSSA-H", "#8C510A", "P", (6, (4, 5))),
    "ekfac": Look("EK-FAC", "#CC79A7", "X", (0, (4, 2))),
    "exact": Look("Exact", "#882255", "*", (0, (4, 2))),
    "trak": Look("TRAK", "#009E73", "h", ":"),
    "ceiling": Look("noise ceiling", "#666666", "", (0, (1, 1))),
}
PUBLISHED = "published"  # the open markers, in legends
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.dpi": 100,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "axes.titlelocation": "left",
}
Panels = Mapping[str, Reproduction]  # panel letter -> what it shows
Draw = Callable[[Axes, str], None]  # draws the panel of that letter


def panel_figure(
    name: str,
    panels: Panels,
    folder: Path | str,
    draw: Draw,
    rows: pd.DataFrame,
    note: dict,
    ylabel: str,
    legend: Sequence[str],
) -> Figure:
    """Draws all panels in one figure and each alone, and saves them with their numbers and provenance."""
    with mpl.rc_context(STYLE):
        figure = _layout(panels, draw, ylabel, legend, note)
        save(figure, rows, folder, name, note)
        for letter, shown in panels.items():
            own = {k: v for k, v in note["datasets"].items() if k == shown.dataset}
            alone_note = {**note, "datasets": own}
            alone = _layout({letter: shown}, draw, ylabel, legend, alone_note)
            panel_rows = rows[rows["panel"] == letter] if "panel" in rows else rows
            save(alone, panel_rows, folder, f"{name}{letter}_{shown.dataset}", alone_note)
            plt.close(alone)
    return figure


def _layout(panels: Panels, draw: Draw, ylabel: str, legend: Sequence[str], note: dict) -> Figure:
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(3.9 * columns + 0.5 * (columns == 1), 2.75 * rows + 0.75),
        layout="constrained",
    )
    for ax, letter in zip(axes.flat, panels, strict=False):
        draw(ax, letter)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel if rows == 1 else "\n".join(_halves(ylabel)))
    if legend:
        handles = [_handle(name) for name in legend]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 5 if columns > 1 else 3),
            handlelength=2.4,
            columnspacing=1.4,
        )
    strip = 0.16 / figure.get_figheight()  # for the line of provenance, below everything else
    figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
    figure.text(0.995, 0.2 * strip, line_of(note), fontsize=5.5, color="#777777", ha="right", va="bottom")
    return figure


def _handle(name: str) -> mpl.lines.Line2D:
    """A method's entry in the legend."""
    if name == PUBLISHED:
        return mpl.lines.Line2D([], [], color="#444444", marker="o", mfc="none", ls="none", ms=4.5, label=PUBLISHED)
    look = LOOK[name]
    line = look.line if isinstance(look.line, str) else (0, look.line[1])
    return mpl.lines.Line2D([], [], color=look.colour, ls=line, label=look.label)


def _halves(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]


def say(ax: Axes, sentence: str) -> None:
    """An empty panel with one sentence that says what to do."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(
        0.5, 0.5, sentence, transform=ax.transAxes, ha="center", va="center", wrap=True, color="#555555", fontsize=8
    )


def save(figure: Figure, table: pd.DataFrame, folder: Path | str, name: str, note: dict) -> None:
    """Writes `<name>.pdf`, `.png`, `.csv` (the plotted numbers) and `.json` (provenance)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"Subject": line_of(note), "CreationDate": None})
    figure.savefig(folder / f"{name}.png", metadata={"Description": line_of(note)})
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", quoting=csv.QUOTE_MINIMAL)
    (folder / f"{name}.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")


def provenance(panels: Panels, **settings: str) -> dict:
    """What a figure was made from: profile, seeds, specification hashes, time, versions, commit."""
    datasets = {}
    for shown in panels.values():
        gold = finished(lambda s=shown: s.gold)
        if gold is not None:
            datasets[shown.dataset] = {
                "seeds": gold.seed.values.tolist(),
                "left_out": gold.sizes["left_out"],
                "test": gold.sizes["test"],
                "specification": gold.attrs["specification"],
                "seconds": round(float(gold.seconds.sum()), 1),
                "diverged_runs": int(gold.diverged.sum()),
            }
    profile = next(iter(panels.values())).profile
    versions = {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": mpl.__version__}
    return {"profile": profile, **settings, "datasets": datasets, "versions": versions, "commit": code_version()}


def line_of(note: dict) -> str:
    """Provenance in one line, for the foot of a figure."""
    pieces = [f"{name} {len(d['seeds'])} seeds, {d['left_out']} left out" for name, d in note["datasets"].items()]
    return f"{note['figure']} · profile {note['profile']} · {'; '.join(pieces) or 'nothing run'} · {note['commit']}"


@cache
def code_version() -> str:
    """The commit of the code, with "+" if files have changed since; "unknown" outside a git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
