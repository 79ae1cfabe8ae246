"""Drawn pictures as files, with annotations as COCO writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offline_infer.files import replacing, write_json
from offline_infer.images.decoding import pillow
from offline_infer.tasks.instances.demo.shapes import CLASSES, Scene, draw_scene
from offline_infer.tasks.instances.rle import runs_of_mask


def write_dataset(folder: Path, seeds: Sequence[int], annotations: str) -> None:
    """Write ``shapes_01.png``, ... and the annotation file; a picture that is there is not written again.

    Args:
        folder: is made where it does not exist.
        seeds: one a picture.
        annotations: name of the annotation file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds, start=1):
        scene, path = draw_scene(seed), folder / f"shapes_{number:02d}.png"
        if not path.exists():
            with replacing(path) as temporary:
                pillow().fromarray(scene.image).save(temporary, format="PNG")
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        objects += _annotations(scene, number, 1 + len(objects))
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    write_json(folder / annotations, {"images": images, "annotations": objects, "categories": categories}, indent=None)


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    found = []
    for offset, (mask, label) in enumerate(zip(scene.masks, scene.labels, strict=True)):
        runs = runs_of_mask(mask)
        x0, y0, x1, y1 = runs.box()
        found.append(
            {
                "id": first + offset,
                "image_id": image,
                "category_id": label + 1,
                "iscrowd": 0,
                "area": runs.area,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": runs.to_coco(),
            }
        )
    return found
