"""Resizing, padding and tiling, and their undoing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_samples import image_spec, photo

from offline_infer.arithmetic.bilinear import resize_mask, resize_pixels, resize_soft, soft_bands
from offline_infer.arithmetic.normalization import normalization_table
from offline_infer.errors import GeometryError, UsageError
from offline_infer.spec import Pixels
from offline_infer.tasks.image.geometry import (
    ImageGeometry,
    TileMean,
    at_network_size,
    fit,
    tile_of,
    to_content,
    uncovered,
)
from offline_infer.tasks.image.network_input import normalize_into

side = st.integers(1, 70)


@given(side, side, side, side, st.integers(0, 5))
def test_pixels_are_resized_as_opencv_does(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_pixels(image, new_height, new_width), expected)


def test_pixels_keep_a_constant_image_and_stay_within_range() -> None:
    flat = np.full((13, 17, 3), 201, np.uint8)
    assert (resize_pixels(flat, 40, 5) == 201).all()
    image = photo(31, 45)
    resized = resize_pixels(image, 64, 20)
    assert resized.shape == (64, 20, 3)
    assert resized.min() >= image.min()
    assert resized.max() <= image.max()


def test_known_blend() -> None:
    row = np.array([[[0], [100]]], np.uint8)
    assert resize_pixels(row, 1, 4)[0, :, 0].tolist() == [0, 25, 75, 100]
    block = np.array([[[0], [1]], [[1], [1]]], np.uint8)
    assert resize_pixels(block, 1, 1)[0, 0, 0] == 1  # 0.75, rounded


def test_soft_masks_are_resized_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for shape, target in [((8, 12), (31, 7)), ((128, 128), (500, 701)), ((5, 1), (1, 9)), ((64, 64), (64, 64))]:
        soft = rng.random(shape, dtype=np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(soft)[None, None], size=target, mode="bilinear", align_corners=False
        )
        # torch rounds coordinates to float32.
        np.testing.assert_allclose(resize_soft(soft, *target), expected[0, 0].numpy(), atol=2e-5)


def test_bands_are_the_whole() -> None:
    soft = np.random.default_rng(2).random((9, 11), dtype=np.float32)
    bands = list(soft_bands(soft, 3000, 700))
    assert len(bands) > 1
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in bands]), resize_soft(soft, 3000, 700))


def test_nearest_takes_the_floor() -> None:
    mask = np.array([[True, False, True]])
    assert resize_mask(mask, 2, 6)[0].tolist() == [True, True, False, False, True, True]
    assert resize_mask(mask, 1, 2)[0].tolist() == [True, False]


def test_padding_holds_normalised_zeros() -> None:
    table = normalization_table(Pixels())
    batch = np.full((1, 3, 4, 5), np.nan, np.float32)
    normalize_into(batch, np.full((2, 3, 3), 255, np.uint8), table)
    np.testing.assert_allclose(batch[0, :, 3, 4], [-2.1179, -2.0357, -1.8044], atol=1e-4)
    np.testing.assert_allclose(batch[0, :, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)
    assert np.isfinite(batch).all()


def test_an_image_that_does_not_fit_is_never_cut_silently() -> None:
    spec = image_spec(geometry="pad")
    with pytest.raises(GeometryError, match=r"60 x 20 pixels.*48 x 32"):
        fit((20, 60), spec)
    with pytest.raises(UsageError, match="refuse, resize, tile, crop"):
        fit((20, 60), spec, "cut")
    assert fit((32, 48), spec).mode == "pad"
    assert fit((20, 60), spec, "resize").content == (16, 48)
    assert fit((100, 3), spec, "resize").content == (32, 1)
    assert fit((20, 60), spec, "crop").content == (20, 48)


def test_a_graph_of_any_size_pads_to_its_multiple() -> None:
    spec = image_spec(height=-1, width=-1, geometry="pad", multiple_of=32)
    geometry = fit((33, 64), spec)
    assert (geometry.network, geometry.content) == ((64, 64), (33, 64))


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["resize", "tile", "crop"]))
def test_every_geometry_survives_its_record(height: int, width: int, oversize: str) -> None:
    geometry = fit((height, width), image_spec(geometry="pad"), oversize)
    assert ImageGeometry.from_json(geometry.to_json()) == geometry


@given(st.integers(1, 150), st.integers(1, 150))
def test_tiles_cover_every_pixel_and_their_mean_gives_the_image_back(height: int, width: int) -> None:
    geometry = fit((height, width), image_spec(geometry="pad"), "tile")
    image = np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8)
    mean = TileMean(geometry) if geometry.mode == "tile" else None
    content = to_content(image, geometry)
    if mean is None:
        np.testing.assert_array_equal(tile_of(content, geometry, 0), image)
        return
    for group in range(len(geometry.tiles)):
        tile = tile_of(content, geometry, group)
        assert tile.shape[:2] == geometry.content
        mean.add(tile[:, :, 0].astype(np.float32), group)
    np.testing.assert_allclose(mean.finish(), image[:, :, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"mode": "cut"}, {"size": [0, 3]}, {"size": [1.5, 3]}, {"tiles": []}, {"tiles": [[-1, 0]]}, {"network": None}],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    record = {**fit((5, 6), image_spec()).to_json(), **change}
    with pytest.raises(GeometryError, match="damaged"):
        ImageGeometry.from_json(record)


def test_answers_smaller_than_the_input_are_stretched() -> None:
    geometry = fit((20, 30), image_spec(geometry="pad"))
    answer = np.full((16, 24), 0.25, np.float32)
    assert at_network_size(answer, geometry).shape == (32, 48)
    assert uncovered(at_network_size(answer, geometry), geometry).shape == (20, 30)
    with pytest.raises(GeometryError, match="more than the network's input"):
        at_network_size(np.zeros((64, 48), np.float32), geometry)
