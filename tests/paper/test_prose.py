"""Numbers in README and docs are those of the committed figures; a page that says something else fails."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from fimoda_lib.methods import METHODS
from fimoda_lib.paper import prose
from fimoda_lib.run.command import PROFILES

ROOT = Path(prose.__file__).resolve().parents[2]
FIGURES = ROOT / "figures/overnight"


@pytest.mark.parametrize("page", prose.PAGES)
def test_pages_say_what_the_figures_say(page):
    text = (ROOT / page).read_text()
    assert prose.fill(text, FIGURES) == text, "run: python -m fimoda_lib.paper.prose figures/overnight"


@pytest.mark.parametrize("page", prose.PAGES)
def test_every_similarity_in_a_page_has_a_source(page):
    """A number such as .68 in prose stands behind its source, or in a table that code has filled in."""
    text = prose.BLOCK.sub("", (ROOT / page).read_text())
    text = prose.NUMBER.sub("", re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S))
    assert re.findall(r"(?<![\w./])[−-]?[01]?\.\d{2,3}(?![\w.])", text) == []
    assert re.findall(r"<!--[\w.]+:.*?-->", text) == []  # a source with no number behind it


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("fig02:energy:grad_dot:first", ".70"),
        ("fig02:energy:grad_dot:last", ".20"),
        ("fig02:energy:grad_dot:lowest", "−.10"),
        ("fig02:energy:grad_dot:highest", "1.00"),
        ("fig02:energy:grad_dot:2", "1.00"),
    ],
)
def test_a_number_is_the_one_its_source_names(source, expected, tmp_path):
    rows = [(1, 0.7), (2, 0.999), (4, 0.2), (3, -0.1)]
    lines = [f"{x},{y},grad_dot,b,energy" for x, y in rows] + ["1,0.5,cg,b,energy", "1,0.4,grad_dot,a,concrete"]
    (tmp_path / "fig02.csv").write_text("epoch,mean,method,panel,dataset\n" + "\n".join(lines) + "\n")
    for old in (".33", "−.33", "0", "–"):
        assert prose.fill(f"from <!--{source}-->{old} on", tmp_path) == f"from <!--{source}-->{expected} on"
    assert prose.written(prose.value_of("published:2b:grad_dot:first", tmp_path)) == ".70"


def test_the_table_of_verdicts_says_each_thing_once(tmp_path):
    lines = [f"{x},{y},{m},b,energy" for m in ("grad_dot", "datainf") for x, y in ((1, 0.7), (2, 0.2))]
    (tmp_path / "fig02.csv").write_text("epoch,mean,method,panel,dataset\n" + "\n".join(lines) + "\n")
    filled = prose.fill("before <!--verdicts-->\nSTALE\n<!--end--> after", tmp_path)
    assert filled.startswith("before <!--verdicts-->\n| claim") and filled.endswith("<!--end--> after")
    rows = [line for line in filled.splitlines() if line[2:3].isdigit()]
    numbers = "Energy: Grad-Dot 0.70\u00a0→\u00a00.20, DataInf 0.70\u00a0→\u00a00.20"
    assert rows[0].split(" | ")[1:3] == ["**reproduced**: holds on Energy", numbers]
    assert "not run" in rows[2] and len(rows) == 5 and "STALE" not in filled


@pytest.mark.parametrize(
    "source", ["fig02:energy:grad_dot:third", "fig02:energy:nothing:first", "fig99:energy:cg:first", "energy:cg"]
)
def test_a_source_that_is_not_there_is_named(source):
    with pytest.raises(ValueError, match=f"'{source}' names no number in .*; expected figure:data set:method:which"):
        prose.fill(f"<!--{source}-->.10", FIGURES)


def test_what_the_page_says_of_removal_is_in_its_table():
    table = pd.read_csv(ROOT / "benchmarks" / "removal_curves.csv")
    table = table[(table.direction == "helpful") & (table.share == 0.05)]
    assert set(table.tests) == {50}
    rows = {name: rows[~rows.method.isin(["random", "alike"])] for name, rows in table.groupby("dataset")}
    others = {name: some[some.step != some.after_step] for name, some in rows.items()}  # all but LFT for this horizon
    assert len(others["energy"]) == 9 and (others["energy"].less_high < 0).all()
    best = others["concrete"].loc[others["concrete"].change.idxmax()]
    earlier = others["concrete"].set_index("method").loc["lft"]
    assert best.less_low < 0 < best.less_high and earlier.less_low < 0 < earlier.less_high


def test_what_the_page_says_of_the_studies_is_in_their_tables():
    lds, selection, labels, damping = (
        pd.read_csv(FIGURES / f"fig_{name}.csv") for name in ("lds", "selection", "mislabelled", "damping")
    )
    last = lds[(lds.share == 0.1) & (lds.step == lds.groupby("dataset").step.transform("max"))]
    highest, apart = [], []
    for name, rows in last.groupby("dataset"):
        ours = rows[rows.method == "lft"].iloc[0]
        others = rows[~rows.method.isin(["lft", "lft_whole", "ceiling"])]
        highest += [name] * bool(ours.lds > others.lds.max())
        apart += [name] * bool(ours.low > others.high.max())
    assert len(highest) == last.dataset.nunique() == 5 and apart == ["energy", "fico", "folktables"]
    early = lds[(lds.dataset == "cifar10") & (lds.share == 0.1) & (lds.method == "ceiling") & (lds.step <= 100)].lds
    assert early.min() == 0 and 0.35 < early.max() < 0.4
    cells = selection[(selection.dataset == "energy") & (selection.part == "untouched") & (selection.method == "lft")]
    assert ((cells.over_high < 0).sum(), len(cells)) == (5, 72)
    harm = labels[(labels.evidence == "harm") & (labels.dataset == "fico")].set_index("method").auc
    assert {*harm[harm > 0.7].index} == {"grad_dot", "grad_cos", "datainf", "lft"} and harm.drop(
        "loss", errors="ignore"
    ).min() < 0.5
    assert {*damping.dataset} == {"concrete", "energy"}


def test_what_the_page_says_of_rectified_units_is_in_their_table():
    table = pd.read_csv(ROOT / "benchmarks" / "rectified_images.csv")
    assert {*table.seeds} == {50} and {*table.left_out} == {8} and {*table.tests} == {50}
    shown = table[table.kinks.isin(["between", "moved"])]
    digits, images = (shown[shown.dataset == name] for name in ("digit_images", "cifar10"))
    late, soft = images[images.step >= 10], images[images.kinks == "moved"]
    assert late.ceiling.min() == 0 and late.ceiling.max() < 0.41 and late[["itself", "mean"]].max().max() < 0.3
    early = images[images.step.isin([2, 5])]
    assert (early["single"] > early.ceiling_single).all()
    for column in ("itself", "mean"):
        assert soft[f"{column}_gain"].abs().max() < 0.02
        assert not (soft[f"{column}_gain"] > soft[f"{column}_gain_pm"]).any()
    assert (soft.mean_gain < -soft.mean_gain_pm).any()
    assert digits[["itself", "mean"]].min().min() > 0.998


def test_what_the_page_says_of_settings_with_adam_is_in_their_table():
    table = pd.read_csv(ROOT / "benchmarks" / "choose_width.csv", dtype={"width": str})
    adam = table[(table.optimizer == "adam") & (table.rate == 1)].set_index("dataset")
    assert set(adam.left_out) == {17} and set(adam.seeds) == {6} and set(adam.runs) == {1}
    for name in ("breast_cancer", "diabetes"):
        tried = adam.loc[[name]].query("width == '1x'")
        assert set(tried.segments) == {1, 3, 10} and set(tried.floor) == {0.01, 0.03, 0.1}
        assert tried["mean"].max() - tried["mean"].min() < 0.01
    usual = adam[(adam.segments == 10) & (adam.floor == 0.03)].groupby(["dataset", "width"])["mean"].first().unstack()
    without = usual["1x"] - usual["without"]
    assert (
        without["digits"] > 0.1
        and without[["breast_cancer", "diabetes"]].abs().max() < 0.01
        and usual.loc["wine", "1x"] < 0
    )
    assert (usual.max(axis=1) - usual["1x"]).drop("wine").max() < 0.005


def test_the_hours_of_the_committed_run_are_those_of_its_pieces():
    hours = pd.read_csv(FIGURES / "notebooks" / "pieces.csv").minutes.sum() / 60
    words = dict(zip(range(8, 14), "eight nine ten eleven twelve thirteen".split(), strict=True))[round(hours / 2)]
    assert f"about {words} hours (added up from its pieces)" in (ROOT / "README.md").read_text()
    assert f"add up to {hours:.0f} hours of one process" in (ROOT / "figures" / "README.md").read_text()
    assert f"some {words} hours on 2 cores" in PROFILES["overnight"]


def test_where_lft_is_ahead_of_further_training_for_the_same_time():
    table, costs = pd.read_csv(FIGURES / "fig02plus.csv"), pd.read_csv(FIGURES / "table_horizons.csv")
    for dataset, start in (("concrete", "Conc"), ("energy", "Ener"), ("folktables", "Folk"), ("cifar10", "CIFAR")):
        mine = costs[costs["data set"].str.startswith(start) & costs.method.str.startswith("LFT")]
        lft = table[(table.dataset == dataset) & (table.method == "lft")].set_index("epoch")["mean"]
        lead = lft - prose.reached(FIGURES, dataset, float(mine["of one seed"].iloc[0]))
        if dataset in ("concrete", "energy"):
            assert lead[lead.index <= 50].mean() > 0 > lead[lead.index >= 150].mean()
        else:
            assert (lead < 0).all()


def test_as_many_seeds_as_lft_costs(tmp_path):
    """By hand: the ceiling of two seeds is .8 at both horizons, so that one seed's is √(8/17)."""
    (tmp_path / "fig02plus.json").write_text(json.dumps({"datasets": {"energy": {"seeds": [0, 1]}}}))
    rows = ["energy,ceiling,1,0.8", "energy,ceiling,10,0.8", "energy,lft,1,0.1"]
    (tmp_path / "fig02plus.csv").write_text("\n".join(["dataset,method,epoch,mean", *rows]))
    assert prose.of_seeds(tmp_path, "Energy", 2.0) == ".80 (.80)"
    assert prose.of_seeds(tmp_path, "Energy", 1.0) == ".69 (.69)"
    assert prose.of_seeds(tmp_path, "Energy", 0.9) == prose.of_seeds(tmp_path, "Energy", float("nan")) == "–"


