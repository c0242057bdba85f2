"""What a profile computes, cut into shards: each is one file of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..experiments.panel import Panel, one_retraining, one_seed
from ..paper.studied import STUDIES, noted, path_of
from ..storage.store import Missing, asked
from ..tasks import Task
from ..training.ensembles import OPTIMIZERS
from .status import FOLLOWED, follower, optimizer_of

# In this order: long shards before short ones.
KINDS = ("final model", "retraining", "further training", "study", "scores")
LONGEST = ("lft", "lissa", "cg", "lissa_h")  # of scores
ALL_STUDIES = "studies"  # of a data set, whose time is told as one


@dataclass(frozen=True)
class Shard:
    """One file of the store, described in a few words that mean the same on every machine.

    Args:
        kind: one of `KINDS`.
        part: the seed of further training or re-training, the method of scores, the figure of a study; None for the
            final model.
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
        follows = self.kind == "further training" or self.part in FOLLOWED
        part = [] if self.part is None else [f"seed {self.part}" if isinstance(self.part, int) else self.part]
        return ", ".join([self.kind, self.dataset, *([self.optimizer] if follows else []), *part])

    @property
    def counts_as(self) -> str:
        """The kind, of those of `status.lines`, that it is a piece of; studies are not told apart."""
        if self.kind == "further training":
            return self.optimizer
        if self.part in FOLLOWED:
            return f"{self.part}, {self.optimizer}"
        return ALL_STUDIES if self.kind == "study" else self.kind

    @property
    def needs_final_model(self) -> bool:
        return self.kind in ("further training", "study", "scores")

    def panel(self, compute: bool) -> Panel:
        """The panel that the shard is a piece of."""
        where = (self.results, self.data_dir)
        task = _task(self.dataset, self.profile, *where)
        return Panel(self.dataset, self.profile, self.optimizer, *where, compute, given_task=task)

    def piece(self, panel: Panel) -> Callable[[], Any]:
        """What loads the shard, or computes and stores it."""
        return {
            "final model": lambda: panel.params,
            "retraining": lambda: one_retraining(panel, self.part).retrained,
            "further training": lambda: one_seed(panel, self.part).gold,
            "study": lambda: noted(self.part, panel, STUDIES[self.part]),
            "scores": lambda: panel.scores(self.part),
        }[self.kind]

    def path(self, panel: Panel) -> Path:
        """The shard's file.

        Raises:
            Missing: its name depends on a final model that is not there, and is not to be computed.
        """
        if self.needs_final_model:
            _ = panel.params  # read now: inside `asked` nothing is
        if self.kind == "study":
            return path_of(self.part, panel)
        return asked(self.piece(panel))

    @property
    def stored(self) -> bool:
        try:
            return self.path(self.panel(compute=False)).exists()
        except Missing:
            return False


@lru_cache(maxsize=8)  # more than a profile has data sets: they are asked for in turns
def _task(dataset: str, profile: str, results: str, data_dir: str | None) -> Task:
    return Panel(dataset, profile, results=results, data_dir=data_dir).task


def shards_of(
    work: Iterable[tuple[str, str]], profile: str, results: Path | str, data_dir: Path | str | None = None
) -> list[Shard]:
    """The shards behind a list of (data set, kind), the kinds being those of `status.lines`."""
    where = {"profile": profile, "results": str(Path(results).resolve())}
    where["data_dir"] = None if data_dir is None else str(Path(data_dir).resolve())
    found = []
    for dataset, kind in work:
        if kind in OPTIMIZERS:
            panel = Shard(dataset, kind="further training", optimizer=kind, **where).panel(compute=False)
            found += [
                Shard(dataset, kind="further training", optimizer=kind, part=seed, **where)
                for seed in panel.settings.seeds
            ]
        elif kind == "retraining":
            panel = Shard(dataset, kind=kind, **where).panel(compute=False)
            found += [Shard(dataset, kind=kind, part=seed, **where) for seed in panel.settings.retrain_seeds]
        elif kind == "scores":
            panel = Shard(dataset, kind="scores", **where).panel(compute=False)
            found += [Shard(dataset, kind="scores", part=method, **where) for method in panel.methods]
        elif kind in STUDIES:
            found.append(Shard(dataset, kind="study", part=kind, **where))
        elif method := follower(kind):
            found.append(Shard(dataset, kind="scores", optimizer=optimizer_of(kind), part=method, **where))
        else:
            found.append(Shard(dataset, kind=kind, **where))
    return found


def in_turns(shards: Iterable[Shard]) -> list[Shard]:
    """Kind after kind; of studies, the same figure of one data set after the other, for those of one data set share
    pieces, and would wait for each other; of scores, the longest first: nobody is to wait for them at the end.
    """

    def turn(shard: Shard) -> int:
        if shard.kind == "study":
            return [*STUDIES].index(shard.part)
        return LONGEST.index(shard.part) if shard.part in LONGEST else len(LONGEST)

    return sorted(shards, key=lambda s: (KINDS.index(s.kind), turn(s)))
