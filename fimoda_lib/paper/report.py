"""The page that answers "does it reproduce?": claims, figures and published numbers, from a figures folder.

python -m fimoda_lib.paper.report figures/overnight
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from ..experiments.settings import has_small_model
from ..experiments.standards import read_rows
from ..plots.captions import counted
from ..plots.look import RULES
from .benchmark import standings
from .claims import check_claims, title
from .entries import TITLES, figure_entry, figure_notes, heading, in_panel_order, words
from .notebook_pages import pages as templates
from .notebook_pages import write_page
from .pieces import computed_by, digest, faults, in_words, pieces, sidecars
from .rules import THRESHOLDS, number
from .studied import STUDIES
from .verdicts import NOT_COMPARABLE, NOT_RUN, VERDICTS

PIECES = "notebooks/pieces.csv"  # in a figures folder: what stands behind its page
ROOT = Path(__file__).resolve().parents[2]
RETRAINED = "fig11"  # its runs start from scratch; all others are further training


def report(folder: Path | str, results: Path | str | None = None, since: str | None = None) -> Path:
    """Writes `index.html` into a figures folder, and the executed notebooks as pages into its `notebooks/`.

    Args:
        folder: the figures of one profile, `figures/overnight`, say.
        results: where the run kept its work, `results/overnight`, say: its notebooks are converted, and it says on what
            device and when the work was done. Without it, pages made earlier stay as they are, and what was said of the
            pieces then (`PIECES`) is said again.
        since: when the run began, as sidecars write it; the page then says what was computed now and what was found.

    Returns:
        the path of the page.

    Raises:
        ValueError: the folder holds no figures, or one of the files cannot be read.
    """
    folder = Path(folder)
    notes = figure_notes(folder)
    if not notes:
        raise ValueError(f"{folder} holds no figures (a .json beside each); make them first: ./run_all.sh")
    if results is not None:
        convert_notebooks(Path(results), folder)
    notebooks = notebook_list(folder)
    profile = next(iter(notes.values())).get("profile", folder.name)
    outcomes = check_claims(folder)
    computed = said_before(folder) if results is None else pieces(Path(results), since)
    if results is not None and len(computed):
        (folder / PIECES).parent.mkdir(exist_ok=True)
        computed.to_csv(folder / PIECES, index=False)
    content = {
        "profile": profile,
        "digest": digest(folder),
        "facts": facts(notes, notebooks, Path(results) if results is not None else None, computed, since),
        "pieces": computed.drop(columns=[] if since else ["now", "earlier"], errors="ignore"),
        "outcomes": outcomes,
        "trial": all(o.verdict in (NOT_COMPARABLE, NOT_RUN) for o in outcomes),
        "counts": {word: n for word in VERDICTS if (n := sum(o.verdict == word for o in outcomes))},
        "thresholds": THRESHOLDS.values(),
        "figures": [figure_entry(folder, name, note, notebooks) for name, note in notes.items()],
        "missing": [(name, heading(name, {}), command(name, profile)) for name in TITLES if name not in notes],
        "notebooks": notebooks,
        "leaderboard": leaderboard(),
    }
    target = folder / "index.html"
    target.write_text(templates().get_template("report.html").render(content), encoding="utf-8")
    return target


# --- Figures --------------------------------------------------------------------------------------------------------


def command(name: str, profile: str) -> str:
    """What makes a figure."""
    return f"./run_all.sh --profile {profile} --only {name}"


def leaderboard() -> dict[str, Any] | None:
    """The known methods on the stored gold standards of the benchmark, as text; None if none is stored."""
    table, made = standings()
    if not made:
        return None
    cells = [
        [row[0], *("–" if isnan(value) else number(value) for value in row[1:])]
        for row in table.itertuples(index=False)
    ]
    small = {
        name for name in table.columns[1:] if has_small_model(name, read_rows(name)[1]["specification"]["profile"])
    }
    heads = [f"{title(name)} (small model)" if name in small else title(name) for name in table.columns[1:]]
    return {"columns": ["Method", *heads], "cells": cells, "made": made}


def said_before(folder: Path) -> pd.DataFrame:
    """The pieces behind the page as last made with the results at hand; without what was new then."""
    try:
        return pd.read_csv(folder / PIECES).drop(columns=["now", "earlier"])
    except FileNotFoundError:
        return pd.DataFrame()


# --- Notebooks and provenance ---------------------------------------------------------------------------------------


def convert_notebooks(results: Path, folder: Path) -> None:
    """Every executed notebook of a run as a page in `folder/notebooks/`."""
    places = {ROOT: ".", Path.home(): "~", results.resolve().parent: "results", folder.resolve().parent: "figures"}
    if os.environ.get("FIMODA_DATA"):
        places[Path(os.environ["FIMODA_DATA"]).resolve()] = "data"
    paths = {str(place): words for place, words in places.items() if len(place.parts) > 1}
    for notebook in sorted((results / "notebooks").glob("*.ipynb")):
        write_page(notebook, folder / "notebooks" / f"{notebook.stem}.html", paths)


def notebook_list(folder: Path) -> list[dict[str, str]]:
    """The pages of executed notebooks: name, title, address, date."""
    found = []
    for page in sorted((folder / "notebooks").glob("*.html")):
        head = page.read_text(encoding="utf-8")[:2000]
        text, date = re.search(r"<title>(.*?)</title>", head), re.search(r'name="date" content="([^"]*)"', head)
        found.append(
            {
                "name": page.stem,
                "title": text[1] if text else page.stem,
                "what": " ".join(page.stem.split("-")[1:]),
                "address": f"notebooks/{page.name}",
                "date": date[1][:10] if date else "",
            }
        )
    return found


def facts(
    notes: dict[str, dict], notebooks: list[dict], results: Path | None, computed: pd.DataFrame, since: str | None
) -> list[tuple[str, str]]:
    """What ran where and when, as (name, value); only what the files say.

    Args:
        computed, since: the pieces, and when the run began, as for `in_words`.
    """
    most: dict[str, dict[str, int]] = {}  # seeds of each optimiser; some figures show fewer
    for name, note in notes.items():
        for dataset, d in note.get("datasets", {}).items() if name not in (RETRAINED, *STUDIES) else ():
            optimizer = d.get("optimizer") or note.get("optimizer", "?")
            seeds = most.setdefault(dataset, {})
            seeds[optimizer] = max(len(d.get("seeds", [])), seeds.get(optimizer, 0))
    ran = {
        dataset: [f"{counted(n, 'seed')} with {RULES.get(optimizer, optimizer)}" for optimizer, n in seeds.items()]
        for dataset, seeds in most.items()
    }
    retrained = in_panel_order(notes.get(RETRAINED, {}).get("datasets", {}))
    stored = [note for _, note in sidecars(results)] if results is not None else []
    devices = {n["device"] for n in [*notes.values(), *stored] if n.get("device")}
    dates = {s["written"][:10] for s in stored if s.get("written")} | {n["date"] for n in notebooks if n["date"]}
    dates |= {day for days in computed.get("written", ()) for day in days.split(" to ")}
    commits = {n["commit"] for n in notes.values() if n.get("commit")}
    commits |= {d["drawn"] for n in notes.values() for d in n.get("datasets", {}).values() if "drawn" in d}
    versions = {k: v for n in notes.values() for k, v in n.get("versions", {}).items()}
    found = [
        ("Further training", "; ".join(f"{title(d)}: {', '.join(e)}" for d, e in in_panel_order(ran).items())),
        ("Re-training from scratch", "; ".join(title(d) for d in retrained)),
        ("Behind this page", in_words(computed, since)),
        ("On", ", ".join(sorted(devices))),
        ("When", " to ".join(sorted({min(dates), max(dates)})) if dates else ""),
        ("Figures drawn by commit", ", ".join(sorted(commits))),
        ("Results computed by commits", ", ".join(sorted({c for n in notes.values() for c in computed_by(n)}))),
        ("Versions", words(versions)),
    ]
    return [(name, value) for name, value in found if value]


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m fimoda_lib.paper.report", description="Writes index.html into a figures folder."
    )
    p.add_argument("folder", metavar="FOLDER", help="the figures of one profile, such as figures/overnight")
    p.add_argument(
        "--results", metavar="DIR", help="where the run kept its work (results/<name of FOLDER>, if it exists)"
    )
    p.add_argument(
        "--check", action="store_true", help="only say whether the page is as new as its figures, all of one commit"
    )
    options = p.parse_args(arguments)
    if options.check:
        print(*(found := faults(options.folder)) or ["as new as its figures, all of one commit"], sep="\n")
        return 1 if found else 0
    results = Path(options.results or Path("results") / Path(options.folder).resolve().name)
    if options.results and not results.is_dir():
        print(f"report: --results: there is no folder {options.results!r}; leave it out, or name one.", file=sys.stderr)
        return 2
    try:
        print(report(options.folder, results if results.is_dir() else None))
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
