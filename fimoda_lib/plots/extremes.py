"""The most helpful and the most harmful training instance for a few test instances (Table 2)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ..comparison import sensitivity
from ..experiments.panel import Panel, finished

N_TEST = 3  # the first so many test instances, so that nobody has picked them
MANY = 20  # more features than that are no table (the pixels of an image, say): only the label is shown
FIRST = ["test", "role", "instance", "score"]  # the columns before the features
ROLES = ("to explain", "most helpful", "most harmful")
WHAT = (
    "For the first test instances, the left-out training instances with the largest (most helpful) and the "
    "smallest (most harmful) sensitivity at the end of further training."
)
MARKS = "Positive: leaving the instance out raises the loss. Bold: where both instances agree."


def table(panel: Panel, test: Iterable[int] | None = None) -> pd.DataFrame | None:
    """Three rows per test instance, or None if there is no gold standard yet.

    Args:
        test: the test instances, by number; by default the first `N_TEST` that were evaluated.

    Returns:
        columns test, role, instance, score, then the readable features and the label, as they stand in the data before
        coding. The score is the sensitivity at the last step (mean adjustment, averaged over seeds): largest for "most
        helpful", smallest for "most harmful" among the left-out instances. Test instances at which a run diverged are
        left out.
    """
    gold = finished(lambda: panel.gold)
    if gold is None:
        return None
    measured = sensitivity(gold).isel(step=-1).transpose("test", "left_out").dropna("test")
    rows = []
    for z in measured.test.values[:N_TEST] if test is None else test:
        scores = measured.sel(test=z)
        helpful, harmful = int(scores.idxmax("left_out")), int(scores.idxmin("left_out"))
        rows.append({"test": int(z), "role": ROLES[0], "instance": int(z), **_readable(panel.task.test_table, z)})
        for role, i in zip(ROLES[1:], (helpful, harmful), strict=True):
            score = float(scores.sel(left_out=i))
            rows.append(
                {"test": int(z), "role": role, "instance": i, "score": score, **_readable(panel.task.train_table, i)}
            )
    found = pd.DataFrame(rows, columns=None if rows else FIRST)
    return found[[*FIRST, *(c for c in found if c not in FIRST)]]


def _readable(instances: pd.DataFrame, row: int) -> dict:
    """One instance as a person would read it: column -> value; of an instance with many features, only the label."""
    values = instances.iloc[int(row)]
    return (values if len(values) <= MANY else values.iloc[-1:]).to_dict()


def agreeing(table: pd.DataFrame) -> list[set[str]]:
    """Per row, the features in which a training instance agrees with the test instance."""
    explained = table[table["role"] == ROLES[0]].drop_duplicates("test").set_index("test")
    features = [column for column in table if column not in FIRST]
    return [
        {c for c in features if row["role"] != ROLES[0] and row["test"] in explained.index
         and row[c] == explained.loc[row["test"], c]}
        for row in table.to_dict("records")
    ]  # fmt: skip


def html(table: pd.DataFrame | None, caption: str) -> str:
    """The table as a page of its own; bold: features in which a training instance agrees with the test instance."""
    if table is None:
        table = pd.DataFrame(columns=FIRST)
    same = dict(zip(table.index, agreeing(table), strict=True))

    def bold(row: pd.Series) -> list[str]:
        return ["font-weight: bold" if column in same[row.name] else "" for column in row.index]

    styles = [
        {"selector": "", "props": "border-collapse: collapse; font: 13px sans-serif"},
        {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: 8px; color: #444"},
        {"selector": "th, td", "props": "padding: 3px 9px; text-align: left; vertical-align: top"},
        {"selector": "thead th", "props": "border-bottom: 1px solid #444"},
        {"selector": "tbody tr:nth-child(3n) td", "props": "border-bottom: 1px solid #ddd"},
    ]
    styled = table.style.set_uuid("table2").hide(axis="index").apply(bold, axis="columns")
    styled = styled.format(_cell, escape="html").format(_score, subset=["score"])
    return styled.set_caption(caption).set_table_styles(styles).to_html(doctype_html=True)


def _score(value: float) -> str:
    """Two digits and a sign; nothing where there is no score."""
    return "" if pd.isna(value) else f"{value:+.2g}".replace("-", "−", 1)


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
