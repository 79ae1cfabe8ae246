"""Resizing of pictures: bilinear for pixels and soft masks, nearest for binary masks; no smoothing before shrinking.

8-bit pixels are resized in the fixed-point arithmetic that OpenCV's ``INTER_LINEAR`` uses, to the bit: a network was
trained on what that function gives, so any other rounding would give it a different input. Coefficients have 11 bits; the
horizontal pass keeps all of them, the vertical pass drops four bits before and sixteen after its multiplication.
Soft masks are float32 and follow the half-pixel rule of ``torch.nn.functional.interpolate(align_corners=False)``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

_ONE = 2048  # 1.0 as an 11-bit coefficient
_UNIT = np.float32(1)
_BAND_PIXELS = 1 << 19  # of the result worked on at once, so that the intermediate sums stay in the cache


def resize_pixels(image: Pixels, height: int, width: int) -> Pixels:
    """Resize an 8-bit image as OpenCV's ``resize(..., INTER_LINEAR)`` does, to the bit.

    Args:
        image: (y, x, c) uint8.
        height, width: of the result, in pixels.

    Returns:
        (height, width, c) uint8; ``image`` itself where the size is right already.
    """
    old_height, old_width, channels = image.shape
    if (old_height, old_width) == (height, width):
        return image
    if (old_height, old_width) == (2 * height, 2 * width):
        return _halved(image)
    columns, horizontal = _fixed_point(old_width, width)
    left, right = np.maximum(columns, 0), np.minimum(columns + 1, old_width - 1)
    # Beyond the first and the last column there is nothing to blend with.
    outside = (columns < 0) | (columns >= old_width - 1)
    horizontal[outside] = (_ONE, 0)
    left = np.where(columns >= old_width - 1, old_width - 1, left)
    rows, vertical = _fixed_point(old_height, height)
    upper, lower = np.clip(rows, 0, old_height - 1), np.clip(rows + 1, 0, old_height - 1)

    result = np.empty((height, width, channels), np.uint8)
    band = max(1, _BAND_PIXELS // (width * channels))
    for first in range(0, height, band):
        part = slice(first, min(first + band, height))
        needed, inverse = np.unique(np.concatenate([upper[part], lower[part]]), return_inverse=True)
        source = image[needed]
        blended = source[:, left].astype(np.int32)
        blended *= horizontal[:, 0, None]
        second = source[:, right].astype(np.int32)
        second *= horizontal[:, 1, None]
        blended += second
        blended >>= 4
        count = inverse.size // 2
        total = blended[inverse[:count]]
        total *= vertical[part, 0, None, None]
        total >>= 16
        below = blended[inverse[count:]]
        below *= vertical[part, 1, None, None]
        below >>= 16
        total += below
        total += 2
        total >>= 2
        result[part] = total
    return result


def resize_soft(soft: FloatArray, height: int, width: int) -> FloatArray:
    """Resize a soft mask bilinearly with half-pixel centres, as torch's ``interpolate(align_corners=False)``.

    Args:
        soft: (y, x) float32.

    Returns:
        (height, width) float32; ``soft`` itself where the size is right already.
    """
    if soft.shape == (height, width):
        return soft
    result = np.empty((height, width), np.float32)
    for first, rows in soft_bands(soft, height, width):
        result[first : first + len(rows)] = rows
    return result


def soft_bands(soft: FloatArray, height: int, width: int) -> Iterator[tuple[int, FloatArray]]:
    """The same, a band of rows at a time: a panorama's mask never exists as float32 in full.

    Yields:
        (first row, (rows, width) float32) from top to bottom.
    """
    upper, lower, down = _half_pixel(soft.shape[0], height)
    left, right, across = _half_pixel(soft.shape[1], width)
    band = max(1, _BAND_PIXELS // width)
    for first in range(0, height, band):
        part = slice(first, min(first + band, height))
        top, bottom = int(upper[first]), int(lower[part][-1]) + 1
        source = soft[top:bottom]
        blended = source[:, left] * (_UNIT - across) + source[:, right] * across
        weight = down[part, None]
        rows = blended[upper[part] - top] * (_UNIT - weight) + blended[lower[part] - top] * weight
        yield first, np.asarray(rows, np.float32)


def resize_mask(mask: npt.NDArray[np.bool_], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Resize a binary mask to the nearest pixel as OpenCV's ``INTER_NEAREST``: index floor(i * source / target).

    Args:
        mask: (y, x) bool.

    Returns:
        (height, width) bool.
    """
    rows, columns = nearest_index(mask.shape[0], height), nearest_index(mask.shape[1], width)
    return mask[rows[:, None], columns[None, :]]


def nearest_index(source: int, target: int) -> npt.NDArray[np.intp]:
    """Which of ``source`` pixels each of ``target`` pixels takes its value from."""
    scale = 1 / (target / source)
    index: npt.NDArray[np.intp] = np.floor(np.arange(target) * scale).astype(np.intp)
    return np.minimum(index, source - 1)


def _fixed_point(source: int, target: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """For each target pixel the first of its two source pixels (may be -1), and both coefficients, (target, 2)."""
    scale = 1 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    coefficients = np.stack([_UNIT - fraction, fraction], axis=1) * np.float32(_ONE)
    return first.astype(np.intp), np.rint(coefficients).astype(np.int32)


def _half_pixel(source: int, target: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Two source indices and the weight of the second, for each target pixel."""
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    first = np.minimum(position.astype(np.intp), source - 1)
    weight = (position - first).astype(np.float32)
    return first, np.minimum(first + 1, source - 1), weight


def _halved(image: Pixels) -> Pixels:
    """Exactly half the size: OpenCV takes the mean of four pixels, rounded half up."""
    wide = image.astype(np.uint16)
    total = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)
