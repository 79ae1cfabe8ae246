"""What this process may use of the machine: processors and memory.

In a container, or in a batch system's job, that is less than the machine has: Linux control groups limit both, and what the
system says about the whole machine is misleading there. The limits of a group hold for every group inside it, so the groups
above this process's own count as well, as far as they can be seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def processors() -> int:
    """Processors this process may use: those its affinity allows, or fewer where a group has a share of time (rounded up)."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = processor_share()
    return present if share is None else max(min(present, math.ceil(share)), 1)


def processor_share(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float | None:
    """Processors' worth of time that the control groups allow, None without a limit."""
    groups = _groups("cpu", root, membership)
    shares = [_quota_v1(group) if version == 1 else _quota_v2(group) for version, group in groups]
    return min((share for share in shares if share is not None), default=None)


def memory_total() -> int:
    """Bytes this process could have at best: the machine's, or the limit of a control group."""
    return min([int(psutil.virtual_memory().total), *(group.limit for group in _memory_groups())])


def memory_free() -> int:
    """Bytes the machine has free, or a control group this process is in, whichever is least."""
    return min([int(psutil.virtual_memory().available), *(group.free for group in _memory_groups())])


def memory_held() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class MemoryGroup:
    """A control group with a limit.

    Attributes:
        limit: bytes.
        used: bytes, the cached pages of files among them.
        cached: bytes of those that are given back when they are needed.
    """

    limit: int
    used: int
    cached: int

    @property
    def free(self) -> int:
        return max(self.limit - self.used + self.cached, 0)


def _memory_groups(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> list[MemoryGroup]:
    """Groups with a limit that this process is in. Version 1 says "no limit" as an enormous number, version 2 as ``max``."""
    found = []
    for version, group in _groups("memory", root, membership):
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
        )
        with suppress(OSError, ValueError):
            cached = _cached(group / "memory.stat")
            found.append(MemoryGroup(int((group / limit).read_text()), int((group / used).read_text()), cached))
    return found


def _cached(statistics: Path) -> int:
    """Bytes of files that have not been used for a while, of a group and those inside it."""
    lines = dict(line.split(" ", 1) for line in statistics.read_text().splitlines() if " " in line)
    # Version 1 has the group's own figure under the plain name.
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))


def _quota_v2(group: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def _quota_v1(group: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None


def _groups(controller: str, root: Path, membership: Path) -> Iterator[tuple[int, Path]]:
    """Folders of this process's groups and of those above, each with its version.

    In a container the group's path may be the host's while the tree begins at the container's own group: the root of the
    tree is looked at in any case.

    Args:
        controller: ``cpu`` or ``memory``.
    """
    trees = [(2, root), (2, root / "unified"), (1, root / controller)]
    yield from trees
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            for version, tree in trees:
                if (version == 1) == bool(controllers):
                    inside = Path(path.lstrip("/"))
                    yield from ((version, tree / part) for part in (inside, *inside.parents) if part != Path())
