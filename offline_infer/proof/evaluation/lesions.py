"""Lesion-wise detection: connected components of two masks, matched by their intersection over union.

A lesion is a connected component of a label (26 neighbours in three dimensions). Components of the reference and of the
prediction are matched one to one such that the sum of the IoU of all matches is largest; a pair counts only if its IoU
exceeds the threshold. A reference component without a match is *missed*, a predicted one without a match is *invented*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, UsageError
from offline_infer.proof.evaluation.metrics import Label

Ids = npt.NDArray[np.int64]
LesionRecord = dict[str, Any]
"""Of one label of one case: ``reference``, ``prediction``, ``found``, ``missed``, ``invented`` (counts), and under
``matches``, ``missed_lesions``, ``invented_lesions`` the lesions themselves, largest first."""

LISTED = 50
"""At most this many lesions of a kind are listed; the counts cover all."""

DEFINITION: Mapping[str, str] = {
    "lesion": "a connected component of the label; voxels that share a face, an edge or a corner are connected",
    "match": "one to one, such that the sum of intersection over union (IoU) is largest; IoU above the threshold",
    "found": "reference lesions with a match",
    "missed": "reference lesions without a match",
    "invented": "predicted lesions without a match",
    "sensitivity": "found / (found + missed)",
    "precision": "found / (found + invented)",
    "F1": "2 found / (2 found + missed + invented)",
}


@dataclass(frozen=True)
class LesionOptions:
    """How to match.

    Attributes:
        iou: a pair counts as a match if its IoU is larger than this.
        min_ml: components smaller than this are dropped from both sides first.
        labels: which labels have lesions; None takes all that are evaluated.
    """

    iou: float = 0.1
    min_ml: float = 0.0
    labels: tuple[Label, ...] | None = None

    def check(self) -> None:
        """Raise :class:`UsageError` for options that make no sense."""
        if not 0 <= self.iou < 1:
            raise UsageError(f"the IoU threshold {self.iou} of lesions must be at least 0 and below 1")
        if not (math.isfinite(self.min_ml) and self.min_ml >= 0):
            raise UsageError(f"the smallest lesion, {self.min_ml} mL, must be 0 or more")


def lesion_records(
    prediction: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    spacing: Sequence[float],
    labels: Iterable[Label],
    options: LesionOptions,
    *,
    ignore: int | None = None,
) -> dict[Label, LesionRecord]:
    """Match the lesions of every label of two label maps.

    Args:
        prediction, reference: integers, (z, y, x), equal shape.
        spacing: mm, (z, y, x).
        ignore: voxels with this value in the reference belong to no lesion.

    Raises:
        GeometryError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"prediction and reference differ in shape: {prediction.shape} and {reference.shape}")
    kept = None if ignore is None else reference != ignore
    wanted = [v for v in labels if v != 0 and (options.labels is None or v in options.labels)]
    voxel_ml = math.prod(spacing) / 1000
    return {
        label: match_lesions(
            _mask(prediction, label, kept),
            _mask(reference, label, kept),
            voxel_ml,
            iou=options.iou,
            min_ml=options.min_ml,
        )
        for label in wanted
    }


def match_lesions(
    prediction: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    voxel_ml: float,
    *,
    iou: float = 0.1,
    min_ml: float = 0.0,
) -> LesionRecord:
    """Match the components of two masks (z, y, x) of equal shape; see the module for the definition."""
    ours, theirs = (_Components.of(mask, voxel_ml, min_ml) for mask in (prediction, reference))
    rows, columns, overlaps = _overlaps(theirs, ours)
    union = theirs.sizes[rows] + ours.sizes[columns] - overlaps
    pairs = _match(rows, columns, overlaps / np.maximum(union, 1), iou)
    found = {row for row, _, _ in pairs}
    used = {column for _, column, _ in pairs}
    missed = [theirs.describe(i) for i in theirs.by_size() if i not in found]
    invented = [ours.describe(i) for i in ours.by_size() if i not in used]
    matches = [
        {**theirs.describe(row), "prediction_ml": ours.ml(column), "iou": round(value, 6)}
        for row, column, value in sorted(pairs, key=lambda pair: -int(theirs.sizes[pair[0]]))
    ]
    return {
        "reference": len(theirs.sizes),
        "prediction": len(ours.sizes),
        "found": len(pairs),
        "missed": len(missed),
        "invented": len(invented),
        "matches": matches[:LISTED],
        "missed_lesions": missed[:LISTED],
        "invented_lesions": invented[:LISTED],
    }


