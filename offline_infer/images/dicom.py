"""A folder with one DICOM series, or one DICOM file, as a volume: sorted by position, gaps and tilts refused.

SimpleITK's series reader takes the spacing from the first and the last slice and does not report a missing slice, a
tilted gantry or two phases in one series. Here every slice's position is checked before a voxel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from offline_infer.arithmetic.budgets import check_plausible
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, ImageError
from offline_infer.images import itk
from offline_infer.images.dicom_tags import check_orientation, check_pixels, frame_tags, is_no_image
from offline_infer.images.formats import dicom_candidates
from offline_infer.images.frame import FloatArray, Source, make_geometry, unsaid

REFUSED_DEVIATION = 0.25
"""A slice may lie off an even grid by this fraction of the slice distance; a single missing slice gives at least 0.5."""
NOTED_DEVIATION = 0.02
"""From this fraction on an uneven grid is noted."""
REFUSED_DRIFT = 0.5
"""Pixels by which the last slice may have moved sideways; beyond it the gantry was tilted."""

_POSITIONED_FRAMES = (
    "1.2.840.10008.5.1.4.1.1.2.",  # enhanced and legacy-converted enhanced CT
    "1.2.840.10008.5.1.4.1.1.4.",  # the same, MR
    "1.2.840.10008.5.1.4.1.1.128.",  # the same, PET
    "1.2.840.10008.5.1.4.1.1.130",  # enhanced PET
    "1.2.840.10008.5.1.4.1.1.13.1.",  # reconstructed X-ray volumes
)
"""SOP classes whose frames have positions in space."""


_CLASS = "0008|0016"
_SERIES = "0020|000e"
_POSITION = "0020|0032"
_ORIENTATION = "0020|0037"
_PIXEL_SPACING = "0028|0030"
_SLOPE, _INTERCEPT = "0028|1053", "0028|1052"
_SAME = {"0010|0020": "patients", "0020|000d": "studies", "0020|0052": "frames of reference"}
"""What the slices of one series share, by tag."""


@dataclass(frozen=True)
class _Slice:
    path: Path
    info: sitk.ImageFileReader
    series: str

    def tag(self, key: str) -> str:
        return str(self.info.GetMetaData(key)).strip() if self.info.HasMetaDataKey(key) else ""

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.info.GetSize())

    @property
    def position(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.info.GetOrigin()[:3], dtype=np.float64)


def open_series(path: Path, reader: str) -> Source:
    """Read the headers of a DICOM folder or file.

    Args:
        path: a folder that holds exactly one image series, or one file (one slice, or an enhanced multi-frame image).
        reader: ``SimpleITKIO`` or ``SimpleITKIOWithReorient``.

    Raises:
        ImageError: no series, several series (with an example of each), unreadable files, colours.
        GeometryError: slices that do not form an evenly spaced, straight stack.
    """
    slices = _image_files(path)
    if len(slices) == 1:
        return _single(slices[0], path, reader)
    for part in slices:
        itk.stored_frame(part.path, part.info, reader)
        if len(part.size) == 3 and part.size[2] != 1:
            raise ImageError(
                f"{path}: mixes single slices with the multi-frame file {part.path.name}; give each its own folder"
            )
    _refuse_mixed(path, slices)
    slices = _sorted(path, slices)
    first = slices[0]
    spacing, notes = _slice_distance(path, slices)
    notes += unsaid(path, bool(first.tag(_PIXEL_SPACING)), position=True, orientation=True)
    steps = first.info.GetSpacing()
    geometry = make_geometry(
        path,
        reader,
        (*first.size[:2], len(slices)),
        (steps[0], steps[1], spacing),
        first.info.GetOrigin(),
        first.info.GetDirection(),
    )
    return itk.volume_source(
        path, geometry, reader, partial(_read_slices, [part.path for part in slices]), floats=True, notes=notes
    )


def _image_files(path: Path) -> list[_Slice]:
    """The slices of the one series, headers read, in no particular order."""
    if path.is_file():
        return [_open(path)]
    candidates = dicom_candidates(path)
    if not candidates:
        raise ImageError(f"{path}: holds no DICOM files (names ending with .dcm, or files that begin as DICOM does)")
    slices = [_open(file) for file in candidates if not is_no_image(file)]
    if not slices:
        raise ImageError(f"{path}: its {len(candidates)} DICOM files are reports or other documents, not images")
    series: dict[str, list[_Slice]] = {}
    for part in slices:
        series.setdefault(part.series, []).append(part)
    if len(series) > 1:
        listed = "; ".join(
            f"{len(parts)} files, e.g. {parts[0].path.name}"
            for parts in sorted(series.values(), key=lambda parts: parts[0].path.name)
        )
        raise ImageError(
            f"{path}: holds {len(series)} DICOM series, expected one: {listed}; give each series its own folder"
        )
    return slices


def _open(path: Path) -> _Slice:
    info = itk.read_information(path)
    part = _Slice(path, info, str(info.GetMetaData(_SERIES)) if info.HasMetaDataKey(_SERIES) else "")
    check_plausible(part.size, path.stat().st_size, str(path))
    orientation = part.tag(_ORIENTATION)
    if orientation:
        check_orientation(path, _numbers(orientation))
    steps = _numbers(part.tag(_PIXEL_SPACING)) if part.tag(_PIXEL_SPACING) else []
    if steps and (len(steps) != 2 or not all(isfinite(step) and step > 0 for step in steps)):
        raise GeometryError(
            f"{path}: its PixelSpacing is not two positive numbers; repair the header or export the series again"
        )
    for key, least in ((_SLOPE, 1e-300), (_INTERCEPT, 0.0)):
        value = _number(part.tag(key), nan) if part.tag(key) else 1.0
        if not (isfinite(value) and abs(value) >= least):
            raise ImageError(f"{path}: its RescaleSlope or RescaleIntercept is no usable number; export it again")
    check_pixels(path)
    return part


def _single(part: _Slice, path: Path, reader: str) -> Source:
    """One file: one slice, or all frames of an enhanced image."""
    geometry = itk.stored_frame(part.path, part.info, reader)
    frames = geometry.shape[0]
    notes: tuple[str, ...] = ()
    spacing = geometry.itk_spacing[2]
    if frames > 1:
        _check_frames(part, frames, geometry)
    else:
        # GDCM says 1 mm where no distance to a next slice is given; the slice's own thickness is the better answer.
        for key in ("0018|0088", "0018|0050"):
            value = _number(part.tag(key))
            if value > 0:
                spacing = value
                break
        else:
            notes += (f"{path}: does not say how thick its slice is; {spacing:g} mm was taken",)
        if not part.tag(_CLASS).startswith(_POSITIONED_FRAMES):  # which say it where ITK does not look
            notes += unsaid(path, *(bool(part.tag(tag)) for tag in (_PIXEL_SPACING, _POSITION, _ORIENTATION)))
    geometry = make_geometry(
        path,
        reader,
        geometry.shape[::-1],
        (*geometry.itk_spacing[:2], spacing),
        geometry.origin,
        geometry.direction,
    )

    return itk.volume_source(path, geometry, reader, partial(itk.copy_voxels, part.path), floats=True, notes=notes)


def _refuse_mixed(path: Path, slices: Sequence[_Slice]) -> None:
    """Slices of one series come from one patient, one study and one frame of reference, as far as they say so.

    Raises:
        ImageError: they do not; what they say is not repeated.
    """
    for tag, what in _SAME.items():
        by_value = {part.tag(tag): part.path.name for part in slices if part.tag(tag)}
        if len(by_value) > 1:
            one, other, *_ = by_value.values()
            raise ImageError(
                f"{path}: its slices belong to {len(by_value)} {what}, for example {one} and {other}; give each its own folder"
            )


def _sorted(path: Path, slices: Sequence[_Slice]) -> list[_Slice]:
    """In the order of their positions along the normal of the first one's plane; all must agree on that plane."""
    first = slices[0]
    plane = np.asarray(first.info.GetDirection(), dtype=np.float64)
    for part in slices:
        for key, what in (
            (_POSITION, "position in space (ImagePositionPatient)"),
            (_ORIENTATION, "orientation in space"),
        ):
            if not part.tag(key):
                raise GeometryError(f"{part.path}: has no {what}; its series cannot be stacked")
        same_plane = np.allclose(part.info.GetDirection(), plane, atol=1e-4)
        same_pixels = np.allclose(part.info.GetSpacing()[:2], first.info.GetSpacing()[:2], rtol=1e-4)
        if part.size[:2] != first.size[:2] or not same_plane or not same_pixels:
            raise GeometryError(
                f"{path}: a series must be one stack, but {part.path.name} has {_plane(part)} and {first.path.name} "
                f"has {_plane(first)}; move scouts and other orientations to their own folder"
            )
    normal = plane.reshape(3, 3)[:, 2]
    return sorted(slices, key=lambda part: (float(part.position @ normal), part.path.name))


