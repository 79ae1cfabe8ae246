"""Why two label maps differ: one mistake that explains most of it, or two different models.

A mistake in geometry or in the order of labels can be undone: flip one map back, move it by a voxel, rename its labels,
and most of the differences are gone. Two different models differ a little everywhere, and nothing undoes that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.proof.evaluation.metrics import JointHistogram
from offline_infer.proof.run_records import read_run_record

LabelArray = npt.NDArray[Any]

_LEAST_SHARE = 0.02
"""Below this share of the labelled voxels differences are too few to tell a mistake from chance."""
_LEFT_OVER = 0.2
"""A mistake explains the differences if undoing it leaves at most this share of them."""
_FARTHEST = 2


@dataclass(frozen=True)
class Explanation:
    """A mistake that explains most of the difference.

    Attributes:
        kind: ``empty``, ``labels``, ``flip``, ``transpose`` or ``shift``.
        text: in words.
        left: voxels that still differ once it is undone.
    """

    kind: str
    text: str
    left: int


def explain(a: LabelArray, b: LabelArray, histogram: JointHistogram) -> Explanation | None:
    """A single mistake that turns ``b`` into most of ``a``, or None.

    Args:
        a, b: (z, y, x), equal shape.
        histogram: of both, ``b`` along its first axis.
    """
    differing = histogram.differing
    if not differing or differing < _LEAST_SHARE * _labelled(histogram):
        return None
    if not a.any() or not b.any():
        side, other = ("a", "b") if not a.any() else ("b", "a")
        return Explanation("empty", f"{side} holds nothing but background, {other} does not", 0)
    candidates = [found for found in (_renamed(histogram), *_moved(a, b)) if found is not None]
    best = min(candidates, key=lambda found: found.left)
    return best if best.left <= _LEFT_OVER * differing else None


def same_checkpoint(a: Path, b: Path) -> bool | None:
    """Whether the run records in two prediction folders name the same weights; None where one names none."""
    first, second = _weights(a), _weights(b)
    return None if first is None or second is None else first == second


def recorded_precisions(folder: Path) -> frozenset[str]:
    """The precisions a folder's predictions were computed in, as its run record says: of the run, and of each case."""
    record = read_run_record(folder) or {}
    cases = record.get("cases")
    made = [case.get("record") for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    found = [part.get("precision") for part in (record.get("engine"), *made) if isinstance(part, dict)]
    return frozenset(name for name in found if isinstance(name, str))


def _renamed(histogram: JointHistogram) -> Explanation | None:
    """The one-to-one renaming of foreground labels that makes most voxels agree."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:  # an extra; the other explanations do without
        return None
    foreground = [i for i, value in enumerate(histogram.values) if value != 0]
    counts = histogram.counts[np.ix_(foreground, foreground)]
    rows, columns = linear_sum_assignment(counts, maximize=True)
    pairs = [
        (histogram.values[foreground[r]], histogram.values[foreground[c]])
        for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        if r != c and counts[r, c]
    ]
    if not pairs:
        return None
    gained = int(counts[rows, columns].sum() - np.trace(counts))
    text = ", ".join(f"{old} of b is {new} in a" for old, new in pairs[:4])
    return Explanation("labels", f"the labels are numbered differently: {text}", histogram.differing - gained)


def _moved(a: LabelArray, b: LabelArray) -> Iterator[Explanation]:
    """``b`` flipped, transposed and shifted, each compared with ``a``."""
    names = "zyx" if a.ndim == 3 else "yx"
    axes = range(a.ndim)
    for count in range(1, a.ndim + 1):
        for chosen in itertools.combinations([axis for axis in axes if a.shape[axis] > 1], count):
            text = f"a is b flipped along {' and '.join(names[axis] for axis in chosen)}"
            yield Explanation("flip", text, int(np.count_nonzero(a != np.flip(b, chosen))))
    for first, second in itertools.combinations(axes, 2):
        if a.shape[first] == a.shape[second] > 1:
            text = f"a is b with {names[first]} and {names[second]} exchanged"
            yield Explanation("transpose", text, int(np.count_nonzero(a != np.swapaxes(b, first, second))))
    for axis in axes:
        for step in (s for s in range(-_FARTHEST, _FARTHEST + 1) if s and abs(s) < a.shape[axis]):
            text = f"a is b shifted by {step} voxel{'s' if abs(step) > 1 else ''} along {names[axis]}"
            yield Explanation("shift", text, int(np.count_nonzero(a != np.roll(b, step, axis))))


def _labelled(histogram: JointHistogram) -> int:
    """Voxels that are not background in both maps."""
    background = histogram.values.index(0) if 0 in histogram.values else None
    return histogram.total - (0 if background is None else int(histogram.counts[background, background]))


def _weights(folder: Path) -> frozenset[str] | None:
    """SHA-256 of the checkpoints that made a folder's predictions, as its run record says."""
    record = read_run_record(folder) or {}
    try:
        folds = record["source"]["folds"]
        used = {str(fold) for fold in record.get("folds") or [fold["fold"] for fold in folds]}
        return frozenset(str(fold["sha256"]) for fold in folds if str(fold["fold"]) in used) or None
    except (KeyError, TypeError, AttributeError):
        return None
