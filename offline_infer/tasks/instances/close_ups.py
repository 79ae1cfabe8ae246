"""The worst of an evaluation as small pictures: pairs that overlap least, objects missed, objects invented.

They are written as one JSON file that a report shows without the images: every picture is a PNG in base64, with the
contours of the reference and of the prediction.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.images.decoding import pillow
from offline_infer.tasks.instances.match_pictures import INVENTED, MATCHED, MISSED, REFERENCE, background
from offline_infer.tasks.instances.matching import ImageMatch
from offline_infer.tasks.instances.palette import contour
from offline_infer.tasks.instances.references import Reference
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import Runs

KIND = "offline_infer.evaluation.worst_objects"
KEPT = {"matched": 12, "missed": 12, "invented": 12}
"""How many of each sort are kept."""
_SIDE = 280  # of a picture, in pixels
_MARGIN = 0.25  # of the objects' box, on every side
_LARGEST_FACTOR = 8

Bytes = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An object that may be among the worst.

    Attributes:
        sort: ``matched``, ``missed`` or ``invented``; badness: larger is worse.
        masks: with the colours of their contours, the last one on top.
        facts: what the record says of it.
    """

    sort: str
    badness: float
    masks: tuple[tuple[Runs, Colour], ...]
    facts: dict[str, Any]


@dataclass
class WorstObjects:
    """Takes images one by one; keeps the worst of each sort, and pictures of these only."""

    _kept: dict[str, list[tuple[float, dict[str, Any]]]] = field(default_factory=lambda: {sort: [] for sort in KEPT})

    def add(
        self,
        name: str,
        found: Instances,
        names: tuple[str, ...],
        reference: Reference,
        categories: Sequence[str | None],
        result: ImageMatch,
        image: Path | None,
    ) -> None:
        """Add an image.

        Args:
            found: predictions as they were matched; names: of the model's classes.
            categories: of the objects that are no crowds, in their order.
            image: the image's file, where it is known.
        """
        canvas: Bytes | None = None
        for one in _candidates(found, names, reference, categories, result):
            kept = self._kept[one.sort]
            if len(kept) == KEPT[one.sort] and kept[-1][0] >= one.badness:
                continue
            if canvas is None:
                canvas = background(reference.size, image)
            entry = {"image": name, "sort": one.sort, **one.facts, "png": _close_up(canvas, one.masks)}
            kept.append((one.badness, entry))
            kept.sort(key=lambda pair: -pair[0])
            del kept[KEPT[one.sort] :]

    def record(self) -> dict[str, Any]:
        """The record, the worst of each sort first."""
        return {"kind": KIND, "objects": [entry for sort in KEPT for _, entry in self._kept[sort]]}


def _candidates(
    found: Instances,
    names: tuple[str, ...],
    reference: Reference,
    categories: Sequence[str | None],
    result: ImageMatch,
) -> list[Candidate]:
    objects = [mask for mask, crowd in zip(reference.masks, reference.crowds, strict=True) if not crowd]
    every = []
    for row in result.rows:
        mask = objects[row.index]
        facts: dict[str, Any] = {"object": row.index, "category": categories[row.index]}
        if row.prediction is None:
            # Of the missed ones, the largest are the worst.
            every.append(Candidate("missed", float(mask.area), ((mask, MISSED),), facts))
            continue
        told = {"predicted": names[int(found.labels[row.prediction])], "score": row.score, "iou": row.iou}
        masks = ((mask, REFERENCE), (found.masks[row.prediction], MATCHED))
        every.append(Candidate("matched", -row.iou, masks, {**facts, **told}))
    for index in result.invented:
        score = float(found.scores[index])
        facts = {"predicted": names[int(found.labels[index])], "score": score}
        every.append(Candidate("invented", score, ((found.masks[index], INVENTED),), facts))
    return every


def _close_up(canvas: Bytes, masks: Sequence[tuple[Runs, Colour]]) -> str:
    """The surroundings of some objects with their contours, as a PNG in base64."""
    rows, columns = _window([mask for mask, _ in masks], (canvas.shape[0], canvas.shape[1]))
    part = canvas[rows, columns]
    factor = min(_SIDE / max(part.shape[:2]), _LARGEST_FACTOR)
    height, width = (max(1, round(side * factor)) for side in part.shape[:2])
    picture = np.array(pillow().fromarray(part).resize((width, height)))
    y, x = (np.arange(new) * old // new for new, old in ((height, part.shape[0]), (width, part.shape[1])))
    for mask, colour in masks:
        small = _inside(mask, rows, columns)[y][:, x]
        line = contour(small)
        picture[line | contour(small & ~line)] = colour  # two pixels wide
    stream = io.BytesIO()
    pillow().fromarray(picture).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _window(masks: Sequence[Runs], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the masks' common box and a margin; the whole image where every mask is empty."""
    boxes = np.array([mask.box() for mask in masks if mask.area] or [(0, 0, size[1], size[0])])
    x0, y0 = boxes[:, :2].min(axis=0)
    x1, y1 = boxes[:, 2:].max(axis=0)
    margin = 2 + int(_MARGIN * max(x1 - x0, y1 - y0))
    return slice(max(y0 - margin, 0), min(y1 + margin, size[0])), slice(max(x0 - margin, 0), min(x1 + margin, size[1]))


def _inside(mask: Runs, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
    """A mask in a window that holds all of it."""
    crop, top, left = mask.crop()
    whole = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    whole[top - rows.start :, left - columns.start :][: crop.shape[0], : crop.shape[1]] = crop
    return whole
