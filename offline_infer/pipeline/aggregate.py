"""Network answers back to a label map: the part both roads share.

The streaming run feeds :class:`CaseAggregator` from an engine, the staged run from files. Both feed it in the same order -
tiles in grid order, per tile every fold, per fold every mirror - so both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed, UsageError
from offline_infer.geometry import CaseGeometry, Shape3
from offline_infer.labels import sigmoid, softmax
from offline_infer.postprocess import MapFinisher, Segmentation
from offline_infer.sliding_window import Mirror, RollingAccumulator, TileGrid, gaussian_map, mirror_sets, plan_tiles
from offline_infer.spec import Spec

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RunSettings:
    """What a user may change about a run without changing the model.

    Attributes:
        step_size: tile step as a fraction of the patch, None = the model's own.
        tta: mirror along the model's axes and average.
        accumulate: ``float32``, or ``float16`` to repeat nnU-Net v2's half-precision sums for a proof.
        save_probabilities: also keep the class probabilities.
        postprocess: apply the model's connected-component rules.
    """

    step_size: float | None = None
    tta: bool = True
    accumulate: str = "float32"
    save_probabilities: bool = False
    postprocess: bool = True


def case_grid(spec: Spec, shape: Sequence[int], settings: RunSettings) -> TileGrid:
    """The tiles of a prepared case of that spatial shape."""
    step = settings.step_size if settings.step_size is not None else spec.window.step_size
    return plan_tiles(shape, spec.patch_size, step)


def case_mirrors(spec: Spec, settings: RunSettings) -> tuple[Mirror, ...]:
    """The mirrors of each tile, unmirrored first."""
    return mirror_sets(spec.window.mirror_axes if settings.tta else (), len(spec.patch_size))


class CaseAggregator:
    """Averages the answers for one case and finishes it slab by slab."""

    def __init__(self, spec: Spec, geometry: CaseGeometry, settings: RunSettings, folds: int) -> None:
        """
        Raises:
            UsageError: half-precision sums for a model whose framework does not make them.
        """
        if settings.accumulate == "float16" and spec.aggregation.accumulate != "float16":
            raise UsageError(
                f"{spec.source.framework} sums in {spec.aggregation.accumulate}, and half precision would lose its smallest "
                "weights; --accumulate float16 repeats the sums of nnU-Net v2 models only"
            )
        self._spec = spec
        self.grid = case_grid(spec, geometry.network_shape, settings)
        self.mirrors = case_mirrors(spec, settings)
        self._folds = folds
        self._finisher = MapFinisher(spec, geometry, settings.save_probabilities, settings.accumulate == "float16")
        exact = settings.accumulate == "float16"
        window = spec.window.gaussian
        weighted = window.apply == "always" or len(self.grid) > 1
        weights = gaussian_map(self.grid.patch, window, len(spec.patch_size)) if weighted else None
        channels = spec.labels.channels
        # In half precision the order of roundings matters: folds are summed as whole volumes, as the framework does.
        self._lanes = folds if exact else 1
        self._joined = _FoldMean(self._lanes, self._finisher)
        self._accumulators = [
            RollingAccumulator(self.grid, channels, weights, settings.accumulate, self._joined.lane(i))
            for i in range(self._lanes)
        ]
        self._tile_sum = np.zeros((channels, *self.grid.patch), np.float32)
        self._in_tile = 0

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
        values = logits.reshape(self._tile_sum.shape)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise EngineFailed(
                f"the engine's answer for the tile at {start} (z, y, x) holds NaN or infinite numbers; "
                "run with --precision fp32, or check the compiled model"
            )
        if self._spec.aggregation.domain == "probabilities":
            values = softmax(values) if self._spec.aggregation.activation == "softmax" else sigmoid(values)
        if mirror:
            values = np.flip(values, tuple(axis + 1 for axis in mirror))
        if self._in_tile == 0:
            np.copyto(self._tile_sum, values)
        else:
            self._tile_sum += values
        self._in_tile += 1
        per_lane = len(self.mirrors) * (self._folds // self._lanes)
        if self._in_tile == per_lane:
            self._close_tile(start, fold if self._lanes > 1 else 0, per_lane)

    def add_tile(self, start: Shape3, mean: Sequence[FloatArray]) -> None:
        """Add a tile whose mean over mirrors (one array per lane) is already known."""
        for accumulator, values in zip(self._accumulators, mean, strict=True):
            accumulator.add(start, values)

    def finish(self) -> Segmentation:
        """The case's label map in the image's own grid."""
        for accumulator in self._accumulators:
            accumulator.finish()
        return self._finisher.finish()

    def _close_tile(self, start: Shape3, lane: int, count: int) -> None:
        if count > 1:
            self._tile_sum /= count
        self._accumulators[lane].add(start, self._tile_sum)
        self._in_tile = 0


class _FoldMean:
    """Joins the slabs of several folds: half-precision sum, then division, as nnU-Net v2 does with whole volumes."""

    def __init__(self, lanes: int, finisher: MapFinisher) -> None:
        self._waiting: list[list[npt.NDArray[np.floating]]] = [[] for _ in range(lanes)]
        self._finisher = finisher

    def lane(self, index: int):  # type: ignore[no-untyped-def]
        """The emit callback of one accumulator."""
        if len(self._waiting) == 1:
            return self._finisher.push

        def emit(slab: npt.NDArray[np.floating]) -> None:
            self._waiting[index].append(slab.copy())
            while all(self._waiting):
                parts = [queue.pop(0) for queue in self._waiting]
                total = parts[0]
                for part in parts[1:]:
                    total += part
                total /= np.asarray(len(parts), total.dtype)
                self._finisher.push(total)

        return emit
