"""Figures from tiny stored results: what is drawn is what the CSV says, and what an independent computation gives."""

import json
import shutil
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fimoda_lib.comparison import sensitivity, similarity
from fimoda_lib.experiments.panel import Panel, one_seed
from fimoda_lib.intervals import bands, block_ceiling, ceiling_interval
from fimoda_lib.paper import figures
from fimoda_lib.plots import extremes, retraining, seeds
from fimoda_lib.plots import similarity as similarity_plot
from fimoda_lib.plots.captions import provenance, scores_of
from fimoda_lib.plots.panels import LETTERS, shown_in
from fimoda_lib.storage.store import asked

METHODS = ("grad_dot", "grad_cos")
VARIANTS = ("fig04", "fig05", "fig06", "fig08", "fig09")  # of Figures 2 and 7: drawn with the first two panels here
NOT_RUN = "Not run yet: ./run_all.sh --profile smoke --only {} --datasets wine"
pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture(scope="module")
def panels(tmp_path_factory, trained, computed):
    results = tmp_path_factory.mktemp("results")
    for optimizer in ("sgd", "adam"):
        trained(results, "diabetes", optimizer)
    letters = {"a": "diabetes", "b": "wine", "d": "digits", "e": "digit_images", "f": "sentences"}
    panels = {k: Panel(name, "smoke", results=results) for k, name in letters.items()}
    for letter in "adef":  # nothing of panel b is run
        kinds = ("final-{}", "further-{}", "engine-{}", "scores-{}-grad_dot", "scores-{}-grad_cos")
        computed(results, *(kind.format(letters[letter]) for kind in kinds[: 5 if letter in "ad" else 4]))
    for letter in "ad":
        for name in METHODS:
            panels[letter].scores(name)
        assert panels[letter].gold.sizes["seed"] == 2
    for letter in "ef":
        panels[letter].scores("grad_dot")
        assert panels[letter].gold.attrs["removal"] == "subtract"
    assert panels["a"].retrained.sizes["seed"] == 1
    assert panels["a"].other(optimizer="adam").gold.sizes["seed"] == 2
    return panels


def given(name, panels):
    """The panels that a figure is drawn with."""
    return {k: panels[k] for k in "ab"} if name in VARIANTS else panels


@pytest.fixture(scope="module")
def drawn(panels, tmp_path_factory, quick_pictures):
    """Name of a figure -> the figure, drawn once, and the folder of its files."""
    folder = tmp_path_factory.mktemp("figures")
    return cache(lambda name: (figures.FIGURES[name](given(name, panels), folder), folder))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def lines_of(ax):
    """Colour -> line."""
    return {line.get_color(): line for line in ax.get_lines()}


def line_of(ax, method):
    return lines_of(ax)[figures.LOOK[method].colour]


def words_of(ax):
    return [" ".join(text.get_text().split()) for text in ax.texts]


def cosines(scores, measured):
    """Mean cosine over test instances, written out: scores [test, n] and measured [steps, n, test]."""
    values = [
        [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(scores, at.T, strict=True)] for at in measured
    ]
    return np.mean(values, axis=1)


def adjusted(delta, adjustment="mean"):
    """delta [seed, left_out, step, test], averaged over seeds -> [step, left_out, test]."""
    mean = delta.values.astype(float).mean(axis=0)
    if adjustment == "mean":
        mean = mean - mean.mean(axis=0, keepdims=True)
    return mean.swapaxes(0, 1)


# Figures 2, 4, 5 and 6


@pytest.mark.slow
def test_lines_are_the_numbers_of_the_csv(panels, drawn):
    figure, folder = drawn("fig02")
    table = pd.read_csv(folder / "fig02.csv").query("panel == 'a'")
    ax = figure.axes[0]
    expected = similarity(panels["a"].scores("grad_dot"), sensitivity(panels["a"].gold))
    for name in METHODS:
        rows = table[table.method == name]
        np.testing.assert_allclose(line_of(ax, name).get_ydata(), rows["mean"], rtol=1e-5)
        np.testing.assert_allclose(line_of(ax, name).get_xdata(), rows["epoch"], rtol=1e-5)
    np.testing.assert_allclose(table[table.method == "grad_dot"]["mean"], expected["mean"], rtol=1e-5)
    assert set(table.method) == {*METHODS, "ceiling"}
    assert "(a) Diabetes (stands in for Concrete)" in ax.get_title(loc="left")
    assert ax.get_xlabel() == "epochs of further training"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Grad-Dot", "Grad-Cos", "noise ceiling"]
    alone = pd.read_csv(folder / "fig02a_diabetes.csv")
    pd.testing.assert_frame_equal(alone, table.reset_index(drop=True), check_dtype=False)


