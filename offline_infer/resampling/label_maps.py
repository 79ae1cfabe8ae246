"""Label maps to another grid: every label's indicator is interpolated, then one label chosen, by the frameworks' rules.

nnU-Net pays one full resampling per label; here only voxels whose corners disagree are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError
from offline_infer.resampling.corners import Ints, corners, plane_extremes
from offline_infer.resampling.label_choice import LabelChoice, Ties, start_choice
from offline_infer.resampling.operators import Axis
from offline_infer.resampling.steps import ResamplingSteps, resampling_steps
from offline_infer.resampling.volumes import resize_volume
from offline_infer.spec import Resampling
from offline_infer.threads import worker_count

L = TypeVar("L", bound=np.integer[Any])
Axes = tuple[Axis, Axis, Axis]
StartChoice = Callable[[Ints], LabelChoice]


def resample_labels(
    labels: npt.NDArray[L],
    new_shape: Sequence[int],
    axis: int | None,
    rule: Resampling,
    ties: Ties,
    threads: int | None = None,
) -> npt.NDArray[L]:
    """Resample a label map as nnU-Net resamples segmentations.

    Args:
        labels: (z, y, x) integers, negative ones allowed.
        new_shape: (z, y, x).
        axis: array axis to treat apart (see ``lowres_axis``): the others go first, then ``rule.order_z`` along it.
        ties: ``argmax`` (nnU-Net v2 with batchgenerators 0.25.5 and later): the largest score wins; of equal ones the
            nearest voxel's label if it is among them, else the smallest. ``higher_label`` (nnU-Net v1): the highest
            label with a score of at least one half, 0 where there is none. The torch functions have their own rule.
        threads: 0 or None = all cores.

    Returns:
        *new_shape, the dtype of ``labels``; ``labels`` itself where the shapes agree.

    Raises:
        GeometryError: impossible shapes, not integers, or a rule that cannot join the shapes.
    """
    if labels.dtype.kind not in "iu":
        raise GeometryError(f"a label map must hold integers, not {labels.dtype}")
    steps = resampling_steps(labels.shape, new_shape, axis, rule)
    if steps.identity:
        return labels
    first = partial(start_choice, rule=rule, ties=ties, along_apart=False)
    second = partial(start_choice, rule=rule, ties=ties, along_apart=True)
    with ThreadPoolExecutor(worker_count(threads)) as pool:
        if axis is None:
            return _resample(labels, steps.axes, first, pool)
        together, apart = list(steps.axes), list(steps.axes)
        for i, moved in enumerate(steps.axes):
            if i == axis:
                together[i] = replace(moved, n_out=moved.n_in)
            else:
                apart[i] = replace(moved, n_in=moved.n_out)
        between = _resample(labels, (together[0], together[1], together[2]), first, pool)
        return _resample(between, (apart[0], apart[1], apart[2]), second, pool)


def _resample(labels: npt.NDArray[L], axes: Axes, start: StartChoice, pool: ThreadPoolExecutor) -> npt.NDArray[L]:
    if all(axis.identity for axis in axes):
        return labels
    if all(axis.two_taps for axis in axes):
        return _resample_linear(labels, axes, start, pool)
    return _resample_spline(labels, axes, start)


def _resample_linear(
    labels: npt.NDArray[L], axes: Axes, start: StartChoice, pool: ThreadPoolExecutor
) -> npt.NDArray[L]:
    """Orders 0 and 1: computed only where corners disagree."""
    taps = z, y, x = (axes[0].taps(), axes[1].taps(), axes[2].taps())
    near_z, near_y, near_x = _nearest(axes)
    out = np.empty([axis.n_out for axis in axes], labels.dtype)

    def solve(i: int, pair: list[int], voxels: npt.NDArray[np.intp]) -> Ints:
        around = corners(i, voxels, taps)
        found = [labels[pair[corner.upper]][corner.row, corner.column] for corner in around]
        shares = [corner.share(1.0) for corner in around]
        row, column = np.divmod(voxels, len(near_x))
        choice = start(labels[near_z[i]][near_y[row], near_x[column]])
        for label in found:
            # Added corner by corner, as SciPy does: ties are decided by exact equality.
            score = np.zeros(len(voxels))
            for share, other in zip(shares, found, strict=True):
                score += share * (other == label)
            choice.add(label, score)
        return choice.winners()

    def fill(first: int) -> None:
        extremes: dict[int, tuple[Ints, Ints]] = {}
        for i in range(first, min(first + step, len(out))):
            pair = [int(index[i]) for index, _ in z.sides()]
            extremes = {p: extremes[p] if p in extremes else plane_extremes(labels[p], y, x) for p in pair}
            smallest, largest = extremes[pair[0]]
            if pair[0] != pair[-1]:
                smallest, largest = (
                    np.minimum(smallest, extremes[pair[1]][0]),
                    np.maximum(largest, extremes[pair[1]][1]),
                )
            out[i] = smallest
            voxels = np.flatnonzero(smallest != largest)
            if voxels.size:
                out[i].reshape(-1)[voxels] = solve(i, pair, voxels)

    step = max(1, len(out) // 32)
    list(pool.map(fill, range(0, len(out), step)))
    return out


def _resample_spline(labels: npt.NDArray[L], axes: Axes, start: StartChoice) -> npt.NDArray[L]:
    """Orders 2 and more: every label's indicator through the whole volume."""
    steps = ResamplingSteps(axes, None, clip=True)
    choice = start(labels[np.ix_(*_nearest(axes))])
    score = np.empty(steps.fine)
    for value in np.unique(labels):
        resize_volume((labels == value).astype(np.float64), steps, score)
        choice.add(value, score)
    return choice.winners().astype(labels.dtype)


def _nearest(axes: Axes) -> list[npt.NDArray[np.intp]]:
    """Per axis, the index of the nearest voxel."""
    return [replace(axis, order=0).taps().low for axis in axes]
