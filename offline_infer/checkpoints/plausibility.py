"""Whether the figures of a checkpoint's plans are of a size any model has, before memory or time is spent on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offline_infer.checkpoints.limits import (
    MAX_FEATURES,
    MAX_LAYERS,
    MAX_PATCH_VOXELS,
    MAX_SPACING,
    MAX_STAGES,
    MAX_WIDTH_SQUARED_LAYERS,
    MIN_SPACING,
)
from offline_infer.errors import CheckpointError

_COUNTS = ("n_stages", "n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage", "eva_depth")
"""Arguments of network classes that say how many layers to make."""


def check_patch(patch_size: Sequence[int], origin: str) -> None:
    """Refuse a patch (y, x) or (z, y, x) that is empty or larger than any network sees.

    Raises:
        CheckpointError: naming the patch and the limit.
    """
    if len(patch_size) not in (2, 3) or min(patch_size) < 1:
        raise CheckpointError(f"{origin}: patch_size {patch_size} does not have two or three positive entries")
    if math.prod(patch_size) > MAX_PATCH_VOXELS:
        raise CheckpointError(
            f"{origin}: patch_size {patch_size} has {math.prod(patch_size):,} voxels, more than the "
            f"{MAX_PATCH_VOXELS:,} accepted"
        )


def check_spacing(spacing: Sequence[float], origin: str) -> None:
    """Refuse a target spacing in mm that no image can be resampled to.

    Raises:
        CheckpointError: naming the spacing and the range.
    """
    if not all(MIN_SPACING <= value <= MAX_SPACING for value in spacing):  # NaN included
        raise CheckpointError(
            f"{origin}: spacing {spacing} is not a target spacing, which lies between {MIN_SPACING:g} and "
            f"{MAX_SPACING:g} mm"
        )


def check_count(what: str, count: int, limit: int, origin: str) -> None:
    """Refuse a count below one or above the limit.

    Raises:
        CheckpointError: naming what was counted.
    """
    if not 1 <= count <= limit:
        raise CheckpointError(f"{origin}: {what} is {count}, expected 1 to {limit:,}")


def check_arguments(arguments: Mapping[str, Any], origin: str) -> None:
    """Refuse arguments of a network class that would make it build without end.

    Raises:
        CheckpointError: naming the argument.
    """
    widest = 1.0
    for name, value in arguments.items():
        for leaf in _leaves(name, value, origin):
            if not isinstance(leaf, (int, float)):
                continue
            if not abs(leaf) <= MAX_FEATURES:
                raise CheckpointError(f"{origin}: network argument {name!r:.80} holds {leaf:g}")
            if name != "input_shape":
                widest = max(widest, leaf)
    layers = sum(int(leaf) for name in _COUNTS for leaf in _leaves(name, arguments.get(name, 0), origin) if leaf)
    if layers > MAX_LAYERS or widest**2 * layers > MAX_WIDTH_SQUARED_LAYERS:
        raise CheckpointError(
            f"{origin}: the network would have {layers:,} layers of up to {widest:g} features; no published one comes near"
        )


def _leaves(name: str, value: Any, origin: str, depth: int = 0) -> Iterator[Any]:
    """The values in nested lists and dicts."""
    if not isinstance(value, (list, tuple, dict)):
        yield value
        return
    if len(value) > MAX_STAGES or depth > 3:
        raise CheckpointError(
            f"{origin}: network argument {name!r:.80} is a list of {len(value)} entries, or deeply nested"
        )
    for item in value.values() if isinstance(value, dict) else value:
        yield from _leaves(name, item, origin, depth + 1)
