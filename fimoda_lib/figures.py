"""The paper's figures: one function each, from stored results to PDF, PNG, and a CSV of the plotted numbers."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import noise_ceiling, sensitivity, similarity
from .reproduction import PAPER_METHODS, Reproduction, finished


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
AXIS = {"cosine": "cosine similarity to further training", "spearman": "Spearman correlation with further training"}
STYLE = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5, "legend.fontsize": 8.5, "lines.linewidth": 1.4,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 200, "figure.dpi": 100,
    "pdf.fonttype": 42, "svg.fonttype": "none", "axes.titlelocation": "left",
}
Panels = Mapping[str, Reproduction]  # panel letter -> what it shows


# --- Figures 2, 4, 5 and 6: similarity against the amount of further training ---------------------------------------


def figure2(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 2: cosine similarity against epochs of further training, mean adjustment, SGD."""
    return _similarity_figure("fig02", panels, folder, methods, optimizer="sgd")


def figure4(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 4: as Figure 2, with Adam."""
    return _similarity_figure("fig04", panels, folder, methods, optimizer="adam")


def figure5(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 5: as Figure 2, with the full adjustment."""
    return _similarity_figure("fig05", panels, folder, methods, optimizer="sgd", adjustment="full")


def figure6(panels: Panels, folder: Path | str, methods: Sequence[str] = PAPER_METHODS) -> Figure:
    """Figure 6: as Figure 2, with Spearman correlation."""
    return _similarity_figure("fig06", panels, folder, methods, optimizer="sgd", metric="spearman")


def similarity_table(shown: Reproduction, methods: Sequence[str], *, adjustment: str = "mean",
                     metric: str = "cosine") -> pd.DataFrame | None:
    """The numbers of one panel, or None if it has no gold standard yet.

    Returns:
        columns method, step, epoch, mean, sem, undefined; methods without finished scores are absent; a method that
        diverged has one row of NaN. The rows of method "ceiling" are the noise ceiling (cosine only).
    """
    gold = finished(lambda: shown.gold)
    if gold is None:
        return None
    measured = sensitivity(gold, adjustment)
    tables = []
    for name in methods:
        scores = finished(lambda name=name: shown.scores(name))
        if scores is None:
            continue
        if scores.attrs["outcome"] != "finished":
            tables.append(pd.DataFrame({"method": [name]}))
            continue
        tables.append(_rows(name, similarity(scores, measured, metric)))
    if metric == "cosine":
        tables.append(_rows("ceiling", xr.Dataset({"mean": noise_ceiling(gold, adjustment)})))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"method": []})


def _rows(method: str, values: xr.Dataset) -> pd.DataFrame:
    return values.to_dataframe().reset_index().assign(method=method)


def _similarity_figure(name: str, panels: Panels, folder: Path | str, methods: Sequence[str], *, optimizer: str,
                       adjustment: str = "mean", metric: str = "cosine") -> Figure:
    panels = {letter: shown.other(optimizer=optimizer, compute=False) for letter, shown in panels.items()}
    tables = {k: similarity_table(shown, methods, adjustment=adjustment, metric=metric) for k, shown in panels.items()}

    def draw(ax: Axes, letter: str) -> None:
        shown, table = panels[letter], tables[letter]
        ax.set_title(f"({letter}) {shown.title}")
        if table is None:
            return say(ax, f"Not run yet: ./run_all.sh --profile {shown.profile} --datasets {shown.dataset}")
        draw_similarity(ax, table)
        draw_published(ax, f"{int(name[3:])}{letter}", shown.dataset, optimizer, adjustment, metric)
        ax.set_xlabel("epochs of further training")

    rows = pd.concat([t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None] or
                     [pd.DataFrame({"panel": []})])
    note = provenance(panels, figure=name, optimizer=optimizer, adjustment=adjustment, metric=metric)
    drawn = [m for m in (*methods, "ceiling") if m in set(rows.get("method", []))]
    return panel_figure(name, panels, folder, draw, rows, note, AXIS[metric], drawn)


def draw_similarity(ax: Axes, table: pd.DataFrame) -> None:
    """One panel: a line with a band of one standard error per method."""
    diverged = []
    for method, rows in table.groupby("method", sort=False):
        look = LOOK[method]
        if rows["mean"].isna().all():
            diverged += [look.label] if method != "ceiling" else []
            continue
        x, mean = rows["epoch"].to_numpy(), rows["mean"].to_numpy()
        ax.plot(x, mean, color=look.colour, linestyle=look.line, marker=look.marker if len(x) < 15 else None, ms=3,
                lw=1.0 if method == "ceiling" else None, zorder=1 if method == "ceiling" else 2)
        if "sem" in rows and rows["sem"].notna().any():
            sem = rows["sem"].to_numpy()
            ax.fill_between(x, mean - sem, mean + sem, color=look.colour, alpha=0.15, lw=0)
    ax.axhline(0, color="#999999", lw=0.6, zorder=0)
    ax.set_ylim(min(ax.get_ylim()[0], -0.06), 1.02)
    if diverged:
        ax.text(0.98, 0.02, f"diverged: {', '.join(diverged)}", transform=ax.transAxes, ha="right", va="bottom",
                fontsize=7.5, color="#555555")


