"""The streaming road: one case from prepared array to label map without touching the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.sliding_window import Allocate, Mirror, constant_key, cut_tile
from offline_infer.engines.base import Session
from offline_infer.predict.on_device import stitch_on_device
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.volume.aggregation import CaseAggregator, RunSettings
from offline_infer.tasks.volume.deciding import Finish, Segmentation, clean_components
from offline_infer.tasks.volume.preparing import PreparedCase

FloatArray = npt.NDArray[np.float32]

KEPT_ANSWER_BYTES = 64 * 2**20
"""A constant tile's answer is kept for later ones if it is no larger than this."""


def segment(
    prepared: PreparedCase,
    spec: VolumeSpec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    threads: int | None = None,
    allocate: Allocate | None = None,
) -> Segmentation:
    """Run the network over a prepared case and finish it; arguments as for :func:`infer`."""
    return infer(prepared, spec, sessions, settings, progress, threads=threads, allocate=allocate)()


def infer(
    prepared: PreparedCase,
    spec: VolumeSpec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    threads: int | None = None,
    allocate: Allocate | None = None,
) -> Finish:
    """Run the network over a prepared case; what is returned finishes it, in any thread, beside the next case.

    A constant tile (air, padding) is the same input in every mirror and wherever it lies, so its answer is asked for once.

    Args:
        prepared: array (c, z, y, x), network order.
        sessions: one per fold.
        progress: called with (tiles done, tiles in all).
        threads: for the work around the network; 0 or None = all cores.
        allocate: gives the zeroed memory of the slab in work; default ``numpy.zeros``.

    Raises:
        EngineFailed: the engine failed or answered with NaN.
    """

    def cleaned(last: Finish) -> Finish:
        return lambda: clean_components(last(), spec) if settings.postprocess else last()

    on_device = stitch_on_device(prepared, spec, sessions, settings, progress, threads=threads, allocate=allocate)
    if on_device is not None:
        return cleaned(on_device)
    aggregator = CaseAggregator(spec, prepared.geometry, settings, len(sessions), threads=threads, allocate=allocate)
    grid = aggregator.grid
    tile = np.empty((spec.input_channels, *grid.patch), np.float32)
    batch = np.empty(spec.input_shape, np.float32)
    askers = [_Asker(session, batch, aggregator.mirror) for session in sessions]
    for done, start in enumerate(grid, 1):
        cut_tile(prepared.array, grid, start, tile)
        key = constant_key(tile)
        for fold, asker in enumerate(askers):
            for mirror in aggregator.mirrors:
                aggregator.add(start, fold, mirror, asker.ask(tile, mirror, key))
        if progress is not None:
            progress(done, len(grid))
    return cleaned(aggregator.finish)


class _Asker:
    """A session that is not asked again for a constant input whose answer is still at hand."""

    def __init__(
        self, session: Session, batch: FloatArray, flip: Callable[[FloatArray, Mirror, FloatArray], None]
    ) -> None:
        """
        Args:
            batch: the input buffer, used for every call.
            flip: copies a tile into a buffer, mirrored.
        """
        self._session = session
        self._flip = flip
        self._batch = batch
        self._in_buffer: tuple[tuple[int, ...], FloatArray] | None = None
        self._kept: tuple[tuple[int, ...], FloatArray] | None = None

    def ask(self, tile: FloatArray, mirror: Mirror, key: tuple[int, ...] | None) -> FloatArray:
        """The answer (k, *patch) to a tile (c, *patch) given mirrored; valid until the next call.

        Args:
            key: of a constant tile, see :func:`~offline_infer.arithmetic.sliding_window.constant_key`; else None.
        """
        if key is not None:
            for known in (self._in_buffer, self._kept):
                if known is not None and known[0] == key:
                    return known[1]
        self._flip(tile, mirror, self._batch.reshape(tile.shape))
        answer: FloatArray = self._session.run(self._batch)[0]
        self._in_buffer = (key, answer) if key is not None else None
        if key is not None and answer.nbytes <= KEPT_ANSWER_BYTES:
            self._kept = (key, answer.copy())
        return answer