@pytest.mark.parametrize(("name", "adjustment"), [("fig02", "mean"), ("fig05", "full")])
def test_bands_and_the_ceiling_are_intervals(panels, drawn, name, adjustment):
    _, folder = drawn(name)
    table = pd.read_csv(folder / f"{name}.csv").query("panel == 'a'")
    gold, scores = panels["a"].gold, {m: panels["a"].scores(m) for m in METHODS}
    halves, found = bands(scores, gold, adjustment), ceiling_interval(gold, adjustment)
    for name in METHODS:
        rows = table[table.method == name]
        np.testing.assert_allclose(rows["low"], (rows["mean"] - halves[name].values).clip(lower=-1), rtol=1e-4)
    ceiling = table[table.method == "ceiling"]
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(ceiling[column], found[column], rtol=1e-4)
    above = [table[table.method == m]["mean"].to_numpy() > ceiling["high"].to_numpy() for m in METHODS]
    assert np.mean(above) <= 0.05  # no more often than chance allows


def test_images_and_text_are_drawn_against_steps(panels, drawn):
    figure, _ = drawn("fig02")
    for k, letter in ((3, "e"), (4, "f")):
        ax = figure.axes[k]
        assert ax.get_xlabel() == "optimiser steps of further training"
        assert line_of(ax, "grad_dot").get_xdata().tolist() == panels[letter].gold.step.values.tolist()


@pytest.mark.parametrize("name", ["fig02", "fig07", "fig11"])
def test_a_panel_without_results_says_what_to_do(drawn, name):
    figure, folder = drawn(name)
    assert words_of(figure.axes[1]) == [NOT_RUN.format(name)]
    assert not figure.axes[1].get_lines()
    assert (
        "Not run yet: (b) Wine (stands in for Energy)." in json.loads((folder / f"{name}.json").read_text())["caption"]
    )
    assert (folder / f"{name}b_wine.png").exists() and pd.read_csv(folder / f"{name}b_wine.csv").empty


@pytest.mark.slow
def test_the_four_figures_differ_in_what_they_should(panels, drawn):
    tables = {}
    for name in ("fig02", "fig04", "fig05", "fig06"):
        _, folder = drawn(name)
        tables[name] = pd.read_csv(folder / f"{name}.csv").query("method == 'grad_dot' and panel == 'a'")["mean"]
    gold, scores = panels["a"].gold, panels["a"].scores("grad_dot")
    adam = panels["a"].other(optimizer="adam").gold
    np.testing.assert_allclose(tables["fig02"], cosines(scores.values, adjusted(gold.delta)), rtol=1e-5)
    np.testing.assert_allclose(tables["fig04"], cosines(scores.values, adjusted(adam.delta)), rtol=1e-5)
    np.testing.assert_allclose(tables["fig05"], cosines(scores.values, adjusted(gold.delta, "full")), rtol=1e-5)
    ranks = similarity(scores, sensitivity(gold), "spearman")["mean"]
    np.testing.assert_allclose(tables["fig06"], ranks, rtol=1e-5)
    for name in ("fig04", "fig05", "fig06"):
        assert not np.allclose(tables["fig02"], tables[name])


def test_a_method_that_diverged_is_named_not_drawn(panels, tmp_path, monkeypatch):
    real = Panel.scores

    def scores(self, method, **hyper):
        found = real(self, method, **hyper)
        return (found * np.nan).assign_attrs(outcome="diverged: for the test") if method == "grad_cos" else found

    monkeypatch.setattr(Panel, "scores", scores)
    for draw in (figures.figure2, figures.figure7, figures.figure11):
        ax = draw({"a": panels["a"]}, tmp_path, METHODS).axes[0]
        assert words_of(ax) == ["diverged: Grad-Cos"]
        assert figures.LOOK["grad_cos"].colour not in lines_of(ax)


