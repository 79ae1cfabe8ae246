"""Reading a volume: from files or from memory, its frame alone, its previous stage's labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import bounding_box, nonzero_mask
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.images import Image, read_image, read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.base import PreviousStage

Labels = npt.NDArray[np.integer]


def load_image(source: object, spec: VolumeSpec) -> Image:
    """An image given by path, by the paths of its channels, or as an :class:`Image`.

    Raises:
        ImageError, GeometryError: it cannot be read, or array and geometry do not fit each other.
        UsageError: none of these.
    """
    if isinstance(source, Image):
        return _checked(source)
    if isinstance(source, (str, Path)):
        return read_image([Path(source)], spec.reader, channels=len(spec.channels))
    if isinstance(source, Sequence) and source and all(isinstance(part, (str, Path)) for part in source):
        return read_image([Path(part) for part in source], spec.reader, channels=len(spec.channels))
    found = f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")
    raise UsageError(
        f"image: a {found} is no image; give a path, the paths of all channels, or an offline_infer.Image, which "
        "Image.from_numpy, Image.from_sitk and Image.from_nibabel make"
    )


def _checked(image: Image) -> Image:
    """An image from memory, looked at before it is used.

    Raises:
        GeometryError: the array's shape disagrees with the geometry.
        ImageError: no numbers, NaN or infinite numbers.
    """
    array = image.array
    if not isinstance(array, np.ndarray) or array.ndim != 4:
        found = f"an array of {array.ndim} axes" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise GeometryError(f"image.array: {found}, expected a NumPy array (c, z, y, x)")
    if array.shape[1:] != tuple(image.geometry.shape):
        raise GeometryError(
            f"image.array has shape {array.shape[1:]} (z, y, x), image.geometry says {tuple(image.geometry.shape)}; "
            "they must be of the same image, axes in the same order"
        )
    if array.dtype.kind not in "fiub":
        raise ImageError(f"image.array holds {array.dtype}, expected numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError("image.array holds NaN or infinite numbers; replace them before segmentation")
    return image if array.dtype == np.float32 else Image(array.astype(np.float32), image.geometry)


def cropped_shape(image: Image) -> tuple[int, ...]:
    """(z, y, x) of an image without its empty border."""
    return tuple(last - first for first, last in bounding_box(nonzero_mask(image.array)))


def previous_labels(case: CaseFiles | None, image: Image, spec: VolumeSpec, stage: PreviousStage) -> Labels | None:
    """The first stage's label map (z, y, x) of a case, or None where the model needs none.

    Raises:
        GeometryError: there is no first stage, or its map has another shape than the image.
        ImageError: the file is missing or unreadable.
    """
    if spec.previous_stage is None:
        return None
    if stage.folder is None or case is None:
        if stage.run is not None:
            labels: Labels = stage.run(image).array
            return labels
        raise GeometryError(
            "this model is the second stage of a cascade: it needs its previous stage, or a folder with that stage's label maps",
            remedy="name-previous-stage",
        )
    path = previous_file(case, spec, stage.folder)
    if not path.is_file():
        raise ImageError(f"{path}: the previous stage's label map is missing; run the first stage on this case")
    labels, frame = read_labels(path, spec.reader)
    if frame.shape != image.geometry.shape:
        raise GeometryError(f"{path}: shape {frame.shape}, but the image has {image.geometry.shape}")
    return labels


def previous_file(case: CaseFiles, spec: VolumeSpec, folder: Path) -> Path:
    """Where the first stage's label map of a case is expected."""
    return folder / f"{case.case_id}{spec.file_ending}"
