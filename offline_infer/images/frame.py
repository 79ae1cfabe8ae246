"""A file whose header is understood, and the tests its frame must pass. No files are opened here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import Axes, FileAxes
from offline_infer.arithmetic.budgets import check_voxels
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, ImageError
from offline_infer.files import is_unicode, printable

FloatArray = npt.NDArray[np.float32]

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest entry of D^T D - I. Beyond it a label map written as NIfTI would not come back with the same direction."""


IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Source:
    """A file (or DICOM series) whose header is understood and whose voxels are not read yet.

    Attributes:
        path: for messages.
        geometry: the frame.
        fill: writes the voxels into a C-contiguous float32 array (c, z, y, x).
        channels: how many channels the file holds; 1 but for colour images.
        notes: see :class:`offline_infer.images.image.Image`.
    """

    path: Path
    geometry: ImageGeometry
    fill: Callable[[FloatArray], None] = field(repr=False)
    channels: int = 1
    notes: tuple[str, ...] = ()


def make_geometry(
    path: Path,
    reader: str,
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: Sequence[float],
    array_spacing: Sequence[float] | None = None,
    axes: Axes | None = None,
) -> ImageGeometry:
    """An :class:`ImageGeometry` from ITK's order, two- or three-dimensional.

    A two-dimensional image becomes one slice; nnU-Net's SimpleITKIO gives that axis 999 times the largest spacing, and
    the same is done here. Its axes then say so, and the label map is written two-dimensional.

    Args:
        size, spacing, origin: (x, y) or (x, y, z); mm, LPS.
        direction: row-major, four or nine numbers.
        array_spacing: spacing of the array's axes (z, y, x) where the reader's differs from ``spacing``.
        axes: how the array relates to the file; by default its axes are the file's.

    Raises:
        GeometryError: no voxels or implausibly many, zero, negative or non-finite spacing, or a singular direction.
    """
    matrix = np.asarray(direction, dtype=np.float64).reshape(len(size), len(size))
    steps = [float(value) for value in spacing]
    check_spacing(path, steps)
    corner = [float(value) for value in origin]
    counts = [int(value) for value in size]
    if min(counts) < 1:
        raise GeometryError(f"{path}: its size is {tuple(counts)}; it holds no voxels")
    check_voxels(counts, str(path), "is its header right?")
    if len(counts) == 2:
        axes = axes or FileAxes(2)
        steps.append(999.0 * max(steps))
        corner.append(0.0)
        counts.append(1)
        matrix = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    along_array = [float(value) for value in array_spacing] if array_spacing is not None else steps[::-1]
    check_spacing(path, along_array)
    check_matrix(path, matrix, corner)
    return ImageGeometry(
        shape=(counts[2], counts[1], counts[0]),
        spacing=(along_array[0], along_array[1], along_array[2]),
        origin=tuple(corner),
        direction=tuple(float(value) for value in matrix.ravel()),
        itk_spacing=tuple(steps),
        reader=reader,
        axes=axes or FileAxes(),
    )


def unsaid(path: Path, spacing: bool, position: bool, orientation: bool) -> tuple[str, ...]:
    """The remark on a header that leaves out what a reader then makes up; none where it leaves out nothing.

    Args:
        spacing, position, orientation: whether the header says it.
    """
    missing = []
    if not spacing:
        missing.append("how far its voxels are apart (1 mm was taken)")
    if not position:
        missing.append("where it lies (the reader's own place for such files was taken)")
    if not orientation:
        missing.append("how it is turned (its axes were taken along x, y and z)")
    return (f"{path}: does not say {', nor '.join(missing)}",) if missing else ()


