"""The two, four or eight coarse voxels around a fine one, for decisions that linear interpolation makes.

Linear interpolation is a convex combination of a voxel's corners. Where the corners agree on a decision, the
interpolated voxel takes it too, so only the voxels between disagreeing corners - the surfaces of objects - have to be
computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.resampling.operators import Doubles, Floats, Indices, Taps

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Corner:
    """One corner of each of m fine voxels.

    Attributes:
        upper: it lies in the upper of the two coarse planes.
        row, column: (m,) its place in the coarse plane.
        weight_z, weight_y, weight_x: its share along each axis: one number, (m,) and (m,).
    """

    upper: bool
    row: Indices
    column: Indices
    weight_z: float
    weight_y: Doubles
    weight_x: Doubles

    def share(self, values: Floats | float) -> Doubles:
        """``values`` (..., m) times the corner's weight, multiplied in the order in which SciPy does it."""
        result = np.multiply(values, self.weight_z, dtype=np.float64) * self.weight_y
        result *= self.weight_x
        return result


def corners(plane: int, voxels: Indices, taps: tuple[Taps, Taps, Taps]) -> list[Corner]:
    """The corners of some voxels of a fine plane, in the order in which SciPy sums them, so that sums agree to the bit.

    Args:
        plane: index of the fine plane.
        voxels: (m,) places in the fine plane, flattened.
        taps: of z, y, x.
    """
    z, y, x = taps
    row, column = np.divmod(voxels, len(x.low))
    rows = [(index[row], weight[row]) for index, weight in y.sides()]
    columns = [(index[column], weight[column]) for index, weight in x.sides()]
    return [
        Corner(bool(upper), at_y, at_x, float(weight_z[plane]), weight_y, weight_x)
        for upper, (_, weight_z) in enumerate(z.sides())
        for at_y, weight_y in rows
        for at_x, weight_x in columns
    ]


def plane_extremes(plane: Ints, y: Taps, x: Taps) -> tuple[Ints, Ints]:
    """For each fine voxel of a plane the smallest and the largest value at its corners in that coarse plane (y, x)."""
    left, right = plane.take(x.low, axis=1), plane.take(x.high, axis=1)
    smallest, largest = (left, left) if x.single else (np.minimum(left, right), np.maximum(left, right))
    if y.single:
        return smallest.take(y.low, axis=0), largest.take(y.low, axis=0)
    return (
        np.minimum(smallest.take(y.low, axis=0), smallest.take(y.high, axis=0)),
        np.maximum(largest.take(y.low, axis=0), largest.take(y.high, axis=0)),
    )
