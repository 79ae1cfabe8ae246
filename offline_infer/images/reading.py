"""``read_image`` and ``read_labels``: from files to arrays and frames, or one readable line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.images import dicom, itk, nibabel_volume, pictures, tiff
from offline_infer.images.formats import (
    FLAT_ENDINGS,
    NIFTI_ENDINGS,
    ending_of,
    is_dicom,
    reader_endings,
)
from offline_infer.images.frame import Source, require_same_frame, require_unicode
from offline_infer.images.image import Image
from offline_infer.images.isolation import current_reader

_LARGEST_LABEL = 1 << 24  # whole numbers are exact in float32 up to here


def read_image(paths: Sequence[Path], reader: str, *, channels: int | None = None) -> Image:
    """Read the channels of one case as nnU-Net's reader of that name does.

    A NIfTI spacing is the float32 of the file, a two-dimensional image becomes one slice, colours become channels. The
    ``Nibabel`` readers know NIfTI only; other volumes and DICOM are read as their SimpleITK counterparts do.

    Args:
        paths: one file per channel in the model's order; a folder is one DICOM series; a colour image gives several.
        reader: ``SimpleITKIO``, ``SimpleITKIOWithReorient``, ``NibabelIO``, ``NibabelIOWithReorient``,
            ``NaturalImage2DIO`` or ``Tiff3DIO``.
        channels: how many channels the model expects; None leaves it unchecked.

    Returns:
        Array (c, z, y, x), float32, C-contiguous, and the frame of the first channel.

    Raises:
        UsageError: no path, or an unknown reader.
        ImageError: a file that is missing, unreadable, truncated, of the wrong kind, or holds NaN.
        GeometryError: channels on different grids, impossible spacing or direction, another number of channels.
    """
    isolated = current_reader()
    if isolated is not None:
        return isolated.read_image(paths, reader, channels=channels)
    sources, shape = open_sources(paths, reader, channels)
    try:
        array = np.empty(shape, np.float32)
    except (MemoryError, ValueError) as error:
        raise ImageError(
            f"{sources[0].path}: {shape} voxels (c, z, y, x) do not fit the memory; is the header right?"
        ) from error
    fill_from(sources, array)
    notes = tuple(note for source in sources for note in source.notes)
    return Image(array, sources[0].geometry, notes)


def open_sources(paths: Sequence[Path], reader: str, channels: int | None) -> tuple[list[Source], tuple[int, ...]]:
    """The sources of one case, which lie on one grid, and the shape (c, z, y, x) they fill. No voxels are read.

    Raises:
        UsageError, ImageError, GeometryError: as :func:`read_image`, as far as a header can tell.
    """
    if not paths:
        raise UsageError("no image file was given")
    sources = [_open(Path(path), reader) for path in paths]
    for other in sources[1:]:
        require_same_frame(sources[0], other)
    count = sum(source.channels for source in sources)
    if channels is not None and count != channels:
        names = ", ".join(str(source.path) for source in sources)
        raise GeometryError(f"{names}: {count} channels, but the model expects {channels}")
    return sources, (count, *sources[0].geometry.shape)


def fill_from(sources: Sequence[Source], array: npt.NDArray[np.float32]) -> None:
    """Read the voxels of all sources into ``array`` (c, z, y, x).

    Raises:
        ImageError: a file is truncated or damaged, or holds NaN or infinity.
    """
    start = 0
    for source in sources:
        _guarded(source, array[start : start + source.channels])
        start += source.channels


def read_geometry(paths: Sequence[Path], reader: str, *, label: bool = False) -> ImageGeometry:
    """The frame of a case from the headers of its files; no voxels are read.

    Args:
        paths, reader: as for :func:`read_image`.
        label: the file is a label map, whose name has no channel number.

    Raises:
        UsageError, ImageError, GeometryError: as :func:`read_image`, as far as a header can tell.
    """
    if not paths:
        raise UsageError("no image file was given")
    isolated = current_reader()
    if isolated is not None:
        return isolated.read_geometry(paths, reader, label=label)
    sources = [_open(Path(path), reader, label=label) for path in paths]
    for other in sources[1:]:
        require_same_frame(sources[0], other)
    return sources[0].geometry


def read_labels(path: Path, reader: str | None = None) -> tuple[npt.NDArray[np.integer[Any]], ImageGeometry]:
    """Read a label map.

    Args:
        reader: as for :func:`read_image`; by default the file's ending decides: SimpleITKIO for volumes, Tiff3DIO for
            grey TIFF stacks, NaturalImage2DIO for images. Give the model's reader where the array must lie in its axes.

    Returns:
        Array (z, y, x), the smallest of uint8, uint16 and int32 that holds the labels, and the frame.

    Raises:
        ImageError: not readable, colours, or values that are no whole numbers.
        GeometryError: impossible spacing or direction.
    """
    path = Path(path)
    isolated = current_reader()
    if isolated is not None:
        return isolated.read_labels(path, reader)
    source = _open(path, reader or label_reader(path), label=True)
    if source.channels != 1:
        raise ImageError(f"{path}: has {source.channels} colour channels; a label map has one number per voxel")
    values = np.empty((1, *source.geometry.shape), np.float32)
    _guarded(source, values)
    return _whole_numbers(path, values[0]), source.geometry


def label_reader(path: Path) -> str:
    """The reader that a label map's ending asks for."""
    if ending_of(path) not in FLAT_ENDINGS:
        return "SimpleITKIO"
    return "Tiff3DIO" if path.is_file() and tiff.is_stack(path) else "NaturalImage2DIO"


