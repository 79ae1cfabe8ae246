"""The image a reader returns, or that comes from another library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.images import objects
from offline_infer.images.frame import IDENTITY_DIRECTION

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Image:
    """One case's image.

    Attributes:
        array: (c, z, y, x), float32, C-contiguous, in the image's own unit (HU for CT).
        geometry: the frame, as nnU-Net's reader of that name would report it.
        notes: things worth telling the user that do not stop the case (slightly uneven slices, no spacing file, ...).
    """

    array: FloatArray
    geometry: ImageGeometry
    notes: tuple[str, ...] = ()

    @classmethod
    def from_numpy(
        cls,
        array: npt.ArrayLike,
        spacing: Sequence[float],
        *,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        direction: Sequence[float] = IDENTITY_DIRECTION,
        reader: str = "SimpleITKIO",
    ) -> Image:
        """An image from an array (z, y, x) or (c, z, y, x).

        Args:
            spacing: mm, (z, y, x).
            origin, direction: ITK's: (x, y, z) in mm, LPS; nine numbers, row-major.
            reader: the nnU-Net reader whose axes the array has.

        Raises:
            ImageError, GeometryError: no image, or an impossible frame.
        """
        return cls(*objects.from_numpy(array, spacing, origin, direction, reader))

    @classmethod
    def from_sitk(cls, image: Any, *, reader: str = "SimpleITKIO") -> Image:
        """An image from a three-dimensional ``SimpleITK.Image``; components become channels.

        Raises:
            ImageError, GeometryError: see :meth:`from_numpy`.
        """
        return cls(*objects.from_sitk(image, reader))

    @classmethod
    def from_nibabel(cls, image: Any, *, reader: str = "SimpleITKIO") -> Image:
        """An image from a three-dimensional nibabel image.

        Raises:
            ImageError, GeometryError: see :meth:`from_numpy`.
        """
        return cls(*objects.from_nibabel(image, reader))

    def __repr__(self) -> str:
        spacing = tuple(round(step, 4) for step in self.geometry.spacing)
        return f"Image(shape={self.array.shape}, spacing={spacing} mm)"
