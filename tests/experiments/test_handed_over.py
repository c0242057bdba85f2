"""What changes hands: a folder that `transformers` reads, made once, and never half."""

import pandas as pd
import pytest
import torch
from small_files import refusal

from fimoda_lib import datasets
from fimoda_lib.datasets import text
from fimoda_lib.experiments import handed_over
from fimoda_lib.experiments.handed_over import hand_over
from fimoda_lib.run import plan
from fimoda_lib.run.command import parser


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(handed_over, "N_TRAIN", 60)
    monkeypatch.setattr(handed_over, "N_NEW", 20)


def test_a_folder_that_transformers_reads(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = hand_over(tmp_path / "deep" / "folder")
    assert hand_over(folder) == folder
    assert f"model: got 'minilm', and {folder} holds 'small'" in refusal(hand_over, folder, "minilm", error=ValueError)
    train, new = (pd.read_csv(folder / name) for name in ("train.csv", "new.csv"))
    assert (len(train), len(new)) == (60, 20) and [*train] == [*new] == ["sentence", "label"]
    assert not {*train["sentence"]} & {*new["sentence"]}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    tokens = AutoTokenizer.from_pretrained(folder / "model")(
        train["sentence"].tolist(), padding=True, return_tensors="pt"
    )
    assert (tokens["input_ids"] != 3).all()  # no word is unknown
    with torch.no_grad():
        answers = [model.config.id2label[k] for k in model(**tokens).logits.argmax(1).tolist()]
    assert (train["label"] == answers).mean() > 0.7  # it has learnt something from them
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


def test_what_is_there_is_kept_and_what_is_half_is_not_made(tmp_path, monkeypatch):
    folder = tmp_path / "folder"

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(handed_over, "train_final_model", interrupted)
        hand_over(folder)
    assert not [*tmp_path.iterdir()]
    (folder / "model").mkdir(parents=True)
    message = refusal(hand_over, folder, error=ValueError)
    assert f"folder: {folder} is there without train.csv, new.csv" in message
    for name in ("train.csv", "new.csv"):
        (folder / name).write_text("sentence,label\n")
    monkeypatch.setattr(handed_over, "train_final_model", interrupted)
    assert hand_over(str(folder)) == folder
    assert "model: got 'gpt', expected one of small, minilm" in refusal(hand_over, folder, "gpt", error=ValueError)


@pytest.mark.parametrize(("package", "data", "made"), [(1, 1, "minilm"), (0, 1, "small"), (1, 0, "small")])
def test_notebook_8_takes_minilm_where_it_is_at_hand(package, data, made, monkeypatch):
    monkeypatch.setattr(text, "has_minilm", lambda: package)
    monkeypatch.setattr(datasets, "available", lambda name: data and name == "sst2")
    chosen = plan.handed_over(parser().parse_args(["--profile", "quick"]))
    assert chosen["model"] == made and chosen["folder"].endswith(f"quick/handed_over-{made}")
    assert chosen.get("trained") == (handed_over.HEAD if made == "minilm" else None)
    assert "model" not in plan.handed_over(parser().parse_args(["--profile", "smoke"]))  # which is for tests
