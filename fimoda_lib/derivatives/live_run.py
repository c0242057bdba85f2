"""A full run that is trained on as it is followed."""

from __future__ import annotations

import torch

from ..devices import strict_arithmetic
from ..tasks import Params, Task, take, to
from ..training.ensembles import Ensemble, Optimizer, clip_grad_norm
from ..training.minibatches import FULL_RUN, run_batches


class LiveRun:
    """A full run that is trained on as it is followed: the one of `further_train` with this seed."""

    def __init__(
        self, task: Task, params: Params, rule: Optimizer, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.clips = rule.max_grad_norm is not None and rule.name != "sgd"  # whose batches are followed: `clipping`
        self.ensemble, self.rule = Ensemble(task, params, 1, rule, device=device), rule
        self.train = to(task.train, device, self.ensemble.dtype)
        nobody = torch.tensor([FULL_RUN])
        self.batches = run_batches(task.n_train, batch_size, nobody, seed, removal="mask", device=device)
        self.batch_size, self.seed, self.device, self.step, self.gradients = batch_size, seed, device, 0, None

    def advance(self, step: int) -> Params:
        """Trains up to this step; the parameters there."""
        e = self.ensemble
        with strict_arithmetic(self.device):
            while self.step < step:
                self.step += 1
                rows, weights = next(self.batches)
                batch, weights = take(self.train, rows[None]), weights.to(self.device, e.dtype)
                if self.clips and self.step == step:  # for `share`
                    with torch.no_grad(), e.masks(self.seed, self.step):
                        self.gradients = e.gradients(e.params, batch, weights, 1)
                with e.masks(self.seed, self.step):  # those of `further_train`
                    e.step(batch, weights)
        return {k: p[0].clone() for k, p in e.params.items()}

    def share(self) -> float:
        """What clipping left of the gradient in the last step of the last advance."""
        return 1.0 if self.gradients is None else what_clipping_leaves(self.gradients, self.rule.max_grad_norm)


def what_clipping_leaves(gradients: Params, max_norm: float) -> float:
    """The factor by which a gradient is shortened: 1 if it is not."""
    name = max(gradients, key=lambda k: gradients[k].abs().max())
    clipped = clip_grad_norm(gradients, max_norm)[name].norm() / gradients[name].norm().clamp(min=1e-30)
    return float(clipped) or 1.0
