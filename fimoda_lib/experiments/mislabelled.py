"""Mislabelled instances: some labels are changed before the final model is trained. Do methods find them?

Two kinds of evidence against a training instance: it harms held-out data, or it matters much for its own loss, because
nothing but itself supports its label (self-influence). The baseline costs nothing: the instance's own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.utils._pytree import tree_map

from .. import checks
from ..derivatives.gradients import Gradients
from ..methods import METHODS
from ..storage.store import asked, fingerprint, read_sidecar
from ..tasks import Task, take
from .panel import Panel
from .profiles import get_profile
from .ranking import epochs_of, ranking_methods, reduced_scores, some_horizons

ITERATIVE = ("cg", "lissa", "lissa_h")  # for as many systems as there are instances
SHARE = 0.1  # of the training labels that are changed
HORIZONS = 3  # at which LFT ranks: early, halfway on a log axis, last
DRAWS = 1000
EVIDENCE = ("harm", "self-influence")


def flip_labels(task: Task, share: float = SHARE, seed: int = 0) -> tuple[Task, np.ndarray]:
    """The task with another label, drawn from the other classes, on a share of its training instances; and which.

    Raises:
        ValueError: not a classification task, labels of a single class, or a share that is not between 0 and 1 or
            changes no label.
    """
    if task.kind != "classification":
        raise ValueError(f"flip_labels: got '{task.name}', a {task.kind} task; expected one with classes.")
    share = checks.share("share", share, "a share between 0 and 1")
    random = np.random.default_rng(seed)
    inputs, labels = task.train
    classes, places = labels.unique(return_inverse=True)
    if len(classes) < 2 or not round(share * len(labels)):
        raise ValueError(
            f"flip_labels: got {len(labels)} labels of {len(classes)} classes and the share {share}; expected at "
            "least two classes, and a share that changes a label."
        )
    chosen = np.sort(random.choice(len(labels), round(share * len(labels)), replace=False))
    shift = torch.from_numpy(random.integers(1, len(classes), len(chosen)))
    changed = labels.clone()
    changed[chosen] = classes[(places[chosen] + shift) % len(classes)]
    return replace(task, train=(inputs, changed)), chosen


def mislabelled(panel: Panel) -> tuple[Panel, np.ndarray]:
    """The panel with a tenth of its training labels changed, and which; its final model is trained on them."""
    task, flipped = flip_labels(panel.task)
    return replace(panel, given_task=task, given_params=None), flipped


def ranked_rows(panel: Panel, flipped: np.ndarray) -> np.ndarray:
    """The training instances that are ranked, ascending: as many mislabelled ones as there are, up to half of them.

    The area under the curve does not depend on how many there are of either kind, but its error does.
    """
    most = min(get_profile(panel.profile).suspected, panel.task.n_train)
    random = np.random.default_rng(1)
    wrong = random.permutation(flipped)[: most // 2]
    right = random.permutation(np.setdiff1d(np.arange(panel.task.n_train), flipped))[: most - len(wrong)]
    return np.sort(np.concatenate([wrong, right]))


def accusers(panel: Panel) -> tuple[str, ...]:
    """The methods that rank: without those that iterate for each instance, where data are too many for them."""
    too_dear = ITERATIVE if panel.settings.study_curvature else ()
    return tuple(m for m in ranking_methods(panel) if m not in too_dear)


def evidence(panel: Panel, method: str, rows: Sequence[int]) -> xr.Dataset:
    """`harm[train]` and `self-influence[train]` of training instances by one method, [horizon, train] for LFT.

    Harm is minus the score averaged over the test instances, self-influence the score of an instance for itself: both
    are large where an instance is suspicious.
    """
    task, chosen = panel.task, torch.as_tensor(rows)
    held_out = take(task.test, torch.tensor(panel.settings.test))
    n = len(held_out[1])
    test = tree_map(lambda a, b: torch.cat([a, b]), held_out, take(task.train, chosen))

    def reduce(scores: xr.DataArray) -> xr.Dataset:
        place = xr.DataArray(np.arange(len(rows)), dims="train")
        own = scores.isel(test=n + place, train=place)  # pair by pair: the diagonal
        harm = -scores.isel(test=slice(n)).mean("test", skipna=False)
        return xr.Dataset({"harm": harm, "self-influence": own.drop_vars("test")}, attrs=scores.attrs)

    steps = some_horizons(panel, HORIZONS)
    return reduced_scores(
        panel, "mislabelled", method, train=[int(i) for i in rows], test=test, horizons=steps, reduce=reduce
    )


def losses_of(panel: Panel, rows: Sequence[int]) -> np.ndarray:
    """The final model's loss of training instances: the baseline."""
    at = Gradients(panel.task, panel.params)
    inputs, targets = at.train(torch.as_tensor(rows))
    return at.losses(at.outputs(inputs), targets).detach().cpu().numpy()