def require_unicode(path: Path) -> None:
    """The image libraries abort the process, or open another file, where a path is not UTF-8.

    Raises:
        ImageError: it is not.
    """
    if not is_unicode(path):
        raise ImageError(
            f"{printable(path)}: its path is not UTF-8, which the image libraries need; rename the file or folder"
        )


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Spacing must be finite and positive.

    Raises:
        GeometryError: it is not.
    """
    if not all(np.isfinite(value) and value > 0 for value in spacing):
        shown = ", ".join(f"{value:g}" for value in spacing)
        raise GeometryError(
            f"{path}: impossible spacing ({shown}) mm; every axis needs a positive number - repair the header or "
            "convert the image again"
        )


def check_matrix(path: Path, matrix: npt.NDArray[np.float64], origin: Sequence[float]) -> None:
    """Direction and origin must be finite, and the direction invertible.

    Raises:
        GeometryError: they are not.
    """
    if not np.isfinite(origin).all():
        raise GeometryError(f"{path}: the origin {_numbers(origin)} is not finite; repair the header")
    if not np.isfinite(matrix).all() or abs(float(np.linalg.det(matrix))) < 1e-6:
        raise GeometryError(f"{path}: the direction {_numbers(matrix.ravel())} is singular; repair the header")


def shear(geometry: ImageGeometry) -> float:
    """How far the direction is from orthonormal: the largest entry of D^T D - I."""
    matrix = np.asarray(geometry.direction).reshape(3, 3)
    return float(np.abs(matrix.T @ matrix - np.eye(3)).max())


def require_orthonormal(path: Path, geometry: ImageGeometry) -> None:
    """ITK's frames have perpendicular axes of unit length.

    Raises:
        GeometryError: those of this one are not.
    """
    amount = shear(geometry)
    if amount > ORTHONORMAL_TOLERANCE:
        raise GeometryError(
            f"{path}: the direction {_numbers(geometry.direction)} is sheared (off perpendicular by {amount:.2g}); "
            "resample the image to a rectangular grid first"
        )


def require_same_frame(first: Source, other: Source) -> None:
    """The channels of a case must lie on the same grid.

    nnU-Net stops at a different shape or spacing and prints a warning at a different origin or direction. Here all
    four stop the case: the label map of a case with shifted channels is wrong without looking wrong. Tolerances:
    spacing as nnU-Net (1e-5 relative); origin one hundredth of the smallest spacing; direction 1e-4 per entry.

    Raises:
        GeometryError: they differ; the message names both files and both values.
    """
    a, b = first.geometry, other.geometry
    checks: tuple[tuple[str, Sequence[float], Sequence[float], float, float], ...] = (
        ("shape (z, y, x)", a.shape, b.shape, 0.0, 0.0),
        ("spacing (z, y, x) mm", a.spacing, b.spacing, 1e-5, 1e-8),
        ("origin (x, y, z) mm", a.origin, b.origin, 1e-5, 0.01 * min(a.itk_spacing)),
        ("direction", a.direction, b.direction, 0.0, 1e-4),
    )
    for what, mine, its, relative, absolute in checks:
        if len(mine) != len(its) or not np.allclose(mine, its, rtol=relative, atol=absolute):
            raise GeometryError(
                f"the channels of a case must lie on one grid, but {what} differs: {first.path} has {_numbers(mine)}, "
                f"{other.path} has {_numbers(its)}; resample one onto the other first"
            )


def require_finite(path: Path, array: FloatArray) -> None:
    """NaN and infinite voxels are refused.

    Args:
        array: (c, z, y, x) or (z, y, x), float32.

    Raises:
        ImageError: with their number and the place of the first.
    """
    volume = array.reshape(-1, *array.shape[-2:])
    # One slice at a time: the mask of a whole CT would cost a quarter of its memory.
    bad = 0
    place: tuple[int, ...] = ()
    for index, plane in enumerate(volume):
        finite = np.isfinite(plane)
        if finite.all():
            continue
        if not place:
            row, column = np.argwhere(~finite)[0]
            place = (index % array.shape[-3], int(row), int(column))
        bad += int(finite.size - np.count_nonzero(finite))
    if bad:
        raise ImageError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite, the first at (z, y, x) = {place}; "
            "replace them, with the background's value for instance, and write the image again"
        )


def copy_finite(path: Path, values: npt.NDArray[Any], out: FloatArray) -> None:
    """Copy decoded pixels into ``out``, and refuse NaN and infinity.

    Raises:
        ImageError: as :func:`require_finite`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        out[:] = values
    if values.dtype.kind == "f":
        require_finite(path, out)


def _numbers(values: Sequence[float] | npt.NDArray[Any]) -> str:
    return "(" + ", ".join(f"{float(value):.6g}" for value in values) + ")"
