"""LFT, linearised further training: the effect of leaving an instance out, followed step by step along one full run.

To first order in the removed weight, the difference δ between the run without instance i and the full run obeys

    δ(t+1) = (I - ηG) δ(t) + (η/n) ∇loss(zᵢ; θ(t)),   δ(0) = 0,   score(z, i) at step T = ∇loss(z; θ(T)) · δ(T)

In the eigenbasis of G every direction evolves on its own, so that all steps between two records of the run are one
product. Frozen residuals and T = 1 give Grad-Dot; frozen residuals and T -> ∞ influence functions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..derivatives.curvature import GaussNewton, largest_held
from ..derivatives.gradients import Gradients
from ..derivatives.kinks import check_kinks, with_kinks
from ..derivatives.linearised import (
    effects_of,
    everyone,
    evolved,
    follow,
    jacobians,
    loss_changes,
    output_directions,
    together,
)
from ..derivatives.live_run import LiveRun
from ..derivatives.second_order import second_derivative_of
from ..derivatives.spectra import GRAM_ROWS, Spectrum, choose_backend, spectrum_of
from ..derivatives.splitting import boundaries
from ..derivatives.trajectories import Trajectory, mean_run, record_full_run, recorded_steps
from ..derivatives.whole_hessian import Following, Surroundings, follow_whole
from ..tasks import Params, Task
from ..training.ensembles import Optimizer
from ..training.minibatches import steps_per_epoch
from ..training.trial import check_training
from .base import METHODS, Report, method
from .ekfac import EkfacFactors
from .lft_settings import (
    OF_OPTIMIZER,
    check,
    check_recorded,
    check_stored,
    check_unused,
    full_settings,
    horizons,
    removal_of,
)

NEGLIGIBLE = 0.01  # an eigenvalue σ counts as zero where σηT is smaller: the filter is then within 1 % of ηT
STIFF = 0.2  # with "split", an eigenvalue is left to the products of the Hessian if ησ adds up to less between them
COPIES = 18  # of δ, with "split": so many are held at its peak, measured with Adam
TEST_BLOCKS = 4  # of the usual size: Jacobians of test instances that are held at once


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
    products: int = 240,
    sample: int = 4_096,
    kinks: str = "softened",
    width: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Report]:
    """Linearised further training.

    Args:
        train: instances [n_train]; or groups of them [n_train, size], see `groups.as_matrix`, each followed as a whole:
            with order 2 its members' residuals are those of the run without all of them.
        horizon: optimiser steps of further training at which scores are wanted, ascending; by default the last step
            of a recorded run.
        further_training: `optimizer`, `learning_rate`, `batch_size`, `seed` (`weight_decay`, `max_grad_norm`, which
            but for "split" shape the run and not δ) of the full run; or that itself, recorded by
            `trajectories.record_full_run`. With "split", where the optimiser is Adam or clips, `removal="subtract"`
            counts, too: "drop" (the default) and "mask" have one mean, but for what all instances share.
        mode: "one_run" takes residuals from that full run; "closed_form" trains nothing and lets them evolve by full
            batches in the model linearised at the final parameters (SGD only). "split" has the whole Hessian in place
            of G, along the run, and Adam's two moments, weight decay and clipping: closest to further training, and the
            dearest. It suits some instances (`train`) or groups, as δ itself is carried for each.
        runs: so many full runs, with seeds from `seed` on, whose outputs (with "split", scores) are averaged: what the
            batches of a single run happen to be matters after few steps (not "closed_form").
        segments: so many times along the run, G (and, but for "split", gradients) are taken anew (not "closed_form").
        backend: eigenbasis of G: "gram" (exact), "krylov" (its upper part), "ekfac", or "auto", by size.
        order: 1 is the derivative with respect to the instance's weight, as in the recursion above; 2 removes all of
            it: the residual of the instance is the one in the run without it, and the score is the difference of the
            losses at the linearised outputs.
        products, sample: "split" takes about so many Hessian-vector products per instance and run, of all training
            instances or, if these are more, of about so many: others each time, in batches where these count.
        kinks, width: "split" softens rectified units and the like, by default as far as they have moved, see
            `tangents.tangent_train`; "between" does not.

    Returns:
        scores [horizons, n_test, n_train], in units of the loss: what `further_train` measures. The report holds the
        horizons, the back-end, the number of eigenvalues.

    Raises:
        ValueError: no horizon or no further training given, or a choice that cannot be combined.
    """
    wanted = None if horizon is None else horizons(horizon)
    check(wanted, further_training, mode, runs, segments, backend, order, products, sample)
    check_kinks(kinks, width)
    of_split = {"products": products, "sample": sample, "kinks": kinks, "width": width}
    unused = check_unused(mode, of_split, METHODS["lft"].defaults)
    if mode == "split":
        along, removal = full_settings(further_training), removal_of(further_training)
        soft, how = with_kinks(task, params, kinks, width), (products, segments, backend, order == 2, dtype, sample)
        scores, found = split_runs(soft, task, params, along, runs, train, test, wanted, curvature, *how, removal)
        return scores, {"horizon": wanted, "further_training": {**along, "removal": removal, "runs": runs}, **found}
    at = Gradients(task, params, dtype=dtype)
    D = output_directions(at)
    if backend == "auto":
        backend = choose_backend(len(curvature) * len(D), at.n_params)
    if isinstance(further_training, Trajectory):
        run = further_training
        check_stored(run, task, params, segments)
        wanted = wanted or [run.steps[-1]]
        check_recorded(run, wanted, everyone(train), test)
    else:
        settings = full_settings(further_training)
        per_epoch = steps_per_epoch(task.n_train, settings["batch_size"])
        ends = range(per_epoch, wanted[-1], per_epoch)  # residuals are needed in between, too
        steps = recorded_steps(sorted({*wanted, *ends}), per_epoch)
        if mode == "closed_form":
            if settings["optimizer"] != "sgd":
                raise ValueError(f"mode: 'closed_form' follows SGD; got optimizer {settings['optimizer']!r}.")
            if settings.get("weight_decay") or settings.get("max_grad_norm"):
                raise ValueError("mode: 'closed_form' follows plain SGD; got weight_decay or max_grad_norm.")
            run = Trajectory(settings["learning_rate"], steps, *[torch.empty(0)] * 2, (), settings)
        else:
            settings |= {"steps": steps, "segments": segments, "train": everyone(train), "test": test}
            run = recorded_runs(task, params, runs, device=at.device, **settings)
    scores, found = follow_run(at, D, run, train, test, wanted, curvature, mode, backend, order == 2)
    return scores, {"horizon": wanted, "further_training": dict(run.settings), **found, **unused}


def recorded_runs(task: Task, params: Params, runs: int, *, seed: int, **settings: Any) -> Trajectory:
    """The mean of so many full runs, with seeds from `seed` on."""
    some = (record_full_run(task, params, seed=seed + k, progress=False, **settings) for k in range(runs))
    return mean_run(some)


def follow_run(
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

    spectrum = None
    if mode == "closed_form":
        spectrum = spectrum_at(at, None, curvature, backend, floor)
        run = evolved(at, run, spectrum, D)
    scores = torch.empty(len(horizons), len(test), len(train), dtype=torch.float64)
    place = {step: k for k, step in enumerate(horizons)}
    effects, sizes = None, []  # δ of every scored instance [n_train, P], handed from segment to segment
    for number, segment in enumerate(run.segments):
        if number:
            at = at.moved(segment.params)
        scale = segment.preconditioner and at.flatten(
            {k: v.to(at.device, at.dtype) for k, v in segment.preconditioner.items()}
        )
        scale = None if scale is None else scale.sqrt()  # G with rows and columns scaled stays symmetric
        if spectrum is None or number:
            spectrum = spectrum_at(at, scale, curvature, backend, floor)
        sizes.append(len(spectrum.eigenvalues))
        ends = []
        for tested in torch.arange(len(test)).split(max(TEST_BLOCKS * at.block_size(len(D)), together(at, len(D)))):
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


def split_runs(
    soft: Task, task: Task, params: Params, along: dict, runs: int, train: Tensor, test: Tensor, wanted: list[int],
    curvature: Tensor, products: int, segments: int, backend: str, whole: bool, dtype: torch.dtype, sample: int,
    removal: str,
) -> tuple[Tensor, Report]:  # fmt: skip
    """Mean scores [horizons, n_test, n_train] of several runs along which the whole Hessian is followed.

    Of as many scored instances at once as fit the memory: for the others each run, which is the same, is followed anew.

    Args:
        soft: the task with the model whose Hessian counts; `task` is trained.
        along: the settings of the full runs.
    """
    at = Gradients(task, params, dtype=dtype)
    if backend == "auto":
        backend = choose_backend(GRAM_ROWS + 1, at.n_params)  # few directions are needed: those are quickly found
    check_training(task, params, at.device)
    Gradients(task, params).check_hessian()  # between kinks, where quotients can tell
    with second_derivative_of(task.name, "forward derivative"):  # if there is none, it is said now
        nothing = torch.zeros(1, at.n_params, dtype=dtype, device=at.device)
        Surroundings(at, train[:1], whole=whole).test_changes(test[:1], nothing)
    rule = Optimizer(along["optimizer"], **{name: along[name] for name in OF_OPTIMIZER if name in along})
    longest = max(b - a for a, b in pairwise([0, *boundaries(wanted, products // 2)]))
    floor = STIFF / (rule.learning_rate * longest)

    spectrum = partial(spectrum_at, curvature=curvature, backend=backend, floor=floor)
    how, found = Following(products, segments, spectrum, whole, dtype, sample, removal == "subtract"), []
    pieces = train.split(max(largest_held(at.device) // (COPIES * at.n_params * dtype.itemsize), 1))
    with tqdm(total=len(pieces) * runs * wanted[-1], desc="LFT", leave=False, disable=None) as bar:
        for piece in pieces:
            total = 0.0
            for k in range(runs):
                run = LiveRun(task, params, rule, along["batch_size"], along["seed"] + k, at.device)
                scores, sizes = follow_whole(soft, run, piece, test, wanted, how, bar)
                total = total + scores / runs
            found.append(total)
    return torch.cat(found, 2), {"backend": backend, "eigenvalues": sizes, "segments": len(sizes)}


def spectrum_at(at: Gradients, scale: Tensor | None, curvature: Tensor, backend: str, floor: float) -> Spectrum:
    """The eigenbasis of G there, its rows and columns scaled; of eigenvalues above the floor, but for "ekfac"."""
    if backend == "ekfac":
        return EkfacSpectrum(at, curvature, scale)
    return spectrum_of(GaussNewton(at, curvature, scale=scale), backend, floor)


class EkfacSpectrum:
    """The eigenbasis of EK-FAC: all parameters of linear and convolutional layers; the others lie outside it."""

    def __init__(self, at: Gradients, curvature: Tensor, scale: Tensor | None = None) -> None:
        self.factors = EkfacFactors(at, curvature, scale=scale)
        self.eigenvalues = self.factors.eigenvalues

    def into(self, vectors: Tensor) -> Tensor:
        return self.factors.to_eigenbasis(vectors)

    def out_of(self, coordinates: Tensor) -> Tensor:
        return self.factors.from_eigenbasis(coordinates)
