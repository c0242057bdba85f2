"""The image data sets: CIFAR-10 as published, CIFAR-10 as JPEG files, and scikit-learn's digits in their place.

Pixels are scaled by fixed numbers, (value - 1/2) / (1/4) of the full range, so that no statistic of the data enters.
"""

from __future__ import annotations

import codecs
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ..checks import reason
from ..tasks import Task, cross_entropy
from . import models
from .fetch import DataDir, DataFile, DataFileError, find

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
N_TRAIN, N_TEST, SIDE = 50_000, 10_000, 32
MODELS: dict[str, Callable[[], nn.Module]] = {"resnet9": models.resnet9, "convnet": models.convnet}


def image_task(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: list[str], model: nn.Module) -> Task:
    """A task of bytes [n, channels, side, side] and class numbers."""
    return Task(
        name="",
        model=model,
        loss=cross_entropy,
        train=(scaled(train[0]), train[1]),
        test=(scaled(test[0]), test[1]),
        train_table=pd.DataFrame({"class": [classes[k] for k in train[1]]}),
        test_table=pd.DataFrame({"class": [classes[k] for k in test[1]]}),
    )


def scaled(pixels: Tensor) -> Tensor:
    """Bytes as the numbers that models take."""
    return pixels.float().div_(255).sub_(0.5).div_(0.25)


def pictures(inputs: Tensor) -> np.ndarray:
    """What `scaled` took, for showing: [n, channels, side, side] to [n, side, side, channels] from 0 to 1."""
    return (inputs * 0.25 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()


# --- CIFAR-10 as published (Krizhevsky 2009) ------------------------------------------------------------------------

CIFAR10_FILE = DataFile(
    path="cifar10/cifar-10-python.tar.gz",
    sha256=("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    max_bytes=200_000_000,
)
BATCHES = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")]
BATCH_BYTES = 40_000_000  # a larger member is not unpacked


def load_cifar10(data_dir: DataDir = None, model: str = "resnet9") -> Task:
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels, 10 classes, in the original order."""
    *train, test = parse_cifar10(find(CIFAR10_FILE, data_dir))
    together = (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]))
    return image_task(together, test, CLASSES, MODELS[model]())


def parse_cifar10(path: Path) -> list[tuple[Tensor, Tensor]]:
    """The five training batches and the test batch: bytes [n, 3, 32, 32] and class numbers [n].

    Nothing is unpacked to disk, and of what a pickle can hold only arrays and plain values are read.
    """
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in BATCHES and member.isfile() and member.name not in found:
                    if member.size > BATCH_BYTES:
                        raise DataFileError(
                            f"{path}: {member.name!r} unpacks to {member.size} bytes, expected at most {BATCH_BYTES}; "
                            "do not use this archive."
                        )
                    found[member.name] = ArraysOnly(io.BytesIO(archive.extractfile(member).read())).load()
        return [_cifar_batch(found[name]) for name in BATCHES]
    except DataFileError:
        raise
    except KeyError as error:
        raise DataFileError(f"{path} has no {error.args[0]!r}; replace it by the original.") from error
    except Exception as error:  # what damaged archives and pickles raise has no common type
        raise DataFileError(
            f"{path} cannot be read as the python version of CIFAR-10 ({reason(error)}); replace it by the original."
        ) from error


def _cifar_batch(batch: dict[bytes, Any]) -> tuple[Tensor, Tensor]:
    pixels = np.ascontiguousarray(batch[b"data"])
    if pixels.dtype != np.uint8 or pixels.shape != (len(batch[b"labels"]), 3 * SIDE * SIDE):
        raise ValueError(f"a batch of {pixels.dtype} {pixels.shape}")
    labels = torch.tensor(batch[b"labels"], dtype=torch.long)
    if ((labels < 0) | (labels >= len(CLASSES))).any():
        raise ValueError(f"a label {labels.max()}")
    return torch.from_numpy(pixels).view(-1, 3, SIDE, SIDE), labels


class ArraysOnly(pickle.Unpickler):
    """Reads arrays and plain values of a pickle, and refuses all else that one can hold."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.KNOWN[module, name]


# --- CIFAR-10 as JPEG files -----------------------------------------------------------------------------------------

JPEG_FILE = DataFile(
    path="cifar10/cifar10_jpeg.zip",
    sha256=("ce962c3636592f547756899545a76d9da96b647fe7452affc10474e033f56311",),
    source="a copy of CIFAR-10 as JPEG files, train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg",
)


def load_cifar10_jpeg(data_dir: DataDir = None, model: str = "resnet9") -> Task:
    """The same images after JPEG compression, in another order: one of each class in turn."""
    path = find(JPEG_FILE, data_dir)
    train, test = (parse_jpeg(path, part, n) for part, n in (("train", N_TRAIN), ("test", N_TEST)))
    return image_task(train, test, CLASSES, MODELS[model]())


def parse_jpeg(path: Path, part: str, n: int) -> tuple[Tensor, Tensor]:
    """The first `n` images of "train" or "test": bytes [n, 3, 32, 32] and class numbers [n], classes in turn."""
    pixels = np.empty((n, 3, SIDE, SIDE), dtype=np.uint8)
    try:
        with zipfile.ZipFile(path) as archive:
            for k in range(n):
                name = f"{part}/{CLASSES[k % 10]}/{k // 10:04d}.jpg"
                with Image.open(io.BytesIO(archive.read(name)), formats=["JPEG"]) as image:
                    if image.size != (SIDE, SIDE) or image.mode != "RGB":
                        raise DataFileError(f"{path}: {name} is {image.mode} {image.size}; expected RGB (32, 32).")
                    pixels[k] = np.asarray(image).transpose(2, 0, 1)
    except DataFileError:
        raise
    except KeyError as error:
        raise DataFileError(f"{path} holds no {name!r}; replace it by a complete copy.") from error
    except Exception as error:  # what damaged archives and images raise has no common type
        raise DataFileError(
            f"{path} cannot be read as JPEG files in a zip archive ({reason(error)}); replace it by a complete copy."
        ) from error
    return torch.from_numpy(pixels), torch.arange(n) % len(CLASSES)


# --- Digits: inside scikit-learn ------------------------------------------------------------------------------------


def load_digit_images() -> Task:
    """1437 training and 360 test images of handwritten digits, 1 x 8 x 8 pixels, 10 classes."""
    source = datasets.load_digits()
    pixels = torch.from_numpy(source.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0)
    parts = [(pixels[rows], labels[rows]) for rows in (train, test)]
    return image_task(*parts, [str(k) for k in range(10)], models.convnet(1, 10, side=8, width=8))