def _open(path: Path, reader: str, *, label: bool = False) -> Source:
    """Choose who reads a file, after making sure that there is something to read."""
    legal = reader_endings(reader)
    ending = ending_of(path)
    _require_readable(path)
    folder = path.is_dir()
    series = folder or is_dicom(path)
    if not series and ending not in legal:
        shown = ", ".join(legal)
        raise ImageError(
            f"{path}: {reader} reads {shown}{' and DICOM folders' if '.dcm' in legal else ''}; convert the image"
        )
    if series and ".dcm" not in legal:
        kind = "a folder" if folder else "DICOM"
        raise ImageError(f"{path}: is {kind}, but this model's reader {reader} takes {', '.join(legal)}")
    try:
        if reader == "NaturalImage2DIO":
            return pictures.open_picture(path)
        if reader == "Tiff3DIO":
            return tiff.open_stack(path, label=label)
        if reader.startswith("NibabelIO") and ending in NIFTI_ENDINGS and not series:
            return nibabel_volume.open_volume(path, reader)
        through_itk = reader.replace("NibabelIO", "SimpleITKIO")
        return dicom.open_series(path, through_itk) if series else itk.open_volume(path, through_itk)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _require_readable(path: Path) -> None:
    require_unicode(path)
    try:
        exists = path.exists()
    except OSError as error:
        raise ImageError(f"{path}: cannot be reached ({error.strerror or error})") from error
    if not exists:
        raise ImageError(f"{path}: does not exist; check the path")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{path}: permission denied; make it readable for this user")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path}: is empty (0 bytes); copy or export it again")
    if not path.is_file() and not path.is_dir():
        raise ImageError(f"{path}: is neither a file nor a folder")


def _guarded(source: Source, out: npt.NDArray[np.float32]) -> None:
    try:
        source.fill(out)
    except OSError as error:  # an unplugged drive, a network file system that gives up
        raise ImageError(f"{source.path}: reading failed ({error.strerror or error})") from error


def _whole_numbers(path: Path, values: npt.NDArray[np.float32]) -> npt.NDArray[np.integer[Any]]:
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > _LARGEST_LABEL:
        raise ImageError(f"{path}: holds values from {low:g} to {high:g}; is it an image instead of a label map?")
    dtype: Any = np.int32 if low < 0 or high > 65535 else np.uint16 if high > 255 else np.uint8
    labels: npt.NDArray[np.integer[Any]] = values.astype(dtype)
    wrong = int(np.count_nonzero(labels != values))
    if wrong:
        place = tuple(int(i) for i in np.argwhere(labels != values)[0])
        raise ImageError(
            f"{path}: expected a label map, but {wrong} voxels are no whole numbers, the first ({values[place]:g}) at "
            f"(z, y, x) = {place}"
        )
    return labels
