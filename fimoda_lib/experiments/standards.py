"""Stored gold standards, small enough to travel with the code: what a new method is scored against in a minute.

A file holds the final model, the sensitivities at about a dozen horizons as two means, each of half of the seeds, and
how every known method does. Its sidecar says which run made it (commit, seeds, profile) and names the data by their
checksum. In the form of `further_train`: the halves are two seeds, so that whatever compares with a gold standard takes
this one, too.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from ..checks import known, reason
from ..comparison import instance_similarity, seed_blocks, sensitivity
from ..datasets import DATASETS
from ..intervals import bands, ceiling_interval, log_spaced
from ..methods import METHODS, attribute, entry_of
from ..storage.folders import StoreError
from ..storage.provenance import peak_memory
from ..storage.store import fingerprint as checksum
from ..storage.store import load, read_sidecar, save
from .followed import curved
from .panel import Panel
from .ranking import ranking_methods
from .settings import including

log = logging.getLogger(__name__)

STORED = Path(__file__).parent / "benchmark"
BITS = 11  # of the 23 of a float32's fraction that are kept: 2e-4 of each number, far below the noise of the seeds
AT_MOST = 14  # horizons in a file
LARGEST = 1_000_000  # bytes: what travels with the code
COMPRESSED = {"zlib": True, "shuffle": True, "complevel": 9}
Method = str | Callable[..., Any]


class WrongData(ValueError):
    """The data here are not those that a stored gold standard belongs to."""


def stored_names() -> list[str]:
    """The data sets that have a stored gold standard, in the order of `DATASETS`."""
    return [name for name in DATASETS if (STORED / f"{name}.nc").exists()]


def _path(dataset: str) -> Path:
    return STORED / f"{known(dataset, dict.fromkeys(stored_names()), 'stored gold standard of')}.nc"


def write_standard(panel: Panel, *, methods: Sequence[str] | None = None) -> Path:
    """Makes the stored gold standard of a panel from its results, computing what is missing.

    With an odd number of seeds the last one is not used. The known methods are run here, as a new one will be, so that
    their seconds and memory compare.

    Args:
        methods: those that are run beside it; all that the panel has by default.

    Returns:
        the path of the file; its sidecar lies beside it.

    Raises:
        ValueError: a single seed, or a file too large to travel with the code.
    """
    started = time.perf_counter()
    gold = panel.gold
    if gold.sizes["seed"] < 2:
        raise ValueError(f"{panel.title}: got 1 seed of further training, expected at least 2, for two halves.")
    steps = gold.step.values[log_spaced(gold.step.values, AT_MOST)]
    delta = gold.delta.sel(step=steps)
    halves = [half.astype("float64").mean("seed") for half in seed_blocks(delta, gold.sizes["seed"] // 2)[:2]]
    means = xr.concat(halves, dim="seed").assign_coords(seed=[0, 1]).astype("float32")
    found = xr.Dataset({"delta": means.copy(data=_rounded(means.values))})
    ceiling = ceiling_interval(gold.sel(step=steps)).rename(mean="ceiling", low="ceiling_low", high="ceiling_high")
    found = found.assign(ceiling.drop_vars("noise_dimensions").data_vars)
    found["delta"].encoding = COMPRESSED
    for name, p in panel.params.items():
        found[f"param:{name}"] = ([f"{name}.{d}" for d in range(p.dim())], p.numpy())
    everything = ranking_methods(panel) if methods is None else methods
    rows = pd.concat([rows_of(panel, found, name) for name in everything], ignore_index=True)
    found.attrs["rows"] = rows.to_json(orient="records", double_precision=6)
    path = STORED / f"{panel.dataset}.nc"
    if (size := found.nbytes) > LARGEST and (size := len(found.to_netcdf(engine="h5netcdf"))) > LARGEST:
        raise ValueError(
            f"{panel.title}: got a gold standard of {size / 1e6:.1f} MB, expected at most {LARGEST / 1e6:g}; a smaller "
            "model or fewer left-out instances would fit."
        )
    save(path, _specification(panel), found, seconds=time.perf_counter() - started)
    return path


def renew_rows(dataset: str, data_dir: Path | str | None = None, *, methods: Sequence[str] | None = None) -> Path:
    """Runs the known methods anew on this machine against a stored gold standard, which stays as it is.

    For a gold standard from another machine, or after the settings of a method have changed. Its sidecar then says
    who has made the rows, and `note["trained"]` of `read_standard` goes on saying who has made the gold standard.

    Args:
        methods: those that are run anew, all by default; rows of the others stay, and `note["kept"]` says who has made
            them, and which are newer.
    """
    started = time.perf_counter()
    panel, gold, before, note = read_standard(dataset, data_dir)
    everything = ranking_methods(panel) if methods is None else methods
    rows = pd.concat([rows_of(panel, gold, name) for name in everything], ignore_index=True)
    spec = {k: v for k, v in note["specification"].items() if k != "format"}
    found = load(_path(dataset), spec)
    found.attrs.pop("kept", None)
    if len(kept := before[~before["method"].isin(rows["method"])]) and methods is not None:
        made = note["kept"] or {"commit": note["commit"], "device": note["device"]}
        found.attrs["kept"] = json.dumps({**made, "newer": list(dict.fromkeys(rows["label"]))})
        rows = pd.concat([kept, rows], ignore_index=True)
    found.attrs |= {"rows": rows.to_json(orient="records", double_precision=6), "trained": json.dumps(note["trained"])}
    found["delta"].encoding = COMPRESSED
    path = _path(dataset)
    save(path, spec, found, seconds=time.perf_counter() - started)
    return path


def read_standard(
    dataset: str, data_dir: Path | str | None = None
) -> tuple[Panel, xr.Dataset, pd.DataFrame, dict[str, Any]]:
    """A stored gold standard, checked against the data on this machine.

    Returns:
        the panel, with the stored final model; the gold standard (`delta[seed, left_out, step, test]`, two means of
        half of the seeds each; `ceiling`, `ceiling_low`, `ceiling_high`, each [step], of all seeds); the rows of the
        known methods, as from `rows_of`; the sidecar (commit, profile, ...) of the rows, where `trained` has commit,
        day and device of the gold standard.

    Raises:
        ValueError: there is none for this data set.
        DataFileError: a data file is missing or not the original.
        WrongData: the data are others than those that it was measured on.
        StoreError: the file is damaged, or the library's settings have changed since.
    """
    path = _path(dataset)
    note = read_sidecar(path)
    spec = note["specification"]
    panel = Panel(dataset, spec["profile"], spec["optimizer"], data_dir=data_dir, compute=False)
    # The profile's own may have changed since.
    settings = replace(panel.settings, seeds=tuple(spec["seeds"]), left_out=tuple(spec["left_out"]))
    if settings.curvature:  # of as many, the left-out ones of the file among them, as when it was made
        some = including(settings.left_out, panel.task.n_train, len(settings.curvature))
        settings = replace(settings, curvature=tuple(some))
    panel = replace(panel, given_task=panel.task, given_settings=settings)
    here = checksum(panel.task.train, panel.task.test)
    if here != spec["data"]:
        raise WrongData(
            f"The data of {panel.title} here have the checksum {here}, and the stored gold standard belongs to data "
            f"with the checksum {spec['data']}; take the original files, or make a gold standard of these data: "
            f"./run_all.sh benchmark --make --dataset {dataset}"
        )
    found = load(path, _specification(panel, params=spec["params"], data=here))
    if tuple(found.left_out.values) != settings.left_out:
        raise StoreError(f"Result {path} differs in left_out from its sidecar; take both from one commit.")
    params = {k.removeprefix("param:"): torch.from_numpy(found[k].values) for k in found if k.startswith("param:")}
    return (
        replace(panel, given_params=params),
        found.drop_vars([f"param:{k}" for k in params]),
        _rows(found),
        _with_origin(note, found),
    )


def read_rows(dataset: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the known methods and the sidecar of a stored gold standard; needs no data.

    Raises:
        ValueError: there is none for this data set.
        StoreError: the file is damaged.
    """
    path = _path(dataset)
    note = read_sidecar(path)
    found = load(path, {k: v for k, v in note["specification"].items() if k != "format"})
    return _rows(found), _with_origin(note, found)


