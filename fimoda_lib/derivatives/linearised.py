"""The effect of leaving an instance out, followed along a recorded full run in the eigenbasis of G.

In the basis, a direction of eigenvalue σ forgets by the factor (1 - ησ) in every step and gains η/n times its part of
the instance's gradient. Between two records of the run the residuals are taken at their mean, so that any number of
steps is one product. Outside the basis nothing is forgotten; there δ is a sum of the instance's own gradients, whose
weights are all that need be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..groups import NOBODY, membership
from ..tasks import count, take, to
from .gradients import Gradients
from .spectra import Spectrum
from .trajectories import Segment, Trajectory

GROUP_BYTES = 3 * 2**30  # Jacobians of all members of groups, which are held at once
TOGETHER, TOGETHER_BYTES = 64, 2**30
HESSIANS, TOGETHER_OUTPUTS = 2**26, 4096  # entries of the losses' second derivatives, and instances, at once


def output_directions(at: Gradients) -> Tensor:
    """An orthonormal basis [r, C] of the output directions in which some loss changes, of training or of test
    instances: one for two classes."""
    C = at.outputs(at.train(torch.arange(1))[0]).shape[1]
    if C == 1:
        return torch.ones(1, 1, dtype=torch.float64, device=at.device)
    kinds: list[Any] = [0.0, 0.0, 0.0]
    for part, n in ((at.train, at.task.n_train), (at.test, at.task.n_test)):
        for rows in torch.arange(n).split(min(max(HESSIANS // C**2, 1), TOGETHER_OUTPUTS)):
            inputs, targets = part(rows)
            with torch.no_grad():
                outputs = at.outputs(inputs).double()
            slopes = at.loss_slopes(outputs, targets)  # of a loss that is linear in an output, all there is
            here, at_zero = (at.loss_hessians(o, targets).sum(0) for o in (outputs, torch.zeros_like(outputs)))
            found = here, at_zero.nan_to_num(0, 0, 0), slopes.T @ slopes
            kinds = [total + one for total, one in zip(kinds, found, strict=True)]
    # Each on its own scale: a loss of probabilities has a pole at zero, beside which all else would be nothing.
    values, vectors = torch.linalg.eigh(sum(map(size_one, kinds)))
    return vectors.T[values > 1e-9 * values[-1]]


def size_one(matrix: Tensor) -> Tensor:
    """A symmetric matrix with its eigenvalues positive, and one in all."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * (values.abs() / values.abs().sum().clamp(min=1e-300))) @ vectors.T


def jacobians(at: Gradients, instances: tuple, directions: Tensor, scale: Tensor | None) -> Tensor:
    """Of the outputs along `directions`, with columns multiplied by `scale`: [b, r, P]."""
    J = at.of_outputs(instances[0], directions.to(at.dtype).expand(count(instances), -1, -1))
    return J if scale is None else J * scale


def decay(spectrum: Spectrum, run: Trajectory, steps: int) -> tuple[Tensor, Tensor]:
    """What so many steps leave of every direction, a = (1 - ησ)^steps, and their gain (1 - a)/σ: both [q]."""
    moved = run.learning_rate * spectrum.eigenvalues
    if run.settings["optimizer"] == "sgd":
        # From 1 to 2 steps overshoot: 1 - ησ is negative. Beyond, the recursion would explode where the run did not;
        # there δ settles at once.
        size = torch.where(moved > 1, 2 - moved, moved).where(moved < 2, 1.0)  # 1 - |1 - ησ|
        log_a, negative = steps * torch.log1p(-size), (moved > 1) & (steps % 2 == 1)
    else:
        # Adam's momentum averages over ten steps, which keeps directions stable in which single steps would overshoot.
        log_a, negative = -moved * steps, torch.zeros_like(moved, dtype=torch.bool)
    a, flat = torch.where(negative, -log_a.exp(), log_a.exp()), moved * steps < 1e-9
    gain = torch.where(flat, steps, torch.where(negative, 1 - a, -torch.expm1(log_a)) / moved.where(~flat, 1.0))
    return a, run.learning_rate * gain


