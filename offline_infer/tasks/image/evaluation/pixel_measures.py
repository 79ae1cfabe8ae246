"""Measures of one soft mask against its reference: F1, IoU, accuracy, AUC, each in three modes.

``origin``: the mask as it is. ``reverse``: inverted. ``double``: the larger of both, image by image; it forgives a
model that marks the background instead of the region (also called the permuted score).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError
from offline_infer.tasks.image.evaluation.distribution import (
    Confusion,
    Distribution,
    auc,
    best_f1,
    confusion_at,
    of_bytes,
    of_floats,
    reversed_auc,
)

Mask = npt.NDArray[np.bool_]
Soft = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

MEASURES = ("F1", "IOU", "Accuracy", "AUC", "F1_best")
"""``F1_best``: F1 at each image's own best threshold; the others at a fixed one."""
MODES = ("origin", "reverse", "double")


@dataclass(frozen=True)
class PixelMeasures:
    """Of one image.

    Attributes:
        values: ``F1``, ``F1_reverse``, ``F1_double``, ``IOU``, ...; None where a measure is undefined: F1 and IoU
            without a positive pixel, AUC without both kinds of pixel.
        counts: decisions at the fixed threshold.
        best_threshold: a value above it is positive at the best F1; None without positive pixels.
        halves: pixels exactly at the threshold, where inverting the mask and inverting the decision differ.
    """

    values: dict[str, float | None]
    counts: Confusion
    best_threshold: float | None
    halves: int

    @property
    def positives(self) -> int:
        """Positive pixels of the reference."""
        return self.counts.tp + self.counts.fn


def pixel_measures(soft: Soft, reference: Mask, *, inside: Mask | None = None, threshold: float = 0.5) -> PixelMeasures:
    """Measure a soft mask.

    Args:
        soft: (y, x), uint8 (0 to 255 for 0 to 1) or float32 from 0 to 1.
        reference: (y, x) bool.
        inside: (y, x) bool; other pixels are not counted.
        threshold: a pixel is positive if its value is larger.

    Raises:
        GeometryError: the arrays differ in shape, or a float map leaves 0 to 1.
    """
    if soft.shape != reference.shape or (inside is not None and inside.shape != reference.shape):
        raise GeometryError(f"the mask has {_size(soft)} pixels and its reference {_size(reference)}")
    if inside is not None:
        soft, reference = soft[inside], reference[inside]
    table = distribution(soft, reference)
    counts = confusion_at(table, threshold)
    exactly = int((table.positives + table.negatives)[table.values == threshold].sum())
    area = auc(table)
    best = best_f1(table)
    inverted = _inverted(table)
    best_inverted = best_f1(inverted)
    # Inverting the decision and inverting the values differ at the threshold itself: F1 and accuracy invert the
    # decision, IoU the values, as the field's evaluation code does.
    other, mirrored = counts.inverted, confusion_at(inverted, 1 - threshold)
    pairs: dict[str, tuple[float | None, float | None]] = {
        "F1": (counts.f1, other.f1),
        "IOU": (counts.iou, mirrored.iou),
        "Accuracy": (counts.accuracy, other.accuracy),
        "AUC": (area, reversed_auc(area)),
        "F1_best": (best and best[0], best_inverted and best_inverted[0]),
    }
    return PixelMeasures(in_modes(pairs), counts, best and best[1], exactly)


def in_modes(pairs: dict[str, tuple[float | None, float | None]]) -> dict[str, float | None]:
    """``{measure: (origin, reverse)}`` -> ``{measure: ..., measure_reverse: ..., measure_double: ...}``."""
    values: dict[str, float | None] = {}
    for name, (origin, reverse) in pairs.items():
        values[name] = origin
        values[f"{name}_reverse"] = reverse
        values[f"{name}_double"] = None if origin is None or reverse is None else max(origin, reverse)
    return values


def distribution(soft: Soft, reference: Mask) -> Distribution:
    """The exact table of an 8-bit or a float map.

    Raises:
        GeometryError: a float map holds NaN or leaves 0 to 1.
    """
    if soft.dtype == np.uint8:
        return of_bytes(soft.astype(np.uint8, copy=False), reference)
    floats = soft.astype(np.float32, copy=False)
    if floats.size and not (float(floats.min()) >= 0 and float(floats.max()) <= 1):  # false for NaN too
        raise GeometryError("a soft mask holds values outside 0 to 1; was the activation left out at export?")
    return of_floats(floats, reference)


def border_ignored(reference: Mask, erode: int, dilate: int) -> Mask:
    """Which pixels count when a region's border is left out, (y, x) bool.

    A pixel counts if its whole ``erode`` x ``erode`` neighbourhood is positive, or none of its ``dilate`` x ``dilate``
    neighbourhood is. Beyond the image the nearest pixels repeat by reflection.
    """
    return eroded(reference, erode) | eroded(~reference, dilate)


def eroded(mask: Mask, size: int) -> Mask:
    """Where the whole ``size`` x ``size`` neighbourhood is true, (y, x) bool; beyond the image it is reflected.

    For an even size the neighbourhood reaches one pixel further to the top and left.
    """
    before, after = size // 2, size - 1 - size // 2
    found = mask
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (before, after)
        padded = np.pad(found, padding, mode="symmetric")
        sums = np.cumsum(padded, axis=axis, dtype=np.int32)
        length = mask.shape[axis]
        last = sums.take(range(size - 1, size - 1 + length), axis=axis)
        first = padded.take(range(length), axis=axis)
        found = last - sums.take(range(length), axis=axis) + first == size
    return found


def _inverted(table: Distribution) -> Distribution:
    return Distribution(1 - table.values[::-1], table.positives[::-1], table.negatives[::-1], table.exact)


def _size(array: npt.NDArray[np.generic]) -> str:
    return " x ".join(str(n) for n in reversed(array.shape))
