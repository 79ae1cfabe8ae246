"""Reading a file's bytes to the end, in bounded memory, and noticing when they are not all there.

ITK reads a truncated or damaged ``.nii.gz`` without an error and leaves the missing voxels 0, so what it reads is not
trusted here: compressed data is decompressed by this module, checksum included.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.budgets import EMPTY_MEMBERS, TRAILING_BYTES
from offline_infer.errors import ImageError
from offline_infer.files import printable
from offline_infer.images.frame import FloatArray

Scaling = tuple[float, float]
"""Slope and offset: stored value * slope + offset is the value."""
UNSCALED: Scaling = (1.0, 0.0)

CHUNK = 1 << 18
_PIECE = 1 << 18  # largest piece handed out: bounded memory, and small enough that the allocator uses it again
GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's wbits for a gzip member, checksum verified
_AUTO = 47  # gzip or zlib, by header


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name says."""
    with path.open("rb") as stream:
        return stream.read(2) == GZIP_MAGIC


def pieces(path: Path, *, compressed: bool) -> Iterator[bytes]:
    """A file's content, decompressed, in pieces of at most 256 KiB.

    Raises:
        ImageError: a gzip stream that is truncated or damaged.
    """
    with path.open("rb") as stream:
        if compressed:
            yield from inflate(stream, path, several=True)
        else:
            while chunk := stream.read(_PIECE):
                yield chunk


def inflate(stream: BinaryIO, path: Path, *, several: bool) -> Iterator[bytes]:
    """Decompress from where ``stream`` stands; checks every member's checksum.

    Args:
        several: gzip with several members one after the other (bgzip, pigz -i); otherwise one zlib or gzip stream.

    Raises:
        ImageError: truncated or damaged.
    """
    engine = zlib.decompressobj(_GZIP if several else _AUTO)
    data = stream.read(CHUNK)
    empty, filled = 0, False
    if not data:
        raise damaged(path, "the compressed voxels are missing")
    try:
        while True:
            piece = engine.decompress(data, _PIECE)
            if piece:
                filled = True
                yield piece
            if engine.eof:
                empty += not filled
                filled = False
                if empty > EMPTY_MEMBERS:
                    raise damaged(path, f"more than {EMPTY_MEMBERS} of its compressed parts hold nothing")
                data = engine.unused_data if several else b""
                if several and len(data) < len(GZIP_MAGIC):
                    data += stream.read(CHUNK)
                if not data.startswith(GZIP_MAGIC):  # the end, or padding after it
                    return
                engine = zlib.decompressobj(_GZIP)
                continue
            data = engine.unconsumed_tail or stream.read(CHUNK)
            if not data and not piece:
                raise damaged(path, "the compressed data ends too early")
    except zlib.error as error:
        raise damaged(path, f"the compressed data is damaged ({error})") from error


def decode(
    data: Iterable[bytes], path: Path, dtype: np.dtype[np.generic], scaling: Scaling, out: FloatArray, skip: int = 0
) -> None:
    """Turn a stream of stored numbers into float32, in the stream's order.

    Scaling is computed in float64 and rounded once, as ITK and nibabel do. The stream is read to its end, past the last
    voxel, so that its checksum is verified.

    Args:
        data: the bytes, in pieces of any size.
        dtype: stored type with its byte order.
        out: float32, C-contiguous.
        skip: bytes before the first number.

    Raises:
        ImageError: the data ends too early or its checksum is wrong.
    """
    assert out.flags.c_contiguous
    flat = out.reshape(-1)
    item = dtype.itemsize
    done = total = 0
    rest = b""
    most = skip + flat.size * item + TRAILING_BYTES
    seen = 0
    for piece in data:
        seen += len(piece)
        if seen > most:
            raise damaged(path, f"more than {TRAILING_BYTES:,} bytes follow the voxels that the header promises")
        if skip >= len(piece):
            skip -= len(piece)
            continue
        part = rest + piece[skip:] if rest or skip else piece
        total += len(part) - len(rest)
        skip = 0
        count = min(len(part) // item, flat.size - done)
        _convert(np.frombuffer(part, dtype, count), scaling, flat[done : done + count])
        done += count
        rest = part[count * item :] if done < flat.size else b""
    if done < flat.size:
        raise wrong_size(path, total, prod(out.shape) * item)


def _convert(values: npt.NDArray[np.generic], scaling: Scaling, out: FloatArray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 is infinite and reported later
        if scaling == UNSCALED:
            out[:] = values
        else:
            scaled = values.astype(np.float64)
            scaled *= scaling[0]
            scaled += scaling[1]
            out[:] = scaled


def one_line(error: BaseException) -> str:
    """The first line of a foreign exception, without control characters."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__


def damaged(path: Path, what: str) -> ImageError:
    """The error for a file whose bytes are not all there or not what they were."""
    return ImageError(f"{path}: {what}; copy or export the image again")


def wrong_size(path: Path, found: int, expected: int) -> ImageError:
    """The error for voxel data of the wrong length."""
    return damaged(path, f"truncated: {found:,} bytes of voxels where the header promises {expected:,}")
