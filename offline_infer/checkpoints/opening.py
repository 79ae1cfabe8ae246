"""Opening an untrusted file: a regular file, at once, and no longer than it may be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from offline_infer.errors import CheckpointError


@contextmanager
def opened(path: Path, limit: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """The file as a binary stream, and its size in bytes.

    A named pipe would block until somebody writes to it and a device may never end, so both are refused.

    Args:
        path: the file, or a link to it.
        limit: largest size accepted.

    Raises:
        CheckpointError: missing, unreadable, not a regular file, or larger than the limit; the message names it. So
            does an operating system's error while the file is read inside the block.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise CheckpointError(f"{path} is not a regular file; pipes, devices and folders are not read")
            if limit is not None and facts.st_size > limit:
                raise CheckpointError(f"{path} has {facts.st_size:,} bytes, more than the {limit:,} accepted")
            yield stream, facts.st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises as :func:`opened`."""
    with opened(path, limit) as (stream, size):
        return stream.read(size)


def _open_at_once(path: str, flags: int) -> int:
    """``os.open`` that does not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
