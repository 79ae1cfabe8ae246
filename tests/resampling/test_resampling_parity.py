"""Ten resampling situations recorded from nnU-Net v2 itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from offline_infer.arithmetic.labels import decide
from offline_infer.arithmetic.map_to_labels import MapToLabels
from offline_infer.resampling import lowres_axis, resample_image, resample_labels, resample_map
from offline_infer.spec import Aggregation, Labels, Resampling

pytestmark = pytest.mark.parity
SITUATIONS = [
    "iso_up",
    "iso_down",
    "sepz0",
    "sepz0_same_z",
    "sepz_from_new",
    "sepz1",
    "sepz2",
    "two_lowres",
    "ratio_exactly_3",
    "identity",
]


@pytest.fixture(scope="module")
def unit(goldens: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    folder = goldens / "v2" / "expected" / "unit"
    with np.load(folder / "unit.npz") as arrays:
        return json.loads((folder / "unit.json").read_text()), dict(arrays)


@pytest.mark.parametrize("name", SITUATIONS)
def test_recorded_situation(unit: tuple[dict[str, Any], dict[str, npt.NDArray[Any]]], name: str) -> None:
    situation, arrays = unit[0][name], unit[1]
    current, new, shape = situation["current_spacing"], situation["new_spacing"], situation["new_shape"]
    cubic, linear = Resampling(order=3), Resampling(order=1)

    axis = lowres_axis(current, new, cubic)
    assert axis == situation["axis"]

    image = resample_image(arrays["input"], shape, current, new, cubic)
    assert np.abs(image - arrays[f"resample_data_{name}"]).max() / arrays["input"].std() < 4e-6

    labels = resample_labels(arrays["labels_in"][0], shape, axis, linear, "argmax")
    assert np.array_equal(labels, arrays[f"resample_seg_{name}"][0])

    logits = resample_map(arrays["logits_in"], shape, axis, linear)
    assert np.array_equal(logits, arrays[f"resample_prob_{name}"])

    rules = Labels(names={}, channel_values=(0, 1, 2))
    aggregation = Aggregation(domain="logits", accumulate="float16")
    stream = MapToLabels(
        fine_shape=shape,
        coarse_shape=situation["old_shape"],
        axis=axis,
        rule=linear,
        labels=rules,
        aggregation=aggregation,
        framework_exact=True,
    )
    stream.push(arrays["logits_in"][:, :7])
    stream.push(arrays["logits_in"][:, 7:])
    assert np.array_equal(stream.finish()[0], decide(arrays[f"resample_prob_{name}"], rules, aggregation))
