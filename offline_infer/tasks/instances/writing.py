"""The files of one image's result.

``<case>.json`` holds everything: boxes, scores, classes and run-length masks as in COCO's result files. Beside it lie the
label images, and on request one mask per object and an overlay.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import UsageError
from offline_infer.files import read_json, write_json
from offline_infer.tasks.instances.palette import label_images, write_labels, write_mask, write_overlay
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import check_size, runs_of_coco

FORMAT = "offline_infer instances 1"
_LARGEST_JSON = 1 << 28


def record_of(found: Instances, case_id: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """A result as plain data; ``category_id`` counts the model's classes from 1."""
    return {
        "format": FORMAT,
        "image": case_id,
        "height": found.size[0],
        "width": found.size[1],
        "classes": list(classes),
        "detections": [
            {
                "score": float(found.scores[index]),
                "label": int(found.labels[index]),
                "category_id": int(found.labels[index]) + 1,
                "category": classes[int(found.labels[index])],
                "bbox": [float(value) for value in found.boxes[index]],
                "area": found.masks[index].area,
                "segmentation": found.masks[index].to_coco(),
            }
            for index in range(len(found))
        ],
    }


def read_record(path: Path) -> tuple[Instances, tuple[str, ...]]:
    """Read a result file back: what was found, and the model's classes.

    Raises:
        UsageError: missing, damaged or something else; the message names the file.
    """
    try:
        record = read_json(path, largest=_LARGEST_JSON)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    try:
        if record["format"] != FORMAT:
            raise UsageError(f"{path}: its format is {record['format']!r}, expected {FORMAT!r}")
        size = (int(record["height"]), int(record["width"]))
        check_size(*size)
        classes = tuple(str(name) for name in record["classes"])
        rows = record["detections"]
        masks = tuple(runs_of_coco(row["segmentation"]) for row in rows)
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(len(rows), 4)
        scores = np.array([row["score"] for row in rows], np.float32)
        labels = np.array([row["label"] for row in rows], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is not a result of an instance model: {error!r:.300}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise UsageError(f"{path}: a score or a box is NaN or infinite")
    if labels.size and (labels.min() < 0 or labels.max() >= len(classes)):
        raise UsageError(f"{path}: a label lies outside the {len(classes)} classes")
    for mask in masks:
        if (mask.height, mask.width) != size:
            raise UsageError(f"{path}: a mask has {mask.width} x {mask.height} pixels, the image {size[1]} x {size[0]}")
    order = np.argsort(-scores, kind="stable")
    chosen = tuple(masks[index] for index in order)
    return Instances(size, boxes[order], scores[order], labels[order], chosen), classes


def write_result(
    found: Instances,
    folder: Path,
    case_id: str,
    classes: tuple[str, ...],
    *,
    score: float,
    masks: bool = False,
    overlay_image: Any = None,
) -> Path:
    """Write a result's files, the JSON last.

    Args:
        found: everything the model answered; the JSON holds all of it.
        score: pictures show objects with a score above this.
        masks: also write one binary mask per shown object.
        overlay_image: (y, x, 3) RGB to draw an overlay on, or None.

    Returns:
        The JSON file.
    """
    shown = found.above(score)
    objects, kinds = label_images(shown)
    write_labels(folder / f"{case_id}_objects.png", objects)
    write_labels(folder / f"{case_id}_classes.png", kinds)
    if masks:
        for index in range(len(shown)):
            name = mask_name(case_id, index, classes[int(shown.labels[index])])
            write_mask(folder / "masks" / name, shown.masks[index].mask())
    if overlay_image is not None:
        write_overlay(folder / f"{case_id}_overlay.png", overlay_image, shown)
    main = folder / f"{case_id}.json"
    write_json(main, record_of(found, case_id, classes), indent=None)
    return main


def result_files(folder: Path, case_id: str, *, overlay: bool) -> list[Path]:
    """Files that exist when a case is done, the JSON first."""
    endings = [".json", "_objects.png", "_classes.png", *(["_overlay.png"] if overlay else [])]
    return [folder / f"{case_id}{ending}" for ending in endings]


def mask_name(case_id: str, index: int, category: str) -> str:
    """File name of one object's mask."""
    return f"{case_id}_object{index:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', category)}.png"
