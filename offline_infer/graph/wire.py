"""Protocol-buffers messages walked field by field over bytes that stay where they are: nothing is copied or built.

The wire format is that of https://protobuf.dev/programming-guides/encoding: a message is a sequence of fields, each a key
(field number and wire type) and a value.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups (3 and 4) are obsolete; no ONNX writer makes them."""

_LONGEST_VARINT = 10
Buffer = memoryview


class WireError(Exception):
    """The bytes are no message, or the walk became too long."""


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """The bytes of a regular file, not read before they are looked at.

    Raises:
        WireError: the file is empty, or not a regular file.
        OSError: it is missing or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise WireError("it is not a regular file")
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise WireError("it is empty")
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(content)
        try:
            yield view
        finally:
            view.release()
            with suppress(BufferError):  # an exception's frames may hold a part of it; it is closed with them
                content.close()


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number: of the field.
        kind: wire type.
        value: of a varint; of other types the length of the content in bytes.
        start: where the content begins in the buffer, of types other than varint.
    """

    number: int
    kind: int
    value: int
    start: int

    @property
    def end(self) -> int:
        """Where the content ends."""
        return self.start + self.value


class Walker:
    """Walks messages inside one buffer, and counts what it sees, so that a hostile file costs bounded time."""

    def __init__(self, data: Buffer, most_fields: int) -> None:
        """
        Args:
            data: the whole file.
            most_fields: so many fields are looked at, over all messages together.
        """
        self._data = data
        self._left = most_fields

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in ``data[start:end]``.

        Raises:
            WireError: it is damaged, or the file holds more fields than are looked at.
        """
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise WireError("it holds more fields than any network needs")
            key, at = self.varint(at, end)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise WireError("a field has number zero")
            if kind == VARINT:
                value, at = self.varint(at, end)
                yield Field(number, kind, value, at)
                continue
            if kind == BYTES:
                length, at = self.varint(at, end)
            elif kind in (FIXED32, FIXED64):
                length = 4 if kind == FIXED32 else 8
            else:
                raise WireError(f"unknown wire type {kind}")
            if at + length > end:
                raise WireError("it is cut short")
            yield Field(number, kind, length, at)
            at += length

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of variable length at a position, and the position behind it."""
        data = self._data
        value = 0
        for count in range(_LONGEST_VARINT):
            if at >= end:
                raise WireError("it ends in the middle of a number")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
        raise WireError("a number is longer than ten bytes")

    def numbers(self, field: Field, most: int) -> list[int]:
        """The signed whole numbers of a repeated field that stands here, packed or single; at most ``most`` of them."""
        if field.kind == VARINT:
            return [signed(field.value)]
        if field.kind != BYTES:
            raise WireError(f"field {field.number} holds no whole numbers")
        found: list[int] = []
        at = field.start
        while at < field.end:
            if len(found) == most:
                raise WireError(f"field {field.number} holds more than {most} numbers")
            value, at = self.varint(at, field.end)
            found.append(signed(value))
        return found

    def text(self, field: Field, longest: int) -> str:
        """A text field."""
        if field.kind != BYTES:
            raise WireError(f"field {field.number} holds no text")
        if field.value > longest:
            raise WireError(f"a name or text has {field.value} bytes, expected at most {longest}")
        try:
            return bytes(self._data[field.start : field.end]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError("a name is not UTF-8") from error

    def raw(self, field: Field, longest: int) -> bytes:
        """The content of a field of bytes, copied."""
        if field.kind != BYTES or field.value > longest:
            raise WireError(f"field {field.number} holds {field.value} bytes, expected at most {longest}")
        return bytes(self._data[field.start : field.end])


def signed(value: int) -> int:
    """A varint's value as the int64 it stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value
