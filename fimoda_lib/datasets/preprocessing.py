"""From a readable table to a task: split into training and test rows, dummy coding, standardising.

Whatever is learned from data (means, standard deviations, imputed values) is learned from the training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from .. import tasks
from ..tasks import Task
from . import models

Impute = Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]]


def regression_task(table: pd.DataFrame, target: str, *, test_size: float) -> Task:
    """Task that predicts one numeric column from all others, every column standardised, the target too.

    Inputs [n, columns - 1] and targets [n, 1], float32. Divide by `StandardScaler.scale_` to come back to the unit of
    the target; the tables of the task hold the original values.
    """
    train, test = split(table, test_size)
    features = [column for column in table.columns if column != target]
    train_inputs, test_inputs = standardise(train[features], test[features])
    train_targets, test_targets = standardise(train[[target]], test[[target]])
    return Task(
        name="",
        model=models.mlp(len(features), 1, seed=0),
        loss=tasks.squared_error,
        train=(to_float(train_inputs), to_float(train_targets)),
        test=(to_float(test_inputs), to_float(test_targets)),
        train_table=train,
        test_table=test,
    )


def classification_task(
    table: pd.DataFrame,
    target: str,
    classes: Sequence,
    *,
    test_size: float,
    categorical: Sequence[str] = (),
    impute: Impute | None = None,
) -> Task:
    """Task that predicts which of `classes` (class 0, 1, ...) the target column holds.

    Inputs [n, numeric columns + dummies] float32: first the numeric columns, standardised, then one 0/1 column per
    value of each categorical column; targets [n] int64. The dummies are coded over all rows: that says which values
    exist and nothing else, and a value met only among the test rows keeps a column of its own.

    Args:
        impute: `impute(train, test)` returns both, numeric features only, with missing values filled in.
    """
    train, test = split(table, test_size)
    numeric = [column for column in table.columns if column != target and column not in categorical]
    filled = (train[numeric], test[numeric]) if impute is None else impute(train[numeric], test[numeric])
    scaled_train, scaled_test = standardise(*filled)
    coded_train, coded_test = dummies(train, test, categorical)
    train_inputs, test_inputs = np.hstack([scaled_train, coded_train]), np.hstack([scaled_test, coded_test])
    number = {value: k for k, value in enumerate(classes)}
    return Task(
        name="",
        model=models.mlp(train_inputs.shape[1], len(classes), seed=0),
        loss=tasks.cross_entropy,
        train=(to_float(train_inputs), torch.tensor([number[value] for value in train[target]])),
        test=(to_float(test_inputs), torch.tensor([number[value] for value in test[target]])),
        train_table=train,
        test_table=test,
    )


def split(table: pd.DataFrame, test_size: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows by scikit-learn's split with seed 0, as in the paper; rows are numbered from 0 in each."""
    train, test = train_test_split(table, test_size=test_size, random_state=0)
    return train.reset_index(drop=True), test.reset_index(drop=True)


def standardise(train: pd.DataFrame, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Both tables with the mean 0 and standard deviation 1 that make the *training* rows so; a constant column is 0."""
    scaler = StandardScaler().fit(train.to_numpy("float64"))
    return scaler.transform(train.to_numpy("float64")), scaler.transform(test.to_numpy("float64"))


def dummies(train: pd.DataFrame, test: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """0/1 columns [rows, values], one per value of each of the columns, in the order of columns and sorted values."""
    if not columns:
        return np.empty((len(train), 0)), np.empty((len(test), 0))
    coded = pd.get_dummies(pd.concat([train, test])[list(columns)], columns=list(columns), dtype="float64").to_numpy()
    return coded[: len(train)], coded[len(train) :]


def to_float(values: np.ndarray) -> Tensor:
    """float32 tensor of an array."""
    return torch.tensor(values, dtype=torch.float32)
