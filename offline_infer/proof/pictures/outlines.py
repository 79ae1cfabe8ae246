"""Outlines of masks along voxel edges, and grey pictures, in forms a web page shows without any library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
_LEVELS = 4
"""Grey levels are rounded to multiples of this: the difference is invisible, and the picture is half as large."""


def outline_path(mask: BoolArray) -> str:
    """The outline of a mask (rows, columns) as an SVG path in voxels, the first voxel's corner at 0 0.

    The path follows the edges of the voxels, so it claims no more precision than the mask has. Closed loops; holes are
    loops of their own.
    """
    loops = _loops(np.pad(mask, 1))
    return "".join(_path_of(loop) for loop in loops)


def png_of(image: npt.NDArray[np.floating[Any]], low: float, high: float) -> bytes:
    """A plane (rows, columns) as an 8-bit grey PNG; ``low`` is black and ``high`` white."""
    span = max(high - low, 1e-12)
    with np.errstate(invalid="ignore"):
        scaled = np.nan_to_num(np.clip((image - low) / span, 0, 1), nan=0.0)
    grey = np.minimum((scaled * 255 / _LEVELS).round() * _LEVELS, 255).astype(np.uint8)
    rows, columns = grey.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = grey
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _loops(padded: BoolArray) -> list[list[tuple[int, int]]]:
    """Closed loops of corners (x, y) around the set pixels of a padded mask, the pixels to the right of the way."""
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(places: npt.NDArray[np.intp], start: tuple[int, int], end: tuple[int, int]) -> None:
        for y, x in places.tolist():
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))

    inner = padded[1:-1, 1:-1]
    add(np.argwhere(inner & ~padded[:-2, 1:-1]), (0, 0), (1, 0))  # top edges, to the right
    add(np.argwhere(inner & ~padded[1:-1, 2:]), (1, 0), (1, 1))  # right edges, down
    add(np.argwhere(inner & ~padded[2:, 1:-1]), (1, 1), (0, 1))  # bottom edges, to the left
    add(np.argwhere(inner & ~padded[1:-1, :-2]), (0, 1), (0, 0))  # left edges, up
    loops = []
    while following:
        start = next(iter(following))
        loop, corner = [start], start
        while True:
            ways = following[corner]
            # Where two pixels touch at a corner either way closes a loop.
            corner_next = ways.pop()
            if not ways:
                del following[corner]
            corner = corner_next
            if corner == start:
                break
            loop.append(corner)
        loops.append(loop)
    return loops


def _path_of(loop: list[tuple[int, int]]) -> str:
    """Absolute horizontal and vertical lines, corners on a straight line left out."""
    kept = [
        corner
        for before, corner, after in zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
        if not (before[0] == corner[0] == after[0] or before[1] == corner[1] == after[1])
    ]
    (x, y), *rest = kept
    words = [f"M{x} {y}"]
    for next_x, next_y in rest:
        words.append(f"V{next_y}" if next_x == x else f"H{next_x}")
        x, y = next_x, next_y
    return "".join(words) + "Z"
