"""All methods over all horizons in one table: mean similarity with its interval, and what the scores cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from ..comparison import noise_ceiling, sensitivity, similarity
from ..experiments.exact_derivative import EXACT
from ..experiments.panel import PAPER_METHODS
from ..plots import similarity as curves
from ..plots.captions import provenance, scores_of
from ..plots.drawing import save_numbers
from ..plots.kept import panels_and_tables
from ..plots.look import LOOK
from ..plots.panels import Panels
from ..storage.store import asked, read_sidecar

NOTEBOOK = "06_why_methods_decay"
COMPARED = (*PAPER_METHODS, "timed", "lft", EXACT)
CAPTION = (
    "Mean cosine similarity to further training (SGD, for text AdamW; mean adjustment) over horizons, evenly on a log "
    "axis, with 95 % intervals; bold where it leads beyond them. Seconds that the scores took, also against one seed "
    "of the gold standard."
)
FEWER = "The exact derivative, of fewer test instances and horizons, is not compared."
SHOWN = ["data set", "method", "mean over horizons", "±", "first", "lowest", "last", "seconds", "of one seed"]


def table_horizons(panels: Panels, folder: Path | str, methods: Sequence[str] = COMPARED) -> pd.DataFrame:
    """One row per data set and method: similarity averaged over horizons, and the seconds that the scores took.

    Horizons count evenly on a log axis of epochs (`log_weights`). The curves are those of `figure2_plus`, with the
    panels that were drawn earlier. Writes `table_horizons.csv`, `.html` and `.json`.

    Returns:
        columns data set, method, mean over horizons, ± (half of its interval; an upper bound, as if all horizons erred
        alike), first, lowest, last, seconds, of one seed (those over the seconds of one seed of further training), and
        leads: whether the mean is above that of all others by more than their intervals; the exact derivative, which
        has fewer test instances and horizons, neither leads nor keeps others from it.
    """
    panels, tables, kept = panels_and_tables(
        "fig02plus", panels, folder, lambda panel: curves.table(panel, methods), compute=False
    )
    drawn = {letter: table for letter, table in tables.items() if table is not None}
    note = provenance(
        {letter: panels[letter] for letter in drawn}, kept=kept, figure="table_horizons",
        title="All methods, over all horizons", notebook=NOTEBOOK, optimizer="sgd", scores=scores_of(methods),
    )  # fmt: skip
    before, found = seconds_before(Path(folder)), []
    for letter, table in drawn.items():
        panel = panels[letter]
        runs = note["datasets"].get(panel.dataset, {})
        one_seed = runs["seconds"] / len(runs["seeds"]) if runs.get("seconds") else np.nan
        rows = []
        for name, curve in table[table["method"].isin(methods)].groupby("method", sort=False):
            if np.isnan(curve["mean"]).all():  # it diverged
                continue
            label = LOOK[name].label
            if letter in kept:
                seconds = before.get((panel.title, label), np.nan)
            else:
                seconds = seconds_of(*scores_of([name])(panel))
            row = {"data set": panel.title, "method": label, **over_horizons(curve), "seconds": seconds}
            rows.append({**row, "of one seed": seconds / one_seed})
        found += compared(rows)
    table = pd.DataFrame(found)
    note["profile"] = next(iter(panels.values())).profile
    note["caption"] = f"{CAPTION} {FEWER}" if any(row["method"] == LOOK[EXACT].label for row in found) else CAPTION
    save_numbers(table, folder, "table_horizons", note)
    (Path(folder) / "table_horizons.html").write_text(html(table), encoding="utf-8")
    return table


def over_horizons(curve: pd.DataFrame) -> dict[str, float]:
    """Mean of a curve over horizons with half of its interval, and its first, lowest and last similarity.

    Args:
        curve: columns epoch, mean, low and high; without interval it has none.
    """
    mean, weight = curve["mean"].to_numpy(), log_weights(curve["epoch"].to_numpy())
    half = (curve["high"] - curve["low"]).to_numpy() / 2 if {"low", "high"} <= {*curve} else np.full(len(mean), np.nan)
    return {
        "mean over horizons": float(mean @ weight / weight.sum()),
        "±": float(half @ weight / weight.sum()),
        "first": float(mean[0]),
        "lowest": float(mean.min()),
        "last": float(mean[-1]),
    }


def compared(rows: Sequence[dict]) -> list[dict]:
    """The rows of a data set, each with "leads"; the exact derivative is not compared."""
    rivals = [row for row in rows if row["method"] != LOOK[EXACT].label]
    return [{**row, "leads": row["method"] != LOOK[EXACT].label and leads(row, rivals)} for row in rows]


def leads(row: dict, rows: Sequence[dict]) -> bool:
    """Whether the mean of a row is above that of all others by more than the interval of the difference."""
    others = [other for other in rows if other is not row]
    return bool(others) and all(
        row["mean over horizons"] - other["mean over horizons"] > np.hypot(row["±"], other["±"]) for other in others
    )


def lft_beside_others(table: pd.DataFrame) -> list[str]:
    """For each data set a sentence: whether LFT leads, loses or cannot be told from the best of the others."""
    found = []
    for title, rows in table.groupby("data set", sort=False) if len(table) else ():
        lft = rows[rows["method"] == LOOK["lft"].label]
        others = rows[~rows["method"].isin([LOOK["lft"].label, LOOK[EXACT].label])].nlargest(1, "mean over horizons")
        for ours, other in zip(lft.to_dict("records"), others.to_dict("records"), strict=False):
            pair = [ours, other]
            words = "leads" if leads(ours, pair) else "loses" if leads(other, pair) else "cannot be told from it"
            a, b = (f"{row['mean over horizons']:.2f}" for row in pair)
            found.append(f"{title}: the best of the others is {other['method']} with {b}; LFT, with {a}, {words}.")
    return found


def html(table: pd.DataFrame) -> str:
    """The table as a page of its own; bold: what leads beyond intervals."""
    if table.empty:
        return table.to_html(index=False, border=0)
    shown = table[SHOWN]
    bold = [["font-weight: bold" if lead and c == SHOWN[2] else "" for c in SHOWN] for lead in table["leads"]]
    styled = shown.style.apply(lambda _: pd.DataFrame(bold, shown.index, SHOWN), axis=None).set_uuid("horizons")
    return styled.format(precision=2, na_rep="", subset=SHOWN[2:]).hide(axis="index").to_html(doctype_html=True)


def seconds_before(folder: Path) -> dict[tuple[str, str], float]:
    """(data set, method) -> seconds, of the table as last saved."""
    try:
        table = pd.read_csv(folder / "table_horizons.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return {}
    return {(row["data set"], row["method"]): row["seconds"] for _, row in table.iterrows()}


def in_short(scores: xr.DataArray, gold: xr.Dataset) -> dict[str, float]:
    """Similarity of scores to a gold standard: mean over horizons (`log_weights`), first, lowest, last; and the mean
    and the last noise ceiling."""
    curve, weights = (
        similarity(scores, sensitivity(gold))["mean"].values,
        log_weights(gold["step"].values.astype(float)),
    )
    ceiling = noise_ceiling(gold, "mean", "variances")
    ends = {"first": curve[0], "lowest": curve.min(), "last": curve[-1]}
    ceilings = {"ceiling": np.average(ceiling, weights=weights), "ceiling_last": float(ceiling[-1])}
    return {"mean": np.average(curve, weights=weights), **ends, **ceilings}


def log_weights(epochs: np.ndarray) -> np.ndarray:
    """Weights under which horizons count evenly on a log axis; the first as if another lay as far before it."""
    if len(epochs) == 1:
        return np.ones(1)
    return np.diff(np.log(epochs), prepend=np.log(epochs[0] ** 2 / epochs[1]))


def seconds_of(pieces: Callable) -> float:
    """How long a stored result took to compute, by its sidecar."""
    return float(read_sidecar(asked(pieces))["seconds"])
