"""LFT, linearised further training: the effect of leaving an instance out, followed step by step along one full run.

To first order in the removed weight, the difference δ between the run without instance i and the full run obeys

    δ(t+1) = (I - ηG) δ(t) + (η/n) ∇loss(zᵢ; θ(t)),   δ(0) = 0,   score(z, i) at step T = ∇loss(z; θ(T)) · δ(T)

In the eigenbasis of G every direction evolves on its own, so that all steps between two records of the run are one
product. Frozen residuals and T = 1 give Grad-Dot; frozen residuals and T -> ∞ influence functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..derivatives.curvature import GaussNewton
from ..derivatives.gradients import Gradients
from ..derivatives.linearised import effects_of, everyone, evolved, follow, jacobians, loss_changes, output_directions
from ..derivatives.spectra import GRAM_ROWS, Spectrum, choose_backend, spectrum_of
from ..derivatives.trajectories import Trajectory, check_settings, mean_run, record_full_run, recorded_steps
from ..tasks import Params, Task
from ..training.ensembles import Optimizer
from ..training.minibatches import steps_per_epoch
from ..training.plans import MOST_STEPS
from .base import Report, method
from .ekfac import EkfacFactors

NEGLIGIBLE = 0.01  # an eigenvalue σ counts as zero where σηT is smaller: the filter is then within 1 % of ηT
MOST_RUNS = 1_000
TEST_BLOCKS = 4  # of the usual size: Jacobians of test instances that are held at once
MODES = ("one_run", "closed_form")
BACKENDS = ("auto", "gram", "krylov", "ekfac")
OF_OPTIMIZER = ("learning_rate", "weight_decay", "max_grad_norm")
SETTINGS = ("optimizer", "batch_size", "seed", *OF_OPTIMIZER)


@method(
    label="LFT (ours)",
    family="ours",
    reference="this project; a relative of Bae et al. 2024 for final models",
    groups=True,
)
def lft(
    task: Task,
    params: Params,
    *,
    train: Tensor,
    test: Tensor,
    curvature: Tensor | None = None,
    horizon: int | Sequence[int] | None = None,
    further_training: Mapping[str, Any] | Trajectory | None = None,
    mode: str = "one_run",
    runs: int = 1,
    segments: int = 1,
    backend: str = "auto",
    order: int = 2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Linearised further training.

    Args:
        train: instances [n_train]; or groups of them [n_train, size], see `groups.as_matrix`, each followed as a whole:
            with order 2 its members' residuals are those of the run without all of them.
        horizon: optimiser steps of further training at which scores are wanted, ascending; by default the last step
            of a recorded run.
        further_training: `optimizer`, `learning_rate`, `batch_size`, `seed` (`weight_decay`, `max_grad_norm`, which
            shape the run but not δ) of the full run; or the run itself, recorded by `trajectories.record_full_run`.
        mode: "one_run" takes residuals from that full run; "closed_form" trains nothing and lets them evolve by full
            batches in the model linearised at the final parameters (SGD only).
        runs: so many full runs, with seeds from `seed` on, whose outputs are averaged: what the batches of a single run
            happen to be matters after few steps ("one_run" only).
        segments: so many times along the run, gradients and curvature are taken anew ("one_run" only).
        backend: eigenbasis of G: "gram" (exact), "krylov" (its upper part), "ekfac", or "auto", by size.
        order: 1 is the derivative with respect to the instance's weight, as in the recursion above; 2 removes all of
            it: the residual of the instance is the one in the run without it, and the score is the difference of the
            losses at the linearised outputs.

    Returns:
        scores [horizons, n_test, n_train], in units of the loss: what `further_train` measures. The report holds the
        horizons, the back-end, the number of eigenvalues.

    Raises:
        ValueError: no horizon or no further training given, or a choice that cannot be combined.
    """
    wanted = None if horizon is None else horizons(horizon)
    check(wanted, further_training, mode, runs, segments, backend, order)
    at = Gradients(task, params, dtype=dtype)
    D = output_directions(at)
    if backend == "auto":
        backend = choose_backend(len(curvature) * len(D), at.n_params)
    if isinstance(further_training, Trajectory):
        run = further_training
        check_stored(run, task, params, segments)
        check_backend(backend, run.settings["optimizer"], at)
        wanted = wanted or [run.steps[-1]]
        missing = sorted(set(wanted) - set(run.steps))
        if missing:
            raise ValueError(f"horizon: step {missing[0]} was not recorded; the run holds {list(run.steps)[:8]}, ...")
        for part, rows in (("train", everyone(train)), ("test", test)):
            unknown = rows[getattr(run, f"{part}_outputs")[0, rows].isnan().any(1)]
            if len(unknown):
                raise ValueError(f"{part}: the run holds no outputs of instance {int(unknown[0])}; record it anew.")
    else:
        given = {name: checks.plain(value) for name, value in further_training.items()}
        settings = {"optimizer": "sgd", "seed": 0, **given}
        shape = {name: settings[name] for name in OF_OPTIMIZER if name in settings}
        settings |= {name: getattr(Optimizer(settings["optimizer"], **shape), name) for name in shape}
        check_settings(settings["batch_size"], settings["seed"])
        per_epoch = steps_per_epoch(task.n_train, settings["batch_size"])
        ends = range(per_epoch, wanted[-1], per_epoch)  # residuals are needed in between, too
        steps = recorded_steps(sorted({*wanted, *ends}), per_epoch)
        check_backend(backend, settings["optimizer"], at)
        if mode == "closed_form":
            if settings["optimizer"] != "sgd":
                raise ValueError(f"mode: 'closed_form' follows SGD; got optimizer {settings['optimizer']!r}.")
            if settings.get("weight_decay") or settings.get("max_grad_norm"):
                raise ValueError("mode: 'closed_form' follows plain SGD; got weight_decay or max_grad_norm.")
            run = Trajectory(settings["learning_rate"], steps, *[torch.empty(0)] * 2, (), settings)
        else:
            some = {"train": everyone(train), "test": test, "device": at.device, "progress": False}
            first = settings.pop("seed")
            run = mean_run(
                record_full_run(task, params, steps=steps, segments=segments, seed=first + k, **some, **settings)
                for k in range(runs)
            )
    scores, found = follow_run(task, at, D, run, train, test, wanted, curvature, mode, backend, order == 2)
    return scores, {"horizon": wanted, "further_training": dict(run.settings), **found}


