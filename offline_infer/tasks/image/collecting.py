"""Answers of the network to one soft mask and one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed
from offline_infer.tasks.image.case import FloatArray, ImageFrame, ImageResult
from offline_infer.tasks.image.geometry import ImageGeometry, TileMean, at_network_size, uncovered
from offline_infer.tasks.image.options import IMAGE_SCORE
from offline_infer.tasks.image.spec import ImageSpec, MaskOutput, ScoreOutput
from offline_infer.tasks.settings import RunSettings

Array = npt.NDArray[Any]

_SLACK = 1e-4  # how far a probability may leave 0 to 1 before it is taken for something else


class ImageCollector:
    """Averages the folds' probabilities, joins tiles, and gives the result.

    The score of a tiled image is the largest of its tiles': one manipulated tile makes a manipulated image.
    """

    def __init__(
        self, frame: ImageFrame, placed: ImageGeometry, spec: ImageSpec, settings: RunSettings, folds: int
    ) -> None:
        self._frame, self._placed, self._spec, self._folds = frame, placed, spec, folds
        self._score_of_mask = settings.option(IMAGE_SCORE) == "max"
        self._tiles = TileMean(placed) if placed.mode == "tile" and spec.mask is not None else None
        self._sum: FloatArray | None = None
        self._score_sum = 0.0
        self._mask: FloatArray | None = None
        self._score: float | None = None

    def take(self, group: int, position: int, fold: int, answers: Mapping[str, Array]) -> None:
        """
        Raises:
            EngineFailed: an output is missing, of an impossible shape, or holds what is no probability.
        """
        if self._spec.mask is not None:
            soft = mask_probabilities(answers, self._spec.mask)
            if fold == 0:
                self._sum = soft if self._folds == 1 else soft.copy()
            else:
                assert self._sum is not None
                self._sum += soft
        if self._spec.score is not None:
            score = score_probability(answers, self._spec.score)
            self._score_sum = score if fold == 0 else self._score_sum + score
        if fold == self._folds - 1:
            self._complete(group)

    def finish(self) -> ImageResult:
        mask = self._tiles.finish() if self._tiles is not None else self._mask
        score = self._score
        if score is None and mask is not None and self._score_of_mask:
            seen = mask if self._placed.mode == "tile" else uncovered(mask, self._placed)
            score = float(seen.max())
        return ImageResult(self._frame, self._placed, mask, score)

    def _complete(self, group: int) -> None:
        """All folds have answered a group."""
        if self._sum is not None:
            mean = self._sum / np.float32(self._folds) if self._folds > 1 else self._sum.copy()
            mask = at_network_size(mean, self._placed)
            if self._tiles is not None:
                self._tiles.add(uncovered(mask, self._placed), group)
            else:
                self._mask = mask
        if self._spec.score is not None:
            score = self._score_sum / self._folds
            self._score = score if self._score is None else max(self._score, score)


def mask_probabilities(answers: Mapping[str, Array], output: MaskOutput) -> FloatArray:
    """The mask of one answer, (y, x) float32 in 0 to 1.

    Raises:
        EngineFailed: see :meth:`ImageCollector.take`.
    """
    answer = _named(answers, output.name)
    if answer.ndim == 3:
        answer = answer[:, None]
    if answer.ndim != 4 or answer.shape[0] != 1 or output.channel >= answer.shape[1] or 0 in answer.shape:
        raise EngineFailed(
            f"output {output.name!r} has shape {answer.shape}; expected (1, k, y, x) with channel {output.channel}"
        )
    if output.activation == "softmax":
        return _checked(_softmax(answer[0].astype(np.float32, copy=False))[output.channel], output.name)
    plane = np.asarray(answer[0, output.channel], np.float32)
    return _checked(_sigmoid(plane) if output.activation == "sigmoid" else plane, output.name)


def score_probability(answers: Mapping[str, Array], output: ScoreOutput) -> float:
    """The score of one answer, in 0 to 1; of any shape with one value, or (1, k).

    Raises:
        EngineFailed: see :meth:`ImageCollector.take`.
    """
    answer = _named(answers, output.name)
    values = np.asarray(answer, np.float32).reshape(-1)
    if output.channel >= len(values) or (answer.ndim > 1 and answer.shape[0] != 1):
        raise EngineFailed(
            f"output {output.name!r} has shape {answer.shape}; expected one score, or (1, k) with value {output.channel}"
        )
    if output.activation == "softmax":
        values = _softmax(values)
    elif output.activation == "sigmoid":
        values = _sigmoid(values)
    return float(_checked(values[output.channel : output.channel + 1], output.name)[0])


def _named(answers: Mapping[str, Array], name: str) -> Array:
    if name not in answers:
        raise EngineFailed(f"the graph gave no output {name!r}; it gave {', '.join(answers)}")
    return answers[name]


def _checked(values: FloatArray, name: str) -> FloatArray:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise EngineFailed(f"output {name!r} holds NaN or infinite values")
    if low < -_SLACK or high > 1 + _SLACK:
        raise EngineFailed(
            f"output {name!r} goes from {low:.4g} to {high:.4g}, which are no probabilities; if it holds logits, the bundle "
            "must say so (activation sigmoid or softmax)"
        )
    return values if low >= 0 and high <= 1 else np.clip(values, 0, 1)


def _sigmoid(values: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow."""
    positive = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1, positive) / (1 + positive), np.float32)


def _softmax(values: FloatArray) -> FloatArray:
    """Over the first axis."""
    raised = np.exp(values - values.max(axis=0, keepdims=True))
    return np.asarray(raised / raised.sum(axis=0, keepdims=True), np.float32)
