"""The effect of leaving an instance, or a group of them, out, followed along a full run with the whole Hessian.

To first order, by full batches, the difference δ between the run without instance i and the full run obeys

    δ(t+1) = δ(t) + step of the optimiser for the gradient  H(t) δ(t) - (1/n) ∇loss(zᵢ; θ(t)),   δ(0) = 0.

Where units are rectified, H is that of the model with softened kinks (`kinks`). `splitting` takes many steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from ..devices import strict_arithmetic
from ..groups import NOBODY
from ..tasks import Instances, Params, Task, count, take, to
from ..training.ensembles import Ensemble, Optimizer, clip_grad_norm
from ..training.minibatches import FULL_RUN, run_batches
from .gradients import Gradients
from .kinks import FLOOR, widen
from .linearised import loss_changes
from .second_order import twice_differentiable
from .spectra import Spectrum
from .splitting import Drift, Motion, boundaries, interpolated, midpoint

MOST = 0.5  # see `limited`
VECTORS = 8  # at least so many at once in products, and so fewer instances: both fill matrices


class LiveRun:
    """A full run that is trained on as it is followed: the one of `further_train` with this seed."""

    def __init__(
        self, task: Task, params: Params, rule: Optimizer, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.ensemble, self.rule = Ensemble(task, params, 1, rule, device=device), rule
        self.train = to(task.train, device, self.ensemble.dtype)
        nobody = torch.tensor([FULL_RUN])
        self.batches = run_batches(task.n_train, batch_size, nobody, seed, removal="mask", device=device)
        self.seed, self.device, self.step, self.gradients = seed, device, 0, None

    def advance(self, step: int) -> Params:
        """Trains up to this step; the parameters there."""
        e = self.ensemble
        with strict_arithmetic(self.device):
            while self.step < step:
                self.step += 1
                rows, weights = next(self.batches)
                batch, weights = take(self.train, rows[None]), weights.to(self.device, e.dtype)
                if self.rule.max_grad_norm is not None and self.step == step:  # for `share`
                    with torch.no_grad(), e.masks(self.seed, self.step):
                        self.gradients = e.gradients(e.params, batch, weights, 1)
                with e.masks(self.seed, self.step):  # those of `further_train`
                    e.step(batch, weights)
        return {k: p[0].clone() for k, p in e.params.items()}

    def share(self) -> float:
        """What clipping left of the gradient in the last step of the last advance."""
        return 1.0 if self.gradients is None else what_clipping_leaves(self.gradients, self.rule.max_grad_norm)

    def multiplier(self) -> Params | None:
        """What Adam multiplies its mean gradient by, besides the learning rate, `kinks.regularised`; None for SGD."""
        if not self.ensemble.state:
            return None
        correction = 1 - self.rule.betas[1] ** self.step
        squares = {k: s[0] / correction for k, s in self.ensemble.state["square"].items()}
        floor = FLOOR**2 * sum(s.sum() for s in squares.values()) / sum(s.numel() for s in squares.values())
        return {k: 1 / ((s + floor).sqrt() + self.rule.epsilon) for k, s in squares.items()}


def what_clipping_leaves(gradients: Params, max_norm: float) -> float:
    """The factor by which a gradient is shortened: 1 if it is not."""
    name = max(gradients, key=lambda k: gradients[k].abs().max())
    clipped = clip_grad_norm(gradients, max_norm)[name].norm() / gradients[name].norm().clamp(min=1e-30)
    return float(clipped) or 1.0


class Surroundings:
    """Gradients and Hessian products at one place of the run, for b instances left out, or groups of them.

    Args:
        at: the model there, its kinks softened if they are to be.
        train: the instances left out [b], or groups of them [b, g], see `groups.as_matrix`.
        whole: an instance is gone, so that its residual is the one in the run without it; else that of the full run.
    """

    def __init__(self, at: Gradients, train: Tensor, *, whole: bool) -> None:
        self.at, self.members, self.whole = at, train.reshape(len(train), -1), whole

    def source(self, delta: Tensor) -> Tensor:
        """Gradient of the loss of each instance, or the sum over each group, over n, [b, P]."""
        at, size = self.at, self.members.shape[1]

        def one(instances: Instances, there: Tensor, change: Tensor) -> Tensor:
            inputs, targets = instances

            def outputs(p: Params) -> Tensor:
                return at.outputs(inputs, p)

            moved = jvp(outputs, (at.params,), (at.unflatten(change),))[1] if self.whole else 0.0
            return at.flatten(grad(lambda p: (there * at.losses(outputs(p) + moved, targets)).sum())(at.params))

        found = []
        for rows in torch.arange(len(delta)).split(max(at.block_size() // size, 1)):
            there = self.members[rows] != NOBODY
            instances = at.train(self.members[rows].where(there, 0).flatten())
            instances = tree_map(lambda x, shape=there.shape: x.unflatten(0, shape), instances)
            with twice_differentiable():  # forward mode is what attention's fused kernels lack, too
                found.append(vmap(one)(instances, there.to(delta), delta[rows]))
        return torch.cat(found) / at.task.n_train

    def hessian(self, delta: Tensor, rows: Tensor) -> Tensor:
        """The Hessian of the mean loss of training instances times every row of δ, [b, P]."""
        pieces = (self.at.train(piece) for piece in rows.split(self.at.product_size(VECTORS)))
        return sum(count(piece) / len(rows) * self.at.hessian_products(piece, delta) for piece in pieces)

    def test_changes(self, test: Tensor, delta: Tensor) -> Tensor:
        """Changes of the losses of test instances, [z, b], float64: to first order unless `whole`."""
        at, inputs = self.at, self.at.test(test)[0]

        def outputs(p: Params) -> Tensor:
            return at.outputs(inputs, p)

        def moved(v: Tensor) -> Tensor:
            return jvp(outputs, (at.params,), (at.unflatten(v),))[1]

        pieces = delta.split(max(at.block_size() // 16, 1))
        with twice_differentiable():
            change = torch.cat([vmap(moved, out_dims=1)(piece) for piece in pieces], 1)
        return loss_changes(at, outputs(at.params).detach().double(), change.double(), test, whole=self.whole)


@dataclass(frozen=True)
class Following:
    """How a run is followed.

    Args:
        products: about so many Hessian products for all instances together: two for every interval, one for a single
            step.
        segments: so many times G and its eigenbasis are taken anew, evenly over the intervals.
        spectrum: (model at its parameters, scale of columns) -> the eigenbasis of G.
        whole: see `Surroundings`.
        dtype: of gradients and products.
        sample: so many training instances at most in a product, others in each.
    """

    products: int
    segments: int
    spectrum: Callable[[Gradients, Tensor | None], Spectrum]
    whole: bool
    dtype: torch.dtype
    sample: int


def follow_whole(
    task: Task, run: LiveRun, train: Tensor, test: Tensor, horizons: Sequence[int], how: Following, bar: tqdm
) -> tuple[Tensor, list[int]]:
    """Scores [horizons, n_test, n_train] along one run, and the numbers of eigenvalues.

    Args:
        task: with the model whose Hessian counts, its kinks softened or not.
        bar: counts steps.
    """
    ends = boundaries(horizons, how.products // 2)
    generator = torch.Generator().manual_seed(run.seed)
    everyone, decay = torch.arange(task.n_train), run.rule.weight_decay if run.rule.name != "adamw" else 0.0
    motion, drift, sizes, found, first = None, None, [], [], 0
    for number, end in enumerate(ends):
        middle = first + (end - first) // 2
        params = run.advance(middle)
        run.advance(middle + 1)  # the step from there has its own preconditioner and clipping
        widen(task, params)
        here = Surroundings(gradients_at(task, params, how.dtype), train, whole=how.whole)
        if number * how.segments // len(ends) > (number - 1) * how.segments // len(ends):
            drift = renewed(here.at, run, how)
            sizes.append(len(drift.spectrum.eigenvalues))
        if motion is None:
            motion = Motion(*[torch.zeros(len(train), here.at.n_params, dtype=how.dtype, device=run.device)] * 2)
        drift = replace(drift, share=run.share())

        def force(delta: Tensor, here: Surroundings = here, drift: Drift = drift, steps: int = end - first) -> Tensor:
            few = task.n_train > how.sample
            some = torch.randperm(task.n_train, generator=generator)[: how.sample] if few else everyone
            rest = here.hessian(delta, some) + decay * delta - drift.curvature(delta)
            return limited(rest, delta, drift, steps) - here.source(delta)

        motion = midpoint(drift, motion, force, first, end - first)
        there = Surroundings(gradients_at(task, run.advance(end), how.dtype), train, whole=how.whole)
        found.append(there.test_changes(test, motion.delta))
        bar.update(end - first)
        first = end
    return interpolated(torch.stack(found).cpu(), ends, horizons), sizes


def limited(rest: Tensor, delta: Tensor, drift: Drift, steps: int) -> Tensor:
    """The force (H - G)δ, [b, P], shortened where over so many steps it would move δ by more than `MOST` of its length.

    A unit that lingers at its kink would let δ explode, as no difference of two runs does: there it has switched.
    Single steps are the recursion itself.
    """
    if steps == 1:
        return rest
    s = 1.0 if drift.scale is None else drift.scale
    moved = drift.rule.learning_rate * steps * drift.share * (rest * s).norm(dim=1, keepdim=True)
    most = MOST * (delta / s).norm(dim=1, keepdim=True)
    return rest * (most / moved.clamp(min=torch.finfo(rest.dtype).tiny)).clamp(max=1.0)


def gradients_at(task: Task, params: Params, dtype: torch.dtype) -> Gradients:
    """The model at a place of the run."""
    if not torch.stack([p.isfinite().all() for p in params.values()]).all():
        raise ValueError("The full run diverged: its parameters are not finite; take a smaller learning rate.")
    return Gradients(task, params, dtype=dtype)


def renewed(at: Gradients, run: LiveRun, how: Following) -> Drift:
    """The eigenbasis of G at this place of the run."""
    multiplier = run.multiplier()
    scale = None if multiplier is None else at.flatten(multiplier).to(at.dtype).sqrt()
    return Drift(how.spectrum(at, scale), run.rule, scale)