def lesion_rates(found: int, missed: int, invented: int) -> dict[str, float | None]:
    """Sensitivity, precision and F1 of counts; None where the denominator is zero."""

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "sensitivity": ratio(found, found + missed),
        "precision": ratio(found, found + invented),
        "F1": ratio(2 * found, 2 * found + missed + invented),
    }


def lesion_totals(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of one label summed over cases, with the rates of the sums."""
    cases = list(records)
    sums = {
        key: sum(int(case[key]) for case in cases) for key in ("reference", "prediction", "found", "missed", "invented")
    }
    return {**sums, **lesion_rates(sums["found"], sums["missed"], sums["invented"])}


@dataclass(frozen=True)
class _Components:
    """The components of a mask that are large enough. ``labelled``: 0, or the number of the component from 1."""

    labelled: npt.NDArray[Any]
    sizes: Ids
    centroids: npt.NDArray[np.float64]
    voxel_ml: float

    @staticmethod
    def of(mask: npt.NDArray[np.bool_], voxel_ml: float, min_ml: float) -> _Components:
        import cc3d

        if not mask.any():
            return _Components(
                np.zeros(mask.shape, np.uint8), np.zeros(0, np.int64), np.zeros((0, mask.ndim)), voxel_ml
            )
        labelled, _ = cc3d.connected_components(
            np.ascontiguousarray(mask), connectivity=26 if mask.ndim == 3 else 8, return_N=True
        )
        statistics = cc3d.statistics(labelled)
        sizes = np.asarray(statistics["voxel_counts"], np.int64)[1:]
        centroids = np.asarray(statistics["centroids"], np.float64)[1:]
        large = sizes * voxel_ml >= min_ml
        if not large.all():
            numbers = np.zeros(len(sizes) + 1, labelled.dtype)
            numbers[1:][large] = np.arange(1, int(large.sum()) + 1)
            labelled = numbers[labelled]
        return _Components(labelled, sizes[large], centroids[large], voxel_ml)

    def ml(self, number: int) -> float:
        return round(float(self.sizes[number]) * self.voxel_ml, 6)

    def by_size(self) -> list[int]:
        return [int(i) for i in np.argsort(-self.sizes, kind="stable")]

    def describe(self, number: int) -> dict[str, Any]:
        """Volume in mL and the centroid (z, y, x) in voxels."""
        return {"ml": self.ml(number), "centroid": [round(float(v), 1) for v in self.centroids[number]]}


def _overlaps(first: _Components, second: _Components) -> tuple[Ids, Ids, Ids]:
    """Components that share voxels: index in ``first``, index in ``second``, voxels shared."""
    both = (first.labelled != 0) & (second.labelled != 0)
    pairs = np.stack([first.labelled[both], second.labelled[both]]).astype(np.int64)
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    return found[0] - 1, found[1] - 1, counts.astype(np.int64)


def _match(rows: Ids, columns: Ids, iou: npt.NDArray[np.float64], threshold: float) -> list[tuple[int, int, float]]:
    """The one-to-one pairs (row, column, IoU) with the largest sum of IoU, of those above the threshold.

    Pairs are assigned within groups of components that overlap one another, so no matrix grows with the square of the
    number of components.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    good = iou > threshold
    rows, columns, iou = rows[good], columns[good], iou[good]
    if not rows.size:
        return []
    size = int(rows.max()) + 1
    links = coo_matrix((np.ones(rows.size), (rows, columns + size)), shape=(size + int(columns.max()) + 1,) * 2)
    groups = connected_components(links, directed=False)[1][rows]
    order = np.argsort(groups, kind="stable")
    pairs: list[tuple[int, int, float]] = []
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        names, places = np.unique(rows[members], return_inverse=True)
        others, spots = np.unique(columns[members], return_inverse=True)
        scores = np.zeros((names.size, others.size))
        scores[places, spots] = iou[members]
        for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            if scores[i, j] > 0:
                pairs.append((int(names[i]), int(others[j]), float(scores[i, j])))
    return sorted(pairs)


def _mask(labels: npt.NDArray[Any], label: Label, kept: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    mask = np.asarray(labels == label if isinstance(label, int) else np.isin(labels, label), dtype=bool)
    return mask if kept is None else mask & kept
