"""How fast is further training, against the plain PyTorch loop and against the machine's own limit?

    python benchmarks/further_training.py [--data DIR] [--epochs 10] [--memory]

On the Energy data (a random stand-in of the same shape if the file is not here) it prints, from one run:
  * milliseconds per model-step of the plain loop (one model, DataLoader, optimiser object) and of `further_train`,
    evaluation included in both, and their ratio;
  * a bank of 100 random groups against 100 single instances;
  * the cost against the number of replicas trained together;
  * `drop` against `mask` on inputs as wide as those of Folktables, and against the products alone;
  * the share of the machine's measured matrix-product throughput that is reached, and where the rest goes;
  * with --memory, the peak memory of 101 replicas x 500 epochs x 77 test instances (a minute or two more).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Iterator

os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))  # as run_all.sh does; read when the process starts
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from fimoda_lib import Task, further_train, load_task
from fimoda_lib.datasets import available
from fimoda_lib.datasets.models import mlp
from fimoda_lib.experiments.subsets import random_subsets
from fimoda_lib.tasks import cross_entropy, parameters_of, squared_error, take
from fimoda_lib.training.ensembles import Ensemble, Optimizer
from fimoda_lib.training.minibatches import run_batches

BATCH, RATE, WIDTH = 128, 3e-2, 128


def energy(data_dir: str | None) -> Task:
    if available("energy", data_dir):
        return load_task("energy", data_dir)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(768, 8, generator=g), torch.randn(768, 1, generator=g)
    return Task("random", mlp(8, 1), squared_error, train=(x[:691], y[:691]), test=(x[691:], y[691:]))


def plain_loop(task: Task, optimizer: str, epochs: int) -> float:
    """Milliseconds per step of the usual loop, evaluating the test losses after each epoch."""
    data = TensorDataset(*task.train)
    loader = DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(0)))
    model = mlp(task.train[0].shape[1], 1)
    rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](model.parameters(), lr=RATE / 100)
    times = []
    for _ in range(epochs):
        started, steps = time.perf_counter(), 0
        for x, y in loader:
            rule.zero_grad()
            task.loss(model(x), y).mean().backward()
            rule.step()
            steps += 1
        with torch.no_grad():
            task.loss(model(task.test[0]).double(), task.test[1].double())
        times.append((time.perf_counter() - started) / steps)
    return statistics.median(times) * 1e3


def ours(task: Task, optimizer: str, epochs: int, share: float = 0.0, removal: str = "drop") -> float:
    """Milliseconds per model-step of `further_train` with 101 replicas; the second seed, when all is compiled.

    Args:
        share: of the training instances, in groups that are left out; 0 leaves single instances out.
    """
    singles = range(0, 700, 7)[:100] if task.n_train > 693 else [*range(0, 690, 7), 690][:100]
    gold = further_train(
        task,
        parameters_of(task.model),
        optimizer=optimizer,
        learning_rate=RATE / 100,
        batch_size=BATCH,
        epochs=epochs,
        seeds=[0, 1, 2],
        left_out=random_subsets(task.n_train, share, 100) if share else singles,
        removal=removal,
        compile=True,
        progress=False,
    )
    steps = 101 * epochs * gold.attrs["steps_per_epoch"]
    return float(gold.seconds[1:].min()) / steps * 1e3


def cost_against_replicas(task: Task, sizes: list[int]) -> dict[int, float]:
    """Milliseconds per model-step of one compiled ensemble, without evaluation."""
    g = torch.Generator().manual_seed(0)
    result = {}
    for size in sizes:
        ensemble = Ensemble(task, parameters_of(task.model), size, Optimizer("sgd", RATE / 100), compile=size > 1)
        rows = torch.randint(task.n_train, (size, BATCH), generator=g)
        weights = torch.full((size, BATCH), 1 / BATCH)
        result[size] = repeat(lambda e=ensemble, r=rows, w=weights: e.step(take(task.train, r), w)) / size
    return result


def gemm_limit(replicas: int, inputs: int = 8, outputs: int = 1) -> float:
    """Milliseconds per model-step if only the matrix products were done, at the throughput of batched products."""
    a, b = torch.randn(replicas, BATCH, WIDTH), torch.randn(replicas, WIDTH, WIDTH)
    per_product = repeat(lambda: torch.bmm(a, b)) / replicas
    forward_and_backward = 3 * WIDTH + 2 * inputs + 3 * outputs  # no gradient in the data
    return per_product * forward_and_backward / WIDTH


def removals_on_wide_inputs(replicas: int = 34) -> None:
    """Milliseconds per model-step of `mask` and `drop`, in turns, on data of Folktables' shape; and of products."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30_085, 791, generator=g), torch.randint(2, (30_085,), generator=g)
    params = parameters_of(mlp(791, 2))
    task = Task("wide", mlp(791, 2), cross_entropy, train=(x, y), test=(x[:1], y[:1]))
    taken: dict[str, list[float]] = {"mask": [], "drop": []}
    steps = {}
    for removal in taken:
        ensemble = Ensemble(task, params, replicas, Optimizer("sgd", RATE / 100), compile=True)
        batches = run_batches(task.n_train, BATCH, torch.arange(replicas), 0, removal=removal)

        def step(ensemble: Ensemble = ensemble, batches: Iterator = batches) -> None:
            rows, weights = next(batches)
            ensemble.step(take(task.train, rows.reshape(-1, rows.shape[-1])), weights.to(ensemble.dtype))

        steps[removal] = step
    for _ in range(3):
        for removal, step in steps.items():
            taken[removal].append(repeat(step) / replicas)
    mask, drop = (min(times) for times in taken.values())
    print(
        f"Folktables' shape, {replicas} replicas: mask {mask:.3f} ms per model-step, drop {drop:.3f}, "
        f"{drop / mask:.2f} x; batched products alone {gemm_limit(replicas, 791, 2):.3f}"
    )


