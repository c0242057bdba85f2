"""How fast is further training on a GPU, and how far from its limits?

    python benchmarks/gpu.py [--steps 200]

For the paper's tabular models (random data of the same shapes), 101 runs a seed, float32 without TF32, it prints
microseconds per model-step
  * of steps as they are, recorded as a CUDA graph and replayed (what the library does), and compiled;
  * with 1 to 20 seeds trained together;
  * if only the batched matrix products were done, at the throughput measured here, or only the parameters moved;
and how long an evaluation in float64 takes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import partial

import torch

from fimoda_lib import Task
from fimoda_lib.datasets.models import mlp
from fimoda_lib.devices import strict_arithmetic
from fimoda_lib.tasks import cross_entropy, parameters_of, squared_error, take
from fimoda_lib.training.ensembles import Ensemble, Optimizer
from fimoda_lib.training.fused import Fused
from fimoda_lib.training.minibatches import run_batches

BATCH, RUNS = 128, 100
SHAPES = {"energy": (691, 8, 1), "fico": (8883, 23, 2), "folktables": (30085, 791, 2)}
GPU = torch.device("cuda")


def task_of(name: str) -> Task:
    """Random data of a data set's shape."""
    n, features, outputs = SHAPES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n + 100, features, generator=g)
    y = torch.randn(n + 100, 1, generator=g) if outputs == 1 else torch.randint(2, (n + 100,), generator=g)
    loss = squared_error if outputs == 1 else cross_entropy
    return Task(name, mlp(features, outputs), loss, train=(x[:n], y[:n]), test=(x[n:], y[n:]))


def timed(task: Task, rule: Optimizer, seeds: int, how: str, steps: int) -> tuple[float, float]:
    """Microseconds per model-step without evaluation, and milliseconds of an evaluation."""
    size = seeds * RUNS
    ensemble = Ensemble(task, parameters_of(task.model), size, rule, device=GPU)
    if how == "as it is":
        ensemble.update = partial(ensemble.training_step, ensemble.params, ensemble.state)
    if how == "compiled":
        ensemble.update = partial(Fused(ensemble.training_step), ensemble.params, ensemble.state)
    train = tuple(t.to(GPU) for t in task.train)
    test = tuple(t.to(GPU) for t in task.test)
    removed = torch.arange(RUNS)
    batches = run_batches(task.n_train, BATCH, removed, list(range(seeds)), removal="drop", device=GPU)

    def go(count: int) -> None:
        for rows, weights in itertools.islice(filter(None, batches), count):
            ensemble.step(take(train, rows), weights.to(ensemble.dtype))

    with strict_arithmetic(GPU):
        go(task.n_train // BATCH + 2)
        per_step = clock(lambda: go(steps)) / steps / size
        evaluation = clock(lambda: [ensemble.losses(test) for _ in range(20)]) / 20
    return per_step * 1e6, evaluation * 1e3


def clock(action) -> float:
    """Seconds of an action, all of its kernels included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def limits(task: Task, size: int) -> tuple[float, float]:
    """Microseconds per model-step of the batched products alone, and of moving the parameters alone (read, written, and
    their gradients written and read)."""
    sizes = [p.shape for p in parameters_of(task.model).values() if p.dim() == 2]
    total = 0.0
    with strict_arithmetic(GPU):
        for outputs, inputs in sizes:
            w, g = (
                torch.randn(size, rows, columns, device=GPU) for rows, columns in ((outputs, inputs), (BATCH, outputs))
            )
            x = torch.randn(size, BATCH, inputs, device=GPU)
            products = [partial(torch.bmm, x, w.mT), partial(torch.bmm, g.mT, x), partial(torch.bmm, g, w)]
            if inputs == task.train[0].shape[1]:  # one batch for all replicas, and no gradient in the data
                wide, slopes = w.flatten(0, 1), g.mT.flatten(0, 1)
                products = [partial(torch.mm, x[0], wide.T), partial(torch.mm, slopes, x[0])]
            for product in products:
                product(), product()
                total += clock(lambda p=product: [p() for _ in range(20)]) / 20
    numbers = sum(p.numel() for p in parameters_of(task.model).values())
    a, b = torch.empty(2**28, device=GPU), torch.empty(2**28, device=GPU)
    b.copy_(a)
    bytes_per_second = 10 * 2 * 2**30 / clock(lambda: [b.copy_(a) for _ in range(10)])
    return total / size * 1e6, 4 * 4 * numbers / bytes_per_second * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200)
    steps = options.parse_args().steps
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; microseconds per model-step")
    for name in SHAPES:
        task = task_of(name)
        products, moved = limits(task, 404)
        print(f"{name}: products alone {products:.2f}, parameters alone {moved:.2f}")
        for optimizer, seeds, how in [
            ("sgd", 1, "as it is"),
            ("sgd", 1, "compiled"),
            *(("sgd", seeds, "replayed") for seeds in (1, 2, 4, 10, 20)),
            ("adam", 1, "replayed"),
            ("adam", 10, "replayed"),
        ]:
            try:
                found = timed(task, Optimizer(optimizer, 1e-4), seeds, how, steps)
            except torch.OutOfMemoryError:
                print(f"    {optimizer:5} {seeds:3} seeds, {how}: does not fit")
                continue
            print(
                f"    {optimizer:5} {seeds:3} seeds, {how:9} {found[0]:8.3f}; an evaluation {found[1]:.2f} ms",
                flush=True,
            )
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
