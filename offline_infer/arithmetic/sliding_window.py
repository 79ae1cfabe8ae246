"""Tiles: where they start, how they are mirrored, weighted and summed. Pure arithmetic.

A network with a two-dimensional patch ``(y, x)`` is treated as one with patch ``(1, y, x)`` that visits every slice, so that
the rest of the package knows three axes only.

Sources: nnU-Net v2 ``sliding_window_prediction`` and v1 ``neural_network`` as observed (steps, padding, Gaussian map, order of
sums); the details are listed in docs/parity.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.budgets import check_tiles
from offline_infer.arithmetic.geometry import Shape3
from offline_infer.arithmetic.half_precision import make_sums
from offline_infer.arithmetic.smoothing import gaussian_kernel
from offline_infer.spec import Gaussian
from offline_infer.threads import ThreadBuffers, one_after_the_other

FloatArray = npt.NDArray[np.floating]
Mirror = tuple[int, ...]
"""Flipped axes of (z, y, x), ascending; () is the unmirrored tile."""
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
"""Gives a zeroed array of that shape and dtype."""
Each = Callable[[Callable[[int], None], Iterable[int]], None]
"""Runs a function on every number, possibly at the same time; returns when all are done, raises the first error."""


def tile_starts(size: int, patch: int, step_size: float) -> tuple[int, ...]:
    """Tile starts along one axis: evenly spread, at most ``patch * step_size`` apart, rounded half to even.

    Args:
        size: padded length of the axis, at least ``patch``.

    >>> tile_starts(300, 128, step_size=0.5)
    (0, 57, 115, 172)
    """
    count = tile_count(size, patch, step_size)
    step = (size - patch) / (count - 1) if count > 1 else 0.0
    return tuple(round(step * i) for i in range(count))


def tile_count(size: int, patch: int, step_size: float) -> int:
    """How many tiles :func:`tile_starts` lays along one axis."""
    return math.ceil((size - patch) / (patch * step_size)) + 1


_COUNTED_AT_ONCE = 256 * 1024
"""Voxels of the count that are added at once."""


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one case.

    Attributes:
        shape: of the prepared array, network order, before padding.
        patch: three entries; the first is 1 for a two-dimensional network.
        pad: (low, high) zeros per axis that bring a small image up to the patch; low side gets the smaller half.
        starts: tile starts per axis, in the padded array.
    """

    shape: Shape3
    patch: Shape3
    pad: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def padded_shape(self) -> Shape3:
        a, b, c = (n + low + high for n, (low, high) in zip(self.shape, self.pad, strict=True))
        return (a, b, c)

    @property
    def tiles_per_plane(self) -> int:
        """Tiles that share a start along the first axis."""
        return len(self.starts[1]) * len(self.starts[2])

    def __len__(self) -> int:
        return len(self.starts[0]) * self.tiles_per_plane

    def __iter__(self) -> Iterator[Shape3]:
        """Tile starts, first axis slowest: the order in which the frameworks sum."""
        return iter(itertools.product(*self.starts))


