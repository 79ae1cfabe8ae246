"""A picture of one case for people: the image, and beside it what was found, with names and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ImageError
from offline_infer.files import replacing
from offline_infer.images.cases import CaseFiles
from offline_infer.images.decoding import pillow, read_image
from offline_infer.spec import Pixels
from offline_infer.tasks.instances.palette import tint_objects
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import Runs, runs_of_crop
from offline_infer.tasks.instances.writing import read_record

SHOWN_SCORE = 0.5
_LEAST_HEIGHT = 480  # of a panel, so that names can be read beside small objects
_GAP = 8

Bytes = npt.NDArray[np.uint8]


def draw_case(case: CaseFiles, predictions: Path, picture: Path) -> None:
    """Write the picture; objects with a score above :data:`SHOWN_SCORE` are shown.

    Args:
        predictions: folder of a run.
        picture: the PNG to write.

    Raises:
        UsageError, ImageError: the result or the image cannot be read, or they do not belong together.
    """
    found, classes = read_record(predictions / f"{case.case_id}.json")
    image = read_image(case.channels[0], Pixels(exif="applied"))
    if image.shape[:2] != found.size:
        raise ImageError(f"{case.channels[0]}: has another size than its result in {predictions}")
    shown = found.above(SHOWN_SCORE)
    factor = max(1, -(-_LEAST_HEIGHT // image.shape[0]))
    left = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    right = left.copy()
    tint_objects(right, [_enlarged(mask, factor) for mask in shown.masks])
    _name_objects(right, shown, classes, factor)
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    joined = np.concatenate([left, gap, right], axis=1)
    with replacing(picture) as temporary:
        pillow().fromarray(joined).save(temporary, format="PNG")


def _enlarged(mask: Runs, factor: int) -> Runs:
    crop, top, left = mask.crop()
    large = np.repeat(np.repeat(crop, factor, axis=0), factor, axis=1)
    return runs_of_crop(large, top * factor, left * factor, mask.height * factor, mask.width * factor)


def _name_objects(picture: Bytes, shown: Instances, classes: tuple[str, ...], factor: int) -> None:
    """Write class and score into every object's box, white on a dark ground, inside the picture."""
    from PIL import ImageDraw, ImageFont

    canvas = pillow().fromarray(picture)
    pen, font = ImageDraw.Draw(canvas), _font(ImageFont)
    for index in range(len(shown)):
        text = f"{classes[int(shown.labels[index])]} {shown.scores[index]:.2f}"
        x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
        middle_x, middle_y = (float(shown.boxes[index][[axis, axis + 2]].mean()) * factor for axis in (0, 1))
        x = min(max(middle_x - (x1 - x0) / 2, 2), max(canvas.width - (x1 - x0) - 4, 2))
        y = min(max(middle_y - (y1 - y0) / 2, 2), max(canvas.height - (y1 - y0) - 4, 2))
        pen.rectangle((x - 3, y - 2, x + x1 - x0 + 3, y + y1 - y0 + 3), fill=(16, 22, 24))
        pen.text((x - x0, y - y0), text, fill=(255, 255, 255), font=font)
    picture[:] = np.asarray(canvas)


def _font(fonts: Any) -> Any:
    """Pillow's own font; of a readable size where Pillow was built with FreeType."""
    try:
        return fonts.load_default(15)
    except (ImportError, OSError, TypeError):
        return fonts.load_default()
