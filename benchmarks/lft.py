"""What does LFT cost, and how near do its Hessian products come to what this machine's matrix products do?

    python benchmarks/lft.py [--dataset energy] [--data DIR] [--optimizer sgd] [--epochs 500] [--scored 100] [--every]

Prints seconds of
  * one seed of the gold standard: the full run and one without each of `--scored` instances, together;
  * the full run that LFT follows, recorded;
  * LFT with the whole Hessian (mode "split") as in the figures, for these instances, and as a share of 100 seeds; with
    `--every`, for all training instances, too (the difference of parameters is carried for each);
  * LFT with G alone (mode "one_run"), for all training instances;
  * and the floating-point operations per second of a product of the Hessian over all training instances with as many
    vectors (those of its matrix products, as PyTorch counts them) beside those of a plain product of large matrices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from further_training import repeat
from methods import timed
from torch.utils.flop_counter import FlopCounterMode

from fimoda_lib import attribute, further_train, load_task, train_final_model
from fimoda_lib.derivatives.gradients import Gradients
from fimoda_lib.derivatives.trajectories import record_full_run
from fimoda_lib.training.minibatches import steps_per_epoch

SIDE = 2_048  # of the plain product's matrices
FINAL = dict(optimizer="sgd", learning_rate=1e-2, epochs=100, batch_size=128, seed=0, progress=False)
FURTHER = dict(learning_rate=1e-3, batch_size=128)
PRODUCTS, SEGMENTS = 120, 10  # of the whole Hessian, as in the figures
SEEDS = 100  # of the gold standard, in the paper


def throughput(action: Callable[[], object]) -> float:
    """Billions of floating-point operations per second."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops() / repeat(action) / 1e6  # repeat gives milliseconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dataset", default="energy")
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--optimizer", default="sgd")
    options.add_argument("--epochs", type=int, default=500, help="of further training")
    options.add_argument("--scored", type=int, default=100, help="training instances for the whole Hessian")
    options.add_argument("--every", action="store_true", help="the whole Hessian for all training instances, too")
    chosen = options.parse_args()
    task = load_task(chosen.dataset, chosen.data)
    params = train_final_model(task, **FINAL)
    at, scored = Gradients(task, params, dtype=torch.float32), range(min(chosen.scored, task.n_train))
    per_epoch = steps_per_epoch(task.n_train, FURTHER["batch_size"])
    steps = chosen.epochs * per_epoch
    print(
        f"{task.name}: {task.n_test} test x {task.n_train} training instances, {at.n_params} parameters, float32, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {chosen.optimizer}, {steps} steps"
    )
    run = dict(optimizer=chosen.optimizer, **FURTHER)
    gold = dict(left_out=scored, epochs=chosen.epochs, seeds=[0], progress=False, **run)
    seed, _ = timed(lambda: further_train(task, params, **gold))
    print(f"{f'one seed, {len(scored) + 1} runs':40}{seed:8.2f} s", flush=True)
    recorded, _ = timed(lambda: record_full_run(task, params, steps=[steps], progress=False, **run))
    print(f"{'one run, recorded':40}{recorded:8.2f} s", flush=True)
    split = dict(mode="split", products=PRODUCTS, segments=SEGMENTS)
    versions = {f"the whole Hessian, {len(scored)} instances": dict(split, train=scored)}
    versions |= {"the whole Hessian, all instances": split} if chosen.every else {}
    for name, extra in (versions | {"G alone, all instances": {}}).items():
        how = dict(horizon=range(per_epoch, steps + 1, per_epoch), further_training=run, dtype="float32", **extra)
        seconds, _ = timed(lambda how=how: attribute("lft", task, params, **how))
        share = f": {seconds / (SEEDS * seed):.1%} of {SEEDS} seeds" if extra else ""
        print(f"{name:40}{seconds:8.2f} s{share}", flush=True)
    square, every = torch.randn(SIDE, SIDE), at.train(torch.arange(task.n_train))
    vectors = torch.randn(len(scored), at.n_params)
    product, plain = throughput(lambda: at.hessian_products(every, vectors)), throughput(lambda: square @ square)
    print(f"Hessian products {product:.1f} GFLOP/s, a plain matrix product {plain:.1f}: {product / plain:.0%}")


if __name__ == "__main__":
    main()
