"""What products of the whole Hessian, and more runs, gain for LFT: on tables, and on a fine-tuned encoder of text.

    python benchmarks/lft_runs.py --results DIR --data DIR [--profile laptop] [--datasets concrete sst2]
        [--optimizers sgd adam] [--runs 4]

Reads the gold standard of a run of this profile, and scores its left-out instances for its test instances along several
runs with seeds of their own: LFT with G alone, as panels have it ("alone"), and with the whole Hessian ("whole"), along
the first run and averaged over the first two, three, ... Panels of text have G alone; here their Hessian is followed in
EK-FAC's eigenbasis with `--products` products for each run, each of `--sample` training instances, in batches as the
run's. Writes `lft_runs.csv` beside this file, a row for each panel, Hessian and number of runs: similarity averaged
over horizons evenly on a log axis, first, lowest, last; the noise ceiling, averaged; seconds of one thread, and of one
seed of the gold standard; left-out instances, test instances, seeds, products, sample, profile, commit. That
panels follow one run, and text G alone, rests on this.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import xarray as xr

from fimoda_lib import attribute
from fimoda_lib.experiments.followed import LFT_SEED, curved, followed
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.paper.over_horizons import in_short
from fimoda_lib.storage.provenance import code_version

OUT = Path(__file__).with_suffix(".csv")
KEY = ["profile", "dataset", "optimizer", "hessian", "runs"]


def of_text(products: int, sample: int) -> dict:
    return {"mode": "split", "backend": "ekfac", "products": products, "sample": sample, "dtype": "float32"}


def variants(panel: Panel, products: int, sample: int) -> dict[str, dict]:
    """Hessian -> hyper-parameters of LFT."""
    s, n = panel.settings, panel.task.n_train
    alone, whole = (followed(s, n, single=panel.large, whole=w, timed=False) for w in (False, True))
    if s.lft_products is None:
        whole = alone | of_text(products, sample)
        whole["further_training"] = {**whole["further_training"], "removal": s.removal}
    return {"alone": alone, "whole": whole}


def averaged(panel: Panel, hyper: dict, runs: int) -> Iterator[tuple[int, xr.DataArray, float]]:
    """Of G alone, which averages outputs: runs, scores, seconds. Of the whole Hessian the same for one run and for the
    means of two, three, ..."""
    s = panel.settings
    rows = {"train": s.left_out, "test": s.test, "curvature": curved(s, panel.task.n_train, hyper)}
    split, total, seconds = hyper.get("mode") == "split", 0.0, 0.0
    for k in range(runs if split else 1):
        changed = {"runs": 1, "further_training": {**hyper["further_training"], "seed": LFT_SEED + k}} if split else {}
        started = time.perf_counter()
        total = total + attribute("lft", panel.task, panel.params, **rows, **hyper | changed)
        seconds += time.perf_counter() - started
        yield (k + 1, total / (k + 1), seconds) if split else (hyper["runs"], total, seconds)


def rows_of(panel: Panel, runs: int, products: int, sample: int) -> Iterator[dict]:
    s, gold = panel.settings, panel.gold
    for name, hyper in variants(panel, products, sample).items():
        for count, scores, seconds in averaged(panel, hyper, runs):
            yield {
                **{"profile": panel.profile, "dataset": panel.dataset, "optimizer": panel.optimizer},
                **{"hessian": name, "runs": count},
                **{k: v for k, v in in_short(scores, gold).items() if k != "ceiling_last"},
                **{"seconds": seconds, "seed_seconds": float(gold.seconds.mean())},
                **{"left_out": len(s.left_out), "tests": len(s.test)},
                **{"seeds": len(s.seeds), "products": hyper.get("products", 0), "sample": hyper.get("sample", 0)},
                "commit": code_version(),
            }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, metavar="DIR")
    options.add_argument("--data", metavar="DIR")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--datasets", nargs="+", default=["concrete", "energy", "fico", "sst2"])
    options.add_argument("--optimizers", nargs="+", default=["sgd"], help="of tables; images and text have their own")
    options.add_argument("--runs", type=int, default=2)
    options.add_argument("--products", type=int, default=16, help="for each run, where panels have none")
    options.add_argument("--sample", type=int, default=128, help="training instances in each of these")
    options.add_argument("--out", default=OUT, type=Path, help="CSV file, whose rows of the same settings are replaced")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    for dataset, optimizer in itertools.product(chosen.datasets, chosen.optimizers):
        panel = Panel(dataset, chosen.profile, optimizer, results=chosen.results, data_dir=chosen.data, compute=False)
        for row in rows_of(panel, chosen.runs, chosen.products, chosen.sample):
            print(pd.Series(row).to_frame().T.to_string(header=False), flush=True)
            found = pd.DataFrame([row]).round(4)
            if chosen.out.exists():
                found = pd.concat([pd.read_csv(chosen.out), found])
            found.drop_duplicates(KEY, keep="last").sort_values(KEY).to_csv(chosen.out, index=False)


if __name__ == "__main__":
    main()