def _rows(found: xr.Dataset) -> pd.DataFrame:
    """Memory that was not measured is NaN."""
    return pd.DataFrame(json.loads(found.attrs["rows"])).astype({"memory_MiB": float})


def _with_origin(note: dict[str, Any], found: xr.Dataset) -> dict[str, Any]:
    """The sidecar; under "trained" who has made the gold standard: the same run, unless the rows were renewed; under
    "kept" who has made older rows, if there are any."""
    own = {key: note[key] for key in ("commit", "written", "device")}
    trained, kept = json.loads(found.attrs.get("trained", json.dumps(own))), json.loads(found.attrs.get("kept", "null"))
    return {**note, "trained": trained, "kept": kept}


def rows_of(panel: Panel, gold: xr.Dataset, method: Method, **hyper: Any) -> pd.DataFrame:
    """How a method does against a gold standard: one row for each horizon.

    Args:
        method: a name in `METHODS`, with the settings that the figures have, or a function with the signature of those.
            A function with the arguments `horizon=None` or `further_training=None` is given the steps at which the gold
            standard was measured, and the optimiser, learning rate and batch size of further training.
        hyper: hyper-parameters, in place of these.

    Returns:
        columns method, label, step, epoch (if the gold standard counts them), similarity (mean cosine over test
        instances), low and high (95 % interval, see `intervals.bands`; the halves stand for seeds), undefined (test
        instances without a similarity, which count as 0), seconds, memory_MiB (the most that was held beyond what was
        held before) and outcome: "finished", or in one sentence why there are no scores; all similarities are then 0.
    """
    entry, measured = entry_of(method), sensitivity(gold)
    steps, one = measured.step.values.tolist(), panel.settings.left_out[:1]
    attribute("grad_dot", panel.task, panel.params, train=one, test=panel.settings.test[:1])  # torch warms up
    started, outcome, values, half = time.perf_counter(), "finished", xr.DataArray(0.0), 0.0
    with peak_memory() as memory:
        try:
            scores = _scores(panel, method, steps, hyper)
            seconds = time.perf_counter() - started
            values = instance_similarity(scores, measured)
            half = bands({entry.name: scores}, gold)[entry.name].values
        except Exception as error:  # whatever a method of somebody's own may raise: that it fails is its result
            log.warning("%s has no scores", entry.label, exc_info=not isinstance(method, str))
            outcome, seconds = f"{entry.label} has no scores: {reason(error)}.", time.perf_counter() - started
    values = values.broadcast_like(measured.isel(left_out=0, drop=True)).transpose("step", "test")
    mean = values.fillna(0.0).values.mean(1)
    columns = {name: measured[name].values for name in ("step", "epoch") if name in measured.coords}
    return pd.DataFrame(
        {
            "method": entry.name,
            "label": entry.label,
            **columns,
            "similarity": mean,
            "low": (mean - half).clip(-1),
            "high": (mean + half).clip(max=1),
            "undefined": values.isnull().sum("test").values,
            "seconds": round(seconds, 3),
            "memory_MiB": memory[0],
            "outcome": outcome,
        }
    )


