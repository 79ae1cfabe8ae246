"""Small pictures, datasets and specifications for tests of image models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from offline_infer.spec import FoldSource, Source
from offline_infer.tasks.image.spec import ImageSpec, MaskOutput

Bytes = npt.NDArray[np.uint8]


def image_spec(**fields: Any) -> ImageSpec:
    """A consistent specification: 32 x 48, resized, one output called ``mask``."""
    source = Source(
        framework="torch",
        trainer="none",
        plans_name="none",
        dataset="none",
        configuration="none",
        network="Tiny",
        folds=(FoldSource(fold="0", checkpoint="model.pth", sha256="0" * 64),),
    )
    chosen = {"height": 32, "width": 48, "mask": MaskOutput(name="mask"), "source": source, **fields}
    return ImageSpec(**chosen)


def photo(height: int, width: int, seed: int = 0) -> Bytes:
    """A smooth picture with a bright disc: (y, x, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = 90 + 40 * np.sin(x / (5 + seed % 3)) + 30 * np.cos(y / 7)
    inside = disc(height, width, seed)
    picture = np.stack([base, base * 0.8 + 10, base * 0.6 + 30], axis=2) + rng.normal(0, 3, (height, width, 3))
    picture[inside] = 230
    return np.clip(picture, 0, 255).astype(np.uint8)


def disc(height: int, width: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Where :func:`photo` is bright: (y, x) bool."""
    y, x = np.mgrid[0:height, 0:width]
    centre = (height * (0.35 + 0.05 * (seed % 5)), width * (0.6 - 0.05 * (seed % 4)))
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (min(height, width) / 4) ** 2
    return np.asarray(inside)


def save(path: Path, pixels: npt.NDArray[Any], **options: Any) -> Path:
    """Write an array as an image file; the format is the ending's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_pairs(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """A folder with ``Tp`` and ``Gt``: ``p0.png``, ``p1.png``, ..."""
    for number, (height, width) in enumerate(sizes):
        save(folder / "Tp" / f"p{number}.png", photo(height, width, number))
        save(folder / "Gt" / f"p{number}.png", disc(height, width, number).astype(np.uint8) * 255)
    return folder


def write_list(path: Path, entries: list[tuple[str, str]]) -> Path:
    path.write_text(json.dumps([list(entry) for entry in entries]))
    return path
