"""Overlap figures of two label maps from one joint histogram, in the terms of nnU-Net v1 and v2. Pure arithmetic.

A joint histogram says how many voxels carry reference value r and prediction value p. One pass over the voxels gives it
for all classes at once; every class and every region is then a sum over a few of its cells.

A *label* here is an integer, or a tuple of integers that together form a region.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, ImageError

Label = int | tuple[int, ...]
IntArray = npt.NDArray[np.int64]

MOST_VALUES = 4096
"""More distinct values than this in one pair of maps is an image, not a label map."""

_CHUNK = 1 << 20
_DIRECT_SPAN = 512
_TABLE_SPAN = 1 << 24


@dataclass(frozen=True)
class JointHistogram:
    """How often each pair of values occurs.

    Attributes:
        values: every value found in either map, ascending.
        counts: (reference value, prediction value), int64.
    """

    values: tuple[int, ...]
    counts: IntArray

    def ignoring(self, label: int | None) -> JointHistogram:
        """The same without the voxels whose *reference* is ``label`` (as nnU-Net v2 leaves its ignore label out)."""
        if label is None or label not in self.values:
            return self
        counts = self.counts.copy()
        counts[self.values.index(label)] = 0
        return JointHistogram(self.values, counts)

    @property
    def total(self) -> int:
        """Number of voxels counted."""
        return int(self.counts.sum())

    @property
    def differing(self) -> int:
        """Number of voxels whose values differ."""
        return self.total - int(np.trace(self.counts))


@dataclass(frozen=True)
class Counts:
    """True and false positives and negatives of one label, in voxels."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn); NaN where neither map holds the label."""
        size = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / size if size else float("nan")


def joint_histogram(prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> JointHistogram:
    """Count the pairs of values of two integer maps of equal shape, any dimension.

    Raises:
        GeometryError: the shapes differ.
        ImageError: more than :data:`MOST_VALUES` distinct values.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"prediction and reference differ in shape: {prediction.shape} and {reference.shape} (z, y, x); "
            "a prediction must be on the grid of the image it belongs to"
        )
    first, second = np.ravel(reference), np.ravel(prediction)
    if first.size == 0:
        return JointHistogram((), np.zeros((0, 0), np.int64))
    low = min(int(first.min()), int(second.min()))
    span = max(int(first.max()), int(second.max())) - low + 1
    direct = span <= _DIRECT_SPAN
    values = np.arange(low, low + span) if direct else _values_present((first, second), low, span)
    if values.size > MOST_VALUES:
        raise ImageError(
            f"{values.size} distinct values, at most {MOST_VALUES} expected: is this an image instead of a label map?"
        )
    counts = _count_pairs(first, second, values, low, span)
    seen = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))
    return JointHistogram(tuple(int(v) for v in values[seen]), np.ascontiguousarray(counts[np.ix_(seen, seen)]))


def label_counts(histogram: JointHistogram, label: Label) -> Counts:
    """True and false positives and negatives of one label or region."""
    wanted = {label} if isinstance(label, int) else set(label)
    members = [i for i, value in enumerate(histogram.values) if value in wanted]
    in_reference, in_prediction = histogram.counts[members], histogram.counts[:, members]
    tp = int(in_reference[:, members].sum())
    fn = int(in_reference.sum()) - tp
    fp = int(in_prediction.sum()) - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=histogram.total - tp - fn - fp)


def metrics_v2(counts: Counts) -> dict[str, float | int]:
    """The figures nnU-Net v2 writes for a label; Dice and IoU are NaN where neither map holds it."""
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    union = tp + fp + fn
    return {
        "Dice": counts.dice,
        "FN": fn,
        "FP": fp,
        "IoU": tp / union if union else float("nan"),
        "TN": tn,
        "TP": tp,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


def metrics_v1(counts: Counts) -> dict[str, float | int]:
    """The figures nnU-Net v1 writes for a label.

    Four of them are one minus another there, so they are here: the last digit depends on it. A ratio whose denominator
    is zero is NaN.
    """
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    specificity, omission = _ratio(tn, tn + fp), _ratio(fn, fn + tn)
    return {
        "Accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "Dice": counts.dice,
        "False Discovery Rate": 1 - precision,
        "False Negative Rate": 1 - recall,
        "False Omission Rate": omission,
        "False Positive Rate": 1 - specificity,
        "Jaccard": _ratio(tp, tp + fp + fn),
        "Negative Predictive Value": 1 - omission,
        "Precision": precision,
        "Recall": recall,
        "Total Positives Reference": tp + fn,
        "Total Positives Test": tp + fp,
        "True Negative Rate": specificity,
    }


def mean_of(values: Sequence[float | int]) -> float:
    """Mean over what is not NaN; NaN if nothing is left. NumPy sums, as in the frameworks, to the last digit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(list(values))) if len(values) else float("nan")


def plain_mean_of(values: Sequence[float | int]) -> float:
    """Mean in which one NaN makes the result NaN: how nnU-Net v2 forms its ``foreground_mean``."""
    return float(np.mean(list(values))) if len(values) else float("nan")


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _values_present(arrays: Iterable[npt.NDArray[Any]], low: int, span: int) -> npt.NDArray[np.int64]:
    if span > _TABLE_SPAN:
        return np.unique(np.concatenate([np.unique(array) for array in arrays])).astype(np.int64)
    present = np.zeros(span, dtype=bool)
    for array in arrays:
        for start in range(0, array.size, _CHUNK):
            present[array[start : start + _CHUNK].astype(np.int64) - low] = True
    return np.flatnonzero(present).astype(np.int64) + low


def _count_pairs(
    first: npt.NDArray[Any], second: npt.NDArray[Any], values: npt.NDArray[np.int64], low: int, span: int
) -> IntArray:
    """(index of first, index of second) -> count; ``values`` ascending. Piecewise: bincount makes int64 copies."""
    size = values.size
    direct = size == span
    table: npt.NDArray[np.int64] | None = None
    if not direct and span <= _TABLE_SPAN:
        table = np.zeros(span, np.int64)
        table[values - low] = np.arange(size)

    def index(part: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        wide = part.astype(np.int64)
        if direct:
            return wide - low
        return table[wide - low] if table is not None else np.searchsorted(values, wide).astype(np.int64)

    total = np.zeros(size * size, np.int64)
    for start in range(0, first.size, _CHUNK):
        pair = index(first[start : start + _CHUNK])
        pair *= size
        pair += index(second[start : start + _CHUNK])
        total += np.bincount(pair, minlength=size * size)
    return total.reshape(size, size)
