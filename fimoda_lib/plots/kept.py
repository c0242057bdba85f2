"""Panels drawn earlier: their numbers, as saved, stand in where the results that they were made from are not here.

Results are large and stay where they were computed; figures travel. A figure drawn again for one data set, or on
another machine, keeps its other panels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from ..experiments.panel import Panel
from ..experiments.paper_settings import EXPERIMENTS
from ..experiments.settings import panel_letter
from .panels import LETTERS, shown_in

Notes = dict[str, dict]  # panel letter -> the provenance of its data set, as saved with the panel


def panels_and_tables(
    figure: str,
    panels: Mapping[str, Panel],
    folder: Path | str,
    make: Callable[[Panel], pd.DataFrame | None],
    **changes: str | bool,
) -> tuple[dict[str, Panel], dict[str, pd.DataFrame | None], Notes]:
    """The panels of a figure, their numbers, and the provenance of those that were drawn earlier.

    Args:
        panels: what is asked for; letter in Figure 2 -> what it shows.
        folder: where the figure was saved, if it was.
        make: computes the numbers of a panel from stored results; None if there are none.
        changes: of what is shown, as in `shown_in`.
    """
    asked = shown_in(figure, panels, **changes)
    profile = next(iter(asked.values())).profile
    found, tables, notes = {}, {}, {}
    for letter in LETTERS[figure]:
        table = make(asked[letter]) if letter in asked else None
        earlier = None if table is not None else kept(figure, letter, folder, profile)
        if earlier is not None and (letter not in asked or earlier[0] == asked[letter].dataset):
            dataset, table, notes[letter] = earlier
            found[letter] = asked.get(letter) or Panel(dataset, profile, compute=False)
        elif letter in asked:
            found[letter] = asked[letter]
        else:
            continue
        tables[letter] = table
    return found, tables, notes


def kept(figure: str, letter: str, folder: Path | str, profile: str) -> tuple[str, pd.DataFrame, dict] | None:
    """Data set, numbers and provenance of the panel of that letter as last saved under this profile, if it was.

    Files under letters that the figure used to give to other data sets are passed over, and those of data sets that are
    no longer known.
    """
    for path in sorted(Path(folder).glob(f"{figure}{letter}_*.json")):
        note = json.loads(path.read_text())
        dataset = path.stem.removeprefix(f"{figure}{letter}_")
        runs = note["datasets"].get(dataset)
        if dataset not in EXPERIMENTS or panel_letter(dataset) != LETTERS[figure][letter]:
            continue
        if note["profile"] == profile and runs is not None and path.with_suffix(".csv").exists():
            table = pd.read_csv(path.with_suffix(".csv")).drop(columns=["panel", "dataset"])
            if table.empty:  # it said that nothing was run
                continue
            return dataset, table, {**runs, "drawn": runs.get("drawn", note["commit"])}
    return None
