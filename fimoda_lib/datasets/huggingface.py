"""The door to the model hub: a sequence classifier of `transformers`, its tokenizer and texts, as a task.

    from fimoda_lib import attribute, huggingface
    from fimoda_lib.tasks import parameters_of

    task = huggingface.text_task(model, tokenizer, train=(texts, labels), test=(texts, labels))
    scores = attribute("grad_dot", task, parameters_of(task.model))

`transformers` itself is imported only where a folder or a name is given in place of a model.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .. import checks
from ..tasks import Task
from .encoders import additive
from .labels import loss_of, targets_of
from .text import quietly

Texts = Sequence[str] | Sequence[tuple[str, str]]
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
FAR = 1e-4  # difference of outputs, relative to their size, that is no rounding of float32
NO_MATTER = ("_name_or_path", "transformers_version", "base_model_name_or_path")  # settings that change no number


class SequenceClassifier(nn.Module):
    """A sequence classifier of `transformers`, called with a dict of token tensors, that gives its logits [B, C].

    Args:
        network: takes `input_ids`, `attention_mask` and what else its tokenizer makes.
        additive_mask: whether attention masks are made here, as what is added to the scores: most encoders look into a
            mask [B, L] to see if they can do without, which `torch.func` does not allow.
    """

    def __init__(self, network: nn.Module, additive_mask: bool) -> None:
        super().__init__()
        self.network, self.additive_mask = network, additive_mask

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"]
        if self.additive_mask:
            mask = additive(mask.bool(), next(self.network.parameters()).dtype)
        return self.network(**{**inputs, "attention_mask": mask}, return_dict=True).logits

    def extra_repr(self) -> str:
        """What the layers' own `repr` leaves out; stored results are found by it."""
        settings = [self.network.config, *getattr(self.network, "peft_config", {}).values()]
        told = [{k: v for k, v in s.to_dict().items() if k not in NO_MATTER} for s in settings]

        def plain(value: Any) -> str:
            return str(sorted(value) if isinstance(value, set) else value)  # the order of a set is chance

        return json.dumps([self.additive_mask, *told], sort_keys=True, default=plain)


def text_task(
    model: Any,
    tokenizer: Any = None,
    *,
    train: tuple[Texts, Sequence],
    test: tuple[Texts, Sequence],
    trained: str | Iterable[str] | None = None,
    max_length: int | None = None,
    name: str = "texts",
) -> Task:
    """A task from a sequence classifier, its tokenizer, and texts with their labels.

    The task holds a copy of the model, in float32, on the CPU, with attention computed by elementary operations; the
    caller's own stays as it is. Dropout is active in further training if the model is in training mode, as everywhere.

    Args:
        model: a sequence classifier of `transformers` (one with an adapter of `peft`, too); or a folder that one was
            saved to, or its name on the model hub.
        tokenizer: the model's; may be left out where `model` is a folder or a name.
        train, test: `(texts, labels)`. Texts are strings or pairs of them. Labels are class numbers or the names that
            the model has for them; numbers, or rows of them, for regression (`problem_type="regression"`, or one
            output); rows of zeros and ones for several labels (`problem_type="multi_label_classification"`).
        trained: patterns of the names of parameters that are trained, such as "classifier.*" or
            ["*layer.11.*", "classifier.*"]; the others are frozen. By default those that require a gradient: all, or
            for a model with an adapter the adapter and the head.
        max_length: tokens of a text beyond this number are cut off, with a warning; by default what the model can take.
        name: of the task, used in file names.

    Returns:
        A task with inputs {"input_ids": [n, L], "attention_mask": [n, L], ...}, all texts padded to the longest, and
        the loss of the model's kind: cross-entropy, or squared error or binary cross-entropy averaged over outputs.

    Raises:
        ValueError: no such model, texts or labels; or a model that does not run under `torch.func`, or answers
            differently when a text is padded.
    """
    if isinstance(model, str | Path):
        model, tokenizer = _loaded(model, tokenizer)
    network = _own_copy(model)
    if not callable(tokenizer):
        raise ValueError(f"tokenizer: got {checks.shown(tokenizer)}, expected the model's, as AutoTokenizer reads it.")
    _choose_trained(network, trained)
    parts = {part: _pieces(part, given) for part, given in (("train", train), ("test", test))}
    texts = [text for texts, _ in parts.values() for text in texts]
    inputs = _tokens(network, tokenizer, texts, max_length)
    targets = {part: targets_of(network.config, part, labels) for part, (_, labels) in parts.items()}
    n = len(parts["train"][0])
    split = {"train": slice(0, n), "test": slice(n, len(texts))}
    return Task(
        name=name,
        model=_classifier(network, inputs, texts),
        loss=loss_of(network.config),
        **{part: ({k: v[rows] for k, v in inputs.items()}, targets[part]) for part, rows in split.items()},
        **{f"{part}_table": _table(*given) for part, given in parts.items()},
    )


# The model


def _loaded(where: str | Path, tokenizer: Any) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the hub; weights as safetensors only, which hold no code."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not Path(where).is_dir() and (isinstance(where, Path) or not HUB_NAME.fullmatch(where)):
        raise ValueError(f"model: there is no folder {str(where)!r}; expected one that save_pretrained wrote to.")
    options = {"local_files_only": Path(where).is_dir()}
    try:
        with quietly():
            model = AutoModelForSequenceClassification.from_pretrained(str(where), use_safetensors=True, **options)
            return model, AutoTokenizer.from_pretrained(str(where), **options) if tokenizer is None else tokenizer
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"model: {str(where)!r} cannot be read as a sequence classifier with its tokenizer "
            f"({checks.reason(error)}); expected a folder that save_pretrained wrote both to, or a name on the hub."
        ) from error


