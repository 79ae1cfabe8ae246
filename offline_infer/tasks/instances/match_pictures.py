"""Pictures of one matched image: the label image of the matched predictions, and what was matched, missed and invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ImageError
from offline_infer.files import replacing
from offline_infer.images.decoding import pillow, read_image
from offline_infer.spec import Pixels
from offline_infer.tasks.instances.matching import ImageMatch
from offline_infer.tasks.instances.palette import contour, write_labels
from offline_infer.tasks.instances.references import Reference
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import Runs

REFERENCE, MATCHED, MISSED, INVENTED = (255, 255, 255), (56, 189, 248), (251, 86, 7), (255, 209, 102)
"""Colours of the contours: white for matched objects, blue for their predictions, orange for missed objects, yellow for
predictions without an object."""


def write_match_pictures(
    folder: Path,
    name: str,
    found: Instances,
    reference: Reference,
    result: ImageMatch,
    image: Path | None,
) -> Path:
    """Write ``<name>_predict.png`` (matched predictions numbered like their objects from 1, a later object on top) and
    ``<name>_matches.png`` (contours over the image, or over black where it is not known).

    Returns:
        The picture with the contours.
    """
    labels = np.zeros(reference.size, np.uint16)
    for row in result.rows:
        if row.prediction is not None:
            crop, place = _placed(found.masks[row.prediction])
            labels[place][crop] = row.index + 1
    write_labels(folder / f"{name}_predict.png", labels)
    canvas = background(reference.size, image)
    objects = [mask for mask, crowd in zip(reference.masks, reference.crowds, strict=True) if not crowd]
    for row in result.rows:
        _outline(canvas, objects[row.index], MISSED if row.prediction is None else REFERENCE)
        if row.prediction is not None:
            _outline(canvas, found.masks[row.prediction], MATCHED)
    for index in result.invented:
        _outline(canvas, found.masks[index], INVENTED)
    path = folder / f"{name}_matches.png"
    with replacing(path) as temporary:
        pillow().fromarray(canvas).save(temporary, format="PNG")
    return path


def background(size: tuple[int, int], image: Path | None) -> npt.NDArray[np.uint8]:
    """The image to draw on (y, x, 3); black where it is not known, cannot be read or has another size."""
    if image is not None:
        try:
            pixels = read_image(image, Pixels(exif="applied"))
        except ImageError:
            pixels = np.zeros((0, 0, 3), np.uint8)
        if pixels.shape[:2] == size:
            return np.array(pixels)
    return np.zeros((*size, 3), np.uint8)


def _outline(canvas: npt.NDArray[np.uint8], mask: Runs, colour: tuple[int, int, int]) -> None:
    crop, place = _placed(mask)
    canvas[place][contour(crop)] = colour


def _placed(mask: Runs) -> tuple[npt.NDArray[np.bool_], tuple[slice, slice]]:
    crop, top, left = mask.crop()
    return crop, (slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1]))