def follow_run(
    task: Task,
    at: Gradients,
    D: Tensor,
    run: Trajectory,
    train: Tensor,
    test: Tensor,
    horizons: Sequence[int],
    curvature: Tensor,
    mode: str,
    backend: str,
    whole: bool,
) -> tuple[Tensor, Report]:
    """Scores [horizons, n_test, n_train] along a run, segment after segment; D are the `output_directions`."""
    floor = NEGLIGIBLE / (run.learning_rate * run.steps[-1])

    def spectrum_at(at: Gradients, scale: Tensor | None) -> Spectrum:
        if backend != "ekfac":
            return spectrum_of(GaussNewton(at, curvature, scale=scale), backend, floor)
        return EkfacSpectrum(at, curvature)

    spectrum = None
    if mode == "closed_form":
        spectrum = spectrum_at(at, None)
        run = evolved(at, run, spectrum, D)
    scores = torch.empty(len(horizons), len(test), len(train), dtype=torch.float64)
    place = {step: k for k, step in enumerate(horizons)}
    effects, sizes = None, []  # δ of every scored instance [n_train, P], handed from segment to segment
    for number, segment in enumerate(run.segments):
        if number:
            at = Gradients(task, segment.params, dtype=at.dtype, device=at.device)
        scale = segment.preconditioner and at.flatten(
            {k: v.to(at.device, at.dtype) for k, v in segment.preconditioner.items()}
        )
        scale = None if scale is None else scale.sqrt()  # G with rows and columns scaled stays symmetric
        if spectrum is None or number:
            spectrum = spectrum_at(at, scale)
        sizes.append(len(spectrum.eigenvalues))
        ends = []
        for tested in torch.arange(len(test)).split(TEST_BLOCKS * at.block_size(len(D))):
            J_test, first = jacobians(at, at.test(test[tested]), D, scale), tested[0] == 0
            for piece, members, effect in effects_of(at, spectrum, J_test, effects, train, D, scale):
                for record, change in follow(at, run, segment, effect, D, members, whole=whole):
                    if run.steps[record] in place:
                        found = loss_changes(
                            at, run.test_outputs[record][test[tested]], change, test[tested], whole=whole
                        )
                        scores[place[run.steps[record]]][tested[:, None], piece] = found.cpu()
                if first and number + 1 < len(run.segments):  # δ is the same for all test instances
                    ends.append(effect.total() * (1 if scale is None else scale))
        effects = torch.cat(ends) if ends else None
    return scores, {"backend": backend, "eigenvalues": sizes, "segments": len(run.segments)}


