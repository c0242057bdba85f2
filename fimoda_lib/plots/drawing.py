"""How figures look and where they go: colours, layout, files, provenance, captions."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments.panel import Panel, finished, one_seed
from ..experiments.settings import experiment_of
from ..storage.provenance import code_version
from ..storage.store import asked, read_sidecar


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure. Colours are told apart by colour-blind readers; families by line style:
    solid for first-order methods, dashed for influence functions, dotted for projections, a thick black line for ours,
    dash-dotted for what is measured by training. CG, LiSSA and LiSSA-H often lie on each other: their dashes
    interleave."""

    label: str
    colour: str
    marker: str
    line: str | tuple = "-"
    width: float = 1.4


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
    "lft": Look("LFT (ours)", "#111111", "d", "-", 2.2),
    "further_first": Look("further training, first epoch", "#999933", "<", (0, (5, 1.5, 1, 1.5))),
    "further_last": Look("further training, last epoch", "#117733", ">", (0, (5, 1.5, 1, 1.5))),
    "ceiling": Look("noise ceiling", "#666666", "", (0, (1, 1)), 1.0),
}
RULES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
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
Panels = Mapping[str, Panel]  # panel letter -> what it shows
Tables = Mapping[str, pd.DataFrame | None]  # panel letter -> the numbers drawn there; None if not computed yet
Draw = Callable[[Axes, str], None]  # draws the numbers of the panel of that letter


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
    legend: Sequence[str] = (),
) -> Figure:
    """Draws all panels in one figure and each alone, and saves them with their numbers and provenance.

    Args:
        note: from `provenance`; its "figure" names the files, its "title" goes with them.
        what, marks: the caption's sentences on what is drawn, and on what bands, markers and lines mean.
        legend: what the legend below the panels explains: names in `LOOK`, or PUBLISHED.
    """

    def one(name: str, chosen: Panels, note: dict) -> Figure:
        note = {**note, "caption": caption(chosen, note, what, marks)}
        figure = _layout(chosen, tables, draw, ylabel, legend, note)
        save(figure, numbers({k: tables[k] for k in chosen}, chosen), folder, name, note)
        return figure

    with mpl.rc_context(STYLE):
        figure = one(note["figure"], panels, note)
        for letter, shown in panels.items():
            if "drawn" in note["datasets"].get(shown.dataset, {}):
                continue  # from its own file
            own = {k: v for k, v in note["datasets"].items() if k == shown.dataset}
            title = f"{note['title']}: {shown.title}"
            alone = f"{note['figure']}{letter}_{shown.dataset}"
            plt.close(one(alone, {letter: shown}, {**note, "datasets": own, "title": title}))
    return figure


def numbers(tables: Tables, panels: Panels) -> pd.DataFrame:
    """The tables of all panels in one, with columns "panel" (its letter) and "dataset"."""
    known = [t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame({"panel": [], "dataset": []})


def _layout(panels: Panels, tables: Tables, draw: Draw, ylabel: str, legend: Sequence[str], note: dict) -> Figure:
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    across = min(len(legend), 5 if columns > 1 else 3)
    legend_rows = -(-len(legend) // across) if legend else 0
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(3.9 * columns + 0.5 * (columns == 1), 2.75 * rows + 0.25 + 0.2 * legend_rows),
        layout="constrained",
    )
    for ax, (letter, shown) in zip(axes.flat, panels.items(), strict=False):
        ax.set_title(f"({letter}) {shown.title}")
        if tables[letter] is None:
            say(ax, f"Not run yet: ./run_all.sh --profile {shown.profile} --only {note['figure']} "
                f"--datasets {shown.dataset}")  # fmt: skip
        else:
            draw(ax, letter)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel if rows == 1 else "\n".join(_halves(ylabel)))
    figure.align_ylabels(axes[:, 0])
    below = 0.16 / figure.get_figheight()  # what the panels leave free, as a share of the height: the foot ...
    if legend:
        box = figure.legend(
            handles=[_handle(name) for name in legend],
            loc="lower center",
            bbox_to_anchor=(0.5, below),
            ncols=across,
            handlelength=2.4,
            columnspacing=1.4,
            borderaxespad=0,
        )
        box.set_in_layout(False)
        below += box.get_window_extent().height / figure.bbox.height  # ... and the legend
    figure.get_layout_engine().set(rect=(0, below, 1, 1 - below))
    foot(figure, note)
    return figure


def foot(figure: Figure, note: dict) -> None:
    """The line of provenance at the foot of a figure."""
    low = 0.03 / figure.get_figheight()
    figure.text(0.995, low, line_of(note), fontsize=5.5, color="#777777", ha="right", va="bottom")


def _handle(name: str) -> mpl.lines.Line2D:
    """A method's entry in the legend."""
    if name == PUBLISHED:
        return mpl.lines.Line2D([], [], color="#444444", marker="o", mfc="none", ls="none", ms=4.5, label=PUBLISHED)
    look = LOOK[name]
    line = look.line if isinstance(look.line, str) else (0, look.line[1])
    return mpl.lines.Line2D([], [], color=look.colour, ls=line, lw=look.width, label=look.label)


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


