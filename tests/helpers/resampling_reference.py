"""What nnU-Net does when it resamples, written down plainly with scikit-image and SciPy: slow, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.transform import resize

Array = npt.NDArray[Any]


def plain(volume: Array, shape: Sequence[int], order: int) -> Array:
    return np.asarray(resize(volume.astype(float), tuple(shape), order, mode="edge", clip=True, anti_aliasing=False))


def along(volume: Array, axis: int, size: int, order: int) -> Array:
    """Along one axis by map_coordinates, as nnU-Net treats a low-resolution axis."""
    shape = list(volume.shape)
    scale = shape[axis] / size
    shape[axis] = size
    places = list(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    places[axis] = scale * (places[axis] + 0.5) - 0.5
    return np.asarray(ndimage.map_coordinates(volume, np.stack(places), order=order, mode="nearest"))


def resample(
    volume: Array,
    shape: Sequence[int],
    axis: int | None,
    order: int,
    order_z: int,
    one: Callable[[Array, Sequence[int], int], Array] = plain,
) -> Array:
    """One volume (z, y, x), float64. ``one`` resizes an array of two or three axes."""
    if axis is None:
        return one(volume, shape, order)
    rest = [n for i, n in enumerate(shape) if i != axis]
    slices = [one(part, rest, order) for part in np.moveaxis(volume, axis, 0)]
    stacked = np.stack(slices, axis)
    return stacked if stacked.shape[axis] == shape[axis] else along(stacked, axis, shape[axis], order_z)


def resample_channels(data: Array, shape: Sequence[int], axis: int | None, order: int, order_z: int) -> Array:
    """(c, z, y, x) in, the same dtype out."""
    return np.stack([resample(channel, shape, axis, order, order_z) for channel in data]).astype(data.dtype)


def labels_v1(labels: Array, shape: Sequence[int], axis: int | None) -> Array:
    """Order 1, nearest along a low-resolution axis: ascending labels overwrite where they reach one half."""

    def one(part: Array, size: Sequence[int], order: int) -> Array:
        result = np.zeros(tuple(size))
        for value in np.unique(part):
            result[plain(part == value, size, order) >= 0.5] = value
        return result

    return resample(labels, shape, axis, 1, 0, one).astype(labels.dtype)


def labels_v2(labels: Array, shape: Sequence[int], axis: int | None) -> Array:
    """Order 1, nearest along a low-resolution axis: the largest score, ties to the nearest voxel's label if it is tied."""

    def one(part: Array, size: Sequence[int], order: int) -> Array:
        values = np.unique(part)
        scores = np.stack([plain(part == value, size, order) for value in values])
        nearest = plain(part, size, 0)
        tied = scores == scores.max(axis=0)
        nearest_tied = (tied & (values.reshape(-1, *[1] * part.ndim) == nearest)).any(axis=0)
        return np.where(nearest_tied, nearest, values[tied.argmax(axis=0)])

    return resample(labels, shape, axis, 1, 0, one).astype(labels.dtype)


def smooth(rng: np.random.Generator, channels: int, shape: Sequence[int], sigma: float = 1.2) -> Array:
    """Random smooth fields (k, z, y, x), about as large as logits."""
    fields = ndimage.gaussian_filter(rng.standard_normal((channels, *shape)), (0, sigma, sigma, sigma))
    return np.asarray(fields / (fields.std() or 1) * 4)


SHAPES = [
    ((12, 30, 26), (16, 53, 39)),  # finer
    ((12, 30, 26), (8, 18, 18)),  # coarser
    ((9, 21, 15), (3, 40, 15)),  # both, and one axis unchanged
    ((6, 20, 20), (12, 40, 40)),  # twice: every surface voxel is a tie
    ((1, 1, 1), (3, 4, 5)),
    ((2, 3, 5), (7, 5, 2)),  # shorter than the spline's padding
    ((5, 1, 2), (1, 9, 2)),
    ((3, 3, 3), (40, 1, 3)),
]
"""(before, after)"""