def _scores(panel: Panel, method: Method, steps: list[int], hyper: dict[str, Any]) -> xr.DataArray:
    entry, s = entry_of(method), panel.settings
    of_figures = panel.hyper(entry.name) if METHODS.get(entry.name) is entry else {}
    followed = {"horizon": steps, "further_training": panel.hyper("lft")["further_training"]}
    given = of_figures | {k: v for k, v in followed.items() if k in entry.defaults} | hyper
    rows = {"train": s.left_out, "test": s.test, "curvature": curved(s, panel.task.n_train, given)}
    return attribute(method, panel.task, panel.params, **rows, **given)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 numbers to the nearest with `BITS` bits of fraction: the rest is noise, and does not compress."""
    drop = 23 - BITS
    bits = values.view(np.uint32)
    return ((bits + np.uint32(1 << (drop - 1))) & ~np.uint32((1 << drop) - 1)).view(np.float32)


def _specification(panel: Panel, params: str | None = None, data: str | None = None) -> dict[str, Any]:
    """What a stored gold standard belongs to; `params` is the checksum of the final model if that is in the file, and
    `data` that of the data if it is known."""
    s = panel.settings
    return {
        "dataset": panel.dataset,
        "profile": panel.profile,
        "optimizer": panel.optimizer,
        "data": data or checksum(panel.task.train, panel.task.test),
        "params": params or checksum(panel.params),
        "final": asdict(s.final),
        "further": asdict(replace(s.further, evaluate=None)),  # the horizons are in the file
        "removal": s.removal,
        "seeds": list(s.seeds),
        "left_out": list(s.left_out),
        "test": list(s.test),
        "bits": BITS,
    }
