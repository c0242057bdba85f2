"""The effect of leaving an instance, or a group of them, out, followed along a full run with the whole Hessian.

To first order, by full batches, the difference δ between the run without instance i and the full run obeys

    δ(t+1) = δ(t) + step of the optimiser for the gradient  H(t) δ(t) - (1/n) ∇loss(zᵢ; θ(t)),   δ(0) = 0.

With Adam the step answers to two changes: that of its mean gradient, and that of its mean square, by which it divides.
The second builds up over a thousand steps; it is taken over batches of the run's size, whose noise is most of it.

Clipping multiplies gradients by a factor that answers to them: with SGD that is followed, too (`clipping`). With Adam,
which divides by the gradients' size again, the factor is held.

Where units are rectified, H is that of the model with softened kinks (`kinks`). `splitting` takes many steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from tqdm import tqdm

from ..groups import NOBODY
from ..tasks import Instances, Params, Task, take
from ..training.ensembles import Optimizer
from .adam import Moments
from .batches import MOMENTS, Batches, drawn, own_weight, with_gradients
from .clipping import Clipping
from .gradients import Gradients
from .kinks import widen
from .linearised import loss_changes
from .live_run import LiveRun
from .second_order import twice_differentiable
from .spectra import Spectrum
from .splitting import Drift, Force, Motion, boundaries, interpolated, midpoint

MOST = 0.5  # see `limited`
VECTORS = 8  # at least so many at once in products, and so fewer instances: both fill matrices


class Surroundings:
    """Gradients and Hessian products at one place of the run, for b instances left out, or groups of them.

    Args:
        at: the model there, its kinks softened if they are to be.
        train: the instances left out [b], or groups of them [b, g], see `groups.as_matrix`.
        whole: an instance is gone, so that its residual is the one in the run without it; else that of the full run.
        everywhere: its loss, over n, is taken off every batch; else its weight is zero in its own.
    """

    def __init__(self, at: Gradients, train: Tensor, *, whole: bool, everywhere: bool = False) -> None:
        self.at, self.members, self.whole, self.everywhere = at, train.reshape(len(train), -1), whole, everywhere

    def source(self, delta: Tensor, clipping: Clipping | None = None) -> tuple[Tensor, Tensor]:
        """Gradient of the loss of each instance, and its square; of a group, sums over its members: [b, P] each.

        With clipping, what it lets through of them.
        """
        at = self.at

        def one(instance: Instances, change: Tensor) -> Tensor:
            inputs, targets = take(instance, None)

            def outputs(p: Params) -> Tensor:
                return at.outputs(inputs, p)

            moved = jvp(outputs, (at.params,), (at.unflatten(change),))[1] if self.whole else 0.0
            return at.flatten(grad(lambda p: at.losses(outputs(p) + moved, targets)[0])(at.params))

        rows, places = (self.members != NOBODY).nonzero().T
        gradients, squares = torch.zeros_like(delta), torch.zeros_like(delta)
        for some, place in zip(rows.split(at.block_size()), places.split(at.block_size()), strict=True):
            with twice_differentiable():  # forward mode is what attention's fused kernels lack, too
                found = vmap(one)(at.train(self.members[some, place]), delta[some])
            if clipping is not None:
                found = clipping.less(found) if self.everywhere else clipping.of_instances(found)
            some = some.to(delta.device)
            gradients.index_add_(0, some, found)
            squares.index_add_(0, some, found.square())
        return gradients, squares

    def gradients(self, batches: Sequence[Tensor], decay: float = 0.0) -> Iterator[Tensor]:
        """For one batch of training instances after the other, the gradient of their mean loss, with what weight decay
        of this size adds to it, [P]; of small batches, those of several are computed at once."""
        at, decayed = self.at, decay * self.at.flatten(self.at.params)

        def mean_gradient(instances: Instances) -> Tensor:
            return at.flatten(at.of_mean_loss(instances, at.params))

        for size, same in groupby(batches, len):
            same, together = [*same], min(at.product_size(size), at.block_size())  # passes fit, and gradients do
            for some in (same[k : k + together] for k in range(0, len(same), together)):
                if len(some) > 1:
                    with twice_differentiable():  # attention's fused kernels have no batching rule
                        found = vmap(mean_gradient)(at.train(torch.stack(some)))
                    yield from found + decayed
                    continue
                pieces = some[0].split(at.product_size(VECTORS))
                yield sum(len(piece) / size * mean_gradient(at.train(piece)) for piece in pieces) + decayed

    def products(self, delta: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """For one batch of training instances after the other, the Hessian of their mean loss times every row of δ,
        [b, P]; of small batches, those of several are computed at once."""
        at, b = self.at, len(delta)
        for size, same in groupby(batches, len):
            same, together = [*same], at.product_size(size * b)
            for some in (same[k : k + together] for k in range(0, len(same), together)):
                if len(some) == 1:
                    yield self._product(delta, some[0])
                    continue
                rows = torch.stack(some).repeat_interleave(b, 0)
                yield from at.hessian_products(at.train(rows), delta.repeat(len(some), 1), each=True).split(b)

    def _product(self, delta: Tensor, rows: Tensor) -> Tensor:
        at, pieces = self.at, rows.split(self.at.product_size(VECTORS))
        return sum(len(piece) / len(rows) * at.hessian_products(at.train(piece), delta) for piece in pieces)

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
        sample: about so many training instances at most in a product, others in each interval; at least a batch.
        everywhere: see `Surroundings`.
    """

    products: int
    segments: int
    spectrum: Callable[[Gradients, Tensor | None], Spectrum]
    whole: bool
    dtype: torch.dtype
    sample: int
    everywhere: bool


