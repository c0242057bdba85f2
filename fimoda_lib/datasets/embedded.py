"""The data sets that ship with scikit-learn: they stand in for the paper's where nothing can be downloaded."""

from __future__ import annotations

from sklearn import datasets

from ..tasks import Task
from .preprocessing import classification_task, regression_task

TEST_SIZE = 0.2


def load_diabetes() -> Task:
    """Regression: progression of diabetes in 442 patients from 10 measurements."""
    table = datasets.load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "disease progression"})
    return regression_task(table, "disease progression", test_size=TEST_SIZE)


def load_wine() -> Task:
    """Regression: alcohol of 178 wines from the other 12 measurements; the cultivar, usually the target, is unused."""
    return regression_task(datasets.load_wine(as_frame=True).data, "alcohol", test_size=TEST_SIZE)


def load_breast_cancer() -> Task:
    """Classification: 569 tumours, malignant (class 0) or benign (class 1), from 30 measurements."""
    source = datasets.load_breast_cancer(as_frame=True)
    classes = source.target_names.tolist()
    table = source.data.assign(diagnosis=[classes[k] for k in source.target])
    return classification_task(table, "diagnosis", classes, test_size=TEST_SIZE)


def load_digits() -> Task:
    """Classification: 1797 images of handwritten digits, 8 x 8 pixels as 64 columns, 10 classes."""
    source = datasets.load_digits(as_frame=True)
    return classification_task(source.data.assign(digit=source.target), "digit", range(10), test_size=TEST_SIZE)
