"""What was read last is kept in memory, for a figure asks for the same shards as the one before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

import xarray as xr

SHARE = 16  # a shard that takes more than this part of the limit would drive out too many others


class Recent:
    """Shards by their path, up to so many bytes, those not asked for the longest going first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lock = limit, threading.Lock()
        self.kept: OrderedDict[Path, tuple[Hashable, xr.Dataset]] = OrderedDict()

    def get(self, path: Path, file: Hashable) -> xr.Dataset | None:
        """A copy of what was read from this very file, if it is still kept."""
        with self.lock:
            if path not in self.kept or self.kept[path][0] != file:
                return None
            self.kept.move_to_end(path)
            dataset = self.kept[path][1]
        return dataset.copy(deep=True)  # callers may write into theirs

    def put(self, path: Path, file: Hashable, dataset: xr.Dataset) -> None:
        if dataset.nbytes > self.limit / SHARE:
            return
        with self.lock:
            self.kept[path] = file, dataset.copy(deep=True)
            while sum(d.nbytes for _, d in self.kept.values()) > self.limit:
                self.kept.popitem(last=False)
