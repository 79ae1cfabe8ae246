"""Is an exported graph still the same network? Inputs to try it on, the comparison, and the verdict.

A tolerance alone says little about a segmentation, so a comparison also counts the voxels whose label changed and says
how close the decision was there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.normalization import normalize
from offline_infer.arithmetic.smoothing import gaussian
from offline_infer.resampling.splines import spline_matrix
from offline_infer.spec import Channel, VolumeSpec

FloatArray = npt.NDArray[np.float32]

TOLERANCE = 1e-3
"""float32: largest difference allowed, relative to the largest logit (or to 1, if that is larger)."""
HALF_FLIPS = 0.005
"""float16: share of voxels whose label may change."""
HALF_MAX = 65504.0
"""Largest finite float16."""


@dataclass(frozen=True)
class Comparison:
    """How an answer differs from the reference on one input.

    Attributes:
        voxels: number of voxels decided.
        flips: voxels whose label changed (for regions: in any region).
        flip_margin: largest decision margin of the reference among those: the difference of the two largest logits, or
            for regions the distance of a logit from 0. None without flips.
        max_diff, p999_diff: largest and 99.9th percentile of the absolute logit difference.
        logit_scale: largest absolute logit of the reference.
        finite: the answer holds neither NaN nor infinity.
        constant: the answer is the same everywhere.
        background_only: the answer holds background only, the reference does not.
    """

    voxels: int
    flips: int
    flip_margin: float | None
    max_diff: float
    p999_diff: float
    logit_scale: float
    finite: bool
    constant: bool
    background_only: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data, six digits; figures that are not numbers (of an answer with NaN) become None."""
        return {key: _short(value) if isinstance(value, float) else value for key, value in asdict(self).items()}


def compare(reference: FloatArray, answer: FloatArray, *, regions: bool) -> Comparison:
    """Compare logits.

    Args:
        reference, answer: (1, k, *patch) float32.
        regions: each channel is decided on its own, at logit 0 (probability one half).
    """
    k = reference.shape[1]
    left, right = reference.reshape(k, -1), answer.reshape(k, -1)
    finite = bool(np.isfinite(right).all())
    with np.errstate(invalid="ignore"):
        gap = np.abs(left - right).ravel()
    largest = float(gap.max()) if finite else float("nan")
    rank = int(0.999 * (gap.size - 1))
    percentile = float(np.partition(gap, rank)[rank]) if finite else float("nan")
    del gap
    if regions:
        changed = (left > 0) != (right > 0)
        flipped = changed.any(axis=0)
        margins = np.where(changed, np.abs(left), 0)[:, flipped].max(axis=0, initial=0)
        background = bool((left > 0).any()) and not bool((right > 0).any())
    else:
        labels = left.argmax(axis=0)
        answers = right.argmax(axis=0)
        flipped = labels != answers
        margins = _margins(left[:, flipped])
        background = bool(labels.any()) and not bool(answers.any())
    return Comparison(
        voxels=left.shape[1],
        flips=int(np.count_nonzero(flipped)),
        flip_margin=float(margins.max()) if margins.size else None,
        max_diff=largest,
        p999_diff=percentile,
        logit_scale=float(np.abs(left).max()),
        finite=finite,
        constant=bool((right == right[:, :1]).all()),
        background_only=background,
    )


def verdict(comparison: Comparison, precision: str) -> str | None:
    """None if the answer is good enough for ``precision`` (``fp32`` or ``fp16``), otherwise the reason it is not."""
    c = comparison
    if not c.finite:
        return "the logits hold NaN or infinite values"
    if c.constant:
        return "the logits are the same everywhere"
    if precision == "fp16":
        if c.background_only:
            return "the graph finds only background where the checkpoint finds more"
        if c.flips > HALF_FLIPS * c.voxels:
            return f"{c.flips} of {c.voxels} labels changed, allowed are {HALF_FLIPS:.1%}"
        return None
    allowed = TOLERANCE * max(1.0, c.logit_scale)
    if c.max_diff > allowed:
        return (
            f"logits differ by up to {c.max_diff:.3g} where {allowed:.3g} is allowed, "
            f"and {c.flips} of {c.voxels} labels changed"
        )
    if c.flip_margin is not None and c.flip_margin > 2 * c.max_diff * (1 + 1e-6):
        return f"a label changed where the decision was clear (margin {c.flip_margin:.3g})"
    return None


