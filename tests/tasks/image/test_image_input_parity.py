"""What the network sees, against what IMDL-BenCo's own dataset classes gave it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from photo_samples import image_spec

from offline_infer.arithmetic.bilinear import resize_mask
from offline_infer.arithmetic.normalization import normalization_table
from offline_infer.images.decoding import read_image, read_mask
from offline_infer.tasks.image.geometry import fit, tile_of, to_content
from offline_infer.tasks.image.network_input import normalize_into
from offline_infer.tasks.image.spec import ImageSpec, MaskOutput

pytestmark = pytest.mark.parity
RUNS = [("setA", "resize", "128"), ("setA", "pad", "256"), ("listA", "resize", "128"), ("setA", "resize", "128_edge7")]
Run = tuple[Path, ImageSpec, list[dict[str, Any]], Path]


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}_{run[1]}{run[2]}")
def run(request: pytest.FixtureRequest, goldens: Path) -> Run:
    name, mode, edge = request.param
    folder = goldens / "images" / "expected" / "inputs" / f"{name}_{mode}{edge}"
    items = json.loads((folder / "index.json").read_text())["items"]
    pixels = int(edge.partition("_")[0])
    spec = image_spec(height=pixels, width=pixels, geometry=mode, mask=MaskOutput(name="mask"))
    return folder, spec, items, goldens / "images" / "data"


def digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_inputs_are_equal_to_the_bit(run: Run) -> None:
    folder, spec, items, data = run
    table = normalization_table(spec.pixels)
    seen = np.load(folder / "pixels.npz")
    for item in items:
        image = read_image(data / item["image_path"], spec.pixels)
        assert list(image.shape[:2]) == item["origin_shape"], item["name"]
        geometry = fit(image.shape[:2], spec, "crop")
        content = tile_of(to_content(image, geometry), geometry, 0)
        padded = np.zeros((spec.height, spec.width, 3), np.uint8)
        padded[: content.shape[0], : content.shape[1]] = content
        np.testing.assert_array_equal(padded.transpose(2, 0, 1), seen[f"{item['name']}|image"], item["name"])
        assert digest(padded.transpose(2, 0, 1)) == item["sha256"]["image_uint8_chw"], item["name"]
        batch = np.full(spec.input_shape, np.nan, np.float32)
        normalize_into(batch, content, table)
        assert digest(batch[0]) == item["sha256"]["image_float32_chw"], item["name"]


def test_masks_are_equal(run: Run) -> None:
    _, spec, items, data = run
    for item in items:
        if item["mask_path"] == "Negative":
            continue
        mask = read_mask(data / item["mask_path"])
        edge = spec.height
        if spec.geometry == "resize":
            placed = resize_mask(mask, edge, edge)
        else:
            placed = np.zeros((edge, edge), bool)
            cut = mask[:edge, :edge]
            placed[: cut.shape[0], : cut.shape[1]] = cut
        assert int(placed.sum()) == item["positives"], item["name"]
        assert digest(placed.astype(np.uint8)[None]) == item["sha256"]["mask_uint8_chw"], item["name"]
