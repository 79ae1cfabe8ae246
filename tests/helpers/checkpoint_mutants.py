"""Damaged copies of a file, always the same ones for the same seed.

How many is set by the environment variable OFFLINE_INFER_MUTANTS: a short run by default, a long one by one command::

    OFFLINE_INFER_MUTANTS=1000 python -m pytest tests/checkpoints/test_checkpoint_mutants.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
"""Bytes that sit at the edges of what a length, a sign or an opcode may be."""


def mutant_count(short: int = 30) -> int:
    """How many mutants of each kind of file to try."""
    return int(os.environ.get("OFFLINE_INFER_MUTANTS", short))


def mutants(data: bytes, count: int, seed: int, focus: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Numbered mutants of a file.

    Args:
        data: the good file.
        count: how many.
        seed: of the file; with a mutant's number it says which mutant it is.
        focus: most mutations happen in so many bytes at the beginning and the end, where headers and directories are;
            None treats all bytes alike.
    """
    for number in range(count):
        yield number, mutant(data, seed, number, focus)


def mutant(data: bytes, seed: int, number: int, focus: int | None = None) -> bytes:
    """One mutant: a few bytes, a cut, a block repeated, moved, removed or filled, or a number replaced."""
    rng = np.random.default_rng([seed, number])
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        _mutate(changed, rng, focus)
    return bytes(changed)


def _mutate(data: bytearray, rng: np.random.Generator, focus: int | None) -> None:
    if not data:
        data += b"\0"
    place, length = _position(len(data), rng, focus), int(rng.integers(1, 65))
    kind = rng.integers(0, 8)
    if kind <= 1:
        data[place] = int(rng.integers(0, 256))
    elif kind == 2:
        data[place] = INTERESTING[int(rng.integers(0, len(INTERESTING)))]
    elif kind == 3:
        del data[place : len(data) if rng.integers(0, 4) == 0 else place + length]
    elif kind == 4:
        data[place:place] = data[place : place + length] * int(rng.integers(1, 4))
    elif kind == 5:
        source = _position(len(data), rng, focus)
        data[place : place + length] = data[source : source + length]
    elif kind == 6:
        data[place : place + length] = bytes([INTERESTING[int(rng.integers(0, len(INTERESTING)))]]) * length
    else:
        _replace_number(data, place, rng)


def _replace_number(data: bytearray, place: int, rng: np.random.Generator) -> None:
    """Another number where text holds one, or a large binary one."""
    end = place
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    if end > place:
        data[place:end] = (b"-1", b"9" * 400, b"1e-320", b"NaN", b"99999999")[int(rng.integers(0, 5))]
    else:
        data[place : place + 4] = int(rng.integers(0, 2**32)).to_bytes(4, "little")


def _position(length: int, rng: np.random.Generator, focus: int | None) -> int:
    if focus is None or length <= 2 * focus or rng.integers(0, 5) == 0:
        return int(rng.integers(0, length))
    offset = int(rng.integers(0, 2 * focus))
    return offset if offset < focus else length - 2 * focus + offset
