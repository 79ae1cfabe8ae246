"""Volumes through SimpleITK: nnU-Net's ``SimpleITKIO`` and ``SimpleITKIOWithReorient``, and nnU-Net v1."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from offline_infer.arithmetic.axes import Turn, TurnedAxes, three_finite
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import CaseError, GeometryError, ImageError
from offline_infer.images import gipl, metaimage, nifti, nrrd
from offline_infer.images.formats import NIFTI_ENDINGS, ending_of, is_dicom
from offline_infer.images.frame import (
    FloatArray,
    Source,
    make_geometry,
    require_finite,
    require_orthonormal,
    require_unicode,
)
from offline_infer.images.stored import StoredVoxels

IMAGE_IO = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".gipl": "GiplImageIO",
    ".dcm": "GDCMImageIO",
    ".ima": "GDCMImageIO",
}
"""The only ITK readers that are ever used: a file is never tried as some other format ITK happens to know."""


STORED: dict[str, Callable[[Path], StoredVoxels]] = {
    ".mha": metaimage.read_header,
    ".mhd": metaimage.read_header,
    ".nrrd": nrrd.read_header,
    ".gipl": gipl.read_header,
}
"""Formats whose voxels are decoded here, without ITK."""


class _Quiet:
    """Silences ITK's own warnings on stderr while at least one thread is inside ITK, and restores them after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = True

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before = bool(sitk.ProcessObject.GetGlobalWarningDisplay())
                sitk.ProcessObject.SetGlobalWarningDisplay(False)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    sitk.ProcessObject.SetGlobalWarningDisplay(self._before)


quiet = _Quiet()


def open_volume(path: Path, reader: str) -> Source:
    """Read a volume file's header; voxels are read by the source's ``fill``.

    Args:
        reader: ``SimpleITKIO`` or ``SimpleITKIOWithReorient`` (turned to RAS axes).

    Raises:
        ImageError: not readable, not three-dimensional, not one number a voxel.
        GeometryError: impossible spacing or direction.
    """
    ending = ending_of(path)
    dims: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    if ending in NIFTI_ENDINGS:
        nifti_header = nifti.read_header(path)
        nifti.require_three_dimensions(path, nifti_header.dims)
        if nifti_header.version == 2:
            raise ImageError(f"{path}: is NIfTI-2, which {reader} does not read; convert it to NIfTI-1 or .mha")
        scaling = nifti.itk_scaling(nifti_header)
        dims, floats = nifti_header.dims, nifti.may_hold_nan(nifti_header, scaling)
        notes = nifti_header.notes
        if nifti_header.skewed:
            notes += (f"{path}: its sform is no rectangular frame, so its qform was taken, as ITK does",)
        read: Callable[[FloatArray], None] = partial(nifti.read_voxels, path, nifti_header, scaling)
    elif ending in STORED:
        stored = STORED[ending](path)
        dims, floats, notes = stored.dims, stored.dtype.kind == "f", stored.notes
        read = stored.read
    else:
        floats = True
        read = partial(copy_voxels, path)
    info = read_information(path)
    frame = stored_frame(path, info, reader)
    if dims is not None and dims != tuple(int(n) for n in info.GetSize()):
        raise ImageError(f"{path}: ITK sees {info.GetSize()} voxels, the header says {dims}")
    return volume_source(path, frame, reader, read, floats=floats, notes=notes)


def volume_source(
    path: Path,
    stored: ImageGeometry,
    reader: str,
    read: Callable[[FloatArray], None],
    *,
    floats: bool,
    notes: tuple[str, ...] = (),
) -> Source:
    """A source whose voxels ``read`` writes as stored, (z, y, x); turned to RAS axes where the reader does that.

    Args:
        floats: the file may hold NaN or infinity, which are then looked for.
    """
    turn: Turn | None = None
    geometry = stored
    if reader == "SimpleITKIOWithReorient":
        turn, geometry = turned_to_ras(path, stored, reader)

    def fill(out: FloatArray) -> None:
        if turn is None or turn.identity:
            read(out[0])
        else:
            volume = np.empty(stored.shape, np.float32)
            read(volume)
            out[0] = turn.apply(volume)
        if floats:
            require_finite(path, out[0])

    return Source(path, geometry, fill, notes=notes)


def read_information(path: Path) -> sitk.ImageFileReader:
    """A SimpleITK reader that has read a file's header.

    Raises:
        ImageError, GeometryError: in one line, what ITK says about it.
    """
    info = sitk.ImageFileReader()
    info.SetImageIO(IMAGE_IO.get(ending_of(path), "GDCMImageIO"))
    info.SetFileName(str(path))
    with quiet():
        try:
            info.ReadImageInformation()
        except RuntimeError as error:
            raise translate(path, error) from error
    return info


def read_image(path: Path) -> sitk.Image:
    """Header and voxels of a file.

    Raises:
        ImageError, GeometryError: in one line, what ITK says about it.
    """
    info = sitk.ImageFileReader()
    info.SetImageIO(IMAGE_IO.get(ending_of(path), "GDCMImageIO"))
    info.SetFileName(str(path))
    with quiet():
        try:
            return info.Execute()
        except RuntimeError as error:
            raise translate(path, error) from error


