"""The studies behind the figures beyond the paper, data set by data set: several processes can share them out.

A study consists of many stored results. That all of them are there is noted in the store, too, so that nobody has to
look for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ..experiments.panel import Panel
from ..experiments.profiles import get_profile
from ..plots import first_order, lds, mislabelled, removal, removal_curves, rounded, selection
from ..storage.store import cached, fingerprint, shard_path

Make = Callable[[Panel], pd.DataFrame | None]
STUDY = "study"  # what the names of the notes begin with
STUDIES: dict[str, Make] = {  # figure -> what computes the numbers of a panel; the longest first
    "fig_lds": lds.table,
    "fig_removal_curves": removal_curves.table,
    "fig_selection": selection.table,
    "fig_mislabelled": mislabelled.table,
    "fig_rounding": rounded.table,
    "fig_limit": first_order.limit_table,
    "fig_units": first_order.units_table,
    "fig_precision": first_order.precision_table,
    "fig_removal": removal.table,
}


def noted(figure: str, panel: Panel, make: Make) -> pd.DataFrame | None:
    """`make(panel)`, the numbers of a figure's panel; what it computes is noted as complete."""
    if not panel.compute:
        return make(panel)
    found = []

    def compute() -> xr.Dataset:
        found.append(make(panel))
        return xr.Dataset()

    cached(panel.folder, *_note(figure, panel), compute)
    return found[0] if found else make(panel)


def path_of(figure: str, panel: Panel) -> Path:
    """The file which says that the study is complete; raises `Missing` if the panel has no final model yet."""
    return shard_path(panel.folder, *_note(figure, panel))


def _note(figure: str, panel: Panel) -> tuple[str, dict[str, Any]]:
    """Name and specification: all that the settings of a study are made of."""
    return f"{STUDY}-{panel.dataset}-{figure}", {
        "study": figure,
        "settings": asdict(panel.settings),
        "profile": asdict(get_profile(panel.profile)),
        "model": repr(panel.task.model),
        "params": fingerprint(panel.params),
        "data": fingerprint(panel.task.train, panel.task.test),
        **panel.computed_with,
    }
