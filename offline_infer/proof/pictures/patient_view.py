"""An image and its label maps on patient axes, and which slices and what part of them are worth showing. No drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, UsageError

FloatArray = npt.NDArray[np.floating[Any]]
LabelArray = npt.NDArray[Any]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

AIR = -500.0
"""HU below which a voxel is taken for air or lung."""

ABDOMEN = (400.0, 40.0)
"""Width and level of the usual abdominal CT window, HU."""

FEW_LABELS = 4
"""Up to so many labels the smallest one is taken for lesions."""

_MARGIN_MM = 8.0
_SEEN_SHARE = 0.02


@dataclass(frozen=True)
class View:
    """A volume on patient axes: index rises towards superior, posterior and left along axes 0, 1 and 2.

    Attributes:
        image, prediction, reference: (s, p, l).
        spacing: mm, (s, p, l).
        stored: per view axis, the array axis it came from (0 = z) and whether it was reversed.
        tilt: largest angle in degrees between an image axis and its patient axis.
    """

    image: FloatArray
    prediction: LabelArray
    reference: LabelArray | None
    spacing: tuple[float, float, float]
    stored: tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]
    tilt: float

    @property
    def foreground(self) -> npt.NDArray[np.bool_]:
        """Voxels labelled in either map."""
        seen: npt.NDArray[np.bool_] = self.prediction != 0
        return seen if self.reference is None else seen | (self.reference != 0)

    @property
    def labels(self) -> list[int]:
        """Labels other than background in either map, ascending."""
        maps = (self.prediction,) if self.reference is None else (self.prediction, self.reference)
        return sorted({int(value) for array in maps for value in np.unique(array)} - {0})

    def stored_index(self, axis: int, index: int) -> str:
        """A slice by the name it has in the stored array, e.g. ``z 24``, counted from 0."""
        source, reversed_ = self.stored[axis]
        size = self.image.shape[axis]
        return f"{'zyx'[source]} {size - 1 - index if reversed_ else index}"


def to_patient_axes(
    image: FloatArray,
    prediction: LabelArray,
    reference: LabelArray | None,
    spacing: Sequence[float],
    direction: Sequence[float],
) -> View:
    """Permute and flip to the nearest patient axes.

    Args:
        image, prediction, reference: (z, y, x).
        spacing: mm, (z, y, x).
        direction: ITK, nine numbers, row-major (LPS).

    Raises:
        GeometryError: the shapes differ, or are not three-dimensional.
        UsageError: the direction is not a rotation.
    """
    for name, array in (("prediction", prediction), ("reference", reference)):
        if array is not None and array.shape != image.shape:
            raise GeometryError(f"the {name} has shape {array.shape} and the image {image.shape} (z, y, x)")
    if image.ndim != 3:
        raise GeometryError(f"expected an image (z, y, x), got shape {image.shape}")
    order, signs, tilt = _nearest_axes(_rotation(direction))

    def turn(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Array axis 2 - i is image axis i; patient axis p (0 left, 1 posterior, 2 superior) is view axis 2 - p.
        turned = array.transpose([2 - order[p] for p in (2, 1, 0)])
        return turned[tuple(slice(None, None, signs[p]) for p in (2, 1, 0))]

    s, p, l = ((2 - order[patient], signs[patient] < 0) for patient in (2, 1, 0))  # noqa: E741 - S, P and L
    return View(
        image=turn(image),
        prediction=turn(prediction),
        reference=None if reference is None else turn(reference),
        spacing=(float(spacing[s[0]]), float(spacing[p[0]]), float(spacing[l[0]])),
        stored=(s, p, l),
        tilt=tilt,
    )


def choose_slices(view: View, count: int) -> list[int]:
    """Axial slices worth seeing, from head to feet: evenly through the foreground, drawn to rare labels.

    The foreground is cut into ``count`` equal slabs. A slab gives its middle slice, or the slice in which one of the
    rarer labels is largest, if that lies in it.
    """
    (rows,) = np.nonzero(view.foreground.any(axis=(1, 2)))
    first, last = (int(rows[0]), int(rows[-1])) if rows.size else (0, view.image.shape[0] - 1)
    extent = last - first + 1
    count = max(0, min(count, extent))
    labels = view.prediction if view.reference is None or not view.reference.any() else view.reference
    values, sizes = np.unique(labels[labels != 0], return_counts=True)
    rarer = [values[i] for i in np.argsort(sizes)][: max(1, len(values) - 1)]
    peaks = [int(np.count_nonzero(labels == value, axis=(1, 2)).argmax()) for value in rarer[:count]]
    chosen = []
    for i in range(count):
        start, stop = first + extent * i // count, first + extent * (i + 1) // count
        inside = [peak for peak in peaks if start <= peak < stop]
        chosen.append(inside[0] if inside else (start + stop) // 2)
    return chosen[::-1]


def largest_slice(view: View, axis: int) -> int:
    """Index along ``axis`` of the slice with most foreground; the middle one where there is none."""
    return _fullest(view.foreground, axis)


def lesion_slices(view: View) -> tuple[int, int, int]:
    """Index along each axis of the slice that shows the largest lesion best.

    A lesion is a connected region of the label with the smallest volume, in the reference where there is one. With a
    single label, with none, or with more than :data:`FEW_LABELS`, the slices are those with most foreground.
    """
    import cc3d

    labels = view.prediction if view.reference is None or not view.reference.any() else view.reference
    values, sizes = np.unique(labels[labels != 0], return_counts=True)
    if not 2 <= len(values) <= FEW_LABELS:
        return (largest_slice(view, 0), largest_slice(view, 1), largest_slice(view, 2))
    rarest = np.ascontiguousarray(labels == values[int(sizes.argmin())])
    regions, number = cc3d.connected_components(rarest, connectivity=26, return_N=True)
    counts = np.bincount(regions.ravel(), minlength=number + 1)
    counts[0] = 0
    region = regions == int(counts.argmax())
    return (_fullest(region, 0), _fullest(region, 1), _fullest(region, 2))


def _fullest(mask: npt.NDArray[np.bool_], axis: int) -> int:
    sizes = np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis))
    return int(sizes.argmax()) if sizes.any() else mask.shape[axis] // 2


def body_box(view: View) -> Box:
    """Half-open box (s, p, l) around the body and the labels with a margin, so that pictures show no empty air."""
    lowest = float(view.image.min())
    seen = (view.image > max(AIR, lowest)) | view.foreground
    box = []
    for axis in range(3):
        size = seen.shape[axis]
        share = seen.mean(axis=tuple(a for a in range(3) if a != axis))
        # A few noisy voxels or a thin table top are not the body.
        (hits,) = np.nonzero(share > _SEEN_SHARE)
        margin = round(_MARGIN_MM / view.spacing[axis])
        box.append((max(0, int(hits[0]) - margin), min(size, int(hits[-1]) + 1 + margin)) if hits.size else (0, size))
    return (box[0], box[1], box[2])


def intensity_limits(image: FloatArray, window: tuple[float, float] | None) -> tuple[float, float]:
    """Lowest and highest intensity shown: of the window (width, level), by default the abdominal CT window for images with
    air in them, otherwise percentiles."""
    if window is None and float(image.min()) <= AIR:
        window = ABDOMEN
    if window is not None:
        return window[1] - window[0] / 2, window[1] + window[0] / 2
    inside = image[image != image.min()]
    low, high = np.percentile(inside, [1, 99.5]) if inside.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _rotation(direction: Sequence[float]) -> npt.NDArray[np.float64]:
    matrix = np.asarray(direction, np.float64)
    if matrix.size != 9 or not np.isfinite(matrix).all():
        raise UsageError(f"direction {tuple(direction)} is not nine numbers")
    matrix = matrix.reshape(3, 3)
    determinant = float(np.linalg.det(matrix))
    if abs(abs(determinant) - 1) > 0.05:
        raise UsageError(f"direction {tuple(direction)} is not a rotation (its determinant is {determinant:.3g})")
    return matrix


def _nearest_axes(matrix: npt.NDArray[np.float64]) -> tuple[list[int], list[int], float]:
    """Per patient axis (L, P, S): the image axis (x, y, z) nearest to it, its sign, and the largest angle left over."""
    order, signs, tilt = [0, 0, 0], [1, 1, 1], 0.0
    free = [0, 1, 2]
    for patient in np.argsort(-np.abs(matrix).max(axis=1)).tolist():
        axis = max(free, key=lambda a: abs(matrix[patient, a]))
        free.remove(axis)
        order[patient], signs[patient] = axis, 1 if matrix[patient, axis] >= 0 else -1
        tilt = max(tilt, math.degrees(math.acos(min(1.0, abs(float(matrix[patient, axis]))))))
    return order, signs, tilt
