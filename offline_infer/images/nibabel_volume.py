"""NIfTI as nnU-Net's ``NibabelIO`` and ``NibabelIOWithReorient`` see it: nibabel's affine, nibabel's zooms."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import IDENTITY, AffineAxes, Turn
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import CaseError, ImageError
from offline_infer.images import nifti
from offline_infer.images.frame import (
    ORTHONORMAL_TOLERANCE,
    FloatArray,
    Source,
    check_spacing,
    make_geometry,
    require_finite,
    shear,
)

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_volume(path: Path, reader: str) -> Source:
    """Read a NIfTI file's header as nibabel does; voxels are read by the source's ``fill``.

    A sheared affine, which ITK refuses, is accepted with a note: that is what these readers are chosen for.

    Args:
        reader: ``NibabelIO`` or ``NibabelIOWithReorient`` (turned to RAS axes).

    Raises:
        ImageError: not readable or not three-dimensional.
        GeometryError: impossible spacing or affine.
    """
    import nibabel
    from nibabel.imageglobals import LoggingOutputSuppressor

    header = nifti.read_header(path)
    nifti.require_three_dimensions(path, header.dims, least=3)
    turn = IDENTITY
    try:
        with LoggingOutputSuppressor():
            image = nibabel.load(path)
            affine = np.asarray(image.affine, dtype=np.float64)
            _check_affine(path, affine)
            if reader == "NibabelIOWithReorient":
                orientation = nibabel.orientations.io_orientation(affine)
                # A shape without memory behind it lets nibabel do its own header arithmetic without reading a voxel.
                empty = np.broadcast_to(np.uint8(0), header.dims)
                image = type(image)(empty, affine, image.header).as_reoriented(orientation)
                turn = _turn(orientation)
    except CaseError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: nibabel cannot read it ({error}); it is damaged - copy or export it again"
        ) from error
    axes = AffineAxes(tuple(tuple(row) for row in affine.tolist()), turn)
    zooms = [float(value) for value in image.header.get_zooms()[:3]]
    geometry = _geometry(path, reader, header.dims, np.asarray(image.affine), zooms, axes)
    notes = header.notes
    if shear(geometry) > ORTHONORMAL_TOLERANCE:
        notes += (f"{path}: its axes are not perpendicular; distances in mm are approximate",)
    scaling = nifti.nibabel_scaling(path, header)
    read = partial(nifti.read_voxels, path, header, scaling)
    shape = header.dims[::-1]
    floats = nifti.may_hold_nan(header, scaling)

    def fill(out: FloatArray) -> None:
        if turn.identity:
            read(out[0])
        else:
            volume = np.empty(shape, np.float32)
            read(volume)
            out[0] = turn.apply(volume)
        if floats:
            require_finite(path, out[0])

    return Source(path, geometry, fill, notes=notes)


def write(path: Path, labels: npt.NDArray[Any], axes: AffineAxes) -> None:
    """Write a label map with the affine its image was stored with.

    Args:
        labels: (z, y, x) in the reader's axes.

    Raises:
        ImageError: it could not be written whole.
    """
    import nibabel

    stored = axes.turn.undo(labels)
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), np.asarray(axes.affine, dtype=np.float64))
    try:
        nibabel.save(image, path)
        nifti.check_complete(path)
    except (OSError, ImageError) as error:
        raise ImageError(f"{path}: cannot be written ({error}); is the disk full?") from error


def _check_affine(path: Path, affine: npt.NDArray[np.float64]) -> None:
    check_spacing(path, [float(value) for value in np.linalg.norm(affine[:3, :3], axis=0)])


def _geometry(
    path: Path,
    reader: str,
    dims: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    zooms: list[float],
    axes: AffineAxes,
) -> ImageGeometry:
    """The frame in ITK's words: LPS, columns of unit length."""
    lps = _TO_LPS @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    check_spacing(path, [float(value) for value in steps])
    return make_geometry(
        path,
        reader,
        axes.turn.permuted(dims),
        [float(value) for value in steps],
        [float(value) for value in lps[:3, 3]],
        (lps[:3, :3] / steps).ravel().tolist(),
        array_spacing=zooms[::-1],
        axes=axes,
    )


def _turn(orientation: npt.NDArray[np.float64]) -> Turn:
    """nibabel's (target axis, sign) per stored axis, as a :class:`Turn`."""
    targets = [int(row[0]) for row in orientation]
    axes = [targets.index(axis) for axis in range(3)]
    flips = [bool(orientation[axis, 1] < 0) for axis in axes]
    return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
