"""Two-dimensional pictures: nnU-Net's ``NaturalImage2DIO``. PNG, JPEG and BMP through Pillow, TIFF through tifffile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import PictureAxes
from offline_infer.arithmetic.budgets import check_plausible, check_voxels
from offline_infer.errors import CaseError, ImageError
from offline_infer.images import tiff
from offline_infer.images.formats import TIFF_ENDINGS, ending_of
from offline_infer.images.frame import IDENTITY_DIRECTION, FloatArray, Source, copy_finite, make_geometry
from offline_infer.images.streams import one_line

_FORMATS = ("PNG", "JPEG", "BMP")
"""The only decoders that are ever used; a file's content decides which of them."""
_COLOURS = (3, 4)


def open_picture(path: Path) -> Source:
    """A grey, RGB or RGBA picture as channels (1, 3 or 4) of one slice, spacing (999, 1, 1).

    Raises:
        ImageError: not readable, or neither grey nor colours.
        GeometryError: implausibly large.
    """
    pixels = tiff.read_pixels(path) if ending_of(path) in TIFF_ENDINGS else _read(path)
    if pixels.ndim == 3 and pixels.shape[-1] not in _COLOURS and pixels.shape[0] in _COLOURS:
        pixels = np.moveaxis(pixels, 0, -1)  # colours stored plane by plane
    if pixels.ndim == 2:
        channels = pixels[None, None]
    elif pixels.ndim == 3 and pixels.shape[-1] in _COLOURS:
        channels = pixels.transpose(2, 0, 1)[:, None]
    else:
        raise ImageError(
            f"{path}: its pixels have shape {pixels.shape}; expected (y, x) for grey, (y, x, 3) for RGB or (y, x, 4) "
            "for RGBA"
        )
    size = (channels.shape[3], channels.shape[2], 1)
    geometry = make_geometry(
        path, "NaturalImage2DIO", size, (1.0, 1.0, 999.0), (0.0, 0.0, 0.0), IDENTITY_DIRECTION, axes=PictureAxes()
    )

    def fill(out: FloatArray) -> None:
        copy_finite(path, channels, out)

    return Source(path, geometry, fill, channels=channels.shape[0])


def write_picture(path: Path, labels: npt.NDArray[Any]) -> None:
    """Write one slice as a grey image.

    Args:
        labels: (1, y, x), uint8 or uint16.

    Raises:
        ImageError: several slices, labels above 255 in a format of eight bits, or the file could not be written.
    """
    if labels.shape[0] != 1:
        raise ImageError(f"{path}: {labels.shape[0]} slices do not fit a two-dimensional image; choose another ending")
    ending = ending_of(path)
    if ending in TIFF_ENDINGS:
        tiff.write_pixels(path, labels[0])
        return
    if ending == ".bmp" and labels.dtype != np.uint8:
        raise ImageError(f"{path}: BMP has eight bits; write this model's labels as .png")
    try:
        _pillow().fromarray(labels[0]).save(path, format=ending[1:].upper())
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({one_line(error)}); is the disk full?") from error


def _read(path: Path) -> npt.NDArray[Any]:
    """Pixels (y, x) or (y, x, c), a palette resolved to its colours."""
    image_module = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata and of large pictures
            with image_module.open(path, formats=_FORMATS) as image:
                check_voxels(image.size, str(path), "is it a picture?")
                check_plausible(image.size, path.stat().st_size, str(path))
                if image.mode == "P":
                    image = image.convert(image.palette.mode)
                elif image.mode == "I" and image.format == "PNG":
                    image = image.convert("I;16")  # sixteen bits, which older releases of Pillow widen
                return np.asarray(image)
    except CaseError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: cannot be read ({one_line(error)}); it is damaged or not what its name says"
        ) from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImageError("pictures need the package pillow: pip install 'offline-infer[images]'") from error
    return Image