def test_the_page_on_gpus_says_what_the_benchmark_printed():
    printed = (ROOT / "benchmarks" / "gpu_h100.txt").read_text()
    page = (ROOT / "docs" / "gpu.md").read_text()
    names = {"Energy": "energy", "FICO": "fico", "Folktables": "folktables"}
    columns = ((1, "as it is"), (1, "compiled"), (1, "replayed"), (10, "replayed"), (20, "replayed"))
    for title, name in names.items():
        block = printed.split(f"\n{name}:")[1]
        found = [
            re.search(rf"sgd +{seeds} seeds, {how} +([\d.]+);", block)[1] for seeds, how in columns
        ]  # the first after the name
        row = re.search(rf"^\| {title} \|(.+)\|$", page, re.MULTILINE)[1]
        said = [cell.strip() for cell in row.split("|")]
        assert said == [f"{float(number):.3g}" for number in found]
    steps = {"energy": 3_000 * 101 * 100, "concrete": 4_000 * 101 * 100, "fico": 14_000 * 101 * 100}
    steps["folktables"] = 5_900 * 101 * 100
    total = 0.0
    for name, count in steps.items():
        block = printed.split(f"\n{'energy' if name == 'concrete' else name}:")[1]
        for rule, seeds in (("sgd", 20), ("adam", 10)):
            total += count * float(re.search(rf"{rule} +{seeds} seeds, replayed +([\d.]+);", block)[1]) / 1e6
    assert f"are {total / 60:.0f} minutes on one H100" in page


