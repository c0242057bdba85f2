"""Linearised further training with Adam on the paper's tables: the whole Hessian against G alone, on one gold standard.

    python benchmarks/lft_with_adam.py --results DIR --data DIR [--profile laptop] [--datasets energy concrete]

Reads the gold standard and LFT's scores of a run, computes those with G alone, and writes `lft_with_adam.csv` beside
this file: dataset, scores ("whole" or "alone"), epoch, similarity, seeds, commit. No setting is chosen here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from fimoda_lib import attribute, sensitivity, similarity
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.storage.provenance import code_version


def rows_of(dataset: str, profile: str, results: str, data: str | None) -> pd.DataFrame:
    panel = Panel(dataset, profile, "adam", results=results, data_dir=data)
    s, measured = panel.settings, sensitivity(panel.gold)
    alone = attribute("lft", panel.task, panel.params, train=s.left_out, test=s.test, **panel.hyper("lft", many=True))
    tables = []
    for name, scores in (("whole", panel.scores("lft")), ("alone", alone)):
        curve = similarity(scores, measured)["mean"]
        table = pd.DataFrame({"epoch": curve["epoch"].values, "similarity": curve.values.round(4)})
        tables.append(table.assign(dataset=dataset, scores=name, seeds=len(s.seeds), commit=code_version()))
    return pd.concat(tables)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, metavar="DIR")
    options.add_argument("--data", metavar="DIR")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--datasets", nargs="+", default=["energy", "concrete"])
    chosen = options.parse_args()
    tables = [rows_of(name, chosen.profile, chosen.results, chosen.data) for name in chosen.datasets]
    table = pd.concat(tables)[["dataset", "scores", "epoch", "similarity", "seeds", "commit"]]
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(table.pivot(index=["dataset", "epoch"], columns="scores", values="similarity").iloc[::8].to_string())


if __name__ == "__main__":
    main()
