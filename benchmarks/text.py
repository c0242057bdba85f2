"""How much faster are text gradients for all sentences at once, and the last layer for [CLS] alone?

    python benchmarks/text.py [--data DIR] [--sentences 256]

Per-instance gradients in float32, by `Gradients.of_losses` and by one backward pass after another, of
  * the last layer and the head of MiniLM on SST-2 (without its files: on generated sentences), lower layers cached;
  * a whole small transformer, that of the generated sentences.
Gradients are used at once, for their products with a vector, and not kept: holding them all, both ways would wait for
memory. The plain way is given each sentence without its padding, which it does not need; and, to compare, with it.
Then one training step (forward and backward pass, batches of 64) of the cached MiniLM: [CLS] alone in the last layer,
against all positions. MiniLM needs `pip install -e ".[text]"`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fimoda_lib import Task, load_task
from fimoda_lib.datasets import available, text
from fimoda_lib.datasets.encoders import additive, cached_task, first_position, text_classifier
from fimoda_lib.datasets.sentences import N_TEST
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.tasks import cross_entropy, parameters_of, take


def minilm(data_dir: str | None, n: int) -> Task:
    """n sentences with MiniLM, its lower layers cached."""
    rows = torch.randperm(1200, generator=torch.Generator().manual_seed(0))[:n]
    if available("sst2", data_dir):
        return cached_task(load_task("sst2", data_dir), rows=rows, test_rows=[0], progress=False)
    generated = load_task("sentences")
    encoder, tokenizer = text.load_minilm()
    words = [*generated.train_table["sentence"], *generated.test_table["sentence"]]
    tokens = tokenizer(words, padding="longest", return_tensors="pt")
    inputs = {"tokens": tokens["input_ids"], "mask": tokens["attention_mask"].bool()}
    parts = [
        ({k: v[which] for k, v in inputs.items()}, targets)
        for which, (_, targets) in [(slice(-N_TEST), generated.train), (slice(-N_TEST, None), generated.test)]
    ]
    task = Task("generated", text_classifier(encoder), cross_entropy, *parts, title="generated sentences")
    return cached_task(task, rows=rows, test_rows=[0], progress=False)


def timed(action: Callable, repeats: int = 3) -> tuple[float, object]:
    """The shortest of some times in seconds, and what came out."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - started)
    return min(times), result


def one_after_another(task: Task, v: Tensor, trim: bool) -> Tensor:
    """Products [n] of loss gradients with v, by one backward pass for each instance."""
    model = copy.deepcopy(task.model).eval()
    params, rows = list(model.parameters()), []
    for i in range(task.n_train):
        inputs, target = take(task.train, slice(i, i + 1))
        if trim:
            inputs = {k: v[:, : int(inputs["mask"].sum())] for k, v in inputs.items()}
        found = torch.autograd.grad(task.loss(model(inputs), target)[0], params)
        rows.append(torch.cat([g.flatten() for g in found]) @ v)
    return torch.stack(rows)


def compare_gradients(task: Task, what: str) -> None:
    at = Gradients(task, parameters_of(task.model), dtype=torch.float32)
    rows = torch.arange(task.n_train)

    v = torch.randn(at.n_params, generator=torch.Generator().manual_seed(0))

    def at_once() -> Tensor:
        return torch.cat([at.of_losses(at.train(piece)) @ v for piece in rows.split(at.block_size())])

    ours, found = timed(at_once)
    trimmed, expected = timed(lambda: one_after_another(task, v, trim=True))
    padded, _ = timed(lambda: one_after_another(task, v, trim=False))
    error = ((found - expected).norm() / expected.norm()).item()
    L, tokens = task.train[0]["mask"].shape[1], task.train[0]["mask"].sum(1).float().mean()
    print(
        f"{what}: {task.n_train} sentences of {tokens:.1f} tokens, padded to {L}; {at.n_params} parameters\n"
        f"  all at once {ours:7.3f} s; one after another, without padding {trimmed:7.3f} s: {trimmed / ours:5.1f} x; "
        f"with padding {padded:7.3f} s: {padded / ours:5.1f} x (relative difference {error:.1e})",
        flush=True,
    )


def compare_last_layers(task: Task) -> None:
    model = copy.deepcopy(task.model).eval()
    (layer,) = model.layers
    inputs, targets = take(task.train, slice(0, 64))
    mask = additive(inputs["mask"], torch.float32)

    def step(state: Callable) -> Callable:
        def run() -> list[Tensor]:
            loss = task.loss(model.head(state()), targets).mean()
            return torch.autograd.grad(loss, list(model.parameters()))

        return run

    cls, found = timed(step(lambda: first_position(layer, inputs["hidden"], mask)), 10)
    full, expected = timed(step(lambda: layer(inputs["hidden"], mask)[:, 0]), 10)
    error = max(((a - b).norm() / b.norm().clamp(min=1e-3)).item() for a, b in zip(found, expected, strict=True))
    print(
        f"one step of {len(targets)}: [CLS] alone {cls:.3f} s, all positions {full:.3f} s: {full / cls:.1f} x "
        f"(relative difference of the gradients {error:.1e})"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--sentences", type=int, default=256, help="how many gradients")
    chosen = options.parse_args()
    print(f"{torch.get_num_threads()} threads")
    cached = minilm(chosen.data, chosen.sentences)
    compare_gradients(cached, f"MiniLM's last layer, {cached.title}")
    small = load_task("sentences")
    small = Task(small.name, small.model, small.loss, take(small.train, slice(chosen.sentences)), small.test)
    compare_gradients(small, "a whole small transformer")
    compare_last_layers(cached)


if __name__ == "__main__":
    main()
