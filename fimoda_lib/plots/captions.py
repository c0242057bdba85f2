"""What a figure was made from, and how its caption says it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import xarray as xr

from ..experiments.exact_derivative import EXACT, exact_derivative, is_small_enough
from ..experiments.panel import Panel, finished, one_seed
from ..experiments.paper_settings import DEPTH
from ..experiments.settings import experiment_of
from ..storage.provenance import code_version
from ..storage.store import asked, of_seeds, read_sidecar
from ..training.plans import shard_name
from .look import LOOK, RULES
from .panels import Panels


def provenance(
    panels: Panels,
    *,
    figure: str,
    title: str,
    measured: Callable[[Panel], xr.Dataset] | None = lambda panel: panel.gold,
    methods: bool = True,
    scores: Callable[[Panel], Iterable[Callable[[], Any]]] = lambda panel: (),
    remark_on: Callable[[Panel], str] = lambda panel: experiment_of(panel.dataset, panel.profile).remark,
    how: Callable[[Panel], dict] = lambda panel: {},
    notebook: str = "04_figures",
    kept: Mapping[str, dict] | None = None,
    **settings: str,
) -> dict:
    """What a figure was made from: profile, seeds, specification hashes, time, versions, commit.

    Args:
        measured: the training runs that a panel shows; further training by default, None for a mere drawing.
        methods: whether methods are shown, so that their curvature and those that are not run matter.
        scores: the stored scores that a panel shows, each as what would load it (`scores_of`).
        remark_on: what captions say of a panel's model and data.
        how: further entries of a panel that captions speak of, see `_aside`; "says" stands in place of its sentence.
        notebook: the notebook that draws the figure.
        kept: letter -> this function's entry for the data set of a panel that was drawn earlier; "drawn" is the commit.
        settings: whatever else tells this figure from others.
    """
    datasets = {}
    for letter, panel in panels.items() if measured else ():
        if letter in (kept or {}):
            datasets[panel.dataset] = kept[letter]
            continue
        runs = finished(lambda panel=panel: measured(panel))
        if runs is not None:
            datasets[panel.dataset] = {
                "seeds": runs.seed.values.tolist(),
                "left_out": runs.sizes["left_out"],
                "test": runs.sizes["test"],
                "optimizer": runs.attrs["optimizer"],
                "removal": runs.attrs["removal"],
                "learning_rate": runs.attrs["learning_rate"],
                **({"remark": remark} if (remark := remark_on(panel)) else {}),
                **({"curvature": len(some)} if methods and (some := panel.settings.curvature) else {}),
                **(steps_of_lissa_h(panel.methods, panel.settings.lissa_h_depth) if methods else {}),
                **({"without": without} if methods and (without := panel.left_aside) else {}),
                **how(panel),
                "specification": runs.attrs["specification"],
                "seconds": round(float(runs.seconds.sum()), 1),
                "diverged_runs": int(runs.diverged.sum()),
                **computed_on(panel, measured, runs, scores(panel)),
            }
    return {
        "figure": figure,
        "title": title,
        "notebook": notebook,
        "profile": next((panel.profile for panel in panels.values()), "any"),
        **settings,
        "datasets": datasets,
        "device": ", ".join(sorted({d["device"] for d in datasets.values() if "device" in d})),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": mpl.__version__},
        "commit": code_version(),
    }


def computed_on(
    panel: Panel,
    measured: Callable[[Panel], xr.Dataset],
    runs: xr.Dataset,
    scores: Iterable[Callable[[], Any]] = (),
) -> dict[str, Any]:
    """The device and the peak memory of the process that computed the first of the runs behind a panel, and the commits
    by which all of its runs and scores were computed.

    Args:
        runs: what `measured` gives.
        scores: see `provenance`; those that are not stored are passed over.
    """
    first = one_seed(panel, int(runs.seed[0]))  # has read its final model: inside `asked` nothing is
    name = shard_name(panel.dataset, runs.attrs["optimizer"], runs.attrs["removal"])
    paths = of_seeds(panel.folder, name, runs.attrs["specification"], runs.seed.values.tolist())
    paths = paths or [asked(lambda: measured(first))]  # of a study with runs of another kind
    paths += [path for path in map(asked, scores) if path.exists()]
    notes = [read_sidecar(path) for path in paths]
    kept = {key: notes[0][key] for key in ("device", "peak_memory_MiB", "peak_gpu_memory_MiB") if key in notes[0]}
    return {**kept, "computed_by": sorted({note.get("commit", "unknown") for note in notes})}


def scores_of(methods: Iterable[str], **hyper: Any) -> Callable[[Panel], list[Callable[[], Any]]]:
    """For `provenance`: the scores of the given methods, and the exact derivative if it is among them."""

    def found(panel: Panel) -> list[Callable[[], Any]]:
        exact = [partial(exact_derivative, panel)] if EXACT in methods and is_small_enough(panel) else []
        return [partial(panel.scores, name, **hyper) for name in methods if name != EXACT] + exact

    return found


def caption(panels: Panels, note: dict, what: str, marks: str = "") -> str:
    """A figure's caption, of at most 60 words: what is drawn, what the marks mean, and what is missing."""
    missing = [label_of(panels, letter) for letter, panel in panels.items() if panel.dataset not in note["datasets"]]
    return " ".join(filter(None, [what, marks, f"Not run yet: {', '.join(missing)}." if missing else ""]))