class Effect:
    """δ of a block of b training instances within one segment.

    Args:
        J: Jacobians of the instances [b, r, P]; J_test: of the test instances [z, r, P].
        start: δ when the segment begins [b, P]; None for zero.
    """

    def __init__(self, spectrum: Spectrum, J: Tensor, J_test: Tensor, start: Tensor | None) -> None:
        def project(J: Tensor) -> Tensor:
            return spectrum.into(J.flatten(0, 1)).view(*J.shape[:2], -1)

        self.spectrum, self.J = spectrum, J
        self.inside, self.inside_test = project(J), project(J_test)  # [b, r, q], [z, r, q]
        # Products of what lies outside the basis, without forming it.
        self.kernel = torch.einsum("brp,bsp->brs", J, J) - torch.einsum("brq,bsq->brs", self.inside, self.inside)
        self.kernel_test = torch.tensordot(J_test, J, ([2], [2])) - torch.tensordot(
            self.inside_test, self.inside, ([2], [2])
        )  # [z, r, b, r]
        self.coordinates = self.inside.new_zeros(len(J), self.inside.shape[2])
        self.weights = J.new_zeros(J.shape[:2])  # of the instance's own Jacobian, outside the basis
        self.start = None
        if start is not None:
            self.coordinates = spectrum.into(start)
            self.start = start - spectrum.out_of(self.coordinates)
            self.started = torch.einsum("brp,bp->br", J, self.start)
            self.started_test = torch.einsum("zrp,bp->zbr", J_test, self.start)

    def advance(self, slopes: Tensor, kept: Tensor, gain: Tensor, plain: float) -> None:
        """Some steps, with the loss slopes of the instances over n [b, r] and the factors of `decay`."""
        self.coordinates = kept * self.coordinates + gain * torch.einsum("br,brq->bq", slopes, self.inside)
        self.weights = self.weights + plain * slopes

    def on_own(self) -> Tensor:
        """Change of each instance's own outputs, [b, r]."""
        change = torch.einsum("brq,bq->br", self.inside, self.coordinates)
        change = change + torch.einsum("brs,bs->br", self.kernel, self.weights)
        return change if self.start is None else change + self.started

    def on_test(self) -> Tensor:
        """Change of the outputs of every test instance, [z, b, r]."""
        change = torch.einsum("zrq,bq->zbr", self.inside_test, self.coordinates)
        change = change + torch.einsum("zrbs,bs->zbr", self.kernel_test, self.weights)
        return change if self.start is None else change + self.started_test

    def total(self) -> Tensor:
        """δ itself, [b, P]."""
        beyond = torch.einsum("br,brp->bp", self.weights, self.J)
        outside = beyond - self.spectrum.out_of(self.spectrum.into(beyond))
        inside = self.spectrum.out_of(self.coordinates)
        return inside + outside if self.start is None else inside + outside + self.start


