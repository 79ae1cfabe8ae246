"""How the values of a soft mask are distributed over positive and negative pixels, and what follows from that alone.

Every threshold measure and the area under the ROC curve depend on the counts at each distinct value only. For an
8-bit mask that table has 256 rows and is exact; for a float map it has a row for each distinct value, or for each of
65,536 bins where a whole data set is pooled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

BINS = 1 << 16
"""Rows of a pooled table of float values."""


@dataclass(frozen=True)
class Confusion:
    """Pixels (or images) by truth and decision."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def total(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None without positives in the truth."""
        if self.tp + self.fn == 0:
            return None
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN); None without positives in the truth."""
        if self.tp + self.fn == 0:
            return None
        return self.tp / (self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float | None:
        """(TP + TN) / all; None without pixels."""
        return (self.tp + self.tn) / self.total if self.total else None

    @property
    def inverted(self) -> Confusion:
        """Of the opposite decision everywhere."""
        return Confusion(tp=self.fn, fp=self.tn, fn=self.tp, tn=self.fp)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


@dataclass(frozen=True, eq=False)
class Distribution:
    """Counts at every distinct value.

    Attributes:
        values: (k,) ascending, 0 to 1.
        positives, negatives: (k,) pixels with that value inside and outside the reference.
        exact: the values are those of the mask itself, not of bins.
    """

    values: Values
    positives: Counts
    negatives: Counts
    exact: bool = True


def of_bytes(soft: npt.NDArray[np.uint8], reference: npt.NDArray[np.bool_]) -> Distribution:
    """The table of an 8-bit mask; any shape, both alike. 256 rows, exact."""
    positives = np.bincount(soft[reference], minlength=256)
    everything = np.bincount(soft.ravel(), minlength=256)
    return Distribution(np.arange(256) / 255, positives.astype(np.int64), (everything - positives).astype(np.int64))


def of_floats(soft: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_]) -> Distribution:
    """The exact table of a float map: one row per distinct value. Any shape, both alike."""
    values, index = np.unique(soft, return_inverse=True)
    positives = np.bincount(index.reshape(soft.shape)[reference], minlength=len(values))
    everything = np.bincount(index.ravel(), minlength=len(values))
    return Distribution(
        values.astype(np.float64), positives.astype(np.int64), (everything - positives).astype(np.int64)
    )


def binned(soft: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_], bins: int = BINS) -> Distribution:
    """The table of a float map in equal bins over 0 to 1; the value of a bin is its centre."""
    index = np.minimum((soft * np.float32(bins)).astype(np.int64), bins - 1)
    positives = np.bincount(index[reference], minlength=bins)
    everything = np.bincount(index.ravel(), minlength=bins)
    centres = (np.arange(bins) + 0.5) / bins
    return Distribution(centres, positives.astype(np.int64), (everything - positives).astype(np.int64), exact=False)


class Pool:
    """Tables of many images added up in constant memory.

    8-bit masks are pooled exactly; float maps in 65,536 bins. Both kinds may come in turn.
    """

    def __init__(self, bins: int = BINS) -> None:
        self._bins = bins
        self._bytes = np.zeros((2, 256), np.int64)
        self._floats = np.zeros((2, bins), np.int64)

    def add(self, soft: npt.NDArray[np.uint8] | npt.NDArray[np.float32], reference: npt.NDArray[np.bool_]) -> None:
        """Add an image's pixels."""
        if soft.dtype == np.uint8:
            table = of_bytes(soft.astype(np.uint8, copy=False), reference)
            self._bytes += np.stack([table.positives, table.negatives])
        else:
            table = binned(soft.astype(np.float32, copy=False), reference, self._bins)
            self._floats += np.stack([table.positives, table.negatives])

    def distribution(self) -> Distribution:
        """All pixels so far; rows without a pixel are left out."""
        values = np.concatenate([np.arange(256) / 255, (np.arange(self._bins) + 0.5) / self._bins])
        counts = np.concatenate([self._bytes, self._floats], axis=1)
        order = np.argsort(values, kind="stable")
        order = order[counts[:, order].any(axis=0)]
        return Distribution(values[order], counts[0, order], counts[1, order], exact=not self._floats.any())


def confusion_at(table: Distribution, threshold: float) -> Confusion:
    """Decisions of ``value > threshold``."""
    above = table.values > threshold
    tp, fp = int(table.positives[above].sum()), int(table.negatives[above].sum())
    return Confusion(tp, fp, int(table.positives.sum()) - tp, int(table.negatives.sum()) - fp)


def best_f1(table: Distribution) -> tuple[float, float] | None:
    """The largest F1 over all thresholds, and the lowest threshold that gives it; a value above it is positive.

    Thresholds are the distinct values, and 0. None without positives.
    """
    total = int(table.positives.sum())
    if total == 0:
        return None
    # After row i everything up to its value is negative; the first row is the threshold 0.
    keep = slice(None) if table.values[0] > 0 else slice(1, None)
    thresholds = np.concatenate([[0.0], table.values])[keep]
    tp = (total - np.concatenate([[0], np.cumsum(table.positives)]))[keep]
    fp = (int(table.negatives.sum()) - np.concatenate([[0], np.cumsum(table.negatives)]))[keep]
    f1 = 2 * tp / (tp + fp + total)
    best = int(f1.argmax())
    return float(f1[best]), float(thresholds[best])


def auc(table: Distribution) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counted as half.

    None unless there are both. The rank-sum identity of Mann and Whitney.
    """
    total, others = int(table.positives.sum()), int(table.negatives.sum())
    if total == 0 or others == 0:
        return None
    below = np.cumsum(table.negatives) - table.negatives
    # Counts of a billion pixels: their products need more than 64 bits when summed, so they are halved as floats.
    right = table.positives.astype(np.float64) * (below + 0.5 * table.negatives)
    return float(right.sum() / (float(total) * float(others)))


def auc_error(table: Distribution) -> float:
    """How far :func:`auc` of a binned table can be from that of the values themselves.

    Pairs in one bin count as half whatever their order, so each can be wrong by one half: the bound is
    ``sum(positives * negatives) / (2 * P * N)``. 0 for an exact table.
    """
    total, others = int(table.positives.sum()), int(table.negatives.sum())
    if table.exact or total == 0 or others == 0:
        return 0.0
    together = (table.positives.astype(np.float64) * table.negatives).sum()
    return float(together / (2.0 * total * others))


def reversed_auc(value: float | None) -> float | None:
    """The area of the inverted prediction."""
    return None if value is None else 1 - value
