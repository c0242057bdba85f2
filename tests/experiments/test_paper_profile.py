"""The `paper` profile of images and text: its own code from the files to the figures, with narrow models and few
instances, for its real size needs a GPU box."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_files import BATCHES, archive, batch, put

from fimoda_lib.datasets import cifar10, images, models, text
from fimoda_lib.datasets.encoders import small_bert
from fimoda_lib.experiments import paper_settings, profiles
from fimoda_lib.experiments import settings as experiments
from fimoda_lib.experiments.panel import PAPER_METHODS, Panel
from fimoda_lib.paper import figures
from fimoda_lib.paper.beyond import figure2_plus
from fimoda_lib.run.plan import with_lft
from fimoda_lib.run.status import lines
from fimoda_lib.training import engines, runs

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "good", "bad", "film", "very", "not"]


def sentences(n, seed):
    random = np.random.default_rng(seed)
    rows = [" ".join(random.choice(WORDS[5:], size=random.integers(2, 6))) for _ in range(n)]
    return "sentence\tlabel\n" + "".join(f"{row} \t{k % 2}\n" for k, row in enumerate(rows))


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Small files in the form of the originals, narrow models of the paper's kinds, two seeds, a few epochs."""
    folder = tmp_path / "data"
    archive(folder / "cifar10/cifar-10-python.tar.gz", {name: batch(8, k) for k, name in enumerate(BATCHES)})
    put(folder / "sst2/train.tsv", sentences(90, 0))
    put(folder / "sst2/dev.tsv", sentences(20, 1))
    small_bert(len(WORDS), 12, width=8).save_pretrained(folder / "bert-base-uncased")
    put(folder / "bert-base-uncased/vocab.txt", "\n".join(WORDS))
    monkeypatch.setenv("FIMODA_DATA", str(folder))
    monkeypatch.setattr(cifar10, "check_published", lambda *_: None)
    for module in (cifar10, text):
        monkeypatch.setattr(module, "find", lambda file, data_dir: folder / file.path)
    monkeypatch.setitem(images.MODELS, "resnet9", lambda: models.resnet9(width=4))
    monkeypatch.setattr(experiments, "reference_left_out", lambda: {"sst2": list(range(0, 80, 8))})
    small = dict(final=0.05, left_out=5, lissa_depth=20, least_products=8)
    two = replace(profiles.PROFILES["paper"], seeds={"sgd": {"*": 2}}, **small)
    monkeypatch.setitem(profiles.PROFILES, "paper", two)
    for name, few in {"cifar10": {"curvature": 20, "lft_products": 8}, "sst2": {"curvature": 30}}.items():
        monkeypatch.setitem(
            paper_settings.EXPERIMENTS, name, replace(paper_settings.EXPERIMENTS[name], n_test=6, **few)
        )
    return lambda name: Panel(name, "paper", results=tmp_path / "results")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize(
    ("name", "model", "optimizer", "without"),
    [("cifar10", "GroupNorm", "sgd", {"lissa_h"}), ("sst2", "BertLayer", "adamw", {"cg", "lissa_h"})],
)
def test_from_the_files_to_the_figures(paper, name, model, optimizer, without, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "WORTH_SAYING", 0)
    monkeypatch.setattr(engines, "MEASURED_ABOVE", 0)  # as BERT is larger
    shown = paper(name)
    assert model in repr(shown.task.model) and len(list(shown.task.model.parameters())) == len(shown.params)
    gold = shown.gold
    said = capsys.readouterr().out
    assert said.count("One seed of") == 2 and "replicas at once take about" in said  # time and memory, before it begins
    assert (gold.sizes["seed"], gold.sizes["left_out"], gold.sizes["test"]) == (2, 5, 6)
    assert (gold.attrs["optimizer"], gold.attrs["removal"]) == (optimizer, "subtract") and not gold.diverged.any()
    assert float(abs(gold.delta).max()) > 0
    assert {*PAPER_METHODS} - {*shown.methods} == without
    for method in (*shown.methods, *(["lft"] if shown.lft else [])):
        short = name == "cifar10" and method == "lissa"  # 20 steps, and it says so
        with pytest.warns(UserWarning, match="worse than zero") if short else nullcontext():
            assert np.isfinite(shown.scores(method)).all()
    letter = experiments.panel_letter(name)
    figure = figure2_plus({letter: shown}, tmp_path / "figures")
    assert len(figure.axes[0].get_lines()) > len(shown.methods)
    note = json.loads((tmp_path / "figures" / "fig02plus.json").read_text())
    assert note["datasets"][name]["remark"] in note["runs"] and note["profile"] == "paper"
    figures.figure10({letter: shown}, tmp_path / "figures")
    assert ("LFT not run, for its cost" in note["runs"]) == (not shown.lft) == (name == "sst2")
    assert with_lft([name], "paper") == ([name] if shown.lft else [])
    work = [(name, "final model"), (name, "sgd"), (name, "scores"), *([(name, "lft, sgd")] if shown.lft else [])]
    assert all(line.missing == 0 for line in lines(work, "paper", tmp_path / "results"))


def test_a_seed_that_is_finished_is_kept(paper, monkeypatch):
    """The run stops in its second seed, as if it were killed, and goes on from there."""
    run, seeds = runs.Runner.run, []

    def stopping(runner, together, bar):
        seeds.extend(together)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return run(runner, together, bar)

    monkeypatch.setattr(runs.Runner, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        _ = paper("sst2").gold
    gold = paper("sst2").gold
    assert seeds == [0, 1, 1] and gold.seed.values.tolist() == [0, 1]
    assert torch.isfinite(torch.tensor(gold.full_loss.values)).all()
