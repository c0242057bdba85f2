"""The report: from a made-up figures folder to a page that a browser shows without a network and without complaints."""

import base64
import io
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pages import visit
from PIL import Image

from fimoda_lib.paper import notebook_pages
from fimoda_lib.paper.claims import CLAIMS
from fimoda_lib.paper.entries import TITLES
from fimoda_lib.paper.pieces import faults
from fimoda_lib.paper.report import ROOT, main, report
from fimoda_lib.plots.published import published_curves
from fimoda_lib.run import command as run
from fimoda_lib.run import notebooks

GRAD_DOT = [0.8, 0.6, 0.2, 0.1]
OTHERS = {"datainf": [0.7, 0.6, 0.3, 0.2], "trak": [0.3, 0.3, 0.3, 0.3], "ceiling": [0.9, 0.9, 0.9, 0.9]}
EPOCHS = [1, 2, 100, 500]
NOTE = {
    "figure": "fig02",
    "title": "Similarity <made up>",
    "caption": "What is drawn; a formula a < b & c.",
    "notebook": "04_figures",
    "profile": "overnight",
    "optimizer": "sgd",
    "adjustment": "mean",
    "datasets": {
        "energy": {
            "seeds": [0, 1, 2],
            "left_out": 100,
            "test": 77,
            "specification": "0123456789abcdef",
            "seconds": 12.5,
            "diverged_runs": 0,
        }
    },
    "versions": {"torch": "2"},
    "commit": "abcdef1234",
}
OLD_NOTE = {k: v for k, v in NOTE.items() if k not in ("title", "caption", "notebook")}


def draw(path: Path, width: float = 6) -> None:
    figure = Figure(figsize=(width, 3))
    figure.add_subplot().plot([1, 2], [3, 4])
    figure.savefig(path)


def put_figure(folder: Path, stem: str, note: dict, rows: pd.DataFrame) -> None:
    """One figure as `drawing.save` leaves it."""
    (folder / f"{stem}.json").write_text(json.dumps(note))
    rows.to_csv(folder / f"{stem}.csv", index=False)
    for ending in ("png", "pdf"):
        draw(folder / f"{stem}.{ending}")


def executed_notebook() -> nbformat.NotebookNode:
    """An executed notebook with everything that a page has to cope with."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((50, 1600, 3), np.uint8)).save(buffer, "PNG")
    bar = "final model:   0%|          | 0.00/240 [00:00<?, ?step/s]\rfinal model: 100%|####| 240/240 [00:10<00:00]\n"
    outputs = [
        new_output("stream", name="stderr", text=bar + "CG has not converged: residual 1e-2.\n"),
        new_output("stream", name="stdout", text=f"read {ROOT}/fimoda_lib/run.py <tag>\n"),
        new_output("display_data", {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<Fig>"}),
        new_output("display_data", {"text/html": pd.DataFrame({"a": range(3)}).to_html(), "text/plain": "a"}),
        new_output(
            "display_data", {"text/html": "<style>p{}</style><p>xarray</p>", "text/plain": "<xarray at 0xabcdef0>"}
        ),
    ]
    cells = [
        new_markdown_cell(
            "# 4. The *figures*\n\nWith $\\lambda = 1/(\\eta T)$ and $\\broken{$, see [three](03_x.ipynb).\n\n"
            "$$g_z^\\top P g_i$$"
        ),
        new_code_cell('results = "/elsewhere/of/mine/results"\nx = 1  # ' + "long " * 60, outputs=outputs),
        new_code_cell(""),
    ]
    return new_notebook(
        cells=cells,
        metadata={
            "papermill": {
                "duration": 93.0,
                "start_time": "2026-01-02T03:04:05",
                "parameters": {"results": "/elsewhere/of/mine/results", "n": 1},
            }
        },
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(figures folder, page) of a made-up run."""
    top = tmp_path_factory.mktemp("run")
    folder, results = top / "figures" / "overnight", top / "results" / "overnight"
    folder.mkdir(parents=True)
    (results / "notebooks").mkdir(parents=True)
    curves = {"grad_dot": GRAD_DOT, **OTHERS}
    rows = pd.concat([pd.DataFrame({"method": m, "epoch": EPOCHS, "mean": v}) for m, v in curves.items()])
    rows = rows.assign(panel="b", dataset="energy", step=rows.epoch)
    put_figure(folder, "fig02", NOTE, rows)
    put_figure(folder, "fig02b_energy", NOTE, rows)
    put_figure(folder, "fig02c_fico", NOTE, rows)
    put_figure(folder, "fig_damping", {**OLD_NOTE, "figure": "fig_damping"}, rows.drop(columns="method"))
    (folder / "table2.json").write_text(json.dumps({**NOTE, "figure": "table2", "title": "Instances"}))
    pd.DataFrame({"role": ["most <helpful>"], "score": [0.123456], **{f"c{k}": ["wide"] for k in range(20)}}).to_csv(
        folder / "table2.csv", index=False
    )
    (folder / "table2.html").write_text("<!DOCTYPE html><title>t</title>")
    nbformat.write(executed_notebook(), results / "notebooks" / "04_figures.ipynb")
    nbformat.write(new_notebook(cells=[new_markdown_cell("## Third")]), results / "notebooks" / "03_x.ipynb")
    (results / "further-x.json").write_text(json.dumps({"device": "2 CPU cores", "written": "2026-01-01T00:00:00Z"}))
    return folder, report(folder, results)


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def words(node) -> str:
    return re.sub(r"\s+", " ", node.get_text(" ")).strip()


