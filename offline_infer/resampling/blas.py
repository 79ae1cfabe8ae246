"""One BLAS thread per caller while we share the work out ourselves.

Many threads that each call a many-threaded BLAS compete for its pool: on a busy machine a product of a few milliseconds
has been observed to take seconds. The setting is the process's, so nested and concurrent uses are counted and the last one out
restores it. One thread makes and restores it: OpenBLAS has been observed to ignore a setting made by any thread but the last
one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_users = 0
_limits: Any = None
_setter = ThreadPoolExecutor(1, "blas")
"""Its thread starts at the first use."""


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Within this context every BLAS call runs on its caller's thread alone."""
    global _users, _limits
    with _lock:
        if _users == 0:
            _limits = _setter.submit(threadpool_limits, 1, "blas").result()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _setter.submit(_limits.restore_original_limits).result()
                _limits = None
