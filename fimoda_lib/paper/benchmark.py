"""A new method beside all known ones, in a minute: its similarity to the stored gold standard of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from ..experiments.standards import Method, read_rows, read_standard, rows_of, stored_names
from ..methods import check_hyper, entry_of
from ..plots import benchmark as drawing


def benchmark(
    method: Method,
    dataset: str = "energy",
    *,
    data_dir: Path | str | None = None,
    plot: bool = False,
    **hyper: Any,
) -> pd.DataFrame:
    """Scores a method against a stored gold standard: further training, measured beforehand, at about a dozen horizons.

    Args:
        method: a function `method(task, params, *, train, test, curvature)` that returns scores [test, train], positive
            = helpful; or a name in `METHODS`. With an argument `horizon=None` it is given the optimiser steps at which
            it will be judged, and may return scores [horizon, test, train] and the report `{"horizon": steps}`; with
            `further_training=None`, the optimiser, learning rate and batch size of further training.
        dataset: one of `stored_names()`; those inside scikit-learn need no file.
        data_dir: as for `load_task`.
        plot: whether to draw the similarities against the amount of further training as well.
        hyper: the method's hyper-parameters.

    Returns:
        One row for each method and horizon, `stored` False for the method that was asked for, which comes first, and
        True for the known ones beside it: columns as in `standards.rows_of`, and `ceiling`, an estimate of what a
        perfect method would reach, with its interval. A method without scores has similarity 0 and says why in
        `outcome`. The attributes say which run made the gold standard.

    Raises:
        ValueError: unknown method, hyper-parameter or data set, or data that are not those of the gold standard.
        DataFileError: a data file cannot be had, or is not the original.
    """
    check_hyper(entry_of(method), hyper)
    panel, gold, known, note = read_standard(dataset, data_dir)
    own = rows_of(panel, gold, method, **hyper)
    table = pd.concat([own.assign(stored=False), known.assign(stored=True)], ignore_index=True)
    for name in ("ceiling", "ceiling_low", "ceiling_high"):
        table[name] = table["step"].map(gold[name].to_series())
    table.attrs = {"dataset": dataset, "title": panel.title, "made by": made_by(note)}
    if plot:
        with drawing.style():
            figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
            drawing.draw(ax, table, dataset)
            ax.set_title(panel.title)
    return table


def leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """What `benchmark` returns with a row for each method, best first, and a column for each horizon.

    Returns:
        columns: the epochs (or steps) and their mean, seconds, MiB; the last row is the noise ceiling.
    """
    at = "epoch" if "epoch" in table else "step"
    names = table["label"].where(table["stored"], "> " + table["label"])
    wide = table.assign(name=names).pivot(index="name", columns=at, values="similarity")
    wide["mean"] = wide.mean(axis=1)
    spent = table.assign(name=names).groupby("name")[["seconds", "memory_MiB"]].first()
    wide = wide.join(spent.rename(columns={"memory_MiB": "MiB"})).sort_values("mean", ascending=False)
    ceiling = table.drop_duplicates(at).set_index(at)["ceiling"]
    wide.loc["noise ceiling"] = {**ceiling.to_dict(), "mean": ceiling.mean()}
    return wide.rename(columns=lambda c: f"{c:g}" if isinstance(c, float) else str(c)).rename_axis(None)


def standings() -> tuple[pd.DataFrame, list[str]]:
    """All known methods on all stored gold standards: mean similarity over horizons, and which run made each.

    Returns:
        columns method and one for each data set, best on average first; and a sentence for each data set.
    """
    means, made = {}, []
    for dataset in stored_names():
        rows, note = read_rows(dataset)
        means[dataset] = rows.groupby("label", sort=False)["similarity"].mean()
        made.append(f"{dataset}: {made_by(note)}")
    table = pd.DataFrame(means)
    order = table.mean(axis=1).sort_values(ascending=False).index
    return table.loc[order].rename_axis("method").reset_index(), made


def made_by(note: dict[str, Any]) -> str:
    """Which run made a stored gold standard, and which the rows of the known methods, if another; from its sidecar."""
    spec, trained = note["specification"], note["trained"]
    said = (
        f"profile {spec['profile']}, {len(spec['seeds'])} seeds, {len(spec['left_out'])} left-out and "
        f"{len(spec['test'])} test instances, {spec['further']['optimizer']}, commit {trained['commit']}, "
        f"{trained['written'][:10]}, {trained['device']}"
    )
    renewed, kept = trained["written"] != note["written"], note["kept"]
    rows = f"commit {note['commit']}, {note['device']}"
    if kept:
        return (
            f"{said}; known methods by commit {kept['commit']}, {kept['device']}, {', '.join(kept['newer'])} by {rows}"
        )
    return said + (f"; known methods by {rows}" if renewed else "")
