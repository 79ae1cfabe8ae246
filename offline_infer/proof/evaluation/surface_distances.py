"""Distances between the surfaces of two masks, in millimetres, with the definition and the empty-mask policy stated.

Other tools define these figures slightly differently (pooled or per-direction percentiles, surface elements weighted by
area or not), so the definition used here travels with the numbers: :data:`DEFINITION` and :data:`EMPTY_MASK_POLICY`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError
from offline_infer.proof.evaluation.metrics import Label, mean_of

BoolArray = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]
Box = tuple[slice, ...]
SurfaceRecord = dict[str, Any]
"""Figures of one label of one case: numbers, None where undefined, and ``"masks"`` saying which masks were empty."""

DEFINITION: Mapping[str, str] = {
    "surface": "voxels of the mask with at least one face neighbour outside the mask or outside the image; "
    "an axis with a single slice has no neighbours",
    "distance": "Euclidean, in mm, from the centre of a surface voxel to the centre of the nearest surface voxel "
    "of the other mask; spacing of the reference image",
    "HD": "the largest of all distances in both directions",
    "HD95": "the larger of the two directions' 95th percentiles (linear interpolation)",
    "HD95 pooled": "95th percentile of the distances of both directions together",
    "ASSD": "mean of the distances of both directions together",
    "NSD": "share of the surface voxels of both masks that lie within the tolerance (mm) of the other surface; "
    "not weighted by surface area",
}

EMPTY_MASK_POLICY: Mapping[str, str] = {
    "both empty": "every figure is null and the case is left out of the mean",
    "prediction empty": "distances are null and left out of the mean; NSD is 0 and counts",
    "reference empty": "distances are null and left out of the mean; NSD is 0 and counts",
}

BOTH, NO_PREDICTION, NO_REFERENCE, NEITHER_EMPTY = "both empty", "prediction empty", "reference empty", "present"

_DISTANCE_KEYS = ("HD", "HD95", "HD95 pooled", "ASSD")


def surface_records(
    prediction: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    spacing: Sequence[float],
    labels: Iterable[Label],
    *,
    tolerances: Sequence[float] = (1.0,),
    ignore: int | None = None,
) -> dict[Label, SurfaceRecord]:
    """Surface figures of every label of two label maps.

    Args:
        prediction, reference: integers, (z, y, x), equal shape.
        spacing: mm, (z, y, x).
        tolerances: of NSD, in mm.
        ignore: voxels with this value in the reference belong to no mask.

    Raises:
        GeometryError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"prediction and reference differ in shape: {prediction.shape} and {reference.shape}")
    if ignore is not None:
        left_out = reference == ignore
        prediction = np.where(left_out, 0, prediction)
        reference = np.where(left_out, 0, reference)
    boxes = (_boxes(prediction), _boxes(reference))
    records: dict[Label, SurfaceRecord] = {}
    for label in labels:
        members = (label,) if isinstance(label, int) else label
        found = [side[m] for side in boxes for m in members if m in side]
        box = _joint(found) if found else tuple(slice(0, 1) for _ in prediction.shape)
        first, second = (_mask(array[box], members) for array in (prediction, reference))
        records[label] = surface_metrics(first, second, spacing, tolerances, flat=[n == 1 for n in prediction.shape])
    return records


