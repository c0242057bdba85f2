"""The exact derivative of further training for a few test instances and horizons: a yardstick for linear methods.

Each horizon is a run of its own there and back (`adjoints`); as horizons lie evenly on a log axis, all of them together
cost little more than the last.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..derivatives.adjoints import adjoint_train
from ..storage.store import cached
from ..training.final_model import TrainingDiverged
from ..training.plans import Plan, specification
from .followed import LFT_SEED
from .panel import Panel
from .profiles import get_profile
from .ranking import some_horizons
from .settings import panel_letter

EXACT = "adjoint"  # its name beside those of methods
HORIZONS = 5
SMALL_ENOUGH = "ab"  # letters of the panels whose data sets are


def is_small_enough(panel: Panel) -> bool:
    """Whether the exact derivative is computed on a panel's data set, if by its profile at all."""
    return panel_letter(panel.dataset) in SMALL_ENOUGH and get_profile(panel.profile).exact_tests > 0


def exact_derivative(panel: Panel) -> xr.DataArray | None:
    """The derivative of test losses with respect to the removed weight of every training instance, kinks softened.

    Computed in float64 and kept. Its runs have seeds of their own, as those of LFT: sharing a seed with the gold
    standard, it would share the noise by which that is off.

    Returns:
        scores [horizon, test, train], positive = helpful, mean over seeds, for `exact_tests` of the profile and five
        of the panel's horizons, first and last among them, NaN at those where a run diverged; None for a data set that
        is too large, or a profile that has none.
    """
    if not is_small_enough(panel):
        return None
    further, profile = panel.settings.further, get_profile(panel.profile)
    test = panel.settings.test[: profile.exact_tests]
    seeds = range(LFT_SEED, LFT_SEED + profile.exact_seeds)
    horizons = some_horizons(panel, HORIZONS)
    double = {k: v.double() for k, v in panel.params.items()}
    plan = Plan(further.rule, further.batch_size, further.epochs, "mask", 1.0, (), test, tuple(horizons))
    spec = {**specification(panel.task, double, plan), "seeds": [*seeds], "kind": EXACT, "kinks": "softened"}
    run = {k: v for k, v in further.arguments().items() if k not in ("epochs", "evaluate")}

    def one(seed: int, horizon: int) -> np.ndarray:
        chosen = {"seed": seed, "horizon": horizon, "test": test, "kinks": "softened"}
        try:
            return adjoint_train(panel.task, double, **run, **chosen, progress=panel.compute).values
        except TrainingDiverged:  # the other horizons tell something
            return np.full((len(test), panel.task.n_train), np.nan)

    def compute() -> xr.Dataset:
        values = np.mean([[one(seed, horizon) for horizon in horizons] for seed in seeds], axis=0)
        rows = {"horizon": horizons, "test": [*test], "train": range(panel.task.n_train)}
        return xr.DataArray(values, rows, ("horizon", "test", "train")).to_dataset(name="scores")

    name = f"{EXACT}-{panel.dataset}-{further.optimizer}"
    return cached(panel.folder, name, spec, compute, compute_missing=panel.compute)["scores"]
