"""Slices through the largest error of a case, as JSON that a report can show: grey pictures and outlines.

Everything is on patient axes, as in :mod:`offline_infer.proof.pictures.overlay`: axial slices are seen from the feet,
coronal ones from the front, sagittal ones from the left.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import bounding_box
from offline_infer.errors import GeometryError, OfflineInferError
from offline_infer.proof.evaluation.pairs import CasePair
from offline_infer.proof.image_files import image_of
from offline_infer.proof.pictures.outlines import outline_path, png_of
from offline_infer.proof.pictures.patient_view import Box, View, intensity_limits, to_patient_axes

KIND = "offline_infer.error_slices"
PLANES = ("axial", "coronal", "sagittal")
SCROLLED = 25
"""Axial slices a reader can scroll through."""
_MARGIN_MM = 20.0
_LONGEST = 256
"""Pixels along the longer side of a grey picture."""

Index = tuple[int, int, int]


@dataclass(frozen=True)
class ErrorPlace:
    """The largest connected region of voxels that differ.

    Attributes:
        voxel: (s, p, l) in the view: a voxel of the region, where most of it lies.
        size: voxels. regions: how many regions there are.
    """

    voxel: Index
    size: int
    regions: int


def slices_record(
    cases: Sequence[tuple[CasePair, float | None]],
    *,
    names: Mapping[str, str],
    images: Path | None = None,
    sides: tuple[str, str] = ("prediction", "reference"),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Slices of cases, worst first.

    Args:
        cases: files, and the figure by which a case is bad (lowest Dice), None if undefined.
        names: label key -> name.
        images: a folder of images, or one, to show behind the outlines; a dark ground without it.
        sides: what the two files are called.

    Returns:
        The record, and case -> why its slices are not in it.
    """
    shown, problems = [], {}
    for pair, figure in cases:
        try:
            record = case_slices(pair, image_of(images, pair.case))
        except (OfflineInferError, OSError, ValueError, MemoryError) as error:
            problems[pair.case] = " ".join(str(error).split())
            continue
        shown.append({"case": pair.case, "figure": figure, **record})
    return {"kind": KIND, "version": 1, "sides": list(sides), "labels": dict(names), "cases": shown}, problems


def case_slices(pair: CasePair, image_file: Path | None = None) -> dict[str, Any]:
    """Slices of one case; ``planes`` through the largest error, ``scroll`` through all of the labelled part.

    Raises:
        ImageError, GeometryError, UsageError: a file cannot be read, or the files are of different grids.
    """
    from offline_infer.images import read_image, read_labels

    prediction, frame = read_labels(pair.first)
    reference, _ = read_labels(pair.second)
    if prediction.shape != reference.shape:
        raise GeometryError(f"{pair.first} and {pair.second} differ in shape")
    image: npt.NDArray[np.float32] | None = None
    if image_file is not None:
        image = read_image([image_file], frame.reader).array[0]
    known = image if image is not None else np.zeros(prediction.shape, np.float32)
    view = to_patient_axes(known, prediction, reference, frame.spacing, frame.direction)
    return view_slices(view, grey=image is not None)


def view_slices(view: View, *, grey: bool) -> dict[str, Any]:
    """The same of a view with a reference; without ``grey`` the image is left out."""
    assert view.reference is not None
    place = largest_error(view)
    box = _crop(view)
    limits = intensity_limits(view.image, None) if grey else None
    centre = place.voxel if place is not None else tuple((first + last) // 2 for first, last in box)
    flat = view.image.shape[0] == 1
    planes = [_slice(view, box, axis, int(centre[axis]), limits) for axis in ((0,) if flat else (0, 1, 2))]
    first, last = box[0]
    chosen = {round(v) for v in np.linspace(first, last - 1, min(SCROLLED, last - first))} | {int(centre[0])}
    record: dict[str, Any] = {
        "differing": int(np.count_nonzero(view.prediction != view.reference)),
        "largest_error": None,
        "planes": planes,
        "scroll": [] if flat else [_slice(view, box, 0, index, limits) for index in sorted(chosen, reverse=True)],
    }
    if place is not None:
        ml = math.prod(view.spacing) / 1000
        stored = dict(view.stored_index(axis, index).split() for axis, index in enumerate(place.voxel))
        record["largest_error"] = {
            "voxels": place.size,
            "ml": round(place.size * ml, 4),
            "regions": place.regions,
            "voxel": [int(stored[axis]) for axis in "zyx"],
        }
    return record


def largest_error(view: View) -> ErrorPlace | None:
    """Where most voxels that differ lie together; None where nothing differs."""
    import cc3d

    differing = np.ascontiguousarray(view.prediction != view.reference)
    if not differing.any():
        return None
    labelled, number = cc3d.connected_components(differing, connectivity=26, return_N=True)
    sizes = np.bincount(labelled.ravel(), minlength=number + 1)
    sizes[0] = 0
    largest = int(sizes.argmax())
    region = labelled == largest
    # In every direction the plane that holds most of it, so that the voxel lies well inside.
    s = int(np.count_nonzero(region, axis=(1, 2)).argmax())
    p = int(np.count_nonzero(region[s], axis=1).argmax())
    (row,) = np.nonzero(region[s, p])
    return ErrorPlace((s, p, int(row[len(row) // 2])), int(sizes[largest]), int(number))


def _crop(view: View) -> Box:
    """The labelled part with a margin; all of the volume where nothing is labelled."""
    foreground = view.foreground
    if not foreground.any():
        return tuple((0, size) for size in view.image.shape)  # type: ignore[return-value]
    labelled = bounding_box(foreground)
    box = []
    for (first, last), size, step in zip(labelled, view.image.shape, view.spacing, strict=True):
        margin = math.ceil(_MARGIN_MM / step)
        box.append((max(0, first - margin), min(size, last + margin)))
    # Along the body only labelled slices are worth scrolling through.
    return (labelled[0], box[1], box[2])


def _slice(view: View, box: Box, axis: int, index: int, limits: tuple[float, float] | None) -> dict[str, Any]:
    whole = [slice(first, last) for first, last in box]
    if axis != 0:  # slices along the body keep their surroundings
        margin = math.ceil(_MARGIN_MM / view.spacing[0])
        whole[0] = slice(max(0, box[0][0] - margin), min(view.image.shape[0], box[0][1] + margin))

    def plane(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        cut: list[Any] = list(whole)
        cut[axis] = index
        found: npt.NDArray[Any] = array[tuple(cut)]
        return found if axis == 0 else found[::-1]  # stored from the feet up, shown from the head down

    assert view.reference is not None
    ours, theirs = plane(view.prediction), plane(view.reference)
    rows, columns = ours.shape
    height_mm, width_mm = (
        n * view.spacing[a] for n, a in zip((rows, columns), (a for a in range(3) if a != axis), strict=True)
    )
    outlines = [
        {"label": int(label), "side": side, "path": outline_path(part == label)}
        for side, part in (("reference", theirs), ("prediction", ours))
        for label in np.unique(part)
        if label != 0
    ]
    record: dict[str, Any] = {
        "plane": PLANES[axis],
        "index": view.stored_index(axis, index),
        "rows": rows,
        "columns": columns,
        "width_mm": round(width_mm, 3),
        "height_mm": round(height_mm, 3),
        "differing": int(np.count_nonzero(ours != theirs)),
        "error": outline_path(ours != theirs),
        "outlines": outlines,
    }
    if limits is not None:
        step = max(1, math.ceil(max(rows, columns) / _LONGEST))
        picture = png_of(plane(view.image)[::step, ::step], *limits)
        record["png"] = base64.b64encode(picture).decode("ascii")
    return record
