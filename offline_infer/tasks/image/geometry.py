"""How an image fits the network's input, and how the answer gets back. Pure arithmetic on sizes and arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.bilinear import resize_pixels, resize_soft
from offline_infer.errors import GeometryError, UsageError
from offline_infer.tasks.image.spec import ImageSpec

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

OVERSIZE = ("refuse", "resize", "tile", "crop")
"""What may happen to an image that does not fit the padded input. ``crop`` keeps the top left, as IMDL-BenCo does
without being asked; the rest of the image stays unexamined."""

_OVERLAP = 8  # neighbouring tiles share at least an eighth of their edge

Mode = Literal["resize", "pad", "letterbox", "tile", "crop"]


@dataclass(frozen=True)
class ImageGeometry:
    """Where an image lies in the network's input, so that every step can be undone from this record alone.

    Attributes:
        mode: ``resize``: stretched to the network's size. ``pad``: unscaled at the top left. ``letterbox``: shrunk until
            its longest side fits, then as ``pad``. ``tile``: unscaled, several overlapping inputs. ``crop``: only the
            top left is seen.
        size: (height, width) of the image itself, pixels.
        network: (height, width) of the network's input.
        content: (height, width) the image has inside the input; of a tiled image the size of one tile.
        tiles: (y, x) of each input's top-left corner in the image; one entry at (0, 0) unless tiled.
    """

    mode: Mode
    size: tuple[int, int]
    network: tuple[int, int]
    content: tuple[int, int]
    tiles: tuple[tuple[int, int], ...] = ((0, 0),)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ImageGeometry:
        """Read back what :meth:`to_json` wrote.

        Raises:
            GeometryError: a field is missing, of another type or impossible.
        """
        try:
            mode = record["mode"]
            size, network, content = (_pair(record[name]) for name in ("size", "network", "content"))
            tiles = tuple(_pair(corner, least=0) for corner in record["tiles"])
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError(f"a record of an image's geometry is damaged: {error!r}; preprocess again") from error
        if mode not in ("resize", "pad", "letterbox", "tile", "crop") or not tiles:
            raise GeometryError(f"a record of an image's geometry is damaged (mode {mode!r}); preprocess again")
        return cls(mode, size, network, content, tiles)


def fit(size: tuple[int, int], spec: ImageSpec, oversize: str = "refuse") -> ImageGeometry:
    """Decide how an image of (height, width) pixels is given to the network.

    Args:
        oversize: what to do with an image larger than a padded input, one of :data:`OVERSIZE`.

    Raises:
        GeometryError: it does not fit and ``oversize`` is ``refuse``; or it has no pixels.
        UsageError: unknown ``oversize``.
    """
    if oversize not in OVERSIZE:
        raise UsageError(f"unknown oversize rule {oversize!r}; legal: {', '.join(OVERSIZE)}")
    height, width = size
    if height < 1 or width < 1:
        raise GeometryError(f"the image has {width} x {height} pixels")
    if spec.height < 0:
        step = spec.multiple_of
        return ImageGeometry("pad", size, (-(-height // step) * step, -(-width // step) * step), size)
    network = (spec.height, spec.width)
    if spec.geometry == "resize":
        return ImageGeometry("resize", size, network, network)
    if height <= network[0] and width <= network[1]:
        return ImageGeometry("pad", size, network, size)
    if oversize == "refuse":
        raise GeometryError(
            f"the image has {width} x {height} pixels, the network takes up to {network[1]} x {network[0]}; "
            "choose the oversize rule resize to shrink it or tile to cut it into overlapping tiles"
        )
    seen = (min(height, network[0]), min(width, network[1]))
    if oversize == "crop":
        return ImageGeometry("crop", size, network, seen)
    if oversize == "tile":
        corners = tuple((y, x) for y in _starts(height, network[0]) for x in _starts(width, network[1]))
        return ImageGeometry("tile", size, network, seen, corners)
    factor = min(network[0] / height, network[1] / width)
    shrunk = (max(1, min(network[0], round(height * factor))), max(1, min(network[1], round(width * factor))))
    return ImageGeometry("letterbox", size, network, shrunk)


def to_content(image: Bytes, geometry: ImageGeometry) -> Bytes:
    """The image at the scale the network sees it: (y, x, c) uint8; for tiles the whole image."""
    if geometry.mode in ("resize", "letterbox"):
        return resize_pixels(image, *geometry.content)
    return image


def tile_of(content: Bytes, geometry: ImageGeometry, group: int) -> Bytes:
    """The part of the scaled image that input number ``group`` holds: a view, (y, x, c)."""
    y, x = geometry.tiles[group]
    return content[y : y + geometry.content[0], x : x + geometry.content[1]]


def uncovered(soft: FloatArray, geometry: ImageGeometry) -> FloatArray:
    """Cut the padding off an answer at network size: (y, x) of the content."""
    return soft[: geometry.content[0], : geometry.content[1]]


def at_network_size(answer: FloatArray, geometry: ImageGeometry) -> FloatArray:
    """An answer (y, x) at the network's size; graphs that answer at a fraction of it are stretched.

    Raises:
        GeometryError: the answer is larger than the input, or of another shape of picture.
    """
    if answer.shape == geometry.network:
        return answer
    height, width = answer.shape
    if height > geometry.network[0] or width > geometry.network[1]:
        raise GeometryError(f"the mask has {width} x {height} pixels, more than the network's input {geometry.network}")
    return resize_soft(answer, *geometry.network)


class TileMean:
    """Joins the answers of overlapping tiles: the mean of all answers at a pixel. (y, x) float32."""

    def __init__(self, geometry: ImageGeometry) -> None:
        self._geometry = geometry
        self._sum = np.zeros(geometry.size, np.float32)
        rows, columns = (
            _coverage([corner[axis] for corner in geometry.tiles], geometry.content[axis], geometry.size[axis])
            for axis in (0, 1)
        )
        self._rows, self._columns = rows, columns

    def add(self, soft: FloatArray, group: int) -> None:
        """Add the answer of one tile, (y, x) of the content's size."""
        y, x = self._geometry.tiles[group]
        self._sum[y : y + soft.shape[0], x : x + soft.shape[1]] += soft

    def finish(self) -> FloatArray:
        """(y, x) of the image's own size."""
        self._sum /= self._rows[:, None]
        self._sum /= self._columns[None, :]
        return self._sum


def _coverage(starts: list[int], length: int, size: int) -> FloatArray:
    """How many tiles of one row or column of tiles cover each pixel along an axis."""
    counts = np.zeros(size, np.float32)
    for start in sorted(set(starts)):
        counts[start : start + length] += 1
    return counts


def _starts(size: int, tile: int) -> list[int]:
    """Evenly spread tile positions along an axis that overlap by at least an eighth of a tile."""
    if size <= tile:
        return [0]
    step = max(1, tile - max(1, tile // _OVERLAP))
    count = 1 + -(-(size - tile) // step)
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def _pair(value: Any, least: int = 1) -> tuple[int, int]:
    first, second = value
    if type(first) is not int or type(second) is not int or min(first, second) < least:
        raise ValueError(f"{value!r} is not two whole numbers of at least {least}")
    return first, second