class GroupEffect(Effect):
    """δ of g groups of instances that are left out together, within one segment.

    Args:
        J: Jacobians of all their members [b, r, P]; J_test: of the test instances [z, r, P].
        start: δ of the groups when the segment begins [g, P]; None for zero.
        member: which instances each group holds, [g, b] bool.
    """

    def __init__(self, spectrum: Spectrum, J: Tensor, J_test: Tensor, start: Tensor | None, member: Tensor) -> None:
        super().__init__(spectrum, J, J_test, None)
        flat, inside = J.flatten(0, 1), self.inside.flatten(0, 1)
        self.member = member.to(J)[:, :, None]
        self.kernel = flat @ flat.T - inside @ inside.T  # of every member with every other, [b r, b r]
        self.coordinates = inside.new_zeros(len(member), inside.shape[1])
        self.weights = J.new_zeros(len(member), *J.shape[:2])
        if start is not None:
            self.coordinates = spectrum.into(start)
            self.start = start - spectrum.out_of(self.coordinates)
            self.started = torch.einsum("brp,gp->gbr", J, self.start)
            self.started_test = torch.einsum("zrp,gp->zgr", J_test, self.start)

    def advance(self, slopes: Tensor, kept: Tensor, gain: Tensor, plain: float) -> None:
        """Some steps, with the slopes of all members over n: [g, b, r], or [b, r], those of the full run."""
        slopes = slopes * self.member
        pushed = slopes.flatten(1) @ self.inside.flatten(0, 1)
        self.coordinates = kept * self.coordinates + gain * pushed
        self.weights = self.weights + plain * slopes

    def on_own(self) -> Tensor:
        """Change of the outputs of all members by each group, [g, b, r]."""
        change = self.coordinates @ self.inside.flatten(0, 1).T + self.weights.flatten(1) @ self.kernel
        change = change.view_as(self.weights)
        return change if self.start is None else change + self.started

    def on_test(self) -> Tensor:
        """Change of the outputs of every test instance, [z, g, r]."""
        change = torch.einsum("zrq,gq->zgr", self.inside_test, self.coordinates)
        change = change + torch.tensordot(self.weights, self.kernel_test, ([1, 2], [2, 3])).permute(1, 0, 2)
        return change if self.start is None else change + self.started_test

    def total(self) -> Tensor:
        """δ itself, [g, P]."""
        beyond = self.weights.flatten(1) @ self.J.flatten(0, 1)
        found = self.spectrum.out_of(self.coordinates) + beyond - self.spectrum.out_of(self.spectrum.into(beyond))
        return found if self.start is None else found + self.start


def everyone(train: Tensor) -> Tensor:
    """The instances that are scored, or that groups hold, each once."""
    return train if train.dim() == 1 else train[train != NOBODY].unique()


