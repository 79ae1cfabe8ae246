"""Network answers back to a label map: the part both roads share.

The streaming run feeds :class:`CaseAggregator` from an engine, the staged run from files. Both feed it in the same order -
tiles in grid order, per tile every fold, per fold every mirror - so both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import CaseGeometry, Shape3
from offline_infer.arithmetic.half_precision import mean_of_folds
from offline_infer.arithmetic.labels import sigmoid, softmax
from offline_infer.arithmetic.sliding_window import (
    Allocate,
    Mirror,
    RollingAccumulator,
    TileGrid,
    gaussian_map,
    mirror_sets,
    mirror_tile,
    near,
    plan_tiles,
)
from offline_infer.errors import EngineFailed
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings, sum_dtype
from offline_infer.tasks.volume.deciding import MapFinisher, Segmentation
from offline_infer.threads import Team, ThreadBuffers, worker_count

FloatArray = npt.NDArray[np.float32]

__all__ = ["CaseAggregator", "RunSettings", "case_grid", "case_mirrors", "case_weights"]

_PART = 256 * 1024
"""Voxels handled at once: a megabyte of float32. Less stays nearer, but then the threads meet too often at Python's lock."""
_WORTH_SHARING = 256 * 1024
"""Answers of fewer numbers are not shared among threads."""


def case_grid(spec: VolumeSpec, shape: Sequence[int], settings: RunSettings) -> TileGrid:
    """The tiles of a prepared case of that spatial shape."""
    step = settings.step_size if settings.step_size is not None else spec.window.step_size
    return plan_tiles(shape, spec.patch_size, step)


def case_mirrors(spec: VolumeSpec, settings: RunSettings) -> tuple[Mirror, ...]:
    """The mirrors of each tile, unmirrored first."""
    return mirror_sets(spec.window.mirror_axes if settings.tta else (), len(spec.patch_size))


def case_weights(spec: VolumeSpec, grid: TileGrid) -> FloatArray | None:
    """The weight of each voxel of a tile, or None where all count the same."""
    window = spec.window.gaussian
    weighted = window.apply == "always" or len(grid) > 1
    return gaussian_map(grid.patch, window, len(spec.patch_size)).astype(np.float32, copy=False) if weighted else None


