"""Control groups with a limit on memory, as containers and batch systems use them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_TREES = (
    (Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
    (Path("/sys/fs/cgroup"), ("memory.max", "memory.swap.max")),
)


@dataclass(frozen=True)
class Group:
    """A control group of the kernel."""

    path: Path

    def join(self) -> None:
        """Put this process into it; a ``preexec_fn`` of a child."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int:
        """How many of its processes the kernel ended for want of memory."""
        file = next(self.path / name for name in ("memory.oom_control", "memory.events") if (self.path / name).exists())
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))


@contextmanager
def memory_group(limit: int) -> Iterator[Group]:
    """A new group whose processes have ``limit`` bytes of memory together, and no swap space; skips where none can be made."""
    for tree, (memory, swap) in _TREES:
        path = tree / f"offline_infer_test_{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / memory).write_text(str(limit))
            with suppress(OSError):  # a kernel that does not count swap space
                (path / swap).write_text(str(limit) if "memsw" in swap else "0")
        except OSError:
            path.rmdir()
            continue
        try:
            yield Group(path)
        finally:
            _remove(path)
        return
    pytest.skip("needs the right to make a control group with a limit on memory")


def _remove(path: Path, patience_s: float = 60) -> None:
    """A group can go when its last process has been waited for."""
    until = time.monotonic() + patience_s
    while True:
        try:
            path.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