SPEED = {  # a line that was printed, its numbers -> what the page says of it
    r"sgd +plain loop (\S+) ms.* replicas (\S+) ms .*: (\S+) x": "SGD | {0:.2f} ms .*| {1:.3f} ms .*| {2} ×",
    r"adam +plain loop (\S+) ms.* replicas (\S+) ms .*: (\S+) x": "Adam | {0:.2f} ms .*| {1:.3f} ms | {2} ×",
    r"CG +all at once +(\S+) s; one after another +(\S+) s: +(\S+) x": "CG, .*| {1} s .*| {0} s | {2} ×",
    r"LiSSA +all at once +(\S+) s; one after another +(\S+) s: +(\S+) x": "LiSSA, .*| {1} s .*| {0} s | {2} ×",
    r"DataInf +all at once +(\S+) s; one after another +(\S+) s: +(\S+) x": "DataInf | {1} s .*| {0} s | {2} ×",
    r"34 +\S+ +(\d+%) of": "reaches {0} of the throughput of batched",
    r"peak memory of this process: (\S+) GiB": "take {0} GiB",
    r"mask: 100 groups .*: (\S+) x, (\S+) x": "take {0} of the time with `mask` .* {1} and",
    r"drop: 100 groups .*: (\S+) x, (\S+) x": "and {0} with `drop`; .* and {1}",
    r"Folktables' shape.* (\S+) x; batched": "`drop`.* is as fast as `mask` .*{0} of its time",
    r"the whole Hessian, 100 instances +(\S+) s: (\S+) of": "whole Hessian, {0:.1f} s for 100 instances, {1} of",
    r"the whole Hessian, all instances +(\S+) s": "{0:.0f} s for all 691",
    r"G alone, all instances +(\S+) s": "alone, {0:.1f} s.",
    r"batched products .*: (\S+) x as fast": "batched products are {0} × as fast on",
    r"a model-step of further training .*: (\S+) x as fast": "model-step of further training {0} ×",
    r"Hessian products .*: (\d+%)": "Products of the Hessian reach {0} of",
}  # fmt: skip


