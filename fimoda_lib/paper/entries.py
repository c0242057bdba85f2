"""What the report page says of each figure: heading, files, settings, published numbers beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..datasets import DATASETS
from ..experiments.paper_settings import PANELS
from ..plots.extremes import agreeing
from ..plots.look import LOOK
from .claims import curves_of, published_panel, read_table, title
from .rules import Curve, label, number

TITLES = {  # in the order of the page; a figure's own title goes first
    "fig01": "Levels of access, and further training",
    "fig02": "Similarity to further training with SGD",
    "fig03": "Similarity against the number of seeds averaged",
    "fig04": "Similarity to further training with Adam",
    "fig05": "Similarity with the full adjustment",
    "fig06": "Spearman correlation with further training",
    "fig07": "Seed averaging with SGD",
    "fig08": "Seed averaging with Adam",
    "fig09": "Seed averaging with the full adjustment",
    "fig10": "Sorted attribution scores",
    "fig11": "Re-training from scratch",
    "table2": "The most helpful and the most harmful training instances",
    "table2_text": "The most helpful and the most harmful training sentences",
    "fig_images": "The most helpful and the most harmful training images",
    "fig_damping": "Damping is time",
    "fig_filter": "One filter, all methods",
    "fig02plus": "Figure 2 with LFT",
    "fig04plus": "Figure 4 with LFT",
    "table_horizons": "All methods, over all horizons",
    "fig_limit": "The first-order limit",
    "fig_units": "Rectified and smooth units",
    "fig_precision": "Precision audit",
    "fig_rounding": "Text as published: is it rounding?",
    "fig_removal": "mask against drop",
    "fig_lds": "Linear datamodeling score",
    "fig_removal_curves": "Removal curves",
    "fig_mislabelled": "Mislabelled instances",
    "fig_selection": "Selection by horizon",
}
SHORT = {  # in the list of contents, where the heading has no number
    "table2_text": "Sentences",
    "fig_images": "Images",
    "fig_damping": "Damping",
    "fig_filter": "Filter",
    "fig02plus": "Figure 2+",
    "fig04plus": "Figure 4+",
    "table_horizons": "All horizons",
    "fig_limit": "First-order limit",
    "fig_units": "Units",
    "fig_precision": "Precision",
    "fig_rounding": "Rounding",
    "fig_removal": "Removal",
}
UNITS = {"epochs": "epoch", "steps": "step", "seeds_averaged": "seeds averaged:"}  # before a number
ENDINGS = ("pdf", "png", "csv", "html")
# Keys of a figure's JSON that have a place of their own on the page; the others are its settings.
PLACED = {
    "title",
    "caption",
    "notebook",
    "figure",
    "profile",
    "datasets",
    "versions",
    "commit",
    "device",
    "written",
    "runs",
}


def figure_notes(folder: Path) -> dict[str, dict[str, Any]]:
    """Figure -> its provenance, in the order of the page. A file of a single panel names another figure than itself."""
    notes = {}
    for path in folder.glob("*.json"):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not readable JSON ({error}); draw the figure anew.") from error
        if isinstance(note, dict) and note.get("figure") == path.stem:
            notes[path.stem] = note
    known = list(TITLES)
    return dict(sorted(notes.items(), key=lambda item: (known.index(item[0]) if item[0] in known else 99, item[0])))


def figure_entry(folder: Path, name: str, note: dict[str, Any], notebooks: list[dict]) -> dict[str, Any]:
    """What the template shows of one figure."""
    text = heading(name, note)
    datasets = in_panel_order(note.get("datasets", {}))
    shown = ", ".join(title(d) for d in datasets)
    panels = sorted({p.stem for e in ENDINGS for p in folder.glob(f"{name}[a-z]_*.{e}")})
    drawn_by = note.get("notebook", "").removesuffix(".ipynb")
    return {
        "name": name,
        "heading": text,
        "short": SHORT.get(name, text.split(".")[0]),
        "caption": note.get("caption", ""),
        "runs": note.get("runs", ""),
        "image": f"{name}.png" if (folder / f"{name}.png").exists() else None,
        "size": image_size(folder / f"{name}.png"),
        "alt": f"{text}."
        + (f" Panels: {shown}." if shown else "")
        + (" The numbers are in the CSV linked below." if (folder / f"{name}.csv").exists() else ""),
        "files": files(folder, name),
        "panels": [panel_entry(folder, stem, text) for stem in panels],
        "settings": {k.replace("_", " "): words(v) for k, v in note.items() if k not in PLACED},
        "datasets": [{**v, "title": title(d), "seeds": seeds(v.get("seeds", []))} for d, v in datasets.items()],
        "commit": note.get("commit", "unknown"),
        "versions": note.get("versions", {}),
        "notebooks": [n for n in notebooks if drawn_by and n["name"].split("-")[0] == drawn_by],
        "beside": list(beside(folder, name)),
        "rows": rows_of(folder, name) if name.startswith("table") else None,
    }


def panel_entry(folder: Path, stem: str, text: str) -> dict[str, Any]:
    """What the template shows of a single panel."""
    dataset = stem.split("_", 1)[1]
    image = folder / f"{stem}.png"
    alt = f"{text}. {title(dataset if dataset in DATASETS else stem.removeprefix('fig_').split('_', 1)[-1])}."
    return {"name": stem, "files": files(folder, stem), "image": image.name if image.exists() else None,
            "size": image_size(image), "alt": alt}  # fmt: skip


def heading(name: str, note: dict[str, Any]) -> str:
    """ "Figure 2. Similarity …": the number from the name, the words from the figure itself where it has them."""
    found = re.fullmatch(r"(fig|table)0*(\d+)", name)
    text = note.get("title") or TITLES.get(name, name)
    if found is None:
        return text
    kind = {"fig": "Figure", "table": "Table"}[found[1]]
    return text if text.startswith(f"{kind} {found[2]}") else f"{kind} {found[2]}. {text}"


def in_panel_order(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Data sets in the order of the paper's panels, each beside what stands in for it."""
    order = [name for names in PANELS.values() for name in names]
    return dict(sorted(datasets.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def files(folder: Path, stem: str) -> list[tuple[str, str]]:
    """(kind, relative address) of the files that a figure has."""
    return [(e.upper(), f"{stem}.{e}") for e in ENDINGS if (folder / f"{stem}.{e}").exists()]


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels, so that a browser keeps the place of an image before it is loaded."""
    if not path.exists():
        return None
    head = path.read_bytes()[:24]
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def beside(folder: Path, figure: str) -> Iterator[dict[str, Any]]:
    """Published numbers beside ours, per panel that has any: at the first and the last x that both have."""
    table = read_table(folder, figure)
    if table is None or not {"panel", "dataset", "method"} <= set(table):
        return
    for (panel, dataset), rows in table.groupby(["panel", "dataset"]):
        published_rows = published_panel(figure, panel, dataset)
        ours, published = curves_of(rows), curves_of(published_rows)
        methods = [m for m in LOOK if m in ours and m in published]
        common = sorted({x for m in methods for x in np.intersect1d(ours[m].x, published[m].x)})
        if not common:
            continue
        ends = [common[0]] + ([common[-1]] if len(common) > 1 else [])
        yield {
            "title": title(dataset),
            "published_title": title(published_rows.dataset.iloc[0]),
            "ends": [f"{UNITS.get(unit := published_rows.x_axis.iloc[0], unit)} {x:g}" for x in ends],
            "rows": [
                (label(m), [(_at(ours[m], x), _at(published[m], x)) for x in ends]) for m in methods
            ],
        }  # fmt: skip


def _at(curve: Curve, x: float) -> str:
    return number(curve.value[curve.x == x][0]) if x in curve.x else "–"


def rows_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The rows of a table, as text, each cell with whether it is bold."""
    table = read_table(folder, name)
    if table is None:
        return None
    bold = agreeing(table) if {"test", "role"} <= {*table} else leading(table)
    table = table.drop(columns="leads", errors="ignore")
    cells = [
        [(words(v), c in bold[k]) for c, v in zip(table.columns, row, strict=True)]
        for k, row in enumerate(table.itertuples(index=False))
    ]
    return {"columns": [str(c).replace("_", " ") for c in table.columns], "cells": cells}


def leading(table: pd.DataFrame) -> list[set[str]]:
    """Per row, which cells are bold: the mean of a method that leads beyond intervals."""
    leads = table["leads"] if "leads" in table else [False] * len(table)
    return [{"mean over horizons"} if lead else set() for lead in leads]


def words(value: Any) -> str:
    """A value as a reader would write it."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}".replace("-", "−")
    if isinstance(value, list):
        return ", ".join(map(words, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {words(v)}" for k, v in value.items())
    return str(value)


def seeds(numbers: list[int]) -> str:
    """[0, 1, 2] -> "3 (0–2)"."""
    if not numbers:
        return "0"
    consecutive = sorted(numbers) == list(range(min(numbers), max(numbers) + 1)) and len(numbers) > 1
    return f"{len(numbers)} ({min(numbers)}–{max(numbers)})" if consecutive else f"{len(numbers)} ({words(numbers)})"
