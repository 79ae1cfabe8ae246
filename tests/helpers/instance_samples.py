"""Made-up specifications, results and Pascal VOC trees for the tests of instance models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offline_infer.spec import FoldSource, Pixels, Source
from offline_infer.tasks.instances.palette import voc_palette
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.rle import runs_of_mask
from offline_infer.tasks.instances.spec import InstancesSpec, Padding, Scaling


def make_spec(**fields: Any) -> InstancesSpec:
    """A specification like RefineMask's, with three classes; ``fields`` replace its own."""
    fold = FoldSource(fold="0", checkpoint="model.pth", sha256="0" * 64)
    given: dict[str, Any] = {
        "source": Source(
            framework="mmdetection",
            trainer="t",
            plans_name="p",
            dataset="d",
            configuration="r50",
            network="n",
            folds=(fold,),
        ),
        "pixels": Pixels(
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
            scale=1.0,
            exif="applied",
            sixteen_bit="high_byte",
        ),
        "scaling": Scaling(long_side=320, short_side=240),
        "padding": Padding(divisor=32, validity_channel=True),
        "classes": ("person", "dog", "car"),
        "limit": 10,
        "mask_size": 28,
    }
    return InstancesSpec(**{**given, **fields})


def make_found(masks: Sequence[np.ndarray], scores: Sequence[float], labels: Sequence[int] | None = None) -> Instances:
    """A result from whole masks."""
    runs = tuple(runs_of_mask(np.asarray(mask, bool)) for mask in masks)
    boxes = np.array([one.box() for one in runs], np.float32).reshape(len(runs), 4)
    size = masks[0].shape if len(masks) else (10, 10)
    kinds = np.array([0] * len(runs) if labels is None else labels, np.int64)
    return Instances((int(size[0]), int(size[1])), boxes, np.array(scores, np.float32), kinds, runs)


def write_voc_tree(root: Path, images: Mapping[str, tuple[np.ndarray, np.ndarray]], *, palette: bool = True) -> Path:
    """A Pascal VOC tree: name -> object numbers and class numbers, both (y, x) uint8."""
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, (objects, classes) in images.items():
        Image.fromarray(np.zeros((*objects.shape, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        for folder, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
            picture = Image.fromarray(values.astype(np.uint8))
            picture.putpalette(voc_palette().ravel().tolist())
            (picture if palette else picture.convert("RGB")).save(root / folder / f"{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(images) + "\n")
    return root


def box_mask(size: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    """A filled rectangle."""
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask
