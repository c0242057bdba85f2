"""Where the derivative of a run stops, with kinks and without, and where float32 does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..comparison import instance_similarity, noise_ceiling, sensitivity
from ..experiments.panel import Panel, finished
from ..experiments.studies import (
    FRACTIONS,
    UNITS,
    first_order_limit,
    first_order_runs,
    linearised_run,
    masked_runs,
    output_runs,
    rounding,
    softened_tangents,
    with_units,
)
from ..tasks import squared_error
from .look import LOOK, plain_log
from .panels import horizon_axis

SHADES = {0.1: "#9ecae1", 0.5: "#4292c6", 1.0: "#08306b"}  # fractions of the weight removed, light to dark
PLAIN = dict(ls="-", lw=1.4, marker="o", ms=3)
OUTPUT = "#CC79A7"
SOFTENED = "#009E73"
LIMIT = (
    "Cosine similarity (mean adjustment) between the exact derivative of further training (one seed, float64, "
    "mask) and the difference of two runs with 0.1, 0.5 or all of an instance's weight removed. Dashed: outputs in "
    "place of losses. Green: kinks softened. Black: LFT along the same run. Dotted: noise ceiling, mask, first fifth."
)
LIMIT_MARKS = "Bands: one standard error over test instances."
UNITS_SAY = (
    "Cosine similarity (mean adjustment) between the exact derivative of further training and the difference of "
    "two runs, float64, one seed: rectified and smooth units in the same model, from the same initial weights. "
    "Dotted: LFT along the same run. Dash-dotted: kinks softened."
)
UNITS_MARKS = "Bands: one standard error over test instances."
UNIT_COLOURS = {"ReLU": "#D55E00", "SiLU": "#0072B2"}
UNIT_LINES = {
    0.1: ("--", "0.1 of the weight"),
    1.0: ("-", "the whole instance"),
    "softened": ("-.", "kinks softened"),
    "lft": (":", "LFT"),
}
PRECISION = (
    "Median magnitude of the sensitivity, of what float32 training and float32 test losses change "
    "about it, and of the part beyond its derivative."
)
PRECISION_MARKS = (
    "Where a dotted or dash-dotted line meets the solid one, that measurement is noise. With AdamW (f) "
    "the part beyond first order arises in the first step, which goes by the gradients' signs, and stays."
)
LOOKS = {  # column -> colour, line, label
    "sensitivity": ("#000000", "-", "sensitivity"),
    "nonlinear": ("#D55E00", "--", "its part beyond first order"),
    "float32": ("#0072B2", ":", "error of float32 training"),
    "losses": ("#009E73", "-.", "error of float32 test losses"),
}


def limit_table(panel: Panel, fractions: Sequence[float] = FRACTIONS, *, beside: bool = True) -> pd.DataFrame | None:
    """Columns fraction, step, epoch, mean, sem, median (over test instances), quantity; None if the runs are missing.

    The quantity is the test "loss"; "lft" has LFT's scores in place of the derivative, "softened" the derivative with
    softened kinks where the model has any. With `beside`, there are also the model's "output" for squared error, all of
    the weight removed, and "ceiling", the noise ceiling of a gold standard with the same removal, as far as that has
    been computed.
    """
    runs = finished(lambda: first_order_runs(panel, fractions))
    if runs is None:
        return None
    whole = runs.sel(run="1.0", drop=True)
    tables = [_summary(first_order_limit(runs).similarity, runs).assign(quantity="loss")]
    if beside and panel.task.loss is squared_error:
        outputs = finished(lambda: output_runs(panel))
        if outputs is not None:
            tables.append(_summary(first_order_limit(outputs).similarity, outputs).assign(quantity="output"))
    softened = finished(lambda: softened_tangents(panel))
    if softened is not None:
        derivative = sensitivity(softened).rename(left_out="train", step="horizon")
        close = instance_similarity(derivative, sensitivity(whole)).expand_dims(fraction=[1.0])
        tables.append(_summary(close, runs).assign(quantity="softened"))
    scores = finished(lambda: linearised_run(panel))
    if scores is not None:
        close = instance_similarity(scores, sensitivity(whole)).expand_dims(fraction=[1.0])
        tables.append(_summary(close, runs).assign(quantity="lft"))
    gold = finished(lambda: masked_runs(panel.other(compute=False))) if beside else None
    if gold is not None and gold.sizes["seed"] > 1:
        ceiling = noise_ceiling(gold, estimate="variances")
        tables.append(ceiling.to_dataframe("mean").reset_index().assign(fraction=1.0, quantity="ceiling"))
    return pd.concat(tables, ignore_index=True)


def _summary(values: xr.DataArray, runs: xr.Dataset) -> pd.DataFrame:
    """Over test instances, of similarities [fraction, step, test] along these runs."""
    values = values.fillna(0.0).drop_vars("epoch", errors="ignore")
    sem = values.std("test", ddof=1) / np.sqrt(values.sizes["test"])
    columns = {"mean": values.mean("test"), "sem": sem, "median": values.median("test")}
    frames = [v.to_dataframe(name)[[name]] for name, v in columns.items()]
    epochs = pd.DataFrame({"step": runs.step.values, "epoch": runs.epoch.values})
    return pd.concat(frames, axis=1).reset_index().merge(epochs, on="step")


def _limit_looks() -> dict[tuple[str, float], dict[str, Any]]:
    """How each line of `limit_table` is drawn, and what it says: (quantity, fraction) -> look."""
    whole = "the whole instance removed"
    looks = {("loss", f): dict(color=c, label=f"{f:g} of the weight removed") for f, c in SHADES.items() if f < 1}
    looks["loss", 1.0] = dict(color=SHADES[1.0], label=whole)
    looks["output", 1.0] = dict(color=OUTPUT, ls="--", label="the same, output instead of loss")
    looks["softened", 1.0] = dict(color=SOFTENED, ls="-.", label=f"{whole}, kinks softened")
    for name, label in {"lft": f"LFT, {whole}", "ceiling": "noise ceiling of all seeds"}.items():
        look = LOOK[name]
        looks[name, 1.0] = dict(color=look.colour, ls=look.line, lw=look.width, marker=look.marker, label=label)
    return looks


def limit_legend() -> list[Line2D]:
    """What the figure of the limit explains below its panels."""
    return [Line2D([], [], **{**PLAIN, **look}) for look in _limit_looks().values()]


def draw_limit(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A line per fraction, one for the output, one for LFT, and the noise ceiling."""
    looks = _limit_looks()
    for key, rows in table.groupby(["quantity", "fraction"], sort=False):
        _line(ax, rows, dataset, **{k: v for k, v in looks[key].items() if k != "label"})
    ax.set(xscale="log", ylim=(-0.06, 1.02), xlabel=horizon_axis(dataset)[1])
    plain_log(ax.xaxis)


