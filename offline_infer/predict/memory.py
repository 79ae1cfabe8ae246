"""How cases are run within the available memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import psutil

from offline_infer.errors import UsageError
from offline_infer.tasks.memory import MemoryEstimate


@dataclass(frozen=True)
class Method:
    """How a case is run within the available memory.

    Attributes:
        read_ahead: the next case is prepared and the previous one finished while this one is inferred.
        spill: the active slab lies in a spill file, whose pages the system takes back when it needs them.
    """

    read_ahead: bool = True
    spill: bool = False


def choose_method(
    estimate: MemoryEstimate, following: MemoryEstimate | None, room: int, previous: MemoryEstimate | None = None
) -> Method:
    """The fastest method that fits.

    Args:
        following: of the next case, None for the last one.
        room: bytes that may be taken beyond what the program holds now.
        previous: of the case that may still be in the thread behind, None for the first one.
    """
    if estimate.beside(following, previous) <= room:
        return Method()
    if estimate.alone <= room:
        return Method(read_ahead=False)
    return Method(read_ahead=False, spill=True)


def refuse_impossible(limit: int | None, estimate: MemoryEstimate, what: str, *, engine_ran: bool = False) -> None:
    """Refuse a limit that no method can keep, before any work.

    Args:
        limit: for the whole process; None is no limit.
        what: the case, for the message.
        engine_ran: the process holds the engine's working memory already.

    Raises:
        UsageError: the message says the least that is possible.
    """
    if limit is None:
        return
    held = int(psutil.Process().memory_info().rss)
    more = estimate.least - (estimate.engine if engine_ran else 0)
    if limit < held + more:
        raise UsageError(
            f"memory: a limit of {limit / 1e6:.0f} MB cannot be kept: the program with its engine holds {held / 1e6:.0f} MB, and "
            f"{what} takes {more / 1e6:.0f} MB more by the most frugal method; the least is {math.ceil((held + more) / 1e6)} MB"
        )


def room_left(limit: int | None = None) -> int:
    """Bytes this process may still take.

    Args:
        limit: for the whole process; None = what the machine, or the container, has free.
    """
    held = int(psutil.Process().memory_info().rss)
    return max((limit if limit is not None else held + free_memory()) - held, 0)


def free_memory() -> int:
    """Bytes the machine has free, or the control group this process is in, whichever is less."""
    free = int(psutil.virtual_memory().available)
    for most, used, inactive in _GROUPS:
        try:
            ceiling = most.read_text().strip()
            taken = int(used.read_text())
            # Cached file pages are given back when they are needed.
            cached = [line.split()[1] for line in inactive.read_text().splitlines() if _is_cache(line)]
        except (OSError, ValueError):
            continue
        if ceiling.isdecimal():
            free = min(free, max(int(ceiling) - taken + sum(map(int, cached)), 0))
    return free


def _is_cache(line: str) -> bool:
    return line.split(" ")[0] in ("inactive_file", "total_inactive_file")


def _groups() -> list[tuple[Path, Path, Path]]:
    root = Path("/sys/fs/cgroup")
    places = [root]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            below = inside.lstrip("/")
            if not controllers:
                places += [root / below, *(root / below).parents]
    except (OSError, ValueError):
        pass
    version_2 = [
        (place / "memory.max", place / "memory.current", place / "memory.stat")
        for place in dict.fromkeys(places)
        if place == root or root in place.parents
    ]
    old = root / "memory"
    return [*version_2, (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat")]


_GROUPS = _groups()


class SpillFile:
    """Zeroed arrays in a file that has no name and vanishes with the process. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[IO[bytes]] = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A zeroed array in a file; in memory where the disk has no room either."""
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the others
        self._files.append(file)
        try:
            # Reserve all of it now: a page that finds no disk when it is written would end the process.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
        except OSError:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)

    def __enter__(self) -> Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]:
        return self.allocate

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        self._files = []
