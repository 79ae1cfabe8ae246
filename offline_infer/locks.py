"""Files and folders held against other processes. The system frees them when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from offline_infer.errors import UsageError

_POLL_S = 0.05


@contextmanager
def locked(path: Path, *, wait: float = 0.0, make: bool = False) -> Iterator[int]:
    """Hold a file or folder against everybody who does so too, other threads of this process included.

    Args:
        wait: seconds at most for the one that holds it; ``math.inf`` for as long as it takes.
        make: the file, if it is missing; it can then be written through what is yielded.

    Yields:
        The open file.

    Raises:
        BlockingIOError: somebody else still holds it.
        OSError: it cannot be opened; a link is not followed.
    """
    flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
    handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        _lock(handle, wait)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def locked_or_refused(path: Path, taken: str, *, make: bool = False) -> Iterator[None]:
    """Hold a file or folder as :func:`locked` does, without waiting.

    Raises:
        UsageError: somebody else holds it; the message is ``taken``.
        OSError: it cannot be opened; a link is not followed.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, make=make))
        except BlockingIOError as error:
            raise UsageError(taken) from error
        yield


def _lock(handle: int, wait: float) -> None:
    if math.isinf(wait):
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_POLL_S)
