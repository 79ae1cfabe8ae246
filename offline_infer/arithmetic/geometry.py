"""Where a case's voxels are: spacing, crop, transpose, padding and their inverses. Pure arithmetic, no files.

Axis order is ``(z, y, x)`` of the array the reader gives; "network order" is that order after ``transpose_forward``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.axes import Axes, FileAxes, axes_from_first_schema, axes_from_json, finite, three_positive
from offline_infer.arithmetic.budgets import check_voxels
from offline_infer.errors import GeometryError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open interval per axis: ((z0, z1), (y0, y1), (x0, x1))."""
Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]

_LONGEST_AXIS = 2**31


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
        axes: how the array's axes relate to the file's, and what a label map needs to be written in the file's frame.
    """

    shape: Shape3
    spacing: Spacing3
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    itk_spacing: tuple[float, ...]
    reader: str = "SimpleITKIO"
    axes: Axes = field(default_factory=FileAxes)

    @property
    def dimensions(self) -> int:
        """2 where the file holds a single slice without a third axis, else 3."""
        return self.axes.dimensions if isinstance(self.axes, FileAxes) else 3

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": list(self.direction),
            "itk_spacing": list(self.itk_spacing),
            "reader": self.reader,
            "axes": self.axes.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageGeometry:
        """The frame that :meth:`to_json` wrote, in this release or an earlier one.

        Raises:
            GeometryError: the record is damaged.
        """
        try:
            return cls(
                shape=_shape(record["shape"]),
                spacing=three_positive(record["spacing"]),
                origin=finite(record["origin"], 3),
                direction=finite(record["direction"], 9),
                itk_spacing=three_positive(record["itk_spacing"]),
                reader=_text(record["reader"]),
                axes=axes_from_json(record["axes"]) if "axes" in record else axes_from_first_schema(record["extra"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(error) from error


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
        """The record that :meth:`to_json` wrote.

        Raises:
            GeometryError: the record is damaged: something is missing, no number, or does not fit the rest.
        """
        try:
            image = ImageGeometry.from_json(record["image"])
            order = _three_ints(record["transpose_forward"])
            if sorted(order) != [0, 1, 2]:
                raise GeometryError(f"the record of a case names the axes {order}; expected 0, 1 and 2, each once")
            return cls(
                image=image,
                crop=_box(record["crop"], image.shape),
                network_shape=_shape(record["network_shape"]),
                network_spacing=three_positive(record["network_spacing"]),
                transpose_forward=order,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(error) from error


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
    fill_holes(mask[window])
    return mask


def fill_holes(mask: npt.NDArray[np.bool_]) -> None:
    """Set, in place, every background voxel that no path over faces joins to the array's border."""
    import cc3d

    background, count = cc3d.connected_components(~mask, connectivity=6, return_N=True)
    outside = np.zeros(count + 1, np.bool_)
    outside[0] = True  # the mask itself
    for axis in range(mask.ndim):
        for end in (0, -1):
            outside[np.unique(np.take(background, end, axis=axis))] = True
    if outside.all():
        return
    for plane, numbers in zip(mask, background, strict=True):
        plane |= ~outside[numbers]


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
        GeometryError: an axis would vanish, or the result be implausibly large; see ``budgets``.
    """
    exact = [float(s) / float(t) * int(n) for s, t, n in zip(spacing, target, shape, strict=True)]
    shown = f"an image of {tuple(shape)} voxels at {_millimetres(spacing)} mm"
    if not all(isfinite(length) for length in exact):
        raise GeometryError(
            f"{shown} has no size at the model's {_millimetres(target)} mm; is the spacing in its header right?"
        )
    new = tuple(round(length) for length in exact)
    if min(new) < 1:
        raise GeometryError(
            f"{shown} has no voxel at the model's {_millimetres(target)} mm; is the spacing in its header right?"
        )
    check_voxels(
        new, f"{shown} resampled to the model's {_millimetres(target)} mm", "is the spacing in its header right?"
    )
    return _three_ints(new)


def permute(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """``values`` in the given order."""
    return tuple(values[i] for i in order)


def _millimetres(spacing: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(step), 4) for step in spacing)


def _three_ints(values: Sequence[Any]) -> tuple[int, int, int]:
    a, b, c = values
    return (int(a), int(b), int(c))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a reader's name is text")
    return value


def _shape(values: Sequence[Any]) -> Shape3:
    shape = _three_ints(values)
    if not all(0 < size < _LONGEST_AXIS for size in shape):
        raise GeometryError("the record of an image holds a shape with an impossible axis")
    return shape


def _box(pairs: Sequence[Sequence[Any]], shape: Shape3) -> Box:
    (a, b), (c, d), (e, f) = ((int(first), int(last)) for first, last in pairs)
    box: Box = ((a, b), (c, d), (e, f))
    if not all(0 <= first < last <= size for (first, last), size in zip(box, shape, strict=True)):
        raise GeometryError(f"the record of a case crops an image of shape {shape} outside its bounds")
    return box


def _damaged(error: Exception) -> GeometryError:
    return GeometryError(
        f"the record of a case's geometry is damaged ({type(error).__name__}: {error!s:.80}); prepare it again"
    )
