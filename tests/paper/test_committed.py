"""What is committed in figures/: its ceilings are not exceeded, its captions are short, its page fits every window."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from bs4 import BeautifulSoup
from pages import visit

import fimoda_lib
from fimoda_lib.intervals import ceiling_interval

FIGURES = Path(fimoda_lib.__file__).parents[1] / "figures"
FOLDERS = [f for f in sorted(FIGURES.glob("*")) if f.is_dir()]  # a copy of the project may have none
CHANCE = 0.15  # how often three seeds that share a single number exceed the interval, see `ceiling_interval`
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)


def share_above(table: pd.DataFrame) -> float:
    """The share of the methods' points that lie above the upper end of the noise ceiling of their panel."""
    keys = ["dataset", "step"]
    high = table[table.method == "ceiling"].set_index(keys)["high"].rename("ceiling")
    points = table[table.method != "ceiling"].dropna(subset="mean").join(high, on=keys).dropna(subset="ceiling")
    return float((points["mean"] > points["ceiling"] + 1e-9).mean())


@each
@pytest.mark.parametrize("figure", ["fig02", "fig04", "fig05"])
def test_no_method_is_above_the_ceilings_interval_more_often_than_chance_allows(folder, figure):
    assert share_above(pd.read_csv(folder / f"{figure}.csv")) <= CHANCE


def test_a_ceiling_without_its_interval_would_be_exceeded():
    """The check notices where seeds share a single number, in which three may agree by luck, as on FICO."""
    random = np.random.default_rng(0)
    rows = []
    for k in range(150):
        truth = random.normal(size=(50, 1, 6))
        noise = 3.0 * random.normal(size=(3, 1, 1, 6))  # of a seed, common to all left-out instances
        delta = xr.DataArray(truth + noise, dims=("seed", "left_out", "step", "test"), coords={"step": [1]})
        mean, true = delta.values.mean(0)[:, 0], truth[:, 0]  # [left_out, test]
        reached = ((mean * true).sum(0) / np.linalg.norm(mean, axis=0) / np.linalg.norm(true, axis=0)).mean()
        found = ceiling_interval(xr.Dataset({"delta": delta}), "full").isel(step=0)
        rows += [{"dataset": k, "step": 1, "method": "truth", "mean": reached}]
        rows += [
            {"dataset": k, "step": 1, "method": "ceiling", "mean": float(found["mean"]), "high": float(found.high)}
        ]
    table = pd.DataFrame(rows)
    assert share_above(table) <= CHANCE
    assert share_above(table.assign(high=table["mean"])) > 2 * CHANCE


@each
def test_every_caption_is_short(folder):
    notes = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    captions = {name: note["caption"].split("Not run yet")[0] for name, note in notes.items() if "caption" in note}
    lengths = {name: len(caption.split()) for name, caption in captions.items()}
    assert lengths and {name: n for name, n in lengths.items() if n > 60} == {}


@each
def test_no_raw_markup_is_left_on_the_page(folder):
    page = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
    for code in page.select("code, pre, script, style"):
        code.decompose()
    assert [text for text in page.stripped_strings if "`" in text or "-0.000" in text or "**" in text] == []


@each
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_window_and_shows_all_its_pictures(folder, browser, width):
    visit(browser, folder / "index.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    # on a narrow page, single panels are loaded when they come into sight
    shown = browser.execute_script(
        "return [...document.images].filter(i => i.offsetParent && i.complete).map(i => [i.naturalWidth, i.alt])"
    )
    assert len(shown) > 1 and all(width > 0 and alt for width, alt in shown)
