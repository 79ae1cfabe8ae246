"""The rounding of one convolution that changes least of what it computes on real activations.

What is rounded is judged behind the convolution: the mean square of the change, relative to the power of what it computes,
over sampled output positions (instance norms behind it take the mean of a channel away, so there only the rest counts). The
input of the network for which it is worst decides, with all values a little larger than they were: other cases reach further.

* **Activation.** A range from the smallest to the largest value leaves most of 256 steps to rare values. Ranges cut shorter
  are tried, and scales that follow each channel's own range instead of the widest one (how far, is tried as well: half of
  the way, in powers, is SmoothQuant's choice; Xiao et al., ICML 2023, arXiv:2211.10438). That minimum error beats minimum
  and maximum is shown by Banner et al., NeurIPS 2019, arXiv:1810.05723.
* **Weight.** Rounded one input after the other; what each gets wrong is made good by those that are still to be rounded, as
  far as they vary together on the samples (Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323). Neighbouring voxels are
  much alike, so this leaves a fraction of the error of rounding to the nearest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ExportError
from offline_infer.graph.quantized import (
    ACTIVATION_STEPS,
    WEIGHT_STEPS,
    Rounding,
    Window,
    weight_scale,
    whole_weights,
)

FloatArray = npt.NDArray[np.float32]
_CUT = (1.0, 0.85, 0.72, 0.6)  # of the observed range
_OWN = (0.0, 0.5, 1.0)  # how far a channel's scale follows its own range
_ZEROS = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 255)
_NARROWEST = 1 / 64  # of the widest channel's range: a channel that hardly varies does not need all steps
_FURTHER = 1.2  # how much larger values of other cases may be
_COMPENSATED = 0.2  # of the error of weights rounded to the nearest that compensation leaves, about
_SEARCHED = 2_000_000  # values of samples that the search looks at
_SAMPLED = 24_000_000  # values of samples at most
_BLOCK = 1152  # weights of an output channel that make good each other's error
_COLUMNS = 64
_DAMPING = 0.01


class Samples:
    """What a convolution reads, at random places, and the ends of each channel.

    Args:
        window: of the convolution.
        channels: c of its activation.
        inputs: how many activations will be added.
    """

    def __init__(self, window: Window, channels: int, inputs: int) -> None:
        self._window, self._random = window, np.random.default_rng(0)
        self._each = -(-rows_wanted(channels * math.prod(window.kernel)) // inputs)
        self._parts: list[FloatArray] = []
        self.low: FloatArray = np.zeros(channels, np.float32)
        self.high: FloatArray = np.zeros(channels, np.float32)

    def add(self, activation: FloatArray) -> None:
        """Take samples of an activation (n, c, ...)."""
        axes = (0, *range(2, activation.ndim))
        self.low = np.minimum(self.low, activation.min(axis=axes))
        self.high = np.maximum(self.high, activation.max(axis=axes))
        each = -(-self._each // len(activation))
        self._parts += [windows(image, self._window, each, self._random) for image in activation]

    @property
    def parts(self) -> list[FloatArray]:
        """The samples of every activation (n, c, positions of the kernel)."""
        return self._parts


def rows_wanted(columns: int) -> int:
    """Samples that a convolution with so many weights for each output channel is fitted on."""
    return min(max(3 * min(columns, _BLOCK), 4000), max(_SAMPLED // columns, 512))


def windows(image: FloatArray, window: Window, count: int, random: np.random.Generator) -> FloatArray:
    """What a convolution reads for ``count`` of its output positions, drawn without putting back.

    Args:
        image: (c, ...).

    Returns:
        (n, c, positions of the kernel), n at most ``count``.
    """
    padded = np.pad(image, [(0, 0), *window.padding])
    axes = tuple(range(1, image.ndim))
    extent = tuple((size - 1) * step + 1 for size, step in zip(window.kernel, window.dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=axes)
    places = views[(slice(None), *(slice(None, None, stride) for stride in window.strides))]
    shape = places.shape[1 : image.ndim]
    total = math.prod(shape)
    drawn = np.unravel_index(random.choice(total, min(count, total), replace=False), shape)
    place: tuple[Any, ...] = (slice(None), *drawn, *(slice(None, None, step) for step in window.dilations))
    taken = places[place]
    return np.ascontiguousarray(taken.reshape(*taken.shape[:2], -1).swapaxes(0, 1))


def fitted(weight: FloatArray, samples: Samples, *, normalized: bool) -> Rounding:
    """The rounding of a convolution.

    Args:
        weight: (k, c, ...).
        normalized: the mean of every output channel is taken away behind it.

    Raises:
        ExportError: the weight or the activation holds NaN or infinite values.
    """
    if not (np.isfinite(samples.low).all() and np.isfinite(samples.high).all()):
        raise ExportError("an activation holds NaN or infinite values, which no whole numbers can stand for")
    if not np.isfinite(weight).all():
        raise ExportError("a weight holds NaN or infinite values")
    flat = weight.reshape(*weight.shape[:2], -1)
    each = max(_SEARCHED // (flat[0].size * len(samples.parts)), 64)
    searched = [part[:each] * np.float32(_FURTHER) for part in samples.parts]
    scale, zero = _best_steps(flat, searched, samples, normalized)
    scaled = flat * scale[:, None]
    seen = [(part / scale[:, None]).reshape(len(part), -1) for part in samples.parts]
    if normalized:
        seen = [part - part.mean(axis=0) for part in seen]
    whole, output_scale = compensated(scaled.reshape(len(weight), -1), np.concatenate(seen))
    whole = whole.reshape(weight.shape)
    if np.ptp(scale) == 0:  # one scale for the tensor, which is put back behind the sum
        return Rounding(np.asarray(scale[0]), zero, whole, (output_scale / scale[0]).astype(np.float32))
    return Rounding(scale, zero, whole, output_scale)


def _best_steps(
    weight: FloatArray, parts: Sequence[FloatArray], samples: Samples, normalized: bool
) -> tuple[FloatArray, int]:
    """The scale of each channel (c,) and the zero point with the least error behind the convolution, on the worst part."""
    flat = weight.reshape(len(weight), -1).T
    power = [_power(part.reshape(len(part), -1) @ flat, normalized) for part in parts]
    strength = np.square(weight, dtype=np.float64).sum(axis=(0, 2))
    best, least = (np.ones(weight.shape[1], np.float32), 0), math.inf
    for scale, zero in candidate_steps(samples.low, samples.high, strength):
        step = scale[:, None]
        whole, output_scale = whole_weights(weight * step)
        change = (whole * output_scale[:, None, None] / step - weight).reshape(len(weight), -1).T
        worst = 0.0
        for part, wanted in zip(parts, power, strict=True):
            seen = part.reshape(len(part), -1)
            restored = (np.clip(np.rint(part / step) + zero, 0, ACTIVATION_STEPS) - zero) * step
            error = _power(restored.reshape(seen.shape) @ flat - seen @ flat, normalized)
            error += _COMPENSATED * _power(seen @ change, normalized)
            worst = max(worst, float(np.mean(error / np.maximum(wanted, np.finfo(np.float32).tiny))))
        if worst < least:
            best, least = (scale, zero), worst
    return best


def candidate_steps(low: FloatArray, high: FloatArray, strength: FloatArray) -> Iterator[tuple[FloatArray, int]]:
    """Scales of the channels (c,) and a zero point, for each way to cut the ranges.

    Args:
        low, high: ends of each channel (c,), zero between them.
        strength: square sum of the weights that read a channel (c,); an activation's rounding reaches the output by them.
    """
    for own in _OWN:
        found = [(_steps(low, high, zero, own), zero) for zero in _ZEROS]
        known = [(scale, zero) for scale, zero in found if np.isfinite(scale).all()]
        if not known:
            continue
        scale, zero = min(known, key=lambda each: float((np.square(each[0], dtype=np.float64) * strength).sum()))
        yield from ((np.float32(cut) * scale, zero) for cut in _CUT)


def _steps(low: FloatArray, high: FloatArray, zero: int, own: float) -> FloatArray:
    """Scale of each channel (c,) with which both ends can be told; infinite where the zero point leaves no room for one."""
    if (zero == 0 and low.min() < 0) or (zero == ACTIVATION_STEPS and high.max() > 0):
        return np.full_like(low, np.inf)
    needed = np.maximum(-low / np.float32(max(zero, 1)), high / np.float32(max(ACTIVATION_STEPS - zero, 1)))
    widest = needed.max()
    if not widest > np.finfo(np.float32).tiny:
        return np.ones_like(needed)  # zero wherever it was looked at
    if own == 0:
        return np.full_like(needed, widest)
    return np.asarray(widest * np.maximum(needed / widest, _NARROWEST) ** np.float32(own), np.float32)


def _power(values: FloatArray, centred: bool) -> npt.NDArray[np.float64]:
    """Mean square of each column, of what is left without its mean if ``centred``."""
    mean: npt.NDArray[np.float64] = np.square(values, dtype=np.float64).mean(axis=0)
    return np.maximum(mean - np.square(values.mean(axis=0, dtype=np.float64)), 0) if centred else mean


def compensated(weight: FloatArray, seen: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A weight (k, n) in whole numbers, and the scale of each output channel (k,), by GPTQ.

    Args:
        seen: what the weights are multiplied with (samples, n); blocks of weights are compensated each by itself.

    Raises:
        ExportError: the weight holds NaN or infinite values.
    """
    scale = weight_scale(weight)
    starts = itertools.pairwise([*range(0, weight.shape[1], _BLOCK), weight.shape[1]])
    parts = [_compensated_block(weight[:, a:b] / scale[:, None], seen[:, a:b]) for a, b in starts]
    return np.concatenate(parts, axis=1), scale