def _slice_distance(path: Path, slices: Sequence[_Slice]) -> tuple[float, tuple[str, ...]]:
    """The distance of neighbouring slices in mm, and remarks. ``slices`` are sorted."""
    normal = np.asarray(slices[0].info.GetDirection(), dtype=np.float64).reshape(3, 3)[:, 2]
    places = np.stack([part.position for part in slices])
    names = [part.path.name for part in slices]
    return _even_distance(path, places, normal, names, min(slices[0].info.GetSpacing()[:2]))


def _even_distance(
    path: Path,
    places: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    names: Sequence[str],
    pixel: float,
) -> tuple[float, tuple[str, ...]]:
    """Slice distance of an even, straight stack.

    Args:
        places: (n, 3) positions in mm, in stacking order.
        pixel: smallest in-plane spacing in mm.

    Raises:
        GeometryError: two slices at one place, a gap, uneven distances, or a tilt.
    """
    along = places @ normal
    gaps = np.diff(along)
    distance = float(along[-1] - along[0]) / (len(along) - 1)
    typical = float(np.median(gaps))
    closest = int(np.argmin(gaps))
    if gaps[closest] <= 0.01 * max(distance, 1e-6):
        raise GeometryError(
            f"{path}: {names[closest]} and {names[closest + 1]} lie at the same place ({along[closest]:.3f} mm along "
            "the stack); a series with several phases or echoes must be split, duplicates removed"
        )
    deviation = np.abs(along - (along[0] + distance * np.arange(len(along)))).max() / distance
    if deviation > REFUSED_DEVIATION:
        worst = int(np.argmax(np.abs(gaps - typical)))
        raise GeometryError(
            f"{path}: uneven slices: {gaps[worst]:.3f} mm between {names[worst]} and {names[worst + 1]}, usually "
            f"{typical:.3f} mm; is a slice missing? Complete the series, or resample it to even slices"
        )
    sideways = places - places[0] - np.outer(along - along[0], normal)
    drift = float(np.linalg.norm(sideways, axis=1).max())
    if drift > REFUSED_DRIFT * pixel:
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), along[-1] - along[0]))
        raise GeometryError(
            f"{path}: the slices are shifted sideways by up to {drift:.2f} mm (gantry tilt of {angle:.1f} degrees?); "
            "resample the series to a rectangular volume first"
        )
    notes: tuple[str, ...] = ()
    if deviation > NOTED_DEVIATION:
        notes = (
            f"{path}: slice distances vary from {gaps.min():.3f} to {gaps.max():.3f} mm; {distance:.3f} mm was used",
        )
    # ITK's series reader takes the distance from the first to the last slice, and so do we.
    return float(np.linalg.norm(places[-1] - places[0])) / (len(along) - 1), notes


