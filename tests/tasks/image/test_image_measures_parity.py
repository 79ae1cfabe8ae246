"""Measures against those recorded from IMDL-BenCo and from an independent implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.tasks.image.evaluation.image_measures import image_measures
from offline_infer.tasks.image.evaluation.pixel_measures import pixel_measures
from offline_infer.tasks.image.evaluation.upstream import upstream_image_measures, upstream_pixel_measures

pytestmark = pytest.mark.parity

FIELDS = [f"{name}{mode}" for name in ("F1", "IOU", "Accuracy", "AUC") for mode in ("", "_reverse", "_double")]


@pytest.fixture(scope="module")
def vectors(goldens: Path) -> tuple[dict[str, Any], Any]:
    folder = goldens / "images" / "expected" / "vectors"
    return json.loads((folder / "vectors.json").read_text()), np.load(folder / "pixel_vectors.npz")


def test_pixel_vectors(vectors: tuple[dict[str, Any], Any]) -> None:
    told, arrays = vectors
    for name, right in told["pixel_right"].items():
        soft, mask = arrays[f"{name}|predict"], arrays[f"{name}|mask"] > 0
        key = f"{name}|shape_mask"
        inside = arrays[key] > 0 if key in arrays.files else None
        values = pixel_measures(soft, mask, inside=inside).values
        for field in FIELDS:
            assert values[field] == (right[field] if right[field] is None else pytest.approx(right[field], abs=1e-9)), (
                name,
                field,
            )
        for tail in (False, True):
            ours = upstream_pixel_measures(soft, mask, inside, in_tail=tail)
            for key, expected in told["pixel_upstream"][name].items():
                measure, mode, call = key.split("|")
                if (call == "tail") != tail:
                    continue
                if measure == "AUC" and right["distinct"] < right["pixels"]:
                    continue  # equal values: the original's figure depends on how an unstable sort leaves them
                value = ours[measure if mode == "origin" else f"{measure}_{mode}"]
                if expected is None:
                    assert np.isnan(value), (name, key)
                else:
                    assert value == pytest.approx(expected, abs=2e-6 if measure == "AUC" else 1e-9), (name, key)


def test_image_vectors(vectors: tuple[dict[str, Any], Any]) -> None:
    for name, case in vectors[0]["image"].items():
        labels = [bool(label) for label in case["labels"]]
        values = image_measures(case["scores"], labels)
        for field in ("F1", "Accuracy", "AUC"):
            expected = case["right"][field]
            assert values[field] == (expected if expected is None else pytest.approx(expected, abs=1e-9)), (name, field)
        for column, shape in ((False, "(B,)"), (True, "(B,1)")):
            ours = upstream_image_measures(case["scores"], labels, column_scores=column)
            for field in ("F1", "Accuracy"):
                expected = case["upstream"][f"{field}|{shape}"]
                assert ours[field] == pytest.approx(expected, abs=1e-7), (name, field, shape)
