"""Where a file keeps its voxels, and how they are decoded: one way for MetaImage, NRRD and GIPL.

ITK reads a truncated ``.gipl``, a compressed ``.nrrd`` with a wrong checksum and a damaged ``.mha`` without an error, and returns
zeros or uninitialised memory. So it is used for the frame only, for which no file but the header is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from offline_infer.errors import ImageError, UsageError
from offline_infer.files import inside, plain_name, printable
from offline_infer.images.formats import split_ending
from offline_infer.images.frame import FloatArray
from offline_infer.images.streams import CHUNK, UNSCALED, decode, inflate, wrong_size

_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class StoredVoxels:
    """What is needed to decode the voxels.

    Attributes:
        path: the header's file, for messages.
        dims: sizes (x, y, z).
        dtype: stored type with its byte order.
        data: the file that holds the voxels: the header's own or one beside it.
        offset: bytes before the first voxel, or before the compressed stream.
        compressed: the voxels are one zlib or gzip stream.
        notes: what the header leaves out, a sentence each.
    """

    path: Path
    dims: tuple[int, ...]
    dtype: np.dtype[np.generic]
    data: Path
    offset: int
    compressed: bool
    notes: tuple[str, ...] = ()

    def read(self, out: FloatArray) -> None:
        """Decode all voxels into ``out``.

        Args:
            out: (z, y, x), float32, C-contiguous; x runs fastest, as in the file.

        Raises:
            ImageError: the data ends too early or its checksum is wrong.
        """
        decode(self._pieces(), self.path, self.dtype, UNSCALED, out)

    def check_complete(self) -> None:
        """Read to the end and check length and checksum.

        Raises:
            ImageError: the file is not complete.
        """
        found = sum(len(piece) for piece in self._pieces())
        expected = prod(self.dims) * self.dtype.itemsize
        if found < expected:
            raise wrong_size(self.path, found, expected)

    def _pieces(self) -> Iterator[bytes]:
        with self.data.open("rb") as stream:
            stream.seek(self.offset)
            if self.compressed:
                yield from inflate(stream, self.path, several=False)
            else:
                while chunk := stream.read(CHUNK):
                    yield chunk


def data_file(path: Path, name: str) -> Path:
    """The file beside a header that holds its voxels: a file of the same case, in the same folder, and no link.

    A header that was sent to a hospital could otherwise name any file there, another patient's image included.

    Args:
        path: the header's file.
        name: what the header says.

    Raises:
        ImageError: it is none.
    """
    try:
        plain_name(name, "data file")
        data = inside(path.parent, path.parent / name)
    except UsageError as error:
        raise ImageError(
            f"{path}: takes its voxels from {printable(name[:80])!r}, outside its own folder; refused"
        ) from error
    parts = split_ending(path.name)
    stem = parts[0] if parts else path.stem
    of_case = re.compile(rf"{re.escape(_CHANNEL.sub('', stem))}(_\d{{4}})?\.[A-Za-z0-9.]+")
    if not of_case.fullmatch(name) or split_ending(name) is not None:
        raise ImageError(
            f"{path}: takes its voxels from {printable(name)!r}, which is not a file of this case; give both files the "
            f"same name ({stem}.raw), and change it in the header"
        )
    if data.is_symlink():
        raise ImageError(f"{path}: takes its voxels from {name!r}, which is a symbolic link; copy the file itself")
    if not data.is_file():
        raise ImageError(f"{path}: its voxels should be in {name!r} beside it, which is missing; copy both files")
    return data
