"""Which notebooks run, with which parameters and in which order, and what they compute."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PANELS = ("concrete", "energy", "fico", "folktables", "cifar10", "sst2")  # keys of `experiments.PANELS`
STAND_INS = (
    *("adult", "diabetes", "wine", "breast_cancer", "digits"),
    *("digit_images", "sentences"),
)
BEYOND = (  # what notebook 06 draws; keys of `beyond.FIGURES`
    "fig02plus",
    "fig04plus",
    "fig_filter",
    "fig_limit",
    "fig_units",
    "fig_precision",
    "fig_rounding",
    "fig_removal",
    "table_horizons",
)
# what notebook 09 draws; keys of `selection.FIGURES`
SELECTION = ("fig_lds", "fig_removal_curves", "fig_mislabelled", "fig_selection")
# ... and those of `figures.FIGURES`
FIGURES = (
    *(f"fig{number:02d}" for number in range(1, 12)),
    *("table2", "table2_text", "fig_images", "fig_damping"),
    *BEYOND,
    *SELECTION,
)
STUDIES = (  # of these, what is computed data set by data set; keys of `studied.STUDIES`
    *("fig_lds", "fig_removal_curves", "fig_selection", "fig_mislabelled", "fig_rounding"),
    *("fig_limit", "fig_units", "fig_precision", "fig_removal"),
)
FOLLOWED_BY_LFT = {"sgd": {"fig02plus", "table_horizons"}, "adam": {"fig04plus"}}  # optimiser -> figures with LFT
FINAL_MODEL_ONLY = {
    "fig01",
    "fig_limit",
    "fig_units",
    "fig_precision",
    "fig_rounding",
    *SELECTION,
}  # need no gold standard, no scores
OPTIMIZERS_OF = {"fig01": (), "fig04": ("adam",), "fig08": ("adam",), "fig04plus": ("adam",)}  # all others: SGD


@dataclass(frozen=True)
class NotebookRun:
    """One execution of a notebook."""

    notebook: str
    label: str
    parameters: dict[str, Any]


def asked_for(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The figures that can be drawn of what was asked for, and the data sets that they need.

    Raises:
        ValueError: a figure was asked for by name that shows none of the data sets.
    """
    from ..experiments.settings import choose_dataset, panel_letter
    from ..plots.panels import LETTERS

    chosen = options.datasets or PANELS
    here = {panel_letter(name) for name in chosen}
    figures = [f for f in options.only or FIGURES if not LETTERS[f] or here & {*LETTERS[f].values()}]
    for name in options.only or ():
        if name not in figures:
            raise ValueError(f"{name} does not show {' or '.join(chosen)}; name another data set, or none for all.")
    needed = {letter for f in figures for letter in LETTERS[f].values()}
    names = [name for name in chosen if panel_letter(name) in needed]
    return figures, [choose_dataset(name, options.profile) if name in PANELS else name for name in names]