def _own_copy(model: Any) -> nn.Module:
    """A copy of the classifier that can be derived: in float32, without fused attention or checkpoints."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"model: got {checks.shown(type(model).__name__)}, expected a sequence classifier of transformers, or the "
            "folder that one was saved to."
        )
    network = copy.deepcopy(model).to("cpu", torch.float32)
    for module in network.modules():
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
    return network


def _choose_trained(network: nn.Module, trained: str | Iterable[str] | None) -> None:
    if trained is None:
        return
    patterns, found = [trained] if isinstance(trained, str) else list(trained), set()
    for name, parameter in network.named_parameters():
        matching = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
        parameter.requires_grad_(bool(matching))
        found |= matching
    if missing := [pattern for pattern in patterns if pattern not in found]:
        names = [name for name, _ in network.named_parameters()]
        raise ValueError(f"trained: no parameter is called {missing[0]!r}; there are {names[0]}, …, {names[-1]}.")


def _classifier(network: nn.Module, inputs: dict[str, Tensor], texts: Texts) -> SequenceClassifier:
    """The classifier with the kind of mask that it can take; compared with its own answers to a few texts."""
    lengths = inputs["attention_mask"].sum(1)
    chosen = torch.stack([lengths.argmin(), lengths.argmax(), torch.tensor(0)]).unique()
    few = {k: v[chosen] for k, v in inputs.items()}
    training, reasons = network.training, []
    network.eval()
    try:
        own = torch.cat([_alone(network, few, i) for i in range(len(chosen))])
        for additive_mask in (False, True):
            classifier = SequenceClassifier(network, additive_mask)
            try:
                with torch.no_grad():
                    found = torch.func.vmap(lambda one: classifier({k: v[None] for k, v in one.items()})[0])(few)
            except Exception as error:  # whatever a model may raise
                reasons.append(checks.reason(error))
                continue
            apart = (found - own).abs().max() / own.abs().max()
            if apart <= FAR:
                return classifier
            worst = texts[int(chosen[(found - own).abs().amax(1).argmax()])]
            reasons.append(f"its answer to {checks.shown(worst)} differs by {apart:.1e} from that without padding")
    finally:
        network.train(training)
    raise ValueError(
        f"model: a {type(network).__name__} cannot be used: with its own mask, {reasons[0]}; with an additive one, "
        f"{reasons[1]}; expected an encoder that runs under torch.func, such as BERT's family."
    )


def _alone(network: nn.Module, inputs: dict[str, Tensor], i: int) -> Tensor:
    """The logits [1, C] of one text as it is, without padding."""
    present = inputs["attention_mask"][i].bool()
    alone = {k: v[i, present][None] for k, v in inputs.items()}
    try:
        with torch.no_grad():
            found = network(**alone, return_dict=True)
    except Exception as error:  # whatever a model may raise
        raise ValueError(
            f"model: a {type(network).__name__} fails on {int(present.sum())} tokens ({checks.reason(error)}); give it "
            "its own tokenizer, and a max_length if texts are too long for it."
        ) from error
    logits = getattr(found, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape != (1, network.config.num_labels):
        got = f"logits {tuple(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise ValueError(
            f"model: {type(network).__name__} gives {got} for one text, expected (1, {network.config.num_labels}): a "
            "sequence classifier, such as AutoModelForSequenceClassification loads."
        )
    return logits


# Texts and labels


def _pieces(part: str, given: Any) -> tuple[list, list]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{part}: got {checks.shown(given)}, expected (texts, labels).")
    texts, labels = (checks.elements(part, values, "(texts, labels), two lists") for values in given)

    def is_text(text: Any) -> bool:
        pair = isinstance(text, tuple | list) and len(text) == 2
        return all(isinstance(piece, str) for piece in (text if pair else [text]))

    odd = [text for text in texts if not is_text(text)]
    if odd or len({isinstance(text, str) for text in texts}) != 1:
        got = checks.shown(odd[0] if odd else texts)
        raise ValueError(f"{part}: got {got} among the texts, expected strings, or pairs of strings.")
    if len(texts) != len(labels):
        raise ValueError(f"{part}: got {len(texts)} texts and {len(labels)} labels, expected a label for each text.")
    return texts, labels


def _tokens(network: nn.Module, tokenizer: Any, texts: Texts, max_length: int | None) -> dict[str, Tensor]:
    """What the model is called with, for all texts, padded to the longest."""
    if getattr(tokenizer, "pad_token", None) is None:
        raise ValueError("tokenizer: it has no padding token; set one (tokenizer.pad_token = …), and the model's too.")
    limits = [tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None)]
    if max_length is not None:
        limits.append(checks.whole("max_length", max_length))
    limit = min(limit for limit in limits if limit is not None and limit > 0)
    columns = [texts] if isinstance(texts[0], str) else [list(column) for column in zip(*texts, strict=True)]
    found = tokenizer(*columns, verbose=False)
    if cut := sum(len(tokens) > limit for tokens in found["input_ids"]):
        warnings.warn(f"{cut} of {len(texts)} texts are longer than {limit} tokens and are cut.", stacklevel=3)
        found = tokenizer(*columns, truncation=True, max_length=limit)
    return dict(tokenizer.pad(found, return_tensors="pt"))


def _table(texts: list, labels: list) -> pd.DataFrame:
    columns = {"sentence": texts} if isinstance(texts[0], str) else dict(zip(("sentence", "second"), zip(*texts)))
    return pd.DataFrame({**columns, "label": labels})
