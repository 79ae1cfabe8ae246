"""TIFF through tifffile: nnU-Net's ``Tiff3DIO``, and the pixels of two-dimensional TIFF pictures.

A TIFF may name other files that hold a part of its pixels (OME-TIFF, Micro-Manager). They are never opened: their voxels may
belong to somebody else.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.budgets import check_plausible, check_voxels
from offline_infer.errors import CaseError, GeometryError, ImageError
from offline_infer.images.formats import TIFF_ENDINGS, ending_of
from offline_infer.images.frame import IDENTITY_DIRECTION, FloatArray, Source, copy_finite, make_geometry
from offline_infer.images.streams import one_line

_RGB = 2
"""TIFF's PhotometricInterpretation of colours."""
_OME_FILE = re.compile(r"""\bFileName\s*=\s*("[^"]*"|'[^']*')""")
_SPACING_LIMIT = 1 << 16
_LARGEST_TILE = 1 << 26
"""Pixels of a tile that may be larger than the image."""
_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


def open_stack(path: Path, *, label: bool = False) -> Source:
    """A three-dimensional TIFF; spacing from the ``.json`` beside it, else 1 mm.

    nnU-Net names that file without the channel suffix: ``case.json`` beside ``case_0000.tif``, and beside ``case.tif``
    for a label map.

    Raises:
        ImageError: not readable or not three-dimensional.
        GeometryError: the ``.json`` holds no three positive numbers.
    """
    voxels, colours = _read(path)
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
    geometry = make_geometry(path, "Tiff3DIO", voxels.shape[::-1], spacing[::-1], (0.0, 0.0, 0.0), IDENTITY_DIRECTION)

    def fill(out: FloatArray) -> None:
        copy_finite(path, voxels[None], out)

    return Source(path, geometry, fill, notes=notes)


def read_pixels(path: Path) -> npt.NDArray[Any]:
    """The pixels of a TIFF in whatever shape it has.

    Raises:
        ImageError: not readable.
        GeometryError: implausibly large.
    """
    return _read(path)[0]


def write_pixels(path: Path, labels: npt.NDArray[Any]) -> None:
    """Write a grey image (y, x), uncompressed.

    Raises:
        ImageError: it could not be written.
    """
    try:
        _tifffile().imwrite(path, data=labels, photometric="minisblack")
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({one_line(error)}); is the disk full?") from error


def write_stack(path: Path, labels: npt.NDArray[Any]) -> None:
    """Write a TIFF stack (z, y, x), zlib-compressed.

    Raises:
        ImageError: it could not be written.
    """
    try:
        _tifffile().imwrite(path, data=labels, compression="zlib", photometric="minisblack")
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({one_line(error)}); is the disk full?") from error


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
        with _open(path) as tiff:
            series = tiff.series[0]
            return len(series.shape) == 3 and "S" not in series.axes
    except Exception:  # whatever is wrong with it, the reader gives a better message
        return False


def _open(path: Path) -> Any:
    return _tifffile().TiffFile(path, _multifile=False)


def _names_other_files(tiff: Any) -> bool:
    """Whether OME metadata say that planes lie in several files; one name alone may be what the file was once called."""
    return len(set(_OME_FILE.findall(tiff.ome_metadata or ""))) > 1


def _read(path: Path) -> tuple[npt.NDArray[Any], bool]:
    """The pixels of the first series, and whether they are colours."""
    try:
        with _open(path) as tiff:
            series = tiff.series[0]
            if 0 in series.shape:
                raise ImageError(f"{path}: its shape is {series.shape}; it holds no pixels")
            check_voxels(series.shape, str(path), "is it an image?")
            check_plausible(series.shape, path.stat().st_size, str(path))
            _check_tiles(path, series)
            if _names_other_files(tiff) or any(page is None for page in series.pages):
                raise ImageError(f"{path}: its pixels are spread over several files; convert it to a single one")
            photometric = tiff.pages[0].photometric
            return np.asarray(tiff.asarray()), photometric is not None and int(photometric) == _RGB
    except CaseError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: cannot be read ({one_line(error)}); it is damaged or not a TIFF image") from error


def _check_tiles(path: Path, series: Any) -> None:
    """Refuse tiles far larger than the image: the decoder allocates memory for whole ones.

    Raises:
        ImageError: they are.
    """
    page = series.keyframe  # the others have its tiles
    tile = prod(page.tile) if page.is_tiled else 0
    if tile > max(_LARGEST_TILE, 2 * prod(series.shape)):
        raise ImageError(f"{path}: has tiles of {tile:,} pixels for an image of {prod(series.shape):,}; it is damaged")


def _spacing(path: Path) -> tuple[float, float, float]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_SPACING_LIMIT)
        a, b, c = (float(value) for value in json.loads(text)["spacing"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise GeometryError(f'{path}: expected {{"spacing": [z, y, x]}} in mm, three positive numbers') from error
    return (a, b, c)


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise ImageError("TIFF stacks need the package tifffile: pip install 'offline-infer[tiff]'") from error
    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # else Python prints its warnings on stderr; a program that wants them still gets them
        logger.addHandler(logging.NullHandler())
    return tifffile