def test_a_data_set_counted_in_steps_has_them_on_its_axis(panels):
    table = similarity_plot.table(panels["a"], METHODS)
    axes = plt.figure().subplots(1, 2)
    for ax, dataset in zip(axes, ("diabetes", "sst2"), strict=True):
        similarity_plot.draw(ax, table, dataset)
    per_epoch = panels["a"].gold.attrs["steps_per_epoch"]
    epochs, steps = (line_of(ax, "grad_dot").get_xdata() for ax in axes)
    np.testing.assert_allclose(steps, epochs * per_epoch)
    assert axes[1].get_xlabel() == "optimiser steps of further training"


# Figures 3, 7, 8 and 9


def best_of_blocks(delta, scores, k, adjustment):
    """The largest mean cosine over the steps, with the seeds in blocks of k."""
    blocks = [delta[i : i + k] for i in range(0, len(delta) - k + 1, k)]
    return np.mean([cosines(scores.values, adjusted(block, adjustment)) for block in blocks], axis=0).max()


@pytest.mark.parametrize(
    ("name", "optimizer", "adjustment"), [("fig07", "sgd", "mean"), ("fig08", "adam", "mean"), ("fig09", "sgd", "full")]
)
def test_seed_averaging_curves(panels, drawn, name, optimizer, adjustment):
    figure, folder = drawn(name)
    gold, scores = panels["a"].other(optimizer=optimizer).gold, panels["a"].scores("grad_dot")
    line = line_of(figure.axes[0], "grad_dot")
    expected = [best_of_blocks(gold.delta, scores, k, adjustment) for k in (1, 2)]
    assert line.get_xdata().tolist() == [1, 2]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    table = pd.read_csv(folder / f"{name}.csv").query("panel == 'a'")
    np.testing.assert_allclose(table.query("method == 'grad_dot'")["mean"], expected, rtol=1e-5)
    ceiling = table.query("method == 'ceiling'").set_index("seeds_averaged")["mean"]
    at = table.query("method != 'ceiling'").groupby("seeds_averaged")["step"].apply(lambda steps: steps.astype(int))
    for k in (1, 2):  # at the horizons that are drawn
        found = block_ceiling(gold, [k], at[k].tolist(), adjustment)
        np.testing.assert_allclose(ceiling[k], float(found.mean()), rtol=1e-5)
    ax = figure.axes[0]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["1", "2"]
    note = json.loads((folder / f"{name}.json").read_text())
    assert (note["optimizer"], note["adjustment"]) == (optimizer, adjustment)


def test_figure_3_is_a_panel_of_figure_7_under_a_letter_of_its_own(drawn):
    (three, folder), (seven, _) = drawn("fig03"), drawn("fig07")
    assert three.axes[0].get_title(loc="left") == "(a) Digits (stands in for Folktables)"
    assert three.axes[1].get_title(loc="left") == "(b) Generated sentences (stands in for SST-2)"
    last = line_of(seven.axes[2], "grad_cos").get_ydata()
    np.testing.assert_array_equal(line_of(three.axes[0], "grad_cos").get_ydata(), last)
    assert (folder / "fig03a_digits.pdf").exists()


def test_the_axis_of_seeds_reaches_to_the_published_ones(panels):
    ax = plt.figure().add_subplot()
    seeds.draw(ax, seeds.table(panels["a"], METHODS), also=[1.0, 50.0, 100.0])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "50", "100"]
    assert ax.get_xlim()[1] > 100


# Figures 10 and 11, Table 2


