"""Label decisions by linear interpolation, computed only on the surfaces between objects. See ``map_to_labels``.

It rests on two exact arguments. A fine voxel is a convex combination of its corners in the coarse map; so where all
corners agree on the deciding channel, that channel decides. And where they do not, a class whose largest corner value
is below the smallest corner value of some other class cannot win. Rounding to the map's dtype keeps order, so both
hold after it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from offline_infer.arithmetic.labels import winners
from offline_infer.resampling.corners import Corner, Ints, corners, plane_extremes
from offline_infer.resampling.maps import PlanePair
from offline_infer.resampling.operators import Doubles, Floats, Indices, Taps

_FEW = 4
"""Up to this many classes, looking for those that cannot win costs more than it saves."""
_CORNER_VALUES = 2**20
"""Values gathered at once while looking for candidates."""


@dataclass(frozen=True)
class _Group:
    """Voxels with the same number n of candidates.

    Attributes:
        classes: (n, m) ascending per voxel, or (n, 1) where all voxels have the same.
        voxels: (m,) places in the fine plane, flattened.
    """

    classes: Indices
    voxels: Indices


@dataclass(frozen=True)
class _FlatPlane:
    """A coarse plane (k, y, x) as one stretch of memory, so that values are gathered without copying the plane."""

    data: Floats
    channels: int
    height: int
    width: int
    steps: tuple[int, int, int]

    @classmethod
    def of(cls, plane: Floats) -> _FlatPlane:
        if min(plane.strides) < 0 or any(stride % plane.itemsize for stride in plane.strides):
            plane = np.ascontiguousarray(plane)
        k, y, x = (stride // plane.itemsize for stride in plane.strides)
        length = 1 + sum((n - 1) * step for n, step in zip(plane.shape, (k, y, x), strict=True))
        stretch = as_strided(plane, (length,), (plane.itemsize,), writeable=False)
        channels, height, width = plane.shape
        return cls(stretch, channels, height, width, (k, y, x))

    def take(self, channel: Indices, row: Indices, column: Indices) -> Floats:
        k, y, x = self.steps
        return self.data.take(channel * k + (row * y + column * x))


class SurfaceDecider:
    """Decides fine planes from the coarse planes around them."""

    def __init__(self, taps: tuple[Taps, Taps, Taps], threshold: np.float32 | None, dtype: np.dtype[Any]) -> None:
        """
        Args:
            taps: of z, y, x.
            threshold: None for exclusive classes, else what a region must exceed.
            dtype: interpolated values are rounded to it before they are compared.
        """
        self._taps = taps
        self._threshold = threshold
        self._dtype = dtype
        self._extremes: dict[int, tuple[Ints, Ints]] = {}

    def prepare(self, pairs: Sequence[PlanePair], pool: ThreadPoolExecutor) -> None:
        """Decide the coarse planes of the coming pairs, each once; forget those of earlier pairs."""
        _, y, x = self._taps
        planes = {i: plane for pair in pairs for i, plane in ((pair.low, pair.lower), (pair.high, pair.upper))}
        fresh = [i for i in planes if i not in self._extremes]
        found = pool.map(lambda i: plane_extremes(winners(planes[i], self._threshold), y, x), fresh)
        known = {i: extremes for i, extremes in self._extremes.items() if i in planes}
        self._extremes = {**known, **dict(zip(fresh, found, strict=True))}

    def planes(self, pair: PlanePair) -> list[tuple[int, Ints]]:
        """(index, places as :func:`~offline_infer.arithmetic.labels.winners` gives them) of each fine plane of a prepared pair."""
        smallest, largest = self._extremes[pair.low]
        if pair.low != pair.high:
            other = self._extremes[pair.high]
            smallest, largest = np.minimum(smallest, other[0]), np.maximum(largest, other[1])
        lower = _FlatPlane.of(pair.lower)
        values = (lower, lower if pair.low == pair.high else _FlatPlane.of(pair.upper))
        groups = self._groups(np.flatnonzero(smallest != largest), values)
        results: list[tuple[int, Ints]] = []
        for i in range(pair.start, pair.stop):
            places = smallest.copy()
            for group in groups:
                around = corners(i, group.voxels, self._taps)
                places.reshape(-1)[group.voxels] = self._decide(group.classes, around, values)
            results.append((i, places))
        return results

    def _decide(self, classes: Indices, around: list[Corner], values: tuple[_FlatPlane, _FlatPlane]) -> Ints:
        total: Doubles = np.zeros((len(classes), len(around[0].row)))
        for corner in around:
            total += corner.share(values[corner.upper].take(classes, corner.row, corner.column))
        found = winners(total.astype(self._dtype), self._threshold)
        if self._threshold is not None or classes.shape[1] != len(found):
            return found  # all classes took part, so their places are their numbers
        chosen: Ints = np.take_along_axis(classes, found[None].astype(np.intp), axis=0)[0]
        return chosen

    def _groups(self, voxels: Indices, values: tuple[_FlatPlane, _FlatPlane]) -> list[_Group]:
        """The voxels to interpolate, with the classes that can win there."""
        channels = values[0].channels
        if not voxels.size:
            return []
        if channels <= _FEW or self._threshold is not None:
            return [_Group(np.arange(channels)[:, None], voxels)]
        _, y, x = self._taps
        row, column = np.divmod(voxels, len(x.low))
        # A cell is the square between a coarse voxel and its next neighbours; it holds the corners of all its fine
        # voxels.
        width = values[0].width
        key = y.low[row] * width + x.low[column]
        number = np.full(values[0].height * width, -1)
        number[key] = 0
        (cells,) = np.nonzero(number == 0)
        number[cells] = np.arange(len(cells))
        cell = number[key]
        groups = []
        step = max(1, _CORNER_VALUES // channels)
        for first in range(0, len(cells), step):
            candidates = self._candidates(cells[first : first + step], values)
            inside = (cell >= first) & (cell < first + step) if len(cells) > step else slice(None)
            groups += _by_count(candidates, cell[inside] - first, voxels[inside])
        return groups

    def _candidates(self, cells: Indices, values: tuple[_FlatPlane, _FlatPlane]) -> npt.NDArray[np.bool_]:
        """Whether a class can win somewhere in a cell, (k, cells)."""
        channels, height, width = values[0].channels, values[0].height, values[0].width
        row, column = np.divmod(cells, width)
        every = np.arange(channels)[:, None]
        largest: Floats | None = None
        smallest: Floats | None = None
        for plane in values[:1] if values[0] is values[1] else values:
            for at_y in (row, np.minimum(row + 1, height - 1)):
                for at_x in (column, np.minimum(column + 1, width - 1)):
                    found = plane.take(every, at_y, at_x).astype(np.float32, copy=False)
                    if largest is None or smallest is None:
                        largest, smallest = found.copy(), found
                    else:
                        np.maximum(largest, found, out=largest)
                        np.minimum(smallest, found, out=smallest)
        assert largest is not None
        assert smallest is not None
        possible: npt.NDArray[np.bool_] = largest >= smallest.max(axis=0)
        return possible


def _by_count(candidates: npt.NDArray[np.bool_], cell: Indices, voxels: Indices) -> list[_Group]:
    """Voxels grouped by the number of candidates of their cell."""
    counts = candidates.sum(axis=0)
    (classes,) = np.nonzero(candidates.T.reshape(-1))
    classes %= len(candidates)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    count = counts[cell]
    groups = []
    for n in np.unique(count):
        (members,) = np.nonzero(count == n)
        table = begins[cell[members]] + np.arange(n)[:, None]
        groups.append(_Group(classes[table], voxels[members]))
    return groups
