"""Test images with the training images that help and harm them most, by further training."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from ..comparison import sensitivity
from ..experiments.panel import Panel, finished

N_TEST, N_TRAIN = 6, 4  # test images; training images of either kind
WHAT = (
    "The first test images, and for each the left-out training images with the largest sensitivities (most helpful) "
    "and with the smallest (most harmful)."
)
MARKS = (
    "The number is the sensitivity after the last step of further training (mean adjustment, averaged over seeds): "
    "positive if leaving the image out raises the loss on the test image."
)


def scores(panel: Panel) -> xr.DataArray | None:
    """The sensitivities of the first test images after the last step, [test, train]; None if there are none yet."""
    gold = finished(lambda: panel.gold)
    if gold is None:
        return None
    last = sensitivity(gold).isel(step=-1, drop=True).rename(left_out="train").transpose("test", "train")
    return last.dropna("test").isel(test=slice(N_TEST))


def table(panel: Panel, found: xr.DataArray | None) -> pd.DataFrame:
    """All numbers behind the pictures: columns test, test class, train, train class, score."""
    if found is None:
        return pd.DataFrame(columns=["test", "test class", "train", "train class", "score"])
    rows = found.to_dataframe("score").reset_index()[["test", "train", "score"]]
    classes = {part: getattr(panel.task, f"{part}_table").iloc[:, -1] for part in ("test", "train")}
    for part, labels in classes.items():
        rows.insert(rows.columns.get_loc(part) + 1, f"{part} class", labels.iloc[rows[part]].to_numpy())
    return rows
