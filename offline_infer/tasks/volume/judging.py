"""Comparing engines on a volume model: which inputs to ask about, and what their answers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.labels import HALF_LOGIT, activated, winners
from offline_infer.arithmetic.sliding_window import constant_key, cut_tile
from offline_infer.arithmetic.smoothing import gaussian
from offline_infer.errors import UsageError
from offline_infer.images import read_image
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.preparing import prepare
from offline_infer.tasks.volume.tiles import case_grid

FloatArray = npt.NDArray[np.float32]


def real_tiles(case: CaseFiles, spec: VolumeSpec, count: int, threads: int) -> list[FloatArray]:
    """Tiles (1, c, *patch) spread over a case, from its middle outwards, constant ones left out.

    Raises:
        UsageError: the model needs another stage's result.
        CaseError: the case cannot be read or does not fit the model.
    """
    if spec.previous_stage is not None:
        raise UsageError("the second stage of a cascade cannot be measured on an image alone; give no image")
    image = read_image(case.channels, spec.reader, channels=len(spec.channels))
    prepared = prepare(image.array, image.geometry, spec, threads=threads, consume=True)
    grid = case_grid(spec, prepared.geometry.network_shape, RunSettings())
    starts = list(grid)
    tile = np.empty((spec.input_channels, *grid.patch), np.float32)
    found: list[FloatArray] = []
    middle = len(starts) // 2
    # From the middle outwards: that is where the body is.
    for _, start in sorted(enumerate(starts), key=lambda pair: abs(pair[0] - middle)):
        cut_tile(prepared.array, grid, start, tile)
        if constant_key(tile) is None or (not found and start == starts[-1]):
            found.append(tile.reshape(spec.input_shape).copy())
        if len(found) == count:
            break
    return found


def noise_tiles(spec: VolumeSpec, count: int) -> list[FloatArray]:
    """Tiles (1, c, *patch) of smooth noise of unit variance, at most two."""
    found = []
    for seed in range(min(count, 2)):
        noise = np.random.default_rng(seed).normal(size=spec.input_shape).astype(np.float32)
        smooth = gaussian(noise, [0, 0, *[2.0] * (noise.ndim - 2)])
        found.append(np.ascontiguousarray(smooth / max(float(smooth.std()), 1e-6), np.float32))
    return found


def judge(answers: Sequence[FloatArray], reference: Sequence[FloatArray] | None, spec: VolumeSpec) -> dict[str, Any]:
    """Whether answers can be trusted, compared with the float32 reference where there is one.

    Args:
        answers, reference: logits (1, k, *patch) per tile.

    Returns:
        ``status`` (``ok`` or ``failed`` with a ``reason``) and the figures of the comparison.
    """
    if not all(np.isfinite(answer).all() for answer in answers):
        return {"status": "failed", "reason": "the answers hold NaN or infinite numbers"}
    if reference is None:
        return {"status": "ok"}
    threshold = None if spec.labels.regions_class_order is None else HALF_LOGIT
    values = _deciding_values(spec)
    pairs = np.zeros((len(values), len(values)), np.int64)
    worst = margin = 0.0
    for mine, theirs in zip(answers, reference, strict=True):
        worst = max(worst, float(np.abs(mine - theirs).max()))
        a, b = winners(mine[0], threshold), winners(theirs[0], threshold)
        pairs += np.bincount(b.ravel().astype(np.int64) * len(values) + a.ravel(), minlength=pairs.size).reshape(
            pairs.shape
        )
        margin = max(margin, _largest_margin(theirs[0][:, a != b], threshold))
    equal, voxels = int(np.trace(pairs)), int(pairs.sum())
    found, wanted, both = int(pairs[:, 1:].sum()), int(pairs[1:].sum()), int(np.trace(pairs[1:, 1:]))
    figures: dict[str, Any] = {
        "max_abs_logit_difference": worst,
        "label_agreement": equal / voxels,
        "foreground_dice": 2 * both / (found + wanted) if found + wanted else None,
        "foreground_voxels": found,
        "reference_foreground_voxels": wanted,
        "dice_per_class": {str(values[k]): _dice(pairs, k) for k in range(1, len(values))},
        "voxels": voxels,
        "differing_voxels": voxels - equal,
        "differing_margin_max": margin if voxels > equal else None,
    }
    if wanted and not found:
        return {"status": "failed", "reason": "all background, where float32 finds structures", **figures}
    return {"status": "ok", **figures}


def mean_change(answers: Sequence[FloatArray], reference: Sequence[FloatArray], spec: VolumeSpec) -> float:
    """Mean square of the change of the probabilities.

    Args:
        answers, reference: logits (1, k, *patch) per tile.
    """
    powers = [
        float(np.square(activated(mine[0], spec.aggregation) - activated(theirs[0], spec.aggregation)).mean())
        for mine, theirs in zip(answers, reference, strict=True)
    ]
    return float(np.mean(powers))


def _deciding_values(spec: VolumeSpec) -> tuple[Any, ...]:
    """What each place that :func:`winners` gives stands for; the first one is background."""
    order = spec.labels.regions_class_order
    return tuple(spec.labels.channel_values) if order is None else (0, *order)


def _dice(pairs: npt.NDArray[np.int64], place: int) -> float | None:
    """Dice of one class from counts of (reference, answer); None where neither holds it."""
    size = int(pairs[place].sum() + pairs[:, place].sum())
    return 2 * int(pairs[place, place]) / size if size else None


def _largest_margin(values: FloatArray, threshold: np.float32 | None) -> float:
    """How far the decision was from another one at most, over voxels (k, n): between the two largest channels, or for
    regions from the threshold."""
    if not values.shape[1]:
        return 0.0
    if threshold is not None:
        return float(np.abs(values - threshold).min(axis=0).max())
    top = np.partition(values, values.shape[0] - 2, axis=0)[-2:]
    return float((top[1] - top[0]).max())
