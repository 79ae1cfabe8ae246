"""Compiled graphs kept between runs: found again only by whoever made them, and only for what they were made from.

A compiled graph is code that an engine runs without a further look. An entry therefore carries a keyed digest (HMAC-SHA256
with a random key of the user's own, kept outside the cache) over everything it depends on and over its content: an entry that
somebody else wrote, or that was made from another graph, is not used. A cache shared by several users is an explicit choice
(``EngineOptions.shared_cache``); its entries carry a plain digest, and whoever may write there is trusted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.files import clear_partial, replacing
from offline_infer.locks import locked
from offline_infer.private import NotPrivateError, private_folder, user_key

SUFFIX = ".compiled"
MOST_BYTES = 8 << 30
"""Entries are removed, those longest unused first, until the others are no larger than this together."""
MOST_DAYS = 90
"""Entries that were not used for so long are removed."""

ALIGNMENT = 64
"""Bytes. The content of an entry begins at a multiple of it in the file, and in memory when it was read."""

_MAGIC = b"offline_infer compiled graphs 3\n"
_DIGEST = 32  # bytes
_HEAD = len(_MAGIC) + _DIGEST
assert _HEAD % ALIGNMENT == 0
_DAY = 86_400.0


@dataclass(frozen=True)
class CacheEntry:
    """One compiled graph: its file, size in bytes, and days since it was last used."""

    path: Path
    size: int
    idle_days: float


class CompiledCache:
    """Compiled graphs in one folder."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        """
        Raises:
            NotPrivateError: the folder is not the user's alone and ``shared`` is false, or there is no key.
        """
        self._folder = folder
        self._key = b"" if shared else user_key()
        if shared:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            private_folder(folder)

    def read(self, facts: Mapping[str, Any]) -> memoryview | None:
        """The compiled graph made from these facts; None where there is none that can be believed.

        It is checked in the memory that is returned, which may be written to and is copied nowhere.
        """
        name = _name(facts)
        path = self._folder / (name + SUFFIX)
        try:
            data = _aligned(path)
        except OSError:
            return None
        magic, digest, content = data[: len(_MAGIC)], data[len(_MAGIC) : _HEAD], data[_HEAD:]
        if magic != _MAGIC or not hmac.compare_digest(digest, self._digest(name, [content])):
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return content

    def write(self, facts: Mapping[str, Any], *content: bytes | memoryview) -> None:
        """Keep a compiled graph, and remove what is too old or too much.

        Args:
            content: pieces that are written one behind the other.

        Raises:
            OSError: it cannot be written.
        """
        name = _name(facts)
        path = self._folder / (name + SUFFIX)
        with replacing(path) as temporary, temporary.open("wb") as stream:
            stream.writelines((_MAGIC, self._digest(name, content), *content))
        clear_partial(self._folder)
        trim(self._folder, keep=path)

    @contextmanager
    def making(self, wait: float) -> Iterator[None]:
        """Held while something for the cache is made, so that one process makes it and the others read it.

        Args:
            wait: seconds at most for another process; after that both make it.
        """
        with ExitStack() as stack:
            with suppress(OSError):
                stack.enter_context(locked(self._folder.resolve(), wait=wait))
            yield

    def _digest(self, name: str, content: Iterable[bytes | memoryview]) -> bytes:
        """Binds the content to the facts behind the name, and to the user where there is a key."""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        digest.update(name.encode())
        digest.update(b"\0")
        for piece in content:
            digest.update(piece)
        return digest.digest()


def entries(folder: Path) -> tuple[CacheEntry, ...]:
    """What a folder keeps, longest unused first; nothing where it is missing."""
    found = []
    now = time.time()
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                facts = path.lstat()
                if path.name.endswith(SUFFIX) and path.is_file() and not path.is_symlink():
                    found.append(CacheEntry(path, facts.st_size, max((now - facts.st_mtime) / _DAY, 0.0)))
    return tuple(sorted(found, key=lambda entry: -entry.idle_days))


def trim(
    folder: Path, *, most_bytes: int = MOST_BYTES, most_days: float = MOST_DAYS, keep: Path | None = None
) -> tuple[CacheEntry, ...]:
    """Remove entries that are too old, then the longest unused ones while all together are too large.

    Args:
        keep: an entry that stays whatever its size.

    Returns:
        What was removed.
    """
    present = [entry for entry in entries(folder) if entry.path != keep]
    total = sum(entry.size for entry in present) + (keep.stat().st_size if keep is not None else 0)
    removed = []
    for entry in present:
        if entry.idle_days > most_days or total > most_bytes:
            with suppress(OSError):
                entry.path.unlink()
                removed.append(entry)
                total -= entry.size
    return tuple(removed)


def clear(folder: Path) -> tuple[CacheEntry, ...]:
    """Remove every entry; other files in the folder stay.

    Returns:
        What was removed.
    """
    return trim(folder, most_bytes=-1)


def open_cache(folder: Path | None, *, shared: bool) -> tuple[CompiledCache | None, str | None]:
    """The cache in a folder; None with the reason where it cannot be used, None without one where there is no folder."""
    if folder is None:
        return None, None
    try:
        return CompiledCache(folder, shared=shared), None
    except (NotPrivateError, OSError) as error:
        return None, f"the cache is not used: {error}"


def _aligned(path: Path) -> memoryview:
    """A file's bytes, in memory that begins at a multiple of the alignment."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        memory = np.empty(size + ALIGNMENT, np.uint8)
        place = -memory.ctypes.data % ALIGNMENT
        data = memoryview(memory.data)[place : place + size]
        filled = 0
        while count := stream.readinto(data[filled:]):
            filled += count
    return data[:filled]


def _name(facts: Mapping[str, Any]) -> str:
    """The facts as one name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
