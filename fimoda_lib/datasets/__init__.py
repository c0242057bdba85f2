"""Where do data sets and their models come from, by name?

The paper's, and for each of them one that is easier to come by and can stand in for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ..checks import shown
from ..tasks import Task
from . import census, cifar10, embedded, images, sentences, tabular, text
from .fetch import DataDir, DataFile, DataFileError, DataFileNotFound, check_folder, find, find_local

__all__ = ["DATASETS", "DataFileError", "DataFileNotFound", "Dataset", "available", "load_task", "require"]


@dataclass(frozen=True)
class Dataset:
    """One data set that can be loaded by name.

    Args:
        name: short, used on the command line and in file names.
        title: how figures call it.
        stand_in_for: title of the paper's data set that this one replaces where that cannot be had; else None.
        kind: "regression" or "classification".
        load: makes the task; called with the data folder if there are files, and with `model=` if there is a choice.
        files: what it is read from; none if it ships with scikit-learn or is generated.
        models: the models to choose from, the first by default; none if there is only one.
    """

    name: str
    title: str
    stand_in_for: str | None
    kind: str
    load: Callable[..., Task]
    files: tuple[DataFile, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        """Whether it ships with an installed package or is generated, so that it needs no files."""
        return not self.files


CONCRETE, ENERGY, FICO, FOLKTABLES = "Concrete", "Energy", "FICO HELOC", "Folktables (ACSIncome, MA, 2018)"
CIFAR10, IMAGE_MODELS = "CIFAR-10", tuple(images.MODELS)
SST2 = "SST-2"

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("concrete", CONCRETE, None, "regression", tabular.load_concrete, (tabular.CONCRETE_FILE,)),
        Dataset("energy", ENERGY, None, "regression", tabular.load_energy, (tabular.ENERGY_FILE,)),
        Dataset("fico", FICO, None, "classification", tabular.load_fico, (tabular.FICO_FILE,)),
        Dataset("folktables", FOLKTABLES, None, "classification", census.load_folktables, (census.FOLKTABLES_FILE,)),
        Dataset("adult", "Adult", FOLKTABLES, "classification", census.load_adult, census.ADULT_FILES),
        Dataset("cifar10", CIFAR10, None, "classification", images.load_cifar10, (cifar10.CIFAR10_FILE,), IMAGE_MODELS),
        Dataset("diabetes", "Diabetes", CONCRETE, "regression", embedded.load_diabetes),
        Dataset("wine", "Wine", ENERGY, "regression", embedded.load_wine),
        Dataset("breast_cancer", "Breast cancer", FICO, "classification", embedded.load_breast_cancer),
        Dataset("digits", "Digits", FOLKTABLES, "classification", embedded.load_digits),
        Dataset("digit_images", "Digits as images", CIFAR10, "classification", images.load_digit_images),
        Dataset("sst2", SST2, None, "classification", text.load_sst2, text.SST2_FILES, tuple(text.MODELS)),
        Dataset("sentences", "Generated sentences", SST2, "classification", sentences.load_sentences),
    )
}


def load_task(name: str, data_dir: DataDir = None, *, model: str | None = None) -> Task:
    """The task of a data set: model (not trained on it yet), loss, training and test instances.

    Args:
        name: one of `DATASETS`.
        data_dir: folder searched for data files first; then come $FIMODA_DATA, the cache, and a download.
        model: where a data set has several models ("cifar10": "resnet9", "convnet"), which; the first by default.
    Raises:
        ValueError: there is no data set or model of this name.
        DataFileError: a file cannot be had, or is not the original.
    """
    dataset = _look_up(name)
    if data_dir is not None:
        check_folder("data_dir", data_dir)
    if model is not None and model not in dataset.models:
        expected = f"one of {', '.join(dataset.models)}" if dataset.models else "None, for it has only one"
        raise ValueError(f"model: got {model!r} with data set '{name}', expected {expected}.")
    arguments = [] if dataset.embedded else [data_dir]
    task = dataset.load(*arguments, **({"model": model or dataset.models[0]} if dataset.models else {}))
    task = dataclasses.replace(task, name=name, title=dataset.title, stand_in_for=dataset.stand_in_for)
    task.check()
    return task


def require(name: str, data_dir: DataDir = None) -> None:
    """Finds and verifies the files of a data set, downloading them if need be; raises DataFileError as `load_task`."""
    for file in _look_up(name).files:
        find(file, data_dir)


def available(name: str, data_dir: DataDir = None) -> bool:
    """Whether a data set loads without a network: it is embedded, or all its files are found locally.

    A file that is found but damaged counts as found: loading then refuses it by name, and nothing stands in for it.
    """
    dataset = _look_up(name)
    return all(find_local(file, data_dir) is not None for file in dataset.files)


def _look_up(name: str) -> Dataset:
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"There is no data set {shown(name)}; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name]