def copy_voxels(path: Path, out: FloatArray) -> None:
    """Read a file's voxels through ITK into ``out``, (z, y, x) or one slice of it, float32."""
    image = read_image(path)  # named, because the view below does not keep it alive
    view = sitk.GetArrayViewFromImage(image)
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = view.reshape(out.shape)


def stored_frame(path: Path, info: sitk.ImageFileReader, reader: str) -> ImageGeometry:
    """The frame as stored, checked.

    Raises:
        ImageError: four dimensions, several numbers a voxel, complex numbers.
        GeometryError: impossible spacing or direction.
    """
    nifti.require_three_dimensions(path, tuple(int(n) for n in info.GetSize()))
    if info.GetNumberOfComponents() != 1:
        raise ImageError(
            f"{path}: holds {info.GetNumberOfComponents()} numbers per voxel (colours or vectors), expected one; "
            "write one file per channel"
        )
    if info.GetPixelIDValue() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise ImageError(f"{path}: holds complex numbers, expected one integer or float per voxel")
    spacing, direction = list(info.GetSpacing()), list(info.GetDirection())
    if len(spacing) == 3 and spacing[2] < 0 and is_dicom(path):
        # GDCM's word for frames stacked against the plane's normal; ITK turns it into a reversed axis, too.
        spacing[2] = -spacing[2]
        direction[2::3] = [-value for value in direction[2::3]]
    geometry = make_geometry(path, reader, info.GetSize(), spacing, info.GetOrigin(), direction)
    require_orthonormal(path, geometry)
    return geometry


def turned_to_ras(path: Path, stored: ImageGeometry, reader: str) -> tuple[Turn, ImageGeometry]:
    """The frame after turning to RAS axes; its ``axes`` keep what is needed to write in the stored frame.

    Raises:
        ImageError: a two-dimensional image, which has no such axes.
    """
    if stored.dimensions == 2:
        raise ImageError(f"{path}: is two-dimensional; {reader} turns volumes only")
    codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.direction)
    turn = Turn.from_codes(codes)
    size, spacing, origin, direction = turn.turn_frame(
        stored.shape[::-1], stored.itk_spacing, stored.origin, stored.direction
    )
    axes = TurnedAxes(turn, three_finite(stored.itk_spacing), three_finite(stored.origin), stored.direction)
    return turn, make_geometry(path, reader, size, spacing, origin, direction, axes=axes)


def to_itk(labels: npt.NDArray[Any], geometry: ImageGeometry) -> sitk.Image:
    """A label map as an ITK image in its image's stored frame, two-dimensional where that was.

    What nibabel turned to RAS axes stays so: the frame says where it lies.

    Args:
        labels: (z, y, x) in the reader's axes.
    """
    spacing: Sequence[float] = geometry.itk_spacing
    origin: Sequence[float] = geometry.origin
    direction: Sequence[float] = geometry.direction
    axes = geometry.axes
    if isinstance(axes, TurnedAxes):
        labels = axes.turn.undo(labels)
        spacing, origin, direction = axes.spacing, axes.origin, axes.direction
    if geometry.dimensions == 2:
        labels, spacing, origin = labels[0], spacing[:2], origin[:2]
        direction = (direction[0], direction[1], direction[3], direction[4])
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels))
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection([float(value) for value in direction])
    return image


def write_image(path: Path, image: sitk.Image) -> None:
    """Write an image through ITK, compressed where the format can, and make sure that all of it arrived.

    ITK reports a full disk for some formats only, so the file is checked afterwards.

    Raises:
        ImageError: it could not be written whole, or its path is not UTF-8.
    """
    require_unicode(path)
    with quiet():
        try:
            sitk.WriteImage(image, str(path), True)
        except RuntimeError as error:
            raise ImageError(f"{path}: cannot be written ({_last_line(error)}); is the disk full?") from error
    try:
        ending = ending_of(path)
        if ending in NIFTI_ENDINGS:
            nifti.check_complete(path)
        elif ending in STORED:
            STORED[ending](path).check_complete()
        else:
            read_image(path)
    except CaseError as error:
        raise ImageError(f"{path}: was not written completely; is the disk full?") from error


def translate(path: Path, error: RuntimeError) -> CaseError:
    """ITK's exception as one line that names the file and what to do."""
    text = str(error)
    if "orthonormal" in text:
        return GeometryError(
            f"{path}: the direction in the header is not orthonormal (sheared or scaled axes); resample the image to a "
            "rectangular grid first"
        )
    if "Bad direction" in text or "determinant" in text:
        return GeometryError(f"{path}: the direction in the header is singular; repair the header")
    if "spacing" in text.lower():
        return GeometryError(f"{path}: impossible spacing ({_last_line(error)}); repair the header")
    return ImageError(
        f"{path}: cannot be read ({_last_line(error)}); it is damaged, truncated or not what its name says - copy "
        "or export it again"
    )


def _last_line(error: RuntimeError) -> str:
    """The informative part of an ITK message, which is a stack of lines with addresses in them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))] or lines
    line = lines[-1] if lines else "no reason given"
    return re.sub(r"\w+\(0x[0-9a-f]+\): ", "", line.rpartition("ERROR: ")[2])[:200]
