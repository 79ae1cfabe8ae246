"""Crop, shapes and the record that travels between stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from offline_infer.arithmetic.geometry import (
    CaseGeometry,
    ImageGeometry,
    bounding_box,
    fill_holes,
    nonzero_mask,
    resampled_shape,
)
from offline_infer.errors import GeometryError


def test_new_shape_rounds_half_to_even() -> None:
    assert resampled_shape((5, 7, 3), (1, 1, 1), (2, 2, 2)) == (2, 4, 2)


def test_vanishing_axis_is_an_error_that_names_spacing() -> None:
    with pytest.raises(GeometryError, match="spacing"):
        resampled_shape((1, 10, 10), (0.1, 1, 1), (5, 1, 1))


def test_mask_is_the_union_of_channels_with_holes_filled() -> None:
    image = np.zeros((2, 7, 7, 7), np.float32)
    image[0, 1:6, 1:6, 1:6] = 1
    image[0, 3, 3, 3] = 0
    image[1, 0, 0, 0] = 5
    mask = nonzero_mask(image)
    assert mask[3, 3, 3]
    assert mask[0, 0, 0]
    assert mask.sum() == 126
    assert bounding_box(mask) == ((0, 6), (0, 6), (0, 6))


def test_empty_image_keeps_its_whole_box() -> None:
    assert bounding_box(np.zeros((2, 3, 4), bool)) == ((0, 2), (0, 3), (0, 4))


def test_geometry_survives_json() -> None:
    frame = ImageGeometry((4, 5, 6), (2.0, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (1.0, 1.0, 2.0))
    case = CaseGeometry(frame, ((0, 4), (1, 5), (2, 6)), (6, 7, 8), (1.0, 1.0, 1.0), (2, 0, 1))
    again = CaseGeometry.from_json(json.loads(json.dumps(case.to_json())))
    assert again == case
    assert again.cropped_shape == (4, 4, 4)
    assert again.transpose_backward == (1, 2, 0)


@pytest.mark.parametrize("seed", range(40))
def test_holes_are_filled_as_scipy_fills_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 14, 3).tolist())) < (0.3, 0.5, 0.7, 0.85)[seed % 4]
    expected = ndimage.binary_fill_holes(mask)
    fill_holes(mask)
    np.testing.assert_array_equal(mask, expected)