def draw_published(ax: Axes, figure: str, dataset: str, optimizer: str, adjustment: str, metric: str) -> None:
    """Published points as open markers, thinned to a readable number."""
    published = published_curves()
    chosen = published[(published.figure == figure) & (published.dataset == dataset) & (published.optimizer == optimizer)
                       & (published.adjustment == adjustment) & (published.metric == metric)]
    for method, rows in chosen.groupby("method"):
        if method in LOOK:
            rows = rows[_apart(rows.x.to_numpy(), np.ptp(rows.x) / 25)]
            ax.plot(rows.x, rows.value, LOOK[method].marker, mfc="none", mec=LOOK[method].colour, ms=4.5, mew=0.9,
                    ls="none", zorder=3, clip_on=False)


def _apart(x: np.ndarray, distance: float) -> list[bool]:
    """Which of the ascending x are at least so far from the one kept before."""
    kept: list[bool] = []
    last = -np.inf
    for value in x:
        kept.append(value - last >= distance)
        last = value if kept[-1] else last
    return kept


@cache
def published_curves() -> pd.DataFrame:
    """Numbers read off the outputs stored in the authors' public notebooks (github.com/IBM/fimoda, commit 1186f5f)."""
    with (resources.files("fimoda_lib") / "reference" / "published_curves.csv").open() as file:
        table = pd.read_csv(file)
    return table.assign(method=table.method.str.lower().str.replace("-", "_").replace({"ek_fac": "ekfac"}))


# --- Damping is time: similarity against damping and horizon --------------------------------------------------------


def damping_sweep(shown: Reproduction, method: str = "exact", multiples: Sequence[float] = ()) -> pd.DataFrame:
    """Similarity for dampings of a wide range at every horizon.

    Args:
        method: any method with a damping and a multiple of it.
        multiples: of the recommended damping; half-decades from 1e-2 to 1e7 by default.

    Returns:
        columns multiple, damping, step, epoch, mean, sem, undefined.
    """
    measured = sensitivity(shown.gold)
    tables = []
    for multiple in multiples or [10 ** (k / 2) for k in range(-4, 15)]:
        scores = finished(lambda m=multiple: shown.scores(method, multiple=float(m)))
        if scores is not None and scores.attrs["outcome"] == "finished":
            values = similarity(scores, measured).to_dataframe().reset_index()
            tables.append(values.assign(multiple=multiple, damping=float(scores.attrs["damping"])))
    return pd.concat(tables, ignore_index=True)


def figure_damping(panels: Panels, folder: Path | str, method: str = "exact") -> Figure:
    """Similarity of influence functions against damping and horizon, with λ = 1/(learning rate x steps) drawn on it."""
    name = "fig_damping"
    tables: dict[str, pd.DataFrame | None] = {}
    for letter, shown in panels.items():
        tables[letter] = finished(lambda s=shown: damping_sweep(s, method))

    def draw(ax: Axes, letter: str) -> None:
        shown, table = panels[letter], tables[letter]
        ax.set_title(f"({letter}) {shown.title}")
        if table is None:
            return say(ax, f"Not run yet: ./run_all.sh --profile {shown.profile} --datasets {shown.dataset}")
        draw_damping(ax, table, shown)

    rows = pd.concat([t.assign(panel=k, dataset=panels[k].dataset) for k, t in tables.items() if t is not None])
    note = provenance(panels, figure=name, optimizer="sgd", adjustment="mean", metric="cosine", method=method)
    figure = panel_figure(name, panels, folder, draw, rows, note, r"damping $\lambda$", [])
    return figure