def check_backend(backend: str, optimizer: str, at: Gradients) -> None:
    """Raises ValueError, before anything is trained, if the back-end cannot follow the optimiser."""
    if backend == "ekfac" and optimizer != "sgd":
        raise ValueError(
            f"backend: 'ekfac' has no room for the preconditioner of {optimizer!r}; take 'gram' or 'krylov', which for "
            f"{at.n_params:,} parameters means fewer curvature instances: up to {GRAM_ROWS:,} rows (instances times "
            "output directions), 'auto' takes 'gram'."
        )


class EkfacSpectrum:
    """The eigenbasis of EK-FAC: all parameters of linear and convolutional layers; the others lie outside it."""

    def __init__(self, at: Gradients, curvature: Tensor) -> None:
        self.factors = EkfacFactors(at, curvature)
        self.eigenvalues = self.factors.eigenvalues

    def into(self, vectors: Tensor) -> Tensor:
        return self.factors.to_eigenbasis(vectors)

    def out_of(self, coordinates: Tensor) -> Tensor:
        return self.factors.from_eigenbasis(coordinates)


def check_stored(run: Trajectory, task: Task, params: Params, segments: int) -> None:
    """Raises ValueError unless the recorded run can be one of this task from these parameters."""
    if segments not in (1, len(run.segments)):
        raise ValueError(f"segments: got {segments}, and the recorded run has {len(run.segments)}; record it anew.")
    instances = [run.train_outputs.shape[1], run.test_outputs.shape[1]]
    if instances != [task.n_train, task.n_test]:
        raise ValueError(
            f"further_training: the run was recorded with {instances[0]} training and {instances[1]} test instances; "
            f"the task has {task.n_train} and {task.n_test}."
        )
    start, here = run.segments[0].params, {k: p.cpu().double() for k, p in params.items()}
    same = all(k in start and start[k].shape == p.shape for k, p in params.items())
    if not (same and all(torch.allclose(start[k].cpu().double(), p, rtol=1e-5) for k, p in here.items())):
        raise ValueError("further_training: the run was recorded from other parameters than these; record it anew.")


def horizons(horizon: int | Sequence[int]) -> list[int]:
    """The horizons as a list; raises ValueError unless they are ascending numbers of steps."""
    expected = f"ascending numbers of optimiser steps from at least 1 to {MOST_STEPS}"
    one = checks.is_whole(checks.plain(horizon))
    steps = [checks.plain(horizon)] if one else checks.elements("horizon", horizon, expected)
    whole = all(isinstance(step, int) and checks.is_whole(step) and 1 <= step <= MOST_STEPS for step in steps)
    if not steps or not whole or steps != sorted(set(steps)):
        raise ValueError(f"horizon: got {checks.shown(steps)}, expected {expected}.")
    return steps


def check(
    horizon: list | None, further_training: Any, mode: str, runs: int, segments: int, backend: str, order: int
) -> None:
    """Raises ValueError for settings that cannot be right."""
    for name, value, choices in (("mode", mode, MODES), ("backend", backend, BACKENDS), ("order", order, (1, 2))):
        checks.choice(name, value, choices)
    checks.whole("runs", runs, at_most=MOST_RUNS)
    if not checks.is_whole(checks.plain(segments)):
        raise ValueError(f"segments: got {checks.shown(segments)}, expected a whole number of at least 1.")
    if further_training is None:
        raise ValueError(
            "lft needs further_training=dict(learning_rate=..., batch_size=...), the settings of the full run that it "
            "follows, or a run recorded by record_full_run."
        )
    if isinstance(further_training, Trajectory):
        if mode == "closed_form":
            raise ValueError("mode: 'closed_form' takes no recorded run; give its settings as a dict.")
        if runs != 1:
            raise ValueError(f"runs: got {runs} with a recorded run; average several by trajectories.mean_run.")
    elif horizon is None:
        raise ValueError("horizon: got None, expected optimiser steps of further training, such as [100, 1000].")
    elif not isinstance(further_training, Mapping):
        raise ValueError(
            f"further_training: got {checks.shown(further_training)}, expected dict(learning_rate=..., batch_size=...) "
            "or a recorded run."
        )
    elif lacking := {"learning_rate", "batch_size"} - set(further_training):
        raise ValueError(f"further_training: {sorted(lacking)[0]} is missing; give learning_rate and batch_size.")
    elif odd := sorted(set(further_training) - set(SETTINGS), key=str):
        raise ValueError(f"further_training: got {odd[0]!r}, expected some of {', '.join(SETTINGS)}.")
    for name, value in (("segments", segments), ("runs", runs)):
        if mode == "closed_form" and value != 1:
            raise ValueError(f"{name}: got {value} with mode 'closed_form', which has 1.")
