"""Read an ONNX file's key-value metadata and opset without the ``onnx`` package.

An ONNX file is one protocol-buffers message, ``ModelProto``. Only its top level is walked; the graph (field 7, nearly
all of the file) is skipped by seeking. Field numbers are those of ONNX's published ``onnx.proto``.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from offline_infer.errors import BundleError

_IR_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA = 1, 7, 8, 14  # fields of ModelProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LARGEST_ENTRY = 1 << 26  # no metadata entry of ours comes near 64 MiB; more is damage


@dataclass(frozen=True)
class OnnxMetadata:
    """What stands beside the graph.

    Attributes:
        opset: of the default operator domain.
        entries: ``metadata_props``; of equal keys the last one counts.
    """

    opset: int
    entries: dict[str, str]


def read_metadata(path: Path) -> OnnxMetadata:
    """Walk the top level of an ONNX file.

    Raises:
        BundleError: the file is missing, cut short, or not ONNX.
    """
    entries: dict[str, str] = {}
    opset = 0
    seen: set[int] = set()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            while stream.tell() < size:
                field, kind = _key(stream)
                seen.add(field)
                if kind == _VARINT:
                    _varint(stream)
                elif kind == _BYTES and field in (_METADATA, _OPSET_IMPORT):
                    message = _fields(_take(stream, _length(stream, size, _LARGEST_ENTRY)))
                    if field == _METADATA:
                        entries[_text(message.get(1, b""))] = _text(message.get(2, b""))
                    elif message.get(1, b"") in (b"", b"ai.onnx"):
                        version = message.get(2, 0)
                        opset = version if isinstance(version, int) else 0
                else:
                    stream.seek(_skip(stream, kind, size), os.SEEK_CUR)
    except _DamageError as damage:
        raise BundleError(f"{path} is not a complete ONNX file ({damage}); copy or export it again") from damage
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if _GRAPH not in seen or _IR_VERSION not in seen:
        raise BundleError(f"{path} is not an ONNX file: it holds no graph")
    return OnnxMetadata(opset, entries)


class _DamageError(Exception):
    pass


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise _DamageError("it ends in the middle of a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _DamageError("a number is longer than ten bytes")


def _key(stream: BinaryIO) -> tuple[int, int]:
    key = _varint(stream)
    if key >> 3 == 0:
        raise _DamageError("a field has number zero")
    return key >> 3, key & 7


def _length(stream: BinaryIO, size: int, largest: int) -> int:
    length = _varint(stream)
    if stream.tell() + length > size:
        raise _DamageError("it is cut short")
    if length > largest:
        raise _DamageError("an entry is too large")
    return length


def _skip(stream: BinaryIO, kind: int, size: int) -> int:
    """Bytes to jump over for a field whose value is not wanted."""
    if kind == _BYTES:
        return _length(stream, size, size)
    step = {_FIXED64: 8, _FIXED32: 4}.get(kind)
    if step is None:
        raise _DamageError(f"unknown wire type {kind}")
    if stream.tell() + step > size:
        raise _DamageError("it is cut short")
    return step


def _take(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise _DamageError("it is cut short")
    return data


def _fields(data: bytes) -> dict[int, bytes | int]:
    """A small message's fields; of repeated ones the last."""
    stream = io.BytesIO(data)
    found: dict[int, bytes | int] = {}
    while stream.tell() < len(data):
        field, kind = _key(stream)
        if kind == _VARINT:
            found[field] = _varint(stream)
        elif kind == _BYTES:
            found[field] = _take(stream, _length(stream, len(data), len(data)))
        else:
            stream.seek(_skip(stream, kind, len(data)), os.SEEK_CUR)
    return found


def _text(value: bytes | int) -> str:
    if isinstance(value, int):
        raise _DamageError("a text field holds a number")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamageError("a text field is not UTF-8") from error
