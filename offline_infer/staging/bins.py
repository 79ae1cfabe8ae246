"""Raw arrays on disk: little-endian, C order, no header. The worklist and the manifest describe them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import CaseError
from offline_infer.files import temporary_name
from offline_infer.spec import OutputSpec
from offline_infer.staging.outputs import OutputEntry, OutputsManifest
from offline_infer.staging.worklist import Item, Worklist

FloatArray = npt.NDArray[np.float32]


def write_bin(path: Path, array: npt.NDArray[Any], dtype: str) -> tuple[int, int]:
    """Write an array under a temporary name, then rename it; returns (bytes, crc32).

    The data are not forced to the disk: there are thousands of these files, they are short-lived, and size and checksum
    are compared before they are used, so that a power cut costs a repeat and never a wrong result.

    Raises:
        CaseError: a value does not fit float16.
    """
    with np.errstate(over="ignore"):  # checked in the next line
        flat = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    if dtype == "float16" and not np.isfinite(flat).all():
        largest = float(np.abs(array).max())
        raise CaseError(f"float16 cannot hold the value {largest:g} (its largest is 65504); write float32 bins")
    # No ".bin" at the end: a tool that is given the whole folder must not pick up an unfinished file.
    temporary = path.with_name(temporary_name(path.stem))
    try:
        with temporary.open("wb") as stream:
            stream.write(flat.data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return flat.nbytes, zlib.crc32(flat.data)


def read_item(worklist: Worklist, item: Item) -> FloatArray:
    """One network input, without the batch axis, float32, checked against its checksum.

    Raises:
        CaseError: missing, truncated or changed.
    """
    path = worklist.path(item)
    values = _read(path, item.dtype, item.bytes, item.shape, "preprocess the case again")
    if zlib.crc32(values.data) != item.crc32:
        raise CaseError(f"{path} was changed since it was written (its checksum differs); preprocess the case again")
    return values.astype(np.float32, copy=False)


def read_output(manifest: OutputsManifest, entry: OutputEntry, output: OutputSpec) -> npt.NDArray[Any]:
    """One network answer (1, ...); floating point as float32, integers in their own type.

    Raises:
        CaseError: missing, truncated, or of another size than the graph's output.
    """
    path = manifest.path(entry)
    expected = math.prod(output.shape) * np.dtype(entry.dtype).itemsize
    if entry.bytes != expected:
        raise CaseError(
            f"{path} is listed with {entry.bytes} bytes of {entry.dtype}, but output {output.name!r} of shape "
            f"{output.shape} has {expected}; was it made with another model?"
        )
    values = _read(path, entry.dtype, entry.bytes, output.shape, "run infer again, it redoes what is incomplete")
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def _read(path: Path, dtype: str, size: int, shape: Sequence[int], remedy: str) -> npt.NDArray[Any]:
    try:
        actual = path.stat().st_size
        if actual != size:
            raise CaseError(f"{path} has {actual} bytes, expected {size}; {remedy}")
        values: npt.NDArray[Any] = np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<"))
    except FileNotFoundError as error:
        raise CaseError(f"{path} is missing; {remedy}") from error
    return values.reshape(tuple(shape))
