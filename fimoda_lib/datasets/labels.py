"""Labels of texts, and the loss that goes with them: of the kind that a sequence classifier says it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..tasks import cross_entropy, squared_error


def targets_of(config: Any, part: str, labels: list) -> Tensor:
    """The labels of a part as its loss takes them; raises ValueError for those that the model cannot have."""
    if is_regression(config) or has_many(config):
        expected = f"[{config.num_labels}] numbers for each text" if config.num_labels > 1 else "a number for each text"
        try:
            targets = torch.tensor(labels, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{part}: got the labels {checks.shown(labels)}, expected {expected}.") from error
        shape = (len(labels),) if config.num_labels == 1 else (len(labels), config.num_labels)
        if targets.shape != shape:
            raise ValueError(f"{part}: got labels of shape {tuple(targets.shape)}, expected {shape}: {expected}.")
        return targets
    names = {str(name): int(number) for name, number in config.label2id.items()}
    labels = [int(label) if isinstance(label, bool) else label for label in labels]
    numbers = [names.get(label, label) if isinstance(label, str) else label for label in labels]
    odd = [n for n in numbers if not checks.is_whole(n) or not 0 <= n < config.num_labels]
    if odd:
        expected = f"a class from 0 to {config.num_labels - 1} or one of {', '.join(names)}"
        raise ValueError(f"{part}: got the label {checks.shown(odd[0])}, expected {expected}.")
    return torch.tensor([int(n) for n in numbers])


def is_regression(config: Any) -> bool:
    return config.problem_type == "regression" or config.num_labels == 1


def has_many(config: Any) -> bool:
    return config.problem_type == "multi_label_classification"


def loss_of(config: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """That with which `transformers` trains a model of this kind, of each instance."""
    if has_many(config):
        return multi_label
    if is_regression(config):
        return squared_error if config.num_labels == 1 else multi_output
    return cross_entropy


def multi_label(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each instance, averaged over its labels: logits and zeros or ones [B, C] -> [B]."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def multi_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each instance, averaged over outputs: two times [B, C] -> [B]."""
    return squared_error(outputs, targets) / outputs.shape[1]
