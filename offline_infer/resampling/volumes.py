"""Whole volumes through separable operators: nnU-Net's image resampling at a fraction of its cost.

nnU-Net calls ``skimage.transform.resize`` on every channel (or, across a low-resolution axis, on every slice) and
limits the result to the input's range. Here the same operator is applied as one banded matrix product per axis, in
slabs: temporary memory stays at a few dozen planes, and each plane is still in the cache when its next step comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from offline_infer.resampling.blas import single_threaded_blas
from offline_infer.resampling.operators import Axis, Floats
from offline_infer.resampling.steps import ResamplingSteps, lowres_axis, resampling_steps
from offline_infer.spec import Resampling
from offline_infer.threads import worker_count

T = TypeVar("T")

_COLUMNS = 8192
"""Columns of a product along the first axis that are handled at once, so that they are clipped while in the cache."""
_SLICES = 16
"""Slices that are moved at once across a low-resolution axis: a cache line of the last axis."""


def resample_image(
    data: npt.NDArray[np.float32],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    rule: Resampling,
    threads: int | None = None,
) -> npt.NDArray[np.float32]:
    """Resample image channels as nnU-Net does.

    The arithmetic is float32 (nnU-Net: float64, then cast): on data of unit variance the difference is about 2e-6.

    Args:
        data: (c, z, y, x) float32.
        new_shape: (z, y, x).
        current_spacing, new_spacing: mm along z, y, x; they only decide whether an axis is treated apart.
        threads: 0 or None = all cores.

    Returns:
        (c, *new_shape) float32; ``data`` itself where the shapes agree.

    Raises:
        GeometryError: impossible shapes, or a rule that cannot join them.
    """
    steps = resampling_steps(data.shape[1:], new_shape, lowres_axis(current_spacing, new_spacing, rule), rule)
    if steps.identity:
        return data
    out = np.empty((data.shape[0], *steps.fine), np.float32)
    for channel, target in zip(data, out, strict=True):
        resize_volume(channel, steps, target, threads)
    return out


def resize_volume(volume: Floats, steps: ResamplingSteps, out: Floats, threads: int | None = None) -> None:
    """Resample one volume (z, y, x) into ``out``, in the arithmetic of ``out``'s dtype (float32 or float64)."""
    volume = np.ascontiguousarray(volume, out.dtype)
    with single_threaded_blas(), ThreadPoolExecutor(worker_count(threads)) as pool:
        if steps.apart is not None:
            _resize_slices(volume, steps, out, steps.apart, pool)
            return
        limits = (volume.min(), volume.max()) if steps.clip else None
        if _first_axis_last(steps, out.dtype):
            _resize_planes_first(volume, steps, out, limits, pool)
        else:
            _resize_planes_last(volume, steps, out, limits, pool)


class PlaneOperator:
    """The two axes of a plane, applied in the cheaper order."""

    def __init__(self, rows: Axis, columns: Axis, dtype: npt.DTypeLike) -> None:
        self._rows = None if rows.identity else rows.banded(dtype)
        self._columns = None if columns.identity else columns.banded(dtype)
        self._dtype = dtype
        row_cost = rows.banded(dtype).cost if self._rows else 0.0
        column_cost = columns.banded(dtype).cost if self._columns else 0.0
        rows_first = rows.n_out * (columns.n_in * row_cost + columns.n_out * column_cost)
        columns_first = columns.n_out * (rows.n_in * column_cost + rows.n_out * row_cost)
        self._rows_first = rows_first <= columns_first
        self.cost = min(rows_first, columns_first)
        self._between = (rows.n_out, columns.n_in) if self._rows_first else (rows.n_in, columns.n_out)
        self._buffers = threading.local()

    def apply(self, plane: Floats, out: Floats) -> None:
        """Resample (y, x) into ``out``; both contiguous and of the operator's dtype."""
        rows, columns = self._rows, self._columns
        if rows is None and columns is None:
            np.copyto(out, plane)
        elif columns is None and rows is not None:
            rows.along_rows(plane, out)
        elif rows is None and columns is not None:
            columns.along_last(plane, out)
        elif rows is not None and columns is not None:
            between = self._buffer()
            if self._rows_first:
                rows.along_rows(plane, between)
                columns.along_last(between, out)
            else:
                columns.along_last(plane, between)
                rows.along_rows(between, out)

    def _buffer(self) -> Floats:
        """This thread's intermediate plane: fresh memory for every plane would cost more than the arithmetic."""
        if not hasattr(self._buffers, "between"):
            self._buffers.between = np.empty(self._between, self._dtype)
        buffer: Floats = self._buffers.between
        return buffer