def lay_tiles(shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> TileGrid:
    """Lay tiles over an array of ``shape`` (z, y, x); ``patch_size`` has two or three entries.

    Raises:
        GeometryError: implausibly many tiles; see ``budgets``.
    """
    slices = len(patch_size) == 2
    patch: Shape3 = (1, patch_size[0], patch_size[1]) if slices else (patch_size[0], patch_size[1], patch_size[2])
    pads, starts, count = [], [], 1
    for axis, (size, tile) in enumerate(zip(shape, patch, strict=True)):
        missing = max(tile - int(size), 0)
        pads.append((missing // 2, missing - missing // 2))
        every_slice = slices and axis == 0
        count *= int(size) if every_slice else tile_count(int(size) + missing, tile, step_size)
        check_tiles(count)
        starts.append(tuple(range(size)) if every_slice else tile_starts(int(size) + missing, tile, step_size))
    return TileGrid(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        patch=patch,
        pad=(pads[0], pads[1], pads[2]),
        starts=(starts[0], starts[1], starts[2]),
    )


def constant_key(tile: npt.NDArray[np.float32]) -> tuple[int, ...] | None:
    """The bits of each channel's one value, where every channel of a tile (c, z, y, x) is constant; else None."""
    bits = np.ascontiguousarray(tile).view(np.uint32).reshape(len(tile), -1)
    firsts = bits[:, :1]
    if bool((bits[:, :: max(1, bits.shape[1] // 64)] != firsts).any()):  # decides for nearly every tile
        return None
    return tuple(int(bit) for bit in firsts[:, 0]) if bool((bits == firsts).all()) else None


def cut_tile(array: npt.NDArray[np.float32], grid: TileGrid, start: Shape3, out: npt.NDArray[np.float32]) -> None:
    """Copy one tile of an unpadded array into ``out``, zeros where it reaches into the padding.

    Args:
        array: (c, z, y, x), the prepared case.
        start: tile start in the padded array.
        out: (c, *patch), overwritten.
    """
    source, target = [slice(None)], [slice(None)]
    for begin, tile, size, (low, _) in zip(start, grid.patch, grid.shape, grid.pad, strict=True):
        first, last = max(begin - low, 0), min(begin - low + tile, size)
        source.append(slice(first, last))
        target.append(slice(first - (begin - low), last - (begin - low)))
    inside = tuple(target)
    if out[inside].shape != out.shape:
        out.fill(0)
    out[inside] = array[tuple(source)]


_COPIED_AT_ONCE = 64 * 1024
"""Voxels; a quarter of a megabyte stays in the second-level cache."""


def near(part: npt.NDArray[np.float32], buffers: ThreadBuffers) -> npt.NDArray[np.float32]:
    """``part`` (..., y, x), or a copy of it in this thread's memory if only its x axis runs backwards.

    A processor does not prefetch rows that are read backwards one after the other: from main memory they take three
    times as long as a copy that is read forwards and then turned in the cache.
    """
    if part.ndim < 2 or not part.strides[-1] < 0 < part.strides[-2]:
        return part
    copy = buffers.take("near", part.shape)
    np.copyto(copy, part[..., ::-1])
    return copy[..., ::-1]


def mirror_tile(
    tile: npt.NDArray[np.float32], mirror: Mirror, out: npt.NDArray[np.float32], buffers: ThreadBuffers, each: Each
) -> None:
    """Copy a tile (c, z, y, x) into ``out``, flipped along the axes of ``mirror``."""
    turned = np.flip(tile, tuple(axis + 1 for axis in mirror)) if mirror else tile
    channels, depth, height, width = tile.shape
    planes = max(1, _COPIED_AT_ONCE // (height * width))

    def copy(number: int) -> None:
        channel, first = divmod(number, -(-depth // planes))
        window = slice(first * planes, (first + 1) * planes)
        np.copyto(out[channel, window], near(turned[channel, window], buffers))

    each(copy, range(channels * -(-depth // planes)))


def mirror_sets(axes: Sequence[int], dimensions: int) -> tuple[Mirror, ...]:
    """All subsets of the allowed mirror axes as axes of (z, y, x), smallest first: the order of nnU-Net v2's sum.

    Args:
        axes: allowed axes, indexing the network's spatial axes.
        dimensions: 2 or 3, how many spatial axes the network has.
    """
    shifted = sorted(axis + 3 - dimensions for axis in axes)
    return tuple(subset for length in range(len(shifted) + 1) for subset in itertools.combinations(shifted, length))


def mirror_code(mirror: Mirror) -> int:
    """The mirror's number in the published Ascend scripts: bit 0 flips x, bit 1 flips y, bit 2 flips z."""
    return sum(1 << (2 - axis) for axis in mirror)


@lru_cache(maxsize=8)
def gaussian_map(patch: Shape3, gaussian: Gaussian, dimensions: int = 3) -> FloatArray:
    """Weight of each voxel of a tile, read-only, of the Gaussian's dtype.

    A delta at ``patch // 2`` filtered with sigma = ``sigma_scale`` * patch per axis, scaled to ``peak``; zeros (beyond the
    filter's reach, or below the dtype's range) become the smallest non-zero value, so that no voxel has weight zero.
    """
    spatial = patch[3 - dimensions :]
    # A filtered delta is the product of its profiles along the axes; filtering the volume gives the same bits, slowly.
    weights = np.ones((), np.float64)
    for n in spatial:
        weights = weights[..., None] * _filtered_delta(n, n * gaussian.sigma_scale)
    # Each framework's own order of roundings: v1 divides and rounds to float32, v2 divides by max/peak and rounds once.
    exact = (
        (weights / weights.max()).astype(np.float32)
        if gaussian.peak == 1.0
        else weights / (weights.max() / gaussian.peak)
    )
    result: FloatArray = exact.astype(gaussian.dtype).reshape(patch)
    result[result == 0] = result[result != 0].min()
    result.setflags(write=False)
    return result


def _filtered_delta(n: int, sigma: float) -> npt.NDArray[np.float64]:
    """What ``scipy.ndimage.gaussian_filter1d`` makes of n voxels with a one in the middle: its kernel, cut at four sigma."""
    kernel = gaussian_kernel(sigma)
    reach = len(kernel) // 2
    distance = np.abs(np.arange(n) - n // 2)
    profile: npt.NDArray[np.float64] = np.where(distance <= reach, kernel[reach - np.minimum(distance, reach)], 0.0)
    return profile


class RollingAccumulator:
    """Weighted sums over overlapping tiles that never span the volume.

    Tiles must come in the grid's order. Rows (planes along the first axis) that no later tile touches are normalised
    and handed on in order, then their memory is used again: a ring buffer of ``patch[0]`` planes.

    A tile is added whole with :meth:`add`, or in parts, in any order and by several threads at once, between
    :meth:`begin` and :meth:`end`; every voxel sees the same operations either way, so the sums agree to the bit.
    """

    def __init__(
        self,
        grid: TileGrid,
        channels: int,
        weights: FloatArray | None,
        dtype: str,
        emit: Callable[[npt.NDArray[np.float32]], None],
        *,
        allocate: Allocate | None = None,
        each: Each | None = None,
    ) -> None:
        """
        Args:
            grid: the tiles.
            channels: k, of the network's output.
            weights: (*patch), or None for weight 1.
            dtype: ``float32``, or ``float16`` for nnU-Net v2's own half-precision sums.
            emit: called with finished slabs (k, dz, y, x), padding removed, in order. The slab is float32, in half mode float16
                or float32 that hold half-precision values (see ``half_sums``); it is a buffer that is only valid during the call.
            allocate: gives the ring's memory, zeroed; default ``numpy.zeros``.
            each: runs a function on every channel number, possibly at the same time; default one after the other.
        """
        depth, height, width = grid.patch[0], grid.padded_shape[1], grid.padded_shape[2]
        self._grid = grid
        # float32 holds half-precision weights exactly, and NumPy would convert them anew for every tile.
        self._weights = None if weights is None else weights.astype(np.float32, copy=False)
        self._emit = emit
        self._each = each if each is not None else one_after_the_other
        shape = (channels, depth, height, width)
        self._sums = make_sums(dtype, math.prod(shape))
        self._sum = (allocate if allocate is not None else np.zeros)(shape, self._sums.dtype)
        self._count = np.zeros((depth, height, width), self._sums.dtype)
        self._buffers = ThreadBuffers()
        self._base = 0  # first plane (padded coordinates) still in the ring

    def add(self, start: Shape3, prediction: npt.NDArray[np.float32]) -> None:
        """Add the prediction (k, *patch) of the tile at ``start``."""
        self.begin(start)
        for channel in range(len(self._sum)):
            self.add_part(start, channel, 0, prediction[channel])
        self.end(start)

    def begin(self, start: Shape3) -> None:
        """Hand on what the tile at ``start`` and those after it do not touch."""
        if start[0] > self._base:
            self._release(start[0])

    def add_part(self, start: Shape3, channel: int, first: int, part: npt.NDArray[np.float32]) -> None:
        """Add planes of one channel of a tile that was begun.

        Args:
            start: of the tile.
            first: the tile's plane that ``part`` begins with.
            part: (dz, y, x), left as it is.
        """
        y, x = self._columns(start)
        stop = first + len(part)
        if self._weights is not None:
            product = self._buffers.take("product", part.shape)
            np.multiply(part, self._weights[first:stop], out=product)
            part = product
        self._add(self._sum[channel, :, y, x], start[0] + first, part)

    def place(self, first: Shape3, sums: npt.NDArray[Any]) -> None:
        """Put sums that were added up elsewhere into the slab; tiles are then only begun and ended here.

        Args:
            first: (z, y, x), where ``sums`` begin in the padded array; no plane may have been handed on already.
            sums: (k, dz, dy, dx), float32 or half-precision values as they were added up, finite.
        """
        depth, height, width = sums.shape[1:]
        y, x = slice(first[1], first[1] + height), slice(first[2], first[2] + width)
        for ring, planes in self._pieces(first[0], first[0] + depth):
            self._sum[:, ring, y, x] = sums[:, planes]

    def end(self, start: Shape3) -> None:
        """Count the tile at ``start``, all parts of which were added."""
        y, x = self._columns(start)
        count, weights = self._count[:, y, x], self._weights
        planes = max(1, _COUNTED_AT_ONCE // (self._grid.patch[1] * self._grid.patch[2]))

        def add(first: int) -> None:
            if weights is None:
                for ring, _ in self._pieces(start[0] + first, start[0] + min(first + planes, self._grid.patch[0])):
                    count[ring] += 1
            else:
                self._add(count, start[0] + first, weights[first : first + planes])

        self._each(add, range(0, self._grid.patch[0], planes))

    def _add(self, target: npt.NDArray[Any], first: int, part: npt.NDArray[np.float32]) -> None:
        """Add planes to a ring, ``part[0]`` to plane ``first`` (padded coordinates)."""
        for ring, planes in self._pieces(first, first + len(part)):
            self._sums.add(target[ring], part[planes])

    def finish(self) -> None:
        """Hand on what is left."""
        self._release(self._grid.padded_shape[0])

    def _columns(self, start: Shape3) -> tuple[slice, slice]:
        return slice(start[1], start[1] + self._grid.patch[1]), slice(start[2], start[2] + self._grid.patch[2])

    def _release(self, until: int) -> None:
        """Normalise, emit and clear the planes before ``until`` (padded coordinates)."""
        low = self._grid.pad[0][0]
        first, last = max(self._base, low), min(until, low + self._grid.shape[0])
        y = slice(self._grid.pad[1][0], self._grid.pad[1][0] + self._grid.shape[1])
        x = slice(self._grid.pad[2][0], self._grid.pad[2][0] + self._grid.shape[2])
        channels = range(len(self._sum))
        for ring, _ in self._pieces(first, last):

            def normalise(channel: int, planes: slice = ring) -> None:
                for total, count in zip(self._sum[channel, planes], self._count[planes], strict=True):
                    self._sums.divide(total, count)

            self._each(normalise, channels)
            self._emit(self._sum[:, ring, y, x])
        for ring, _ in self._pieces(self._base, until):

            def clear(channel: int, planes: slice = ring) -> None:
                self._sum[channel, planes] = 0

            self._each(clear, channels)
            self._count[ring] = 0
        self._base = until

    def _pieces(self, first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Contiguous stretches of the ring that hold planes [first, last), with their place in that range."""
        depth = self._grid.patch[0]
        done = first
        while done < last:
            at = done % depth
            length = min(last - done, depth - at)
            yield slice(at, at + length), slice(done - first, done - first + length)
            done += length
