"""Opening an untrusted zip archive: its directory is bounded before it is parsed, and every way it can be damaged is one error."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from offline_infer.checkpoints.limits import MAX_DIRECTORY_BYTES
from offline_infer.errors import CheckpointError

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # a version or a compression this Python does not know
    RuntimeError,  # encrypted
    ValueError,
    OverflowError,
    MemoryError,
)


@contextmanager
def opened_zip(path: Path, stream: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """The archive that a stream holds.

    Python's zipfile makes an object of a kilobyte for each entry of forty-six bytes in the directory, so that a small
    file could fill the memory before anybody sees a member.

    Args:
        path: how messages call it.
        stream: seekable.

    Raises:
        CheckpointError: damaged, of an unknown kind, or with too many members; so is damage found inside the block.
    """
    bounded = _Bounded(stream)
    try:
        with zipfile.ZipFile(cast("IO[bytes]", bounded)) as archive:
            bounded.opening = False
            yield archive
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}; copy it again") from error


class _Bounded:
    """A stream whose single reads are small while the directory is being read: zipfile reads it in one piece."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.opening = True

    def read(self, count: int = -1) -> bytes:
        if not self.opening:
            return self._stream.read(count)
        if count > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory is longer than {MAX_DIRECTORY_BYTES:,} bytes")
        return self._stream.read(count if count >= 0 else MAX_DIRECTORY_BYTES)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True
