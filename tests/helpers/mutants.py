"""Damaged copies of a file, the same ones every time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np


def mutants(data: bytes, seed: str, count: int) -> Iterator[bytes]:
    """Copies of ``data`` with bits flipped, fields overwritten, pieces cut, repeated, moved; mostly near its start."""
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    extreme = (
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\xff\xff\xff\x7f",
        b"\0\0\xc0\x7f",
        b"999999999",
        b"-1",
        b"\x1b[2J",
        b"../",
    )
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            reach = len(mutant) if random.random() < 0.3 else min(len(mutant), 600)
            place, length = int(random.integers(0, max(reach, 1))), int(random.integers(1, 40))
            kind = int(random.integers(0, 6))
            if kind == 0 and mutant:
                mutant[place % len(mutant)] ^= 1 << int(random.integers(0, 8))
            elif kind == 1:
                value = extreme[int(random.integers(0, len(extreme)))]
                mutant[place : place + len(value)] = value
            elif kind == 2:
                del mutant[place : place + length]
            elif kind == 3:
                mutant[place:place] = mutant[place : place + length] * int(random.integers(1, 5))
            elif kind == 4:
                mutant[place : place + length] = random.bytes(length)
            else:
                del mutant[int(random.integers(0, len(mutant) + 1)) :]
        yield bytes(mutant)