def test_the_page_on_speed_says_what_the_benchmarks_printed():
    printed = (ROOT / "benchmarks" / "speed_2_cores.txt").read_text()
    page = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    for line, says in SPEED.items():
        found = re.findall(line, printed)
        assert found, line
        for numbers in (n if isinstance(n, tuple) else (n,) for n in found):
            numbers = [Printed(n) for n in numbers]
            said = ".*".join(re.escape(part) for part in says.format(*numbers).split(".*"))
            assert re.search(said, page), said
    titles = {"energy": "Energy", "fico": "FICO"}
    rows = re.findall(r"^(energy|fico) +(\w+) +(\w+) +(\S+) +(\d+) +(\S+)(?: +(\S+))?$", printed, re.MULTILINE)
    assert len(rows) == 12
    for dataset, method, who, seconds, memory, error, ratio in rows:
        row = re.search(rf"\| {titles[dataset]}, {METHODS[method].label} \|[^|]+\|[^|]+\|[^|]+\|", page)[0]
        numbers = f"{seconds} s, {memory} MiB" + ("" if method == "trak" and who == "ours" else f", {error}")
        assert numbers in row and (who == "ours" or f"{who}: {numbers} | {ratio} ×" in row)


class Printed(str):
    """A number as it was printed; with a format, as a number."""

    def __format__(self, how):
        return f"{float(self):{how}}" if how else str(self)


def test_the_page_of_the_figures_names_their_run(tmp_path):
    def runs(seeds, **more):
        return {"seeds": [*range(seeds)], "left_out": 50, "test": 1000, **more}

    notes = {
        "fig01": {"profile": "any", "commit": "abc"},
        "fig02": {"datasets": {"fico": runs(2, computed_by=["d", "abc"]), "concrete": runs(20, computed_by=["e"])}},
        "fig04": {"datasets": {"fico": runs(3)}},
    }
    for name, note in notes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"profile": "laptop", "commit": "abc", **note}))
    page = prose.fill("<!--run-->\n<!--end-->\n<!--sizes-->\n<!--end-->", tmp_path)
    assert "`laptop/` was drawn by `abc`; its stored results were computed by `abc`, `d`, `e`. To repeat it:" in page
    assert "git checkout abc\n./run_all.sh --profile laptop --jobs 2 --data DIR" in page
    expected = ["| | Concrete | FICO HELOC |", "| left-out instances | 50 | 50 |", "| test instances | 1,000 | 1,000 |"]
    expected += ["| seeds, SGD (text: AdamW) | 20 | 2 |", "| seeds, Adam | – | 3 |"]
    assert [line for line in page.splitlines() if line.startswith("| ")] == expected