class CaseAggregator:
    """Averages the answers for one case and finishes it slab by slab.

    An answer is taken in parts small enough to stay in the processor's cache, by all threads at once: checked, made
    probabilities where the model asks for it, turned back, summed over mirrors and, with the tile's last answer, weighed
    and added to the slab. Every voxel sees the same operations in the same order whatever the number of threads.
    """

    def __init__(
        self,
        spec: VolumeSpec,
        geometry: CaseGeometry,
        settings: RunSettings,
        folds: int,
        *,
        threads: int | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        """
        Args:
            folds: how many answer each tile.
            threads: 0 or None = all cores.
            allocate: gives the zeroed memory of the slab in work; default ``numpy.zeros``.
        """
        dtype = sum_dtype(spec, settings)
        self._spec = spec
        self.grid = case_grid(spec, geometry.network_shape, settings)
        self.mirrors = case_mirrors(spec, settings)
        self._folds = folds
        self._finisher = MapFinisher(spec, geometry, settings.save_probabilities, dtype == "float16", threads)
        exact = dtype == "float16"
        weights = case_weights(spec, self.grid)
        self._shape = (spec.labels.channels, *self.grid.patch)
        small = int(np.prod(self._shape)) < _WORTH_SHARING
        self._team = Team(1 if small else worker_count(threads))
        self._scratch = ThreadBuffers()
        # In half precision the order of roundings matters: folds are summed as whole volumes, as the framework does.
        self._lanes = folds if exact else 1
        self._joined = FoldMean(self._lanes, self._finisher)
        self._accumulators = [
            RollingAccumulator(
                self.grid,
                spec.labels.channels,
                weights,
                dtype,
                self._joined.lane(i),
                allocate=allocate,
                each=self._team.each,
            )
            for i in range(self._lanes)
        ]
        self._per_tile = len(self.mirrors) * (folds // self._lanes)
        # A lone answer needs no sum: it goes from the engine's buffer straight into the slab.
        self._tile_sum = np.empty(self._shape, np.float32) if self._per_tile > 1 else None
        self._in_tile = 0

    def mirror(self, tile: FloatArray, mirror: Mirror, out: FloatArray) -> None:
        """Copy a tile (c, *patch) into ``out`` as the network is to see it, flipped; by all threads."""
        mirror_tile(tile, mirror, out, self._scratch, self._team.each)

    def add(self, start: Shape3, fold: int, mirror: Mirror, logits: FloatArray) -> None:
        """Add one network answer.

        Args:
            start: tile start in the padded array.
            fold: 0-based position of the fold.
            mirror: the mirror the input was given in; the answer is flipped back here.
            logits: (k, *patch), the answer; not kept.

        Raises:
            EngineFailed: NaN or infinite numbers in the answer.
        """
        values = logits.reshape(self._shape)
        if mirror:
            values = np.flip(values, tuple(axis + 1 for axis in mirror))
        accumulator = self._accumulators[fold if self._lanes > 1 else 0]
        self._in_tile += 1
        last = self._in_tile == self._per_tile
        if last:
            accumulator.begin(start)
        softened = self._spec.aggregation.domain == "probabilities"
        planes = max(1, _PART // int(np.prod(self._shape[2:])))
        if softened:  # softmax looks at all classes of a voxel
            planes = max(1, planes // self._shape[0])
        parts = [
            (channel, first)
            for channel in ((None,) if softened else range(self._shape[0]))
            for first in range(0, self._shape[1], planes)
        ]

        def take(number: int) -> None:
            channel, first = parts[number]
            window = slice(first, first + planes)
            if channel is None:
                _check(values[:, window], start)
                found = self._activated(values[:, window])
                for k in range(self._shape[0]):
                    self._sum_up(accumulator if last else None, start, k, first, found[k])
            else:
                self._sum_up(accumulator if last else None, start, channel, first, values[channel, window])

        self._team.each(take, range(len(parts)))
        if last:
            accumulator.end(start)
            self._in_tile = 0

    def finish(self) -> Segmentation:
        """The case's label map in the image's own grid."""
        self._tile_sum = None
        while self._accumulators:  # each is let go once it is empty; the label map takes their place
            self._accumulators.pop(0).finish()
        self._team.close()
        return self._finisher.finish()

    def _activated(self, values: FloatArray) -> FloatArray:
        return softmax(values) if self._spec.aggregation.activation == "softmax" else sigmoid(values)

    def _sum_up(
        self, accumulator: RollingAccumulator | None, start: Shape3, channel: int, first: int, part: FloatArray
    ) -> None:
        """Add a part (dz, y, x) to the tile's sum and, where it is complete, the mean to the slab."""
        part = near(part, self._scratch)
        if self._tile_sum is not None:
            total = self._tile_sum[channel, first : first + len(part)]
            if self._in_tile == 1:
                np.copyto(total, part)
            else:
                total += part
            if accumulator is not None:
                total /= self._per_tile
            part = total
        if accumulator is not None:
            # Nothing bad is lost in a sum, so one look at it is enough for all mirrors and folds.
            _check(part, start)
            accumulator.add_part(start, channel, first, part)


def _check(values: FloatArray, start: Shape3) -> None:
    """Refuse NaN and infinite numbers; a sum shows them, and only an overflowing sum has to be looked at twice."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float32)
    if not np.isfinite(total) and not np.isfinite(values).all():
        raise EngineFailed(
            f"the engine's answer for the tile at {start} (z, y, x) holds NaN or infinite numbers; "
            "run with --precision fp32, or check the compiled model"
        )


class FoldMean:
    """Joins the slabs of several folds: half-precision sum, then division, as nnU-Net v2 does with whole volumes.

    The lanes give their slabs in order, each lane the same planes, so those of all but the last one have to wait.
    """

    def __init__(self, lanes: int, finisher: MapFinisher) -> None:
        self._waiting: list[list[npt.NDArray[np.floating]]] = [[] for _ in range(lanes - 1)]
        self._finisher = finisher

    def lane(self, index: int) -> Callable[[npt.NDArray[np.floating]], None]:
        """The emit callback of one accumulator."""
        if index < len(self._waiting):
            return lambda slab: self._waiting[index].append(slab.copy())

        def emit(slab: npt.NDArray[np.floating]) -> None:
            parts = [queue.pop(0) for queue in self._waiting]
            # The slab is cleared after this call, so that it may be spent here.
            self._finisher.push(mean_of_folds([*parts, slab]) if parts else slab)

        return emit
