"""One BLAS thread per caller while we share the work out ourselves.

Many threads that each call a many-threaded BLAS fight for its pool: on a busy machine a product of a few milliseconds
was seen to take seconds. The setting is the process's, so nested and concurrent uses are counted and the last one out
restores it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_users = 0
_limits: Any = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Within this context every BLAS call runs on its caller's thread alone."""
    global _users, _limits
    with _lock:
        if _users == 0:
            _limits = threadpool_limits(1, "blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limits.restore_original_limits()
                _limits = None
