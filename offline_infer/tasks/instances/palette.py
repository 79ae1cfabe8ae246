"""Label images in the colours of Pascal VOC, and pictures with contours. PNG files whose pixels are the labels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.files import replacing
from offline_infer.images.decoding import pillow
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import Runs

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint16]

VOID = 255
"""Label of pixels that count for nothing in Pascal VOC."""


def voc_palette() -> Bytes:
    """Pascal VOC's 256 colours (256, 3): the index's bits, dealt to red, green and blue, fill each from the top."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def label_images(found: Instances) -> tuple[Labels, Labels]:
    """Object numbers and class numbers of every pixel, both (y, x) and from 1; 0 is background.

    Objects are numbered by score; where they overlap, the one with the higher score is on top.
    """
    objects, classes = (np.zeros(found.size, np.uint16) for _ in range(2))
    for index in reversed(range(len(found))):
        crop, top, left = found.masks[index].crop()
        place = (slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1]))
        objects[place][crop] = index + 1
        classes[place][crop] = int(found.labels[index]) + 1
    return objects, classes


def write_labels(path: Path, labels: Labels) -> None:
    """Write a PNG: eight bits with VOC's palette, or sixteen bits grey where a label is above 254."""
    image = pillow()
    if int(labels.max(initial=0)) < VOID:
        picture = image.fromarray(labels.astype(np.uint8))
        picture.putpalette(voc_palette().ravel().tolist())
    else:
        picture = image.fromarray(labels)
    _save(picture, path)


def write_mask(path: Path, mask: npt.NDArray[np.bool_]) -> None:
    """Write a binary mask as a PNG of 0 and 255."""
    _save(pillow().fromarray(np.where(mask, np.uint8(255), np.uint8(0))), path)


def write_overlay(path: Path, image: Bytes, found: Instances, alpha: float = 0.45) -> None:
    """Write the image (y, x, 3) RGB with every object tinted in its colour and outlined."""
    picture = image.copy()
    tint_objects(picture, found.masks, alpha)
    _save(pillow().fromarray(picture), path)


def tint_objects(picture: Bytes, masks: Sequence[Runs], alpha: float = 0.45) -> None:
    """Tint and outline objects on a picture (y, x, 3), each in its own colour, the first one on top."""
    palette = voc_palette()
    for index in reversed(range(len(masks))):
        crop, top, left = masks[index].crop()
        if not crop.size:
            continue
        part = picture[top : top + crop.shape[0], left : left + crop.shape[1]]
        colour = palette[index % 254 + 1]
        part[crop] = (part[crop] * (1 - alpha) + colour * alpha).astype(np.uint8)
        part[contour(crop)] = colour


def contour(crop: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels of a mask with a neighbour (of four) outside it; the frame counts as outside."""
    framed = np.pad(crop, 1)
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return np.asarray(crop & ~inner)


def _save(picture: Any, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
