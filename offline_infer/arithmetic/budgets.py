"""How large a case may be before any work on it starts. One policy, applied to each case alone.

The limits lie far above what any scanner, model or accelerator of today needs; a header that exceeds them is damaged or
was made to exhaust the machine. What fits the machine's memory is another question, which the memory estimate answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from offline_infer.errors import GeometryError

VOXELS = 2**32
"""Of one channel, as stored and after resampling: 16 GiB of float32."""
AXIS = 2**20
"""Voxels along one axis."""
TILES = 2**20
"""Of one case."""
CHANNELS = 2**10
"""Of one case."""
TRAILING_BYTES = 2**26
"""Decompressed bytes that may follow the last voxel."""
EMPTY_MEMBERS = 2**10
"""Members of a gzip file that hold nothing; one of bgzip's has a single one at its end."""

VOXELS_PER_BYTE = 2**12
"""Of a compressed file. An image of one value compresses to less than a thousandth; a header that promises more is damaged."""


def check_voxels(shape: Sequence[int], what: str, remedy: str) -> None:
    """Refuse a grid that is implausibly large.

    Args:
        shape: of one channel, any number of axes.
        what: the start of the message, e.g. a path or "the image at the model's spacing".
        remedy: its end.

    Raises:
        GeometryError: an axis or the whole exceeds the limits.
    """
    if any(size > AXIS for size in shape) or prod(shape) > VOXELS:
        shown = " x ".join(f"{size:,}" if size < 10**15 else f"{float(min(size, 10**300)):.0e}" for size in shape)
        raise GeometryError(f"{what}: {shown} voxels are more than {VOXELS:,}, or {AXIS:,} along an axis; {remedy}")


def check_plausible(shape: Sequence[int], file_bytes: int, what: str) -> None:
    """Refuse a grid whose voxels cannot be in the file, before a library allocates memory for them.

    Raises:
        GeometryError: the header promises too much.
    """
    if prod(shape) > VOXELS_PER_BYTE * file_bytes:
        raise GeometryError(
            f"{what}: its header promises {float(min(prod(shape), 10**300)):.3g} voxels, which {file_bytes:,} bytes cannot hold; "
            "copy or export the image again"
        )


def check_tiles(count: int) -> None:
    """Refuse a case that would be cut into too many tiles.

    Raises:
        GeometryError: more than :data:`TILES`.
    """
    if count > TILES:
        raise GeometryError(
            f"the case would be cut into {float(min(count, 10**300)):.3g} tiles, more than {TILES:,}; is the step size, or the "
            "spacing in the image's header, right?"
        )
