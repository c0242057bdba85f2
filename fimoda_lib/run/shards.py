"""What a profile computes, cut into shards: each is one file of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..experiments.panel import Panel, one_seed
from ..storage.store import Missing, asked
from ..tasks import Task
from ..training.ensembles import OPTIMIZERS

KINDS = ("final model", "retraining", "further training", "scores")  # in this order: long shards before short ones


@dataclass(frozen=True)
class Shard:
    """One file of the store, described in a few words that mean the same on every machine.

    Args:
        kind: one of `KINDS`.
        part: the seed of further training, the method of scores; None for the others.
    """

    dataset: str
    profile: str
    results: str
    kind: str
    optimizer: str = "sgd"
    part: int | str | None = None
    data_dir: str | None = None

    @property
    def label(self) -> str:
        """Names the shard for people, and within its profile like no other."""
        follows = self.kind == "further training" or self.part == "lft"
        part = [] if self.part is None else [f"seed {self.part}" if self.kind == "further training" else self.part]
        return ", ".join([self.kind, self.dataset, *([self.optimizer] if follows else []), *part])

    @property
    def needs_final_model(self) -> bool:
        return self.kind in ("further training", "scores")

    def shown(self, compute: bool) -> Panel:
        shown = Panel(self.dataset, self.profile, self.optimizer, self.results, self.data_dir, compute)
        vars(shown)["task"] = _task(self.dataset, self.profile, self.results, self.data_dir)
        return shown

    def piece(self, shown: Panel) -> Callable[[], Any]:
        """What loads the shard, or computes and stores it."""
        return {
            "final model": lambda: shown.params,
            "retraining": lambda: shown.retrained,
            "further training": lambda: one_seed(shown, self.part).gold,
            "scores": lambda: shown.scores(self.part),
        }[self.kind]

    def path(self, shown: Panel) -> Path:
        """The shard's file.

        Raises:
            Missing: its name depends on a final model that is not there, and is not to be computed.
        """
        if self.needs_final_model:
            _ = shown.params  # read now: inside `asked` nothing is
        return asked(self.piece(shown))

    @property
    def stored(self) -> bool:
        try:
            return self.path(self.shown(compute=False)).exists()
        except Missing:
            return False


@lru_cache(maxsize=4)
def _task(dataset: str, profile: str, results: str, data_dir: str | None) -> Task:
    return Panel(dataset, profile, results=results, data_dir=data_dir).task


def shards_of(
    work: Iterable[tuple[str, str]], profile: str, results: Path | str, data_dir: Path | str | None = None
) -> list[Shard]:
    """The shards behind a list of (data set, kind), the kinds being those of `status.lines` and "lft, <optimizer>"."""
    where = {"profile": profile, "results": str(Path(results).resolve())}
    where["data_dir"] = None if data_dir is None else str(Path(data_dir).resolve())
    found = []
    for dataset, kind in work:
        if kind in OPTIMIZERS:
            shown = Shard(dataset, kind="further training", optimizer=kind, **where).shown(compute=False)
            found += [
                Shard(dataset, kind="further training", optimizer=kind, part=seed, **where)
                for seed in shown.settings.seeds
            ]
        elif kind == "scores":
            shown = Shard(dataset, kind="scores", **where).shown(compute=False)
            found += [Shard(dataset, kind="scores", part=method, **where) for method in shown.methods]
        elif kind.startswith("lft, "):
            found.append(Shard(dataset, kind="scores", optimizer=kind.removeprefix("lft, "), part="lft", **where))
        else:
            found.append(Shard(dataset, kind=kind, **where))
    return found
