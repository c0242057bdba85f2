"""Task: the one thing to plug in. A model, its per-instance loss, and the training and test instances.

Parameters are not part of a task: they travel separately, as a dict name -> tensor, because the whole subject is
what happens to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from . import checks

Params = dict[str, Tensor]
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
INFERENCE = "where nothing can be differentiated; expected torch.no_grad() in its place, or tensors made outside."
Instances = tuple[Any, Tensor]  # (inputs: a tensor or any pytree of tensors, targets), instances along dimension 0


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each instance, summed over outputs: [B, ...] and targets of as many numbers -> [B]."""
    outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    if outputs.shape != targets.shape:  # broadcasting would give a number, and the wrong one
        raise ValueError(f"squared_error: got outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}.")
    return (outputs - targets).square().sum(1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each instance: logits [B, C] and class numbers [B] -> [B]; not for one logit, where it is 0."""
    if outputs.dim() > 1 and outputs.shape[1] == 1:
        wanted = "one for each class, or binary_cross_entropy_with_logits"
        raise ValueError(f"cross_entropy of one logit is always 0, expected {wanted}")  # told inside another sentence
    return F.cross_entropy(outputs, targets if targets.is_floating_point() else targets.long(), reduction="none")


@dataclass(frozen=True, eq=False)
class Task:
    """A model, its per-instance loss, and the instances it was trained and is tested on.

    Args:
        name: short, used in file names.
        model: any module whose forward pass works under `torch.func`; called as `model(inputs)`.
        loss: `loss(outputs, targets) -> [B]`, one value per instance, never reduced. Takes what the model returns: a
            tensor [B, ...], a tuple, list or dict of tensors, or an output object of Hugging Face's (or its logits).
        train, test: `(inputs, targets)`; inputs are a tensor or any pytree of tensors with a leading instance
            dimension (a dict of token tensors works, or what a tokenizer returns).
        title: how figures call the data set.
        stand_in_for: title of the paper's data set that this one replaces, if it does.
        train_table, test_table: the same instances as a person would read them, for tables.
    """

    name: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Instances
    test: Instances
    title: str = ""
    stand_in_for: str | None = None
    train_table: pd.DataFrame | None = None
    test_table: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):  # other mappings than a dict, such as a tokenizer returns, are no pytrees
            match getattr(self, part):
                case (Mapping() as inputs, targets) if not isinstance(inputs, dict):
                    object.__setattr__(self, part, (dict(inputs), targets))

    @property
    def n_train(self) -> int:
        return count(self.train)

    @property
    def n_test(self) -> int:
        return count(self.test)

    @property
    def kind(self) -> str:
        """ "classification" if the targets are whole numbers (classes), else "regression"."""
        return "regression" if self.train[1].is_floating_point() else "classification"

    def check(self) -> None:
        """Raises ValueError, in one sentence, if the task cannot be used: of another type than documented, or with
        instances whose lengths differ, that are none, or not finite."""
        if not isinstance(self.name, str) or {"/", "\\", "\0"} & set(self.name):
            raise ValueError(f"Task: got the name {checks.shown(self.name)}, expected a short text without slashes.")
        if not isinstance(self.model, nn.Module) or not callable(self.loss):
            raise ValueError(
                f"Task '{self.name}': got a {type(self.model).__name__} as model and a {type(self.loss).__name__} as "
                "loss, expected a torch.nn.Module and a function loss(outputs, targets)."
            )
        for part in (self.model, self.loss):
            check_dense(self.name, part)
        for part, instances in (("train", self.train), ("test", self.test)):
            leaves = tree_flatten(instances)[0] if isinstance(instances, tuple | list) and len(instances) == 2 else []
            if any(isinstance(x, Tensor) and x.is_inference() for x in leaves):
                raise ValueError(f"Task '{self.name}': {part} was made in torch.inference_mode(), {INFERENCE}")
            odd = [x for x in leaves if isinstance(x, Tensor) and (x.layout != torch.strided or x.is_nested)]
            if odd:
                kind = "nested" if odd[0].is_nested else str(odd[0].layout).removeprefix("torch.")
                raise ValueError(
                    f"Task '{self.name}': {part} holds a {kind} tensor, expected dense ones, whose rows can be taken "
                    "one by one; make it dense by to_dense() or to_padded_tensor()."
                )
            if any(isinstance(x, nn.utils.rnn.PackedSequence) for x in tree_flatten(instances, _is_packed)[0]):
                raise ValueError(
                    f"Task '{self.name}': {part} holds a packed sequence, whose instances cannot be taken one by one; "
                    "expected padded ones [n, length, ...], as nn.utils.rnn.pad_packed_sequence returns."
                )
            if not leaves or not isinstance(instances[1], Tensor) or not all(map(_has_instances, leaves)):
                odd = [leaf for leaf in leaves if not _has_instances(leaf)]
                what = f"holds {checks.shown(odd[0])}" if odd else f"is {checks.shown(instances)}"
                raise ValueError(
                    f"Task '{self.name}': {part} {what}, expected (inputs, targets), which are tensors (inputs may be "
                    "a dict, list or tuple of them) with instances along dimension 0; torch.as_tensor makes one of an "
                    "array, and classes or words have to be numbered first."
                )
            inputs, targets = instances
            leaves = tree_flatten(inputs)[0]
            lengths = {len(leaf) for leaf in leaves} | {len(targets)}
            if len(lengths) != 1:
                raise ValueError(
                    f"Task '{self.name}': the {part} inputs and targets have different lengths "
                    f"({sorted(lengths)}); give one target per instance."
                )
            if lengths == {0}:
                raise ValueError(f"Task '{self.name}': there are no {part} instances; give at least one.")
            for what, leaf in [("inputs", leaf) for leaf in leaves] + [("targets", targets)]:
                if leaf.is_floating_point() and leaf.numel() and not torch.stack(leaf.aminmax()).isfinite().all():
                    raise ValueError(
                        f"Task '{self.name}': the {part} {what} hold NaN or infinite values "
                        f"({int((~leaf.isfinite()).sum())} of {leaf.numel()}); remove or impute them first."
                    )


def check_dense(task: str, part: Any) -> None:
    """Raises ValueError for layers or tensors of a model, or of a loss that is one, that are quantised or sparse."""
    for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
        if ".quantized." in type(module).__module__:
            raise ValueError(
                f"Layer {name!r} of task '{task}' is quantised, expected real numbers, which can be differentiated and "
                "moved to float64; give the model that was quantised."
            )
        for key, value in (*vars(module).items(), *module._buffers.items(), *module._parameters.items()):
            if isinstance(value, Tensor) and value.layout != torch.strided:
                raise ValueError(
                    f"{f'{name}.{key}'.lstrip('.')!r} of task '{task}' is a {str(value.layout).removeprefix('torch.')} "
                    "tensor, expected dense ones, which torch.func knows; make it dense by to_dense()."
                )


def check_task(task: Any) -> None:
    """Raises ValueError unless this is a task that can be used."""
    if not isinstance(task, Task):
        raise ValueError(f"task: got {checks.shown(task)}, expected a Task, such as load_task('wine').")
    if torch.is_inference_mode_enabled():
        raise ValueError(f"Task '{task.name}' came to be used in torch.inference_mode(), {INFERENCE}")
    task.check()


def _is_packed(node: Any) -> bool:
    return isinstance(node, nn.utils.rnn.PackedSequence)


def _has_instances(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def spread(n: int) -> Tensor:
    """Some of n instances, evenly over all: in sorted data the first ones are of one kind."""
    return torch.linspace(0, n - 1, min(64, n)).long()


def count(instances: Instances) -> int:
    """Number of instances in (inputs, targets)."""
    return len(instances[1])


def take(instances: Instances, rows: Tensor | slice) -> Instances:
    """The given rows of (inputs, targets); rows may have any shape, which replaces the instance dimension."""
    return tree_map(lambda leaf: leaf[rows], instances)


def different(instances: Instances, k: int) -> Tensor:
    """Numbers [k] of up to three instances that can be told apart: the first, one with another target, the last.

    Looks for another target among the first thousand; where there are fewer instances than k, some are named twice.
    """
    n, targets = count(instances), instances[1][:1000]
    other = (targets != targets[0]).flatten(1).any(1) if targets.dim() > 1 else targets != targets[0]
    second = int(other.int().argmax()) or min(1, n - 1)
    return torch.tensor([0, second, n - 1 if n - 1 != second else n // 2])[:k]


def extreme(instances: Instances) -> list[int]:
    """Numbers of the instances that hold the smallest and the largest of the whole numbers: of classes, tokens."""
    leaves = [x.reshape(len(x), -1) for x in tree_leaves(instances) if x.dtype in WHOLE and x.numel()]
    return sorted({int(f(x)) for x in leaves for f in (lambda x: x.amin(1).argmin(), lambda x: x.amax(1).argmax())})


def to(instances: Instances, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Instances:
    """Moves instances to a device; `dtype` is that of real numbers (tokens and classes stay whole)."""
    return tree_map(lambda leaf: leaf.to(device=device, dtype=counterpart(leaf.dtype, dtype)), instances)


def model_to(model: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Moves a model in place, as `model.to` does, which would make complex buffers real without a word."""
    return model._apply(lambda tensor: tensor.to(device, counterpart(tensor.dtype, dtype)))


def counterpart(kind: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The type of numbers of this kind in the precision of `dtype`: complex ones stay complex, whole ones whole."""
    if dtype is None or not (kind.is_floating_point or kind.is_complex):
        return kind
    return dtype.to_complex() if kind.is_complex else dtype


def resolve_rows(rows: Iterable[int] | None, n: int, what: str) -> Tensor:
    """Checks instance numbers and returns them as a tensor [k]; None means all n of them.

    Raises:
        ValueError: a number is not whole, out of range, or given twice.
    """
    if rows is None:
        return torch.arange(n)
    expected = "a flat list of whole instance numbers"
    numbers = checks.elements(what, rows, expected)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{what}: got {checks.shown(number)}, a {type(number).__name__}, expected {expected}.")
        if not 0 <= number < n:
            raise ValueError(f"{what}: instance {number} does not exist; expected numbers from 0 to {n - 1}.")
    values = torch.tensor(numbers, dtype=torch.long)
    unique, counts = values.unique(return_counts=True)
    if len(unique) != len(values):
        raise ValueError(f"{what}: instance {unique[counts > 1][0].item()} is listed more than once; list each once.")
    return values


def parameters_of(model: nn.Module) -> Params:
    """A detached copy of the model's trainable parameters."""
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(f"Parameter {lazy[0]!r} has no shape yet, expected one; run model(inputs) once before.")
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def check_params(model: nn.Module, params: Params) -> None:
    """Raises ValueError unless `params` holds the model's trainable parameters, by name and shape, all finite."""
    if not isinstance(params, Mapping) or not all(isinstance(p, Tensor) for p in params.values()):
        raise ValueError(f"params: got {checks.shown(params)}, expected a dict of tensors, as parameters_of returns.")
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    if not expected:
        raise ValueError("The model has no trainable parameters; expected at least one that requires a gradient.")
    got = {name: tuple(p.shape) for name, p in params.items()}
    if got != expected:
        odd = sorted(set(got.items()) ^ set(expected.items()), key=str)
        raise ValueError(
            f"The parameters do not belong to this model: they differ in {odd[0][0]!r} "
            f"(got {got.get(odd[0][0])}, expected {expected.get(odd[0][0])})."
        )
    for name, value in params.items():
        if value.is_inference():
            raise ValueError(f"Parameter {name!r} was made in torch.inference_mode(), {INFERENCE}")
        if not value.isfinite().all():
            raise ValueError(
                f"Parameter {name!r} holds NaN or infinite values; give the parameters of a trained model."
            )
        if not value.is_floating_point() or not value.numel():
            what = f"numbers of {value.dtype}" if value.numel() else "no numbers"
            raise ValueError(
                f"Parameter {name!r} holds {what}, expected real ones: in place of a complex parameter take two, its "
                "real and its imaginary part, and torch.complex; remove one that is empty, or requires_grad_(False)."
            )
