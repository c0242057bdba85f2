"""Text classifiers: encoders of BERT's kind with a linear head on [CLS], and the cache of their lower layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..devices import own_randomness
from ..tasks import Task, resolve_rows, take

# "mask" [n, L], true at tokens and false at padding, and "tokens" [n, L] or "hidden" [n, L, d]
Texts = dict[str, Tensor]


class TextClassifier(nn.Module):
    """Layers of a BERT encoder, and a linear head on [CLS], the first position of the last layer: [B, classes].

    Works under `torch.func`, for a batch and for a batch of one; the layers need `attn_implementation="eager"`.

    Args:
        embeddings: of the tokens; None for a classifier that starts from "hidden", the states below its layers.
        layers: at least one `BertLayer`.
        dropout: probability, before the head.
    """

    def __init__(self, embeddings: nn.Module | None, layers: Iterable[nn.Module], head: nn.Module, dropout: float):
        super().__init__()
        self.embeddings, self.layers = embeddings, nn.ModuleList(layers)
        self.dropout, self.head = nn.Dropout(dropout), head

    def forward(self, inputs: Texts) -> Tensor:
        hidden = inputs["hidden"] if self.embeddings is None else self.embeddings(inputs["tokens"])
        mask = additive(inputs["mask"], hidden.dtype)
        *lower, last = self.layers
        for layer in lower:
            hidden = layer(hidden, mask)
        return self.head(self.dropout(first_position(last, hidden, mask)))

    def extra_repr(self) -> str:
        """What the layers' own `repr` leaves out; stored results are found by it."""
        return f"attention_heads={self.layers[0].attention.self.num_attention_heads}"


def text_classifier(encoder: nn.Module, classes: int = 2, *, seed: int = 0) -> TextClassifier:
    """A classifier in training mode, of a `BertModel`'s own modules and a head initialised from `seed`.

    The caller's random state is left untouched.
    """
    config = encoder.config
    with own_randomness(torch.device("cpu"), seed):
        head = nn.Linear(config.hidden_size, classes)
    return TextClassifier(encoder.embeddings, encoder.encoder.layer, head, config.hidden_dropout_prob).train()


def small_bert(
    vocabulary: int, length: int, *, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0
) -> nn.Module:
    """A `BertModel` for sentences of up to `length` tokens, initialised from `seed`; token 0 is padding.

    The caller's random state is left untouched.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=length,
        type_vocab_size=1,
        attn_implementation="eager",
    )
    with own_randomness(torch.device("cpu"), seed):
        return BertModel(config, add_pooling_layer=False)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores [B, heads, queries, L]: zero at tokens, a huge negative number at padding."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]


def first_position(layer: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    """What a `BertLayer` puts out at the first position, [B, d]; only keys and values are computed at the others."""
    heads, first = layer.attention.self, hidden[:, :1]

    def split(x: Tensor) -> Tensor:  # [B, positions, d] -> [B, heads, positions, d / heads]
        return x.unflatten(-1, (heads.num_attention_heads, -1)).transpose(1, 2)

    scores = split(heads.query(first)) @ split(heads.key(hidden)).mT * heads.scaling + mask
    context = heads.dropout(scores.softmax(-1)) @ split(heads.value(hidden))
    attended = layer.attention.output(context.transpose(1, 2).flatten(2), first)
    return layer.output(layer.intermediate(attended), attended).squeeze(1)


def cached_task(
    task: Task,
    *,
    trained_layers: int = 1,
    rows: Iterable[int] | None = None,
    test_rows: Iterable[int] | None = None,
    hidden: Mapping[str, Tensor] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Task:
    """The task of training only the upper layers and the head: what the lower ones put out is computed once.

    Embeddings and lower layers stay as they are in the task's model, without dropout; the upper ones keep theirs.

    Args:
        trained_layers: how many layers, counted from the last, remain in the model.
        rows, test_rows: the training and test instances that are kept, in this order (all by default).
        hidden: what the lower layers put out for these instances, "train" [n, L, d] and "test" [n, L, d], where an
            earlier call has computed it.
        batch_size: sentences of about one length that are computed at a time.

    Returns:
        A task with inputs {"hidden": [n, L, d], "mask": [n, L]}, L being the longest sentence kept, and a model
        with copies of the upper layers and of the head.

    Raises:
        ValueError: the model is no text classifier that starts from tokens, or has no such layers or instances.
    """
    model = task.model
    if not isinstance(model, TextClassifier) or model.embeddings is None:
        raise ValueError(
            f"cached_task: got task '{task.name}' with a model of type {type(model).__name__}, expected a "
            "TextClassifier that starts from tokens."
        )
    if not 1 <= trained_layers <= len(model.layers):
        raise ValueError(f"trained_layers: got {trained_layers}, expected a number from 1 to {len(model.layers)}.")
    chosen = {
        "train": resolve_rows(rows, task.n_train, "rows"),
        "test": resolve_rows(test_rows, task.n_test, "test_rows"),
    }
    for part, kept in chosen.items():
        if len(kept) == 0:
            raise ValueError(f"cached_task: no {part} instances are kept; choose at least one, or None for all.")
    lower = copy.deepcopy(nn.ModuleList([model.embeddings, *model.layers[:-trained_layers]])).eval()
    upper = copy.deepcopy(TextClassifier(None, model.layers[-trained_layers:], model.head, model.dropout.p))
    upper.train(model.training)
    parts = {part: take(getattr(task, part), kept) for part, kept in chosen.items()}
    L = max(_longest(inputs["mask"]) for inputs, _ in parts.values())
    if hidden is None:
        total, title = sum(map(len, chosen.values())), task.title or task.name
        with tqdm(total=total, desc=f"lower layers, {title}", disable=not progress) as bar:
            hidden = {part: _through(lower, inputs, L, batch_size, bar) for part, (inputs, _) in parts.items()}
    cached = {
        part: ({"hidden": hidden[part], "mask": inputs["mask"][:, :L].clone()}, targets)
        for part, (inputs, targets) in parts.items()
    }
    tables = {
        f"{part}_table": table.iloc[kept.tolist()].reset_index(drop=True)
        for part, kept in chosen.items()
        if (table := getattr(task, f"{part}_table")) is not None
    }
    return dataclasses.replace(task, model=upper, **cached, **tables)


def _through(lower: nn.ModuleList, inputs: Texts, L: int, batch_size: int, bar: tqdm) -> Tensor:
    """The states [n, L, d] above the lower layers; zeros at padding."""
    embeddings, *layers = lower
    mask = inputs["mask"][:, :L]
    hidden: Tensor | None = None
    for rows in mask.sum(1).argsort(descending=True).split(batch_size):
        present = mask[rows]
        present = present[:, : _longest(present)]
        with torch.no_grad():
            x = embeddings(inputs["tokens"][rows, : present.shape[1]])
            for layer in layers:
                x = layer(x, additive(present, x.dtype))
        if hidden is None:
            hidden = x.new_zeros(*mask.shape, x.shape[-1])
        hidden[rows, : x.shape[1]] = x * present.unsqueeze(-1)
        bar.update(len(rows))
    return hidden


def _longest(mask: Tensor) -> int:
    """The number of positions up to the last token of any row."""
    return int(mask.any(0).nonzero().max()) + 1