def where_time_goes(task: Task, replicas: int) -> None:
    """The operators that take the most time in a step that is not compiled."""
    ensemble = Ensemble(task, parameters_of(task.model), replicas, Optimizer("sgd", RATE / 100))
    rows, weights = torch.randint(task.n_train, (replicas, BATCH)), torch.full((replicas, BATCH), 1 / BATCH)
    ensemble.step(take(task.train, rows), weights)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(10):
            ensemble.step(take(task.train, rows), weights)
    events = sorted(watched.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    for e in events[:6]:
        print(f"    {e.key:36}{e.self_cpu_time_total / total:6.0%}")


def repeat(action, seconds: float = 1.0) -> float:
    """Median milliseconds of an action."""
    action(), action()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--memory", action="store_true", help="also measure peak memory at full size")
    chosen = options.parse_args()
    torch._dynamo.config.recompile_limit = 64
    task = energy(chosen.data)
    print(
        f"{task.name}: {task.n_train} training instances, batches of {BATCH}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    for optimizer in ("sgd", "adam"):
        plain, together = plain_loop(task, optimizer, 5 * chosen.epochs), ours(task, optimizer, chosen.epochs)
        print(
            f"{optimizer:5} plain loop {plain:.3f} ms per step; further_train, 101 replicas {together:.4f} ms per "
            f"model-step: {plain / together:.1f} x"
        )
    for removal in ("mask", "drop"):
        taken: dict[float, list[float]] = {0.0: [], 0.1: [], 0.5: []}
        for _ in range(3):  # in turns: what else the machine does falls on all
            for share, times in taken.items():
                times.append(ours(task, "sgd", 3 * chosen.epochs, share, removal))
        single, *groups = (min(times) for times in taken.values())
        ratios = ", ".join(f"{group / single:.2f} x" for group in groups)
        print(f"{removal}: 100 groups of 10 %, of 50 %, against 100 single instances: {ratios} the time")
    limit = gemm_limit(34)
    print("replicas trained together -> ms per model-step (SGD, no evaluation):")
    for size, cost in cost_against_replicas(task, [1, 5, 10, 20, 34, 50, 101, 200, 400]).items():
        print(f"    {size:4} {cost:8.4f}   {limit / cost:5.0%} of the throughput of batched matrix products")
    removals_on_wide_inputs()
    print("operators of an uncompiled step:")
    where_time_goes(task, 34)
    if chosen.memory:
        further_train(
            task,
            parameters_of(task.model),
            optimizer="sgd",
            learning_rate=RATE,
            batch_size=BATCH,
            epochs=500,
            seeds=[0],
            left_out=[*range(0, 690, 7), 690][:100],
            progress=False,
        )
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
