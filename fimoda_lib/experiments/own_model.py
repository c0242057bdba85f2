"""What a reader brings in notebook 07: a model, a loss and a method, which the notebook shows and uses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..derivatives.gradients import Gradients
from ..tasks import Instances, Params, Task


class Progression(nn.Module):
    """An embedding of the sex beside the measurements, then one hidden layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.sex = nn.Embedding(2, 3)
        self.layers = nn.Sequential(nn.Linear(9 + 3, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([inputs["measurements"], self.sex(inputs["sex"])], dim=1))


def robust(outputs: Tensor, targets: Tensor) -> Tensor:
    """The Huber loss of each instance."""
    return F.huber_loss(outputs, targets, delta=1.0, reduction="none").sum(1)


def last_layer(
    task: Task, params: Params, *, train: Tensor, test: Tensor, curvature: Tensor, damping: float = 1.0
) -> Tensor:
    """Influence in the last layer: gᵀ (G + damping)⁻¹ g, with slopes and second derivatives of the Huber loss."""
    at = Gradients(task, params)
    last = at.model.layers[-1]

    def features_and_errors(instances: Instances) -> tuple[Tensor, Tensor]:
        hidden = []
        handle = last.register_forward_hook(lambda module, inputs, output: hidden.append(inputs[0]))
        errors = at.outputs(instances[0]) - instances[1]
        handle.remove()
        return F.pad(hidden[0], (0, 1), value=1.0), errors  # the bias is one more feature, always 1

    def gradients(instances: Instances) -> Tensor:
        features, errors = features_and_errors(instances)
        return errors.clamp(-1, 1) * features

    features, errors = features_and_errors(at.train(curvature))
    G = (features * (errors.abs() < 1)).T @ features / len(features)
    inverse = torch.linalg.inv(G + damping * torch.eye(len(G), dtype=G.dtype, device=G.device))
    return gradients(at.test(test)) @ inverse @ gradients(at.train(train)).T
