"""The paper's claims about the shape of its results, checked on the numbers that the figures were drawn from.

A claim is judged per data set from the CSV of one figure; the same rule is applied to the published numbers, where
there are any. Runs with other data, models, epochs or settings of methods than the paper's are shown, but are no
evidence for or against it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..datasets import DATASETS
from ..experiments.panel import PAPER_METHODS
from ..experiments.paper_settings import DEPTH, SMALL
from ..experiments.profiles import PROFILES
from ..plots.published import published_curves
from ..plots.similarity import DRAWN
from .rules import (
    FIRST_ORDER,
    INFLUENCE,
    NORMAL,
    THRESHOLDS,
    Curve,
    Curves,
    high_then_decay,
    label,
    near_zero,
    paired_halves,
    persistent_but_lower,
    rises_with_seeds,
)
from .verdicts import NOT_COMPARABLE, NOT_RUN, Claim, Outcome, Result

SMALLER = "a smaller model than the paper's, trained on other settings"
SHORTER = "fewer epochs than the paper's"
TABULAR_PANELS = "abcd"
NEAR_ZERO_METHODS = ("trak", "lissa_h")


_HIGH, _DECAY, _ZERO = (THRESHOLDS[k].value for k in ("high", "decay", "zero"))
CLAIMS = (
    Claim(
        1,
        "First-order methods (Grad-Dot, DataInf) can start high, and decay.",
        "abstract and Figure 2",
        "fig02",
        f"First similarity at least {_HIGH:g}, last at most {_DECAY:g} times the first, for both methods. High on "
        'every data set is our reading; the abstract says "sometimes".',
        FIRST_ORDER,
        high_then_decay,
    ),
    Claim(
        2,
        "Influence-function methods (CG, LiSSA, EK-FAC) are more stable, and stay below the first-order start.",
        "abstract and Figure 2",
        "fig02",
        "For each: its largest minus its smallest similarity is less than that of Grad-Dot (the method without any "
        "curvature), and its largest is below the first similarity of Grad-Dot and of DataInf.",
        (*INFLUENCE, *FIRST_ORDER),
        persistent_but_lower,
        curvature=True,
    ),
    Claim(
        3,
        "Averaging over seeds raises every similarity.",
        "Figures 3 and 7",
        "fig07",
        "For every method the similarity with the most seeds averaged is above that of single seeds.",
        PAPER_METHODS,
        rises_with_seeds,
    ),
    Claim(
        4,
        "TRAK and LiSSA-H stay near zero on tabular data.",
        "read off the curves of Figure 2",
        "fig02",
        f"Absolute similarity, averaged over epochs, below {_ZERO:g} for both methods.",
        NEAR_ZERO_METHODS,
        near_zero,
        tabular=True,
    ),
    Claim(
        5,
        "No method predicts re-training from scratch.",
        "Figure 11",
        "fig11",
        f"Absolute similarity, averaged over epochs, below {_ZERO:g} for every method, as measured: few seeds are "
        "mostly noise, and a perfect method would not reach 1 either. The paper re-trained with one seed.",
        PAPER_METHODS,
        near_zero,
        noisy=True,
    ),
)


# --- From files to outcomes -----------------------------------------------------------------------------------------


def check_claims(folder: Path | str) -> list[Outcome]:
    """Judges every claim on the figures of a folder; a figure that is not there counts as not run."""
    profile = profile_of(folder)
    return [
        outcome(claim, read_table(folder, claim.figure), profile, runs_of(folder, claim.figure)) for claim in CLAIMS
    ]


def margins(figure: str, table: pd.DataFrame | None) -> dict[str, dict[str, float]]:
    """For the provenance of a figure that claims are judged by: half the widths of the intervals of all margins on one
    data set, if its table holds the draws that they follow from, as `{"margins": {condition: half}}`; else nothing. The
    draws are taken out of the table: pandas puts no tables together that have arrays for attributes."""
    drawn = {} if table is None else table.attrs.pop(DRAWN, {})
    found: dict[str, float] = {}
    for claim in CLAIMS if drawn else ():
        if claim.figure == figure:
            found |= paired_halves(claim.check, {m: drawn[m] for m in claim.methods if m in drawn})
    return {"margins": {name: round(half, 5) for name, half in found.items()}} if found else {}


def runs_of(folder: Path | str, figure: str) -> dict[str, dict]:
    """Data set -> what a figure's provenance says of its runs: "curvature" where that is of a sample of the training
    instances, "lissa_h_steps", "margins" as above."""
    path = Path(folder) / f"{figure}.json"
    return json.loads(path.read_text(encoding="utf-8")).get("datasets", {}) if path.exists() else {}


def profile_of(folder: Path | str) -> str:
    """The profile of the figures in a folder, as Figure 2 says; the name of the folder if there is none."""
    path = Path(folder) / "fig02.json"
    return json.loads(path.read_text(encoding="utf-8"))["profile"] if path.exists() else Path(folder).name


def what_differs(dataset: str, profile: str, methods: Collection[str], known: Mapping[str, Any]) -> str:
    """In what an experiment of ours, with these methods, is not the paper's; nothing where it is the same.

    Args:
        known: of its runs, as in `outcome`; what the profile says today counts only where they do not say it.
    """
    entry, run = DATASETS.get(dataset), PROFILES.get(profile)
    if entry is None:
        return "a data set that this version does not have"
    if entry.embedded or entry.stand_in_for:
        return "other data than the paper's"
    if dataset in SMALL and not (run and run.full_size):
        return SMALLER
    if dataset == "cifar10":
        return "a training of our own, for the paper's code for images is not public"
    if run and (run.final, run.further) != (1, 1):
        return SHORTER
    depths = {"lissa": run.lissa_depth, "lissa_h": run.depth_of_lissa_h(dataset)} if run else {}
    depths |= {"lissa_h": known["lissa_h_steps"]} if "lissa_h_steps" in known else {}
    for method, depth in depths.items():
        if method in methods and depth < DEPTH:
            return f"{label(method)} with {depth:,} of the paper's {DEPTH:,} steps"
    return ""


def outcome(
    claim: Claim, table: pd.DataFrame | None, profile: str = "paper", runs: Mapping[str, dict] | None = None
) -> Outcome:
    """One claim on the numbers of its figure: columns panel, dataset, method, x and value as `curves_of` takes them.

    Args:
        runs: what is known of the runs on a data set, as `runs_of` gives it.
    """
    if table is None or not {"panel", "dataset", "method"} <= set(table):
        return Outcome(claim, ())
    results = []
    for (panel, dataset), rows in table.groupby(["panel", "dataset"]):
        if claim.tabular and panel not in TABULAR_PANELS:
            continue
        published = published_panel(claim.figure, panel, dataset)
        known = (runs or {}).get(dataset, {})
        ours = claim.judge(curves_of(rows), panel, known.get("margins"))
        differs = what_differs(dataset, profile, claim.methods, known)
        if claim.curvature and "curvature" in known and not differs:
            differs = "the curvature of some of the training instances"
        if differs and ours.verdict != NOT_RUN:
            ours = replace(ours, verdict=NOT_COMPARABLE, reason=f"Not the paper's experiment: {differs}.")
        results.append(
            Result(
                dataset,
                f"{title(dataset)} (small model)" if differs == SMALLER else title(dataset),
                ours,
                claim.judge(curves_of(published), panel) if len(published) else None,
                title(published.dataset.iloc[0]) if len(published) else "",
            )
        )
    return Outcome(claim, tuple(results))


def read_table(folder: Path | str, figure: str) -> pd.DataFrame | None:
    """The numbers that a figure was drawn from; None if there are none.

    Raises:
        ValueError: the file is not a CSV table.
    """
    path = Path(folder) / f"{figure}.csv"
    if not path.exists():
        return None
    try:
        return pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas raises kinds of ValueError
        raise ValueError(f"{path} is not a readable CSV table ({error}); draw the figure anew.") from error


def curves_of(rows: pd.DataFrame) -> Curves:
    """The curves of one panel: columns method, one of `X`, one of `VALUE`, and low and high or sem for the interval (no
    interval: exact). A curve with gaps (a run diverged, say) is left out: the rest of it would pass for the whole."""
    x, value = (next((c for c in names if c in rows), None) for names in (X, VALUE))
    if x is None or value is None:
        return {}
    half = pd.Series(0.0, rows.index)
    if "sem" in rows:
        half = half.where(rows["sem"].isna(), NORMAL * rows["sem"])
    if {"low", "high"} <= {*rows}:
        half = half.where(rows["low"].isna(), (rows["high"] - rows["low"]) / 2)
    known = rows[["method", x]].assign(value=rows[value], half=half)
    if "rise_half" in rows:
        known = known.assign(rise_half=rows["rise_half"])
    elif "rise_sem" in rows:
        known = known.assign(rise_half=NORMAL * rows["rise_sem"])
    curves = {m: g.sort_values(x) for m, g in known.groupby("method", sort=False)}
    return {
        m: Curve(
            *(g[column].to_numpy() for column in (x, "value", "half")),
            rise_half=float(g["rise_half"].iloc[-1]) if "rise_half" in g else None,
        )
        for m, g in curves.items()
        if g[[x, "value"]].notna().all(axis=None)
    }


X, VALUE = ("seeds_averaged", "block", "epoch", "step", "x"), ("mean", "value")  # names of columns, in this order


def published_panel(figure: str, panel: str, dataset: str) -> pd.DataFrame:
    """The published numbers of the panel that a data set fills (columns dataset, x, method, value).

    No rows where nothing was published, and none beside data that ships with scikit-learn: it fills a panel, but has
    nothing else in common with the paper's. Adult poses the same question as Folktables, so that they are compared.
    """
    published = published_curves()
    if dataset in DATASETS and DATASETS[dataset].embedded:
        return published[:0]
    digits = figure.removeprefix("fig").lstrip("0")
    return published[[f"{digits}{panel}" in names.split("+") for names in published.figure]]


def title(dataset: str) -> str:
    """How a data set is called: "FICO HELOC", "Folktables"."""
    return DATASETS[dataset].title.split(" (")[0] if dataset in DATASETS else dataset.replace("_", " ")
