"""Measures of image scores: is there a manipulated region at all? One pooled table of all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offline_infer.tasks.image.evaluation.distribution import auc, best_f1, confusion_at, of_floats


def image_measures(
    scores: Sequence[float], labels: Sequence[bool], *, threshold: float = 0.5
) -> dict[str, float | None]:
    """F1, accuracy and AUC of scores.

    Args:
        scores: from 0 to 1, one per image.
        labels: whether the image is manipulated.
        threshold: an image is called manipulated if its score is larger.

    Returns:
        ``F1``, ``F1_best``, ``Accuracy``, ``AUC``; None where undefined: F1 without a manipulated image, AUC without both
        kinds.
    """
    table = of_floats(np.asarray(scores, np.float32), np.asarray(labels, bool))
    counts = confusion_at(table, threshold)
    best = best_f1(table)
    return {"F1": counts.f1, "F1_best": best and best[0], "Accuracy": counts.accuracy, "AUC": auc(table)}
