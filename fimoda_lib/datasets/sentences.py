"""Generated sentences in the manner of film reviews, with their sentiment: a stand-in for SST-2 without a download."""

from __future__ import annotations

import random

import pandas as pd
import torch
from torch import Tensor

from ..tasks import Task, cross_entropy
from .encoders import Texts, small_bert, text_classifier

N_TRAIN, N_TEST, SEED = 1200, 200, 0
NOISE = 0.05  # share of the training and test labels that are turned round
CLASSES = ["negative", "positive"]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]"]  # tokens 0, 1, 2

ADJECTIVES = [
    "dull clumsy boring tired hollow noisy shallow predictable lifeless bad".split(),
    "charming clever funny moving fresh warm brilliant graceful gripping good".split(),
]
VERBS = ["drags fails disappoints annoys".split(), "shines works delights soars".split()]
SUBJECTS = "film movie plot script acting ending dialogue camera music cast".split()
TOPICS = "love war money family crime youth music friendship".split()
DEGREES = ["", "", "very", "quite", "truly", "often"]
FAREWELLS = ["", "", "", "from start to finish", "in every scene", "at least for a while", "after all"]


def phrase(sentiment: int, draw: random.Random) -> list[str]:
    """A clause, or a bare noun phrase, of the given sentiment (0 or 1); negated in one case of four."""
    subject, degree = draw.choice(["the", "this", "its"]) + " " + draw.choice(SUBJECTS), draw.choice(DEGREES)
    negated = draw.random() < 0.25
    adjective, verb = (draw.choice(words[sentiment ^ negated]) for words in (ADJECTIVES, VERBS))
    kind = draw.choice(["adjective", "adjective", "noun", "verb"])
    if kind == "adjective":
        words = [subject, draw.choice(["is", "feels", "seems"]), "not" if negated else "", degree, adjective]
    elif kind == "noun":
        words = ["not" if negated else "", "a", degree, adjective, draw.choice(["story", "tale", "look"])]
        words += ["of", draw.choice(TOPICS)]
    else:
        words = [subject, "never" if negated else degree, verb]
    return " ".join(words).split()


def sentence(sentiment: int, draw: random.Random) -> str:
    """One phrase or two; with "but" and "although" the main clause decides, against the other one."""
    main, farewell = phrase(sentiment, draw), draw.choice(FAREWELLS).split()
    kind = draw.choice(["one", "one", "and", "but", "although"])
    if kind == "one":
        return " ".join(main + farewell)
    if kind == "and":
        return " ".join([*main, "and", *phrase(sentiment, draw), *farewell])
    other = phrase(1 - sentiment, draw)
    return " ".join([*other, ",", "but", *main, *farewell] if kind == "but" else ["although", *other, ",", *main])


def generate(n: int, *, seed: int = SEED) -> pd.DataFrame:
    """n different sentences with their labels, a share `NOISE` of which is wrong."""
    draw, found = random.Random(seed), {}
    while len(found) < n:
        sentiment = draw.randrange(2)
        found.setdefault(sentence(sentiment, draw), sentiment)
    wrong = set(draw.sample(range(n), round(NOISE * n)))
    labels = [CLASSES[sentiment ^ (k in wrong)] for k, sentiment in enumerate(found.values())]
    return pd.DataFrame({"sentence": list(found), "label": labels})


def tokenise(sentences: list[str]) -> tuple[Texts, list[str]]:
    """Tokens and mask, [n, L] each, one token per word, and the vocabulary."""
    vocabulary = SPECIAL + sorted({word for text in sentences for word in text.split()})
    number = {word: k for k, word in enumerate(vocabulary)}
    rows = [torch.tensor([number[word] for word in ["[CLS]", *text.split(), "[SEP]"]]) for text in sentences]
    tokens: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"tokens": tokens, "mask": tokens != 0}, vocabulary


def load_sentences() -> Task:
    """1200 training and 200 test sentences, no two the same, 5 % of the labels wrong; a BERT of 2 layers, width 32.

    Inputs and targets are as in `load_sst2`, with a word for a token. The model is to be trained from scratch.
    """
    table = generate(N_TRAIN + N_TEST)
    inputs, vocabulary = tokenise(table["sentence"].tolist())
    targets = torch.tensor([CLASSES.index(label) for label in table["label"]])
    encoder = small_bert(len(vocabulary), inputs["tokens"].shape[1])
    parts = slice(0, N_TRAIN), slice(N_TRAIN, None)
    train, test = (({key: value[rows] for key, value in inputs.items()}, targets[rows]) for rows in parts)
    train_table, test_table = (table[rows].reset_index(drop=True) for rows in parts)
    return Task(
        name="",
        model=text_classifier(encoder, len(CLASSES), seed=0),
        loss=cross_entropy,
        train=train,
        test=test,
        train_table=train_table,
        test_table=test_table,
    )
