"""Curves and pictures for TensorBoard, written without it: an event file is a list of framed protocol-buffer messages."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from types import TracebackType

from offline_infer.files import flush_file

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


class EventFile:
    """One new event file in a folder; TensorBoard shows the folder as a run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
        self._path = folder / f"events.out.tfevents.{int(now)}.{host}.{time.monotonic_ns()}"
        self._stream = self._path.open("xb")
        self._write(_double(1, now) + _bytes(3, b"brain.Event:2"))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        flush_file(self._path)

    def scalar(self, tag: str, step: int, value: float) -> None:
        """A point of a curve."""
        self._event(step, _bytes(1, tag.encode()) + _float(2, value))

    def picture(self, tag: str, step: int, png: bytes, height: int, width: int) -> None:
        """An RGB picture, as the bytes of a PNG file."""
        image = _varint(1, height) + _varint(2, width) + _varint(3, 3) + _bytes(4, png)
        self._event(step, _bytes(1, tag.encode()) + _bytes(4, image))

    def _event(self, step: int, value: bytes) -> None:
        self._write(_double(1, time.time()) + _varint(2, step) + _bytes(5, _bytes(1, value)))

    def _write(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        self._stream.write(length + _masked_crc(length) + message + _masked_crc(message))


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _number(field << 3 | 5) + struct.pack("<f", value)


def _double(field: int, value: float) -> bytes:
    return _number(field << 3 | 1) + struct.pack("<d", value)
