"""The grid a phantom is painted on, and the surfaces it is painted with.

A surface is an array of signed distances in mm, negative inside; it need be exact only near zero. Coordinates are
patient space, LPS, mm, relative to the patient's own centre: x to the left, y to the back, z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating[Any]]
Slices = tuple[slice, slice, slice]
Vector = Sequence[float] | npt.NDArray[np.floating[Any]]
"""Three numbers."""


class Canvas:
    """Voxel values on an image grid of any orientation.

    Attributes:
        hu: (z, y, x) of the image, float32: what was painted so far.
        x, y, z: patient coordinates of every voxel's centre, each (z, y, x) of the image, float32.
        spacing, origin, direction: the image's frame as ITK has it (x, y, z).
        edge: width of a painted edge, mm.
    """

    def __init__(
        self,
        size: Sequence[int],
        spacing: Sequence[float],
        direction: npt.NDArray[np.float64],
        centre: npt.NDArray[np.float64],
        table: npt.NDArray[np.float64],
        background: float,
    ) -> None:
        """
        Args:
            size: voxels along the image's x, y, z.
            spacing: mm along the same.
            direction: (3, 3), columns are the image's axes in patient space.
            centre: patient coordinates of the middle of the grid.
            table: where the patient's centre lies in the scanner's coordinates; the image's origin counts from there.
            background: first value of every voxel.
        """
        nx, ny, nz = (int(n) for n in size)
        self.spacing = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        self.direction = direction
        steps = direction * np.asarray(self.spacing)  # columns: one voxel further along each image axis
        first = centre - steps @ (np.array([nx, ny, nz]) - 1) / 2
        offset = np.round(first + table, 3)
        self.origin = (float(offset[0]), float(offset[1]), float(offset[2]))
        i = np.arange(nx, dtype=np.float32)[None, None, :]
        j = np.arange(ny, dtype=np.float32)[None, :, None]
        k = np.arange(nz, dtype=np.float32)[:, None, None]
        self._first, self._inverse = first, np.linalg.inv(steps)
        self.x, self.y, self.z = (
            np.asarray(first[a] + steps[a, 0] * i + steps[a, 1] * j + steps[a, 2] * k, np.float32) for a in range(3)
        )
        self.hu: Float = np.full((nz, ny, nx), background, np.float32)
        self.edge = float(np.mean(self.spacing))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hu.shape

    @property
    def everywhere(self) -> Slices:
        return (slice(None), slice(None), slice(None))

    def around(self, centre: Vector, reach: float) -> Slices | None:
        """The part of the grid within ``reach`` mm of a point (at least); None where that is outside."""
        middle = self._inverse @ (np.asarray(centre, np.float64) - self._first)
        slices = []
        for axis in (2, 1, 0):
            low = int(np.floor(middle[axis] - reach / self.spacing[axis]))
            high = int(np.ceil(middle[axis] + reach / self.spacing[axis])) + 1
            size = self.hu.shape[2 - axis]
            if high <= 0 or low >= size:
                return None
            slices.append(slice(max(0, low), min(size, high)))
        return (slices[0], slices[1], slices[2])

    def at(self, box: Slices) -> tuple[Float, Float, Float]:
        """Patient coordinates of the voxels of a box."""
        return self.x[box], self.y[box], self.z[box]

    def paint(self, surface: Array, value: float | Array, box: Slices | None = None) -> None:
        """Cover the inside of a surface with a value or an array of them; the edge is a voxel wide, centred on zero."""
        target = self.hu if box is None else self.hu[box]
        share = np.clip(0.5 - surface / self.edge, 0, 1)
        target += share * (value - target)

    def field(self, length: float, rng: np.random.Generator, box: Slices | None = None) -> Float:
        """A smooth random field over a box, see :func:`smooth_field`."""
        shape = self.shape if box is None else self.hu[box].shape
        return smooth_field(shape, self.spacing[::-1], length, rng)


def ellipsoid(
    at: tuple[Float, Float, Float],
    centre: Vector,
    radii: Vector,
    angles: Vector = (0, 0, 0),
) -> Float:
    """First-order signed distance of an ellipsoid turned by ``angles`` (radians about x, y, z); zero is exact."""
    x, y, z = (a - np.float32(c) for a, c in zip(at, centre, strict=True))
    if np.any(angles):
        m = rotation(angles).T.astype(np.float32)
        x, y, z = (m[i, 0] * x + m[i, 1] * y + m[i, 2] * z for i in range(3))
    a, b, c = (np.float32(1 / r) for r in radii)
    x, y, z = x * a, y * b, z * c
    value = np.sqrt(x * x + y * y + z * z)
    slope = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * c) ** 2)
    return np.asarray(value * (value - 1) / np.maximum(slope, 1e-6), np.float32)


def capsule(at: tuple[Float, Float, Float], start: Vector, end: Vector, radius: float) -> Float:
    """Signed distance of a straight tube with round ends."""
    p = np.asarray(start, np.float32)
    d = np.asarray(end, np.float32) - p
    x, y, z = (a - v for a, v in zip(at, p, strict=True))
    along = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-6), 0, 1)
    return np.asarray(
        np.sqrt((x - along * d[0]) ** 2 + (y - along * d[1]) ** 2 + (z - along * d[2]) ** 2) - radius, np.float32
    )


def smooth_union(a: Array, b: Array, width: float) -> Float:
    """Union of two surfaces, the crease between them filled over ``width`` mm (polynomial smooth minimum)."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + (a - b) * h - width * h * (1 - h), np.float32)


def rotation(angles: Vector) -> npt.NDArray[np.float64]:
    """(3, 3): turn about x, then y, then z, by angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, np.float64)


def smooth_field(shape: Sequence[int], spacing: Sequence[float], length: float, rng: np.random.Generator) -> Float:
    """A random field with mean 0, sd about 1 and a correlation length of ``length`` mm.

    Random numbers on a coarse grid are joined by cubic B-splines; one small matrix per axis does it.

    Args:
        shape: (z, y, x).
        spacing: mm along the same axes.
    """
    along_z, along_y, along_x = (_spline_weights(n, s / length) for n, s in zip(shape, spacing, strict=True))
    coarse = rng.standard_normal((along_y.shape[1], along_z.shape[1], along_x.shape[1])).astype(np.float32)
    # Three plain matrix products, smallest first; one product a slice would be much slower on a busy machine.
    field = along_y @ coarse.reshape(along_y.shape[1], -1)  # (y, coarse z * coarse x)
    field = field.reshape(-1, along_x.shape[1]) @ along_x.T  # (y * coarse z, x)
    field = field.reshape(len(along_y), along_z.shape[1], len(along_x)).transpose(1, 0, 2)
    field = along_z @ np.ascontiguousarray(field).reshape(along_z.shape[1], -1)
    # The spline takes a third of the sd: the sum of its squared weights is 0.48 per axis on average.
    return np.asarray(field.reshape(tuple(shape)) * np.float32(3.0), np.float32)


def _spline_weights(count: int, step: float) -> Float:
    """(count, coarse): uniform cubic B-spline weights at positions 0, step, 2 step, ... of the coarse grid."""
    position = np.arange(count) * step
    cell = position.astype(int)
    t = position - cell
    columns = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    weights = np.zeros((count, int(cell[-1]) + 4), np.float32)
    for k in range(4):
        weights[np.arange(count), cell + k] = columns[:, k]
    return weights