def probe_inputs(spec: VolumeSpec, seed: int = 0) -> dict[str, FloatArray]:
    """Inputs (1, c, *patch) on which exports are compared: always the same for the same specification and seed.

    ``normal``: standard normal numbers. ``anatomy``: a smooth body with organs, a lesion and bone, normalised as the
    image channels are. Channels of a previous stage hold one-hot shapes in both.
    """
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(spec.input_shape, dtype=np.float32)
    anatomy = np.empty(spec.input_shape, np.float32)
    tissue, shapes = _body(spec.patch_size, rng)
    for index, channel in enumerate(spec.channels):
        anatomy[0, index] = _intensities(tissue, channel, rng)
    for index in range(len(spec.channels), spec.input_channels):
        shape = shapes[(index - len(spec.channels)) % len(shapes)]
        normal[0, index] = anatomy[0, index] = shape
    return {"normal": normal, "anatomy": anatomy}


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _margins(logits: FloatArray) -> FloatArray:
    """(k, n) -> (n,): difference of the two largest."""
    if logits.shape[0] < 2:
        return np.zeros(0, np.float32)
    top = np.partition(logits, logits.shape[0] - 2, axis=0)[-2:]
    return np.asarray(top[1] - top[0], dtype=np.float32)


def _body(patch: tuple[int, ...], rng: np.random.Generator) -> tuple[FloatArray, list[npt.NDArray[np.bool_]]]:
    """Tissue in standard deviations around the foreground's mean, and the shapes of three organs."""
    centres = ((2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in patch)  # of voxels, the patch being -1..1
    axes = np.meshgrid(*centres, indexing="ij", sparse=True)

    def blob(centre: float, radius: float) -> npt.NDArray[np.bool_]:
        offset = centre * np.sign(np.arange(len(patch)) - 0.5)
        distance = sum(((axis - c) / radius) ** 2 for axis, c in zip(axes, offset, strict=True))
        return np.asarray(np.broadcast_to(distance, patch) < 1)

    coarse = rng.standard_normal(tuple(max(2, -(-n // 8)) for n in patch)).astype(np.float32)
    ripple = _enlarged(coarse, patch)
    organs = [blob(-0.3, 0.45), blob(0.4, 0.3), blob(-0.3, 0.15)]
    tissue = np.full(patch, -6, np.float32)  # air
    tissue[blob(0.0, 0.95)] = -1.5  # fat
    tissue[blob(0.0, 0.85)] = -0.5  # muscle
    for organ, level in zip(organs, (0.3, 0.8, -0.4), strict=True):  # two organs; the third is a lesion in the first
        tissue[organ] = level
    tissue[blob(0.65, 0.12)] = 4  # bone
    inside = tissue > -6
    tissue[inside] += 0.3 * ripple[inside]
    smooth = gaussian(tissue, 0.7)
    return np.asarray(smooth, dtype=np.float32), organs


def _enlarged(coarse: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Linear interpolation to a larger shape."""
    fine = coarse.astype(np.float64)
    for axis, n in enumerate(shape):
        fine = np.moveaxis(np.tensordot(spline_matrix(coarse.shape[axis], n, 1), fine, (1, axis)), 0, axis)
    return fine.astype(np.float32)


def _intensities(tissue: FloatArray, channel: Channel, rng: np.random.Generator) -> FloatArray:
    """The body as this channel would show it, normalised."""
    noisy = tissue + rng.normal(0, 0.1, tissue.shape).astype(np.float32)
    if channel.scheme in ("ct", "ct2") and channel.intensity is not None:
        image = np.float32(channel.intensity.mean) + np.float32(channel.intensity.std) * noisy
    elif channel.scheme == "rgb_to_01":
        image = np.clip(128 + 20 * noisy, 0, 255)
    else:
        image = 40 + 60 * noisy
    image = np.ascontiguousarray(image, dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalize(image, None, channel)
    return image if np.isfinite(image).all() else np.ascontiguousarray(noisy)