def surface_metrics(
    prediction: BoolArray,
    reference: BoolArray,
    spacing: Sequence[float],
    tolerances: Sequence[float] = (1.0,),
    *,
    flat: Sequence[bool] | None = None,
) -> SurfaceRecord:
    """Surface figures of two masks of equal shape.

    Args:
        flat: per axis, whether the image has a single slice there (by default: whether the mask has). Such an axis
            gives no neighbours; without this every voxel of a two-dimensional mask would be surface.
    """
    masks = _which(bool(prediction.any()), bool(reference.any()))
    record: SurfaceRecord = {"masks": masks, **dict.fromkeys(_DISTANCE_KEYS)}
    if masks != NEITHER_EMPTY:
        nsd = None if masks == BOTH else 0.0
        return {**record, **{_nsd_key(t): nsd for t in tolerances}}
    there, back = surface_distances(prediction, reference, spacing, flat=flat)
    both = np.concatenate([there, back])
    record["HD"] = float(both.max())
    record["HD95"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
    record["HD95 pooled"] = float(np.percentile(both, 95))
    record["ASSD"] = float(both.mean())
    for tolerance in tolerances:
        record[_nsd_key(tolerance)] = float(np.mean(both <= tolerance))
    return record


def surface_distances(
    prediction: BoolArray, reference: BoolArray, spacing: Sequence[float], *, flat: Sequence[bool] | None = None
) -> tuple[Distances, Distances]:
    """Distances in mm from each surface voxel of the prediction to the reference's surface, and back; both non-empty.

    All points lie inside the box around both masks, so cropping to it changes no distance.
    """
    from scipy import ndimage

    flat = [n == 1 for n in prediction.shape] if flat is None else flat
    box = _joint([_box(prediction), _box(reference)])
    surfaces = [surface_voxels(mask[box], flat) for mask in (prediction, reference)]
    if np.array_equal(surfaces[0], surfaces[1]):
        zeros = np.zeros(int(surfaces[0].sum()))
        return zeros, zeros.copy()
    there, back = (
        np.asarray(ndimage.distance_transform_edt(~goal, sampling=tuple(spacing)), np.float64)[start]
        for start, goal in ((surfaces[0], surfaces[1]), (surfaces[1], surfaces[0]))
    )
    return there, back


def surface_voxels(mask: BoolArray, flat: Sequence[bool] | None = None) -> BoolArray:
    """The mask without its erosion by face neighbours; beyond the array counts as outside."""
    from scipy import ndimage

    flat = [n == 1 for n in mask.shape] if flat is None else flat
    structure = np.asarray(ndimage.generate_binary_structure(mask.ndim, 1))
    for axis, single in enumerate(flat):
        if single:
            structure = np.take(structure, [1], axis=axis)
    inner: BoolArray = np.asarray(ndimage.binary_erosion(mask, structure=structure), dtype=bool)
    return mask & ~inner


def surface_means(records: Iterable[Mapping[str, Any]]) -> SurfaceRecord:
    """Means of one label over its cases, by :data:`EMPTY_MASK_POLICY`, and how many cases were of which kind."""
    cases = list(records)
    keys = [key for key in cases[0] if key != "masks"] if cases else []
    means: SurfaceRecord = {}
    for key in keys:
        values = [case[key] for case in cases if case[key] is not None]
        means[key] = mean_of(values) if values else None
    kinds = [case["masks"] for case in cases]
    means["cases"] = {kind: kinds.count(kind) for kind in (NEITHER_EMPTY, BOTH, NO_PREDICTION, NO_REFERENCE)}
    return means


def _nsd_key(tolerance: float) -> str:
    return f"NSD {tolerance:g} mm"


def _which(prediction: bool, reference: bool) -> str:
    if prediction and reference:
        return NEITHER_EMPTY
    if reference:
        return NO_PREDICTION
    return NO_REFERENCE if prediction else BOTH


def _boxes(labels: npt.NDArray[Any]) -> dict[int, Box]:
    """Positive value -> its bounding box, for all values in one pass."""
    if labels.size == 0:
        return {}
    from scipy import ndimage

    low = int(labels.min())
    shifted = labels if low >= 1 else labels.astype(np.int64) + (1 - low)
    offset = 0 if low >= 1 else 1 - low
    found = ndimage.find_objects(shifted)
    return {value + 1 - offset: box for value, box in enumerate(found) if box is not None}


def _box(mask: BoolArray) -> Box:
    from scipy import ndimage

    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    assert box is not None
    return tuple(box)


def _joint(boxes: Sequence[Box]) -> Box:
    return tuple(
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
        for axis in range(len(boxes[0]))
    )


def _mask(labels: npt.NDArray[Any], members: Sequence[int]) -> BoolArray:
    if len(members) == 1:
        return np.asarray(labels == members[0])
    return np.isin(labels, members)
