"""One axis of a resampling, as a small matrix.

Every interpolation nnU-Net uses is a separable linear operator: along one axis it is a matrix (n_out, n_in). The
spline matrices are what skimage's ``resize`` (mode "edge", no anti-aliasing, no clipping) makes of unit vectors
(:mod:`offline_infer.resampling.splines`). The torch ones follow the coordinate rule of
``torch.nn.functional.interpolate`` with ``align_corners=False``.

The matrices are banded: a linear row has two entries, and a spline's prefilter decays by a factor of about four per
voxel.
:class:`Taps` and :class:`Banded` are the two ways the rest of the package makes use of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.resampling.splines import spline_matrix

Method = Literal["spline", "torch-linear", "torch-nearest-exact", "torch-nearest"]
Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_BLOCK = 24
"""Output rows of one matrix product: enough for BLAS, few enough to keep the band narrow (16 to 32 measured best)."""


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled.

    Attributes:
        n_in, n_out: voxels before and after.
        method: the interpolation's family.
        order: spline order 0..5; 0 or 1 for the torch methods.
    """

    n_in: int
    n_out: int
    method: Method
    order: int

    @property
    def identity(self) -> bool:
        return self.n_in == self.n_out

    @property
    def two_taps(self) -> bool:
        """Whether each output voxel depends on at most two input voxels, with weights in [0, 1]."""
        return self.identity or self.order <= 1

    def dense(self) -> Doubles:
        """The matrix (n_out, n_in)."""
        return _dense(self)

    def taps(self) -> Taps:
        """The same as two taps per output voxel."""
        return _taps(self)

    def banded(self, dtype: npt.DTypeLike) -> Banded:
        """The same as blocks along the diagonal, in the arithmetic of ``dtype``."""
        return _banded(self, np.dtype(dtype))


@dataclass(frozen=True)
class Taps:
    """Output voxel i is ``low_weight[i] * in[low[i]] + high_weight[i] * in[high[i]]``; the indices never decrease.

    ``single`` says that ``high`` is unused (nearest neighbour, or an axis that does not change).
    """

    low: Indices
    high: Indices
    low_weight: Doubles
    high_weight: Doubles
    single: bool

    def sides(self) -> tuple[tuple[Indices, Doubles], ...]:
        """(index, weight) of the one or two taps, lower first: the order in which SciPy sums them."""
        lower = (self.low, self.low_weight)
        return (lower,) if self.single else (lower, (self.high, self.high_weight))


@dataclass(frozen=True)
class Block:
    """Rows ``out`` of a banded matrix: they depend on columns ``taken`` only."""

    out: slice
    taken: slice
    weights: Floats


@dataclass(frozen=True)
class Banded:
    """A matrix (n_out, n_in) as dense blocks along its diagonal."""

    n_in: int
    n_out: int
    blocks: tuple[Block, ...]

    @property
    def cost(self) -> float:
        """Multiplications per output voxel."""
        return sum(block.weights.size for block in self.blocks) / self.n_out

    @property
    def reach(self) -> int:
        """The largest number of inputs one block needs."""
        return max(int(block.weights.shape[1]) for block in self.blocks)

    def along_last(self, data: Floats, out: Floats) -> None:
        """Resample (..., n_in) into ``out`` (..., n_out)."""
        rows, target = data.reshape(-1, self.n_in), out.reshape(-1, self.n_out)
        for block in self.blocks:
            np.matmul(rows[:, block.taken], block.weights.T, out=target[:, block.out])

    def along_rows(self, data: Floats, out: Floats) -> None:
        """Resample (n_in, x) into ``out`` (n_out, x)."""
        for block in self.blocks:
            np.matmul(block.weights, data[block.taken], out=out[block.out])


def _dense(axis: Axis) -> Doubles:
    if axis.identity:
        matrix = np.eye(axis.n_in)
    elif axis.method == "spline":
        matrix = spline_matrix(axis.n_in, axis.n_out, axis.order)
    else:
        matrix = _torch_matrix(axis.n_in, axis.n_out, axis.method)
    return matrix


def _torch_matrix(n_in: int, n_out: int, method: Method) -> Doubles:
    """torch computes coordinates in float32, and over several hundred voxels that shows in the weights."""
    scale = np.float32(n_in) / np.float32(n_out)
    half = np.float32(0.5)
    place = np.arange(n_out, dtype=np.float32)
    matrix = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    if method == "torch-linear":
        source = np.maximum(scale * (place + half) - half, np.float32(0))
        low = np.minimum(source.astype(np.intp), n_in - 1)
        high = np.minimum(low + 1, n_in - 1)
        weight = np.clip(source - low.astype(np.float32), 0, 1)
        matrix[rows, low] = np.float32(1) - weight
        matrix[rows, high] += weight
    else:
        source = (place + half) * scale if method == "torch-nearest-exact" else place * scale
        matrix[rows, np.minimum(source.astype(np.intp), n_in - 1)] = 1
    return matrix


@lru_cache(maxsize=64)
def _taps(axis: Axis) -> Taps:
    assert axis.two_taps
    if axis.method == "spline" and axis.order == 1 and not axis.identity:
        # SciPy does not clamp the coordinate: beyond the border both taps fall on the last voxel, and their two
        # products are added. The dense matrix only knows the sum, which rounds differently.
        place = (np.arange(axis.n_out) + 0.5) * (axis.n_in / axis.n_out) - 0.5
        below = np.floor(place)
        low_weight = 1 - (place - below)
        high_weight = 1 - low_weight
        low = np.clip(below.astype(np.intp), 0, axis.n_in - 1)
        high = np.clip(below.astype(np.intp) + 1, 0, axis.n_in - 1)
        single = False
    else:
        matrix = axis.dense()
        used = matrix != 0
        low = used.argmax(axis=1)
        high = axis.n_in - 1 - used[:, ::-1].argmax(axis=1)
        rows = np.arange(axis.n_out)
        low_weight, high_weight = matrix[rows, low], np.where(high > low, matrix[rows, high], 0.0)
        single = bool((high == low).all())
    for array in (low, high, low_weight, high_weight):
        array.flags.writeable = False
    return Taps(low, high, low_weight, high_weight, single)


@lru_cache(maxsize=64)
def _banded(axis: Axis, dtype: np.dtype[Any]) -> Banded:
    matrix = axis.dense()
    # What is dropped stays below the rounding of the arithmetic it is used in.
    floor = 1e-9 if dtype == np.float32 else 1e-17
    blocks = []
    for first in range(0, axis.n_out, _BLOCK):
        last = min(first + _BLOCK, axis.n_out)
        (columns,) = np.nonzero((np.abs(matrix[first:last]) > floor).any(axis=0))
        taken = slice(int(columns[0]), int(columns[-1]) + 1)
        weights = np.ascontiguousarray(matrix[first:last, taken], dtype)
        weights.flags.writeable = False
        blocks.append(Block(slice(first, last), taken, weights))
    return Banded(axis.n_in, axis.n_out, tuple(blocks))
