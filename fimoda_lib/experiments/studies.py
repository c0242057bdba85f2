"""Beyond the paper: further runs that show where methods that are linear in the removed weight must stop, and why.

Each study is a handful of runs of one data set, computed once and kept, as the pieces of a panel are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import nn

from ..comparison import instance_similarity, seed_agreement, seeds_needed, sensitivity
from ..derivatives.kinks import spreads
from ..derivatives.tangents import tangent_train
from ..storage.store import cached
from ..tasks import Params, take
from ..training.further_training import further_train
from ..training.minibatches import steps_per_epoch
from ..training.plans import Plan, specification
from .panel import Panel
from .paper_settings import EXPERIMENTS, Training
from .profiles import get_profile
from .settings import counted_in_steps, experiment_of, log_epochs

FRACTIONS = (0.1, 0.5, 1.0)  # of an instance's weight
SHORT = 0.2  # of the horizon, where a study needs no more
LONG = 10_000  # steps: data sets with longer runs are studied over a `SHORT` horizon
UNITS = {"ReLU": nn.ReLU, "SiLU": nn.SiLU}  # rectified, and smooth


def first_order_runs(panel: Panel, fractions: Sequence[float] = FRACTIONS) -> xr.Dataset:
    """One seed of further training in several versions, with "mask" or, for images and text, "subtract".

    Where a profile has a smaller model and fewer instances in place of the paper's, steps and weights keep the paper's
    size: its learning rate, and an instance is one of all that the paper trains on.

    Returns:
        `delta[run, seed, left_out, step, test]` per whole weight removed, with runs "tangent" (the exact derivative,
        float64), "0.1", "0.5", "1.0" (differences of float64 runs with that fraction of the weight removed, over the
        fraction) and "float32" (the whole weight, in float32); all else, attributes too, is of the run "1.0".
    """
    further, whole = paper_sized(panel)
    common = study_arguments(panel, further)
    double = {k: v.double() for k, v in panel.params.items()}
    single = {k: v.float() for k, v in panel.params.items()}

    def run(params: Params, fraction: float) -> xr.Dataset:
        gold = further_train(
            panel.task,
            params,
            **common,
            fraction=fraction * whole,
            store=panel.folder,
            compute_missing=panel.compute,
            progress=panel.compute,
        )
        return gold.assign(delta=gold.delta.astype("float64") / fraction)

    runs = {str(f): run(double, f) for f in fractions}
    runs["float32"] = run(single, 1.0)
    tangents = stored_tangents(panel, double, further, common)
    deltas = [gold.delta for gold in runs.values()] + [tangents.delta * whole]
    found = runs["1.0"].drop_vars("delta")
    return found.assign(delta=xr.concat(deltas, dim="run", join="exact").assign_coords(run=[*runs, "tangent"]))


def softened_tangents(panel: Panel) -> xr.Dataset | None:
    """The tangents of `first_order_runs` with softened kinks; None for a smooth model, whose tangents are the same."""
    if not spreads(panel.task, panel.params):
        return None
    further, whole = paper_sized(panel)
    double = {k: v.double() for k, v in panel.params.items()}
    found = stored_tangents(panel, double, further, study_arguments(panel, further), kinks="softened")
    return found.assign(delta=found.delta * whole)


def study_arguments(panel: Panel, further: Training) -> dict:
    """What the runs of a study have in common: one seed, some instances left out."""
    s, some = panel.settings, get_profile(panel.profile).study_left_out
    return {
        **further.arguments(),
        "seeds": [0],
        "left_out": s.left_out[:: max(len(s.left_out) // some, 1)][:some],
        "test": s.test,
        "removal": "mask" if s.removal == "drop" else s.removal,
    }


def paper_sized(panel: Panel) -> tuple[Training, float]:
    """What the studies run: further training with the paper's learning rate, evaluated at about a dozen steps.

    Returns:
        also the share of a training instance's weight that the paper's has: n of this profile over n of the paper's.
    """
    s, here = panel.settings, experiment_of(panel.dataset, panel.profile)
    paper = EXPERIMENTS[panel.dataset].further[s.further.optimizer]
    per_epoch = steps_per_epoch(panel.task.n_train, s.further.batch_size)
    further = s.further if s.further.epochs * per_epoch <= LONG else s.further.scaled(SHORT)
    if counted_in_steps(panel.dataset):
        few = get_profile(panel.profile).few_steps
        early = [step for step in further.evaluate if step <= few] or [further.evaluate[0]]
        evaluate = [early[k - 1] for k in log_epochs(len(early))]
    else:
        evaluate = [per_epoch * e for e in log_epochs(further.epochs)]
    chosen = replace(further, learning_rate=paper.learning_rate, evaluate=tuple(evaluate))
    return chosen, here.n_train / here.n_all if here.n_train else 1.0


def stored_tangents(panel: Panel, params: Params, further: Training, arguments: dict, **kinks: Any) -> xr.Dataset:
    """`tangent_train`, computed once and kept."""
    plan = Plan(
        further.rule,
        further.batch_size,
        further.epochs,
        arguments["removal"],
        1.0,
        tuple(arguments["left_out"]),
        tuple(arguments["test"]),
        further.evaluate,
    )
    spec = {**specification(panel.task, params, plan), "seeds": arguments["seeds"], "kind": "tangent", **kinks}
    return cached(
        panel.folder,
        f"tangent-{panel.dataset}-{further.optimizer}",
        spec,
        lambda: tangent_train(panel.task, params, **arguments, **kinks, progress=panel.compute),
        compute_missing=panel.compute,
    )


def linearised_run(panel: Panel) -> xr.DataArray:
    """LFT along the very run that `first_order_runs` differentiates, float64, scores [horizon, test, train]."""
    further, _ = paper_sized(panel)
    double = {k: v.double() for k, v in panel.params.items()}
    settings = replace(panel.settings, further=further)
    exact = replace(panel, given_task=panel.task, given_params=double, given_settings=settings)
    followed = exact.hyper("lft")["further_training"]
    return exact.scores("lft", further_training={**followed, "seed": 0}, runs=1, dtype="float64")


def output_runs(panel: Panel) -> xr.Dataset:
    """`first_order_runs` with the model's one output in place of its squared error; all of the weight removed.

    Of two test instances with targets y + 1 and y - 1, the losses differ by 4 times (output - y).
    """
    rows = torch.tensor(panel.settings.test)
    inputs, targets = take(panel.task.test, rows)
    twice = take((inputs, targets), torch.arange(len(rows)).repeat(2))[0], torch.cat([targets + 1, targets - 1])
    settings = replace(panel.settings, test=tuple(range(2 * len(rows))))
    doubled = replace(panel, given_task=replace(panel.task, test=twice), given_settings=settings)
    delta = first_order_runs(doubled, fractions=[1.0]).delta
    above, below = delta.isel(test=slice(len(rows))), delta.isel(test=slice(len(rows), None))
    change = (below.assign_coords(test=above.test) - above) / 4
    return xr.Dataset({"delta": change.assign_coords(test=rows.numpy())})


def with_units(panel: Panel, unit: type[nn.Module]) -> Panel:
    """The same data set with a model that has units of this kind in place of its own; trained from the same weights."""
    task = replace(panel.task, model=swap_units(panel.task.model, unit))
    return replace(panel, given_task=task, given_params=None)


def swap_units(model: nn.Module, unit: type[nn.Module]) -> nn.Module:
    """A copy of the model with each of its `UNITS` replaced by one of this kind."""
    copied = copy.deepcopy(model)
    for parent in [*copied.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, tuple(UNITS.values())):
                setattr(parent, name, unit())
    return copied


def first_order_limit(runs: xr.Dataset, adjustment: str = "mean") -> xr.Dataset:
    """Similarity of the tangent to the difference of runs, for each fraction of the weight removed.

    Returns:
        `similarity[fraction, step, test]`.
    """
    tangent = sensitivity(runs.sel(run="tangent", drop=True), adjustment)
    scores = tangent.rename(left_out="train", step="horizon")
    fractions = [name for name in runs.run.values if name not in ("float32", "tangent")]
    found = [instance_similarity(scores, sensitivity(runs.sel(run=f, drop=True), adjustment)) for f in fractions]
    return xr.Dataset(
        {"similarity": xr.concat(found, dim="fraction").assign_coords(fraction=list(map(float, fractions)))}
    )


def rounding(runs: xr.Dataset) -> xr.Dataset:
    """How large sensitivities are, and what rounding adds to them, as median magnitudes over instances, [step].

    Returns:
        `sensitivity` (difference of float64 runs), `float32` (what float32 training changes about it), `losses` (what
        rounding the two test losses to float32 changes about it), `nonlinear` (what removing all of the weight at once
        changes about the derivative).
    """
    delta, full = runs.delta, runs.full_loss
    whole = delta.sel(run="1.0")
    rounded = (full + whole).astype("float32").astype("float64") - full.astype("float32").astype("float64")

    def size(values: xr.DataArray) -> xr.DataArray:
        return abs(values).median(["seed", "left_out", "test"])

    return xr.Dataset(
        {
            "sensitivity": size(whole),
            "float32": size(delta.sel(run="float32") - whole),
            "losses": size(rounded - whole),
            "nonlinear": size(delta.sel(run="tangent") - whole),
        }
    )


def removal_runs(panel: Panel) -> dict[str, xr.Dataset]:
    """The gold standard with "drop" and with "mask", the same seeds, over the first fifth of the horizon."""
    masked = masked_runs(panel)
    return {"drop": panel.gold.sel(step=masked.step, seed=masked.seed), "mask": masked}


def masked_runs(panel: Panel) -> xr.Dataset:
    """The gold standard with "mask", over the first fifth of the horizon."""
    s = panel.settings
    short = s.further.scaled(SHORT)
    if short.evaluate:
        last = short.epochs * steps_per_epoch(panel.task.n_train, short.batch_size)
        short = replace(short, evaluate=tuple(step for step in short.evaluate if step <= last))
    return further_train(
        panel.task,
        panel.params,
        **short.arguments(),
        seeds=s.seeds_of_studies,
        left_out=s.left_out,
        test=s.test,
        removal="mask",
        store=panel.folder,
        compute_missing=panel.compute,
        progress=panel.compute,
    )


def removal_seeds(runs: dict[str, xr.Dataset], adjustment: str = "mean", ceiling: float = 0.95) -> xr.Dataset:
    """Per way of removing [removal, step]: agreement of two seeds, and how many seeds reach a noise ceiling."""
    agreement = xr.concat([seed_agreement(gold, adjustment, "variances") for gold in runs.values()], dim="removal")
    agreement = agreement.assign_coords(removal=list(runs))
    return xr.Dataset({"agreement": agreement, "seeds": seeds_needed(agreement, ceiling)})
