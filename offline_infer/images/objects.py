"""Images handed over as objects of other libraries, and label maps handed back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, ImageError
from offline_infer.images.frame import make_geometry

if TYPE_CHECKING:
    import nibabel as nib
    import SimpleITK as sitk
    from nibabel.spatialimages import SpatialImage

    from offline_infer.arithmetic.geometry import ImageGeometry

FloatArray = npt.NDArray[np.float32]
_MEMORY = Path("<image in memory>")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's coordinates (RAS) to ITK's (LPS), and back."""


def from_numpy(
    array: npt.ArrayLike,
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: Sequence[float],
    reader: str,
) -> tuple[FloatArray, ImageGeometry]:
    """Voxels (c, z, y, x) and frame of an array (z, y, x) or (c, z, y, x).

    Args:
        spacing: mm, (z, y, x), as the array's axes.
        origin, direction: ITK's: (x, y, z) in mm, LPS; nine numbers, row-major.
        reader: the nnU-Net reader whose axes the array has.

    Raises:
        ImageError: no numbers, or NaN or infinite ones.
        GeometryError: another number of axes, or an impossible frame.
    """
    values = np.asarray(array)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or 0 in values.shape:
        raise GeometryError(f"an image of shape {np.asarray(array).shape}, expected (z, y, x) or (c, z, y, x)")
    if values.dtype.kind not in "fiub":
        raise ImageError(f"an image of {values.dtype}, expected numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("the image holds NaN or infinite numbers; replace them first")
    try:
        lengths = [float(length) for length in spacing]
    except (TypeError, ValueError):
        lengths = []
    if len(lengths) != 3:
        raise GeometryError(f"spacing {spacing!r}: expected three lengths in mm, (z, y, x)")
    size = values.shape[:0:-1]
    geometry = make_geometry(_MEMORY, reader, size, lengths[::-1], origin, direction)
    return np.ascontiguousarray(values, np.float32), geometry


def from_sitk(image: sitk.Image, reader: str) -> tuple[FloatArray, ImageGeometry]:
    """Voxels (c, z, y, x) and frame of a three-dimensional SimpleITK image; components become channels.

    Raises:
        ImageError, GeometryError: see :func:`from_numpy`.
    """
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise GeometryError(f"an image of {image.GetDimension()} dimensions, expected three")
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    return from_numpy(array, image.GetSpacing()[::-1], image.GetOrigin(), image.GetDirection(), reader)


def from_nibabel(image: SpatialImage, reader: str) -> tuple[FloatArray, ImageGeometry]:
    """Voxels (c, z, y, x) and frame of a three-dimensional nibabel image.

    Raises:
        ImageError, GeometryError: see :func:`from_numpy`.
    """
    if len(image.shape) != 3 or image.affine is None:
        raise GeometryError(f"an image of shape {image.shape}, expected (x, y, z) with an affine")
    affine = _LPS @ np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise GeometryError("the image's affine is singular or not finite; repair it first")
    direction = (affine[:3, :3] / spacing).ravel()
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    return from_numpy(array, spacing[::-1].tolist(), affine[:3, 3].tolist(), direction.tolist(), reader)


def to_sitk(labels: npt.NDArray[Any], frame: ImageGeometry) -> sitk.Image:
    """A label map (z, y, x) as a SimpleITK image."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(labels)
    image.SetSpacing([float(step) for step in frame.itk_spacing])
    image.SetOrigin([float(value) for value in frame.origin])
    image.SetDirection([float(value) for value in frame.direction])
    return image


def to_nibabel(labels: npt.NDArray[Any], frame: ImageGeometry) -> nib.Nifti1Image:
    """A label map (z, y, x) as a nibabel image (x, y, z) in RAS coordinates."""
    import nibabel as nib

    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(frame.direction).reshape(3, 3) * np.asarray(frame.itk_spacing)
    matrix[:3, 3] = frame.origin
    return nib.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)), _LPS @ matrix)
