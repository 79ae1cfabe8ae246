"""One image on its way through a run: read, prepared, answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.normalization import normalization_table
from offline_infer.errors import GeometryError, UsageError
from offline_infer.images.decoding import read_image, upright_size
from offline_infer.tasks.image.geometry import ImageGeometry, fit, to_content
from offline_infer.tasks.image.network_input import normalize_into
from offline_infer.tasks.image.spec import ImageSpec

Bytes = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageFrame:
    """An image's size and where it came from.

    Attributes:
        path: of the file; empty for an array given in memory.
        size: (height, width) in pixels, as decoded.
    """

    path: str
    size: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        return {"image": self.path, "size": list(self.size)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageFrame:
        """Read back what :meth:`to_json` wrote.

        Raises:
            UsageError: the record is damaged.
        """
        path, size = record.get("image"), record.get("size")
        whole = isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        if not isinstance(path, str) or not whole:
            raise UsageError("an image's record is damaged; preprocess into a new folder")
        assert size is not None
        return cls(path, (size[0], size[1]))


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """Decoded pixels, (y, x, c) uint8 in the model's channel order."""

    pixels: Bytes
    geometry: ImageFrame


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image ready to be cut into inputs.

    Attributes:
        geometry: its frame.
        batch: (1, c, y, x) float32: the finished input, where the way it fits does not depend on a run's settings.
        pixels: (y, x, c) uint8 otherwise.
    """

    geometry: ImageFrame
    batch: FloatArray | None
    pixels: Bytes | None

    def emptied(self) -> PreparedImage:
        """The same without its arrays."""
        return PreparedImage(self.geometry, None, None)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What a model says about one image.

    Attributes:
        frame: of the image.
        placed: how it was given to the network.
        mask: (y, x) float32 probabilities: at the network's size with its padding, or at the image's own size where it
            was tiled; None for models without a mask.
        score: probability that the image holds a region at all; None for models without a score.
    """

    frame: ImageFrame
    placed: ImageGeometry
    mask: FloatArray | None
    score: float | None


def read_frame(path: Path, spec: ImageSpec) -> ImageFrame:
    """Size of an image from its header.

    Raises:
        ImageError: missing, damaged, or not an image.
    """
    return ImageFrame(str(path), upright_size(path, spec.pixels))


def read(path: Path, spec: ImageSpec) -> LoadedImage:
    """Decode an image.

    Raises:
        ImageError: missing, damaged, or not an image.
    """
    pixels = read_image(path, spec.pixels)
    return LoadedImage(pixels, ImageFrame(str(path), (pixels.shape[0], pixels.shape[1])))


def from_memory(source: Any, spec: ImageSpec) -> LoadedImage:
    """An image given by path, or as an array (y, x, c) or (y, x) uint8 in the model's channel order.

    Raises:
        ImageError: the file cannot be read.
        GeometryError: the array has another shape.
        UsageError: neither a path nor an 8-bit array.
    """
    if isinstance(source, str | Path):
        return read(Path(source), spec)
    if not isinstance(source, np.ndarray) or source.dtype != np.uint8:
        told = source.dtype if isinstance(source, np.ndarray) else type(source).__name__
        raise UsageError(
            f"an image is given as {told}; expected a path or a uint8 array (y, x, {spec.pixels.channels})"
        )
    pixels = np.repeat(source[:, :, None], spec.pixels.channels, axis=2) if source.ndim == 2 else source
    if pixels.ndim != 3 or pixels.shape[2] != spec.pixels.channels or 0 in pixels.shape:
        raise GeometryError(f"an image has shape {source.shape}; expected (y, x, {spec.pixels.channels})")
    return LoadedImage(np.ascontiguousarray(pixels), ImageFrame("", (pixels.shape[0], pixels.shape[1])))


def prepare(loaded: LoadedImage, spec: ImageSpec) -> PreparedImage:
    """Resize or pad, and normalise; an image that does not fit is left to the cutter, which knows the run's settings."""
    height, width = loaded.geometry.size
    too_large = spec.geometry == "pad" and spec.height > 0 and (height > spec.height or width > spec.width)
    if too_large:
        return PreparedImage(loaded.geometry, None, loaded.pixels)
    placed = fit(loaded.geometry.size, spec)
    return PreparedImage(loaded.geometry, network_batch(to_content(loaded.pixels, placed), placed, spec), None)


def network_batch(content: Bytes, placed: ImageGeometry, spec: ImageSpec) -> FloatArray:
    """(1, c, y, x) float32 input of the network from 8-bit content at its top left."""
    batch = np.empty((1, spec.pixels.channels, *placed.network), np.float32)
    normalize_into(batch, content, normalization_table(spec.pixels))
    return batch