def provenance(
    panels: Panels,
    *,
    figure: str,
    title: str,
    measured: Callable[[Panel], xr.Dataset] | None = lambda shown: shown.gold,
    methods: bool = True,
    remark_on: Callable[[Panel], str] = lambda shown: experiment_of(shown.dataset, shown.profile).remark,
    how: Callable[[Panel], dict] = lambda shown: {},
    notebook: str = "04_figures",
    kept: Mapping[str, dict] | None = None,
    **settings: str,
) -> dict:
    """What a figure was made from: profile, seeds, specification hashes, time, versions, commit.

    Args:
        measured: the training runs that a panel shows; further training by default, None for a mere drawing.
        methods: whether methods are shown, so that their curvature and those that are not run matter.
        remark_on: what captions say of a panel's model and data.
        how: further entries of a panel that captions speak of, see `_aside`.
        notebook: the notebook that draws the figure.
        kept: letter -> this function's entry for the data set of a panel that was drawn earlier; "drawn" is the commit.
        settings: whatever else tells this figure from others.
    """
    datasets = {}
    for letter, shown in panels.items() if measured else ():
        if letter in (kept or {}):
            datasets[shown.dataset] = kept[letter]
            continue
        runs = finished(lambda s=shown: measured(s))
        if runs is not None:
            datasets[shown.dataset] = {
                "seeds": runs.seed.values.tolist(),
                "left_out": runs.sizes["left_out"],
                "test": runs.sizes["test"],
                "optimizer": runs.attrs["optimizer"],
                "removal": runs.attrs["removal"],
                "learning_rate": runs.attrs["learning_rate"],
                **({"remark": remark} if (remark := remark_on(shown)) else {}),
                **({"curvature": len(some)} if methods and (some := shown.settings.curvature) else {}),
                **({"without": without} if methods and (without := shown.left_aside) else {}),
                **how(shown),
                "specification": runs.attrs["specification"],
                "seconds": round(float(runs.seconds.sum()), 1),
                "diverged_runs": int(runs.diverged.sum()),
                **computed_on(shown, measured, int(runs.seed[0])),
            }
    return {
        "figure": figure,
        "title": title,
        "notebook": notebook,
        "profile": next((shown.profile for shown in panels.values()), "any"),
        **settings,
        "datasets": datasets,
        "device": ", ".join(sorted({d["device"] for d in datasets.values() if "device" in d})),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": mpl.__version__},
        "commit": code_version(),
    }


def computed_on(shown: Panel, measured: Callable[[Panel], xr.Dataset], seed: int) -> dict[str, Any]:
    """The device and the peak memory of the process that computed the first of the runs behind a panel."""
    one = one_seed(shown, seed)  # has read its final model: inside `asked` nothing is
    note = read_sidecar(asked(lambda: measured(one)))
    return {key: note[key] for key in ("device", "peak_memory_MiB", "peak_gpu_memory_MiB") if key in note}


def caption(panels: Panels, note: dict, what: str, marks: str = "") -> str:
    """A figure's caption: what is drawn, what the marks mean, the settings of each panel, and what is missing."""
    settings, missing = [], []
    told = {entry for runs in note["datasets"].values() for entry in ("ceiling", "lft") if entry in runs}
    for letter, shown in panels.items():
        panel = f"({letter}) {shown.title}" if len(panels) > 1 else shown.title
        runs = note["datasets"].get(shown.dataset)
        if runs is None:
            missing.append(panel)
        else:
            settings.append(
                f"{panel}: {counted(len(runs['seeds']), 'seed')}, {runs['left_out']} left-out and {runs['test']} test "
                f"instances, {RULES[runs['optimizer']] + ' with ' if 'optimizer' in runs else ''}learning rate "
                f"{runs['learning_rate']:g}{_aside(runs, told)}"
            )
    sentences = [what, marks, "; ".join(settings) + "." if settings else ""]
    sentences.append(f"Not run yet: {', '.join(missing)}." if missing else "")
    return " ".join(filter(None, sentences))


def _aside(runs: dict, told: set[str]) -> str:
    """What else a caption says of a panel: how instances are left out if not dropped, the model, methods not run.

    Args:
        runs: the panel's entry in the provenance; "lft" holds what LFT follows, None if it is not run, and "ceiling"
            how the noise ceiling was estimated.
        told: which of these two other panels have: those drawn by earlier versions have neither.
    """
    removal = runs.get("removal", "drop")
    words = [f"left out by `{removal}`" if removal != "drop" else "", runs.get("remark", "")]
    words += [f"curvature from {runs['curvature']:,} training instances" if "curvature" in runs else ""]
    if runs.get("without"):
        words.append(f"not run, for their cost: {', '.join(LOOK[m].label for m in runs['without'])}")
    if "lft" in runs:
        lft = runs["lft"]
        words.append("LFT not run, for its cost" if lft is None else f"LFT follows {counted(lft['runs'], 'run')}")
        words[-1] += f" in {lft['segments']} segments" if lft and lft["segments"] > 1 else ""
    elif "lft" in told:
        words.append("LFT of an earlier version, which followed one run")
    if "ceiling" in told and "ceiling" not in runs:
        words.append("noise ceiling by the cosines of seeds, as if all were equally noisy")
    said = "; ".join(filter(None, words))
    return f" ({said})" if said else ""


def counted(n: int, thing: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def line_of(note: dict) -> str:
    """Provenance in one line, for the foot of a figure."""
    pieces = [f"{name} {len(d['seeds'])} × {d['left_out']}" for name, d in note["datasets"].items()]
    runs = f"seeds × left out: {', '.join(pieces)}" if pieces else "no results"
    return f"{note['figure']} · profile {note['profile']} · {runs} · {note['commit']}"
