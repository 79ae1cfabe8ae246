"""Connected-component clean-up of finished label maps, as nnU-Net's post-processing does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import bounding_box
from offline_infer.spec import ComponentRule

L = TypeVar("L", bound=np.integer[Any])

_NEIGHBOURS = {"face": 6, "full": 26}
_VOXELS = 2**22
"""Voxels counted at once."""


def apply_component_rules(
    labels: npt.NDArray[L], rules: Sequence[ComponentRule], voxel_volume_mm3: float
) -> npt.NDArray[L]:
    """Apply the rules one after the other, each to the result of the one before.

    A rule takes the voxels of its labels together. Their largest components are kept, all of them where several are
    equally large; the others become ``background`` - or, where the rule has a ``min_size_mm3``, those of the others
    that are smaller than it.

    Args:
        labels: (z, y, x) integers; not changed.
        voxel_volume_mm3: volume of one voxel.

    Returns:
        A new array of the same shape and dtype.
    """
    result = labels.copy()
    for rule in rules:
        mask = result == rule.labels[0]
        for label in rule.labels[1:]:
            mask |= result == label
        if mask.any():
            # Components lie inside the mask's box, and labelling is the costly part.
            box = tuple(slice(first, last) for first, last in bounding_box(mask))
            _remove(result[box], mask[box], rule, voxel_volume_mm3)
    return result


def _remove(labels: npt.NDArray[L], mask: npt.NDArray[np.bool_], rule: ComponentRule, voxel_volume_mm3: float) -> None:
    """Set the components of ``mask`` that go to the rule's background, in place."""
    import cc3d

    connectivity = _NEIGHBOURS[rule.connectivity]
    components, count = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity, return_N=True)
    sizes = np.zeros(count + 1, np.int64)
    planes = max(1, _VOXELS // components[0].size)
    for first in range(0, len(components), planes):  # bincount makes 64-bit integers of its input
        sizes += np.bincount(components[first : first + planes].reshape(-1), minlength=count + 1)
    sizes[0] = 0
    goes = sizes < sizes.max()
    if rule.min_size_mm3 is not None:
        goes &= sizes * voxel_volume_mm3 < rule.min_size_mm3
    goes[0] = False
    for plane, numbers in zip(labels, components, strict=True):
        plane[goes[numbers]] = rule.background


def label_boxes(labels: npt.NDArray[Any]) -> dict[int, tuple[slice, ...]]:
    """Positive value -> the smallest box around it, for the values that occur, plane by plane.

    Args:
        labels: (z, y, x) or (y, x), integers of at least 0 or booleans.
    """
    planes = labels[None] if labels.ndim == 2 else labels
    found: dict[int, npt.NDArray[np.intp]] = {}
    for z, plane in enumerate(planes):
        for value in np.unique(plane):
            if value <= 0:
                continue
            mask = plane == value
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            ends = np.array([[z, rows[0], columns[0]], [-z - 1, -rows[-1] - 1, -columns[-1] - 1]])
            key = int(value)
            found[key] = np.minimum(found[key], ends) if key in found else ends
    boxes = {
        value: tuple(slice(int(first), -int(last)) for first, last in ends.T)[3 - labels.ndim :]
        for value, ends in found.items()
    }
    return dict(sorted(boxes.items()))
