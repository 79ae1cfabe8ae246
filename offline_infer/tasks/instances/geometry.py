"""How an image fits the network's input, and how boxes get back. Sizes are (height, width) in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, UsageError
from offline_infer.tasks.instances.spec import InstancesSpec, Scaling

FloatArray = npt.NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class InstanceGeometry:
    """Where an image lies in the network's input.

    Attributes:
        size: of the image itself.
        scaled: of the image inside the input.
        network: of the input.
        offset: (y, x) of the image's top-left pixel in the input.
        source: the file the image was read from; overlays are drawn on it.
    """

    size: Size
    scaled: Size
    network: Size
    offset: Size = (0, 0)
    source: str | None = None

    @property
    def scale(self) -> FloatArray:
        """Input pixels per image pixel for x0, y0, x1, y1: of the two whole sizes, so x and y differ slightly."""
        y, x = (np.float32(new) / np.float32(old) for new, old in zip(self.scaled, self.size, strict=True))
        return np.array([x, y, x, y], np.float32)

    def to_image(self, boxes: FloatArray) -> FloatArray:
        """Boxes (n, 4) x0, y0, x1, y1 from the input's pixels to the image's."""
        y, x = self.offset
        return np.asarray((boxes - np.array([x, y, x, y], np.float32)) / self.scale, np.float32)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def geometry_from_json(record: Mapping[str, Any]) -> InstanceGeometry:
    """Read back what :meth:`InstanceGeometry.to_json` wrote.

    Raises:
        UsageError: the record is damaged.
    """
    try:
        size, scaled, network, offset = (
            _pair(record[name], least) for name, least in (("size", 1), ("scaled", 1), ("network", 1), ("offset", 0))
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"an image's geometry record is damaged ({error!r:.300}); preprocess into a new folder"
        ) from error
    if any(offset[i] + scaled[i] > network[i] for i in (0, 1)):
        raise UsageError("an image's geometry record is damaged: the image exceeds the input; preprocess again")
    source = record.get("source")
    if source is not None and not isinstance(source, str):
        raise UsageError("an image's geometry record is damaged: its source is no path; preprocess into a new folder")
    return InstanceGeometry(size, scaled, network, offset, source)


def fit(size: Size, spec: InstancesSpec) -> InstanceGeometry:
    """Decide how an image is given to the network.

    Raises:
        GeometryError: the image is empty, far too small, or larger than a fixed canvas after scaling.
    """
    if min(size) < 1:
        raise GeometryError(f"the image has {size[1]} x {size[0]} pixels")
    scaled = scaled_size(size, spec.scaling)
    if max(scaled) > spec.scale_limit * max(size) or min(scaled) < 1:
        raise GeometryError(
            f"an image of {size[1]} x {size[0]} pixels would be scaled to {scaled[1]} x {scaled[0]}, which is no use"
        )
    padding = spec.padding
    if padding.canvas is not None:
        network = padding.canvas
        if scaled[0] > network[0] or scaled[1] > network[1]:
            raise GeometryError(
                f"the image has {scaled[1]} x {scaled[0]} pixels after scaling; the graph's fixed input has "
                f"{network[1]} x {network[0]}. Export a canvas that holds it, or turn the image"
            )
    else:
        network = (_rounded_up(scaled[0], padding.divisor), _rounded_up(scaled[1], padding.divisor))
    free = (network[0] - scaled[0], network[1] - scaled[1])
    return InstanceGeometry(
        size, scaled, network, (free[0] // 2, free[1] // 2) if padding.place == "centre" else (0, 0)
    )


def scaled_size(size: Size, scaling: Scaling) -> Size:
    """Size of the scaled image."""
    if scaling.inside is not None:
        factor = min(most / own for most, own in zip(scaling.inside, size, strict=True))
    elif scaling.long_side is not None and scaling.short_side is not None:
        factor = min(scaling.long_side / max(size), scaling.short_side / min(size))
    else:
        return size
    if factor > 1 and not scaling.enlarge:
        return size
    add = 0.5 if scaling.rounding == "nearest" else 0.0
    return (math.floor(size[0] * factor + add), math.floor(size[1] * factor + add))


def _rounded_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor


def _pair(value: Any, least: int) -> Size:
    first, second = value
    if type(first) is not int or type(second) is not int or min(first, second) < least:
        raise ValueError(f"{value!r} is not two whole numbers of at least {least}")
    return first, second
