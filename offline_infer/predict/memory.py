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

from offline_infer.errors import CaseError, UsageError
from offline_infer.machine import memory_free, memory_held, memory_total
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
    held = memory_held()
    more = estimate.least - (estimate.engine if engine_ran else 0)
    if limit < held + more:
        raise UsageError(
            f"memory: a limit of {limit / 1e6:.0f} MB cannot be kept: the program with its engine holds {held / 1e6:.0f} MB, and "
            f"{what} takes {more / 1e6:.0f} MB more by the most frugal method; the least is {math.ceil((held + more) / 1e6)} MB"
        )


def refuse_hopeless(need: int, held: int) -> None:
    """Refuse a case that the memory cannot hold by any method, before work on it.

    The system would end the program for it, today and whenever the command is given again, and the cases behind it would never
    have their turn.

    Args:
        need: bytes the case takes at least, the engine's own not counted.
        held: bytes the program holds without it.

    Raises:
        CaseError: it needs more than all memory that this process can have, swap space included.
    """
    most = memory_total() + int(psutil.swap_memory().total)
    if held + need > most:
        raise CaseError(
            f"it takes at least {need / 1e6:,.0f} MB beside the {held / 1e6:,.0f} MB of the program; this machine or "
            f"container gives it no more than {most / 1e6:,.0f} MB; run it where there is more memory"
        )


def room_left(limit: int | None = None) -> int:
    """Bytes this process may still take.

    Args:
        limit: for the whole process; None = what the machine, or the container, has free.
    """
    held = memory_held()
    return max((limit if limit is not None else held + memory_free()) - held, 0)


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