# What the page says


def test_every_claim_has_a_verdict_in_words(made):
    items = soup(made[1]).select("ol.answers > li")
    assert len(items) == len(CLAIMS)
    for item, claim in zip(items, CLAIMS, strict=True):
        assert claim.statement in words(item)
    verdicts = [words(i.select_one(".verdict")) for i in items]
    # TRAK at 0.3 breaks claim 4; claims 2, 3 and 5 lack methods or figures.
    assert verdicts == ["✓ reproduced", "– not run", "– not run", "✗ not reproduced", "– not run"]


def test_a_run_on_other_data_is_called_a_trial(made, tmp_path):
    """It does not ask whether the paper reproduces, and says what to run next."""
    rows = pd.concat([pd.DataFrame({"method": m, "epoch": EPOCHS, "mean": v}) for m, v in OTHERS.items()])
    put_figure(tmp_path, "fig02", {**NOTE, "profile": "quick"}, rows.assign(panel="b", dataset="wine"))
    page = soup(report(tmp_path))
    assert words(page.h1) == "A trial run" and "Does it reproduce?" not in words(page)
    assert "./run_all.sh --profile laptop --data DIR" in words(page)
    assert not page.select(".verdict.reproduced, .verdict.not-reproduced")
    assert words(soup(made[1]).h1) == "Does it reproduce?"


def test_published_numbers_stand_beside_ours(made):
    published = published_curves().query("figure == '2b' and method == 'grad_dot'").set_index("x").value
    tables = [t for t in soup(made[1]).select("table") if t.caption and "ours and published" in words(t.caption)]
    rows = {words(r.th): [words(c) for c in r.select("td")] for r in tables[0].select("tbody tr")}
    assert rows["Grad-Dot"] == ["0.80", f"{published[1]:.2f}", "0.10", f"{published[500]:.2f}"]
    assert set(rows) == {"Grad-Dot", "DataInf", "TRAK"}


def test_each_figure_has_its_caption_settings_and_files(made):
    folder, page = made
    section = soup(page).select_one("section[aria-labelledby=fig02]")
    text = words(section)
    assert "Figure 2. Similarity <made up>" in text and NOTE["caption"] in text  # escaped, not taken for tags
    assert "optimizer sgd" in text and "3 (0–2)" in text and "0123456789abcdef" in text and "abcdef1234" in text
    addresses = [a["href"] for a in section.select("a")]
    for name in ("fig02.pdf", "fig02.png", "fig02.csv", "notebooks/04_figures.html", "fig02b_energy.pdf"):
        assert name in addresses
    assert "Damping is time" in [words(h) for h in soup(page).select("h2")]  # a JSON without a title


def test_the_head_says_what_ran_where_and_when(made):
    facts = words(soup(made[1]).select_one("dl.facts"))
    assert "Energy: 3 seeds with SGD" in facts and "2 CPU cores" in facts
    assert "2026-01-01 to 2026-01-02" in facts and "abcdef1234" in facts


def test_missing_figures_are_listed_with_their_command(made):
    listed = words(soup(made[1]).select_one("section[aria-labelledby=missing]"))
    present = {"fig02", "fig_damping", "table2"}
    for name in TITLES:
        found = re.search(rf"\./run_all\.sh --profile overnight --only {name}(\s|$)", listed)
        assert bool(found) == (name not in present), name


def test_the_report_knows_every_figure():
    assert set(TITLES) == set(run.FIGURES), "report.TITLES: one title per figure that the command line makes"


