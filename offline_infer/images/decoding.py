"""Image files to 8-bit pixels. Every colour mode has one stated treatment.

=====================  =================================================================================================
mode of the file       treatment
=====================  =================================================================================================
RGB                    as it is
grey, black and white  the value three times; black and white as 0 and 255
palette                the colours the indices stand for
alpha, transparency    dropped; the colour below it is used even where it is fully transparent
CMYK, YCbCr, HSV       converted by Pillow's formulas; embedded colour profiles are not applied
16-bit grey            cut off at 255, or the high byte (``Pixels.sixteen_bit``)
16-bit RGB             the high byte (Pillow's decoder gives no more)
32-bit integer, float  cut off at 0 and 255, fractions dropped
EXIF orientation       ignored, or applied (``Pixels.exif``); masks have none, so they must be stored as the image shows
several frames         the first
=====================  =================================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineUnavailable, ImageError
from offline_infer.spec import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = npt.NDArray[np.uint8]

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""File endings taken for images in folders, in lower case."""
MASK_THRESHOLD = 127.5
"""A mask's pixel is positive where the mean of its three colours is larger."""

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Decoders an untrusted file may reach; Pillow has others that start programs or execute PostScript."""
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_ORIENTATION = 0x0112
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_LARGEST_TILE = 1 << 27
"""Pixels, as many as a large image has."""


def read_image(path: Path, pixels: Pixels) -> Bytes:
    """Decode an image in the channel order of ``pixels``.

    Returns:
        (y, x, c) uint8, C-contiguous; c is 3, or 1 for ``gray``.

    Raises:
        ImageError: missing, truncated, too large, or not an image of a known format.
    """
    with _opened(path) as image:
        if pixels.exif == "applied":
            image = _upright(image)
        if image.mode in _DEEP_GREY:
            grey = _deep_grey(np.asarray(image), pixels.sixteen_bit)
            return np.repeat(grey[:, :, None], pixels.channels, axis=2)
        if pixels.order == "gray":
            return np.array(_converted(image).convert("L"))[:, :, None]
        colours: Bytes = np.array(_converted(image))
        return np.ascontiguousarray(colours[:, :, ::-1]) if pixels.order == "bgr" else colours


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Decode a reference mask: positive where the mean of the RGB values exceeds 127.5.

    Returns:
        (y, x) bool.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _opened(path) as image:
        if image.mode in _DEEP_GREY:
            return _deep_grey(np.asarray(image), "clip") > MASK_THRESHOLD
        if image.mode in ("L", "1", "LA"):
            return np.asarray(image.convert("L")) > MASK_THRESHOLD
        total = np.asarray(_converted(image)).sum(axis=2, dtype=np.uint16)
        return np.asarray(total > 3 * MASK_THRESHOLD)


def mask_has_value(path: Path) -> bool:
    """Whether any pixel of a reference mask is not zero in any of its RGB values.

    Raises:
        ImageError: as :func:`read_image`.
    """
    return bool(read_image(path, Pixels()).any())


def read_mask_values(path: Path) -> Bytes:
    """Decode a soft mask: (y, x) uint8, as it was written by a run.

    Raises:
        ImageError: as :func:`read_image`, or the file is not 8-bit grey.
    """
    with _opened(path) as image:
        if image.mode != "L":
            raise ImageError(f"{path}: has mode {image.mode}; expected an 8-bit grey soft mask")
        return np.asarray(image)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header, in stored orientation.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _opened(path, decode=False) as image:
        return int(image.height), int(image.width)


def upright_size(path: Path, pixels: Pixels) -> tuple[int, int]:
    """(height, width) the decoded image will have.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _opened(path, decode=False) as image:
        height, width = int(image.height), int(image.width)
        turned = pixels.exif == "applied" and _orientation(image) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def pillow() -> Any:
    """Pillow's ``Image`` module, or a readable refusal.

    Raises:
        EngineUnavailable: it is not installed.
    """
    try:
        # Image.open finds a format only when its plugin has been imported.
        from PIL import (  # noqa: F401  # noqa: F401
            BmpImagePlugin,
            GifImagePlugin,
            Image,
            JpegImagePlugin,
            PngImagePlugin,
            PpmImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )
    except ImportError as error:
        raise EngineUnavailable(
            f"image models need Pillow, which cannot be imported ({error}); pip install 'offline-infer[images]'"
        ) from error
    return Image


@contextmanager
def _opened(path: Path, *, decode: bool = True) -> Iterator[Image]:
    """An image file opened, and decoded unless only its header is wanted."""
    library = pillow()
    if not path.is_file():
        raise ImageError(f"{path}: {'is not a regular file' if path.exists() else 'does not exist'}; expected an image")
    try:
        with warnings.catch_warnings():
            # Large panoramas are legitimate up to Pillow's own hard limit, at which it raises.
            warnings.simplefilter("ignore", library.DecompressionBombWarning)
            with library.open(path, formats=_FORMATS) as image:
                _check_tiles(path, image)
                if decode:
                    image.load()
                yield image
    except ImageError:
        raise
    except library.DecompressionBombError as error:
        raise ImageError(f"{path}: is too large to decode ({error}); cut or shrink it first") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        text = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded ({text}); it is truncated or not what its name says") from error


def _check_tiles(path: Path, image: Any) -> None:
    """Refuse a TIFF whose tiles are larger than any image may be: the decoder allocates memory for a whole one."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    if not all(isinstance(side, int) for side in (width, height)) or width * height > _LARGEST_TILE:
        raise ImageError(f"{path}: its tiles are too large to decode; convert it to another format first")


def _converted(image: Image) -> Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(values: npt.NDArray[Any], sixteen_bit: str) -> Bytes:
    """(y, x) of more than eight bits -> uint8."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("the image holds NaN or infinite values")
    if sixteen_bit == "high_byte" and values.dtype.itemsize == 2:
        return np.asarray(values >> 8, np.uint8)
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (TypeError, ValueError):
        return 1


def _upright(image: Image) -> Image:
    """Turn and mirror as the EXIF orientation says (1 to 8; anything else is taken for 1)."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    return image if turned is None else turned
