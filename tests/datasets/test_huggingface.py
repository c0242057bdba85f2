"""A model from the hub: the same numbers as `transformers` and a plain loop give, for every family of encoders."""

import ast
import copy
import dataclasses
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from fimoda_lib.huggingface import text_task
from small_files import put, refusal
from torch import nn

import fimoda_lib
from fimoda_lib import Task, attribute, cross_entropy, further_train, huggingface
from fimoda_lib.datasets import text
from fimoda_lib.derivatives.adjoints import adjoint_train
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.tangents import tangent_train
from fimoda_lib.tasks import parameters_of

WORDS = "a the film plot is was not good bad dull bright very and with of scenes".split()
TEXTS = [
    "the film is good", "a dull plot with bad scenes and very dull", "good", "the plot is not bad", "very bad",
    "a film of scenes", "the film was not good and not dull", "bright",
]  # fmt: skip
LABELS = [1, 0, 1, 1, 0, 0, 0, 1]
TRAIN, TEST = (TEXTS, LABELS), (["a bright film", "the plot was very dull and bad"], [1, 0])
SIZES = dict(vocab_size=21, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
SIZES |= dict(max_position_embeddings=24, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
RELATIVE = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, pooler_dropout=0.0)
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "Electra": {**SIZES, "embedding_size": 16},
    "Albert": {**SIZES, "embedding_size": 16, "classifier_dropout_prob": 0.0},
    "DistilBert": dict(vocab_size=21, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24,
                       dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0),
    "Deberta": {**SIZES, **RELATIVE},
    "DebertaV2": {**SIZES, **RELATIVE, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "MPNet": SIZES,
    "ModernBert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS]
    return transformers.BertTokenizer(str(put(tmp_path_factory.mktemp("words") / "vocab.txt", "\n".join(vocabulary))))


def made(family, **sizes):
    """A classifier of this family, with weights so large that everything in it matters, always the same ones."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape))
    return model


def tiny(family="Bert", **options):
    return made(family, **{**FAMILIES[family], **options})


def with_adapter(model, **options):
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings = dict(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"], **options)
        adapted = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.3)  # the usual zeros would leave the other half without a gradient
    return adapted


def batch(tokenizer, texts, labels):
    return {**tokenizer(texts, padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}


def plain_loop(model, tokenizer, train, test, *, optimizer, learning_rate, batch_size, steps, seed, removed=None):
    """Test losses [steps, n] of the usual loop: batches padded as they come, the loss that the model returns."""
    model = copy.deepcopy(model)
    rule = optimizer([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0)
    (texts, labels), losses = train, []
    rows = list(torch.utils.data.RandomSampler(texts, generator=torch.Generator().manual_seed(seed)))
    if removed is not None:
        rows.remove(removed)
    for step in range(steps):
        chosen = rows[step * batch_size : (step + 1) * batch_size]
        rule.zero_grad()
        model(**batch(tokenizer, [texts[i] for i in chosen], [labels[i] for i in chosen])).loss.backward()
        rule.step()
        exact = copy.deepcopy(model).double()
        with torch.no_grad():
            losses.append([exact(**batch(tokenizer, [t], [y])).loss.item() for t, y in zip(*test, strict=True)])
    return np.array(losses)


def own_gradients(model, tokenizer, texts, labels):
    """Of the loss that the model itself computes, one text at a time and without padding: [n, P]."""
    model, rows = copy.deepcopy(model).double(), []
    for one, label in zip(texts, labels, strict=True):
        model.zero_grad()
        model(**batch(tokenizer, [one], [label])).loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]))
    return torch.stack(rows).numpy()


def close(found, expected, tolerance):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


SGD = dict(learning_rate=0.05, batch_size=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_encoders(family, tokenizer):
    model = tiny(family)
    task = text_task(model, tokenizer, train=TRAIN, test=TEST)
    params = parameters_of(task.model)
    expected = own_gradients(model, tokenizer, *TRAIN)
    at = Gradients(task, params)
    assert close(at.of_losses(at.train(torch.arange(8))), expected, 1e-6)
    assert not close(expected[::-1], expected, 0.1)
    scores = attribute("grad_dot", task, params)
    assert close(scores, own_gradients(model, tokenizer, *TEST) @ expected.T, 1e-6)
    gold = further_train(
        task, params, optimizer="sgd", **SGD, epochs=1, seeds=[3], left_out=[5], evaluate=[1, 2], progress=False
    )
    runs = [plain_loop(model, tokenizer, TRAIN, TEST, optimizer=torch.optim.SGD, **SGD, steps=2, seed=3, removed=i)
            for i in (None, 5)]  # fmt: skip
    np.testing.assert_allclose(gold.full_loss[0], runs[0], rtol=1e-5)
    np.testing.assert_allclose(gold.delta[0, 0], runs[1] - runs[0], atol=2e-6)
    assert np.abs(runs[1] - runs[0]).max() > 1e-3


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_the_runs_of_adamw_and_their_derivatives(family, tokenizer):
    """Further training, tangents, adjoints and LFT take the task as any other."""
    model = tiny(family)
    task = text_task(model, tokenizer, train=TRAIN, test=TEST)
    params = parameters_of(task.model)
    rule = dict(optimizer="adamw", learning_rate=1e-3, batch_size=3)
    full = further_train(task, params, **rule, epochs=1, seeds=[3], left_out=[], progress=False)
    settings = dict(optimizer=torch.optim.AdamW, learning_rate=1e-3, batch_size=3, steps=3, seed=3)
    expected = plain_loop(model, tokenizer, TRAIN, TEST, **settings)[-1]
    np.testing.assert_allclose(full.full_loss[0, -1], expected, rtol=1e-5)
    exact, run = {k: p.double() for k, p in params.items()}, dict(optimizer="sgd", **SGD)
    little = further_train(
        task, exact, **run, epochs=1, seeds=[0], left_out=[5], removal="mask", fraction=1e-6, progress=False
    ).delta[0, 0, -1] / 1e-6  # fmt: skip
    tangents = tangent_train(task, exact, **run, epochs=1, seeds=[0], left_out=[5], progress=False).delta[0, 0, -1]
    adjoints = adjoint_train(task, exact, **run, horizon=3, test=[0, 1], progress=False).sel(train=5)
    assert close(tangents, little, 1e-4) and close(adjoints, tangents, 1e-8)
    lft = attribute("lft", task, params, horizon=[1, 3], further_training={**run, "seed": 0}, train=[5, 2])
    assert lft.shape == (2, 2, 2) and np.isfinite(lft).all()


# What is trained


def test_a_model_with_an_adapter(tokenizer):
    """Only the adapter and the head are trained, and nothing else of it is needed."""
    model = with_adapter(tiny())
    task = text_task(model, tokenizer, train=TRAIN, test=TEST)
    params = parameters_of(task.model)
    assert len(params) == 2 * 2 * 2 + 2 and all("lora_" in k or "classifier" in k for k in params)
    at = Gradients(task, params)
    assert close(at.of_losses(at.train(torch.arange(8))), own_gradients(model, tokenizer, *TRAIN), 1e-6)
    gold = further_train(
        task, params, optimizer="sgd", **SGD, epochs=1, seeds=[3], left_out=[5], evaluate=[1, 2], progress=False
    )
    runs = [plain_loop(model, tokenizer, TRAIN, TEST, optimizer=torch.optim.SGD, **SGD, steps=2, seed=3, removed=i)
            for i in (None, 5)]  # fmt: skip
    np.testing.assert_allclose(gold.full_loss[0], runs[0], rtol=1e-5)
    np.testing.assert_allclose(gold.delta[0, 0], runs[1] - runs[0], atol=2e-6)
    further = dict(optimizer="sgd", **SGD, seed=0)
    lft = attribute("lft", task, params, horizon=[3], further_training=further)
    assert lft.shape == (1, 2, 8) and np.isfinite(lft).all()
    # Its strength is a setting that no tensor and no layer's description holds: stored results must tell it apart.
    stronger = text_task(with_adapter(tiny(), lora_dropout=0.1), tokenizer, train=TRAIN, test=TEST)
    assert repr(stronger.model) != repr(task.model)


def test_some_parameters(tokenizer):
    model = tiny()
    some = text_task(model, tokenizer, train=TRAIN, test=TEST, trained=["*layer.1.*", "classifier.*"])
    names = [k.removeprefix("network.") for k in parameters_of(some.model)]
    assert names == [k for k, _ in model.named_parameters() if ".layer.1." in k or k.startswith("classifier.")]
    head = text_task(model, tokenizer, train=TRAIN, test=TEST, trained="classifier.*")
    everything = text_task(model, tokenizer, train=TRAIN, test=TEST)
    assert [*parameters_of(head.model)] == ["network.classifier.weight", "network.classifier.bias"]
    assert len(parameters_of(everything.model)) == len([*model.parameters()])
    columns = Gradients(everything, parameters_of(everything.model)).columns()["network.classifier.bias"]
    few, whole = (Gradients(t, parameters_of(t.model)) for t in (head, everything))
    own, all_ = (at.of_losses(at.train(torch.arange(3))) for at in (few, whole))
    torch.testing.assert_close(own[:, -2:], all_[:, columns])


def test_the_callers_model_is_left_as_it_is(tokenizer):
    model = tiny().train().half()
    model.bert.pooler.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    task = text_task(model, tokenizer, train=TRAIN, test=TEST, trained="classifier.*")
    assert model.training and model.dtype == torch.float16 and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.bert.pooler.parameters()] == [False, False]
    assert [p.requires_grad for p in model.bert.embeddings.parameters()] == [True] * 5
    assert task.model.training and next(task.model.parameters()).dtype == torch.float32


# Texts, labels, and the loss


def test_pairs_of_texts_and_names_of_labels(tokenizer):
    model = tiny(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    pairs = [("the film is good", "a good film"), ("dull", "bright scenes and a plot")]
    task = text_task(model, tokenizer, train=(pairs, ["yes", "no"]), test=(pairs, [1, 0]))
    assert task.train[1].tolist() == task.test[1].tolist() == [1, 0]
    assert task.train_table.to_dict("list") == {
        "sentence": ["the film is good", "dull"], "second": ["a good film", "bright scenes and a plot"],
        "label": ["yes", "no"],
    }  # fmt: skip
    for i, pair in enumerate(pairs):
        own = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        torch.testing.assert_close(task.model(task.train[0])[i], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0.5, -1.0, 2.0, 0.0, 1.0, 3.0, 0.2, -2.0], dict(num_labels=1)),
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]] * 4, dict(num_labels=3, problem_type="multi_label_classification")),
        ([2, 0, 1, 1, 2, 0, 0, 1], dict(num_labels=3)),
        ([[0.5, -1.0, 2.0], [0.0, 1.5, 3.0]] * 4, dict(num_labels=3, problem_type="regression")),
        ([[2, -1, 0], [0, 1, 3]] * 4, dict(num_labels=3, problem_type="regression")),
        ([True, False, True, True, False, False, False, True], {}),
    ],
    ids=["regression", "several labels", "three classes", "several outputs", "whole numbers", "yes or no"],
)
def test_the_loss_is_the_models_own(labels, options, tokenizer):
    model = tiny(**options)
    task = text_task(model, tokenizer, train=(TEXTS, labels), test=(TEXTS[:2], labels[:2]))
    losses = task.loss(task.model(task.train[0]), task.train[1])
    kind = torch.float if task.kind == "regression" else torch.long  # those that the model itself can take
    given = [batch(tokenizer, [t], [y]) for t, y in zip(TEXTS, labels, strict=True)]
    own = [model(**{**one, "labels": one["labels"].to(kind)}).loss.item() for one in given]
    np.testing.assert_allclose(losses.detach(), own, rtol=1e-5)
    assert task.kind == ("classification" if isinstance(labels[0], int) else "regression")


def test_what_a_tokenizer_returns_is_taken_as_inputs(tokenizer):
    task = text_task(tiny(), tokenizer, train=TRAIN, test=TEST)
    tokens = [tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt") for texts, _ in (TRAIN, TEST)]
    assert not isinstance(tokens[0], dict)
    given = dataclasses.replace(task, **{k: (t, getattr(task, k)[1]) for k, t in zip(("train", "test"), tokens)})
    scores = [attribute("grad_dot", t, parameters_of(t.model)) for t in (task, given)]
    assert close(*scores, 1e-6)  # the padding is another


def test_long_texts_are_cut_with_a_warning(tokenizer):
    long = ["the film is good " * 9, "dull"]
    with pytest.warns(UserWarning, match="1 of 4 texts are longer than 24 tokens and are cut"):
        task = text_task(tiny(), tokenizer, train=(long, [1, 0]), test=TEST)
    assert task.train[0]["input_ids"].shape == (2, 24) and task.train[0]["input_ids"][0, -1] == 2
    with pytest.warns(UserWarning, match="3 of 4 texts are longer than 4 tokens"):
        shorter = text_task(tiny(), tokenizer, train=(long, [1, 0]), test=(["the bad film"] * 2, [0, 0]), max_length=4)
    assert shorter.train[0]["input_ids"].shape == (2, 4)


# Folders


def test_minilm_with_a_head_from_a_folder(tmp_path):
    """Saved, loaded, trained further, and the same numbers as the usual loop's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, own_tokenizer = text.load_minilm()
        config = transformers.BertConfig(**{**encoder.config.to_dict(), "num_labels": 2, "num_hidden_layers": 2})
        model = transformers.BertForSequenceClassification(config).eval()
        model.bert.load_state_dict(encoder.state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    own_tokenizer.save_pretrained(tmp_path)
    trained = ["bert.encoder.layer.1.*", "bert.pooler.*", "classifier.*"]
    task = text_task(tmp_path, train=TRAIN, test=TEST, trained=trained)
    params = parameters_of(task.model)
    for name, p in model.named_parameters():
        p.requires_grad_(f"network.{name}" in params)
    assert sum(p.requires_grad for p in model.parameters()) == len(params) == 20
    gold = further_train(
        task, params, optimizer="sgd", **SGD, epochs=1, seeds=[3], left_out=[5], evaluate=[1, 2], progress=False
    )
    runs = [plain_loop(model, own_tokenizer, TRAIN, TEST, optimizer=torch.optim.SGD, **SGD, steps=2, seed=3, removed=i)
            for i in (None, 5)]  # fmt: skip
    np.testing.assert_allclose(gold.full_loss[0], runs[0], rtol=1e-5)
    np.testing.assert_allclose(gold.delta[0, 0], runs[1] - runs[0], atol=2e-6)
    again = text_task(str(tmp_path), own_tokenizer, train=TRAIN, test=TEST, trained=trained)
    assert repr(again.model) == repr(task.model) and str(tmp_path) not in repr(task.model)


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    message = refusal(text_task, tmp_path, train=TRAIN, test=TEST, error=ValueError)
    assert f"model: '{tmp_path}' cannot be read as a sequence classifier with its tokenizer (" in message
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle, which may hold code, is never read
    assert "cannot be read" in refusal(text_task, tmp_path, train=TRAIN, test=TEST, error=ValueError)


def test_a_name_is_looked_up_on_the_hub(tokenizer, monkeypatch):
    asked = []

    def hub(name, **options):
        asked.append((name, options["local_files_only"]))
        if name == "somebody/model":
            return tiny()
        raise OSError("We couldn't connect to the hub. Check your connection.")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", hub)
    assert text_task("somebody/model", tokenizer, train=TRAIN, test=TEST).n_train == 8
    message = refusal(text_task, "nobody", train=TRAIN, test=TEST, error=ValueError)
    assert "'nobody' cannot be read as a sequence classifier" in message and "or a name on the hub" in message
    assert asked == [("somebody/model", False), ("nobody", False)]


# What cannot be


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(model="no/such/folder"), "model: there is no folder 'no/such/folder'; expected one that save_pretrained"),
        (dict(model=Path("no/folder")), "model: there is no folder 'no/folder'"),
        (dict(model="../folder"), "model: there is no folder '../folder'"),
        (dict(model=3), "model: got 'int', expected a sequence classifier of transformers, or the folder"),
        (dict(model=nn.Linear(2, 2)), "model: got 'Linear', expected a sequence classifier"),
        (dict(tokenizer=None), "tokenizer: got None, expected the model's, as AutoTokenizer reads it"),
        (dict(train=TEXTS), "train: got ['the film is good'"),
        (dict(train=("good", [1])), "train: got 'good', expected (texts, labels), two lists"),
        (dict(train=([1, 2], [0, 1])), "train: got 1 among the texts, expected strings, or pairs of strings"),
        (dict(train=(["good", ("bad", "dull")], [0, 1])), "expected strings, or pairs of strings"),
        (dict(train=([], [])), "train: got [] among the texts"),
        (dict(test=(["good"], [0, 1])), "test: got 1 texts and 2 labels, expected a label for each text"),
        (dict(train=(TEXTS, [2, *LABELS[1:]])), "train: got the label 2, expected a class from 0 to 1 or one of"),
        (dict(train=(TEXTS, ["good", *LABELS[1:]])), "train: got the label 'good', expected a class from 0 to 1"),
        (dict(train=(TEXTS, [0.5, *LABELS[1:]])), "train: got the label 0.5, expected a class"),
        (dict(trained="head.*"), "trained: no parameter is called 'head.*'; there are bert.embeddings"),
        (dict(max_length=0), "max_length: got 0, expected a whole number of at least 1"),
        (dict(name="a/b"), "expected a short text without slashes"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(changes, says, tokenizer):
    given = {"model": tiny(), "tokenizer": tokenizer, "train": TRAIN, "test": TEST, **changes}
    call = lambda: text_task(given.pop("model"), given.pop("tokenizer"), **given).check()  # noqa: E731
    assert says in refusal(call, error=ValueError)


def test_wrong_labels_of_regression_and_several_labels_are_refused(tokenizer):
    one, many = tiny(num_labels=1), tiny(num_labels=3, problem_type="multi_label_classification")
    given = dict(test=TEST, error=ValueError)
    assert "expected a number for each text" in refusal(text_task, one, tokenizer, train=(["good"], ["x"]), **given)
    outputs = tiny(num_labels=3, problem_type="regression")
    assert "expected (1, 3): [3] numbers" in refusal(text_task, outputs, tokenizer, train=(["good"], [1]), **given)
    assert "expected (1, 3): [3] numbers" in refusal(text_task, many, tokenizer, train=(["good"], [1.0]), **given)


class Unpacked(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, inputs):
        return self.network(**inputs).logits


@pytest.mark.parametrize("wrap", [lambda model: model, Unpacked])
def test_a_task_made_of_a_classifier_by_hand_is_told_of_the_way(wrap, tokenizer):
    """It is called with a dict as its tokens; or it looks into the mask whether it can do without."""
    tokens = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    parts = [({k: v[:n] for k, v in tokens.items()}, torch.tensor(LABELS[:n])) for n in (8, 3)]
    task = Task("by hand", wrap(tiny()), cross_entropy, *parts)
    message = refusal(attribute, "grad_dot", task, parameters_of(task.model), error=ValueError)
    assert "becomes a task by fimoda_lib.huggingface.text_task" in message


def refused(family, tokenizer, train=TRAIN, **options):
    return refusal(text_task, made(family, **{**SIZES, **options}), tokenizer, train=train, test=TEST, error=ValueError)


def test_models_that_would_give_other_numbers_are_refused(tokenizer):
    """Local attention, which our mask would widen; Fourier transforms, which see the padding; branches on data."""
    far = (["the film is good " * 5, "dull"], [1, 0])
    windows = dict(local_attention=8, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2)
    windows |= dict(bos_token_id=1, eos_token_id=2)
    found = refused("ModernBert", tokenizer, train=far, **windows)
    assert "a ModernBertForSequenceClassification cannot be used" in found and "from that without padding" in found
    assert "from that without padding" in refused("FNet", tokenizer)
    assert "with its own mask, RuntimeError: vmap" in refused("ConvBert", tokenizer, embedding_size=16)
    bare = tiny().bert
    message = refusal(text_task, bare, tokenizer, train=TRAIN, test=TEST, error=ValueError)
    assert "BertModel gives no logits for one text, expected (1, 2): a sequence classifier" in message
    words = copy.deepcopy(tokenizer)
    words.add_tokens(["wonderful"])
    message = refusal(text_task, tiny(), words, train=(["wonderful"], [1]), test=TEST, error=ValueError)
    assert "fails on 3 tokens (IndexError" in message and "its own tokenizer" in message
    words.pad_token = None
    assert "it has no padding token" in refusal(text_task, tiny(), words, train=TRAIN, test=TEST, error=ValueError)


# The door


def test_transformers_is_imported_only_where_it_is_needed():
    top = ast.parse(inspect.getsource(huggingface)).body
    names = [n.module for n in top if isinstance(n, ast.ImportFrom) and not n.level]
    names += [alias.name for n in top if isinstance(n, ast.Import) for alias in n.names]
    assert {name.split(".")[0] for name in names} - {*sys.stdlib_module_names} == {"pandas", "torch"}


def test_there_is_one_module_behind_its_names():
    import fimoda_lib.datasets.huggingface as home

    assert fimoda_lib.huggingface is huggingface is home and home.text_task is text_task
    assert home.__spec__.name == home.__name__ == "fimoda_lib.datasets.huggingface"
    assert "huggingface" in fimoda_lib.__all__


def test_a_longer_text_among_the_tests_changes_no_score_by_kronecker_factors(tokenizer):
    model, longer = tiny(), [*TEST[0], " ".join(WORDS[:20])]
    tasks = (
        text_task(model, tokenizer, train=TRAIN, test=TEST),
        text_task(model, tokenizer, train=TRAIN, test=(longer, [1, 0, 1])),
    )
    assert tasks[0].train[0]["input_ids"].shape[1] < tasks[1].train[0]["input_ids"].shape[1]
    found = [attribute("ekfac", t, parameters_of(t.model), test=[0, 1], fisher="empirical") for t in tasks]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-9 * float(abs(found[0]).max()))


def test_padding_that_a_model_looks_at_counts(tokenizer):
    """A classifier of one's own that takes the mean over all positions, whatever the mask says."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(21, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, inputs):
            return self.head(torch.tanh(self.layer(self.embedding(inputs["input_ids"]))).mean(1))

    made_of = text_task(tiny(), tokenizer, train=TRAIN, test=TEST)
    ones = {k: torch.ones_like(v) if k == "attention_mask" else v for k, v in made_of.train[0].items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mean().double()
    found = []
    for inputs in (made_of.train[0], ones):
        task = Task("mean", model, cross_entropy, train=(inputs, made_of.train[1]), test=made_of.test)
        found.append(attribute("ekfac", task, parameters_of(model), fisher="empirical"))
    np.testing.assert_allclose(found[0], found[1])
