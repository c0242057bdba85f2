"""What further training is asked to do, checked: every wrong input ends here, in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .ensembles import Optimizer
from .minibatches import REMOVALS
from .naming import loss_name, model_name
from .store import fingerprint
from .tasks import Instances, Params, Task, take, to


@dataclass(frozen=True)
class Plan:
    """A checked specification of further training; everything but the task, the parameters and the seed."""

    optimizer: Optimizer
    batch_size: int
    epochs: int
    removal: str
    fraction: float
    left_out: tuple[int, ...]
    test: tuple[int, ...]
    steps: tuple[int, ...]  # evaluation after these many optimiser steps

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1.")
        if self.removal not in REMOVALS:
            raise ValueError(f"removal: got {self.removal!r}, expected one of {', '.join(REMOVALS)}.")
        if not 0 <= self.fraction <= 1 or (self.removal == "drop" and self.fraction != 1):
            raise ValueError(
                f"fraction: got {self.fraction} with removal '{self.removal}', expected a number from 0 "
                "to 1 (and 1 with 'drop', which can only remove a whole instance)."
            )


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """Seeds as a list, each once and not negative."""
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if not seeds or any(int(s) != s for s in seeds) or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds: got {seeds}, expected at least one, each a different whole number of 0 or more.")
    return [int(s) for s in seeds]


def evaluation_steps(evaluate: Any, epochs: int, per_epoch: int) -> tuple[int, ...]:
    """Optimiser steps after which to evaluate, from "epoch" or a list of steps."""
    if per_epoch < 1 or not isinstance(epochs, int) or epochs < 1:
        return ()  # the plan says what is wrong with the batch size or the epochs
    if isinstance(evaluate, str):
        if evaluate != "epoch":
            raise ValueError(f"evaluate: got {evaluate!r}, expected 'epoch' or a list of optimiser steps.")
        return tuple(per_epoch * (e + 1) for e in range(epochs))
    steps = tuple(evaluate)
    total = epochs * per_epoch
    whole = all(int(s) == s for s in steps)
    if not steps or not whole or list(steps) != sorted(set(steps)) or steps[0] < 0 or steps[-1] > total:
        raise ValueError(
            f"evaluate: got {list(steps)[:8]}, expected increasing optimiser steps from 0 to {total} "
            f"({epochs} epochs of {per_epoch} steps)."
        )
    return tuple(int(s) for s in steps)


def check_loss(task: Task, params: Params) -> None:
    """Raises ValueError unless the loss gives one value per instance."""
    two = take(task.train, torch.zeros(2, dtype=torch.long))
    shape = tuple(try_model(task, params, two, with_loss=True).shape)
    if shape != (2,):
        raise ValueError(
            f"The loss of task '{task.name}' returned shape {shape} for 2 instances, expected (2,): one "
            "value per instance, not reduced."
        )


def try_model(task: Task, params: Params, instances: Instances, with_loss: bool = False) -> Tensor:
    """Outputs (or losses) of the model, as it is, on some instances; the caller's random state is left alone."""
    like = next(iter(params.values()))
    inputs, targets = to(instances, like.device, like.dtype)
    model = copy.deepcopy(task.model).to(like.device, like.dtype)  # frozen parameters and buffers, too
    with torch.no_grad(), torch.random.fork_rng():
        outputs = torch.func.functional_call(model, params, (inputs,))
        return task.loss(outputs, targets) if with_loss else outputs


def has_dropout(model: nn.Module) -> bool:
    """Whether training draws dropout masks."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in model.modules())


def specification(task: Task, params: Params, plan: Plan) -> dict[str, Any]:
    """Everything that determines the numbers, as JSON values."""
    frozen = {name: value for name, value in task.model.state_dict().items() if name not in params}
    return {
        "task": task.name,
        "model": repr(task.model),
        "loss": loss_name(task.loss),
        "data": fingerprint(task.train, take(task.test, torch.tensor(plan.test, dtype=torch.long))),
        "params": fingerprint(params),
        **{k: v for k, v in asdict(plan).items()},
        **({"model_code": code} if (code := model_name(task.model)) else {}),
        **({"frozen": fingerprint(frozen)} if frozen else {}),
        **({"dropout": "active"} if has_dropout(task.model) else {}),
    }
