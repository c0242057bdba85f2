"""One honest trial of a model and its loss at the door, before anything is trained or scored.

A few different instances, together and one by one, twice, in every precision and under every transform that the call
uses. What does not hold is said in one sentence of its own: numbers that would be wrong must not come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from ..checks import reason
from ..devices import own_randomness, strict_arithmetic
from ..tasks import Instances, Params, Task, different, extreme, take, to
from . import ties
from .causes import cause, failure
from .engines import needs_measuring
from .states import attributes, elsewhere
from .working import Working, once

FEW, LARGE = 3, 1_000_000  # instances that are tried, parameters of a large model
ROUNDING = {torch.float64: (1e-6, 1e-12), torch.float32: (1e-3, 1e-5)}  # of numbers, relative and absolute

# How replicas are trained: one after another, or batched, each with batches of its own or all with the same.
Replicas = Literal["single", "own", "shared"]


def check_evaluation(
    task: Task,
    params: Params,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float64,
    gradients: bool = False,
    replicas: Replicas = "single",
    parts: Sequence[str] = ("test", "train"),
) -> None:
    """Raises ValueError, in one sentence, unless the model can be relied upon, in evaluation mode, for a call.

    Args:
        device, dtype: where, and in which precision, the call computes.
        gradients: whether it takes gradients of single instances.
        replicas: whether it evaluates several models at once.
        parts: which instances it evaluates.
    """

    def check() -> None:
        trial = Trial(task, params, precisions(params, dtype)[0], device)
        for part in parts:
            few = trial.honest(part)
        if gradients:
            trial.differentiable(few)
        if replicas != "single":
            trial.replicated(few)
        ties.check_given(task, trial.working, trial.params, few)

    once(task, params, ("evaluation", device, dtype, gradients, replicas, *parts), strict_arithmetic(device)(check))


def check_training(
    task: Task,
    params: Params,
    device: torch.device,
    *,
    removal: str = "drop",
    replicas: int | None = None,
    batched: bool = True,
) -> None:
    """Raises ValueError, in one sentence, unless the model can be relied upon for training, and for its evaluation.

    Args:
        removal: how instances are left out.
        replicas: how many are trained at once; None for as many as fit.
        batched: False where a run is trained that is no ensemble.
    """
    kinds = {str(p.dtype).removeprefix("torch.") for p in params.values()}
    if len(kinds) > 1 or not kinds <= {"float32", "float64"}:  # squares of half precision overflow at 256
        raise ValueError(f"params: got {' and '.join(sorted(kinds))}, expected float32 or float64 in all: p.float().")
    kind: Replicas = "shared" if removal == "mask" and replicas != 1 else "own"
    kind = "single" if not batched or (replicas == 1 and needs_measuring(task, params)) else kind

    def check() -> None:
        for dtype in precisions(params, torch.float64, own=True):
            trial = Trial(task, params, dtype, device, training=True)
            few = trial.honest("train")
            trial.trainable(few, kind)
            if trial.working.noisy and dtype == torch.float64:  # without its masks gradients can be compared
                Trial(task, params, dtype, device).trainable(few, kind)

    check_evaluation(task, params, device, replicas=kind, parts=("test",))
    once(task, params, ("training", device, kind), strict_arithmetic(device)(check))


def precisions(params: Params, wanted: torch.dtype, *, own: bool = False) -> list[torch.dtype]:
    """In which to try: the one that is wanted (and the parameters' `own`); of a large model, which takes long in
    float64, the parameters' own alone: the other is tried where the call makes its `Working` model."""
    theirs = next(iter(params.values())).dtype
    large = sum(p.numel() for p in params.values()) > LARGE
    return [theirs] if large else list(dict.fromkeys([theirs, wanted] if own else [wanted]))


class Trial:
    """Model and loss of a task in one precision, in evaluation mode or (`training`) as the model was found."""

    def __init__(
        self, task: Task, params: Params, dtype: torch.dtype, device: torch.device, *, training: bool = False
    ) -> None:
        self.task, self.training, self.device = task, training, device
        self.params = {k: p.detach().to(device, dtype, copy=True) for k, p in params.items()}
        self.working = Working(task, params, dtype=dtype, device=device, training=training)
        self.rounding = ROUNDING.get(dtype, (0.1, 0.1))
        self.precise = dtype == torch.float64 and not self.working.noisy  # too much rounding, or other masks

    def honest(self, part: str) -> Instances:
        """All that is asked of forward passes; returns the few instances of the part."""
        ties.check_ties(self.task.name, self.task.model)
        rows = different(getattr(self.task, part), FEW)
        few = to(take(getattr(self.task, part), rows), self.device, self.working.dtype)
        with torch.no_grad():
            state, others, given = self.held(), elsewhere(), tree_map(torch.clone, few)
            try:
                alone = [] if self.training else [self.forward(one) for one in self.alone(few)]
                outputs, losses = self.forward(given)
                kept, own = outputs.clone(), attributes(self.working.model, self.working.criterion)
                self.working.loss(outputs, given[1])
            except Exception as error:  # whatever the caller's model and loss may raise
                raise failure(self.task.name, part, error, self.working.model) from error
            drawn = elsewhere() != others and all(self.draws(few) for _ in range(4))
            ties.check_left_alone(self.task.name, few, given, kept, outputs)
            ties.check_unchanged(self.task.name, state, self.held())
            self.repeats(few, kept, losses, drawn, own)
            self.each_on_its_own(few, alone, kept, losses, part)
            self.extremes(part)
        with own_randomness(self.device, 0):
            ties.check_doors(self.task.name, self.working, self.params, few)
            ties.check_writes(self.task.name, self.working, self.params, few)
        return few

    def extremes(self, part: str) -> None:
        """Classes and tokens that do not exist fail before the first step: the largest, and those below zero."""
        instances = getattr(self.task, part)
        for row in extreme(instances):
            try:
                self.forward(to(take(instances, torch.tensor([row, row])), self.device, self.working.dtype))
            except Exception as error:  # whatever the caller's model and loss may raise
                raise failure(self.task.name, part, error, self.working.model, row) from error

    def forward(self, instances: Instances, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Outputs and losses, always from the same random state."""
        with own_randomness(self.device, seed):
            outputs = self.working.outputs(self.params, instances[0])
            return outputs, self.working.loss(outputs, instances[1])

    def draws(self, few: Instances) -> bool:
        """Whether generators of Python or NumPy move in a pass; a worker's other threads move them now and then."""
        return elsewhere() != (self.forward(few) and elsewhere())

    def alone(self, few: Instances) -> list[Instances]:
        """Each of the instances as a batch of one."""
        return [tree_map(torch.clone, take(few, slice(k, k + 1))) for k in range(FEW)]

    def held(self) -> dict[str, Tensor]:
        """Copies of the parameters that the model is called with, and of its buffers."""
        return {k: v.clone() for k, v in [*self.params.items(), *self.working.model.named_buffers()]}

    def repeats(self, few: Instances, outputs: Tensor, losses: Tensor, drawn: bool, own: dict[str, Any]) -> None:
        """A second pass must find, and leave, what the first did; random numbers are PyTorch's own, and none in
        evaluation. What is kept of one pass alone (maps of attention, say) may change with its instances."""
        name, again = self.task.name, self.forward(few)
        ties.check_unchanged(name, own, attributes(self.working.model, self.working.criterion))
        if drawn or not all(map(ties.equal, again, (outputs, losses))):
            raise ValueError(
                f"The model or the loss of task '{name}' gives other numbers in a second pass, or draws random ones "
                "from elsewhere than PyTorch's own generator; expected torch.rand, F.dropout and the like, which can "
                "be paired between runs, in place of random, numpy.random, a generator of its own or a count of calls."
            )
        if self.working.noisy and not self.training:
            raise ValueError(
                f"The model of task '{name}' draws random numbers in evaluation mode, too, so that losses would be "
                "chance; expected none there: give F.dropout its training=self.training, add noise only if "
                "self.training."
            )

    def each_on_its_own(
        self, few: Instances, alone: list[tuple[Tensor, Tensor]], outputs: Tensor, losses: Tensor, part: str
    ) -> None:
        """An instance's outputs and loss must be the same whatever other instances are beside it, or none."""
        if self.training:  # where noise belongs to places in a batch
            error = self.beside_copies(few, outputs)
        else:
            error = self.error(torch.cat([one for one, _ in alone]), outputs)
        if error:
            raise ValueError(
                f"The outputs of task '{self.task.name}' for one of its {part} instances depend on which others are "
                f"beside it in the batch (by {error:.1%}), expected each on its own: instances lie along dimension 0 "
                "(attention and recurrent layers need batch_first=True), and no layer may use statistics of a batch."
            )
        single = torch.cat([self.working.loss(outputs[k : k + 1], few[1][k : k + 1]) for k in range(FEW)])
        if error := self.error(single, losses, 1 + float(outputs.abs().nan_to_num().max())):
            shapes = ", ".join(str((FEW, *shape)) for shape in self.working.form.shapes)
            raise ValueError(
                f"The loss of task '{self.task.name}' for one of its {part} instances depends on which others are "
                f"beside it in the batch (by {error:.1%}), expected each on its own: outputs {shapes} and targets "
                f"{tuple(few[1].shape)} may have been broadcast, or something was averaged over instances."
            )

    def beside_copies(self, few: Instances, outputs: Tensor) -> float:
        """Largest `error` of an instance's outputs, in its place of a batch, where it is in all other places, too."""
        errors = []
        for seed in (0, 1) if self.working.noisy else (0,):  # a drawn order may leave an instance alone
            expected = self.forward(few, seed)[0] if seed else outputs
            for k in range(FEW):
                copies = take(few, torch.full((FEW,), k, device=self.device))
                errors.append(self.error(self.forward(copies, seed)[0][k : k + 1], expected[k : k + 1]))
        return max(errors)

    def error(self, found: Tensor, expected: Tensor, scale: float = 1.0) -> float:
        """Largest difference relative to the largest entry, 0 if it is rounding; infinite if shapes differ, or only one
        of the two is finite."""
        if not torch.equal(found.isfinite(), expected.isfinite()):
            return float("inf")
        found, expected = (x[expected.isfinite()] for x in (found, expected))
        if not len(found):
            return 0.0
        difference, size = float((found - expected).abs().max()), float(expected.abs().max())
        relative, absolute = self.rounding
        return 0.0 if difference <= relative * size + absolute * scale else difference / max(size, 1e-300)

    def differentiable(self, few: Instances) -> None:
        """Gradients of single instances by `torch.func` must be those of plain backward passes."""

        def loss(p: Params, instance: Instances) -> Tensor:
            return self.working.losses(p, take(instance, None))[0]

        found = self.attempt(lambda: vmap(grad(loss), in_dims=(None, 0))(self.params, few))
        for k, one in enumerate(self.alone(few)[: FEW if self.precise else 1]):
            self.compare({name: g[k] for name, g in found.items()}, one)

    def trainable(self, few: Instances, training: Replicas) -> None:
        """Gradients of replicas by `torch.func` must be those of plain backward passes."""

        def total(p: Params, instances: Instances) -> Tensor:
            return self.working.losses(p, instances).sum()

        def by_transforms() -> Params:
            with own_randomness(self.device, 0):
                if training == "single":
                    return grad(total)(self.params, few)
                two = tree_map(lambda p: p.expand(2, *p.shape), self.params)
                own = training == "own"
                batch = tree_map(lambda x: torch.stack([x, x]), few) if own else few
                both = vmap(grad(total), in_dims=(0, 0 if own else None), randomness="same")(two, batch)
                return {name: g[1] for name, g in both.items()}

        self.compare(self.attempt(by_transforms), few)
        if self.precise:
            ties.check_sum(self.task.name, self.working, self.params, few)

    def compare(self, found: Params, instances: Instances) -> None:
        """Raises ValueError unless these are the gradients of the sum of the losses."""
        leaves = {k: p.clone().requires_grad_() for k, p in self.params.items()}
        with torch.enable_grad(), own_randomness(self.device, 0):
            total = self.working.losses(leaves, instances).sum()
        if not total.requires_grad:
            raise ValueError(
                f"The losses of task '{self.task.name}' do not depend on the parameters, expected some that can be "
                "differentiated: no forward pass under torch.no_grad(), no result that is detached."
            )
        if not self.precise:
            return
        plain = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        pairs = [torch.cat([g.flatten() for g in gradients]) for gradients in (found.values(), plain)]
        if error := self.error(*pairs):
            raise ValueError(
                f"The gradients of task '{self.task.name}' by torch.func differ from those of a plain backward pass "
                f"(by {error:.1%}), expected the same: check what the model adds to derivatives itself, by an "
                "autograd.Function or a hook."
            )

    def replicated(self, few: Instances) -> None:
        """Losses of replicas that are evaluated together."""
        two = tree_map(lambda p: p.expand(2, *p.shape), self.params)
        with torch.no_grad():
            self.attempt(lambda: vmap(lambda p: self.working.losses(p, few))(two), "evaluated for several models")

    def attempt(self, call: Callable[[], Any], how: str = "differentiated") -> Any:
        """The result of a call to `torch.func`; raises ValueError, with its cause, if there is none."""
        try:
            return call()
        except Exception as error:
            what, advice = cause(error, self.working.model)
            raise ValueError(
                f"Task '{self.task.name}' cannot be {how} by torch.func{what} "
                f"({reason(error)}), expected operations that run under torch.func.vmap{advice}."
            ) from error
