"""Linearised further training with Adam on tables: the whole Hessian against G alone, and the exact derivative.

    python benchmarks/lft_with_adam.py --results DIR --data DIR [--profile laptop] [--datasets energy concrete]

Reads the gold standard and LFT's scores of a run and computes what is missing. Writes `lft_with_adam.csv` beside this
file: dataset, scores, epoch, similarity, seeds, tests, commit. Scores are LFT's with the "whole" Hessian, with G
"alone", and, for ten test instances and five horizons, the "exact" derivative of further training with softened kinks
(the mean of two runs), next to LFT's for "those" test instances. No setting is chosen here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fimoda_lib import attribute, sensitivity, similarity
from fimoda_lib.experiments.exact_derivative import exact_derivative
from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.profiles import PROFILES, get_profile
from fimoda_lib.storage.provenance import code_version


def rows_of(dataset: str, profile: str, results: str, data: str | None) -> pd.DataFrame:
    panel = Panel(dataset, profile, "adam", results=results, data_dir=data)
    s, measured = panel.settings, sensitivity(panel.gold)
    alone = attribute("lft", panel.task, panel.params, train=s.left_out, test=s.test, **panel.hyper("lft", many=True))
    exact = exact_derivative(panel).dropna("horizon")  # where no run diverged
    some = measured.sel(step=exact["horizon"].values, test=exact["test"].values)
    whole, tables = panel.scores("lft"), []
    of = {"whole": (whole, measured), "alone": (alone, measured), "exact": (exact, some)}
    of["those"] = whole.sel(horizon=some["step"].values, test=some["test"].values), some
    for name, (scores, true) in of.items():
        curve = similarity(scores, true)["mean"]
        table = pd.DataFrame({"epoch": curve["epoch"].values, "similarity": curve.values.round(4)})
        tables.append(table.assign(dataset=dataset, scores=name, seeds=len(s.seeds), tests=true.sizes["test"]))
    return pd.concat(tables).assign(commit=code_version())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, metavar="DIR")
    options.add_argument("--data", metavar="DIR")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--datasets", nargs="+", default=["energy", "concrete"])
    chosen = options.parse_args()
    PROFILES[chosen.profile] = replace(get_profile(chosen.profile), exact_tests=10, exact_seeds=2)
    tables = [rows_of(name, chosen.profile, chosen.results, chosen.data) for name in chosen.datasets]
    table = pd.concat(tables)[["dataset", "scores", "epoch", "similarity", "seeds", "tests", "commit"]]
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    print(table.pivot(index=["dataset", "epoch"], columns="scores", values="similarity").iloc[::8].to_string())


if __name__ == "__main__":
    main()