STUDIES = {
    "fig_lds": (
        "method,share,step,lds",
        ["cg,0.1,1,0.2", "cg,0.1,9,0.3", "grad_dot,0.1,1,0.9", "grad_dot,0.1,9,0.1", "lft,0.1,1,0.7", "lft,0.1,9,0.8"]
        + ["ceiling,0.1,1,0.95", "ceiling,0.1,9,1.0", "cg,0.5,1,0.99"],
        ["method there | 0.90 (Grad-Dot) → 0.30 (CG)", "LFT, summed | 0.70 → 0.80", "ceiling | 0.95 → 1.00"],
    ),
    "fig_removal_curves": (
        "method,step,direction,share,after_step,change,low,high",
        [f"{m},{k},{d},{s},{t},{c},0,1" for m, k, d, s, t, c in (
            ("cg", "", "helpful", 0.05, 9, 0.002), ("trak", "", "helpful", 0.05, 9, 0.001),
            ("cg", "", "helpful", 0.05, 1, 5), ("trak", "", "harmful", 0.05, 9, 5), ("trak", "", "helpful", 0.01, 9, 5),
            ("lft", 1, "helpful", 0.05, 9, 0.25), ("lft", 9, "helpful", 0.05, 9, 0.5),
            ("random", "", "helpful", 0.05, 9, -0.125), ("alike", "", "helpful", 0.05, 9, 0.0),
        )],
        ["best published method | 0.002 (0 to 1.00) (CG)", "LFT for this horizon | 0.50", "an earlier horizon | 0.25",
         "at random | −0.12", "instances alike | 0 ("],
    ),
    "fig_mislabelled": (
        "method,evidence,auc,low,high,above_low,above_high",
        ["loss,loss,0.9,0.8,0.95,0,0", "cg,harm,0.7,0.6,0.8,-0.3,-0.1", "cg,self-influence,0.92,0.9,0.99,-0.1,0.1",
         "lft,harm,0.97,0.9,0.99,0.01,0.1", "trak,harm,,,,,"],
        ["the loss itself | 0.90 (0.80 to 0.95)", "0.97 (0.90 to 0.99) (LFT (ours), harm)", "below | 1, 1, 1"],
    ),
    "fig_selection": (
        "method,step,epoch,after_step,after_epoch,part,gain,low,high,over_random,over_low,over_high",
        [f"{m},{k},{k},{t},{t},{p},{g},-1,1,{o},{o - 0.2},{o + 0.2}" for m, k, t, p, g, o in (
            ("random", "", 1, "untouched", 0.1, 0.0), ("random", "", 9, "untouched", 0.3, 0.0),
            ("grad_dot", "", 9, "untouched", 0.2, -0.1), ("grad_dot", "", 9, "validation", 9, 9),
            ("lft", 1, 1, "untouched", 0.9, 0.5), ("lft", 9, 1, "untouched", 0.1, 0.1),
            ("lft", 1, 9, "untouched", 0.2, -0.5), ("lft", 9, 9, "untouched", 1.3, 1.0),
        )],
        ["dropped at random | 0.30 (−1.00 to 1.00)", "Grad-Dot, over random | −0.10 (−0.30 to 0.10)",
         "LFT for K = T, over random | 1.00 (0.80 to 1.20)", "best K | 1.00", "surely below, of | 2, 1, 4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("figure", STUDIES)
def test_findings_are_those_of_the_csv(figure, tmp_path):
    head, lines, expected = STUDIES[figure]
    (tmp_path / f"{figure}.csv").write_text("\n".join([f"dataset,{head}", *(f"energy,{line}" for line in lines)]))
    found = prose.fill("<!--findings-->\nold\n<!--end-->", tmp_path)
    assert found.splitlines()[1].endswith("| Energy |") and "old" not in found
    for words in expected:
        assert words in found, found
