"""Run-length masks: every operation against the plain array; COCO's text against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from offline_infer.errors import UsageError
from offline_infer.tasks.instances.rle import expand, runs_of_coco, runs_of_crop, runs_of_mask

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(masks, st.randoms(use_true_random=False))
def test_runs_are_the_mask(mask: np.ndarray, random) -> None:
    runs = runs_of_mask(mask)
    np.testing.assert_array_equal(runs.mask(), mask)
    assert runs.area == mask.sum()
    crop, top, left = runs.crop()
    whole = np.zeros_like(mask)
    whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    np.testing.assert_array_equal(whole, mask)
    other = np.array([random.random() < 0.5 for _ in range(mask.size)]).reshape(mask.shape)
    assert runs.shared(runs_of_mask(other)) == (mask & other).sum()
    np.testing.assert_array_equal(runs_of_coco(runs.to_coco()).mask(), mask)


@given(masks)
def test_the_text_is_cocos(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert runs_of_mask(mask).to_coco() == {"size": list(mask.shape), "counts": theirs["counts"].decode()}


def test_large_counts_keep_their_bits() -> None:
    mask = np.zeros((4000, 3000), bool)
    mask[1000:3999, 5:2990] = True
    mask[7, 7] = True
    runs = runs_of_mask(mask)
    again = runs_of_coco(runs.to_coco())
    np.testing.assert_array_equal(again.starts, runs.starts)
    np.testing.assert_array_equal(again.ends, runs.ends)


def test_a_window_lies_where_it_is_put() -> None:
    crop = np.array([[True, False], [True, True]])
    expected = np.zeros((5, 6), bool)
    expected[2:4, 3:5] = crop
    np.testing.assert_array_equal(runs_of_crop(crop, 2, 3, 5, 6).mask(), expected)


@pytest.mark.parametrize(
    "record",
    [
        {"size": [4, 4], "counts": [3, 2]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [0, 4], "counts": []},
        {"size": [4, 4], "counts": "\x01"},
        {"size": [4, 4], "counts": "ooooooooo"},
        {"size": [4], "counts": "1"},
        {"size": [100000, 100000], "counts": [10_000_000_000]},
        {"size": [4, 4], "counts": "ö"},
        None,
    ],
)
def test_damage_is_refused(record) -> None:
    with pytest.raises(UsageError):
        runs_of_coco(record)


def test_no_text_is_no_counts() -> None:
    assert expand("").size == 0