def test_the_most_seeds_of_each_optimiser_are_told(made, tmp_path):
    folder = tmp_path / "overnight"
    shutil.copytree(made[0], folder)
    fewer = {"energy": {**NOTE["datasets"]["energy"], "seeds": [0]}}
    (folder / "fig_removal.json").write_text(json.dumps({**NOTE, "figure": "fig_removal", "datasets": fewer}))
    facts = words(soup(report(folder)).select_one("dl.facts"))
    assert "Energy: 3 seeds with SGD" in facts and "1 seed with SGD" not in facts


def test_the_table_of_the_paper_is_shown_as_text(made):
    row = soup(made[1]).select_one("section[aria-labelledby=table2] tbody tr")
    assert [words(c) for c in row.select("td")][:2] == ["most <helpful>", "0.1235"]


def test_bold_cells_say_what_captions_say(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "overnight")
    for name in ("table2", "table_horizons"):
        (tmp_path / "overnight" / f"{name}.json").write_text(json.dumps({**NOTE, "figure": name}))
    roles = {"test": [7, 7, 7], "role": ["to explain", "most helpful", "most harmful"], "instance": [7, 4, 2]}
    instances = pd.DataFrame({**roles, "score": [np.nan, 0.01, -0.5], "job": ["clerk", "clerk", "nurse"]})
    instances.to_csv(tmp_path / "overnight" / "table2.csv", index=False)
    rows = {"data set": "X", "method": ["LFT (ours)", "CG"], "mean over horizons": [0.9, 0.8], "leads": [True, False]}
    pd.DataFrame(rows).to_csv(tmp_path / "overnight" / "table_horizons.csv", index=False)
    page = soup(report(tmp_path / "overnight"))
    assert [words(b) for b in page.select("section[aria-labelledby=table2] td strong")] == ["clerk"]
    section = page.select_one("section[aria-labelledby=table_horizons]")
    assert [words(b) for b in section.select("td strong")] == ["0.9"] and "leads" not in words(section.thead)


def test_pieces_are_computed_now_or_found(made, tmp_path):
    """From sidecars, by the time at which the run began; without that, the page says only when they were written."""
    folder, results = tmp_path / "overnight", tmp_path / "results"
    shutil.copytree(made[0], folder)
    results.mkdir()
    days = {"final-energy-00": "2026-01-01", "further-energy-sgd-drop-seed0-00": "2026-01-01",
            "further-energy-sgd-drop-seed1-00": "2026-01-03", "scores-energy-cg-00": "2026-01-03",
            "engine-energy-00": "2026-01-02"}  # fmt: skip
    for stem, day in days.items():
        (results / f"{stem}.json").write_text(json.dumps({"written": f"{day}T00:00:00Z", "seconds": 90}))
    page = soup(report(folder, results, "2026-01-02T12:00:00Z"))
    assert "2 pieces computed now, 3 found from earlier runs" in words(page.select_one("dl.facts"))
    rows = [[words(c) for c in row.select("td")] for row in page.select("section[aria-labelledby=pieces] tbody tr")]
    assert rows == [
        ["final model", "Energy", "1", "0", "1", "1.5", "2026-01-01"],
        ["further training", "Energy", "2", "1", "1", "3.0", "2026-01-01 to 2026-01-03"],
        ["scores", "Energy", "1", "1", "0", "1.5", "2026-01-03"],
        ["studies", "Energy", "1", "0", "1", "1.5", "2026-01-02"],
    ]
    page = soup(report(folder, results))
    assert "computed now" not in words(page) and "2026-01-01 to 2026-01-03" in words(page)
    again = soup(report(folder))  # where the results are not at hand, the page says what it said
    for selector in ("section[aria-labelledby=pieces]", "dl.facts"):
        assert words(again.select_one(selector)) == words(page.select_one(selector))
    assert len(again.select("section[aria-labelledby=pieces] tbody tr")) == 4


