"""How much faster are the methods for all test instances at once than one test instance after another?

    python benchmarks/methods.py [--data DIR] [--plain 2] [--depth 5000]

On the Energy data (77 test and 691 training instances, 17,793 parameters). The plain ways are timed on the first
`--plain` test instances and scaled to all of them, since each test instance costs them the same:
  * CG: scipy's conjugate gradients, Gauss-Newton products by one forward and one backward pass over all data each;
  * LiSSA: the recursion with one product per batch and test instance;
  * DataInf: the sum over training instances, one by one.
Both ways get the same damping and tolerance, and their results are compared.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import cg as scipy_cg
from torch.func import functional_call, grad, jvp, vjp

from fimoda_lib import Task, attribute, load_task, train_final_model
from fimoda_lib.datasets import available
from fimoda_lib.datasets.models import mlp
from fimoda_lib.tasks import squared_error


def energy(data_dir: str | None) -> Task:
    if available("energy", data_dir):
        return load_task("energy", data_dir)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(768, 8, generator=g), torch.randn(768, 1, generator=g)
    return Task("random", mlp(8, 1), squared_error, train=(x[:691], y[:691]), test=(x[691:], y[691:]))


class OneByOne:
    """The plain way: parameters as a dict, one autograd call per product."""

    def __init__(self, task: Task, params: dict) -> None:
        self.model, self.task = task.model, task
        self.params = {k: p.double() for k, p in params.items()}
        self.model = self.model.double()
        self.x, self.y = (t.double() for t in task.train)

    def flat(self, tree: dict) -> torch.Tensor:
        return torch.cat([tree[k].flatten() for k in self.params])

    def tree(self, flat: torch.Tensor) -> dict:
        pieces = flat.split([p.numel() for p in self.params.values()])
        return {k: v.view_as(p) for (k, p), v in zip(self.params.items(), pieces, strict=True)}

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.flat(
            grad(lambda p: self.task.loss(functional_call(self.model, p, (x[None],)), y[None])[0])(self.params)
        )

    def product(self, v: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        x = self.x[rows]

        def outputs(p: dict) -> torch.Tensor:
            return functional_call(self.model, p, (x,))

        pushed = jvp(outputs, (self.params,), (self.tree(v),))[1]
        return self.flat(vjp(outputs, self.params)[1](2 * pushed / len(x))[0])  # squared error: second derivative 2


def timed(action) -> tuple[float, object]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--plain", type=int, default=2, help="test instances for the plain ways")
    options.add_argument("--depth", type=int, default=5000, help="steps of LiSSA")
    chosen = options.parse_args()
    task = energy(chosen.data)
    params = train_final_model(
        task, optimizer="sgd", learning_rate=0.3, epochs=100, batch_size=128, seed=0, progress=False
    )
    plain = OneByOne(load_task("energy", chosen.data) if task.name == "energy" else task, params)
    tests = [plain.gradient(x.double(), y.double()) for x, y in zip(*task.test, strict=True)][: chosen.plain]
    gradients = torch.stack([plain.gradient(x, y) for x, y in zip(plain.x, plain.y, strict=True)])
    print(
        f"{task.name}: {task.n_test} test x {task.n_train} training instances, {gradients.shape[1]} parameters, "
        f"{torch.get_num_threads()} threads"
    )

    def report(name: str, ours, plain_way) -> None:
        fast, scores = timed(ours)
        slow, vectors = timed(lambda: [plain_way(g) for g in tests])
        expected = torch.stack(vectors) @ gradients.T
        got = torch.from_numpy(scores.values[: len(tests)]).double()
        error = ((got - expected).norm() / expected.norm()).item()
        slow *= task.n_test / len(tests)
        print(
            f"{name:8} all at once {fast:7.2f} s; one after another {slow:9.1f} s: {slow / fast:7.1f} x "
            f"(relative difference of the scores {error:.1e})",
            flush=True,
        )

    damping, tolerance = float(attribute("cg", task, params, multiple=1000).attrs["damping"]), 1e-5

    def one_cg(g: torch.Tensor) -> torch.Tensor:
        operator = LinearOperator(
            (len(g), len(g)),
            dtype=np.float64,
            matvec=lambda v: (
                plain.product(torch.from_numpy(np.ascontiguousarray(v))) + damping * torch.from_numpy(v)
            ).numpy(),
        )
        return torch.from_numpy(scipy_cg(operator, g.numpy(), rtol=tolerance)[0])

    report("CG", lambda: attribute("cg", task, params, damping=damping, tolerance=tolerance), one_cg)

    def one_lissa(g: torch.Tensor) -> torch.Tensor:
        generator, h = torch.Generator().manual_seed(0), g.clone()
        for _ in range(chosen.depth):
            rows = torch.randint(task.n_train, (128,), generator=generator)
            h = g + h - (plain.product(h, rows) + damping * h) / 20
        return h / 20

    report("LiSSA", lambda: attribute("lissa", task, params, damping=damping, scale=20, depth=chosen.depth), one_lissa)

    layers = gradients.split([p.numel() for p in plain.params.values()], dim=1)
    dampings = [layer.square().mean().item() / 10 for layer in layers]

    def one_datainf(g: torch.Tensor) -> torch.Tensor:
        pieces = []
        for part, layer, damping in zip(g.split([la.shape[1] for la in layers]), layers, dampings, strict=True):
            total = torch.zeros_like(part)
            for g_j in layer:
                total += (part - (part @ g_j) / (damping + g_j @ g_j) * g_j) / damping
            pieces.append(total / len(layer))
        return torch.cat(pieces)

    report("DataInf", lambda: attribute("datainf", task, params, scale=10.0), one_datainf)

    def with_gradients(g: torch.Tensor) -> torch.Tensor:
        for x, y in zip(plain.x, plain.y, strict=True):
            plain.gradient(x, y)
        return one_datainf(g)

    print("and if the plain way computes the training gradients anew for each test instance, not keeping them:")
    report("DataInf", lambda: attribute("datainf", task, params, scale=10.0), with_gradients)


if __name__ == "__main__":
    main()
