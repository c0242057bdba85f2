"""Rectified units on images: what does the derivative with softened kinks predict, the run itself, or the mean of many?

    python benchmarks/rectified_images.py --results DIR [--data DIR] [--datasets digit_images cifar10] [--seeds 50]
                                          [--left-out 8] [--widths .001 .01]

The panel's small net with ReLU in place of smooth units, `subtract`, 100 steps of further training. Differences of runs
over many seeds, in float64, against exact tangents: between kinks, and with softened ones (as wide as pre-activations
have moved, "moved", or constant, in units of their spread). Writes `rectified_images.csv` beside this file, a row per
data set, step and derivative, with cosines (mean adjustment, over test instances):

* itself: tangents along the run of seed 0, to the difference of the runs of that seed (the first-order limit);
* mean: tangents along a few other runs, averaged, to the mean over all seeds; single: to single seeds, on average;
* ceiling, ceiling_single: the noise ceilings of both;
* after each of `itself` and `mean`, `_pm` is half of its 95 % interval over test instances, `_gain` what it has above
  the tangents between kinks, paired, and `_gain_pm` half of that one's interval.

Finished runs are kept in DIR.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from fimoda_lib import noise_ceiling, sensitivity
from fimoda_lib.comparison import instance_similarity, seed_agreement
from fimoda_lib.experiments.followed import LFT_SEED
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.studies import stored_tangents, with_units
from fimoda_lib.paper.rules import NORMAL
from fimoda_lib.storage.provenance import code_version
from fimoda_lib.training.further_training import further_train
from fimoda_lib.training.minibatches import steps_per_epoch

STEPS = (1, 2, 5, 10, 20, 50, 100)
TESTED = 50
RUNS = 3  # averaged, with seeds of their own


def cosines(derivative: xr.Dataset, gold: xr.Dataset) -> np.ndarray:
    """[step, test] between what two sets of runs say of the sensitivity to the left-out instances."""
    scores = sensitivity(derivative).rename(left_out="train", step="horizon").reset_coords(drop=True)
    return instance_similarity(scores, sensitivity(gold)).transpose("step", "test").fillna(0.0).values


def summary(name: str, values: np.ndarray, between: np.ndarray) -> dict[str, np.ndarray]:
    """Means over test instances and halves of their 95 % intervals, of cosines and of what they gain."""
    columns = {}
    for suffix, found in (("", values), ("_gain", values - between)):
        columns[f"{name}{suffix}"] = found.mean(1)
        columns[f"{name}{suffix}_pm"] = NORMAL * found.std(1, ddof=1) / np.sqrt(found.shape[1])
    return columns


def measured(panel: Panel, seeds: int, left_out: int, widths: list[float]) -> pd.DataFrame:
    s, epochs = panel.settings, -(-STEPS[-1] // steps_per_epoch(panel.task.n_train, panel.settings.further.batch_size))
    further = replace(s.further, epochs=epochs, evaluate=STEPS)
    common: dict[str, Any] = {**further.arguments(), "removal": "subtract", "test": s.test[:TESTED]}
    common["left_out"] = s.left_out[:: max(len(s.left_out) // left_out, 1)][:left_out]
    double = {k: p.double() for k, p in panel.params.items()}
    gold = further_train(panel.task, double, seeds=range(seeds), store=panel.folder, **common)
    alone = [gold.isel(seed=[k]) for k in range(seeds)]
    ceilings = {
        "ceiling": noise_ceiling(gold, "mean", "variances").values,
        "ceiling_single": np.sqrt(seed_agreement(gold, "mean", "variances").values),
    }
    kinds = {"between": {"kinks": "between"}, "moved": {"kinks": "softened"}}
    kinds |= {f"{w:g}": {"kinks": "softened", "width": w} for w in widths}
    tables: list[pd.DataFrame] = []
    for name, kinks in kinds.items():
        own, others = (
            stored_tangents(panel, double, further, {**common, "seeds": [*chosen]}, **kinks)
            for chosen in (range(1), range(LFT_SEED, LFT_SEED + RUNS))
        )
        itself, mean = cosines(own, alone[0]), cosines(others, gold)
        if name == "between":
            without = itself, mean
        table = summary("itself", itself, without[0]) | summary("mean", mean, without[1])
        table["single"] = np.mean([cosines(others, one) for one in alone], (0, 2))
        tables.append(pd.DataFrame({"step": STEPS, "kinks": name, **table, **ceilings}))
        print(f"{panel.title}\n{tables[-1].round(3).to_string(index=False)}", flush=True)
    found = pd.concat(tables).round(4)
    found.insert(0, "dataset", panel.dataset)
    return found.assign(seeds=seeds, left_out=len(common["left_out"]), tests=len(common["test"]), commit=code_version())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, help="folder of stored results")
    options.add_argument("--data", help="folder of data files")
    options.add_argument("--datasets", nargs="+", default=["digit_images", "cifar10"])
    options.add_argument("--seeds", type=int, default=50)
    options.add_argument("--left-out", type=int, default=8)
    options.add_argument("--widths", nargs="+", type=float, default=[0.001, 0.01])
    chosen, out = options.parse_args(), Path(__file__).with_suffix(".csv")
    for dataset in chosen.datasets:
        panel = with_units(Panel(dataset, "overnight", results=chosen.results, data_dir=chosen.data), nn.ReLU)
        found = measured(panel, chosen.seeds, chosen.left_out, chosen.widths)
        try:
            earlier = pd.read_csv(out, dtype={"kinks": str})
            found = pd.concat([earlier[earlier.dataset != dataset], found])
        except FileNotFoundError:
            pass
        found.to_csv(out, index=False)


if __name__ == "__main__":
    main()
