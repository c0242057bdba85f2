"""What the scripts in `benchmarks/` have measured, as tables for README.md and docs/."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..derivatives.kinks import FLOOR
from ..experiments.followed import SPLIT_SEGMENTS
from ..experiments.settings import panel_letter
from ..methods import METHODS
from .claims import title
from .findings import UTMOST, markdown, without_helpful
from .rules import written

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
COUNTS = {2: "two", 5: "five"}


def widths(optimizer: str) -> str:
    """LFT along runs with an optimiser and kinks of several widths, by `benchmarks/choose_width.py`: similarity over
    horizons, and with Adam the noise ceiling."""
    table = pd.read_csv(FOLDER / "choose_width.csv", dtype={"width": str})
    table = table[
        (table["optimizer"] == optimizer) & (table["sample"] == table["sample"].max()) & (table["floor"] == FLOOR)
    ]
    if optimizer == "sgd":
        table = table[table["dataset"] == "breast_cancer"]
    else:
        table = table[table["segments"] == SPLIT_SEGMENTS]
    names = {
        **{"without": "G alone", "between": "between kinks"},
        **{w: f"width {w.removeprefix('0')} of the spread" for w in ("0.0003", "0.001", "0.003", "0.01")},
        **{"0.3x": ".3 of the movement", "1x": "**the movement**", "3x": "3 times the movement"},
    }
    cells = table.pivot_table(index="width", columns=["dataset", "rate"], values="mean")
    cells = cells.reindex([name for name in names if name in cells.index])
    heads = [f"{title(dataset)}, rate × {rate:g}" for dataset, rate in cells.columns]
    lines = [f"| {'SGD' if optimizer == 'sgd' else 'Adam'} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for width, row in cells.iterrows():
        lines.append(f"| {names[width]} | {' | '.join('–' if pd.isna(v) else written(v, 3) for v in row)} |")
    if optimizer != "sgd":
        ceilings = table.groupby(["dataset", "rate"])["ceiling"].first().reindex(cells.columns)
        lines.append(f"| noise ceiling | {' | '.join(written(v, 3) for v in ceilings)} |")
    return "\n".join(lines) + "\n"


def runs() -> str:
    """LFT with G alone and with the whole Hessian, along one run and more, by `benchmarks/lft_runs.py`: similarity over
    horizons, lowest, and the cost against one seed of the gold standard."""
    table = pd.read_csv(FOLDER / "lft_runs.csv")
    adam = table["optimizer"] == "adam"
    table["panel"] = table["dataset"].map(title) + adam.map({True: ", Adam", False: ""})
    order = table.assign(adam=adam, letter=table["dataset"].map(panel_letter)).sort_values(["adam", "letter"])
    names = list(dict.fromkeys(order["panel"]))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for (hessian, number), rows in table.groupby(["hessian", "runs"]):
        count = "one run" if number == 1 else f"mean of {COUNTS.get(number, number)} runs"
        words = f"{'G alone' if hessian == 'alone' else 'whole Hessian'}, {count}"
        at = rows.set_index("panel").assign(cost=lambda t: t["seconds"] / t["seed_seconds"])
        cells = {k: f"{written(r['mean'])} ({written(r['lowest'])}; {r['cost']:.2g})" for k, r in at.iterrows()}
        lines.append(f"| {words} | {' | '.join(cells.get(k, '–') for k in names)} |")
    ceilings = table.groupby("panel")["ceiling"].first()
    return "\n".join([*lines, f"| noise ceiling | {' | '.join(written(ceilings[k]) for k in names)} |"]) + "\n"


def unpublished() -> str:
    """Of the settings that `benchmarks/unpublished_settings.py` tried, those that come nearest to published curves."""
    table = pd.read_csv(FOLDER / "unpublished_settings.csv")
    lines = [
        "| | published, first → last | nearest setting tried | ours with it | farthest | tried |",
        "|---|---|---|---|---|---|",
    ]

    def pair(row: pd.Series, prefix: str = "") -> str:
        return f"{written(row[f'{prefix}first'])} → {written(row[f'{prefix}last'])}"

    for (dataset, method), rows in table.groupby(["dataset", "method"], sort=False):
        done = rows.dropna(subset="distance").sort_values("distance")
        best, worst = done.iloc[0], done.iloc[-1]
        lines.append(
            f"| {dataset.capitalize()}, {METHODS[method].label} | {pair(best, 'published_')} | {best.setting} | "
            f"{pair(best)} | {worst.setting}: {pair(worst)} | {len(rows)} |"
        )
    return "\n".join(lines) + "\n"


def curves() -> str:
    """What leaving out the most helpful instances does, by `benchmarks/removal_curves.py`."""
    table = pd.read_csv(FOLDER / "removal_curves.csv").sort_values("dataset", kind="stable")
    (tests,) = set(table["tests"])
    heading = f"Rise of the loss without the {UTMOST:.0%} held to be most helpful; {tests} test instances"
    return markdown(heading, table, without_helpful)


def rectified() -> str:
    """What derivatives say of runs of image models with rectified units, by `benchmarks/rectified_images.py`."""
    table, kinks = pd.read_csv(FOLDER / "rectified_images.csv"), {"between": "between kinks", "moved": "softened"}
    lines = []
    for dataset, rows in table.groupby("dataset", sort=False):
        seeds = rows["seeds"].iloc[0]
        at = {name: some.set_index("step") for name, some in rows.groupby("kinks", sort=False)}
        steps = at["between"].index
        lines += [f"| {title(dataset)}, steps | {' | '.join(map(str, steps))} |", "|---|" + "---|" * len(steps)]
        against = {"itself": "the run itself", "mean": f"mean of {seeds} seeds", "single": "other single seeds"}
        shown = [(f"{words}, {how}", at[k][column]) for column, words in against.items() for k, how in kinks.items()]
        shown += [(f"noise ceiling, {seeds} seeds", at["between"]["ceiling"])]
        shown += [("noise ceiling, one seed", at["between"]["ceiling_single"])]
        lines += [f"| {words} | {' | '.join(written(v) for v in values)} |" for words, values in shown] + [""]
    return "\n".join(lines[:-1]) + "\n"
