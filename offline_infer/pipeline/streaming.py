"""The streaming road: one case from prepared array to label map without touching the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import Session
from offline_infer.pipeline.aggregate import CaseAggregator, RunSettings
from offline_infer.postprocess import Segmentation, clean_components
from offline_infer.preprocess import PreparedCase
from offline_infer.sliding_window import cut_tile
from offline_infer.spec import Spec


def segment(
    prepared: PreparedCase,
    spec: Spec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Run the network over a prepared case.

    Args:
        prepared: array (c, z, y, x), network order.
        sessions: one per fold.
        progress: called with (tiles done, tiles in all).

    Raises:
        EngineFailed: the engine failed or answered with NaN.
    """
    aggregator = CaseAggregator(spec, prepared.geometry, settings, len(sessions))
    grid = aggregator.grid
    tile = np.empty((spec.input_channels, *grid.patch), np.float32)
    batch = np.empty(spec.input_shape, np.float32)
    for done, start in enumerate(grid, 1):
        cut_tile(prepared.array, grid, start, tile)
        for fold, session in enumerate(sessions):
            for mirror in aggregator.mirrors:
                np.copyto(batch, _mirrored(tile, mirror).reshape(batch.shape))
                aggregator.add(start, fold, mirror, session.run(batch)[0])
        if progress is not None:
            progress(done, len(grid))
    result = aggregator.finish()
    return clean_components(result, spec) if settings.postprocess else result


def _mirrored(tile: npt.NDArray[np.float32], mirror: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A view of the tile (c, z, y, x) flipped along the given axes of (z, y, x)."""
    return np.flip(tile, tuple(axis + 1 for axis in mirror)) if mirror else tile