def _compensated_block(weight: FloatArray, seen: FloatArray) -> npt.NDArray[np.int8]:
    """Whole numbers for a weight (k, n) that is in units of its steps."""
    products = (seen.T @ seen).astype(np.float64) / len(seen)
    own = np.diag(products).copy()
    if not own.mean() > 0:
        return np.clip(np.rint(weight), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8)
    products[np.diag_indices_from(products)] += _DAMPING * own.mean()
    order = np.argsort(-own)  # what counts most first, while all others can still make good
    upper = np.linalg.cholesky(np.linalg.inv(products[np.ix_(order, order)])).T
    left = weight[:, order].astype(np.float64)
    whole = np.empty(weight.shape, np.int8)
    for start in range(0, left.shape[1], _COLUMNS):
        end = min(start + _COLUMNS, left.shape[1])
        wrong = np.empty((len(left), end - start))
        for column in range(start, end):
            value = np.clip(np.rint(left[:, column]), -WEIGHT_STEPS, WEIGHT_STEPS)
            whole[:, order[column]] = value
            wrong[:, column - start] = (left[:, column] - value) / upper[column, column]
            left[:, column:end] -= np.outer(wrong[:, column - start], upper[column, column:end])
        left[:, end:] -= wrong @ upper[start:end, end:]
    return whole
