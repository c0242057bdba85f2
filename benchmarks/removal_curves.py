"""Removal curves of many test instances, over a fifth of the horizon, with what each method's choice does beside LFT's.

    python benchmarks/removal_curves.py --results DIR --data DIR --out FILE.csv [--profile laptop] [--tests 50]
                                        [--datasets energy concrete]

The figure of a profile for two cores has few test instances, for every one of them takes some seventy runs of further
training; here they are as many as the paper's idea needs, on the data sets where a run costs least. A row per data set,
method, direction and share: the change of the test instances' losses where what the method chose for each was left out
(mean, 95 % interval by bootstrap over test instances), and that change less the one by LFT made for the same horizon,
paired. Finished runs are kept in DIR.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pandas as pd

from fimoda_lib.experiments.panel import Panel
from fimoda_lib.experiments.profiles import PROFILES, get_profile
from fimoda_lib.experiments.removal_curves import KEYS, curve_draws, curve_runs, what_is_removed
from fimoda_lib.storage.provenance import code_version


def rows(panel: Panel) -> pd.DataFrame:
    """One row per point of the curves, after the last step."""
    draws, runs = {key: values[:, -1] for key, values in curve_draws(panel).items()}, curve_runs(panel)
    last = float(runs.step[-1])
    found = []
    for key, values in draws.items():
        point = dict(zip(KEYS, key, strict=True))
        row = {"dataset": panel.dataset, **point, "after_step": int(last), **interval("change", "", values)}
        if (lft := draws.get(("lft", last, point["direction"], point["share"]))) is not None:
            row |= interval("less_lft", "less_", values - lft)
        found.append(row)
    return pd.DataFrame(found).assign(
        tests=runs.sizes["test"], seeds=runs.sizes["seed"], groups=runs.sizes["left_out"], commit=code_version()
    )


def interval(name: str, prefix: str, draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return {name: draws[0], f"{prefix}low": low, f"{prefix}high": high}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", required=True, help="folder of stored results")
    options.add_argument("--data", help="folder of data files")
    options.add_argument("--out", required=True, help="CSV file; data sets that are in it already are replaced")
    options.add_argument("--profile", default="laptop")
    options.add_argument("--tests", type=int, default=50, help="test instances")
    options.add_argument("--datasets", nargs="+", default=["energy", "concrete"])
    chosen = options.parse_args()
    many = replace(get_profile(chosen.profile), explained=chosen.tests, curves=chosen.tests)
    PROFILES[chosen.profile] = many
    for dataset in chosen.datasets:
        panel = Panel(dataset, chosen.profile, results=chosen.results, data_dir=chosen.data)
        found = rows(panel)
        print(f"{panel.title}: {what_is_removed(panel)}\n{found.round(4).to_string(index=False)}", flush=True)
        try:
            earlier = pd.read_csv(chosen.out)
            found = pd.concat([earlier[earlier.dataset != dataset], found], ignore_index=True)
        except FileNotFoundError:
            pass
        found.to_csv(chosen.out, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
