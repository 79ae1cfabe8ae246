"""A small mask of probabilities over a box, pasted into the image: only inside the box, a band of rows at a time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.bilinear import resize_soft
from offline_infer.tasks.instances.geometry import InstanceGeometry
from offline_infer.tasks.instances.rle import Runs, runs_of_crop
from offline_infer.tasks.instances.spec import MaskRule

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_BAND_PIXELS = 1 << 18  # worked on at once, so that the intermediate sums stay in the cache


def paste(mask: FloatArray, box: FloatArray, geometry: InstanceGeometry, rule: MaskRule) -> Runs:
    """An object's mask in the image's own size.

    Args:
        mask: (m, m) probabilities over the box, or (y, x) over the network's input.
        box: x0, y0, x1, y1 in image pixels.
        geometry: of the image.
        rule: how the mask is read.
    """
    height, width = geometry.size
    if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
        return runs_of_crop(np.zeros((0, 0), bool), 0, 0, height, width)
    if rule.frame == "input":
        crop, top, left = _from_input(mask, box, geometry, rule)
    elif rule.paste == "integer_box":
        crop, top, left = _over_whole_pixels(mask, box, height, width, rule)
    else:
        crop, top, left = _continuous(mask, box, height, width, rule)
    return runs_of_crop(crop, top, left, height, width)


def _continuous(mask: FloatArray, box: FloatArray, height: int, width: int, rule: MaskRule) -> tuple[Mask, int, int]:
    """Bilinear at the pixel centres, zero outside the mask; equal to sampling a grid with half-pixel centres.

    A pixel whose centre lies outside the box cannot reach one half, because the zeros round the mask halve its value at
    the box's edge; so only the box is looked at.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    left, right = max(math.floor(x0) - 1, 0), min(math.ceil(x1) + 1, width)
    top, bottom = max(math.floor(y0) - 1, 0), min(math.ceil(y1) + 1, height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), bool), 0, 0
    framed = np.pad(mask, 1)
    rows, down = _positions(top, bottom, box[1], box[3], mask.shape[0])
    columns, across = _positions(left, right, box[0], box[2], mask.shape[1])
    crop = np.empty((bottom - top, right - left), bool)
    band = max(1, _BAND_PIXELS // (right - left))
    for first in range(0, len(rows), band):
        part = slice(first, first + band)
        weight = down[part, None]
        blended = framed[rows[part]] * (1 - weight) + framed[rows[part] + 1] * weight
        values = blended[:, columns] * (1 - across) + blended[:, columns + 1] * across
        crop[part] = reached(np.asarray(values, np.float32), rule)
    return crop, top, left


def _positions(
    first: int, last: int, low: np.float32, high: np.float32, count: int
) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """For each pixel of a range the first of two neighbours in the zero-framed mask, and the second one's weight."""
    half = np.float32(0.5)
    centres = np.arange(first, last, dtype=np.float32) + half
    unit = (centres - low) / (high - low) * 2 - 1  # -1..1 over the box
    position = ((unit + 1) * count - 1) * half + 1  # in the framed mask
    position = np.clip(position, 0, np.float32(count + 1) - np.float32(1e-3))
    lower = np.floor(position)
    return lower.astype(np.intp), np.asarray(position - lower, np.float32)


def _over_whole_pixels(
    mask: FloatArray, box: FloatArray, height: int, width: int, rule: MaskRule
) -> tuple[Mask, int, int]:
    """As torchvision: the mask framed by zeros, the box enlarged alike and cut to whole pixels, then resized."""
    framed = np.pad(mask, 1)
    factor = np.float32(framed.shape[0]) / np.float32(mask.shape[0])
    half = np.float32(0.5)
    half_w, half_h = (box[2] - box[0]) * half * factor, (box[3] - box[1]) * half * factor
    centre_x, centre_y = (box[2] + box[0]) * half, (box[3] + box[1]) * half
    x0, y0, x1, y1 = (
        int(value) for value in (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
    )
    wide, high = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    stretched = resize_soft(framed, high, wide)
    left, right, top, bottom = max(x0, 0), min(x1 + 1, width), max(y0, 0), min(y1 + 1, height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), bool), 0, 0
    return reached(stretched[top - y0 : bottom - y0, left - x0 : right - x0], rule), top, left


def _from_input(mask: FloatArray, box: FloatArray, geometry: InstanceGeometry, rule: MaskRule) -> tuple[Mask, int, int]:
    """A mask over the whole input: the padding cut off, brought to the image's size, kept inside the box."""
    scale_y, scale_x = (mask.shape[axis] / geometry.network[axis] for axis in (0, 1))
    y, x = geometry.offset
    rows = slice(round(y * scale_y), max(round((y + geometry.scaled[0]) * scale_y), 1))
    columns = slice(round(x * scale_x), max(round((x + geometry.scaled[1]) * scale_x), 1))
    height, width = geometry.size
    whole = resize_soft(np.ascontiguousarray(mask[rows, columns]), height, width)
    begin = math.ceil if rule.cut == "within" else math.floor
    left, right = max(begin(box[0]), 0), min(math.ceil(box[2]), width)
    top, bottom = max(begin(box[1]), 0), min(math.ceil(box[3]), height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), bool), 0, 0
    return reached(whole[top:bottom, left:right], rule), top, left


def reached(probabilities: FloatArray, rule: MaskRule) -> Mask:
    """Where a pixel belongs to the object."""
    threshold = np.float32(rule.threshold)
    return np.asarray(probabilities > threshold if rule.above else probabilities >= threshold)
