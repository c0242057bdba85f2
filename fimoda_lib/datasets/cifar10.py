"""Where do the images of CIFAR-10 come from? Any form they are published in, each batch verified by its MD5.

The binary and the python version hold the same bytes in the same order, so that every form gives the same task. MD5 is
what was published; it tells a damaged or exchanged batch, not a forged one, so that pickles are read as arrays only.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import reason
from .fetch import DataDir, DataFile, DataFileError, find

SIDE, CLASSES = 32, 10
BATCH_BYTES = 40_000_000  # a larger batch is not read
# Each version's folder and the published MD5 of its batches, the test batch last.
VERSIONS = {
    "cifar-10-batches-bin": {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    "cifar-10-batches-py": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
}
PUBLISHED = {f"{folder}/{name}": md5 for folder, batches in VERSIONS.items() for name, md5 in batches.items()}

Batch = tuple[Tensor, Tensor]  # bytes [n, 3, 32, 32], class numbers [n]


def load_batches(data_dir: DataDir = None) -> tuple[Batch, Batch]:
    """The 50,000 training and 10,000 test images, in the original order."""
    *train, test = parse_cifar10(find(CIFAR10_FILE, data_dir))
    return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), test


def parse_cifar10(path: Path) -> list[Batch]:
    """The five training batches and the test batch, from an archive, or from the folder that holds the file `path`.

    Nothing is unpacked to disk, and of what a pickle can hold only arrays and plain values are read.

    Raises:
        DataFileError: a batch is missing, or is not the published one; the message names it.
    """
    found: dict[str, Batch] = {}
    unpacked = path.parent.name in VERSIONS
    batches = read_folder(path.parent) if unpacked else read_archive(path)
    path = path.parent if unpacked else path
    for name, content in batches:
        check_published(path, name, content)
        try:
            found[name] = batch_of_records(content) if name.endswith(".bin") else batch_of_pickle(content)
        except Exception as error:  # what damaged pickles raise has no common type
            raise unreadable(path, f"{name}: {reason(error)}") from error
    version = next(iter(found), "cifar-10-batches-py/").split("/")[0]
    wanted = [f"{version}/{name}" for name in VERSIONS[version]]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataFileError(f"{path} has no {missing[0]!r}; replace it by the original.")
    return [found[name] for name in wanted]


def read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every batch in an unpacked folder."""
    for name in VERSIONS[folder.name]:
        if (folder / name).is_file():
            try:
                check_size(folder, name, (folder / name).stat().st_size)
                yield f"{folder.name}/{name}", (folder / name).read_bytes()
            except OSError as error:
                raise unreadable(folder / name, reason(error)) from error


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every batch in a tar archive, compressed in whichever way."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in PUBLISHED and member.isfile():
                    check_size(path, name, member.size)
                    yield name, archive.extractfile(member).read()
    except DataFileError:
        raise
    except Exception as error:  # what damaged archives raise has no common type
        raise unreadable(path, reason(error)) from error


def unreadable(path: Path, why: str) -> DataFileError:
    return DataFileError(f"{path} cannot be read as CIFAR-10 ({why}); replace it by the original.")


def check_size(path: Path, name: str, size: int) -> None:
    """Raises DataFileError for a batch so large that it had better not be read."""
    if size > BATCH_BYTES:
        raise DataFileError(
            f"{path}: {name!r} unpacks to {size} bytes, expected at most {BATCH_BYTES}; do not use this archive."
        )


def check_published(path: Path, name: str, content: bytes) -> None:
    """Raises DataFileError unless a batch has the published MD5."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != PUBLISHED[name]:
        raise DataFileError(
            f"{path}: {name!r} is cut off, changed or another batch: got MD5 {md5}, expected {PUBLISHED[name]} as "
            "published; replace it by the original."
        )


def batch_of_records(content: bytes) -> Batch:
    """Of the binary version: records of 1 label byte and 3,072 pixel bytes (red, green, blue planes)."""
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + 3 * SIDE * SIDE)
    return checked(records[:, 1:], records[:, 0].astype(np.int64))


def batch_of_pickle(content: bytes) -> Batch:
    """Of the python version: the arrays that it pickled."""
    batch = ArraysOnly(io.BytesIO(content)).load()
    return checked(batch[b"data"], np.array(batch[b"labels"], dtype=np.int64))


def checked(pixels: np.ndarray, labels: np.ndarray) -> Batch:
    """Pixels and labels as tensors, if they are what they should be."""
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * SIDE * SIDE):
        raise ValueError(f"a batch of {pixels.dtype} {pixels.shape}")
    if ((labels < 0) | (labels >= CLASSES)).any():
        raise ValueError(f"a label {labels.max()}")
    return torch.tensor(pixels).view(-1, 3, SIDE, SIDE), torch.tensor(labels)


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


def all_published(path: Path) -> str:
    """What a form of CIFAR-10 holds: identifies it whichever way it is packed."""
    return f"{len(parse_cifar10(path))} batches as published"


SOURCE = "https://www.cs.toronto.edu/~kriz"


def form(path: str, *sha256: str) -> DataFile:
    """One form of CIFAR-10: an archive, packed as published or anew, or the first file of an unpacked folder."""
    return DataFile(
        path=f"cifar10/{path}",
        sha256=sha256,
        source=f"{SOURCE}/cifar.html",
        fingerprint=all_published,
        content="6 batches as published",
        max_bytes=200_000_000,
    )


CIFAR10_FILE = DataFile(
    path="cifar10/cifar-10-python.tar.gz",
    sha256=("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",),
    url=f"{SOURCE}/cifar-10-python.tar.gz",
    fingerprint=all_published,
    content="6 batches as published",
    max_bytes=200_000_000,
    others=(
        form("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        form("cifar-10-binary.tar.xz", "272e4b1bf6c6baf0187b235abd190d0c700f67097a154c52dbf933becb2840bd"),
        form("cifar-10-batches-bin/data_batch_1.bin"),
        form("cifar-10-batches-py/data_batch_1"),
    ),
)