def test_sorted_scores(panels, drawn):
    figure, folder = drawn("fig10")
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "(b) Digits (stands in for Folktables)"
    last = int(panels["e"].gold.step[-1])
    words = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert words[1:] == ["further training, 1 step", f"further training, {last} steps"]
    gold = panels["d"].gold
    expected = {name: panels["d"].scores(name).values for name in METHODS}
    expected |= {"further_first": adjusted(gold.delta)[0].T, "further_last": adjusted(gold.delta)[-1].T}
    table = pd.read_csv(folder / "fig10.csv").query("panel == 'b'")
    assert set(table.method) == set(expected)
    for name, scores in expected.items():
        mean = np.mean([sorted(row) for row in scores], axis=0)
        curve = mean / np.sqrt(np.sum(mean**2))
        np.testing.assert_allclose(line_of(ax, name).get_ydata(), curve, rtol=1e-6)
        np.testing.assert_allclose(table[table.method == name]["value"], curve, rtol=1e-5)
        assert line_of(ax, name).get_xdata().tolist() == [1, 2, 3, 4]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    last = int(gold.epoch[-1])
    assert labels == [
        "Grad-Dot",
        "Grad-Cos",
        "further training, 1 epoch",
        f"further training, {last} epoch{'s' * (last > 1)}",
    ]


def test_similarity_to_retraining(panels, drawn):
    figure, folder = drawn("fig11")
    retrained = panels["a"].retrained
    ax = figure.axes[0]
    expected = cosines(panels["a"].scores("grad_dot").values, adjusted(retrained.delta))
    np.testing.assert_allclose(line_of(ax, "grad_dot").get_ydata(), expected, rtol=1e-6)
    np.testing.assert_allclose(line_of(ax, "grad_dot").get_xdata(), np.arange(1, len(expected) + 1))
    further = adjusted(panels["a"].gold.delta)[-1].T
    expected = cosines(further, adjusted(retrained.delta))
    np.testing.assert_allclose(line_of(ax, "further_last").get_ydata(), expected, rtol=1e-6)
    table = pd.read_csv(folder / "fig11.csv")
    assert set(table.method) == {*METHODS, "further_last"}  # and no noise ceiling, for there is one seed
    note = json.loads((folder / "fig11.json").read_text())
    assert note["datasets"]["diabetes"]["seeds"] == [0]
    assert note["datasets"]["diabetes"]["specification"] == retrained.attrs["specification"]
    low, high = ax.get_ylim()
    assert low < -retraining.NEAR_ZERO and high > retraining.NEAR_ZERO


def test_table_2_names_the_extremes_with_their_readable_rows(panels, tmp_path):
    panel = panels["a"]
    table = figures.table2({"d": panel}, tmp_path)
    last = adjusted(panel.gold.delta)[-1]  # [left_out, test]
    left_out = panel.gold.left_out.values
    assert len(table) == 3 * extremes.N_TEST
    for z, rows in table.groupby("test"):
        explained, helpful, harmful = rows.to_dict("records")
        assert [r["role"] for r in (explained, helpful, harmful)] == list(extremes.ROLES)
        assert helpful["instance"] == left_out[np.argmax(last[:, z])]
        assert harmful["instance"] == left_out[np.argmin(last[:, z])]
        np.testing.assert_allclose([helpful["score"], harmful["score"]], [last[:, z].max(), last[:, z].min()])
        assert explained["bmi"] == panel.task.test_table["bmi"][z]
        assert harmful["disease progression"] == panel.task.train_table["disease progression"][harmful["instance"]]
    assert list(pd.read_csv(tmp_path / "table2.csv").columns) == list(table.columns)
    page = (tmp_path / "table2.html").read_text()
    assert "most harmful" in page and "Diabetes" in page and page.count("<tr>") == 1 + len(table)
    assert json.loads((tmp_path / "table2.json").read_text())["figure"] == "table2"


def test_table_2_shows_only_the_label_of_an_image(panels, tmp_path):
    table = figures.table2(panels, tmp_path)
    assert list(table.columns) == ["test", "role", "instance", "score", "digit"]
    assert table["digit"][0] == panels["d"].task.test_table["digit"][0]


def test_table_2_without_results_says_so(panels, tmp_path):
    assert figures.table2({"d": panels["b"]}, tmp_path) is None
    assert pd.read_csv(tmp_path / "table2.csv").empty
    assert "Not run yet: Wine" in (tmp_path / "table2.html").read_text()


