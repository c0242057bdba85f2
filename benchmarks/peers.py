"""How fast, how large and how exact are our methods beside the peers that the tests install?

    python benchmarks/peers.py [--data DIR] [--datasets energy fico] [--rounds 3]

Every measurement is a process of its own, ours and the peer's in alternation, in float32, on all cores that torch uses.
Printed are the shortest time of the call, the memory it took above what the process held before, and the error: the
relative distance to our float64 scores (which the tests compare with oracles); for TRAK, whose scale is arbitrary, one
minus the cosine, and traker's is that between two random projections.

Peers: EK-FAC by kronfluence (empirical Fisher and heuristic damping in both), TRAK by traker (512 dimensions in both).
Grad-Dot and CG have no installed peer; their own numbers are printed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fimoda_lib import Task, attribute, load_task, train_final_model
from fimoda_lib.tasks import Params, take

EKFAC = {"fisher": "empirical"}
TRAK = {"dimension": 512}
HYPER = {"grad_dot": {}, "cg": {"multiple": 100.0}, "ekfac": EKFAC, "trak": TRAK}
PEERS = {"ekfac": "kronfluence", "trak": "traker"}
MODULES = {"kronfluence": "kronfluence", "traker": "trak"}  # what is imported
N_TEST = 100


def problem(dataset: str, data: str | None) -> tuple[Task, Params]:
    """A data set's first test instances, and a model that has been trained a little."""
    task = load_task(dataset, data)
    task = Task(task.name, task.model, task.loss, task.train, take(task.test, slice(0, N_TEST)))
    training = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 5, "batch_size": 128, "seed": 0}
    return task, train_final_model(task, **training, progress=False)


def ours(method: str, dtype: str, **hyper) -> Callable[[Task, Params], np.ndarray]:
    def scores(task: Task, params: Params) -> np.ndarray:
        return attribute(method, task, params, **HYPER[method], dtype=dtype, **hyper).values

    return scores


def kronfluence(task: Task, params: Params) -> np.ndarray:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as PeerTask

    class Summed(PeerTask):
        def compute_train_loss(self, batch, model, sample=False):
            return task.loss(model(batch[0]), batch[1]).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    train, test = (torch.utils.data.TensorDataset(*part) for part in (task.train, task.test))
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_model(loaded(task, params), Summed())
        quiet = {"cpu": True, "disable_tqdm": True, "disable_model_save": True}
        analyzer = Analyzer("peer", model, Summed(), output_dir=folder, **quiet)
        factors = FactorArguments(use_empirical_fisher=True)
        analyzer.fit_all_factors("factors", train, per_device_batch_size=512, factor_args=factors)
        batches = {"per_device_query_batch_size": N_TEST, "per_device_train_batch_size": 512}
        how = ScoreArguments(damping_factor=None)
        analyzer.compute_pairwise_scores("scores", "factors", test, train, score_args=how, **batches)
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()


def traker(task: Task, params: Params) -> np.ndarray:
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput, ImageClassificationModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class Output(AbstractModelOutput):
        """For squared error: the output f itself, with the derivative 2(f - y)."""

        def __init__(self):
            pass

        @staticmethod
        def get_output(model, weights, buffers, x, y):
            return torch.func.functional_call(model, (weights, buffers), x[None]).sum()

        def get_out_to_loss_grad(self, model, weights, buffers, batch):
            return 2 * (torch.func.functional_call(model, (weights, buffers), batch[0]) - batch[1]).detach()

    regression = task.kind == "regression"
    model = loaded(task, params)
    n_params = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        peer = TRAKer(
            model,
            Output() if regression else ImageClassificationModelOutput(),
            task.n_train,
            save_dir=folder,
            device="cpu",
            use_half_precision=False,
            projector=BasicProjector(n_params, TRAK["dimension"], 0, ProjectionType.rademacher, "cpu", 100),
            logging_level=100,
        )
        peer.load_checkpoint(model.state_dict(), model_id=0)
        for start in range(0, task.n_train, 512):
            piece = take(task.train, slice(start, start + 512))
            peer.featurize(piece, inds=np.arange(start, start + len(piece[1])))
        peer.finalize_features()
        peer.start_scoring_checkpoint("test", model.state_dict(), model_id=0, num_targets=task.n_test)
        peer.score(task.test, num_samples=task.n_test)
        found = np.array(peer.finalize_scores("test")).T
    if not regression:
        return found
    with torch.no_grad():  # of the model output so far; of its loss with the derivative of that
        return found * (2 * (model(task.test[0]) - task.test[1])).numpy()


def loaded(task: Task, params: Params) -> torch.nn.Module:
    model = copy.deepcopy(task.model)
    model.load_state_dict(params)
    return model


def measure(method: str, who: str, dataset: str, data: str | None, target: Path) -> None:
    """In a process of its own: the scores to a file, seconds and bytes to the standard output."""
    precise = ours(method, "float64", **({"tolerance": 1e-12} if method == "cg" else {}))
    runs = {"ours": ours(method, "float32"), "exact": precise, "kronfluence": kronfluence, "traker": traker}
    task, params = problem(dataset, data)
    rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    scores = runs[who](task, params)
    seconds = time.perf_counter() - started
    np.save(target, scores)
    print(json.dumps({"seconds": seconds, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rest) / 1024}))


def in_a_process(method: str, who: str, dataset: str, data: str | None) -> tuple[dict, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scores.npy"
        command = [sys.executable, __file__, "--measure", method, who, dataset, str(target)]
        command += ["--data", data] if data else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{who} fails at {method} on {dataset}:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1]), np.load(target)


def error(method: str, found: np.ndarray, expected: np.ndarray) -> float:
    if method == "trak":
        return 1 - float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder with data files")
    options.add_argument("--datasets", nargs="+", default=["energy", "fico"])
    options.add_argument("--methods", nargs="+", default=list(HYPER), choices=HYPER)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        method, who, dataset, target = chosen.measure
        return measure(method, who, dataset, chosen.data, Path(target))
    print(f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}, best of {chosen.rounds}")
    print(f"{'':10}{'':10}{'':12}{'seconds':>9}{'MiB':>7}{'error':>10}{'peer / ours':>13}")
    for dataset in chosen.datasets:
        for method in chosen.methods:
            peer = PEERS.get(method)
            installed = peer and importlib.util.find_spec(MODULES[peer])
            _, expected = in_a_process(method, "exact", dataset, chosen.data)
            found: dict[str, list] = {who: [] for who in ("ours", *([peer] if installed else []))}
            for _ in range(chosen.rounds):  # in alternation: what else the machine does falls on both
                for who, rounds in found.items():
                    rounds.append(in_a_process(method, who, dataset, chosen.data))
            fastest = {who: min(numbers["seconds"] for numbers, _ in rounds) for who, rounds in found.items()}
            for who, rounds in found.items():
                memory = min(numbers["mib"] for numbers, _ in rounds)
                ratio = "" if who == "ours" else f"{fastest[who] / fastest['ours']:.1f}"
                off = error(method, rounds[0][1], expected)
                print(
                    f"{dataset:10}{method:10}{who:12}{fastest[who]:9.2f}{memory:7.0f}{off:10.1e}{ratio:>13}", flush=True
                )


if __name__ == "__main__":
    main()
