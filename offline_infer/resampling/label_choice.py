"""Which label a voxel gets, once the interpolated indicator ("score") of each candidate label is known.

A choice is started for a set of voxels, takes the candidates one after the other, in any order and repeatedly if need be,
and then gives the winners.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from offline_infer.resampling.operators import Doubles
from offline_infer.spec import Resampling

Ints = npt.NDArray[np.integer[Any]]
Ties = Literal["argmax", "higher_label"]

_NO_LABEL = np.iinfo(np.int64).min


class LabelChoice(Protocol):
    def add(self, label: Ints, score: Doubles) -> None:
        """A candidate: its label (one, or one per voxel) and its score per voxel."""
        ...

    def winners(self) -> Ints:
        """The chosen label of each voxel."""
        ...


class LargestScore:
    """The largest score wins; of equal ones the nearest voxel's label if it is among them, else the smallest label."""

    def __init__(self, nearest: Ints) -> None:
        self._nearest = nearest
        self._nearest_score = np.zeros(nearest.shape)
        self._best = np.zeros(nearest.shape)
        self._winner = np.full(nearest.shape, _NO_LABEL)

    def add(self, label: Ints, score: Doubles) -> None:
        np.copyto(self._nearest_score, score, where=label == self._nearest)
        wins = (score > self._best) | ((score == self._best) & (label < self._winner))
        np.copyto(self._winner, label, where=wins)
        np.maximum(self._best, score, out=self._best)

    def winners(self) -> Ints:
        return np.where(self._nearest_score == self._best, self._nearest, self._winner)


class LargestHalf:
    """nnU-Net's fast way with torch: the largest score, in half precision, wins; the smallest of equal ones."""

    def __init__(self, nearest: Ints) -> None:
        self._best = np.zeros(nearest.shape)
        self._winner = np.full(nearest.shape, _NO_LABEL)

    def add(self, label: Ints, score: Doubles) -> None:
        rounded = (score * 1000).astype(np.float32).astype(np.float16).astype(np.float64)
        wins = (rounded > self._best) | ((rounded == self._best) & (label < self._winner))
        np.copyto(self._winner, label, where=wins)
        np.maximum(self._best, rounded, out=self._best)

    def winners(self) -> Ints:
        return self._winner


class HighestPassing:
    """The highest label whose score passes one half wins, 0 where none does.

    ``strict`` asks for more than one half; ``single`` rounds scores to float32 first, as torch computes them.
    """

    def __init__(self, nearest: Ints, *, strict: bool, single: bool = False) -> None:
        self._strict, self._single = strict, single
        self._winner = np.full(nearest.shape, _NO_LABEL)

    def add(self, label: Ints, score: Doubles) -> None:
        if self._single:
            score = score.astype(np.float32).astype(np.float64)
        passes = score > 0.5 if self._strict else score >= 0.5
        np.copyto(self._winner, label, where=passes & (label > self._winner))

    def winners(self) -> Ints:
        return np.where(self._winner == _NO_LABEL, 0, self._winner)


def start_choice(nearest: Ints, rule: Resampling, ties: Ties, *, along_apart: bool) -> LabelChoice:
    """The choice that nnU-Net makes.

    Args:
        nearest: label of the voxel nearest to each voxel.
        along_apart: this is the second step, along the axis treated apart.
    """
    if rule.function.startswith("torch"):
        return (
            HighestPassing(nearest, strict=True, single=True) if rule.memory_efficient_labels else LargestHalf(nearest)
        )
    if along_apart:
        return HighestPassing(nearest, strict=True)
    return LargestScore(nearest) if ties == "argmax" else HighestPassing(nearest, strict=False)
