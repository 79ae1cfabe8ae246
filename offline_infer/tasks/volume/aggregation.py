"""Network answers back to a label map: tiles, mirrors and folds are averaged, finished planes are decided at once.

The streaming run feeds :class:`TileCollector` from an engine, the staged run from files, in the same order - tiles in grid
order, per tile every fold, per fold every mirror - so both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import CaseGeometry, Shape3
from offline_infer.arithmetic.half_precision import mean_of_folds
from offline_infer.arithmetic.labels import activated
from offline_infer.arithmetic.sliding_window import (
    Allocate,
    Each,
    Mirror,
    RollingAccumulator,
    near,
)
from offline_infer.errors import EngineFailed
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.deciding import MapFinisher, Segmentation, clean_components
from offline_infer.tasks.volume.tiles import TileLayout, case_weights, sum_dtype
from offline_infer.threads import Team, ThreadBuffers, one_after_the_other

FloatArray = npt.NDArray[np.float32]

_PART = 256 * 1024
"""Voxels handled at once: a megabyte of float32. Smaller parts would fit a faster cache, but the threads would then contend
for Python's lock."""
_WORTH_SHARING = 256 * 1024
"""Answers of fewer numbers are not shared among threads."""


class TileCollector:
    """Averages the answers for one case and finishes it slab by slab.

    An answer is taken in parts small enough to stay in the processor's cache, by all threads at once: checked, made
    probabilities where the model asks for it, flipped back, summed over mirrors and, with the tile's last answer, weighted
    and added to the slab. Every voxel sees the same operations in the same order whatever the number of threads.
    """

    def __init__(
        self,
        spec: VolumeSpec,
        geometry: CaseGeometry,
        settings: RunSettings,
        folds: int,
        *,
        team: Team,
        allocate: Allocate | None = None,
    ) -> None:
        """
        Args:
            folds: how many answer each tile.
            team: shares the work; used until :meth:`finish` returns.
            allocate: gives the zeroed memory of the active slab; default ``numpy.zeros``.
        """
        dtype = sum_dtype(spec, settings)
        self._spec = spec
        self.layout = TileLayout.of(spec, geometry.network_shape, settings)
        self._clean = settings.postprocess
        self._folds = folds
        self._finisher = MapFinisher(spec, geometry, settings.save_probabilities, dtype == "float16", team.threads)
        exact = dtype == "float16"
        weights = case_weights(spec, self.layout.grid)
        self._shape = (spec.labels.channels, *self.layout.grid.patch)
        small = int(np.prod(self._shape)) < _WORTH_SHARING
        self._each: Each = one_after_the_other if small else team.each
        self._buffers = ThreadBuffers()
        # In half precision the order of roundings matters: folds are summed as whole volumes, as the framework does.
        self._lanes = folds if exact else 1
        self._joined = FoldMean(self._lanes, self._finisher)
        self._accumulators = [
            RollingAccumulator(
                self.layout.grid,
                spec.labels.channels,
                weights,
                dtype,
                self._joined.lane(i),
                allocate=allocate,
                each=self._each,
            )
            for i in range(self._lanes)
        ]
        self._per_tile = self.layout.per_group * (folds // self._lanes)
        # A lone answer needs no sum: it goes from the engine's buffer straight into the slab.
        self._tile_sum = np.empty(self._shape, np.float32) if self._per_tile > 1 else None
        self._in_tile = 0

    def take(self, group: int, position: int, fold: int, answers: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the answer for a tile in one mirror; see :class:`offline_infer.tasks.base.Collector`.

        Args:
            answers: the model's one kept output, (1, k, *patch).

        Raises:
            EngineFailed: NaN or infinite numbers in the answer.
        """
        (logits,) = answers.values()
        self.add(self.layout.starts[group], fold, self.layout.mirrors[position], logits)

    def add(self, start: Shape3, fold: int, mirror: Mirror, logits: FloatArray) -> None:
        """Add one network answer.

        Args:
            start: tile start in the padded array.
            fold: 0-based position of the fold.
            mirror: the mirror the input was given in; the answer is flipped back here.
            logits: (k, *patch), with or without a batch axis of 1; not kept.

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
                found = activated(values[:, window], self._spec.aggregation)
                for k in range(self._shape[0]):
                    self._sum_up(accumulator if last else None, start, k, first, found[k])
            else:
                self._sum_up(accumulator if last else None, start, channel, first, values[channel, window])

        self._each(take, range(len(parts)))
        if last:
            accumulator.end(start)
            self._in_tile = 0

    def finish(self) -> Segmentation:
        """The case's label map in the image's own grid, its components cleaned up where the settings say so."""
        self._tile_sum = None
        while self._accumulators:  # each is freed once it is empty; the label map takes their place
            self._accumulators.pop(0).finish()
        result = self._finisher.finish()
        return clean_components(result, self._spec) if self._clean else result

    def _sum_up(
        self, accumulator: RollingAccumulator | None, start: Shape3, channel: int, first: int, part: FloatArray
    ) -> None:
        """Add a part (dz, y, x) to the tile's sum and, where it is complete, the mean to the slab."""
        part = near(part, self._buffers)
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
            # NaN and infinities survive summation, so one look at the sum is enough for all mirrors and folds.
            _check(part, start)
            accumulator.add_part(start, channel, first, part)


def _check(values: FloatArray, start: Shape3) -> None:
    """Refuse NaN and infinite numbers; a sum shows them, and only an overflowing sum has to be looked at twice."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float32)
    if not np.isfinite(total) and not np.isfinite(values).all():
        raise EngineFailed(
            f"the engine's answer for the tile at {start} (z, y, x) holds NaN or infinite numbers",
            remedy="run-in-float32",
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
            # The slab is cleared after this call, so it may be overwritten here.
            self._finisher.push(mean_of_folds([*parts, slab]) if parts else slab)

        return emit
