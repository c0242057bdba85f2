"""LFT's settings for rectified units, chosen on data sets that are not the paper's.

    python benchmarks/choose_width.py --results DIR --out FILE.csv [--datasets wine] [--optimizers sgd adam]
        [--widths between .001 .3x 1x] [--rates 1 10] [--products 80] [--floors .03] [--segments 1] [--runs 1]
        [--seeds 6] [--left-out 20]

For diabetes, wine, breast cancer and digits: further training at full length with several seeds, without each of some
instances (`mask`, whose mean over seeds is that of `drop`, with less noise); then LFT along runs with other seeds. A
row per setting: cosine to the mean over seeds (mean adjustment), averaged over horizons evenly on a log axis, first,
lowest, last; the noise ceiling; and which commit it was. A width is a share of the spread of pre-activations (.001), or
of how far they have moved (1x, see `kinks.widen`); "between" is the derivative between kinks, "without" LFT with G
alone. Rows that the file has are not computed again.

What was chosen, by the mean over horizons along a single run (choose_width.csv; `docs/beyond.md` has the tables): kinks
as wide as pre-activations have moved. The best constant depends on how far a run moves them, and a share of the
movement does not. Wine, diabetes and digits cannot tell widths apart. With Adam widths hardly matter anywhere; nor do,
on breast cancer and diabetes, one segment or three in place of ten, or a floor of .01 or .1 in place of .03. Products
of few instances miss kinks where a run moves far (breast cancer at ten times its rate), and digits do as well with 512
instances as with all: panels take 1,024.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import xarray as xr

from fimoda_lib import attribute
from fimoda_lib.derivatives import adam, kinks
from fimoda_lib.experiments.followed import LFT_SEED
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper.over_horizons import in_short
from fimoda_lib.storage.provenance import code_version

DATASETS = ("wine", "breast_cancer", "diabetes", "digits")
WIDTHS = ("without", "between", "0.0003", "0.001", "0.003", "0.01", "0.3x", "1x", "3x")
TESTED = 50  # at most so many test instances
SETTING = ("width", "products", "sample", "segments", "floor")
KEY = ["dataset", "optimizer", "rate", "steps", "left_out", *SETTING, "runs"]


def panel_of(dataset: str, optimizer: str, results: str, seeds: int, left_out: int, rate: float) -> Panel:
    """The data set's panel with so many seeds and left-out instances, and so many times its learning rate."""
    panel = Panel(dataset, "overnight", optimizer, results=results)
    s = panel.settings
    some = s.left_out[:: -(-len(s.left_out) // left_out)]
    further = replace(s.further, learning_rate=s.further.learning_rate * rate)
    small = replace(s, further=further, seeds=tuple(range(seeds)), left_out=some, test=s.test[:TESTED], removal="mask")
    return replace(panel, given_settings=small)


def scores_along(panel: Panel, seed: int, width: str, products: int, sample: int, segments: int) -> xr.DataArray:
    """LFT's scores along the run with this seed."""
    s, given = panel.settings, panel.hyper("lft")
    horizon, along = given["horizon"], {**given["further_training"], "seed": seed}
    how = {"mode": "split", "products": products, "sample": sample, "dtype": "float32"}
    if width == "without":
        how = {}
    elif width == "between":
        how |= {"kinks": "between"}
    elif width.endswith("x"):
        kinks.SHARE = float(width[:-1])
    else:
        how |= {"width": float(width)}
    rows = {"train": s.left_out, "test": s.test, "curvature": s.curvature}
    return attribute(
        "lft", panel.task, panel.params, horizon=horizon, further_training=along, segments=segments, **rows, **how
    )


def head(panel: Panel, rate: float) -> dict:
    steps = panel.hyper("timed")["horizon"][-1]
    of_panel = {"dataset": panel.dataset, "optimizer": panel.optimizer, "rate": rate, "steps": steps}
    return {**of_panel, "left_out": len(panel.settings.left_out)}


def rows_of(panel: Panel, rate: float, setting: dict, runs: int) -> list[dict]:
    """A row for the mean of one, two, ... runs."""
    gold, total, seconds, rows = panel.gold, 0.0, 0.0, []
    kinks.FLOOR = adam.FLOOR = setting["floor"]
    for run in range(runs):
        started = time.perf_counter()
        total = total + scores_along(panel, LFT_SEED + run, **{k: v for k, v in setting.items() if k != "floor"})
        seconds += time.perf_counter() - started
        numbers = {**in_short(total / (run + 1), gold), "seconds": seconds}
        rows.append({**head(panel, rate), **setting, "runs": run + 1, **numbers, "seeds": gold.sizes["seed"]})
    return [{**row, "commit": code_version()} for row in rows]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, help="folder for further training")
    options.add_argument("--out", required=True, help="CSV file, which grows")
    options.add_argument("--datasets", nargs="+", default=DATASETS)
    options.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    options.add_argument("--widths", nargs="+", default=WIDTHS, help="of kinks: shares such as .001 or 1x")
    options.add_argument("--products", nargs="+", type=int, default=[80])
    options.add_argument("--samples", nargs="+", type=int, default=[4096])
    options.add_argument("--floors", nargs="+", type=float, default=[kinks.FLOOR], help="of Adam's denominator")
    options.add_argument("--segments", nargs="+", type=int, default=[1])
    options.add_argument("--runs", type=int, default=1)
    options.add_argument("--seeds", type=int, default=6)
    options.add_argument("--left-out", type=int, default=20)
    options.add_argument("--rates", nargs="+", type=float, default=[1.0], help="factors on the learning rate")
    chosen = options.parse_args()
    table = pd.read_csv(chosen.out, dtype={"width": str}) if Path(chosen.out).exists() else pd.DataFrame(columns=KEY)
    grid = itertools.product(chosen.widths, chosen.products, chosen.samples, chosen.segments, chosen.floors)
    settings = [dict(zip(SETTING, values, strict=True)) for values in grid]
    for optimizer, dataset, rate in itertools.product(chosen.optimizers, chosen.datasets, chosen.rates):
        panel = panel_of(dataset, optimizer, chosen.results, chosen.seeds, chosen.left_out, rate)
        for setting in settings:
            key = head(panel, rate) | setting
            if (table[[*key]] == pd.Series(key)).all(axis=1).sum() >= chosen.runs:
                continue
            found = pd.DataFrame(rows_of(panel, rate, setting, chosen.runs))
            table = pd.concat([table, found]) if len(table) else found
            table = table.drop_duplicates(KEY, keep="last").sort_values(KEY)
            table.round(4).to_csv(chosen.out, index=False)
            print(found.tail(1).round(3).to_string(header=False), flush=True)


if __name__ == "__main__":
    main()