def plan(options: argparse.Namespace) -> list[list[NotebookRun]]:
    """The notebook runs, in stages: those of one stage do not need each other."""
    from ..experiments.settings import panel_letter
    from ..plots.panels import LETTERS

    figures, datasets = asked_for(options)
    optimizers = sorted({o for f in figures for o in OPTIMIZERS_OF.get(f, ("sgd",))}, reverse=True)
    common = {"profile": options.profile, "results": str(Path(options.results).resolve())}
    stages = []
    if not options.skip_tutorial and options.only is None and options.datasets is None:
        smoke = {"n_left_out": 6, "n_seeds": 2, "epochs": 1} if options.profile == "smoke" else {}
        own = {"n_left_out": 6, "n_seeds": 3, "epochs": 2, "lissa_depth": 50} if options.profile == "smoke" else {}
        store = {"store": str(Path(options.results).resolve() / options.profile / "own")}
        stages.append([NotebookRun("00_tutorial", "tutorial", smoke)])
        stages[-1].append(NotebookRun("07_your_own_model", "your own model", {**own, **store}))
        stages[-1].append(NotebookRun("08_a_model_from_the_hub", "a model from the hub", handed_over(options)))
    per_dataset = [{**common, "dataset": d} for d in datasets]
    retrained = LETTERS["fig11"].values() if "fig11" in figures else ()
    stages.append([NotebookRun("01_final_model", f"final model, {p['dataset']}", p) for p in per_dataset])
    measured = [] if set(figures) <= FINAL_MODEL_ONLY else per_dataset
    stages.append(
        [
            NotebookRun(
                "02_further_training",
                f"further training, {p['dataset']}, {o}",
                {**p, "optimizer": o, "retrain": o == "sgd" and panel_letter(p["dataset"]) in retrained},
            )
            for o in optimizers
            for p in measured
            if trained_with(o, [p["dataset"]])
        ]
    )
    stages.append([NotebookRun("03_attribution", f"attribution, {p['dataset']}", p) for p in measured])
    shown = {**common, "datasets": list(datasets), "figures": str(Path(options.figures).resolve())}
    drawn = []
    if only := [f for f in figures if f not in ("fig_damping", *BEYOND, *SELECTION)]:
        drawn.append(NotebookRun("04_figures", "figures", {**shown, "only": only}))
    if "fig_damping" in figures:
        regression = [d for d in datasets if panel_letter(d) in LETTERS["fig_damping"].values()]
        drawn.append(NotebookRun("05_damping_is_time", "damping is time", {**shown, "datasets": regression}))
    if only := [f for f in figures if f in BEYOND]:
        drawn.append(NotebookRun("06_why_methods_decay", "why methods decay", {**shown, "only": only}))
    if only := [f for f in figures if f in SELECTION]:
        parameters = {**shown, "only": only}
        drawn.append(NotebookRun("09_from_attribution_to_selection", "from attribution to selection", parameters))
    return [stage for stage in [*stages, drawn] if stage]


def handed_over(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters of notebook 08: MiniLM and reviews where both are at hand, else the small model; each in a folder of
    its own."""
    from ..datasets import available
    from ..datasets.text import has_minilm
    from ..experiments.handed_over import HEAD

    folder = Path(options.results).resolve() / options.profile
    if options.profile == "smoke":
        return {"folder": str(folder / "handed_over"), "n_by_lot": 3, "n_seeds": 2, "epochs": 1}
    model = "minilm" if has_minilm() and available("sst2") else "small"
    chosen = {"folder": str(folder / f"handed_over-{model}"), "model": model}
    if model == "minilm":
        return {**chosen, "trained": HEAD}
    return chosen if options.profile == "quick" else {**chosen, "n_by_lot": 20, "n_seeds": 10}


def work_of(stages: list[list[NotebookRun]]) -> list[tuple[str, str]]:
    """What the notebooks compute piece by piece, (data set, kind), the kinds being those of `status.lines`.

    The damping sweep and the exact derivative are not among it: they stay with notebooks 05 and 06.
    """
    from ..experiments.settings import panel_letter
    from ..plots.panels import LETTERS

    kinds = {"01_final_model": "final model", "03_attribution": "scores"}
    work = []
    for item in (item for stage in stages for item in stage):
        if "dataset" in item.parameters:
            work.append((item.parameters["dataset"], item.parameters.get("optimizer") or kinds[item.notebook]))
        if item.parameters.get("retrain"):
            work.append((item.parameters["dataset"], "retraining"))
        for optimizer, figures in FOLLOWED_BY_LFT.items():
            if item.notebook == "06_why_methods_decay" and figures & {*item.parameters["only"]}:
                datasets = with_lft(trained_with(optimizer, item.parameters["datasets"]), item.parameters["profile"])
                work += [(dataset, f"{method}, {optimizer}") for dataset in datasets for method in ("lft", "timed")]
    shown = {f: item.parameters["datasets"] for s in stages for item in s for f in item.parameters.get("only", ())}
    for figure in STUDIES:
        letters = {*LETTERS[figure].values()}
        work += [(dataset, figure) for dataset in shown.get(figure, ()) if panel_letter(dataset) in letters]
    return work


def trained_with(optimizer: str, datasets: Sequence[str]) -> list[str]:
    """The data sets that are trained further with an optimiser; "sgd" stands for the only one of images and text."""
    from ..experiments.paper_settings import EXPERIMENTS

    return [dataset for dataset in datasets if optimizer in ("sgd", *EXPERIMENTS[dataset].further)]


def with_lft(datasets: Sequence[str], profile: str) -> list[str]:
    """Those data sets on which a profile runs LFT."""
    from ..experiments.settings import experiment_of

    return [dataset for dataset in datasets if "lft" not in experiment_of(dataset, profile).without]