def test_a_page_is_refused_if_it_is_older_than_its_figures_or_of_several_commits(made, tmp_path):
    folder = tmp_path / "overnight"
    shutil.copytree(made[0], folder)
    assert faults(folder) == []
    path = folder / "fig02b_energy.json"
    path.write_text(json.dumps({**NOTE, "commit": "1234567890"}))
    assert ["older" in faults(folder)[0], "2 commits (1234567890, abcdef1234)" in faults(folder)[1]] == [True, True]
    report(folder)
    assert len(faults(folder)) == 1
    kept = {"energy": {**NOTE["datasets"]["energy"], "drawn": "abcdef1234+"}}
    path.write_text(json.dumps({**NOTE, "datasets": kept}))
    report(folder)
    assert "2 commits" in faults(folder)[0] and "drawn by abcdef1234+, which is no commit" in faults(folder)[1]
    path.write_text(json.dumps(NOTE))
    earlier = {"energy": {**NOTE["datasets"]["energy"], "computed_by": ["1" * 10]}}  # which is no fault
    path = folder / "fig02.json"
    path.write_text(json.dumps({**NOTE, "datasets": earlier}))
    assert "1" * 10 in words(soup(report(folder)).select_one("dl.facts")) and faults(folder) == []
    path.write_text(path.read_text().replace("1" * 10, "1" * 10 + "+"))
    report(folder)
    assert [f"computed by {'1' * 10}+, which is no commit" in fault for fault in faults(folder)] == [True]
    (folder / "index.html").unlink()
    assert "older" in faults(folder)[0] and main([str(folder), "--check"]) == 1
    assert main([str(made[0]), "--check"]) == 0


COMMITTED = [f.name for f in sorted((ROOT / "figures").glob("*")) if f.is_dir()]  # a copy of the project may have none


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_figures_are_of_one_commit_and_their_page_is_as_new(name):
    assert faults(ROOT / "figures" / name) == []
    note = json.loads((ROOT / "figures" / name / "fig02.json").read_text())
    assert f"`{note['commit']}`" in (ROOT / "figures" / "README.md").read_text()  # which says how to repeat the run


# Executed notebooks


def test_a_notebook_page_keeps_what_matters(made):
    page = soup(made[0] / "notebooks" / "04_figures.html")
    text = words(page)
    assert words(page.title) == "4. The figures" and "took 1.6 min" in text
    assert "CG has not converged" in text and "240/240" not in text and "step/s" not in text
    assert "/elsewhere" not in text and 'results = "results"' in text
    assert str(ROOT) not in page.decode() and "read ./fimoda_lib/run.py <tag>" in text
    assert "<xarray>" in text and not page.select("script") and len(page.select("style")) == 1
    assert page.select_one("a[href='03_x.html']") and len(page.select("table td")) == 3
    source = page.select_one("img")["src"].removeprefix("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.size == (notebook_pages.IMAGE_WIDTH, 25)


def test_formulas_are_mathml_and_broken_ones_stay_readable(made):
    page = soup(made[0] / "notebooks" / "04_figures.html")
    inline, block = page.select("math")
    assert inline.text == "λ=1/(ηT)" and inline["display"] == "inline"
    assert block["display"] == "block" and block.select_one("msubsup")
    assert page.select_one("code.formula").text == r"\broken{"
    assert "$" not in words(page)
    assert "D∖i" in BeautifulSoup(notebook_pages.prose(r"$D \setminus i$"), "html.parser").text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a:  3%|▎  | 1.5k/9.0k [00:01<00:05]\ra: 9%|# | 3/9\n", ""),
        ("17it [00:01, 9.9it/s]", ""),
        ("\x1b[31mstopped at 50%\x1b[0m", "stopped at 50%"),
        ("50% | of the rows", "50% | of the rows"),
    ],
)
def test_only_progress_bars_are_dropped(text, kept):
    assert notebook_pages.without_progress(text) == kept


# Without files, or with bad ones


def test_bad_folders_are_refused_in_a_sentence(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no figures .* make them first"):
        report(tmp_path)
    (tmp_path / "fig02.json").write_text("{")
    with pytest.raises(ValueError, match=r"fig02\.json is not readable JSON"):
        report(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path), "--results", str(tmp_path / "no")]) == 2
    printed = capsys.readouterr().err
    assert "draw the figure anew." in printed and "there is no folder" in printed and "Traceback" not in printed


def test_it_works_by_itself_and_keeps_earlier_notebook_pages(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # results of other runs may lie in the current folder
    folder = tmp_path / "overnight"
    shutil.copytree(made[0], folder)
    before = (folder / "index.html").read_text()
    (folder / "index.html").unlink()
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "index.html")
    after = (folder / "index.html").read_text()
    assert "notebooks/04_figures.html" in after
    assert re.sub(r"<dt>(On|When)</dt>.*\n", "", after) == re.sub(r"<dt>(On|When)</dt>.*\n", "", before)


