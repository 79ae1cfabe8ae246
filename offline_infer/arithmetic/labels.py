"""From network outputs to labels: softmax, sigmoid, and the two ways a label is decided.

Exclusive classes: the largest value wins, the first of equal ones. Regions: a region is present where its probability
is greater than one half; of several the one that comes last in ``regions_class_order`` is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.spec import Aggregation, Labels

FloatArray = npt.NDArray[np.float32]

HALF_LOGIT = np.float32(1.5 * 2**-24)
"""The largest float32 whose sigmoid, with every step rounded to float32, is not greater than one half."""


def softmax(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Softmax over the first axis, in float32. (k, ...) -> (k, ...)."""
    values: FloatArray = logits.astype(np.float32)
    values -= values.max(axis=0)
    np.exp(values, out=values)
    values /= values.sum(axis=0)
    return values


def sigmoid(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Logistic function of every value, in float32."""
    values: FloatArray = np.negative(logits, dtype=np.float32)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, its reciprocal is the zero we want
        np.exp(values, out=values)
    values += 1
    np.reciprocal(values, out=values)
    return values


def activated(logits: npt.NDArray[np.floating[Any]], aggregation: Aggregation) -> FloatArray:
    """A network's answer (k, ...) as probabilities, float32."""
    return softmax(logits) if aggregation.activation == "softmax" else sigmoid(logits)


def probabilities(values: npt.NDArray[np.floating[Any]], aggregation: Aggregation) -> FloatArray:
    """An aggregated map (k, ...) as probabilities, float32."""
    if aggregation.domain == "probabilities":
        return values.astype(np.float32, copy=False)
    return activated(values, aggregation)


def region_threshold(aggregation: Aggregation) -> np.float32:
    """The value an aggregated map must exceed for its region to be present."""
    return np.float32(0.5) if aggregation.domain == "probabilities" else HALF_LOGIT


def winners(
    values: npt.NDArray[np.floating[Any]], threshold: np.float32 | None
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Place of the deciding channel, plus one for regions (where 0 means that none is present).

    Args:
        values: (k, ...), logits or probabilities.
        threshold: None for exclusive classes, else what a region must exceed.

    Returns:
        (...), uint8, or uint16 from 255 channels on. :func:`label_table` turns it into labels.
    """
    dtype = winner_dtype(len(values))
    result = np.zeros(values.shape[1:], dtype)
    wins = np.empty(values.shape[1:], bool)
    place = np.empty(values.shape[1:], dtype)
    best: npt.NDArray[np.float32] | None = None
    for k, channel in enumerate(values):
        channel = channel.astype(np.float32, copy=False)
        if threshold is not None:
            np.greater(channel, threshold, out=wins)
        elif best is None:
            best = channel.copy()
            continue
        else:
            np.greater(channel, best, out=wins)
            np.maximum(best, channel, out=best)
        # Later places are larger, so a maximum writes them where they win.
        np.multiply(wins, dtype.type(k if threshold is None else k + 1), out=place)
        np.maximum(result, place, out=result)
    return result


def winner_dtype(channels: int) -> np.dtype[Any]:
    """The dtype of :func:`winners` for that many channels."""
    return np.dtype(np.uint8 if channels < 255 else np.uint16)


def label_table(labels: Labels) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The label value of each place that :func:`winners` can give."""
    values = labels.channel_values if labels.regions_class_order is None else (0, *labels.regions_class_order)
    return np.asarray(values, label_dtype(labels))


def label_dtype(labels: Labels) -> np.dtype[Any]:
    """The dtype that holds every label of the model: uint8, or uint16 where the largest is 255 or more.

    The frameworks choose a file's dtype by the same rule from the largest label *in that file*.
    """
    return np.dtype(np.uint8 if labels.largest < 255 else np.uint16)


def decide(values: npt.NDArray[np.floating[Any]], labels: Labels, aggregation: Aggregation) -> npt.NDArray[Any]:
    """Labels of an aggregated map.

    Args:
        values: (k, ...) in the domain of ``aggregation``.

    Returns:
        (...), the dtype of :func:`label_dtype`.
    """
    threshold = None if labels.regions_class_order is None else region_threshold(aggregation)
    return label_table(labels).take(winners(values, threshold))
