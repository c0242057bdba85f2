"""LFT's settings for rectified units, chosen on data sets that are not the paper's.

    python benchmarks/choose_width.py --results DIR --out FILE.csv [--datasets wine] [--optimizers sgd adam]
        [--widths 0 .01] [--products 120] [--floors .03] [--segments 1] [--runs 1] [--seeds 10] [--left-out 30]

For diabetes, wine, breast cancer and digits: further training at full length with several seeds, without each of some
instances (`mask`, whose mean over seeds is that of `drop`, with less noise); then LFT along runs with other seeds. A
row per setting: cosine to the mean over seeds (mean adjustment), averaged over horizons evenly on a log axis, first,
lowest, last; the noise ceiling; and which commit it was. Width 0 is the derivative between kinks; products 0 is LFT
with G alone. Rows that the file has are not computed again.

What was chosen, by the mean over horizons along a single run, and among equals (within .005) by the last horizon
(choose_width.csv): width .001 of the spread of pre-activations, whatever the number of instances: the four data sets do
not ask for more than a constant. SGD, breast cancer: .915 for .0003, .911 for .001, .891 for .003, .872 for .01, .866
for .03; .862 between kinks, .860 with G alone; at the end .0003 falls below .001. Wine cannot tell widths from .001 to
.01 apart (.930; G alone .929), but .0003 falls to .84 at the end where they reach .97. Diabetes cannot tell anything
apart (.989), and digits have .974 (.971 with G alone).
Adam needs its preconditioner anew, ten times along the run: breast cancer .893 in ten segments, for .001, with G alone
.874; diabetes .965 and .968; on wine the seeds do not agree. The floor of its denominator does not matter (.893, .893
and .894 for .01, .03 and .1). Digits as images, products of 256 instances: .933 at the end, with G alone .824.
Sentences: the ceiling of two seeds is too low to tell, and it costs six times as much, so text keeps G alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from fimoda_lib import attribute, noise_ceiling, sensitivity, similarity
from fimoda_lib.derivatives import kinks, whole_hessian
from fimoda_lib.experiments.followed import LFT_SEED
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper.over_horizons import log_weights
from fimoda_lib.storage.provenance import code_version

DATASETS = ("wine", "breast_cancer", "diabetes", "digits")
TESTED = 50  # at most so many test instances
SETTING = ("width", "products", "sample", "segments", "floor")
KEY = ["dataset", "optimizer", "steps", "left_out", *SETTING, "runs"]


def panel_of(dataset: str, optimizer: str, results: str, seeds: int, left_out: int, share: float) -> Panel:
    """The data set's panel with so many seeds and left-out instances, and a share of its epochs."""
    panel = Panel(dataset, "overnight", optimizer, results=results)
    s = panel.settings
    some = s.left_out[:: -(-len(s.left_out) // left_out)]
    small = replace(s, seeds=tuple(range(seeds)), left_out=some, test=s.test[:TESTED], removal="mask")
    if share != 1:
        further = s.further.scaled(share)
        small = replace(small, further=further.within(further.epochs * -(-panel.task.n_train // further.batch_size)))
    return replace(panel, given_settings=small)


def scores_along(panel: Panel, seed: int, width: float, products: int, sample: int, segments: int) -> xr.DataArray:
    """LFT's scores along the run with this seed."""
    s, given = panel.settings, panel.hyper("lft")
    horizon, along = given["horizon"], {**given["further_training"], "seed": seed}
    how = {"mode": "split", "kinks": "softened", "width": width, "products": products, "sample": sample}
    how |= {"dtype": "float32"}
    if width == 0:
        how |= {"kinks": "between", "width": None}
    if products == 0:
        how = {}
    rows = {"train": s.left_out, "test": s.test, "curvature": s.curvature}
    return attribute(
        "lft", panel.task, panel.params, horizon=horizon, further_training=along, segments=segments, **rows, **how
    )


def head(panel: Panel) -> dict:
    steps = panel.hyper("timed")["horizon"][-1]
    of_panel = {"dataset": panel.dataset, "optimizer": panel.optimizer, "steps": steps}
    return {**of_panel, "left_out": len(panel.settings.left_out)}


def rows_of(panel: Panel, setting: dict, runs: int) -> list[dict]:
    """A row for the mean of one, two, ... runs."""
    gold, total, seconds, rows = panel.gold, 0.0, 0.0, []
    kinks.FLOOR = whole_hessian.FLOOR = setting["floor"]
    measured, ceiling = sensitivity(gold), noise_ceiling(gold, "mean", "variances")
    weights = log_weights(gold["step"].values.astype(float))
    for run in range(runs):
        started = time.perf_counter()
        total = total + scores_along(panel, LFT_SEED + run, **{k: v for k, v in setting.items() if k != "floor"})
        seconds += time.perf_counter() - started
        curve = similarity(total, measured)["mean"].values
        numbers = {
            "mean": np.average(curve, weights=weights),
            "first": curve[0],
            "lowest": curve.min(),
            "last": curve[-1],
            "ceiling": np.average(ceiling, weights=weights),
            "ceiling_last": float(ceiling[-1]),
            "seconds": seconds,
        }
        rows.append({**head(panel), **setting, "runs": run + 1, **numbers, "seeds": gold.sizes["seed"]})
    return [{**row, "commit": code_version()} for row in rows]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, help="folder for further training")
    options.add_argument("--out", required=True, help="CSV file, which grows")
    options.add_argument("--datasets", nargs="+", default=DATASETS)
    options.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    options.add_argument("--widths", nargs="+", type=float, default=[0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
    options.add_argument("--products", nargs="+", type=int, default=[120])
    options.add_argument("--samples", nargs="+", type=int, default=[4096])
    options.add_argument("--floors", nargs="+", type=float, default=[kinks.FLOOR], help="of Adam's denominator")
    options.add_argument("--segments", nargs="+", type=int, default=[1])
    options.add_argument("--runs", type=int, default=1)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--left-out", type=int, default=30)
    options.add_argument("--share", type=float, default=1.0, help="of the epochs of further training")
    chosen = options.parse_args()
    table = pd.read_csv(chosen.out) if Path(chosen.out).exists() else pd.DataFrame(columns=KEY)
    grid = itertools.product(chosen.widths, chosen.products, chosen.samples, chosen.segments, chosen.floors)
    settings = [dict(zip(SETTING, values, strict=True)) for values in grid]
    for optimizer, dataset in itertools.product(chosen.optimizers, chosen.datasets):
        panel = panel_of(dataset, optimizer, chosen.results, chosen.seeds, chosen.left_out, chosen.share)
        for setting in settings:
            key = head(panel) | setting
            if (table[[*key]] == pd.Series(key)).all(axis=1).sum() >= chosen.runs:
                continue
            found = pd.DataFrame(rows_of(panel, setting, chosen.runs))
            table = pd.concat([table, found]) if len(table) else found
            table = table.drop_duplicates(KEY, keep="last").sort_values(KEY)
            table.round(4).to_csv(chosen.out, index=False)
            print(found.tail(1).round(3).to_string(header=False), flush=True)


if __name__ == "__main__":
    main()
