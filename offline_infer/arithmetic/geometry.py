"""Where a case's voxels are: spacing, crop, transpose, padding and their inverses. Pure arithmetic, no files.

Axis order is ``(z, y, x)`` of the array the reader gives; "network order" is that order after ``transpose_forward``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from offline_infer.errors import GeometryError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open interval per axis: ((z0, z1), (y0, y1), (x0, x1))."""
Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]


@dataclass(frozen=True)
class ImageGeometry:
    """The physical frame of an image, as its reader reports it.

    Attributes:
        shape: (z, y, x) of the array.
        spacing: mm along the array's axes, as the framework's reader gives them (NIfTI's float32 values included).
        origin: ITK, (x, y, z) in mm, LPS.
        direction: ITK, nine numbers, row-major.
        itk_spacing: (x, y, z) in mm.
        reader: nnU-Net reader class that was followed.
        extra: what that reader's writer needs beside (an affine, a page count), JSON-able.
    """

    shape: Shape3
    spacing: Spacing3
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    itk_spacing: tuple[float, ...]
    reader: str = "SimpleITKIO"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageGeometry:
        return cls(
            shape=_three_ints(record["shape"]),
            spacing=_three_floats(record["spacing"]),
            origin=tuple(record["origin"]),
            direction=tuple(record["direction"]),
            itk_spacing=tuple(record["itk_spacing"]),
            reader=record["reader"],
            extra=dict(record["extra"]),
        )


@dataclass(frozen=True)
class CaseGeometry:
    """What later stages need to bring a network-space map back to the image: the record that travels between stages.

    Attributes:
        image: the input's frame.
        crop: box in image axis order (before transposing).
        network_shape: spatial shape of the prepared array, network order.
        network_spacing: its spacing, network order.
        transpose_forward: network axis i is image axis ``transpose_forward[i]``.
    """

    image: ImageGeometry
    crop: Box
    network_shape: Shape3
    network_spacing: Spacing3
    transpose_forward: tuple[int, int, int]

    @property
    def cropped_shape(self) -> Shape3:
        """Shape of the cropped image, image axis order."""
        (a, b), (c, d), (e, f) = self.crop
        return (b - a, d - c, f - e)

    @property
    def transpose_backward(self) -> tuple[int, int, int]:
        order = self.transpose_forward
        return (order.index(0), order.index(1), order.index(2))

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image.to_json(),
            "crop": [list(pair) for pair in self.crop],
            "network_shape": list(self.network_shape),
            "network_spacing": list(self.network_spacing),
            "transpose_forward": list(self.transpose_forward),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CaseGeometry:
        crop = record["crop"]
        return cls(
            image=ImageGeometry.from_json(record["image"]),
            crop=(tuple(crop[0]), tuple(crop[1]), tuple(crop[2])),
            network_shape=_three_ints(record["network_shape"]),
            network_spacing=_three_floats(record["network_spacing"]),
            transpose_forward=_three_ints(record["transpose_forward"]),
        )


def nonzero_mask(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Voxels that are non-zero in any channel, holes filled in three dimensions.

    Args:
        image: (c, z, y, x).
    """
    mask: npt.NDArray[np.bool_] = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    if mask.all():
        return mask
    # The holes lie inside the mask's own box, so filling there gives the same mask in less time.
    box = bounding_box(mask)
    window = tuple(slice(a, b) for a, b in box)
    mask[window] = ndimage.binary_fill_holes(mask[window])
    return mask


def bounding_box(mask: npt.NDArray[np.bool_]) -> Box:
    """Smallest half-open box around the mask; the whole array where the mask is empty (as nnU-Net v2 leaves it)."""
    pairs = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        (hits,) = np.nonzero(mask.any(axis=others))
        pairs.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, int(mask.shape[axis])))
    return (pairs[0], pairs[1], pairs[2])


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape3:
    """Number of voxels per axis at the target spacing, rounded half to even, as nnU-Net v1 and v2 do.

    Raises:
        GeometryError: an axis would vanish.
    """
    new = tuple(round(float(s) / float(t) * int(n)) for s, t, n in zip(spacing, target, shape, strict=True))
    if min(new) < 1:
        raise GeometryError(
            f"an image of {tuple(shape)} voxels at {tuple(round(float(s), 4) for s in spacing)} mm has no voxel at the model's "
            f"{tuple(round(float(t), 4) for t in target)} mm; is the spacing in its header right?"
        )
    return _three_ints(new)


def permute(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """``values`` in the given order."""
    return tuple(values[i] for i in order)


def _three_ints(values: Sequence[Any]) -> tuple[int, int, int]:
    a, b, c = values
    return (int(a), int(b), int(c))


def _three_floats(values: Sequence[Any]) -> tuple[float, float, float]:
    a, b, c = values
    return (float(a), float(b), float(c))
