"""The models that the paper attributes, but for the text encoders (`encoders.py`).

All are initialised by PyTorch's defaults from a seed, and leave the caller's random state untouched.

The image models have smooth units (SiLU) and average pooling. A rectified unit, or a maximum, of *another* instance
switches when the perturbation pushes it over its edge, and weighs 1/batch where the instance left out weighs 1/n: among
50,000 images such switches drown the sensitivity within a few steps (`beyond.figure_units`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

from ..devices import own_randomness


def seeded(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Gives a function that builds a model the keyword `seed`, of its initial weights."""

    @wraps(build)
    def build_from(*arguments: int, seed: int = 0, **options: int) -> nn.Module:
        with own_randomness(torch.device("cpu"), seed):
            return build(*arguments, **options)

    return build_from


@seeded
def mlp(n_inputs: int, n_outputs: int, *, width: int = 128) -> nn.Sequential:
    """The paper's tabular model: two hidden layers of ReLU units."""
    return nn.Sequential(
        nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs)
    )


@seeded
def resnet9(channels: int = 3, n_outputs: int = 10, *, width: int = 64) -> nn.Sequential:
    """ResNet-9 for images of 32 x 32 pixels, with group normalisation: the paper's image model.

    Usually it has batch normalisation, whose running statistics mix instances while they change, so that none can be
    left out honestly; groups of channels within one image need no statistics of others.
    """
    w = width
    return nn.Sequential(
        *_block(channels, w),
        *_block(w, 2 * w, pool=True),
        Residual(*_block(2 * w, 2 * w), *_block(2 * w, 2 * w)),
        *_block(2 * w, 4 * w, pool=True),
        *_block(4 * w, 8 * w, pool=True),
        Residual(*_block(8 * w, 8 * w), *_block(8 * w, 8 * w)),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * w, n_outputs),
    )


@seeded
def convnet(
    channels: int = 3, n_outputs: int = 10, *, side: int = 32, width: int = 16, unit: type[nn.Module] = nn.SiLU
) -> nn.Sequential:
    """A small convolutional net that two cores can train further thousands of times: each layer halves the image.

    Without normalisation. `side`: of the images in pixels, a multiple of 8. `unit`: the activation.
    """
    w = width
    return nn.Sequential(
        nn.Conv2d(channels, w, 5, stride=2, padding=2),
        unit(),
        nn.Conv2d(w, 2 * w, 3, stride=2, padding=1),
        unit(),
        nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1),
        unit(),
        nn.Flatten(),
        nn.Linear(4 * w * (side // 8) ** 2, n_outputs),
    )


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _block(inputs: int, outputs: int, pool: bool = False) -> list[nn.Module]:
    """Convolution, normalisation over groups of 16 channels (all, if fewer), SiLU, and perhaps half the size."""
    layers = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(max(outputs // 16, 1), outputs),
        nn.SiLU(),
    ]
    return [*layers, nn.AvgPool2d(2)] if pool else layers
