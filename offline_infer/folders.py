"""Folders that several processes may use: held against one another, and cleared of what killed processes left in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offline_infer.files import clear_partial
from offline_infer.locks import locked_or_refused

RECORDS = ".offline_infer"
"""In a folder of results: what is kept about them, and the locks."""
_DEPTH = 2  # levels of folders below a folder of results, where results and their records lie


@contextmanager
def held(folder: Path, share: str) -> Iterator[None]:
    """Hold one share of a folder of results against other processes; freed when the process ends. What killed runs left
    half-written in the folder is deleted.

    Args:
        share: processes with different shares may work at the same time.

    Raises:
        UsageError: another process is at work on the same share.
    """
    place = folder / RECORDS
    place.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "_" for letter in share)
    taken = f"another process is writing results to {folder} ({share}); wait for it, or name another folder"
    with locked_or_refused(place / f"{name}.lock", taken, make=True):
        clear_partial(folder, depth=_DEPTH)
        yield


def clear_for(output: Path) -> None:
    """Before something is written to a file or folder: delete what killed processes left of earlier tries, beside it and in it."""
    clear_partial(output.absolute().parent)
    clear_partial(output, depth=_DEPTH)