# All figures


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "fig_damping"])
def test_every_figure_comes_with_a_title_a_caption_and_its_notebook(panels, drawn, name):
    _, folder = drawn(name)
    note = json.loads((folder / f"{name}.json").read_text())
    assert note["figure"] == name and len(note["title"]) > 10
    assert (Path(__file__).parents[2] / "notebooks" / f"{note['notebook']}.ipynb").exists()
    assert note["caption"].count(". ") >= 1 and note["caption"].endswith(".")
    assert len(note["caption"].split("Not run yet")[0].split()) <= 60
    for dataset, runs in note["datasets"].items():
        panel = next(s for s in panels.values() if s.dataset == dataset)
        count = "1 seed" if name == "fig11" else "2 seeds"
        assert f"{panel.title}: {count}, 4 left-out and 8 test instances" in note["runs"]
        assert runs["left_out"] == 4
    expected = {*given(name, panels)} & {*LETTERS[name].values()}
    alone = {p.stem for p in folder.glob(f"{name}[a-f]_*.json")}
    own = {letter: panels[k] for letter, k in LETTERS[name].items() if k in expected}
    assert alone == (
        set() if name in ("table2", "table2_text", "fig_images") else {f"{name}{k}_{s.dataset}" for k, s in own.items()}
    )
    for stem in alone:
        single = json.loads((folder / f"{stem}.json").read_text())
        assert single["figure"] == name and single["title"].startswith(note["title"]) and len(single["datasets"]) <= 1


def test_captions_say_what_is_special_about_images_and_text(drawn):
    _, folder = drawn("fig02")
    words = json.loads((folder / "fig02.json").read_text())["runs"]
    assert "AdamW with learning rate 1e-05 (left out by subtract; a transformer of two layers" in words
    assert "not run, for their cost: LiSSA-H" in words and "SGD with learning rate 0.01 (left out by" in words


def test_images_are_shown_with_the_training_images_that_matter(panels, drawn):
    figure, folder = drawn("fig_images")
    measured = sensitivity(panels["e"].gold).isel(step=-1)
    table = pd.read_csv(folder / "fig_images.csv")
    assert len(table) == 6 * 4 and len(figure.axes[0].images) == 6 * (1 + 2 + 2)
    for row in table.head(8).itertuples():
        assert row.score == pytest.approx(float(measured.sel(test=row.test, left_out=row.train)), rel=1e-4)
    labels = panels["e"].task.train_table["class"]
    assert table["train class"].astype(str).tolist() == [labels[i] for i in table["train"]]


def test_sentences_are_shown_in_full(panels, drawn):
    table, folder = drawn("table2_text")
    panel = panels["f"]
    explained = table[table.role == "to explain"].iloc[0]
    assert explained["sentence"] == panel.task.test_table["sentence"][explained["instance"]]
    assert explained["sentence"].split()[0] in (folder / "table2_text.html").read_text()


def test_a_panel_drawn_earlier_is_kept(panels, tmp_path):
    """Its numbers stand in for results that are not here, in a figure of another data set; its own files stay."""
    figures.figure2({"a": panels["a"]}, tmp_path)
    before = (tmp_path / "fig02a_diabetes.json").read_bytes()
    whole = figures.figure2({"e": panels["e"]}, tmp_path)
    first, second = whole.axes[:2]
    np.testing.assert_allclose(
        line_of(first, "grad_dot").get_ydata(),
        similarity(panels["a"].scores("grad_dot"), sensitivity(panels["a"].gold))["mean"],
        rtol=1e-5,
    )
    assert first.get_title(loc="left").startswith("(a)") and second.get_title(loc="left").startswith("(e)")
    note = json.loads((tmp_path / "fig02.json").read_text())
    assert note["datasets"]["diabetes"]["drawn"] == note["commit"] and "drawn" not in note["datasets"]["digit_images"]
    assert (tmp_path / "fig02a_diabetes.json").read_bytes() == before
    gone = panels["a"].other(results=tmp_path / "none", compute=False)  # the same data set, its results deleted
    assert "Not run yet" not in json.loads(_saved(figures.figure2, {"a": gone}, tmp_path))["caption"]
    other = panels["e"].other(profile="quick", results=tmp_path / "none", compute=False)
    assert json.loads(_saved(figures.figure2, {"e": other}, tmp_path))["datasets"] == {}  # of another profile


