"""Reading a case for the staged road: its image, its frame alone, its previous stage's labels, its files' stamps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import (
    ImageGeometry,
    Shape3,
    bounding_box,
    nonzero_mask,
    permute,
    resampled_shape,
)
from offline_infer.errors import GeometryError, ImageError
from offline_infer.images import Image, read_geometry, read_image, read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.volume.preparing import PreparedCase, prepare


def prepare_case(case: CaseFiles, spec: VolumeSpec, previous_folder: Path | None, threads: int) -> PreparedCase:
    """Read and prepare one case.

    Args:
        previous_folder: for a cascade's second stage, the folder with the first stage's label maps.

    Raises:
        CaseError: the image, or the previous stage's label map, is missing, damaged or does not fit the model.
    """
    image: Image = read_image(case.channels, spec.reader)
    previous = previous_labels(case, spec, previous_folder, image.geometry)
    return prepare(image.array, image.geometry, spec, previous, threads=threads)


def previous_labels(
    case: CaseFiles, spec: VolumeSpec, folder: Path | None, frame: ImageGeometry
) -> npt.NDArray[np.integer] | None:
    """The first stage's label map (z, y, x) of a case, or None where the model needs none.

    Raises:
        GeometryError: no folder was given, or the map has another shape than the image.
        ImageError: the file is missing or unreadable.
    """
    if spec.previous_stage is None:
        return None
    if folder is None:
        raise GeometryError(
            "this model is the second stage of a cascade: name the folder with its first stage's label maps "
            "(--previous-predictions FOLDER)"
        )
    path = previous_file(case, spec, folder)
    if not path.is_file():
        raise ImageError(f"{path}: the previous stage's label map is missing; run the first stage on this case")
    labels, its_frame = read_labels(path, spec.reader)
    if its_frame.shape != frame.shape:
        raise GeometryError(f"{path}: shape {its_frame.shape}, but the image has {frame.shape}")
    return labels


def previous_file(case: CaseFiles, spec: VolumeSpec, folder: Path) -> Path:
    """Where the first stage's label map of a case is expected."""
    return folder / f"{case.case_id}{spec.file_ending}"


def network_shape(case: CaseFiles, spec: VolumeSpec, *, exact: bool) -> Shape3:
    """Spatial shape (z, y, x) of the prepared array, without preparing it.

    Args:
        exact: read the voxels and crop; otherwise the headers give an upper bound.

    Raises:
        CaseError: the files are missing, damaged or do not fit.
    """
    if exact:
        image = read_image(case.channels, spec.reader)
        frame, box = image.geometry, bounding_box(nonzero_mask(image.array))
        shape: tuple[int, ...] = tuple(last - first for first, last in box)
    else:
        frame = read_geometry(case.channels, spec.reader)
        shape = frame.shape
    order = spec.transpose_forward
    spacing = permute(frame.spacing, order)
    target = (spacing[0], *spec.spacing) if len(spec.spacing) == 2 else spec.spacing
    return resampled_shape(permute(shape, order), spacing, target)


def source_files(case: CaseFiles, spec: VolumeSpec, previous_folder: Path | None) -> tuple[Path, ...]:
    """Everything a case is made from."""
    files = tuple(case.channels)
    if spec.previous_stage is not None and previous_folder is not None:
        files = (*files, previous_file(case, spec, previous_folder))
    return files


def stamps(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """(bytes, newest mtime in ns) of each file, or of a folder's files together; (0, 0) where there is none."""
    return tuple(_stamp(path) for path in files)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        members = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [member.stat() for member in members]
    except OSError:
        return (0, 0)
    return (sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0))