def runs_behind(panels: Panels, note: dict) -> str:
    """The settings of each panel, which pages fold away below the caption."""
    found = []
    for letter, panel in panels.items():
        runs = note["datasets"].get(panel.dataset)
        if runs is None:
            continue
        if "says" in runs:
            said = ", ".join(filter(None, [runs["says"], *_computed(runs)]))
        else:
            said = (
                f"{runs['left_out']} left-out and {runs['test']} test instances, "
                f"{RULES[runs['optimizer']] + ' with ' if 'optimizer' in runs else ''}"
                f"learning rate {runs['learning_rate']:g}{_aside(runs)}"
            )
        found.append(f"{label_of(panels, letter)}: {counted(len(runs['seeds']), 'seed')}, {said}")
    return "; ".join(found) + "." if found else ""


def label_of(panels: Panels, letter: str) -> str:
    """A panel's title, with its letter where it is not alone."""
    return f"({letter}) {panels[letter].title}" if len(panels) > 1 else panels[letter].title


def _aside(runs: dict) -> str:
    """What else a caption says of a panel: how instances are left out if not dropped, the model, methods not run.

    Args:
        runs: the panel's entry in the provenance; "lft" holds what LFT follows, None if it is not run.
    """
    removal = runs.get("removal", "drop")
    words = [f"left out by {removal}" if removal != "drop" else "", runs.get("remark", "")]
    words += _computed(runs)
    if runs.get("without"):
        words.append(f"not run, for their cost: {', '.join(LOOK[m].label for m in runs['without'])}")
    if "lft" in runs:
        lft = runs["lft"]
        words.append("LFT not run, for its cost" if lft is None else f"LFT follows {counted(lft['runs'], 'run')}")
        words[-1] += f" in {lft['segments']} segments" if lft and lft["segments"] > 1 else ""
        words[-1] += f" with {lft['products']} products of the whole Hessian" if lft and "products" in lft else ""
    said = "; ".join(filter(None, words))
    return f" ({said})" if said else ""


def steps_of_lissa_h(methods: Iterable[str], depth: int) -> dict[str, int]:
    """For `provenance`: the steps of LiSSA-H, if it is among the methods."""
    return {"lissa_h_steps": depth} if "lissa_h" in methods else {}


def _computed(runs: dict) -> list[str]:
    """Where scores are computed otherwise than in the paper."""
    return [
        f"curvature from {runs['curvature']:,} training instances" if "curvature" in runs else "",
        f"LiSSA-H with {steps:,} steps" if (steps := runs.get("lissa_h_steps", DEPTH)) < DEPTH else "",
    ]


def counted(n: int, thing: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def line_of(note: dict) -> str:
    """Provenance in one line, for the foot of a figure."""
    pieces = [f"{name} {len(d['seeds'])} × {d['left_out']}" for name, d in note["datasets"].items()]
    runs = f"seeds × left out: {', '.join(pieces)}" if pieces else "no results"
    return f"{note['figure']} · profile {note['profile']} · {runs} · {note['commit']}"
