"""The image data sets: CIFAR-10, and scikit-learn's digits in its place.

Pixels are scaled by fixed numbers, (value - 1/2) / (1/4) of the full range, so that no statistic of the data enters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ..tasks import Task, cross_entropy
from . import cifar10, models
from .fetch import DataDir

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MODELS: dict[str, Callable[[], nn.Module]] = {"resnet9": models.resnet9, "convnet": models.convnet}


def image_task(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: list[str], model: nn.Module) -> Task:
    """A task of bytes [n, channels, side, side] and class numbers."""
    return Task(
        name="",
        model=model,
        loss=cross_entropy,
        train=(scaled(train[0]), train[1]),
        test=(scaled(test[0]), test[1]),
        train_table=pd.DataFrame({"class": [classes[k] for k in train[1].tolist()]}),
        test_table=pd.DataFrame({"class": [classes[k] for k in test[1].tolist()]}),
    )


def scaled(pixels: Tensor) -> Tensor:
    """Bytes as the numbers that models take."""
    return pixels.float().div_(255).sub_(0.5).div_(0.25)


def pictures(inputs: Tensor) -> np.ndarray:
    """What `scaled` took, for showing: [n, channels, side, side] to [n, side, side, channels] from 0 to 1."""
    return (inputs * 0.25 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()


def load_cifar10(data_dir: DataDir = None, model: str = "resnet9") -> Task:
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels, 10 classes, in the original order."""
    return image_task(*cifar10.load_batches(data_dir), CLASSES, MODELS[model]())


def load_digit_images() -> Task:
    """1437 training and 360 test images of handwritten digits, 1 x 8 x 8 pixels, 10 classes."""
    source = datasets.load_digits()
    pixels = torch.from_numpy(source.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0)
    parts = [(pixels[rows], labels[rows]) for rows in (train, test)]
    return image_task(*parts, [str(k) for k in range(10)], models.convnet(1, 10, side=8, width=8))
