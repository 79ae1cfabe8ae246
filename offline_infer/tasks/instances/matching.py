"""One-to-one matching of predictions with reference objects, and the figures that follow from it.

The pairs are those with the largest total IoU (Hungarian method), not the greedy ones. There is no smallest IoU unless one
is asked for: with fewer predictions than objects, or more, everybody who can be paired is. An object without a partner
scores 0; a prediction without one is counted as invented but costs nothing in the objects' figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import UsageError
from offline_infer.tasks.instances.references import Reference
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import Runs, runs_of_mask

FloatMatrix = npt.NDArray[np.float64]
EPSILON = 1e-6
"""Added to every denominator, as in the experiment these figures come from."""

VOID_RULES = ("background", "ignore")
"""What pixels marked void are: background, or nothing at all (they leave predictions, objects and background)."""


@dataclass(frozen=True)
class ObjectRow:
    """The figures of one reference object.

    Attributes:
        index: position among the image's objects, from 0; object_id: the data set's number.
        label: class number of the data set, -1 if unknown.
        prediction: position of the partner among the kept predictions (by class, then score); None without one.
        score: of the partner.
    """

    index: int
    object_id: int
    label: int
    prediction: int | None
    score: float | None
    iou: float
    f1: float


@dataclass(frozen=True)
class ImageMatch:
    """The figures of one image.

    Attributes:
        rows: one per object.
        invented: positions of predictions without a partner.
        mean_iou, mean_f1: over the objects; None without objects.
        bg_iou, bg_f1: of the background: the image without the matched predictions, against the image without objects.
        mean_iou_with_bg, mean_f1_with_bg: the background counted like an object.
        iou: (objects, predictions) matrix.
    """

    rows: tuple[ObjectRow, ...]
    invented: tuple[int, ...]
    mean_iou: float | None
    mean_f1: float | None
    bg_iou: float
    bg_f1: float
    mean_iou_with_bg: float
    mean_f1_with_bg: float
    iou: FloatMatrix


def in_record_order(found: Instances) -> npt.NDArray[np.intp]:
    """Predictions ordered by class, then by score."""
    return np.lexsort((-found.scores, found.labels))


def match(
    found: Instances,
    labels: tuple[int, ...],
    reference: Reference,
    *,
    class_aware: bool = False,
    min_iou: float = 0.0,
    void: str = "background",
) -> ImageMatch:
    """Match one image.

    Args:
        found: predictions in the order they are to be numbered.
        labels: their class numbers in the data set, -1 for a class it does not have.
        reference: the objects; crowds take no part.
        class_aware: pairs must agree in class.
        min_iou: pairs below this are none.
        void: one of :data:`VOID_RULES`.

    Raises:
        UsageError: an unknown rule.
    """
    if void not in VOID_RULES:
        raise UsageError(f"unknown rule for void pixels {void!r}; legal: {', '.join(VOID_RULES)}")
    objects = [index for index, crowd in enumerate(reference.crowds) if not crowd]
    ignored = reference.void if void == "ignore" else None
    predictions = [_without(mask, ignored) for mask in found.masks]
    masks = [reference.masks[index] for index in objects]
    iou, f1 = _overlaps(masks, predictions)
    allowed = np.ones(iou.shape, bool)
    if class_aware:
        own = np.array([reference.labels[index] for index in objects], np.int64)
        allowed = own[:, None] == np.array(labels, np.int64)[None, :]
    pairs = _assign(np.where(allowed, iou, 0.0))
    partner = {row: column for row, column in pairs if allowed[row, column] and iou[row, column] >= min_iou}
    rows = tuple(
        _row(position, reference, objects[position], partner.get(position), found, iou, f1)
        for position in range(len(objects))
    )
    bg_iou, bg_f1 = _background(reference, masks, [predictions[column] for column in partner.values()], ignored)
    count = len(rows)
    total_iou, total_f1 = sum(row.iou for row in rows), sum(row.f1 for row in rows)
    return ImageMatch(
        rows=rows,
        invented=tuple(index for index in range(len(predictions)) if index not in set(partner.values())),
        mean_iou=total_iou / count if count else None,
        mean_f1=total_f1 / count if count else None,
        bg_iou=bg_iou,
        bg_f1=bg_f1,
        mean_iou_with_bg=(total_iou + bg_iou) / (count + 1),
        mean_f1_with_bg=(total_f1 + bg_f1) / (count + 1),
        iou=iou,
    )


def overlap_figures(shared: int, predicted: int, real: int) -> tuple[float, float]:
    """IoU and F1 of two masks from their areas."""
    iou = shared / (predicted + real - shared + EPSILON)
    precision, recall = shared / (predicted + EPSILON), shared / (real + EPSILON)
    return iou, 2 * precision * recall / (precision + recall + EPSILON)


def _row(
    position: int,
    reference: Reference,
    index: int,
    partner: int | None,
    found: Instances,
    iou: FloatMatrix,
    f1: FloatMatrix,
) -> ObjectRow:
    paired = partner is not None
    return ObjectRow(
        index=position,
        object_id=reference.ids[index],
        label=reference.labels[index],
        prediction=partner,
        score=float(found.scores[partner]) if paired else None,
        iou=float(iou[position, partner]) if paired else 0.0,
        f1=float(f1[position, partner]) if paired else 0.0,
    )


def _overlaps(masks: list[Runs], predictions: list[Runs]) -> tuple[FloatMatrix, FloatMatrix]:
    iou, f1 = (np.zeros((len(masks), len(predictions))) for _ in range(2))
    for row, mask in enumerate(masks):
        for column, prediction in enumerate(predictions):
            iou[row, column], f1[row, column] = overlap_figures(mask.shared(prediction), prediction.area, mask.area)
    return iou, f1


def _assign(iou: FloatMatrix) -> list[tuple[int, int]]:
    """Pairs with the largest total."""
    if not iou.size:
        return []
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise UsageError(f"matching needs SciPy ({error}); pip install 'offline-infer[instances]'") from error
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def _background(
    reference: Reference, masks: list[Runs], matched: list[Runs], ignored: Runs | None
) -> tuple[float, float]:
    predicted, real = (np.ones(reference.size, bool) for _ in range(2))
    for mask in matched:
        _clear(predicted, mask)
    for mask in masks:
        _clear(real, mask)
    if ignored is not None:
        _clear(predicted, ignored)
        _clear(real, ignored)
    counts: tuple[Any, ...] = tuple(np.count_nonzero(image) for image in (predicted & real, predicted, real))
    return overlap_figures(int(counts[0]), int(counts[1]), int(counts[2]))


def _clear(image: npt.NDArray[np.bool_], mask: Runs) -> None:
    crop, top, left = mask.crop()
    image[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = False


def _without(mask: Runs, ignored: Runs | None) -> Runs:
    if ignored is None or mask.shared(ignored) == 0:
        return mask
    return runs_of_mask(mask.mask() & ~ignored.mask())