def follow_whole(
    task: Task, run: LiveRun, train: Tensor, test: Tensor, horizons: Sequence[int], how: Following, bar: tqdm
) -> tuple[Tensor, list[int]]:
    """Scores [horizons, n_test, n_train] along one run, and the numbers of eigenvalues.

    Args:
        task: with the model whose Hessian counts, its kinks softened or not.
        bar: counts steps.
    """
    ends, generator = boundaries(horizons, how.products // 2), torch.Generator().manual_seed(run.seed)
    moments = None if run.rule.name == "sgd" else Moments(run.rule)
    start = Gradients(task, run.advance(0), dtype=how.dtype)
    motion, spectrum, sizes, found, first, n = None, None, [], [], 0, task.n_train
    for number, end in enumerate(ends):
        middle = first + (end - first) // 2
        params = run.advance(middle)
        run.advance(middle + 1)  # the step from there has its own clipping
        widen(task, params)
        at, share, scale, answer = gradients_at(start, params), run.share(), None, None
        clipping, around = None, Surroundings(at, train, whole=how.whole, everywhere=how.everywhere)
        if moments is not None:
            gradients = partial(around.gradients, decay=coupled(run.rule) / share)
            batches = with_gradients(*drawn(n, how.sample, run.batch_size, generator), gradients, MOMENTS)
            scale, answer = moments.advance(share * batches.mean, share**2 * batches.square, end - first)
        elif run.rule.max_grad_norm is not None:
            batches = with_gradients(*drawn(n, how.sample, run.batch_size, generator), around.gradients)
            clipping = clipping_of(batches, n, run.rule.max_grad_norm)
            share = clipping.share
        else:
            some = torch.randperm(n, generator=generator)[: how.sample] if n > how.sample else torch.arange(n)
            batches = Batches([some])
        if number * how.segments // len(ends) > (number - 1) * how.segments // len(ends):
            spectrum = how.spectrum(at, scale)
            sizes.append(len(spectrum.eigenvalues))
        if motion is None:
            motion = Motion(*[torch.zeros(len(train), at.n_params, dtype=how.dtype, device=run.device)] * 3)
        drift = Drift(spectrum, run.rule, scale, answer, share, clipping, bounded=how.whole)
        pull = Pull(around, drift, end - first, batches, own_weight(n, run.batch_size))
        motion = midpoint(drift, motion, pull, first, end - first)
        there = Surroundings(gradients_at(start, run.advance(end)), train, whole=how.whole)
        found.append(there.test_changes(test, motion.delta))
        bar.update(end - first)
        first = end
    return interpolated(torch.stack(found).cpu(), ends, horizons), sizes


@dataclass(frozen=True)
class Pull:
    """What moves δ over some steps besides G, as a function of δ: see `splitting.Force`.

    Args:
        own: of `batches.own_weight`.
    """

    around: Surroundings
    drift: Drift
    steps: int
    batches: Batches
    own: float

    def __call__(self, delta: Tensor) -> Force:
        around, rule, n = self.around, self.drift.rule, self.around.at.task.n_train
        change, square, clipping, turn = 0.0, 0.0, self.drift.clipping, 1 / len(self.batches.rows)
        products = around.products(delta, self.batches.rows)
        for number, (part, product) in enumerate(zip(self.batches.parts, products, strict=True)):
            product = product if clipping is None else clipping.answer(number, product)
            product = product + self.decay * delta
            change = change + (part if clipping is None else turn) * product
            if rule.name != "sgd":
                square = square + 2 * turn * self.batches.gradients[number] * product
        held = self.drift.curvature(delta)
        rest = limited(change - held, held, delta, self.drift, self.steps)
        source, squares = around.source(delta, clipping)
        if rule.name == "sgd":
            return Force(rest - source / n)
        return Force(rest - source / n, self.drift.share**2 * (square - self.lost(source, squares)))

    @property
    def decay(self) -> float:
        """Weight decay that adds to gradients, in units of what clipping leaves of these: it comes after clipping."""
        return coupled(self.drift.rule) / self.drift.share

    def lost(self, source: Tensor, squares: Tensor) -> Tensor:
        """What instances add to the mean square of the gradient of a batch, [b, P]; to first order unless `whole`.

        An instance is in a batch of B with probability B / n; there the other B - 1 are drawn from the other n - 1,
        those of its group as well. Or it is in all (`everywhere`), over n.

        Args:
            source, squares: of `Surroundings.source`.
        """
        n, mean, own = self.around.at.task.n_train, self.batches.mean, self.own
        if self.around.everywhere:
            return 2 / n * source * mean - ((source / n).square() if self.around.whole else 0.0)
        other = (1 - own) / max(n - 1, 1)  # the weight of each other instance in a batch with this one
        decay = self.decay * self.around.at.flatten(self.around.at.params)
        beside = source * (other * n * (mean - decay) + decay) - other * squares
        lost = 2 / n * (beside + own * squares)
        return lost - (own * squares + other * (source.square() - squares)) / n if self.around.whole else lost


def clipping_of(batches: Batches, n: int, max_norm: float) -> Clipping:
    """How SGD clips batches, of b of n instances: with one that it is known to hold, it has b - 1 of the others."""
    joining = [(n - b) / (max(n - 1, 1) * b) for b in map(len, batches.rows)]
    return Clipping(max_norm, batches.gradients, batches.mean, batches.gradients.new_tensor(joining))


def coupled(rule: Optimizer) -> float:
    """The weight decay that adds to gradients."""
    return 0.0 if rule.name == "adamw" else rule.weight_decay


def limited(rest: Tensor, held: Tensor, delta: Tensor, drift: Drift, steps: int) -> Tensor:
    """The force (H - G)δ, [b, P], shortened where over so many steps it would move δ by more than `MOST` of its length.

    A unit that lingers at its kink would let δ explode, as no difference of two runs does: there it has switched. With
    Adam, which magnifies such units, the force does not push δ along itself at all beyond what G takes back
    (`held`, Gδ). Single steps are the recursion itself.
    """
    if steps == 1:
        return rest
    s = 1.0 if drift.scale is None else drift.scale
    if drift.scale is not None:
        length = (delta / s).square().sum(1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
        push = ((rest + held) * delta).sum(1, keepdim=True) / length
        rest = rest - push.clamp(max=0.0) * delta / s**2
    moved = drift.rule.learning_rate * steps * drift.share * (rest * s).norm(dim=1, keepdim=True)
    most = MOST * (delta / s).norm(dim=1, keepdim=True)
    return rest * (most / moved.clamp(min=torch.finfo(rest.dtype).tiny)).clamp(max=1.0)


def gradients_at(start: Gradients, params: Params) -> Gradients:
    """The model at a place of the run."""
    if not torch.stack([p.isfinite().all() for p in params.values()]).all():
        raise ValueError("The full run diverged: its parameters are not finite; take a smaller learning rate.")
    return start.moved(params)