def _first_axis_last(steps: ResamplingSteps, dtype: npt.DTypeLike) -> bool:
    """Whether it is cheaper to resample every input plane first and the first axis last."""
    z, y, x = steps.axes
    per_plane = PlaneOperator(y, x, dtype).cost
    along = 0.0 if z.identity else z.banded(dtype).cost
    planes_first = z.n_in * per_plane + z.n_out * along * y.n_out * x.n_out
    planes_last = z.n_out * per_plane + z.n_out * along * y.n_in * x.n_in
    return planes_first <= planes_last


def _resize_planes_first(
    volume: Floats, steps: ResamplingSteps, out: Floats, limits: tuple[Any, Any] | None, pool: ThreadPoolExecutor
) -> None:
    """Planes go through y and x into a ring; each block of output planes is one product with the ring."""
    z, y, x = steps.axes
    plane = PlaneOperator(y, x, out.dtype)
    along = z.banded(out.dtype)
    reach = along.reach
    ring = np.zeros((reach, y.n_out, x.n_out), out.dtype)  # zeros: a place not yet filled is multiplied by zero
    flat_ring, flat_out = ring.reshape(reach, -1), out.reshape(z.n_out, -1)
    done = 0
    for block in along.blocks:
        planes = range(max(done, block.taken.start), block.taken.stop)
        done = block.taken.stop
        _each(pool, lambda p: plane.apply(volume[p], ring[p % reach]), planes)
        weights = np.zeros((block.weights.shape[0], reach), out.dtype)
        weights[:, np.arange(block.taken.start, block.taken.stop) % reach] = block.weights

        def product(first: int, weights: Floats = weights, rows: slice = block.out) -> None:
            columns = slice(first, first + _COLUMNS)
            target = flat_out[rows, columns]
            np.matmul(weights, flat_ring[:, columns], out=target)
            if limits is not None:
                np.clip(target, *limits, out=target)

        _each(pool, product, range(0, flat_out.shape[1], _COLUMNS))


def _resize_planes_last(
    volume: Floats, steps: ResamplingSteps, out: Floats, limits: tuple[Any, Any] | None, pool: ThreadPoolExecutor
) -> None:
    """Each block of output planes is first interpolated along the first axis, then goes through y and x."""
    z, y, x = steps.axes
    plane = PlaneOperator(y, x, out.dtype)
    along = z.banded(out.dtype)
    flat = volume.reshape(z.n_in, -1)
    slab = np.empty((max(block.weights.shape[0] for block in along.blocks), y.n_in, x.n_in), out.dtype)
    for block in along.blocks:
        count = block.weights.shape[0]
        flat_slab = slab[:count].reshape(count, -1)

        def product(
            first: int, source: Floats = flat[block.taken], w: Floats = block.weights, to: Floats = flat_slab
        ) -> None:
            columns = slice(first, first + _COLUMNS)
            np.matmul(w, source[:, columns], out=to[:, columns])

        def finish(i: int, start: int = block.out.start) -> None:
            target = out[start + i]
            plane.apply(slab[i], target)
            if limits is not None:
                np.clip(target, *limits, out=target)

        _each(pool, product, range(0, flat.shape[1], _COLUMNS))
        _each(pool, finish, range(count))


def _resize_slices(volume: Floats, steps: ResamplingSteps, out: Floats, axis: int, pool: ThreadPoolExecutor) -> None:
    """Slices across ``axis`` one by one, each limited to its own range, then along ``axis``."""
    source, target = np.moveaxis(volume, axis, 0), np.moveaxis(out, axis, 0)
    across = steps.axes[axis]
    rows, columns = (a for i, a in enumerate(steps.axes) if i != axis)
    plane = PlaneOperator(rows, columns, out.dtype)

    def resized(first: int, last: int) -> Floats:
        block = np.ascontiguousarray(source[first:last])
        result = np.empty((last - first, rows.n_out, columns.n_out), out.dtype)
        for slice_in, slice_out in zip(block, result, strict=True):
            plane.apply(slice_in, slice_out)
            if steps.clip:
                np.clip(slice_out, slice_in.min(), slice_in.max(), out=slice_out)
        return result

    if not (across.two_taps and across.taps().single):
        whole = resized(0, across.n_in).reshape(across.n_in, -1)
        along = np.empty((across.n_out, whole.shape[1]), out.dtype)
        across.banded(out.dtype).along_rows(whole, along)
        target[...] = along.reshape(target.shape)
        return

    nearest = across.taps().low
    step = max(1, _SLICES * across.n_in // across.n_out)

    def move(first: int) -> None:
        begin, end = np.searchsorted(nearest, (first, first + step))
        if begin < end:
            block = resized(int(nearest[begin]), int(nearest[end - 1]) + 1)
            target[begin:end] = block[nearest[begin:end] - nearest[begin]]

    _each(pool, move, range(0, across.n_in, step))


def _each(pool: ThreadPoolExecutor, work: Callable[[T], None], items: Iterable[T]) -> None:
    """Run ``work`` on every item and wait; the first error is raised."""
    for _ in pool.map(work, items):
        pass
