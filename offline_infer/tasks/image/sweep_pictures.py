"""One image of every point of a sweep to look at: as it was attacked, its reference, and what was predicted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offline_infer.errors import CaseError
from offline_infer.files import replacing
from offline_infer.images.decoding import pillow, read_image, read_mask
from offline_infer.spec import Pixels
from offline_infer.tasks.image.datasets import ImageSet
from offline_infer.tasks.image.evaluation.references import Predictions

Bytes = npt.NDArray[np.uint8]

NAMES = ("image", "mask", "predict", "predict_threshold")
_EDGE = 256  # longest edge of a picture


def write_pictures(folder: Path, one: ImageSet, results: Path) -> None:
    """``image.png``, ``mask.png`` and so on, of the set's first image that has an answer; none where no image has one.

    Args:
        folder: made here.
        one: the attacked images with their references.
        results: folder of the run.
    """
    predictions = Predictions(results)
    for item in one.items:
        try:
            image = read_image(item.image, Pixels())
            soft = predictions.own_size(item).soft
            mask = np.zeros(soft.shape, bool) if item.mask is None else read_mask(item.mask)
        except CaseError:
            continue
        values = soft if soft.dtype == np.uint8 else (soft * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        grey = {"mask": _white(mask), "predict": values, "predict_threshold": _white(values >= 128)}
        for name, pixels in (("image", image), *grey.items()):
            picture = pillow().fromarray(pixels).convert("RGB")
            picture.thumbnail((_EDGE, _EDGE))
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"{name}.png") as temporary:
                picture.save(temporary, format="PNG")
        return


def pictures_of(folder: Path) -> Iterator[tuple[str, bytes, int, int]]:
    """(name, PNG file, height, width) of what :func:`write_pictures` left, damaged ones left out."""
    for name in NAMES:
        try:
            data = (folder / f"{name}.png").read_bytes()
            with pillow().open(io.BytesIO(data), formats=("PNG",)) as picture:
                yield name, data, picture.height, picture.width
        except OSError:
            continue


def _white(mask: npt.NDArray[np.bool_]) -> Bytes:
    return mask.astype(np.uint8) * np.uint8(255)
