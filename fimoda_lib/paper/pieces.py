"""Which pieces stand behind a page: computed by the run that it ends, or found from an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..datasets import DATASETS
from .claims import title
from .studied import STUDY

KINDS = {"final": "final model", "further": "further training", "scores": "scores", "tangent": "derivatives of runs"}
OTHER = "studies"


def sidecars(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, provenance) of the stored results of a run; files that are being written are passed over."""
    for path in sorted(results.glob("*.json")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(note, dict):
            yield path.stem, note


def pieces(results: Path, since: str | None) -> pd.DataFrame:
    """One row for each kind of piece and data set.

    Args:
        since: when the run began, as sidecars write it ("2026-01-02T03:04:05Z"); None if that is not known.

    Returns:
        columns kind, data set, pieces, now and earlier (how many were computed by the run, how many before it; empty if
        that is not known), minutes (that they took), written (the first and the last day).
    """
    rows = []
    for stem, note in sidecars(results):
        kind, *rest = stem.split("-")
        if note.get("written") and rest and rest[0] in DATASETS and kind != STUDY:
            written = str(note["written"])
            found = {"kind": KINDS.get(kind, OTHER), "data set": title(rest[0]), "day": written[:10]}
            rows.append({**found, "seconds": note.get("seconds") or 0.0, "now": bool(since) and written >= since})
    if not rows:
        return pd.DataFrame()
    order = [*KINDS.values(), OTHER]
    groups = pd.DataFrame(rows).groupby(["kind", "data set"], sort=False)
    table = groups.agg(pieces=("now", "size"), now=("now", "sum"), seconds=("seconds", "sum"),
                       first=("day", "min"), last=("day", "max")).reset_index()  # fmt: skip
    table = table.sort_values("kind", key=lambda kinds: kinds.map(order.index), kind="stable")
    days = [" to ".join(sorted({a, b})) for a, b in zip(table["first"], table["last"], strict=True)]
    return table.assign(earlier=table["pieces"] - table["now"], minutes=(table["seconds"] / 60).round(1), written=days)[
        ["kind", "data set", "pieces", "now", "earlier", "minutes", "written"]
    ].reset_index(drop=True)


def in_words(table: pd.DataFrame, since: str | None) -> str:
    """Where the pieces come from, in a sentence; nothing if it is not known when the run began."""
    if since is None or table.empty:
        return ""
    now, earlier = int(table["now"].sum()), int(table["earlier"].sum())
    minutes = f"{table['minutes'].sum():.0f} minutes in all"
    return f"{now} pieces computed now, {earlier} found from earlier runs ({minutes})"


def digest(folder: Path) -> str:
    """A hash of the numbers and the provenance of all figures in a folder, which a page carries."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.csv")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def computed_by(note: dict[str, Any]) -> set[str]:
    """The commits by which the results behind a figure were computed, as far as its provenance says."""
    return {commit for runs in note.get("datasets", {}).values() for commit in runs.get("computed_by", ())}


def faults(folder: Path | str) -> list[str]:
    """What is wrong with a figures folder that is to be kept: in sentences, none if it is one piece.

    Its page must have been made of the figures as they are, and all panels drawn by one commit without changes. What
    they show may have been computed by earlier ones, whose results the store found to be those asked for.
    """
    folder, found = Path(folder), []
    page = folder / "index.html"
    head = page.read_text(encoding="utf-8")[:2000] if page.exists() else ""
    if f'name="figures" content="{digest(folder)}"' not in head:
        found.append(f"{page} is older than the figures beside it: python -m fimoda_lib.paper.report {folder}")
    commits, computed = set(), set()
    for path in folder.glob("*.json"):
        note = json.loads(path.read_text(encoding="utf-8"))
        computed |= computed_by(note)
        commits |= {
            note.get("commit", "unknown"),
            *(d["drawn"] for d in note.get("datasets", {}).values() if "drawn" in d),
        }
    if len(commits) > 1:
        found.append(f"the panels in {folder} were drawn by {len(commits)} commits ({', '.join(sorted(commits))}).")
    for what, by in (("drawn", commits), ("computed", computed)):
        for commit in sorted(c for c in by if c.endswith("+") or c == "unknown"):
            found.append(f"panels in {folder} were {what} by {commit}, which is no commit that anybody else has.")
    return found