def draw_damping(ax: Axes, table: pd.DataFrame, shown: Reproduction) -> None:
    """One heat map: horizon across, damping up, similarity as colour; the best damping per horizon and λ = 1/(ηT)."""
    grid = table.pivot_table(index="damping", columns="step", values="mean")
    steps, dampings = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    mesh = ax.pcolormesh(steps, dampings, grid.to_numpy(), cmap="viridis", vmin=0, vmax=1, shading="nearest",
                         rasterized=True)
    ax.set(xscale="log", yscale="log", xlim=(steps[0], steps[-1]), ylim=(dampings[0], dampings[-1]),
           xlabel="optimiser steps of further training $T$")
    rate = shown.settings.further.learning_rate
    ax.plot(steps, 1 / (rate * steps), color="white", lw=1.6, label=r"$\lambda = 1/(\eta T)$")
    ax.plot(steps, dampings[grid.to_numpy().argmax(0)], ".", color="#D55E00", ms=2.5, label="best at each horizon")
    unit = table.damping.iloc[0] / table.multiple.iloc[0]
    for multiple in shown.settings.damping_multiples:
        ax.axhline(multiple * unit, xmax=0.06, color="white", lw=1.2)
    ax.plot([], [], color="#999999", lw=1.2, label="the paper's dampings (ticks at the left)")
    ax.grid(False)
    ax.legend(loc="lower left", fontsize=7, labelcolor="white" if grid.to_numpy()[:3].mean() < 0.6 else "black")
    ax.figure.colorbar(mesh, ax=ax, label="cosine similarity")


# --- Layout and files -----------------------------------------------------------------------------------------------


def panel_figure(name: str, panels: Panels, folder: Path | str, draw, rows: pd.DataFrame, note: dict, ylabel: str,
                 legend: Sequence[str]) -> Figure:
    """Draws all panels in one figure and each alone, and saves them with their numbers and provenance."""
    with mpl.rc_context(STYLE):
        figure = _layout(panels, draw, ylabel, legend, note)
        save(figure, rows, folder, name, note)
        for letter, shown in panels.items():
            alone = _layout({letter: shown}, draw, ylabel, legend, note)
            panel_rows = rows[rows["panel"] == letter] if "panel" in rows else rows
            save(alone, panel_rows, folder, f"{name}{letter}_{shown.dataset}", note)
            plt.close(alone)
    return figure


def _layout(panels: Panels, draw, ylabel: str, legend: Sequence[str], note: dict) -> Figure:
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(3.9 * columns, 2.75 * rows + 0.75),
                                layout="constrained")
    for ax, letter in zip(axes.flat, panels, strict=False):
        draw(ax, letter)
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel if rows == 1 else "\n".join(_halves(ylabel)))
    if legend:
        handles = [mpl.lines.Line2D([], [], color=LOOK[m].colour, ls=LOOK[m].line, label=LOOK[m].label) for m in legend]
        handles.append(mpl.lines.Line2D([], [], color="#444444", marker="o", mfc="none", ls="none", ms=4.5,
                                        label="published (open markers)"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5 if columns > 1 else 3),
                      handlelength=2.4, columnspacing=1.4)
    strip = 0.16 / figure.get_figheight()  # for the line of provenance, below everything else
    figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
    figure.text(0.995, 0.2 * strip, note["line"], fontsize=5.5, color="#777777", ha="right", va="bottom")
    return figure


def _halves(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]


def say(ax: Axes, sentence: str) -> None:
    """An empty panel with one sentence that says what to do."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, sentence, transform=ax.transAxes, ha="center", va="center", wrap=True, color="#555555", fontsize=8)


def save(figure: Figure, table: pd.DataFrame, folder: Path | str, name: str, note: dict) -> None:
    """Writes `<name>.pdf`, `.png`, `.csv` (the plotted numbers) and `.json` (provenance)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"Subject": note["line"], "CreationDate": None})
    figure.savefig(folder / f"{name}.png", metadata={"Description": note["line"]})
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", quoting=csv.QUOTE_MINIMAL)
    (folder / f"{name}.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")


def provenance(panels: Panels, **settings: str) -> dict:
    """What a figure was made from: profile, seeds, specification hashes, time, versions, commit."""
    pieces, datasets = [], {}
    for shown in panels.values():
        gold = finished(lambda s=shown: s.gold)
        if gold is not None:
            datasets[shown.dataset] = {
                "seeds": gold.seed.values.tolist(), "left_out": gold.sizes["left_out"], "test": gold.sizes["test"],
                "specification": gold.attrs["specification"], "seconds": round(float(gold.seconds.sum()), 1),
                "diverged_runs": int(gold.diverged.sum()),
            }
            pieces.append(f"{shown.dataset} {gold.sizes['seed']} seeds, {gold.sizes['left_out']} left out")
    profile = next(iter(panels.values())).profile
    versions = {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": mpl.__version__}
    commit = code_version()
    line = f"{settings.get('figure', '')} · profile {profile} · {'; '.join(pieces) or 'nothing run'} · commit {commit}"
    return {"profile": profile, **settings, "datasets": datasets, "versions": versions, "commit": commit, "line": line}


@cache
def code_version() -> str:
    """The commit of the code, with "+" if files have changed since; "unknown" outside a git checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