def effects_of(
    at: Gradients, spectrum: Spectrum, J_test: Tensor, starts: Tensor | None, train: Tensor, D: Tensor,
    scale: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor, Effect]]:  # fmt: skip
    """Effects of blocks of instances, or of all groups at once: (their places in `train`, all their members, effect).

    Args:
        starts: δ of everything that is scored when the segment begins [n_train, P]; None for zero.

    Raises:
        ValueError: groups hold so many instances that their Jacobians do not fit.
    """
    members, size, grouped = everyone(train), at.block_size(len(D)), train.dim() == 2
    most = max(GROUP_BYTES // bytes_of(at, len(D)), 1)
    if grouped and len(members) > most:
        raise ValueError(
            f"train: got groups of {len(members):,} different instances, expected at most {most:,} of this "
            "model, whose Jacobians are held at once; group_scores sums scores of single instances."
        )
    for some in torch.arange(len(members)).split(len(members) if grouped else together(at, len(D))):
        J = torch.cat([jacobians(at, at.train(members[block]), D, scale) for block in some.split(size)])
        places = torch.arange(len(train)) if grouped else some
        start = None if starts is None else starts[places] / (1 if scale is None else scale)
        if grouped:
            holds = membership(train, at.task.n_train)[:, members]
            yield places, members, GroupEffect(spectrum, J, J_test, start, holds)
        else:
            yield places, members[some], Effect(spectrum, J, J_test, start)


def bytes_of(at: Gradients, r: int) -> int:
    """Of the Jacobians of one instance along r directions."""
    return r * at.n_params * torch.finfo(at.dtype).bits // 8


def together(at: Gradients, r: int) -> int:
    """How many instances are followed at once: a block, but of a large model some more, since for each block all
    gradients that define the curvature are read."""
    return max(at.block_size(r), min(TOGETHER, TOGETHER_BYTES // bytes_of(at, r)))


def follow(
    at: Gradients, run: Trajectory, segment: Segment, effect: Effect, D: Tensor, train: Tensor, *, whole: bool
) -> Iterator[tuple[int, Tensor]]:
    """Follows the effect of the given training instances, or of groups of them, through a segment.

    Args:
        D: the output directions.
        train: the instances whose Jacobians `effect` holds.
        whole: the instance is gone, so that its residual is the one in the run without it; else that of the full run.

    Yields:
        after every record (its number, the change of the test outputs [z, b, C], float64).
    """
    targets = to(take(at.task.train, train), at.device, torch.float64)[1]
    factors: dict[int, tuple[Tensor, Tensor]] = {}

    def slopes(outputs: Tensor) -> Tensor:  # of each instance [b, C], or once for every group [g, b, C]
        times = outputs.shape[:-2].numel()
        return at.loss_slopes(outputs.flatten(0, -2), targets.repeat(times, *[1] * (targets.dim() - 1))).view_as(
            outputs
        )

    for record in range(segment.first, segment.last):
        steps = run.steps[record + 1] - run.steps[record]
        if steps not in factors:
            factors[steps] = decay(effect.spectrum, run, steps)
        change = effect.on_own().double() @ D if whole else 0.0
        first, last = (
            slopes(outputs + change)
            for outputs in (run.train_outputs[k][train].to(at.device) for k in (record, record + 1))
        )
        # Their mean over the steps if they change evenly: each step uses the slope at its beginning.
        mean = first + (last - first) * (steps - 1) / (2 * steps)
        effect.advance((mean @ D.T).to(at.dtype) / at.task.n_train, *factors[steps], run.learning_rate * steps)
        yield record + 1, effect.on_test().double() @ D


def evolved(at: Gradients, run: Trajectory, spectrum: Spectrum, D: Tensor) -> Trajectory:
    """The run as it would be with full batches in the model linearised at its final parameters: no training.

    Args:
        run: gives the steps and the settings.
    """
    rows = torch.arange(at.task.n_train)
    mean = sum(g.sum(0) for _, g in at.blocks(rows)) / at.task.n_train
    inside = spectrum.into(mean[None])
    outside = mean - spectrum.out_of(inside)[0]
    moved = torch.stack([-decay(spectrum, run, steps)[1] for steps in run.steps]) * inside  # [records, q]
    drift = -run.learning_rate * torch.tensor(run.steps, dtype=at.dtype, device=at.device)

    def outputs(part: Any, n: int) -> Tensor:
        found = []
        for piece in torch.arange(n).split(at.block_size(len(D))):
            instances = part(piece)
            J = jacobians(at, instances, D, None)
            change = torch.einsum("tq,brq->tbr", moved, spectrum.into(J.flatten(0, 1)).view(*J.shape[:2], -1))
            change = change + drift[:, None, None] * (J @ outside)
            found.append((at.outputs(instances[0]).detach() + change.double() @ D).cpu())
        return torch.cat(found, 1)

    train, test = outputs(at.train, at.task.n_train), outputs(at.test, at.task.n_test)
    whole = Segment(0, len(run.steps) - 1, at.params, None)
    return Trajectory(run.learning_rate, run.steps, train, test, (whole,), run.settings)


def loss_changes(at: Gradients, outputs: Tensor, change: Tensor, test: Tensor, *, whole: bool) -> Tensor:
    """Changes of the test losses, [z, b], for changes of the test outputs [z, b, C]; to first order unless `whole`."""
    targets, outputs = to(take(at.task.test, test), at.device, torch.float64)[1], outputs.to(at.device)
    if not whole:
        return (change * at.loss_slopes(outputs, targets)[:, None]).sum(2)
    z, b = change.shape[:2]
    changed = (outputs[:, None] + change).flatten(0, 1)
    losses = at.losses(changed, targets.repeat_interleave(b, 0)).view(z, b)
    return losses - at.losses(outputs, targets)[:, None]
