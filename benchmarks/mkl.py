"""What do MKL's kernels for Intel's processors bring on an AMD processor? run_all.sh preloads what makes MKL take them.

    ./run_all.sh status    # any start makes that library
    .venv/bin/python benchmarks/mkl.py [--rounds 3]

By turns, each in a process of its own with one thread: batched matrix products of the shapes of further training on
Energy, forwards and for the gradient, and milliseconds of a model-step of further training (100 instances left out).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build" / "mkl" / "answers_intel.so"
REPLICAS, BATCH, INPUTS, WIDTH = 34, 128, 8, 128


def best(function, repeats: int = 20) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def products() -> float:
    """GFLOP/s of the products of a step: of every layer, forwards and for the gradient of its weights."""
    flops, seconds = 0, 0.0
    for inputs, outputs in ((INPUTS, WIDTH), (WIDTH, WIDTH)):
        x, w, g = (torch.randn(REPLICAS, *shape) for shape in ((BATCH, inputs), (inputs, outputs), (BATCH, outputs)))
        for a, b in ((x, w), (x.transpose(1, 2), g)):
            seconds += best(lambda a=a, b=b: torch.bmm(a, b))
            flops += 2 * REPLICAS * BATCH * inputs * outputs
    return flops / seconds / 1e9


def step() -> float:
    """Milliseconds of a model-step, of a run that was compiled before."""
    from fimoda_lib import Task, further_train, squared_error
    from fimoda_lib.datasets.models import mlp
    from fimoda_lib.tasks import parameters_of

    x, y = torch.randn(691, INPUTS), torch.randn(691, 1)
    task = Task("random", mlp(INPUTS, 1), squared_error, train=(x, y), test=(x[:77], y[:77]))
    taken = {}
    for epochs in (5, 10, 60):  # the first compiles
        started = time.perf_counter()
        further_train(
            task, parameters_of(task.model), optimizer="sgd", learning_rate=3e-4, batch_size=BATCH, epochs=epochs,
            seeds=[0], left_out=range(100), compile=True, progress=False,
        )  # fmt: skip
        taken[epochs] = time.perf_counter() - started
    return 1e3 * (taken[60] - taken[10]) / (50 * 6 * 101)


def measured(preload: str) -> list[float]:
    """What `--measure` prints in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"OMP_NUM_THREADS": "1", "LD_PRELOAD": preload, "PYTHONPATH": path}
    variables |= {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(products(), step())
        return
    if not LIBRARY.exists():
        sys.exit(f"mkl.py: {LIBRARY.name} is not there; ./run_all.sh makes it, on AMD processors with AVX2.")
    rounds = [(measured(""), measured(str(LIBRARY))) for _ in range(options.rounds)]
    print(f"one thread, {REPLICAS} replicas, torch {torch.__version__}; medians of {options.rounds} rounds")
    for k, (what, unit) in enumerate((("batched products", "GFLOP/s"), ("a model-step of further training", "ms"))):
        before, after = (statistics.median(r[side][k] for r in rounds) for side in (0, 1))
        ratio = statistics.median(b[k] / a[k] if unit == "GFLOP/s" else a[k] / b[k] for a, b in rounds)
        print(f"{what:33s}{before:8.3g} {unit}, with Intel's kernels {after:.3g}: {ratio:.2f} x as fast")


if __name__ == "__main__":
    main()