@pytest.mark.parametrize("good", [True, False])
def test_a_run_ends_with_its_report_and_survives_a_failing_one(good, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", lambda *_, **__: None)
    shutil.copytree(made[0], tmp_path / "figures" / "overnight")
    if not good:
        (tmp_path / "figures" / "overnight" / "fig02.csv").write_bytes(b"")
    options = Namespace(
        profile="overnight", results=str(tmp_path / "results"), figures=str(tmp_path / "figures"), jobs=1, only=None,
        scheduler=None,
    )  # fmt: skip
    assert run.run([[run.NotebookRun("04_figures", "figures", {})]], options) == 0
    printed = capsys.readouterr()
    page = tmp_path / "figures" / "overnight" / "index.html"
    assert (f"Report: {page}" in printed.out) == good
    assert ("its report could not be made (ValueError: " in printed.err and "fig02.csv" in printed.err) == (not good)


# In a browser


PAGES = ("index.html", "notebooks/04_figures.html", "notebooks/03_x.html")


@pytest.mark.parametrize("name", PAGES)
def test_the_browser_shows_everything_without_complaint_or_network(made, browser, name):
    browser.get("about:blank")
    browser.get_log("browser")  # what other pages said before, the last one when it was left
    visit(browser, made[0] / name, 1280)
    assert browser.get_log("browser") == []
    loaded = browser.execute_script(
        "return [...document.images].filter(i => i.offsetParent).map(i => [i.naturalWidth, i.alt])"
    )
    assert all(width > 0 and alt for width, alt in loaded)
    assert len(loaded) == {"index.html": 2, "notebooks/04_figures.html": 1}.get(name, 0)
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [f for f in fetched if not f.startswith(("file:", "data:"))] == []


def test_the_check_of_the_browser_notices(browser, tmp_path):
    """A missing image is an error in the console, and has no width."""
    (tmp_path / "bad.html").write_text("<img src='missing.png' alt='x'>")
    visit(browser, tmp_path / "bad.html", 360)
    assert browser.execute_script("return document.images[0].naturalWidth") == 0
    assert any("missing.png" in entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(made, name):
    page = made[0] / name
    links = [a["href"] for a in soup(page).select("a[href]")]
    assert links
    for link in links:
        address, _, anchor = link.partition("#")
        if address.startswith("https://arxiv.org/"):
            continue
        target = (page.parent / address) if address else page
        assert target.is_file(), link
        assert not anchor or soup(target).find(id=anchor), link


def test_on_a_phone_single_panels_stand_in_place_of_the_sheet(made, browser):
    shown = "return [...document.querySelectorAll('#fig02 ~ figure img')].filter(i => i.offsetParent).map(i => i.src)"
    for width, names in ((1280, ["fig02.png"]), (390, ["fig02b_energy.png", "fig02c_fico.png"])):
        visit(browser, made[1], width)
        assert [address.rsplit("/", 1)[1] for address in browser.execute_script(shown)] == names
        sizes = "return [...document.querySelectorAll('img')].map(i => i.getBoundingClientRect().right)"
        assert max(browser.execute_script(sizes)) <= width


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_page_is_wider_than_the_window(made, browser, name, width):
    visit(browser, made[0] / name, width)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    # wide tables and long lines of code scroll in boxes of their own, which the keyboard reaches
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.wide, pre')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => [getComputedStyle(e).overflowX, e.tabIndex])"
    )
    assert all(box == ["auto", 0] for box in boxes)
    if width < 400 and name == "index.html":
        assert boxes  # table 2 has twenty columns
        shadows = "return getComputedStyle(document.querySelector('.wide')).backgroundAttachment"
        assert "local" in browser.execute_script(shadows)  # a shadow at the end that has more


@pytest.mark.parametrize("name", PAGES)
def test_headings_come_in_order_and_every_id_is_unique(made, name):
    page = soup(made[0] / name)
    levels = [int(h.name[1]) for h in page.select("h1, h2, h3, h4")]
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    ids = [tag["id"] for tag in page.select("[id]")]
    assert len(ids) == len(set(ids)) and page.html["lang"] == "en"


@pytest.mark.parametrize("name", PAGES)
def test_pages_print(made, browser, name):
    from selenium.common.exceptions import WebDriverException

    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # on paper there is no window
    browser.get((made[0] / name).as_uri())
    for left in (2, 1, 0):  # of a busy machine Chromium says now and then that printing failed
        try:
            pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
            break
        except WebDriverException as error:
            if not left or "Printing failed" not in str(error):
                raise
    assert pdf.startswith(b"%PDF") and len(pdf) > 5000
