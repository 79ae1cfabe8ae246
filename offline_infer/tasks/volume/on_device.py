"""Volumes where the engine can keep its answers: mirrors, sums and stitching on the device.

The padded array is cut at every plane where a tile begins or ends, along all three axes, so that a tile covers whole boxes.
Each box of sums is an array on the device; adding a tile replaces the boxes it covers, no more. A box that no later tile
reaches is copied to the host, once, and finished as on the host: divided by the counts, resampled, decided - in a thread of
its own, beside the device's work on the next tiles.

Every voxel sees the same operations in the same order as on the host, so with one mirror a call the sums are the same to the
bit wherever the device's arithmetic is the host's.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.geometry import Shape3
from offline_infer.arithmetic.half_precision import too_large_for_half
from offline_infer.arithmetic.sliding_window import (
    Allocate,
    Each,
    RollingAccumulator,
    TileGrid,
    constant_key,
    cut_tile,
)
from offline_infer.engines.base import DeviceArray, Session, Stitcher, StitchingSession, StitchRecipe
from offline_infer.errors import DeviceMemoryFull, EngineFailed
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.aggregation import FoldMean
from offline_infer.tasks.volume.deciding import Finish, MapFinisher, Segmentation, clean_components
from offline_infer.tasks.volume.preparing import PreparedCase
from offline_infer.tasks.volume.tiles import case_grid, case_mirrors, case_weights, sum_dtype
from offline_infer.threads import Team

Interval = tuple[int, int]
Box = tuple[Interval, Interval, Interval]
"""Half-open ranges along z, y and x, in the padded array."""

_KEPT_BYTES = 2**30
"""The weighted answers to a constant tile are kept on the device if they are no larger than this."""


def stitch_on_device(
    prepared: PreparedCase,
    spec: VolumeSpec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    team: Team,
    allocate: Allocate | None = None,
) -> Finish | None:
    """Run the network over a prepared case and keep its answers on the device until they are summed.

    Args:
        prepared: array (c, z, y, x), network order.
        sessions: one per fold.
        progress: called with (tiles done, tiles in all).
        team: for the host's part of the work; used until the case is finished.
        allocate: gives the zeroed memory of the active slab on the host; default ``numpy.zeros``.

    Returns:
        What finishes the case; None where the host is to do it: the engine cannot or must not,
        the device's memory does not suffice, or its first tile failed. Why is in each session's
        ``info.details["stitching"]``.

    Raises:
        EngineFailed: the engine failed later on, or answered with NaN.
    """
    if not sessions or not all(isinstance(session, StitchingSession) for session in sessions):
        return None
    grid = case_grid(spec, prepared.geometry.network_shape, settings)
    half = sum_dtype(spec, settings) == "float16"
    recipe = _recipe(spec, settings, grid, len(sessions), half)
    stitchers: list[Stitcher] = []
    case: _Case | None = None
    try:
        for session in sessions:
            assert isinstance(session, StitchingSession)
            made = session.stitcher(recipe, stitchers[0] if stitchers else None)
            if made is None:
                return None
            stitchers.append(made)
        case = _Case(prepared, grid, spec.labels.channels, recipe, stitchers)
        case.first_tile()
    except EngineFailed as error:
        # The host needs less of the device; if it fails as well, it says so.
        _give_up(stitchers, case, error)
        return None
    finisher = MapFinisher(spec, prepared.geometry, settings.save_probabilities, half, team.threads)
    try:
        last = case.run(finisher, progress, allocate, team.each)
    except DeviceMemoryFull as error:
        _give_up(stitchers, case, error)
        return None
    return lambda: clean_components(last(), spec) if settings.postprocess else last()


def _recipe(spec: VolumeSpec, settings: RunSettings, grid: TileGrid, folds: int, half: bool) -> StitchRecipe:
    mirrors = case_mirrors(spec, settings)
    return StitchRecipe(
        mirrors=mirrors,
        activation=spec.aggregation.activation if spec.aggregation.domain == "probabilities" else None,
        # In half precision the order of roundings matters: folds are summed as whole volumes, as the framework does.
        answers=len(mirrors) * (1 if half else folds),
        weights=case_weights(spec, grid),
        sum_dtype="float16" if half else "float32",
    )


def _give_up(stitchers: Sequence[Stitcher], case: _Case | None, error: EngineFailed) -> None:
    if case is not None:
        case.drop()
    for stitcher in stitchers:
        stitcher.give_up(str(error))


class _Case:
    """One case on the device."""

    def __init__(
        self, prepared: PreparedCase, grid: TileGrid, channels: int, recipe: StitchRecipe, stitchers: Sequence[Stitcher]
    ) -> None:
        self._channels = channels
        self._array, self._grid, self._recipe, self._stitchers = prepared.array, grid, recipe, stitchers
        half = recipe.sum_dtype == "float16"
        # Lanes are summed separately: one per fold in half precision.
        self._lanes = [[stitcher] for stitcher in stitchers] if half else [list(stitchers)]
        self._boxes: list[dict[Box, DeviceArray]] = [{} for _ in self._lanes]
        self._cuts = tuple(
            sorted({*starts, *(start + size for start in starts)})
            for starts, size in zip(grid.starts, grid.patch, strict=True)
        )
        self._tile = np.empty((len(self._array), *grid.patch), np.float32)
        self._kept: tuple[tuple[int, ...], list[DeviceArray]] | None = None

    def first_tile(self) -> None:
        """The first tile on the device; all memory there but that of further boxes is allocated now."""
        self._add(next(iter(self._grid)))

    def run(
        self,
        finisher: MapFinisher,
        progress: Callable[[int, int], None] | None,
        allocate: Allocate | None,
        each: Each,
    ) -> Finish:
        """All other tiles; what is returned finishes the case and no longer needs the device."""
        joined = FoldMean(len(self._lanes), finisher)
        accumulators = [
            RollingAccumulator(
                self._grid,
                self._channels,
                self._recipe.weights,
                self._recipe.sum_dtype,
                joined.lane(i),
                allocate=allocate,
                each=each,
            )
            for i in range(len(self._lanes))
        ]
        done_until = self._grid.starts[0][0]
        with _Behind() as behind:
            for done, start in enumerate(self._grid, 1):
                if start[0] > done_until:
                    behind.wait()  # the ring is written to from here only while nobody else uses it
                    self._hand_over(accumulators, start[0])
                    done_until = start[0]
                if done > 1:
                    self._add(start)
                for accumulator in accumulators:
                    behind.do(accumulator.begin, start)
                    behind.do(accumulator.end, start)
                if progress is not None:
                    progress(done, len(self._grid))
            behind.wait()
            self._hand_over(accumulators, self._grid.padded_shape[0])
        self.drop()

        def last() -> Segmentation:
            while accumulators:  # each is freed once it is empty
                accumulators.pop(0).finish()
            return finisher.finish()

        return last

    def drop(self) -> None:
        """Free this case's arrays on the device."""
        self._boxes, self._kept = [{} for _ in self._lanes], None

    def _add(self, start: Shape3) -> None:
        """Ask about a tile and add the answers to the boxes it covers."""
        tool = self._stitchers[0]
        weighted = self._weighted(start)
        for lane, boxes in enumerate(self._boxes):
            for box in self._covered(start):
                part = [(first - at, last - at) for (first, last), at in zip(box, start, strict=True)]
                boxes[box] = tool.stitch(boxes.pop(box, None), weighted[lane], part)

    def _weighted(self, start: Shape3) -> list[DeviceArray]:
        """The weighted answer of every lane; a constant tile that came before is not asked about again."""
        cut_tile(self._array, self._grid, start, self._tile)
        key = constant_key(self._tile)
        if key is not None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        tool = self._stitchers[0]
        tool.load(self._tile)
        found = []
        for lane in self._lanes:
            total: DeviceArray | None = None
            for stitcher in lane:
                total = stitcher.answer(total)
            found.append(tool.weigh(total))
            del total
        if key is not None and 4 * self._channels * math.prod(self._grid.patch) * len(found) <= _KEPT_BYTES:
            self._kept = (key, found)
        return found

    def _covered(self, start: Shape3) -> Iterator[Box]:
        """The boxes under the tile at ``start``."""
        ranges = []
        for cuts, first, size in zip(self._cuts, start, self._grid.patch, strict=True):
            inside = [cut for cut in cuts if first <= cut <= first + size]
            ranges.append(list(itertools.pairwise(inside)))
        yield from itertools.product(*ranges)

    def _hand_over(self, accumulators: Sequence[RollingAccumulator], until: int) -> None:
        """Bring the boxes before plane ``until`` to the host."""
        for boxes, accumulator in zip(self._boxes, accumulators, strict=True):
            for box in [box for box in boxes if box[0][1] <= until]:
                sums = self._stitchers[0].fetch(boxes.pop(box))
                _check(sums, box[0])
                accumulator.place((box[0][0], box[1][0], box[2][0]), sums)


class _Behind:
    """A thread that does small jobs in order, beside the caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "finish")
        self._jobs: deque[Future[None]] = deque()

    def do(self, work: Callable[[Shape3], None], start: Shape3) -> None:
        """Queue a job; an error of an earlier one is raised here or in :meth:`wait`."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(work, start))

    def wait(self) -> None:
        """Wait until all jobs are done."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _check(sums: npt.NDArray[Any], planes: Interval) -> None:
    """Refuse sums that are not finite: NaN and infinities in an answer survive summation."""
    if np.isfinite(sums).all():
        return
    if sums.dtype == np.float16 and not np.isnan(sums).any():
        raise too_large_for_half()
    raise EngineFailed(
        f"the engine's answers for planes {planes[0]} to {planes[1] - 1} (z) hold NaN or infinite numbers",
        remedy="run-in-float32",
    )
