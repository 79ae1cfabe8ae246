"""Connected-component clean-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from resampling_reference import smooth
from scipy import ndimage

from offline_infer.arithmetic.components import apply_component_rules, label_boxes
from offline_infer.spec import ComponentRule

Array = npt.NDArray[Any]


def plainly(labels: Array, rule: ComponentRule, volume: float) -> Array:
    """The same with SciPy, object by object."""
    result = labels.copy()
    mask = np.isin(result, rule.labels)
    structure = ndimage.generate_binary_structure(3, 1 if rule.connectivity == "face" else 3)
    numbers, count = ndimage.label(mask, structure)
    sizes = {n: int((numbers == n).sum()) for n in range(1, count + 1)}
    for n, size in sizes.items():
        small = rule.min_size_mm3 is None or size * volume < rule.min_size_mm3
        if size != max(sizes.values()) and small:
            result[numbers == n] = rule.background
    return result


@pytest.mark.parametrize("connectivity", ["face", "full"])
@pytest.mark.parametrize(("labels", "size"), [((1,), None), ((1, 3), None), ((2,), 12.0), ((0, 2), 1e9), ((9,), None)])
def test_random_objects(connectivity: str, labels: tuple[int, ...], size: float | None) -> None:
    volume = smooth(np.random.default_rng(1), 4, (18, 25, 30), sigma=1.0).argmax(axis=0).astype(np.uint8)
    rule = ComponentRule.model_validate({"labels": labels, "connectivity": connectivity, "min_size_mm3": size})
    before = volume.copy()
    result = apply_component_rules(volume, [rule], 1.7)
    assert result.dtype == volume.dtype
    assert np.array_equal(result, plainly(volume, rule, 1.7))
    assert np.array_equal(volume, before)
    if labels == (1,):
        assert (result != volume).any()


def test_all_of_several_equally_large_components_stay() -> None:
    labels = np.zeros((4, 4, 9), np.uint16)
    labels[0, 0, :3] = labels[3, 3, 4:7] = 500
    labels[2, 0, 8] = 500
    result = apply_component_rules(labels, [ComponentRule(labels=(500,), connectivity="face")], 1.0)
    assert (result == 500).sum() == 6
    assert result[2, 0, 8] == 0


def test_connectivity_decides_whether_a_corner_joins() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, :2] = 1
    labels[1, 1, 2] = 1
    face, full = (
        apply_component_rules(labels, [ComponentRule(labels=(1,), connectivity=c)], 1.0).sum() for c in ("face", "full")
    )
    assert (face, full) == (2, 3)


def test_rules_work_one_after_the_other_and_joint_labels_count_as_one() -> None:
    labels = np.zeros((1, 1, 12), np.uint8)
    labels[0, 0] = [1, 1, 2, 0, 2, 2, 2, 2, 0, 1, 1, 1]
    joint = ComponentRule(labels=(1, 2), connectivity="face")
    only_one = ComponentRule(labels=(1,), connectivity="face", background=7)
    assert apply_component_rules(labels, [joint], 1.0)[0, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0]
    assert apply_component_rules(labels, [only_one], 1.0)[0, 0].tolist() == [7, 7, 2, 0, 2, 2, 2, 2, 0, 1, 1, 1]
    assert apply_component_rules(labels, [joint, only_one], 1.0).max() == 2


def test_the_largest_component_stays_even_below_the_minimum_size() -> None:
    labels = np.array([[[1, 1, 0, 1, 0, 1, 1, 1]]], np.uint8)
    rule = ComponentRule(labels=(1,), connectivity="face", min_size_mm3=100.0)
    assert apply_component_rules(labels, [rule], 1.0)[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    rule = ComponentRule(labels=(1,), connectivity="face", min_size_mm3=2.0)
    assert apply_component_rules(labels, [rule], 1.0)[0, 0].tolist() == [1, 1, 0, 0, 0, 1, 1, 1]


def test_no_rules_and_no_such_label_give_a_copy() -> None:
    labels = np.zeros((2, 3, 4), np.uint8)
    for rules in ([], [ComponentRule(labels=(1,), connectivity="full")]):
        result = apply_component_rules(labels, rules, 1.0)
        assert np.array_equal(result, labels)
        assert result is not labels


@pytest.mark.parity
@pytest.mark.parametrize(
    ("raw", "done", "rules", "name"),
    [
        ("d_raw", "d", "d/postprocessing.json", "tiny"),
        *(
            (
                "d_validation/validation_raw",
                "d_validation/validation_raw_postprocessed",
                "d_validation/postprocessing.json",
                name,
            )
            for name in ("abd_004", "abd_007")
        ),
    ],
)
def test_recorded_postprocessing_of_nnunet_v1(goldens: Path, raw: str, done: str, rules: str, name: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    folder = goldens / "v1b" / "expected"
    entries = json.loads((folder / rules).read_text())["for_which_classes"]
    chosen = [ComponentRule(labels=tuple(e) if isinstance(e, list) else (e,), connectivity="face") for e in entries]
    before, after = (sitk.ReadImage(str(folder / side / f"{name}.nii.gz")) for side in (raw, done))
    labels = sitk.GetArrayFromImage(before)
    result = apply_component_rules(labels, chosen, float(np.prod(before.GetSpacing())))
    assert (result != labels).any()
    assert np.array_equal(result, sitk.GetArrayFromImage(after))


@pytest.mark.parametrize("seed", range(12))
def test_boxes_of_labels_are_those_scipy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 2 + seed % 2).tolist())
    labels = (rng.integers(0, 12, shape) * (rng.random(shape) < 0.2)).astype((np.uint8, np.uint16, np.int64)[seed % 3])
    found = ndimage.find_objects(labels.astype(np.int32))
    assert label_boxes(labels) == {value: box for value, box in enumerate(found, start=1) if box is not None}


def test_boxes_of_a_mask_and_of_nothing() -> None:
    assert label_boxes(np.eye(3, dtype=bool)[1:]) == {1: (slice(0, 2), slice(1, 3))}
    assert label_boxes(np.zeros((0, 2, 2), np.uint8)) == {}
    assert label_boxes(np.zeros((2, 2, 2), np.uint8)) == {}
