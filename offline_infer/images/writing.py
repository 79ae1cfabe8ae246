"""``write_labels``: a label map back into its image's own frame, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import AffineAxes, PictureAxes
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, ImageError, UsageError
from offline_infer.files import replacing
from offline_infer.images import itk, nibabel_volume, pictures, tiff
from offline_infer.images.formats import FLAT_ENDINGS, NIFTI_ENDINGS, TIFF_ENDINGS, WRITABLE_ENDINGS, ending_of
from offline_infer.images.frame import require_unicode


def write_labels(path: Path, labels: npt.NDArray[np.integer[Any]], geometry: ImageGeometry) -> None:
    """Write a label map as the image's reader class would write it.

    The file is written under a temporary name beside its place and renamed when it is complete. NIfTI, NRRD, MHA and
    TIFF are compressed at the library's own default level: label maps compress so well that the level makes no
    difference worth an option (a 160 x 512 x 512 map takes 0.03 s and 75 kB).

    Args:
        path: its ending decides the format: .nii.gz, .nii, .mha, .nrrd, .gipl, .png, .bmp, .tif, .tiff.
        labels: (z, y, x) in the frame of ``geometry``. uint8 and uint16 are written as they are; another integer type
            is written as uint8, or as uint16 if a label is 255 or above (nnU-Net's rule).
        geometry: of the image, as ``read_image`` gave it.

    Raises:
        UsageError: an ending that no label map is written with.
        GeometryError: ``labels`` does not have the image's shape.
        ImageError: labels that do not fit 16 bits, a path that is not UTF-8, or the disk could not be written.
    """
    path = Path(path)
    require_unicode(path)
    ending = ending_of(path)
    if ending not in WRITABLE_ENDINGS:
        raise UsageError(
            f"{path}: a label map cannot be written as {ending or path.name!r}; legal: {', '.join(WRITABLE_ENDINGS)}"
        )
    if labels.shape != geometry.shape:
        raise GeometryError(f"{path}: the label map has shape {labels.shape}, its image {geometry.shape} (z, y, x)")
    final = _as_unsigned(path, labels)
    two_dimensional = isinstance(geometry.axes, PictureAxes) or geometry.dimensions == 2
    stack = ending in TIFF_ENDINGS and not two_dimensional
    if stack:  # its spacing first: where the stack exists, its spacing does
        with whole_file(tiff.spacing_file(path)) as temporary:
            tiff.write_stack_spacing(temporary, geometry.spacing)
    with whole_file(path) as temporary:
        if stack:
            tiff.write_stack(temporary, final)
        elif ending in FLAT_ENDINGS:
            pictures.write_picture(temporary, final)
        elif isinstance(geometry.axes, AffineAxes) and ending in NIFTI_ENDINGS:
            nibabel_volume.write(temporary, final, geometry.axes)
        else:
            itk.write_image(temporary, itk.to_itk(final, geometry))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place at the end; see :func:`offline_infer.files.replacing`.

    Raises:
        ImageError: it could not be written; the message names ``path``, not the temporary name.
    """
    temporary = path
    try:
        with replacing(path) as temporary:
            yield temporary
    except ImageError as error:
        raise ImageError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder and the disk"
        ) from error


def _as_unsigned(path: Path, labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
    if labels.dtype in (np.uint8, np.uint16):
        return labels
    if labels.dtype.kind not in "iub":
        raise ImageError(f"{path}: a label map holds integers, not {labels.dtype}")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > 65535:
        raise ImageError(f"{path}: labels from {low} to {high} do not fit 16 bits")
    return labels.astype(np.uint8 if high < 255 else np.uint16)
