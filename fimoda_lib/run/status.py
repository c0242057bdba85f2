"""What of a profile's work is done, running and missing, and how long the rest will take: `run_all.sh status`.

Nothing is computed, and no result is read: shards are asked for by name, and durations come from their sidecars.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets import DataFileError
from ..experiments.panel import PAPER_METHODS, Panel, one_retraining, one_seed
from ..paper.studied import STUDIES, path_of
from ..storage.folders import is_running
from ..storage.store import StoreError, asked, read_sidecar
from ..training.ensembles import OPTIMIZERS

FOLLOWED = ("lft", "timed")  # methods that follow the panel's own further training


@dataclass
class Line:
    """One kind of piece of one data set.

    Args:
        pieces: how many there are.
        paths: their files, as far as they can be named: further training and scores depend on the final model.
        problem: why they cannot be named.
    """

    label: str
    pieces: int
    paths: list[Path] = field(default_factory=list)
    problem: str = ""

    @property
    def done(self) -> list[Path]:
        return [path for path in self.paths if path.exists()]

    @property
    def running(self) -> int:
        return sum(is_running(path) for path in self.paths if not path.exists())

    @property
    def missing(self) -> int:
        return self.pieces - len(self.done) - self.running

    @property
    def seconds_each(self) -> float:
        """The median duration of the finished pieces; NaN if there are none."""
        durations = [seconds for path in self.done if not math.isnan(seconds := seconds_of(path))]
        return statistics.median(durations) if durations else math.nan

    @property
    def seconds_left(self) -> float:
        """For what is missing and what is running, each counted whole."""
        left = self.missing + self.running
        return left * self.seconds_each if left else 0.0


def lines(work: list[tuple[str, str]], profile: str, results: Path | str) -> Iterator[Line]:
    """The pieces behind a list of (data set, kind): "final model", "scores", "retraining", further training with the
    optimiser of that name, "lft, <optimizer>" or "timed, <optimizer>", or the study behind the figure of that name."""
    for dataset, kind in work:
        further, optimizer = kind in OPTIMIZERS, optimizer_of(kind)
        what = "further training" if further else f"study, {kind}" if kind in STUDIES else follower(kind) or kind
        label = ", ".join([what, dataset, *([optimizer] if further or follower(kind) else [])])
        pieces = len(PAPER_METHODS) if kind == "scores" else 1
        panel = Panel(dataset, profile, optimizer, results=results, compute=False)
        try:
            if further:
                pieces = len(panel.settings.seeds)
            elif kind == "scores":
                pieces = len(panel.methods)
            elif kind == "retraining":
                pieces = len(panel.settings.retrain_seeds)
            yield Line(label, pieces, files_of(panel, kind))
        except (DataFileError, StoreError) as problem:
            yield Line(label, pieces, problem=str(problem))


def follower(kind: str) -> str | None:
    """The method of `FOLLOWED` in "<method>, <optimizer>"; None for other kinds."""
    method = kind.split(", ")[0]
    return method if method in FOLLOWED else None


def optimizer_of(kind: str) -> str:
    """The optimiser whose further training a kind of piece is, or follows; "sgd" where it does neither."""
    last = kind.split(", ")[-1]
    return last if last in OPTIMIZERS else "sgd"


def files_of(panel: Panel, kind: str) -> list[Path]:
    """The files of all pieces of one kind; none if their names depend on a final model that is not there yet."""
    _ = panel.task  # loaded now: inside `asked` nothing is
    if kind == "retraining":
        return [asked(lambda s=seed: one_retraining(panel, s).retrained) for seed in panel.settings.retrain_seeds]
    final = asked(lambda: panel.params)
    if kind == "final model":
        return [final]
    if not final.exists():
        return []
    _ = panel.params  # read now: inside `asked` nothing is
    if kind in STUDIES:
        return [path_of(kind, panel)]
    if method := follower(kind):
        return [asked(lambda: panel.scores(method))]
    if kind == "scores":
        return [asked(lambda m=method: panel.scores(m)) for method in panel.methods]
    return [asked(lambda s=seed: one_seed(panel, s).gold) for seed in panel.settings.seeds]


def seconds_of(path: Path) -> float:
    """How long a finished piece took, from its sidecar; NaN if that does not say."""
    try:
        return float(read_sidecar(path)["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan


def table(found: list[Line]) -> str:
    """The lines as text, and the time left in one sentence."""
    rows = [("", "done", "running", "missing", "each takes", "left")]
    for line in found:
        counts = (len(line.done), line.running, line.missing)
        left = duration(line.seconds_left) if line.missing + line.running else "-"
        rows.append((line.label, *map(str, counts), duration(line.seconds_each), left))
    width = max(len(row[0]) for row in rows)
    text = [f"{row[0]:{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
    text += [f"{line.label}: {line.problem}" for line in found if line.problem]
    known = [line.seconds_left for line in found if not math.isnan(line.seconds_left)]
    unknown = [line.label for line in found if math.isnan(line.seconds_left)]
    if sum(known) or unknown:
        text.append(
            f"\nLeft: about {duration(sum(known))}, one piece at a time, as long as the finished ones of its kind took"
            + (f"; not counted, because none of their kind is finished: {'; '.join(unknown)}." if unknown else ".")
        )
    else:
        text.append("\nAll of this is done; figures are drawn from it in a minute or two.")
    return "\n".join(text)


def duration(seconds: float) -> str:
    """As a person would say it."""
    if math.isnan(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
