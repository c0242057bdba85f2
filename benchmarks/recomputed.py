"""Does this version still find what is stored? Pieces of a run are computed anew, elsewhere, and compared.

    python benchmarks/recomputed.py --results DIR --data DIR [--profile laptop] [--most SECONDS] [--datasets energy ...]

Results of a long run may come from several commits. Of every kind of piece of every data set (final model, further
training by each optimiser, re-training, scores by each method) one is computed again, of those with seeds the first, if
it took no more than `--most` seconds. `recomputed.csv` beside this file says by which commit it was stored and by which
computed again, and the largest difference relative to the largest value.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from fimoda_lib.experiments.panel import Panel, one_retraining, one_seed
from fimoda_lib.experiments.paper_settings import EXPERIMENTS, PANELS
from fimoda_lib.experiments.ranking import ranking_methods
from fimoda_lib.experiments.settings import panel_letter
from fimoda_lib.plots.panels import LETTERS
from fimoda_lib.storage.provenance import code_version
from fimoda_lib.storage.store import asked, read_sidecar

Piece = Callable[[Panel], xr.Dataset | xr.DataArray]


def pieces(panel: Panel) -> Iterator[tuple[str, Piece]]:
    """Names, and what each is of a panel."""
    rule = panel.optimizer
    if rule == "sgd":  # or the only one
        yield "final model", lambda p: xr.Dataset({k: (v.shape and [f"{k}{d}" for d in range(v.dim())], v.numpy())
                                                   for k, v in p.params.items()})  # fmt: skip
        for method in ranking_methods(panel):
            yield f"scores, {method}", lambda p, m=method: p.scores(m)
        if panel_letter(panel.dataset) in LETTERS["fig11"].values():
            yield "re-training", lambda p: one_retraining(p, 0).retrained[["delta"]]
    yield f"further training, {rule}", lambda p: one_seed(p, 0).gold[["delta"]]


def difference(found: xr.Dataset | xr.DataArray, expected: xr.Dataset | xr.DataArray) -> float:
    """Largest difference relative to the largest value; 0 if all bits are the same."""
    pairs = [
        (np.asarray(a, dtype=float), np.asarray(b, dtype=float))
        for a, b in zip(arrays(found), arrays(expected), strict=True)
    ]
    return max(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), np.finfo(float).tiny) for a, b in pairs)


def arrays(data: xr.Dataset | xr.DataArray) -> list[np.ndarray]:
    return [data.values] if isinstance(data, xr.DataArray) else [v.values for v in data.data_vars.values()]


def compared(stored: Panel, most: float) -> Iterator[dict]:
    """A row for each piece that took at most so many seconds when it was stored."""
    _ = stored.task  # read now: inside `asked` nothing is
    for name, piece in pieces(stored):
        if name != "final model":
            _ = stored.params
        path = asked(lambda piece=piece: piece(stored))  # noqa: B023
        if not path.exists():
            continue
        note = read_sidecar(path)
        if note["seconds"] > most:
            continue
        with tempfile.TemporaryDirectory() as folder:
            again = replace(stored, results=folder, compute=True, given_task=stored.task)
            if name != "final model":
                again = replace(again, given_params=stored.params)
            found = difference(piece(again), piece(stored))
        row = dict(dataset=stored.dataset, piece=name, stored_by=note["commit"], computed_by=code_version())
        print(f"{stored.title}, {name}: {found:.1e}", flush=True)
        yield {**row, "difference": float(f"{found:.1e}"), "seconds": round(note["seconds"], 1)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, metavar="DIR")
    options.add_argument("--data", metavar="DIR")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--most", type=float, default=100, metavar="SECONDS")
    options.add_argument("--datasets", nargs="+", default=[*PANELS])
    chosen = options.parse_args()
    rows = []
    for dataset in chosen.datasets:
        for rule in EXPERIMENTS[dataset].further if len(EXPERIMENTS[dataset].further) > 1 else ("sgd",):
            panel = Panel(dataset, chosen.profile, rule, results=chosen.results, data_dir=chosen.data, compute=False)
            rows += compared(panel, chosen.most)
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
