"""Gaussian smoothing of an array, as ``scipy.ndimage.gaussian_filter`` does it (``mode="reflect"``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Real = TypeVar("Real", np.float32, np.float64)


def gaussian(array: npt.NDArray[Real], sigma: float | Sequence[float], *, truncate: float = 4.0) -> npt.NDArray[Real]:
    """Smooth along every axis; beyond its ends the array is reflected about the outer edge of the last voxel.

    The sums run in float64 and in SciPy's order, and each axis ends in the array's own type, so both give the same bits.

    Args:
        array: float32 or float64, any number of axes; not changed.
        sigma: standard deviation in voxels, for all axes or for each; 0 leaves an axis as it is.
        truncate: the kernel ends at this many standard deviations.
    """
    sigmas = (float(sigma),) * array.ndim if isinstance(sigma, (int, float)) else tuple(sigma)
    result = array.copy()
    for axis, deviation in enumerate(sigmas):
        if deviation > 1e-15:
            _smooth_axis(np.moveaxis(result, axis, 0), gaussian_kernel(deviation, truncate))
    return result


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> npt.NDArray[np.float64]:
    """Weights at distances -r..r voxels, r = ``truncate * sigma`` rounded; they sum to one."""
    reach = int(truncate * sigma + 0.5)
    kernel: npt.NDArray[np.float64] = np.exp(-0.5 / (sigma * sigma) * np.arange(-reach, reach + 1) ** 2)
    kernel /= kernel.sum()
    return kernel


def _smooth_axis(array: npt.NDArray[Real], kernel: npt.NDArray[np.float64]) -> None:
    """Smooth along the first axis, in place; slices of the second axis one by one, so that the float64 copy is small."""
    reach = len(kernel) // 2
    slices = [array] if array.ndim == 1 else [array[:, i] for i in range(array.shape[1])]
    for plane in slices:
        padded = np.pad(plane.astype(np.float64), [(reach, reach)] + [(0, 0)] * (plane.ndim - 1), mode="symmetric")
        n = len(plane)
        total = padded[reach : reach + n] * kernel[reach]
        for distance in range(reach, 0, -1):
            before = padded[reach - distance : reach - distance + n]
            after = padded[reach + distance : reach + distance + n]
            total += (before + after) * kernel[reach - distance]
        plane[...] = total
