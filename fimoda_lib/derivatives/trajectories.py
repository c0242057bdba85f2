"""One full run of further training, recorded: outputs along the way, and where the run stood at a few checkpoints."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

from .. import checks
from ..devices import choose_device, strict_arithmetic
from ..storage.naming import loss_name, model_name
from ..storage.store import fingerprint
from ..tasks import Params, Task, check_params, check_task, resolve_rows, take, to
from ..training.ensembles import Ensemble, Optimizer
from ..training.minibatches import FULL_RUN, run_batches, steps_per_epoch
from ..training.plans import MOST_STEPS, check_seeds
from ..training.trial import check_training


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of the run, from a checkpoint to the next.

    Args:
        first, last: numbers of the records at which it begins and ends.
        params: where the run stood when it began.
        squares: Adam's mean square v̂ of the gradient in every parameter, averaged over the segment's records (and over
            runs, see `mean_run`); None for SGD.
    """

    first: int
    last: int
    params: Params
    squares: Params | None

    @property
    def preconditioner(self) -> Params | None:
        """What Adam multiplies its mean gradient by, besides the learning rate, 1/(√v̂ + ε).

        Of the mean v̂, not the mean of 1/√v̂: that is made by the few batches in which a gradient happened to be small.
        """
        if self.squares is None:
            return None
        return {k: 1 / (v.sqrt() + Optimizer.epsilon) for k, v in self.squares.items()}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A recorded full run.

    Args:
        steps: optimiser steps at which outputs were recorded, ascending, beginning with 0.
        train_outputs, test_outputs: [records, instances, C], float64, of all training and test instances; NaN for those
            that were not recorded.
        segments: in order, covering all records.
        settings: how it was trained.
        data, loss, model: of the task that it was trained on: `data_of` its instances, and the names of the others.
    """

    learning_rate: float
    steps: tuple[int, ...]
    train_outputs: Tensor
    test_outputs: Tensor
    segments: tuple[Segment, ...]
    settings: dict[str, Any]
    data: str = ""
    loss: str = ""
    model: str = ""


def record_full_run(
    task: Task,
    params: Params,
    *,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    steps: int | Sequence[int],
    seed: int = 0,
    segments: int = 1,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    train: Iterable[int] | None = None,
    test: Iterable[int] | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Trajectory:
    """Trains once on all data, as the full run of `further_train` with this seed does, and records outputs.

    Args:
        steps: the optimiser steps at which outputs are recorded; a number stands for the end of every epoch up to it.
        segments: how many segments to cut the run into, evenly on a log axis of steps as far as records allow: a run
            moves the model most at its beginning.
        train, test: the instances whose outputs are recorded (all by default).
        device: where to train; a GPU if there is one.

    Raises:
        ValueError: steps or segments that cannot be, or a run that diverges.
    """
    check_task(task)
    check_params(task.model, params)
    batch_size, seed = check_settings(batch_size, seed)
    due = recorded_steps(steps, steps_per_epoch(task.n_train, batch_size))
    cuts = segment_cuts(due, segments)
    rule = Optimizer(optimizer, learning_rate, weight_decay, max_grad_norm)
    check_training(task, params, where := choose_device(device))
    ensemble = Ensemble(task, params, 1, rule, device=where)
    train_set = to(task.train, ensemble.device, ensemble.dtype)
    chosen = [resolve_rows(train, task.n_train, "train"), resolve_rows(test, task.n_test, "test")]
    outputs, starts, squares = [], [], [None] * (len(cuts) - 1)

    def record() -> None:
        number = len(outputs)
        if number in cuts[:-1]:
            starts.append({k: p[0].cpu().clone() for k, p in ensemble.params.items()})
        outputs.append(
            [recorded(ensemble, part[0], rows) for part, rows in zip((task.train, task.test), chosen, strict=True)]
        )
        if rule.name != "sgd" and number:
            k = bisect_left(cuts, number) - 1  # the segment that ends here, or goes on
            share = {name: v / (cuts[k + 1] - cuts[k]) for name, v in mean_squares(rule, ensemble).items()}
            squares[k] = share if squares[k] is None else tree_map(torch.add, squares[k], share)

    with strict_arithmetic(ensemble.device):
        record()
    batches = run_batches(task.n_train, batch_size, torch.tensor([FULL_RUN]), seed, device=ensemble.device)
    bar = tqdm(zip(range(1, due[-1] + 1), batches, strict=False), total=due[-1], desc="full run", disable=not progress)
    with strict_arithmetic(ensemble.device):
        for step, (rows, weights) in bar:
            with ensemble.masks(seed, step):
                ensemble.step(take(train_set, rows), weights.to(ensemble.device, ensemble.dtype))
            if step == due[len(outputs)]:
                record()
    found = [torch.stack(piece) for piece in zip(*outputs, strict=True)]
    if not all(values[:, rows].isfinite().all() for values, rows in zip(found, chosen, strict=True)):
        raise ValueError(f"The full run diverged: with learning rate {learning_rate} its outputs are not finite.")
    pieces = tuple(
        Segment(first, last, start, square)
        for first, last, start, square in zip(cuts[:-1], cuts[1:], starts, squares, strict=True)
    )
    settings = {"optimizer": optimizer, "learning_rate": rule.learning_rate, "batch_size": batch_size, "seed": seed}
    return Trajectory(rule.learning_rate, due, *found, pieces, settings, *known_by(task))


def known_by(task: Task) -> tuple[str, str, str]:
    """What tells a task from others: its instances, loss and model."""
    return data_of(task), name_of_loss(task), name_of_model(task)


def data_of(task: Task) -> str:
    """A fingerprint of training and test instances, in whatever precision they are."""
    return fingerprint(tree_map(lambda x: x.float() if x.is_floating_point() else x, [task.train, task.test]))


def name_of_loss(task: Task) -> str:
    """The name of its loss; nothing if it has none that lasts."""
    try:
        return loss_name(task.loss)
    except ValueError:
        return ""


def name_of_model(task: Task) -> str:
    """What tells its model from others with parameters of these names; nothing where that cannot be said."""
    try:
        return f"{task.model!r} {model_name(task.model)}"
    except ValueError:
        return ""


def recorded(ensemble: Ensemble, inputs: Any, rows: Tensor) -> Tensor:
    """Outputs of the one replica on the given instances, on the CPU, NaN for the others, [n, C]."""
    some = ensemble.outputs(take(inputs, rows))[0].cpu()
    outputs = some.new_full((len(tree_leaves(inputs)[0]), some.shape[1]), torch.nan)
    outputs[rows] = some
    return outputs


def check_settings(batch_size: int, seed: int) -> tuple[int, int]:
    """The batch size and the seed; raises ValueError if they cannot be."""
    return checks.whole("batch_size", batch_size), check_seeds([seed])[0]


def recorded_steps(steps: int | Sequence[int], per_epoch: int) -> tuple[int, ...]:
    """0 and the given steps; a number stands for the end of every epoch up to it, and itself."""
    expected = f"a number of at least 1, or increasing optimiser steps (up to {MOST_STEPS})"
    last = checks.plain(steps)
    if checks.is_whole(last) and 1 <= last <= MOST_STEPS:
        asked = [*range(per_epoch, int(last), per_epoch), int(last)]
    else:
        asked = checks.elements("steps", steps, expected)
    whole = all(checks.is_whole(step) and 0 <= step <= MOST_STEPS for step in asked)
    if not whole or not asked or asked != sorted(set(asked)) or asked[-1] < 1:
        raise ValueError(f"steps: got {checks.shown(asked)}, expected {expected}.")
    return (0, *(int(s) for s in asked if s > 0))


def segment_cuts(steps: Sequence[int], segments: int) -> list[int]:
    """The records at which segments begin, and the last one, evenly on a log axis of the steps of records."""
    intervals = len(steps) - 1
    if isinstance(segments, bool) or not isinstance(segments, int) or not 1 <= segments <= intervals:
        raise ValueError(
            f"segments: got {checks.shown(segments)}, expected 1 to {intervals}, the number of intervals recorded."
        )
    cuts = [0]
    for k in range(1, segments):
        ideal = steps[1] * (steps[-1] / steps[1]) ** (k / segments)
        nearest = min(range(1, intervals), key=lambda r: abs(math.log(steps[r] / ideal)))
        cuts.append(min(max(nearest, cuts[-1] + 1), intervals - segments + k))
    return [*cuts, intervals]


def mean_run(runs: Iterable[Trajectory]) -> Trajectory:
    """Recorded runs that differ in their seeds as one: the means of outputs, checkpoints and Adam's mean squares.

    What the batches of a single run happen to be averages out: a method for the mean over many seeds should not follow
    the noise of one. Takes one run at a time. The settings are the first run's, and "runs", their number.

    Raises:
        ValueError: no runs, or runs that differ in more than their seeds.
    """

    def alike(run: Trajectory) -> tuple:
        settings = {k: v for k, v in run.settings.items() if k != "seed"}
        pieces = [(s.first, s.last) for s in run.segments]
        return settings, run.data, run.loss, run.model, run.steps, pieces, run.train_outputs.shape

    def moving(run: Trajectory) -> list:
        return [run.train_outputs, run.test_outputs, [(s.params, s.squares or {}) for s in run.segments]]

    first, total, number = None, None, 0
    for run in runs:
        if first is None:
            first, total = run, moving(run)
        else:
            start, other = (r.segments[0].params for r in (first, run))
            if alike(run) != alike(first) or any(not torch.equal(start[k], other[k]) for k in start):
                raise ValueError("mean_run: the runs differ in more than their seeds; record them alike.")
            total = tree_map(torch.add, total, moving(run))
        number += 1
    if first is None:
        raise ValueError("mean_run: got no runs, expected at least one.")
    if number == 1:
        return first
    train, test, ends = tree_map(lambda value: value / number, total)
    segments = tuple(
        replace(s, params=params, squares=squares or None)
        for s, (params, squares) in zip(first.segments, ends, strict=True)
    )
    settings = {**first.settings, "runs": number}
    return replace(first, train_outputs=train, test_outputs=test, segments=segments, settings=settings)


def mean_squares(rule: Optimizer, ensemble: Ensemble) -> Params:
    """Adam's v̂ after the last step."""
    correction = 1 - rule.betas[1] ** ensemble.steps
    return {k: square[0].cpu() / correction for k, square in ensemble.state["square"].items()}
