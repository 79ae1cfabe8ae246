"""Maps of logits or probabilities back to the image's grid, whole or slab by slab.

nnU-Net interpolates in float64 and casts to the map's own dtype, and so do these functions. Linear interpolation (the
default for maps) looks at two coarse planes at a time, so a stream of slabs needs no more memory than a few planes; a
spline of order 2 or more reaches through the whole volume and is limited to the volume's range, so there the slabs
are collected first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError
from offline_infer.resampling.blas import single_threaded_blas
from offline_infer.resampling.corners import corners
from offline_infer.resampling.operators import Doubles, Floats, Indices, Taps
from offline_infer.resampling.steps import ResamplingSteps, resampling_steps
from offline_infer.resampling.volumes import PlaneOperator, resize_volume
from offline_infer.spec import Resampling
from offline_infer.threads import worker_count

_CHUNK_BYTES = 64 * 2**20
"""Fine planes are handed on in chunks of about this size, one plane at least."""


def resample_map(
    data: Floats, new_shape: Sequence[int], axis: int | None, rule: Resampling, threads: int | None = None
) -> Floats:
    """Resample a map as nnU-Net does before it decides on labels.

    Args:
        data: (k, z, y, x), float32 or float16.
        new_shape: (z, y, x).
        axis: array axis to treat apart (see ``lowres_axis``), or None.
        threads: 0 or None = all cores.

    Returns:
        (k, *new_shape) in ``data``'s dtype (the torch functions answer float32); ``data`` itself where the shapes
        agree.

    Raises:
        GeometryError: impossible shapes, or a rule that cannot join them.
    """
    steps = resampling_steps(data.shape[1:], new_shape, axis, rule)
    if steps.identity:
        return data
    out = np.empty((data.shape[0], *steps.fine), map_dtype(data.dtype, rule))
    stream = SlabResampler(data.shape[0], steps.coarse, steps.fine, axis, rule, data.dtype, threads)
    for start, planes in (*stream.push(data), *stream.finish()):
        out[:, start : start + planes.shape[1]] = planes
    return out


def map_dtype(dtype: npt.DTypeLike, rule: Resampling) -> np.dtype[Any]:
    """The dtype a map has after resampling: torch interpolates in float32 and does not cast back."""
    return np.dtype(np.float32) if rule.function.startswith("torch") else np.dtype(dtype)


@dataclass(frozen=True)
class PlanePair:
    """Fine planes ``start`` to ``stop`` lie between coarse planes ``low`` and ``high``, values (k, y, x) given."""

    start: int
    stop: int
    low: int
    high: int
    lower: Floats
    upper: Floats


class PlaneWindow:
    """Turns slabs of coarse planes into the pairs that fine planes lie between; copies what later pairs need."""

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._received = 0
        self._next = 0
        self._kept: dict[int, Floats] = {}

    def push(self, slab: Floats) -> list[PlanePair]:
        """Take the next coarse planes (k, dz, y, x). The pairs are views of ``slab`` and of kept planes."""
        low, high = self._taps.low, self._taps.high
        first = self._received
        self._received += slab.shape[1]
        planes = {**self._kept, **{first + i: slab[:, i] for i in range(slab.shape[1])}}
        pairs = []
        while self._next < len(low) and high[self._next] < self._received:
            start = self._next
            while self._next < len(low) and (low[self._next], high[self._next]) == (low[start], high[start]):
                self._next += 1
            below, above = int(low[start]), int(high[start])
            pairs.append(PlanePair(start, self._next, below, above, planes[below], planes[above]))
        needed = int(low[self._next]) if self._next < len(low) else self._received
        self._kept = {i: plane if i in self._kept else plane.copy() for i, plane in planes.items() if i >= needed}
        return pairs


class SlabResampler:
    """:func:`resample_map` for a map that arrives slab by slab along its first axis.

    Push every slab in order, iterate over what each push and :meth:`finish` give; together they are all fine planes,
    in order.
    """

    def __init__(
        self,
        channels: int,
        coarse_shape: Sequence[int],
        fine_shape: Sequence[int],
        axis: int | None,
        rule: Resampling,
        dtype: npt.DTypeLike = np.float32,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            channels: k.
            coarse_shape, fine_shape: (z, y, x) before and after.
            axis: array axis to treat apart (see ``lowres_axis``), or None.
            dtype: of the slabs.
            threads: 0 or None = all cores.

        Raises:
            GeometryError: impossible shapes, or a rule that cannot join them.
        """
        self.steps = resampling_steps(coarse_shape, fine_shape, axis, rule)
        self.dtype = map_dtype(dtype, rule)
        self._channels = channels
        self._threads = worker_count(threads)
        self._received = 0
        self._collected: list[Floats] = []
        z, y, x = self.steps.axes
        self._taps = z.taps() if self.steps.two_taps else None
        self._window = PlaneWindow(self._taps) if self._taps else None
        self._plane = PlaneOperator(y, x, np.float64)

    def push(self, slab: Floats) -> Iterator[tuple[int, Floats]]:
        """Take the next coarse planes (k, dz, y, x); gives (first fine plane, (k, n, y, x)) for what became ready.

        The slab's memory may be reused once the iteration is over.

        Raises:
            GeometryError: the slab does not fit the shape announced.
        """
        self._received = check_slab(slab, self._channels, self.steps.coarse, self._received)
        if self._window is None:
            self._collected.append(slab.copy())
            return iter(())
        return self._chunks([(i, pair) for pair in self._window.push(slab) for i in range(pair.start, pair.stop)])

    def finish(self) -> Iterator[tuple[int, Floats]]:
        """What could not be given before the last slab was known.

        Raises:
            GeometryError: slabs are missing.
        """
        check_complete(self._received, self.steps.coarse)
        if self._collected:
            whole, self._collected = np.concatenate(self._collected, axis=1), []
            yield 0, _resample_whole(whole, self.steps, self.dtype, self._threads)

    def _chunks(self, planes: list[tuple[int, PlanePair]]) -> Iterator[tuple[int, Floats]]:
        size = int(np.prod(self.steps.fine[1:])) * self._channels * self.dtype.itemsize
        step = max(1, _CHUNK_BYTES // size)
        for first in range(0, len(planes), step):
            chunk = planes[first : first + step]
            out = np.empty((self._channels, len(chunk), *self.steps.fine[1:]), self.dtype)
            with single_threaded_blas(), ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(self._interpolate, *zip(*self._jobs(chunk, out), strict=True)))
            yield chunk[0][0], out

    def _jobs(
        self, chunk: list[tuple[int, PlanePair]], out: Floats
    ) -> Iterator[tuple[int, list[tuple[int, PlanePair]], Floats]]:
        """A chunk cut into arguments of :meth:`_interpolate`: a few jobs per thread."""
        run = max(1, -(-len(chunk) * self._channels // (4 * self._threads)))
        for channel in range(self._channels):
            for first in range(0, len(chunk), run):
                yield channel, chunk[first : first + run], out[channel, first : first + run]

    def _interpolate(self, channel: int, planes: list[tuple[int, PlanePair]], out: Floats) -> None:
        """One channel of some fine planes into ``out`` (n, y, x)."""
        taps = self._taps
        assert taps is not None
        fine = np.empty(self.steps.fine[1:])
        coarse, second = np.empty((2, *self.steps.coarse[1:]))
        before: tuple[Any, ...] = ()
        for n, (i, pair) in enumerate(planes):
            source = (taps.low[i], taps.high[i], taps.low_weight[i], taps.high_weight[i])
            if source == before:  # nearest neighbour repeats planes
                out[n] = out[n - 1]
                continue
            before = source
            lower, upper = pair.lower[channel], pair.upper[channel]
            np.copyto(coarse, lower)
            slack = 1e-14 * max(coarse.max(), -coarse.min())
            coarse *= taps.low_weight[i]
            if not taps.single:
                np.copyto(second, upper)
                slack = max(slack, 1e-14 * max(second.max(), -second.min()))
                second *= taps.high_weight[i]
                coarse += second
            self._plane.apply(coarse, fine)
            if self.dtype == np.float16:
                voxels = _round_half(fine, slack, out[n])
                total = np.zeros(voxels.size)
                for corner in corners(i, voxels, self._all_taps()):
                    total += corner.share((upper if corner.upper else lower)[corner.row, corner.column])
                out[n].reshape(-1)[voxels] = total
            else:
                out[n] = fine

    def _all_taps(self) -> tuple[Taps, Taps, Taps]:
        z, y, x = self.steps.axes
        return (z.taps(), y.taps(), x.taps())


def _round_half(values: Doubles, slack: float, out: npt.NDArray[np.float16]) -> Indices:
    """Cast to half precision; gives the places where the last bits of the float64 sums decide about the rounding.

    There the sum has to be repeated in SciPy's own order, or one value in some thousands comes out one step off.

    Args:
        values: overwritten.
        slack: how much the order of summation can change a value.
    """
    values -= slack
    out[...] = values
    values += 2 * slack
    return np.flatnonzero(values.astype(np.float16).view(np.uint16) != out.view(np.uint16))


def check_slab(slab: Floats, channels: int, coarse: Sequence[int], received: int) -> int:
    """Number of coarse planes received with this slab.

    Raises:
        GeometryError: the slab has another shape than announced, or is one too many.
    """
    if slab.ndim != 4 or slab.shape[0] != channels or slab.shape[2:] != tuple(coarse[1:]):
        raise GeometryError(
            f"a slab of shape {slab.shape} was given; expected ({channels}, any, {coarse[1]}, {coarse[2]})"
        )
    if received + slab.shape[1] > coarse[0]:
        raise GeometryError(f"{received + slab.shape[1]} planes were given for a map of {coarse[0]} planes")
    return received + int(slab.shape[1])


def check_complete(received: int, coarse: Sequence[int]) -> None:
    """
    Raises:
        GeometryError: planes are missing.
    """
    if received != coarse[0]:
        raise GeometryError(f"only {received} of the map's {coarse[0]} planes were given")


def _resample_whole(data: Floats, steps: ResamplingSteps, dtype: np.dtype[Any], threads: int) -> Floats:
    """Splines of order 2 and more: each channel at once, (k, z, y, x)."""
    out = np.empty((data.shape[0], *steps.fine), dtype)
    resized = np.empty(steps.fine)
    for channel, target in zip(data, out, strict=True):
        resize_volume(channel, steps, resized, threads)
        target[...] = resized
    return out
