"""Whether one engine's detections are those of another: pairs of equal class and overlapping boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed
from offline_infer.tasks.instances.geometry import InstanceGeometry
from offline_infer.tasks.instances.result import Instances, read_outputs
from offline_infer.tasks.instances.spec import InstancesSpec

Answers = Mapping[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float32]

SURE = 0.5
"""Detections above this are judged; weaker ones come and go with rounding."""
MIN_BOX_IOU = 0.5
MAX_REPLACED = 0.05
"""Share of sure detections that may have no partner: near-ties of proposals replace one now and then."""
MIN_MASK_IOU = 0.9


@dataclass(frozen=True)
class Agreement:
    """How one answer differs from another.

    Attributes:
        sure: detections above :data:`SURE` in the reference.
        replaced: of those, and of the answer's, without a partner.
        box: largest difference of a coordinate in pixels, score: largest difference of a score, of partners.
        mask_iou: smallest and mean IoU of partners' masks; None without partners.
    """

    sure: int
    replaced: int
    box: float
    score: float
    mask_iou_min: float | None
    mask_iou_mean: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(reference: Instances, answer: Instances) -> Agreement:
    """Compare two answers for one image."""
    ours, theirs = reference.above(SURE), answer.above(SURE / 2)
    free = set(range(len(theirs)))
    pairs: list[tuple[int, int]] = []
    for index in range(len(ours)):
        best = max(
            (other for other in free if theirs.labels[other] == ours.labels[index]),
            key=lambda other: _box_iou(ours.boxes[index], theirs.boxes[other]),
            default=None,
        )
        if best is not None and _box_iou(ours.boxes[index], theirs.boxes[best]) >= MIN_BOX_IOU:
            pairs.append((index, best))
            free.remove(best)
    invented = sum(theirs.scores[other] > SURE for other in free)
    # A score just above the bar here may lie just below it there.
    near = int(((reference.scores > SURE / 2) & (reference.scores <= SURE)).sum())
    shared = [ours.masks[a].shared(theirs.masks[b]) for a, b in pairs]
    ious = [
        own / max(ours.masks[a].area + theirs.masks[b].area - own, 1)
        for own, (a, b) in zip(shared, pairs, strict=True)
        if ours.masks[a].area or theirs.masks[b].area
    ]
    return Agreement(
        sure=len(ours),
        replaced=len(ours) - len(pairs) + max(0, int(invented) - near),
        box=max((float(np.abs(ours.boxes[a] - theirs.boxes[b]).max()) for a, b in pairs), default=0.0),
        score=max((float(abs(ours.scores[a] - theirs.scores[b])) for a, b in pairs), default=0.0),
        mask_iou_min=min(ious) if ious else None,
        mask_iou_mean=float(np.mean(ious)) if ious else None,
    )


def judge(answers: Sequence[Answers], reference: Sequence[Answers] | None, spec: InstancesSpec) -> dict[str, Any]:
    """See :meth:`offline_infer.tasks.base.Task.judge`; all in the pixels of the network's input."""
    try:
        own = [_read(answer, spec) for answer in answers]
    except EngineFailed as error:
        return {"status": "failed", "reason": str(error)}
    told: dict[str, Any] = {"status": "ok", "detections": [len(found) for found in own]}
    if reference is None:
        return told
    found = [agreement(_read(other, spec), mine) for other, mine in zip(reference, own, strict=True)]
    return {**told, **verdict(found)}


def verdict(found: Sequence[Agreement]) -> dict[str, Any]:
    """``status`` (``ok``, or ``failed`` with a ``reason``) and the figures of several images together."""
    sure, replaced = sum(one.sure for one in found), sum(one.replaced for one in found)
    worst = min((one.mask_iou_min for one in found if one.mask_iou_min is not None), default=1.0)
    means = [one.mask_iou_mean for one in found if one.mask_iou_mean is not None]
    mean = float(np.mean(means)) if means else 1.0
    told: dict[str, Any] = {
        "status": "ok",
        "sure": sure,
        "replaced": replaced,
        "max_box_difference": max((one.box for one in found), default=0.0),
        "max_score_difference": max((one.score for one in found), default=0.0),
        "min_mask_iou": worst,
        "mean_mask_iou": mean,
    }
    told["text"] = (
        f"{sure} objects above {SURE}, {replaced} replaced; boxes differ by up to {told['max_box_difference']:.2g} px, scores by "
        f"{told['max_score_difference']:.2g}, masks agree with an IoU of {mean:.4f}"
    )
    if replaced > max(1, MAX_REPLACED * sure):
        told |= {"status": "failed", "reason": f"{replaced} of {sure} detections above {SURE} have no partner"}
    elif mean < MIN_MASK_IOU:
        told |= {"status": "failed", "reason": f"masks agree with an IoU of {mean:.3f} only"}
    return told


def sample_inputs(spec: InstancesSpec, count: int, size: tuple[int, int] = (256, 320)) -> list[FloatArray]:
    """Inputs of noise with a few bright rectangles, always the same."""
    rng = np.random.default_rng(0)
    height, width = spec.padding.canvas or size
    found = []
    for _ in range(count):
        image = rng.normal(0, 0.3, (1, spec.input_channels, height, width)).astype(np.float32)
        for _ in range(6):
            y, x = int(rng.integers(0, height * 3 // 4)), int(rng.integers(0, width * 3 // 4))
            image[0, :, y : y + height // 4, x : x + width // 4] += rng.normal(0, 1, (spec.input_channels, 1, 1))
        if spec.padding.validity_channel:
            image[0, -1] = 1
        found.append(np.ascontiguousarray(image, dtype=np.float32))
    return found


def _read(answer: Answers, spec: InstancesSpec) -> Instances:
    """Objects in the pixels of a frame that holds every box."""
    size = spec.padding.canvas
    if size is None:
        dets = np.asarray(answer["dets"]).reshape(-1, 5)
        far = float(np.nanmax(dets[:, :4], initial=0.0))
        side = max(32, min(int(np.ceil(far)) if np.isfinite(far) else 32, 4096))
        size = (side, side)
    return read_outputs(answer, InstanceGeometry(size, size, size), spec)


def _box_iou(first: FloatArray, second: FloatArray) -> float:
    sides = np.maximum(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0)
    shared = float(sides.prod())
    areas = float((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod())
    return shared / (areas - shared) if areas > shared else 0.0
