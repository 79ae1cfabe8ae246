"""Lesion-wise detection: components matched by overlap, one to one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from offline_infer.errors import UsageError
from offline_infer.proof.evaluation.label_maps import evaluate
from offline_infer.proof.evaluation.lesions import LesionOptions, lesion_rates, lesion_records, match_lesions
from offline_infer.proof.evaluation.options import EvaluationOptions


def boxes(*places: tuple[int, int], size: int = 60) -> np.ndarray:
    """A mask (1, 4, size) with a run of voxels per (first, length)."""
    mask = np.zeros((1, 4, size), bool)
    for first, length in places:
        mask[0, 1:3, first : first + length] = True
    return mask


def test_found_missed_and_invented() -> None:
    reference = boxes((0, 6), (10, 6), (20, 2))
    prediction = boxes((1, 6), (12, 20 - 12 + 2), (40, 3))
    record = match_lesions(prediction, reference, 0.001, iou=0.1)
    # The second predicted lesion covers 4 of 6 voxels (x 2 rows) of one lesion and the whole of another: it matches once.
    assert [record[key] for key in ("reference", "prediction", "found", "missed", "invented")] == [3, 3, 2, 1, 1]
    assert record["matches"][0]["iou"] == pytest.approx(5 / 7)
    assert record["missed_lesions"] == [{"ml": 0.004, "centroid": [0.0, 1.5, 20.5]}]
    assert record["invented_lesions"] == [{"ml": 0.006, "centroid": [0.0, 1.5, 41.0]}]


def test_the_threshold_and_the_smallest_size() -> None:
    reference, prediction = boxes((0, 10)), boxes((5, 10), (30, 1))
    assert match_lesions(prediction, reference, 1.0, iou=0.3)["found"] == 1
    assert match_lesions(prediction, reference, 1.0, iou=1 / 3)["found"] == 0  # must exceed it
    assert match_lesions(prediction, reference, 1.0, min_ml=3.0)["invented"] == 0
    empty = np.zeros_like(reference)
    assert match_lesions(empty, empty, 1.0)["reference"] == 0
    assert match_lesions(empty, reference, 1.0)["missed"] == 1
    assert lesion_rates(0, 0, 0) == {"sensitivity": None, "precision": None, "F1": None}
    assert lesion_rates(2, 1, 1)["F1"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("seed", range(4))
def test_the_sum_of_iou_is_the_largest_possible(seed: int) -> None:
    """Against all one-to-one assignments, on runs of voxels that overlap in chains."""
    rng = np.random.default_rng(seed)

    def runs() -> list[tuple[int, int]]:
        places, start = [], int(rng.integers(0, 4))
        while start < 44:
            length = int(rng.integers(2, 9))
            places.append((start, length))
            start += length + int(rng.integers(1, 3))
        return places

    ours, theirs = runs(), runs()
    record = match_lesions(boxes(*ours), boxes(*theirs), 1.0, iou=0.0)

    def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
        inside = max(0, min(a[0] + a[1], b[0] + b[1]) - max(a[0], b[0]))
        return inside / (a[1] + b[1] - inside)

    few, many = sorted((ours, theirs), key=len)
    orders = itertools.permutations(many, len(few))
    best = max(sum(overlap(a, b) for a, b in zip(few, order, strict=True)) for order in orders)
    assert sum(match["iou"] for match in record["matches"]) == pytest.approx(best, abs=1e-5)


def test_diagonal_voxels_are_one_lesion_and_ignored_voxels_none() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 2
    assert lesion_records(labels, labels, (1, 1, 1), [1, 2], LesionOptions())[2]["reference"] == 1
    reference = labels.copy()
    reference[1, 1, 1] = 9
    found = lesion_records(labels, reference, (1, 1, 1), [2], LesionOptions(), ignore=9)[2]
    assert (found["found"], found["invented"]) == (1, 0)
    only = lesion_records(labels, labels, (1, 1, 1), [1, (1, 2)], LesionOptions(labels=((1, 2),)))
    assert list(only) == [(1, 2)]


def test_an_evaluation_records_lesions_and_volumes(tmp_path: Path) -> None:
    for side, places in (("pred", [(0, 6), (30, 2)]), ("ref", [(0, 6), (20, 4)])):
        (tmp_path / side).mkdir()
        image = sitk.GetImageFromArray(boxes(*places).astype(np.uint8))
        image.SetSpacing((1, 2, 5))
        sitk.WriteImage(image, str(tmp_path / side / "a.nii.gz"))
    (tmp_path / "pred" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    output = tmp_path / "out" / "summary.json"
    evaluate(tmp_path / "pred", tmp_path / "ref", EvaluationOptions(lesions=LesionOptions()), output=output)
    details = json.loads((tmp_path / "out" / "summary.details.json").read_text())
    assert details["labels"] == [{"label": "1", "name": "tumour"}]
    (case,) = details["cases"]
    assert case["labels"]["1"]["prediction_ml"] == pytest.approx(16 * 10 / 1000)
    assert case["labels"]["1"]["reference_ml"] == pytest.approx(20 * 10 / 1000)
    total = details["lesions"]["total"]["1"]
    assert (total["found"], total["missed"], total["invented"]) == (1, 1, 1)
    assert total["F1"] == pytest.approx(0.5)


@pytest.mark.parametrize("options", [LesionOptions(iou=1.0), LesionOptions(min_ml=float("inf"))])
def test_wrong_options(options: LesionOptions) -> None:
    with pytest.raises(UsageError):
        options.check()