def detection(panel: Panel) -> pd.DataFrame:
    """How well each method finds the mislabelled instances of a classification panel.

    Returns:
        columns method ("loss" for the baseline), evidence, step and epoch (of LFT; NaN for all others), auc, low and
        high (95 % interval), above_loss, above_low and above_high (the same for the difference to the baseline,
        paired). Intervals are by bootstrap over the instances of either kind. The AUC of a method that diverged is NaN.
    """
    flawed, flipped = mislabelled(panel)
    rows = ranked_rows(flawed, flipped)
    wrong = np.isin(rows, flipped)
    baseline = auc(losses_of(flawed, rows), wrong)
    table = [{"method": "loss", "evidence": "loss", **_summary(baseline, baseline)}]
    for method in accusers(flawed):
        found = evidence(flawed, method, rows)
        for kind in EVIDENCE:
            values = found[kind]
            for k, step in enumerate(values["horizon"].values if "horizon" in values.dims else [np.nan]):
                one = values.isel(horizon=k) if "horizon" in values.dims else values
                row = {"method": method, "evidence": kind, "step": step}
                table.append({**row, **_summary(auc(one.values, wrong), baseline)})
    table = pd.DataFrame(table)
    return table.assign(epoch=epochs_of(flawed, table["step"]))


def final_run(panel: Panel) -> xr.Dataset:
    """The training of the final model behind the study, in the form of the runs that figures say they are made of."""
    flawed, flipped = mislabelled(panel)
    final, rows, test = flawed.settings.final, ranked_rows(flawed, flipped), list(flawed.settings.test)
    specification = fingerprint(flawed.params)
    note = read_sidecar(asked(lambda: replace(flawed).params))
    return xr.Dataset(
        {"seconds": ("seed", [float(note["seconds"])]), "diverged": ("seed", [False])},
        {"seed": [0], "left_out": rows, "test": test},
        {
            "optimizer": final.optimizer,
            "removal": "drop",
            "learning_rate": final.learning_rate,
            "specification": specification,
        },
    )


def what_is_flipped(panel: Panel) -> str:
    """The settings of the study in a clause."""
    flawed, flipped = mislabelled(panel)
    without = [m for m in ranking_methods(flawed) if m not in accusers(flawed)]
    return (
        f"{len(flipped):,} of {flawed.task.n_train:,} labels changed, {len(ranked_rows(flawed, flipped)):,} training "
        f"instances ranked, harm to {len(flawed.settings.test):,} held-out instances"
        + (f"; not run, for their cost: {', '.join(METHODS[m].label for m in without)}" if without else "")
    )


def auc(values: np.ndarray, positive: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The area under the ROC curve, and that of resamples: the share of pairs in which the positive is ranked higher.

    Args:
        values: [n], large for what should be positive; ties count half.
        positive: [n] bool.

    Returns:
        [1 + draws]: first that of the sample itself. The resamples are the same for all values with these positives.
    """
    if not np.isfinite(values).all():
        return np.full(1 + draws, np.nan)
    above, below = values[positive][:, None], values[~positive][None]
    wins = (above > below) + 0.5 * (above == below)
    random = np.random.default_rng(seed)
    times = [random.multinomial(n, np.full(n, 1 / n), size=draws) for n in wins.shape]
    resampled = ((times[0] @ wins) * times[1]).sum(1) / wins.size
    return np.concatenate([[wins.mean()], resampled])


def _summary(values: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    difference = values - baseline
    ends = np.quantile(values[1:], [0.025, 0.975])
    above = np.quantile(difference[1:], [0.025, 0.975])
    return {
        "auc": values[0],
        "low": ends[0],
        "high": ends[1],
        "above_loss": difference[0],
        "above_low": above[0],
        "above_high": above[1],
    }
