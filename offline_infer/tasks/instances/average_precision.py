"""Average precision of masks: as the Pascal VOC community computes it, and as COCO does.

The VOC rule follows Hariharan et al., Simultaneous Detection and Segmentation (2014): detections of a class over all images,
best first; each looks at the object of its class and image it overlaps most; it is right if that IoU reaches the threshold and
the object was not taken yet. COCO's figures come from its own tool.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.tasks.instances.references import Reference, coco_masks
from offline_infer.tasks.instances.result import Instances

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass
class _ClassTally:
    """All detections of one class: score, and per threshold whether it is right (1), wrong (0) or ignored (-1)."""

    objects: int = 0
    scores: list[float] = field(default_factory=list)
    hits: list[tuple[int, ...]] = field(default_factory=list)


class VocPrecision:
    """Collects images one by one.

    Args:
        classes: number of classes of the data set.
        thresholds: IoU from which a detection is right.
    """

    def __init__(self, classes: int, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        self.thresholds = tuple(thresholds)
        self._tallies = [_ClassTally() for _ in range(classes)]

    def add(self, found: Instances, labels: Sequence[int], reference: Reference) -> None:
        """Add an image.

        Args:
            found: predictions, best first.
            labels: their class numbers in the data set; -1 takes no part.
            reference: the objects.
        """
        for label, tally in enumerate(self._tallies):
            own = [index for index, value in enumerate(reference.labels) if value == label]
            tally.objects += sum(not reference.crowds[index] for index in own)
            predicted = [index for index, value in enumerate(labels) if value == label]
            taken: list[set[int]] = [set() for _ in self.thresholds]
            for index in predicted:
                mask = found.masks[index]
                ious = []
                for other in own:
                    shared = mask.shared(reference.masks[other])
                    ious.append(shared / max(mask.area + reference.masks[other].area - shared, 1))
                best = int(np.argmax(ious)) if ious else -1
                hits = []
                for threshold, used in zip(self.thresholds, taken, strict=True):
                    if best < 0 or ious[best] < threshold:
                        hits.append(0)
                    elif reference.crowds[own[best]]:
                        hits.append(-1)
                    else:
                        hits.append(0 if own[best] in used else 1)
                        used.add(own[best])
                tally.scores.append(float(found.scores[index]))
                tally.hits.append(tuple(hits))

    def figures(self, threshold: float, *, eleven_points: bool = False) -> tuple[float | None, list[float | None]]:
        """The mean over the classes that have objects, and each class's AP; None where a class has none."""
        position = self.thresholds.index(threshold)
        values = [_class_precision(tally, position, eleven_points) for tally in self._tallies]
        present = [value for value in values if value is not None]
        return (float(np.mean(present)) if present else None), values


def area_under(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> float:
    """Area under the curve after precision was made to fall monotonically."""
    heights = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    edges = np.concatenate([[0.0], recall, [1.0]])
    steps = np.flatnonzero(edges[1:] != edges[:-1])
    return float(np.sum((edges[steps + 1] - edges[steps]) * heights[steps + 1]))


def eleven_point_mean(precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> float:
    """Mean of the best precision at recalls of at least 0, 0.1, ..., 1 (VOC 2007)."""
    total = 0.0
    for level in np.arange(0.0, 1.1, 0.1):
        reached = precision[recall >= level]
        total += float(reached.max()) / 11 if reached.size else 0.0
    return total


def _class_precision(tally: _ClassTally, position: int, eleven_points: bool) -> float | None:
    if tally.objects == 0:
        return None
    if not tally.scores:
        return 0.0
    order = np.argsort(-np.array(tally.scores), kind="stable")
    hits = np.array([row[position] for row in tally.hits])[order]
    right, wrong = np.cumsum(hits == 1), np.cumsum(hits == 0)
    precision = np.divide(right, right + wrong, out=np.zeros(len(hits)), where=right + wrong > 0)
    recall = right / tally.objects
    return eleven_point_mean(precision, recall) if eleven_points else area_under(precision, recall)


class CocoPrecision:
    """Collects images one by one for COCO's own evaluation; keeps run-length masks only.

    Args:
        classes: names of the data set's classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        self._categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]

    def add(self, found: Instances, labels: Sequence[int], reference: Reference) -> None:
        """Add an image; see :meth:`VocPrecision.add`."""
        image = len(self._images) + 1
        self._images.append({"id": image, "height": reference.size[0], "width": reference.size[1]})
        for mask, label, crowd in zip(reference.masks, reference.labels, reference.crowds, strict=True):
            if label < 0:
                continue
            x0, y0, x1, y1 = mask.box()
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "iscrowd": int(crowd),
                    "area": mask.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": mask.to_coco(),
                }
            )
        for index, label in enumerate(labels):
            if label >= 0:
                self._results.append(
                    {
                        "image_id": image,
                        "category_id": label + 1,
                        "score": float(found.scores[index]),
                        "segmentation": found.masks[index].to_coco(),
                    }
                )

    def figures(self) -> dict[str, float | None]:
        """COCO's twelve figures for masks; None where COCO has none (it says -1).

        Raises:
            UsageError: pycocotools is not installed.
        """
        coco_masks()
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not self._results:
            return dict.fromkeys(COCO_NAMES, 0.0 if self._annotations else None)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {
                "info": {},
                "images": self._images,
                "annotations": self._annotations,
                "categories": self._categories,
            }
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(self._results), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = [float(value) for value in evaluation.stats]
        return {name: None if value < 0 else value for name, value in zip(COCO_NAMES, values, strict=True)}
