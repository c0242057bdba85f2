"""Which of the settings that the paper does not state gives its curves?

    python benchmarks/unpublished_settings.py --results DIR --out FILE.csv [--profile laptop] [--datasets energy]
                                              [--of-many 5000]

Some published curves differ from ours: EK-FAC, LiSSA-H and TRAK on Energy, LiSSA and LiSSA-H on Folktables. The paper
says which library it took, not with which damping, depth, projection or sign. A row per setting: our similarity to
further training at the first and the last published epoch, beside the published numbers, and the root mean square of
the difference over all published epochs (evenly on a log axis). Settings are judged by how near they come to what was
published, not by how well they predict; nothing else in this project uses them.

Further training and final models are those of a finished run in --results. Rows that the file has are not computed
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from fimoda_lib import attribute, sensitivity, similarity
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.profiles import PROFILES, get_profile
from fimoda_lib.experiments.settings import panel_letter
from fimoda_lib.methods import MethodDiverged
from fimoda_lib.paper.over_horizons import log_weights
from fimoda_lib.plots.published import published_points
from fimoda_lib.storage.provenance import code_version
from fimoda_lib.tasks import take

DEPTHS = (200, 1000, 5000)


def ekfac() -> dict[str, dict]:
    """kronfluence's own default is 1e-8; its heuristic is "recommended"."""
    dampings = {"a tenth of the mean eigenvalue": {}, **{f"{d:g}": {"damping": d} for d in (1e-8, 1e-5, 1e-3, 1e-1)}}
    return {
        f"damping {name}, {fisher} Fisher": {**damping, "fisher": fisher}
        for name, damping in dampings.items()
        for fisher in ("true", "empirical")
    }


def trak() -> dict[str, dict]:
    """traker knows no regression: without the derivative of the loss in the output, scores have arbitrary signs."""
    found = {}
    for size in (128, 512, 2048, 8192):
        for name, more in {"plain": {}, "weighted": {"weighted": True}, "ridge 1": {"ridge": 1.0}}.items():
            if size > 512 and name != "ridge 1":
                continue  # more columns than rows: there is no inverse without a ridge
            found[f"{size} columns, {name}"] = {"dimension": size, **more}
    sides = {"test": ["test"], "training": ["train"], "test and training": ["test", "train"]}
    signs = {
        f"{name}, no loss slope at {side} instances": {**h, "without": without}
        for name, h in found.items()
        for side, without in sides.items()
    }
    return found | signs


def lissa(multiples: tuple[float, ...], **more: float | str) -> dict[str, dict]:
    chosen = {f"λ₀ x {m:g}, depth {d}": {"multiple": m, "depth": d, **more} for d in DEPTHS for m in multiples}
    one = {f"λ₀ x {multiples[-1]:g}, batches of one": {"multiple": multiples[-1], "batch_size": 1, **more}}
    every = {f"λ₀ x {multiples[-1]:g}, all instances": {"multiple": multiples[-1], "batch_size": None, "depth": 200}}
    return chosen | one | {name: {**more, **hyper} for name, hyper in every.items()}


SETTINGS: dict[tuple[str, str], Callable[[], dict[str, dict]]] = {
    ("energy", "ekfac"): ekfac,
    ("energy", "trak"): trak,
    ("energy", "lissa_h"): lambda: lissa((1, 10, 100, 1000), dtype="float32"),
    ("folktables", "ekfac"): ekfac,
    ("folktables", "lissa"): lambda: lissa((0.1, 1, 10, 100), dtype="float32"),
    ("folktables", "lissa_h"): lambda: lissa((1, 100), dtype="float32"),
}


def scores_of(panel: Panel, method: str, hyper: dict) -> xr.DataArray:
    """Scores with these settings; "without" divides by the slope of the loss at test or training instances."""
    s = panel.settings
    rows = {"train": s.left_out, "test": s.test, "curvature": s.curvature}
    asked = {k: v for k, v in hyper.items() if k != "without"}
    found = attribute(method, panel.task, panel.params, **rows, **asked)
    for side in hyper.get("without", ()):
        found = found / slopes(panel, side)
    return found


def slopes(panel: Panel, side: str) -> xr.DataArray:
    """f - y of every test or left-out instance (regression): half of the loss's derivative."""
    s = panel.settings
    rows = {"test": s.test, "train": s.left_out}[side]
    inputs, targets = take(getattr(panel.task, side), torch.tensor(rows))
    with torch.no_grad():
        outputs = torch.func.functional_call(panel.task.model, panel.params, (inputs,))
    return xr.DataArray((outputs.flatten() - targets.flatten()).numpy(), dims=side, coords={side: list(rows)})


def row_of(panel: Panel, method: str, setting: str, hyper: dict, measured: xr.DataArray) -> dict:
    """How near the curve with these settings comes to the published one."""
    points = published_points(f"2{panel_letter(panel.dataset)}", panel.dataset)
    points = points[points.method == method].sort_values("x")
    started, head = time.perf_counter(), {"dataset": panel.dataset, "method": method, "setting": setting}
    try:
        scores = scores_of(panel, method, hyper)
    except MethodDiverged:
        return {**head, "outcome": "diverged", "commit": code_version()}
    curve = similarity(scores, measured)["mean"].values
    ours = np.interp(np.log(points.x), np.log(measured["epoch"].values), curve)
    weights = log_weights(points.x.values)
    numbers = {
        "first": ours[0],
        "published_first": points.value.iloc[0],
        "last": ours[-1],
        "published_last": points.value.iloc[-1],
        "distance": np.sqrt(np.average((ours - points.value) ** 2, weights=weights)),
        "seconds": time.perf_counter() - started,
    }
    return {**head, "outcome": "finished", **numbers, "commit": code_version()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, help="folder of a finished run")
    options.add_argument("--out", required=True, help="CSV file, which grows")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--datasets", nargs="+", default=["energy", "folktables"])
    options.add_argument("--methods", nargs="+", default=["ekfac", "trak", "lissa", "lissa_h"])
    options.add_argument("--of-many", type=int, help="instances in the curvature of large data, if not the profile's")
    chosen = options.parse_args()
    if chosen.of_many:
        PROFILES[chosen.profile] = replace(get_profile(chosen.profile), of_many=chosen.of_many)
    table = pd.read_csv(chosen.out) if Path(chosen.out).exists() else pd.DataFrame(columns=["dataset"])
    for (dataset, method), settings in SETTINGS.items():
        if dataset not in chosen.datasets or method not in chosen.methods:
            continue
        panel = Panel(dataset, chosen.profile, results=chosen.results, compute=False)
        measured = sensitivity(panel.gold)
        for setting, hyper in settings().items():
            key = {"dataset": dataset, "method": method, "setting": setting}
            if len(table) and (table[[*key]] == pd.Series(key)).all(axis=1).any():
                continue
            row = pd.DataFrame([row_of(panel, method, setting, hyper, measured)])
            table = pd.concat([table, row]) if len(table) else row
            table.round(4).to_csv(chosen.out, index=False)
            print(row.round(3).to_string(header=False, index=False), flush=True)


if __name__ == "__main__":
    main()
