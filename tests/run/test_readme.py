"""What the README promises: its code runs, its files exist, its figure table names every figure and notebook."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fimoda_lib
from fimoda_lib import attribute, sensitivity, similarity
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.run import command as run

ROOT = Path(fimoda_lib.__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def code_under(heading):
    return re.search(rf"\n## {heading}\n.*?```python\n(.*?)```", TEXT, re.S).group(1)


def lines_of(code):
    return [line for line in code.splitlines() if line.strip()]


def test_the_ten_lines_run(capsys):
    code = code_under("The library in ten lines")
    assert len(lines_of(code)) <= 10
    # The same lines with fewer epochs of final training, to be quick.
    exec(compile(code.replace("epochs=200", "epochs=20"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "<xarray.DataArray 'mean' (step: 5)" in printed and "nan" not in printed


@pytest.mark.slow
def test_the_line_on_linearised_further_training_runs():
    task = fimoda_lib.load_task("diabetes")
    params = fimoda_lib.train_final_model(
        task, optimizer="sgd", learning_rate=1e-3, epochs=20, batch_size=128, seed=0, progress=False
    )
    names = {"attribute": attribute, "task": task, "params": params}
    code = code_under("Beyond the paper: linearised further training")
    exec(code.replace('mode="split"', 'mode="split", products=4'), names)  # to be quick
    assert names["scores"].sizes == {"horizon": 2, "test": task.n_test, "train": 20}


def test_the_lines_on_your_own_model_and_method_run(capsys, tmp_path, monkeypatch):
    code = code_under("Your own model, your own method")
    statements = [line for line in lines_of(code) if not line.startswith(("import", "from", " " * 20))]
    assert len(statements) <= 10
    monkeypatch.chdir(tmp_path)  # the store is a folder below the current one
    names = {}
    torch.manual_seed(0)  # of the model's initial weights: with some, signs of gradients say less than below
    exec(compile(code, "README.md", "exec"), names)
    assert len(list((tmp_path / "results/iris").glob("*.nc"))) == names["gold"].sizes["seed"] == 5
    # What it prints: the similarities of three methods after each epoch, each of its own.
    measured = sensitivity(names["gold"])
    expected = [similarity(attribute(m, names["task"], names["params"]), measured) for m in ("grad_dot", "cg")]
    printed = capsys.readouterr().out
    arrays = [np.array(text.split(), dtype=float) for text in re.findall(r"\[(.*?)\]", printed, re.S)]
    assert len(arrays) == 3 and all(len(array) == 5 for array in arrays)
    for array, curve in zip(arrays, expected, strict=False):
        np.testing.assert_allclose(array, curve["mean"], atol=1e-6)
    # The method of the example is no nonsense, and not another one in disguise.
    at = Gradients(names["task"], names["params"])
    test, train = (at.of_losses(part).sign() for part in (at.test(slice(None)), at.train(slice(None))))
    scores = attribute(names["mine"], names["task"], names["params"])
    np.testing.assert_array_equal(scores, test @ train.T)
    assert 0.2 < arrays[2][0] < arrays[0][0]


PAGES = [ROOT / "README.md", ROOT / "figures/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text):
    """What a link may name behind a hash: the headings, as web pages of repositories write them; or names in HTML."""
    if text.startswith("<!DOCTYPE html>"):
        return {*re.findall(r'\bid="([^"]+)"', text)}
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not heading or heading in anchors(file.read_text()), target


def test_every_page_is_reached_from_the_readme():
    assert {p.name for p in PAGES[2:]} == {t.split("/")[1] for t in re.findall(r"\]\((docs/[\w.]+)\)", TEXT)}


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 150
    assert all(len(line) <= 150 for line in TEXT.splitlines() if not line.startswith("|"))


def test_every_figure_notebook_and_profile_is_mentioned():
    text = TEXT + (ROOT / "docs/figures.md").read_text()
    for name in [*run.FIGURES, *run.PROFILES, *(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))]:
        if name != "smoke":
            assert name in text, name
