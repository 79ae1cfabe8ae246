"""Two-dimensional images and TIFF stacks: nnU-Net's ``NaturalImage2DIO`` and ``Tiff3DIO``."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import PictureAxes
from offline_infer.errors import GeometryError, ImageError
from offline_infer.images.formats import TIFF_ENDINGS, ending_of
from offline_infer.images.frame import FloatArray, Source, make_geometry, require_finite

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


def open_flat(path: Path) -> Source:
    """A grey, RGB or RGBA image as channels (1, 3 or 4) of one slice, spacing (999, 1, 1).

    Raises:
        ImageError: not readable, or neither grey nor colours.
    """
    from skimage.io import imread

    if ending_of(path) in TIFF_ENDINGS:
        _tifffile()
    try:
        # An absolute path: scikit-image would take "http://..." for an address.
        pixels: npt.NDArray[Any] = np.asarray(imread(str(path.absolute())))
    except Exception as error:
        raise ImageError(f"{path}: cannot be read ({_line(error)}); it is damaged or not what its name says") from error
    if pixels.ndim == 2:
        channels = pixels[None, None]
    elif pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        channels = pixels.transpose(2, 0, 1)[:, None]
    else:
        raise ImageError(
            f"{path}: its pixels have shape {pixels.shape}; expected (y, x) for grey, (y, x, 3) for RGB or (y, x, 4) "
            "for RGBA"
        )
    size = (channels.shape[3], channels.shape[2], 1)
    geometry = make_geometry(
        path, "NaturalImage2DIO", size, (1.0, 1.0, 999.0), (0.0, 0.0, 0.0), _IDENTITY, axes=PictureAxes()
    )

    def fill(out: FloatArray) -> None:
        _copy(path, channels, out)

    return Source(path, geometry, fill, channels=channels.shape[0])


def open_stack(path: Path, *, label: bool = False) -> Source:
    """A three-dimensional TIFF; spacing from the ``.json`` beside it, else 1 mm.

    nnU-Net names that file without the channel suffix: ``case.json`` beside ``case_0000.tif``, and beside ``case.tif``
    for a label map.

    Raises:
        ImageError: not readable or not three-dimensional.
        GeometryError: the ``.json`` holds no three positive numbers.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(path) as tiff:
            colours = tiff.pages[0].photometric is not None and int(tiff.pages[0].photometric) == 2
            voxels = np.asarray(tiff.asarray())
    except Exception as error:
        raise ImageError(f"{path}: cannot be read ({_line(error)}); it is damaged or not a TIFF image") from error
    if voxels.ndim != 3 or colours:
        kind = "colours" if colours else f"{voxels.ndim} dimensions"
        raise ImageError(f"{path}: holds {kind}, shape {voxels.shape}; expected a grey stack (z, y, x)")
    beside = spacing_file(path)
    if not label:
        beside = beside.with_name(_CHANNEL_SUFFIX.sub("", beside.stem) + ".json")
    notes: tuple[str, ...] = ()
    if beside.is_file():
        spacing = _spacing(beside)
    else:
        spacing = (1.0, 1.0, 1.0)
        notes = (f"{path}: no spacing file {beside.name}; 1 mm was taken for every axis, as nnU-Net does",)
    geometry = make_geometry(path, "Tiff3DIO", voxels.shape[::-1], spacing[::-1], (0.0, 0.0, 0.0), _IDENTITY)

    def fill(out: FloatArray) -> None:
        _copy(path, voxels[None], out)

    return Source(path, geometry, fill, notes=notes)


def write_flat(path: Path, labels: npt.NDArray[Any]) -> None:
    """Write one slice as a grey image.

    Args:
        labels: (1, y, x), uint8 or uint16.

    Raises:
        ImageError: several slices, labels above 255 in a format of eight bits, or the file could not be written.
    """
    from skimage.io import imsave

    if labels.shape[0] != 1:
        raise ImageError(f"{path}: {labels.shape[0]} slices do not fit a two-dimensional image; choose another ending")
    if ending_of(path) == ".bmp" and labels.dtype != np.uint8:
        raise ImageError(f"{path}: BMP has eight bits; write this model's labels as .png")
    try:
        imsave(str(path.absolute()), labels[0], check_contrast=False)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({_line(error)}); is the disk full?") from error


def write_stack(path: Path, labels: npt.NDArray[Any]) -> None:
    """Write a TIFF stack (z, y, x), zlib-compressed.

    Raises:
        ImageError: it could not be written.
    """
    try:
        _tifffile().imwrite(path, data=labels, compression="zlib", photometric="minisblack")
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({_line(error)}); is the disk full?") from error


def write_stack_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Write the file that tells a TIFF stack's spacing, (z, y, x) in mm."""
    path.write_text(json.dumps({"spacing": list(spacing)}), encoding="utf-8")


def spacing_file(path: Path) -> Path:
    """Where the spacing of a label map's TIFF stack stands: for ``case.tif``, ``case.json``."""
    return path.with_name(path.name[: -len(ending_of(path))] + ".json")


def is_stack(path: Path) -> bool:
    """Whether a TIFF holds a grey volume rather than one image."""
    if ending_of(path) not in TIFF_ENDINGS:
        return False
    try:
        with _tifffile().TiffFile(path) as tiff:
            series = tiff.series[0]
            return len(series.shape) == 3 and "S" not in series.axes
    except Exception:  # whatever is wrong with it, the reader says it better
        return False


def _copy(path: Path, values: npt.NDArray[Any], out: FloatArray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        out[:] = values
    if values.dtype.kind == "f":
        require_finite(path, out)


def _spacing(path: Path) -> tuple[float, float, float]:
    try:
        a, b, c = (float(value) for value in json.loads(path.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise GeometryError(f'{path}: expected {{"spacing": [z, y, x]}} in mm, three positive numbers') from error
    return (a, b, c)


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise ImageError("TIFF stacks need the package tifffile: pip install 'offline-infer[tiff]'") from error
    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # else Python prints its remarks on stderr; a program that wants them still gets them
        logger.addHandler(logging.NullHandler())
    return tifffile


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