def _line(ax: Axes, rows: pd.DataFrame, dataset: str, **look: Any) -> None:
    """Means over test instances, with a band of one standard error."""
    at, mean, look = rows[horizon_axis(dataset)[0]], rows["mean"], PLAIN | look
    ax.plot(at, mean, **look, zorder=1.5 if look["lw"] > 2 else 2)
    if rows["sem"].notna().any():
        ax.fill_between(at, mean - rows["sem"], mean + rows["sem"], color=look["color"], alpha=0.15, lw=0)


def whole_runs(panel: Panel) -> xr.Dataset:
    """What the precision audit needs of `first_order_runs`."""
    return first_order_runs(panel, fractions=[1.0])


def smooth_runs(panel: Panel) -> xr.Dataset:
    """The runs of `units_table` with smooth units."""
    return first_order_runs(with_units(panel, UNITS["SiLU"]), fractions=(0.1, 1.0))


def units_table(panel: Panel) -> pd.DataFrame | None:
    """`limit_table` for a tenth and all of an instance's weight with each kind of unit, column unit; None likewise."""
    tables = {name: limit_table(with_units(panel, unit), (0.1, 1.0), beside=False) for name, unit in UNITS.items()}
    known = [table.assign(unit=name) for name, table in tables.items() if table is not None]
    return pd.concat(known, ignore_index=True) if len(known) == len(UNITS) else None


def units_legend() -> list[Line2D]:
    """What the figure of units explains below its panels."""
    return [
        Line2D([], [], color=colour, ls=line, lw=1.4, marker="o", ms=3, label=f"{unit}, {words}")
        for unit, colour in UNIT_COLOURS.items()
        for kind, (line, words) in UNIT_LINES.items()
        if (unit, kind) != ("SiLU", "softened")  # it has none
    ]


def draw_units(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """A line per kind of unit and fraction, and one for LFT with each kind of unit."""
    for (unit, quantity, fraction), rows in table.groupby(["unit", "quantity", "fraction"], sort=False):
        line, _ = UNIT_LINES[fraction if quantity == "loss" else quantity]
        _line(ax, rows, dataset, color=UNIT_COLOURS[unit], ls=line)
    low = float((table["mean"] - table["sem"].fillna(0)).min())
    ax.set(xscale="log", ylim=(min(-0.06, low - 0.04), 1.02), xlabel=horizon_axis(dataset)[1])
    plain_log(ax.xaxis)


def precision_table(panel: Panel) -> pd.DataFrame | None:
    """Median magnitudes per horizon: columns step, epoch and those of `LOOKS`; None if runs are missing."""
    runs = finished(lambda: whole_runs(panel))
    return None if runs is None else rounding(runs).to_dataframe().reset_index()


def precision_legend() -> list[Line2D]:
    """What the precision audit explains below its panels."""
    return [Line2D([], [], color=c, ls=line, marker="o", ms=3, label=words) for c, line, words in LOOKS.values()]


def draw_precision(ax: Axes, table: pd.DataFrame, dataset: str) -> None:
    """The magnitudes against the amount of further training."""
    x, amount = horizon_axis(dataset)
    for column, (colour, line, _) in LOOKS.items():
        if column in table:
            values = table[column].where(table[column] > 0)
            ax.plot(table[x], values, color=colour, ls=line, marker="o", ms=3)
    ax.set(xscale="log", yscale="log", xlabel=amount)
    plain_log(ax.xaxis)
