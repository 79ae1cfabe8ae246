"""The aggregated map on its way back: resampled to the image's grid and turned into labels, slab by slab.

nnU-Net interpolates every class at every voxel and then keeps one label of it. With linear interpolation that is
wasteful: a fine voxel is a convex combination of its corners in the coarse map, so where the corners agree on a label,
that is the label. Only the surfaces between objects are interpolated, and of many classes only those that can still
win there. The labels are those of the full computation, to the last tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.labels import decide, label_dtype, label_table, probabilities, region_threshold
from offline_infer.arithmetic.surface_labels import SurfaceDecider
from offline_infer.resampling.maps import PlanePair, PlaneWindow, SlabResampler, check_complete, check_slab, map_dtype
from offline_infer.resampling.operators import Floats
from offline_infer.resampling.steps import resampling_steps
from offline_infer.spec import Aggregation, Labels, Resampling
from offline_infer.threads import worker_count

LabelArray = npt.NDArray[np.unsignedinteger[Any]]
ProbabilityArray = npt.NDArray[np.float32]

_PLANES = 16
"""Coarse planes worked on at once, however many a slab holds."""


class MapToLabels:
    """Takes the aggregated map slab by slab along its first axis; gives the labels, and the probabilities if asked for.

    Without probabilities, memory beyond the label volume is two coarse planes of the map and working memory for a few planes.
    """

    def __init__(
        self,
        *,
        fine_shape: Sequence[int],
        coarse_shape: Sequence[int],
        axis: int | None,
        rule: Resampling,
        labels: Labels,
        aggregation: Aggregation,
        keep_probabilities: bool = False,
        framework_exact: bool = False,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            fine_shape, coarse_shape: (z, y, x) of the result and of the map, same axis order.
            axis: array axis to treat apart (see ``lowres_axis``), or None.
            keep_probabilities: also keep the probabilities of every class, (k, *fine_shape) float32.
            framework_exact: round as the framework does on the way: to half precision where it sums in half precision.
            threads: 0 or None = all cores.

        Raises:
            GeometryError: impossible shapes, or a rule that cannot join them.
        """
        half = framework_exact and aggregation.accumulate == "float16"
        self._dtype = np.dtype(np.float16 if half else np.float32)
        self._labels, self._aggregation = labels, aggregation
        self._threads = worker_count(threads)
        steps = resampling_steps(coarse_shape, fine_shape, axis, rule)
        self._coarse = steps.coarse
        self._received = 0
        self._volume: LabelArray = np.empty(steps.fine, label_dtype(labels))
        self._probabilities: ProbabilityArray | None = None
        self._sparse: SurfaceDecider | None = None
        if keep_probabilities:
            self._probabilities = np.empty((labels.channels, *steps.fine), np.float32)
        if keep_probabilities or not steps.two_taps:
            self._dense = SlabResampler(labels.channels, steps.coarse, steps.fine, axis, rule, self._dtype, threads)
        else:
            threshold = None if labels.regions_class_order is None else region_threshold(aggregation)
            z, y, x = steps.axes
            taps = (z.taps(), y.taps(), x.taps())
            self._sparse = SurfaceDecider(taps, threshold, map_dtype(self._dtype, rule))
            self._window = PlaneWindow(taps[0])
            self._table = label_table(labels)

    def push(self, slab: Floats) -> None:
        """Take the next coarse planes (k, dz, y, x), float32 or float16; the memory may be reused afterwards.

        Where the framework's roundings are repeated, float32 planes must hold half-precision values.

        Raises:
            GeometryError: the slab does not fit the shape announced.
        """
        self._received = check_slab(slab, self._labels.channels, self._coarse, self._received)
        with ThreadPoolExecutor(self._threads) as pool:
            for first in range(0, slab.shape[1], _PLANES):
                part = slab[:, first : first + _PLANES]
                if self._sparse is None:
                    for start, planes in self._dense.push(part.astype(self._dtype, copy=False)):
                        self._take_dense(start, planes, pool)
                else:
                    pairs = self._window.push(part)
                    self._sparse.prepare(pairs, pool)
                    list(pool.map(self._take_sparse, pairs))

    def finish(self) -> tuple[LabelArray, ProbabilityArray | None]:
        """The labels (z, y, x), and the probabilities (k, z, y, x) or None.

        Raises:
            GeometryError: slabs are missing.
        """
        check_complete(self._received, self._coarse)
        if self._sparse is None:
            with ThreadPoolExecutor(self._threads) as pool:
                for start, planes in self._dense.finish():
                    self._take_dense(start, planes, pool)
        return self._volume, self._probabilities

    def _take_sparse(self, pair: PlanePair) -> None:
        assert self._sparse is not None
        for i, places in self._sparse.planes(pair):
            self._table.take(places, out=self._volume[i], mode="clip")  # every place is in the table

    def _take_dense(self, start: int, planes: Floats, pool: ThreadPoolExecutor) -> None:
        def take(i: int) -> None:
            plane = planes[:, i]
            self._volume[start + i] = decide(plane, self._labels, self._aggregation)
            if self._probabilities is not None:
                self._probabilities[:, start + i] = probabilities(plane, self._aggregation)

        list(pool.map(take, range(planes.shape[1])))
