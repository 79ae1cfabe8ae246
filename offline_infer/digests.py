"""SHA-256 of large files that are opened again and again: computed once, remembered until the file changes.

A digest is remembered for a device, inode, size, and times of the last change of content and of the inode. The second time
is set by the system at every change and cannot be set back by a program without privileges. A file that changed just now is
not remembered: it might change again within the clock's resolution.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from offline_infer.files import sha256_file, write_json
from offline_infer.private import NotPrivateError, private_folder, private_home

_MOST = 2000  # digests that are remembered
_SETTLED_NS = 3_000_000_000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class FileState:
    """What changes with a file's content; ``key`` names it in the record."""

    device: int
    inode: int
    size: int
    content_ns: int
    inode_ns: int

    @property
    def key(self) -> str:
        return f"{self.device}:{self.inode}:{self.size}:{self.content_ns}:{self.inode_ns}"


def state_of(path: Path) -> FileState:
    """The state of a file now.

    Raises:
        OSError: there is no such file.
    """
    facts = path.stat()
    return FileState(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, from the record where the file has not changed since.

    Raises:
        OSError: the file cannot be read.
    """
    state = state_of(path)
    known = _record()
    if state.key in known:
        return known[state.key]
    digest = sha256_file(path)
    settled = time.time_ns() - max(state.content_ns, state.inode_ns) > _SETTLED_NS
    if settled and state_of(path) == state:
        _remember(state.key, digest)
    return digest


def _path() -> Path:
    return private_folder(private_home()) / "digests.json"


def _record() -> dict[str, str]:
    """What is remembered; nothing where that cannot be believed."""
    try:
        record = json.loads(_path().read_bytes().decode("utf-8"))
    except (NotPrivateError, OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {key: value for key, value in record.items() if isinstance(value, str) and _is_digest(value)}


def _remember(key: str, digest: str) -> None:
    try:
        record = _record()  # again: another process may have added to it
        record[key] = digest
        write_json(_path(), dict(list(record.items())[-_MOST:]), indent=None)
    except (NotPrivateError, OSError):
        pass  # it is computed again next time


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= _HEX