def test_provenance_names_the_commits_of_all_runs_and_of_the_scores_that_are_shown(panels, tmp_path):
    shutil.copytree(panels["a"].folder, tmp_path / "smoke")
    for path in (tmp_path / "smoke").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "commit": path.stem}))  # each has one of its own
    panel = panels["a"].other(results=tmp_path, compute=False)
    assert panel.params  # read now: inside `asked` nothing is

    def computed_by(**what):
        return provenance({"a": panel}, figure="fig02", title="", **what)["datasets"]["diabetes"]["computed_by"]

    runs = [asked(lambda s=seed: one_seed(panel, s).gold).stem for seed in (0, 1)]
    assert len({*runs}) == 2 and computed_by() == sorted(runs)
    scores = [asked(lambda m=name: panel.scores(m)).stem for name in METHODS]
    assert computed_by(scores=scores_of((*METHODS, "cg"))) == sorted([*runs, *scores])  # cg has not been run
    assert computed_by(measured=lambda panel: panel.retrained) == [asked(lambda: one_seed(panel, 0).retrained).stem]


def test_files_under_letters_that_were_once_given_otherwise_are_passed_over(panels, tmp_path):
    figures.figure2({"a": panels["a"]}, tmp_path)
    for path in list(tmp_path.glob("fig02a_diabetes.*")):
        path.rename(tmp_path / path.name.replace("fig02a", "fig02b"))
    whole = figures.figure2({"e": panels["e"]}, tmp_path)
    assert [ax.get_title(loc="left")[:3] for ax in whole.axes if ax.get_title(loc="left")] == ["(e)"]


def _saved(draw, panels, folder):
    draw(panels, folder)
    return (folder / "fig02.json").read_text()


def test_figure_1_is_a_drawing_without_numbers(panels, tmp_path):
    figure = figures.figure1(panels, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fig01.json", "fig01.pdf", "fig01.png"]
    assert not overlaps(figure, [text for ax in figure.axes for text in (*ax.texts, ax._left_title)])
    figures.figure1({}, tmp_path)  # no data set is needed


@pytest.mark.parametrize("name", ["fig02", "fig03", "fig11"])
def test_nothing_overlaps_and_nothing_is_cut(drawn, name):
    figure, _ = drawn(name)
    assert not overlaps(figure, [*figure.legends, *figure.texts, *figure.axes])


def overlaps(figure, artists):
    """Pairs of artists that overlap, and artists that reach beyond the figure."""
    figure.draw_without_rendering()
    boxes = [(artist, artist.get_tightbbox()) for artist in artists]
    beyond = [
        str(a) for a, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]  # fmt: skip
    pairs = [(str(a), str(b)) for k, (a, one) in enumerate(boxes) for b, two in boxes[:k] if one.overlaps(two)]
    return beyond + pairs


def test_the_check_of_overlaps_notices():
    figure = plt.figure()
    apart, on_top, beyond = figure.text(0.1, 0.9, "one"), figure.text(0.1, 0.9, "two"), figure.text(0.99, 0.5, "three")
    assert overlaps(figure, [apart]) == []
    assert len(overlaps(figure, [apart, on_top])) == 1 and overlaps(figure, [beyond]) == [str(beyond)]


def test_a_figure_without_any_of_its_panels_is_refused(panels, tmp_path):
    with pytest.raises(ValueError, match="fig10 shows the panels c, d, e, f of Figure 2, got a"):
        figures.figure10({"a": panels["a"]}, tmp_path)


def test_panels_are_kept_where_nothing_changes(panels):
    assert shown_in("fig11", panels)["a"] is panels["a"]
    assert shown_in("fig11", panels, optimizer="adam")["a"].optimizer == "adam"


def test_damping_sweep_covers_dampings_and_names_them(panels):
    table = figures.damping_sweep(panels["a"], multiples=(0.1, 10.0))
    assert sorted(table.multiple.unique()) == [0.1, 10.0]
    ratio = table.groupby("multiple").damping.first()
    assert np.isclose(ratio[10.0] / ratio[0.1], 100)
    expected = similarity(panels["a"].scores("exact", multiple=10.0), sensitivity(panels["a"].gold))["mean"]
    np.testing.assert_allclose(table[table.multiple == 10.0]["mean"], expected)


def test_every_method_has_a_colour_of_its_own():
    colours = [look.colour for look in figures.LOOK.values()]
    assert len(set(colours)) == len(colours)
