"""The verification record as sentences: what was measured, on which engine."""

from __future__ import annotations

from typing import Any

import pytest

from offline_infer.bundles.verification_record import comparisons, lines_of


def record(**inputs: Any) -> dict[str, Any]:
    return {"passed": True, "engines": [{"engine": "openvino", "version": "2026.4", "inputs": inputs}]}


def measured(flips: int, margin: float | None, difference: float) -> dict[str, Any]:
    return {"voxels": 1000, "flips": flips, "flip_margin": margin, "max_diff": difference, "logit_scale": 12.5}


def test_the_worst_of_all_inputs_is_told() -> None:
    (found,) = comparisons(record(normal=measured(0, None, 2e-5), anatomy=measured(3, 1.5e-5, 1e-5)))
    assert (found.max_diff, found.flips, found.voxels, found.flip_margin) == (2e-5, 3, 2000, 1.5e-5)
    assert lines_of(record(normal=measured(3, 1.5e-5, 2e-5))) == [
        "openvino 2026.4: max |difference| 2e-05 of logits up to 12.5, 3 of 1,000 labels changed (margin at most 1.5e-05)"
    ]
    assert lines_of(record(normal=measured(0, None, 2e-5))) == [
        "openvino 2026.4: max |difference| 2e-05 of logits up to 12.5, 0 of 1,000 labels changed"
    ]


def test_what_was_not_measured_is_not_claimed() -> None:
    assert lines_of(None) == ["not verified: exported without a comparison with the checkpoint's network"]
    assert lines_of({}) == ["a verification record without figures"]


@pytest.mark.parametrize(
    "foreign",
    [
        {"engines": 3},
        {"engines": [1, None]},
        {"engines": [{"inputs": []}]},
        {"engines": [{"inputs": {"a": 3}}]},
        {"engines": [{"inputs": {"a": {"flips": "many", "max_diff": None, "voxels": True}}}]},
    ],
)
def test_records_of_other_kinds_are_tolerated(foreign: dict[str, Any]) -> None:
    assert all(isinstance(line, str) for line in lines_of(foreign))


def test_what_a_model_says_in_its_own_words_is_shown() -> None:
    engine = {"engine": "openvino", "version": "1", "text": "12 objects, none replaced"}
    assert lines_of({"engines": [engine, {"engine": "b", "text": 5}, 7]}) == ["openvino 1: 12 objects, none replaced"]
