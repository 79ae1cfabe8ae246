"""IMDL-BenCo 0.1.45's own figures, defects included, for those who must compare with a table it printed.

Reproduced: the epsilons; F1, IoU and AUC of an image without a positive pixel counted as 0; an image whose mask holds
any non-zero value taken for manipulated; a NaN area that spreads to the whole set; pixel accuracy of the last
incomplete batch counted over the padding too; scores of shape (B, 1) compared with every label.
Not reproduced: the area of maps with equal values, which depends on an unstable sort there; the mean of two modes that
share a name; images that are dropped when saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from offline_infer.tasks.image.evaluation.distribution import Confusion
from offline_infer.tasks.image.evaluation.pixel_measures import Mask, PixelMeasures, Soft, in_modes, pixel_measures

_PIXEL_EPSILON = 1e-8
_IMAGE_EPSILON = 1e-9


def upstream_pixel_measures(
    soft: Soft, reference: Mask, inside: Mask | None = None, *, in_tail: bool = False
) -> dict[str, float]:
    """F1, IOU, Accuracy and AUC of one image in the three modes, at threshold 0.5.

    Args:
        soft, reference: (y, x) at the network's size.
        inside: where the padded input holds the image.
        in_tail: the image is in the last, incomplete batch, whose accuracy counts the padding.
    """
    told = pixel_measures(soft, reference, inside=inside)
    accuracy = pixel_measures(soft, reference).counts if in_tail and inside is not None else told.counts
    counts, mirrored = told.counts, _mirrored(soft, reference, inside, told)
    area = told.values["AUC"]
    if area is None:
        area = 0.0 if told.positives == 0 else math.nan
        areas = (area, area)
    else:
        areas = (area, 1 - area)
    total = accuracy.total
    values = in_modes(
        {
            "F1": (_f1(counts, _PIXEL_EPSILON), _f1(counts.inverted, _PIXEL_EPSILON)),
            "IOU": (_iou(counts), _iou(mirrored)),
            "Accuracy": ((accuracy.tp + accuracy.tn) / total, (accuracy.fp + accuracy.fn) / total),
            "AUC": areas,
        }
    )
    return {name: math.nan if value is None else value for name, value in values.items()}


def upstream_image_measures(
    scores: Sequence[float], labels: Sequence[bool], *, column_scores: bool = False
) -> dict[str, float]:
    """F1 and accuracy of scores; the area needs no imitation.

    Args:
        scores, labels: one per image.
        column_scores: the model's scores have shape (B, 1): every score is compared with every label.
    """
    called = np.asarray(scores, np.float32) > 0.5
    truth = np.asarray(labels, bool)
    n = len(truth)
    if column_scores:
        called, truth = np.broadcast_arrays(called[:, None], truth[None, :])
    tp, fp = np.sum(called & truth), np.sum(called & ~truth)
    fn, tn = np.sum(~called & truth), np.sum(~called & ~truth)
    one, epsilon = np.float32, np.float32(_IMAGE_EPSILON)
    precision = one(tp) / (one(tp) + one(fp) + epsilon) if tp + fp else one(0)
    recall = one(tp) / (one(tp) + one(fn) + epsilon) if tp + fn else one(0)
    f1 = one(2) * precision * recall / (precision + recall + epsilon) if tp else one(0)
    return {"F1": float(f1), "Accuracy": float((tp + tn) / n)}


def tail_start(images: int, ranks: int, batch: int) -> int:
    """Index of the first image that falls into the incomplete last batch when ``ranks`` processes share a set."""
    return images - images % (ranks * batch)


def _mirrored(soft: Soft, reference: Mask, inside: Mask | None, told: PixelMeasures) -> Confusion:
    """Decisions of the inverted values: as the inverted decisions, but pixels at one half stay negative."""
    if inside is not None:
        soft, reference = soft[inside], reference[inside]
    if told.halves == 0:
        return told.counts.inverted
    halves = soft == 0.5
    positive = int(np.count_nonzero(reference[halves]))
    flipped = told.counts.inverted
    return Confusion(
        tp=flipped.tp - positive,
        fp=flipped.fp - (told.halves - positive),
        fn=flipped.fn + positive,
        tn=flipped.tn + told.halves - positive,
    )


def _f1(counts: Confusion, epsilon: float) -> float:
    precision = counts.tp / (counts.tp + counts.fp + epsilon)
    recall = counts.tp / (counts.tp + counts.fn + epsilon)
    return 2 * precision * recall / (precision + recall + epsilon)


def _iou(counts: Confusion) -> float:
    return counts.tp / (counts.tp + counts.fp + counts.fn + _PIXEL_EPSILON)