def _check_frames(part: _Slice, frames: int, geometry: ImageGeometry) -> None:
    """Frames of one file must form a stack. GDCM answers spacing (1, 1, 1) where they do not, which is not trusted."""
    kind = part.tag(_CLASS)
    if not kind.startswith(_POSITIONED_FRAMES):
        raise GeometryError(
            f"{part.path}: its {frames} frames have no positions in space, as in a film or an ultrasound loop; convert it "
            "to a volume first"
        )
    tags = frame_tags(part.path)
    places = tags.positions
    for orientation in tags.orientations:
        check_orientation(part.path, orientation.tolist())
        if np.abs(orientation - tags.orientations[0]).max() > 1e-4:
            raise GeometryError(f"{part.path}: its {frames} frames lie in several orientations; give each its own file")
    if len(places) == frames:
        normal = np.asarray(geometry.direction, dtype=np.float64).reshape(3, 3)[:, 2]
        names = [f"frame {index + 1}" for index in range(frames)]
        distance, _ = _even_distance(part.path, places, normal, names, min(geometry.itk_spacing[:2]))
        good = abs(distance - geometry.itk_spacing[2]) <= 0.02 * distance
    else:
        good = geometry.itk_spacing != (1.0, 1.0, 1.0)
    if not good:
        raise GeometryError(
            f"{part.path}: the distance of its {frames} frames cannot be told; sort and complete them, or convert the "
            "file to a volume"
        )


def _read_slices(paths: Sequence[Path], out: FloatArray) -> None:
    """Voxels slice by slice, each with its own rescale slope, into (z, y, x)."""
    for index, path in enumerate(paths):
        itk.copy_voxels(path, out[index])


def _numbers(text: str) -> list[float]:
    return [_number(part, nan) for part in text.split("\\")]


def _number(text: str, otherwise: float = 0.0) -> float:
    try:
        return float(text.partition("\\")[0])
    except ValueError:
        return otherwise


def _plane(part: _Slice) -> str:
    """A slice's grid in words, for messages."""
    direction = ", ".join(f"{value:.4g}" for value in part.info.GetDirection()[:6])
    return f"{part.size[0]} x {part.size[1]} pixels of {part.info.GetSpacing()[0]:.4g} mm in direction ({direction})"
