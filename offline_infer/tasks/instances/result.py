"""From the graph's three outputs to objects in the image's own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed
from offline_infer.tasks.instances.geometry import InstanceGeometry
from offline_infer.tasks.instances.paste import paste
from offline_infer.tasks.instances.rle import Runs
from offline_infer.tasks.instances.spec import DETS, LABELS, MASKS, InstancesSpec

FloatArray = npt.NDArray[np.float32]

_FURTHEST = 1e6  # pixels from the input's corner


@dataclass(frozen=True, eq=False)
class Instances:
    """What was found in an image, best first.

    Attributes:
        size: (height, width) of the image.
        boxes: (n, 4) float32 x0, y0, x1, y1 in image pixels.
        scores: (n,) float32. labels: (n,) int64, from 0.
        masks: one per object, in the image's own size.
    """

    size: tuple[int, int]
    boxes: FloatArray
    scores: FloatArray
    labels: npt.NDArray[np.int64]
    masks: tuple[Runs, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Instances:
        """Those with a score strictly above ``score``."""
        return self.chosen(self.scores > np.float32(score))

    def chosen(self, wanted: Sequence[bool] | npt.NDArray[np.bool_]) -> Instances:
        """Those marked."""
        keep = np.flatnonzero(wanted)
        masks = tuple(self.masks[index] for index in keep)
        return Instances(self.size, self.boxes[keep], self.scores[keep], self.labels[keep], masks)


def read_outputs(answers: Mapping[str, npt.NDArray[Any]], geometry: InstanceGeometry, spec: InstancesSpec) -> Instances:
    """Objects of one image.

    Args:
        answers: ``dets``, ``labels`` and ``masks`` as the graph gives them; a leading axis of 1 is allowed.

    Raises:
        EngineFailed: an output is missing, has another shape, or a kept row makes no sense: NaN, a box far away,
            an unknown label.
    """
    rows = kept_rows(answers, spec)
    boxes = geometry.to_image(rows[DETS][:, :4])
    if spec.mask.paste == "integer_box":
        _refuse_vast(boxes, geometry)
    pasted = tuple(
        paste(_probabilities(mask, spec), box, geometry, spec.mask)
        for mask, box in zip(rows[MASKS], boxes, strict=True)
    )
    if spec.mask.frame == "input":  # graphs of this kind leave it to their reader to keep boxes inside the image
        height, width = geometry.size
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    found = Instances(geometry.size, boxes, rows[DETS][:, 4].copy(), rows[LABELS], pasted)
    return found if spec.mask.empty == "kept" else found.chosen([mask.area > 0 for mask in pasted])


def kept_rows(answers: Mapping[str, npt.NDArray[Any]], spec: InstancesSpec) -> dict[str, npt.NDArray[Any]]:
    """Copies of the rows that hold a detection, best first: ``dets`` float32, ``labels`` int64 and ``masks``.

    Raises:
        EngineFailed: see :func:`read_outputs`.
    """
    dets, labels, masks = (_output(answers, name, rank) for name, rank in ((DETS, 2), (LABELS, 1), (MASKS, 3)))
    if dets.shape[1] != 5 or not len(dets) == len(labels) == len(masks):
        raise EngineFailed(f"dets {dets.shape}, labels {labels.shape} and masks {masks.shape} do not belong together")
    if not masks.shape[1] or not masks.shape[2]:
        raise EngineFailed(f"masks {masks.shape} have no pixels")
    if np.isnan(dets[:, 4]).any() or np.isposinf(dets[:, 4]).any():
        raise EngineFailed("a score is NaN or infinite")
    keep = np.flatnonzero(dets[:, 4] > max(spec.score_floor, 0))
    keep = keep[np.argsort(-dets[keep, 4], kind="stable")]
    if not (np.abs(dets[keep, :4]) <= _FURTHEST).all():  # NaN is not
        raise EngineFailed("the box of a detection is NaN, infinite or millions of pixels away")
    if not (labels[keep] == np.trunc(labels[keep])).all():
        raise EngineFailed("the label of a detection is not a whole number")
    chosen = labels[keep].astype(np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= len(spec.classes)):
        raise EngineFailed(f"a detection has the label {int(chosen.max())}; the model has {len(spec.classes)} classes")
    return {DETS: dets[keep].astype(np.float32), LABELS: chosen, MASKS: masks[keep]}


def _output(answers: Mapping[str, npt.NDArray[Any]], name: str, rank: int) -> npt.NDArray[Any]:
    if name not in answers:
        raise EngineFailed(f"the answer has no output {name!r}, only {', '.join(answers)}")
    array = np.asarray(answers[name])
    if array.ndim == rank + 1 and array.shape[0] == 1:
        array = array[0]
    if array.dtype.kind not in "fiub":
        raise EngineFailed(f"output {name!r} holds {array.dtype}; expected numbers")
    if array.ndim != rank:
        raise EngineFailed(f"output {name!r} has shape {array.shape}; expected {rank} axes")
    return array


def _refuse_vast(boxes: FloatArray, geometry: InstanceGeometry) -> None:
    """Such masks are stretched over the whole box, also outside the image, where torchvision never puts one.

    Raises:
        EngineFailed: a box is more than twice as wide or high as the image, which would take memory without bound.
    """
    height, width = geometry.size
    if (boxes[:, 2] - boxes[:, 0] > 2 * width + 2).any() or (boxes[:, 3] - boxes[:, 1] > 2 * height + 2).any():
        raise EngineFailed(
            f"the box of a detection is more than twice as large as the image of {width} x {height} pixels"
        )


def _probabilities(mask: npt.NDArray[Any], spec: InstancesSpec) -> FloatArray:
    """One mask (y, x) as probabilities.

    Raises:
        EngineFailed: NaN.
    """
    values = np.asarray(mask, np.float32)
    if np.isnan(values).any():
        raise EngineFailed("the mask of a detection holds NaN")
    if spec.mask.activation == "none":
        return values
    with np.errstate(over="ignore"):
        return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-values)), np.float32)
