"""Label maps to another grid, by the rules of nnU-Net v1 and v2."""

from __future__ import annotations

import inspect

import numpy as np
import numpy.typing as npt
import pytest
from resampling_reference import SHAPES, along, labels_v1, labels_v2, smooth

from offline_infer.errors import GeometryError
from offline_infer.resampling import resample_labels
from offline_infer.spec import Resampling

Shape = tuple[int, int, int]
LINEAR = Resampling(order=1)


def label_map(kind: str, shape: Shape) -> npt.NDArray[np.int16]:
    rng = np.random.default_rng(11)
    if kind == "objects":
        return smooth(rng, 4, shape).argmax(axis=0).astype(np.int16)
    if kind == "noise":
        return rng.integers(0, 6, shape).astype(np.int16)
    return (-(smooth(rng, 1, shape)[0] > 0).astype(np.int16)).astype(np.int16)  # a mask as v1 stores it: 0 and -1


@pytest.mark.parametrize("kind", ["objects", "noise", "mask"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_both_rules_to_the_last_tie(old: Shape, new: Shape, axis: int | None, kind: str) -> None:
    labels = label_map(kind, old)
    before = labels.copy()
    highest = resample_labels(labels, new, axis, LINEAR, "higher_label", threads=2)
    largest = resample_labels(labels, new, axis, LINEAR, "argmax")
    assert highest.dtype == largest.dtype == labels.dtype
    assert np.array_equal(highest, labels_v1(labels, new, axis))
    assert np.array_equal(largest, labels_v2(labels, new, axis))
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("shape", [(9, 31, 7), (24, 20, 40), (12, 10, 55)])
def test_argmax_rule_is_that_of_batchgenerators(shape: Shape) -> None:
    utils = pytest.importorskip("batchgenerators.augmentations.utils")
    if "seg_tiebreak" not in inspect.signature(utils.resize_segmentation).parameters:
        pytest.skip("batchgenerators before 0.25.5 has the other rule")
    for kind in ("objects", "noise"):
        labels = label_map(kind, (12, 10, 20))
        for order in (0, 1, 3):
            expected = utils.resize_segmentation(labels, shape, order)
            differing = resample_labels(labels, shape, None, Resampling(order=order), "argmax") != expected
            assert differing.mean() <= (0 if order < 2 else 1e-4)  # splines add up in another order


def test_v1_leaves_zero_where_no_label_reaches_one_half() -> None:
    labels = np.array([[[1, 2], [3, 4]]], np.uint8)
    assert (resample_labels(labels, (1, 1, 1), None, LINEAR, "higher_label") == 0).all()
    assert (resample_labels(labels, (1, 1, 1), None, LINEAR, "argmax") != 0).all()


def test_v1_gives_ties_to_the_higher_label() -> None:
    labels = np.array([[[1, 3]]], np.uint8)
    assert resample_labels(labels, (1, 1, 1), None, LINEAR, "higher_label").item() == 3


@pytest.mark.parametrize("order_z", [1, 3])
def test_interpolation_along_the_axis_treated_apart(order_z: int) -> None:
    labels = label_map("objects", (6, 12, 10))
    rule = Resampling(order=1, order_z=order_z)
    result = resample_labels(labels, (16, 20, 10), 0, rule, "argmax")
    between = labels_v2(labels, (6, 20, 10), 0)
    expected = np.zeros_like(result)
    for value in np.unique(between):
        score = along((between == value).astype(float), 0, 16, order_z)
        expected[np.round(score) > 0.5] = value
    assert (result != expected).mean() < 1e-3


def test_many_labels_and_wide_integers() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 40000, (5, 6, 7)).astype(np.int32)
    assert np.array_equal(
        resample_labels(labels, (9, 11, 6), None, LINEAR, "argmax"), labels_v2(labels, (9, 11, 6), None)
    )


def test_equal_shapes_are_returned_untouched_and_floats_are_refused() -> None:
    labels = label_map("objects", (4, 5, 6))
    assert resample_labels(labels, (4, 5, 6), 0, LINEAR, "argmax") is labels
    with pytest.raises(GeometryError, match="integers"):
        resample_labels(labels.astype(np.float32), (4, 5, 7), None, LINEAR, "argmax")  # type: ignore[type-var]
