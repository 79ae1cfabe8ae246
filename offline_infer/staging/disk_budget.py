"""Disk space of a staged run: how much it needs, how to cut it into rounds that fit a budget, how much it really used."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline_infer.errors import DiskBudgetError
from offline_infer.staging.worklist import WorklistHeader, output_bytes
from offline_infer.tasks.base import Layout

BLOCK = 4096
"""File systems give out disk in blocks; a small file still takes one."""
RECORDS_PER_ITEM = 4096
"""Room for an item's lines in the lists and the manifest, generously."""
ROUND_OVERHEAD = 256 * 1024
"""Room for a round's folders, lists and timing records."""


@dataclass(frozen=True)
class ItemCost:
    """Bytes one item takes on disk, rounded up to whole blocks.

    Attributes:
        input: its bin.
        kept: the outputs inference needs, all folds.
        transient: outputs that are written and may be deleted at once, all folds; 0 where they are not written.
    """

    input: int
    kept: int
    transient: int

    @property
    def total(self) -> int:
        return self.input + self.kept + self.transient + RECORDS_PER_ITEM


@dataclass(frozen=True)
class CaseCost:
    """What one case needs: ``groups`` * ``per_group`` items of ``item``."""

    case: str
    groups: int
    per_group: int
    item: ItemCost

    @property
    def items(self) -> int:
        return self.groups * self.per_group

    @property
    def group_bytes(self) -> int:
        """The smallest piece of work: one group of items."""
        return self.per_group * self.item.total

    @property
    def total(self) -> int:
        return self.items * self.item.total + ROUND_OVERHEAD

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "groups": self.groups,
            "items": self.items,
            "input_bytes": self.items * self.item.input,
            "kept_output_bytes": self.items * self.item.kept,
            "transient_output_bytes": self.items * self.item.transient,
            "bytes": self.total,
        }


@dataclass(frozen=True)
class DiskForecast:
    """What a run needs.

    Attributes:
        exact: false where the images' headers were used: cropping may make a case smaller, never larger.
        budget: bytes the user allows, or None.
        free: bytes the disk has.
    """

    cases: tuple[CaseCost, ...]
    exact: bool
    free: int
    budget: int | None = None

    @property
    def total(self) -> int:
        """All cases at once, as a staged run without rounds keeps them."""
        return sum(case.total for case in self.cases)

    @property
    def peak(self) -> int:
        """What will lie on disk at once: everything, or with a budget one case's round."""
        if self.budget is None:
            return self.total
        return min(max((case.total for case in self.cases), default=0), self.budget)

    def to_json(self) -> dict[str, Any]:
        return {
            "cases": [case.to_json() for case in self.cases],
            "items": sum(case.items for case in self.cases),
            "bytes": self.total,
            "peak_bytes": self.peak,
            "free_bytes": self.free,
            "budget_bytes": self.budget,
            "exact": self.exact,
        }

    def refuse_if_too_large(self, place: Path) -> None:
        """
        Raises:
            DiskBudgetError: the peak does not fit the free disk, or one group of items does not fit the budget.
        """
        largest = max((case.group_bytes + ROUND_OVERHEAD for case in self.cases), default=0)
        if self.budget is not None and largest > self.budget:
            raise DiskBudgetError(
                f"a scratch budget of {size_text(self.budget)} is too small: a tile with its mirrors (or an image) and its outputs "
                f"needs {size_text(largest)}; allow at least that much"
            )
        if self.peak > self.free:
            short = f"this run needs {size_text(self.peak)} of scratch disk, {place} has {size_text(self.free)} free"
            if self.budget is not None:
                raise DiskBudgetError(f"{short}; lower the budget to at most {size_text(self.free)} or free some disk")
            raise DiskBudgetError(
                f"{short}; name a folder on a larger disk, or give fewer cases", remedy="work-in-rounds"
            )


def case_cost(case: str, header: WorklistHeader, layout: Layout, all_outputs: bool) -> CaseCost:
    """What a case needs that is cut into these items.

    Args:
        all_outputs: the tool writes every output of the graph, wanted or not.
    """
    shapes = {layout.shape(group) for group in range(layout.groups)}
    largest = max((header.item_bytes(shape) for shape in shapes), default=0)
    folds = len(header.folds)
    kept = sum(_blocks(output_bytes(output)) for output in header.outputs if output.keep)
    others = sum(_blocks(output_bytes(output)) for output in header.outputs if not output.keep)
    item = ItemCost(_blocks(largest), folds * kept, folds * others if all_outputs else 0)
    return CaseCost(case, layout.groups, layout.per_group, item)


def split_rounds(cost: CaseCost, budget: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of groups, each of which fits the budget, of sizes as equal as can be.

    Raises:
        DiskBudgetError: one group does not fit.
    """
    fit = (budget - ROUND_OVERHEAD) // cost.group_bytes
    if fit < 1:
        raise DiskBudgetError(
            f"a scratch budget of {size_text(budget)} is too small: a tile of case {cost.case} with its mirrors (or its image) "
            f"and the outputs needs {size_text(cost.group_bytes + ROUND_OVERHEAD)}; allow at least that much"
        )
    count = max(math.ceil(cost.groups / fit), 1)
    return tuple((i * cost.groups // count, (i + 1) * cost.groups // count) for i in range(count))


def free_bytes(place: Path) -> int:
    """Free disk where ``place`` is or will be."""
    folder = place.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def used_bytes(folder: Path) -> int:
    """Disk taken by everything under a folder: the larger of length and blocks of each file.

    Symbolic links are not followed; a file with several hard links counts once.
    """
    total = 0
    linked: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # deleted meanwhile
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (status.st_dev, status.st_ino) in linked:
                            continue
                        linked.add((status.st_dev, status.st_ino))
                    total += max(status.st_size, status.st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except FileNotFoundError:
            continue
    return total


class DiskMeter:
    """Watches the disk a folder takes, from a thread, and keeps the highest figure.

    The thread looks as often as it can without taking more than a twentieth of a core. Call :meth:`sample` before
    something is deleted, which is when a peak ends.
    """

    def __init__(self, folder: Path, interval: float = 0.02) -> None:
        """
        Args:
            interval: seconds between two looks, at least.
        """
        self.peak = 0
        self._folder = folder
        self._interval = interval
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="disk-meter", daemon=True)

    def sample(self) -> int:
        """Bytes taken now."""
        now = used_bytes(self._folder)
        with self._lock:
            self.peak = max(self.peak, now)
        return now

    def __enter__(self) -> DiskMeter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = self._interval
        while not self._stop.wait(pause):
            begun = time.perf_counter()
            self.sample()
            pause = max(self._interval, 20 * (time.perf_counter() - begun))


def size_text(size: int) -> str:
    """``21.5 GB``: decimal units, as disks and the command line count."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def forecast_disk(costs: Iterable[CaseCost], place: Path, *, exact: bool, budget: int | None = None) -> DiskForecast:
    """The forecast for these cases on the disk where ``place`` is."""
    return DiskForecast(tuple(costs), exact, free_bytes(place), budget)


def _blocks(size: int) -> int:
    return int(np.ceil(size / BLOCK)) * BLOCK
