"""MetaImage (``.mha``, ``.mhd``): the header, and voxels straight into the float32 array, checksum verified.

MetaIO, which ITK reads these files with, prints to stderr and hands out whatever was in memory where compressed data is
damaged. So ITK is asked for the frame only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from offline_infer.errors import ImageError
from offline_infer.images.frame import FloatArray
from offline_infer.images.integrity import inside
from offline_infer.images.nifti import require_three_dimensions
from offline_infer.images.streams import CHUNK, UNSCALED, damaged, decode, inflate, wrong_size

_HEADER_LIMIT = 1 << 16
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # four bytes by MetaIO's definition, on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class MetaHeader:
    """What is needed to find and decode the voxels.

    Attributes:
        dims: sizes (x, y, z).
        dtype: stored type with its byte order.
        data: the file that holds the voxels: the header's own or one beside it.
        offset: bytes before the first voxel, or before the compressed stream.
        compressed: the voxels are one zlib or gzip stream.
    """

    dims: tuple[int, ...]
    dtype: np.dtype[np.generic]
    data: Path
    offset: int
    compressed: bool


def read_header(path: Path) -> MetaHeader:
    """Parse the header.

    Raises:
        ImageError: no MetaImage, more than three dimensions, an unknown type, voxels that are missing, spread over
            several files, written as text, or taken from outside the file's own folder.
    """
    fields, end = _fields(path)
    try:
        count = int(fields["NDims"])
        dims = tuple(int(size) for size in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        element = fields["ElementType"]
        place = fields["ElementDataFile"]
        gap = int(fields.get("HeaderSize", "0"))
    except (KeyError, ValueError) as error:
        raise damaged(path, f"not a complete MetaImage header ({error})") from error
    if len(dims) != count or any(size < 1 for size in dims):
        raise damaged(path, f"the header's DimSize {dims} does not fit NDims = {count}")
    require_three_dimensions(path, dims)
    if channels != 1:
        raise ImageError(
            f"{path}: holds {channels} numbers per voxel (colours or vectors), expected one; write one file per channel"
        )
    if element not in _DTYPES:
        raise ImageError(f"{path}: unknown ElementType {element!r}; convert the image to .nii.gz")
    if not _flag(fields, "BinaryData", default=True):
        raise ImageError(f"{path}: its voxels are written as text; convert the image to .nii.gz")
    order = ">" if _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + _DTYPES[element])
    compressed = _flag(fields, "CompressedData")
    if place.upper() == "LOCAL":
        return MetaHeader(dims, dtype, path, end, compressed)
    if place.upper().startswith("LIST") or "%" in place:
        raise ImageError(f"{path}: its voxels are spread over several files; convert the image to .nii.gz")
    data = inside(path, place)
    if not data.is_file():
        raise ImageError(f"{path}: its voxels should be in {data}, which is missing; copy both files")
    if gap < 0:  # the voxels are the end of the file
        gap = max(0, data.stat().st_size - prod(dims) * dtype.itemsize)
    return MetaHeader(dims, dtype, data, gap, compressed)


def read_voxels(path: Path, header: MetaHeader, out: FloatArray) -> None:
    """Decode all voxels into ``out``.

    Args:
        out: (z, y, x), float32, C-contiguous; x runs fastest, as in the file.

    Raises:
        ImageError: the data ends too early or its checksum is wrong.
    """
    decode(_pieces(path, header), path, header.dtype, UNSCALED, out)


def check_complete(path: Path) -> None:
    """Read a MetaImage to its end and check length and checksum.

    Raises:
        ImageError: it is not complete.
    """
    header = read_header(path)
    found = sum(len(piece) for piece in _pieces(path, header))
    expected = prod(header.dims) * header.dtype.itemsize
    if found < expected:
        raise wrong_size(path, found, expected)


def _pieces(path: Path, header: MetaHeader) -> Iterator[bytes]:
    with header.data.open("rb") as stream:
        stream.seek(header.offset)
        if header.compressed:
            yield from inflate(stream, path, several=False)
        else:
            while chunk := stream.read(CHUNK):
                yield chunk


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the header, and where it ends."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_LIMIT)
    fields: dict[str, str] = {}
    position = 0
    while position < len(start):
        end = start.find(b"\n", position)
        end = len(start) if end < 0 else end
        name, equals, value = start[position:end].decode("latin-1").partition("=")
        position = end + 1
        if not equals:
            break
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, position
    raise damaged(path, "not a MetaImage, or its header is truncated (no ElementDataFile)")


def _flag(fields: dict[str, str], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    return default if value is None else value[:1] in "TtYy1"
