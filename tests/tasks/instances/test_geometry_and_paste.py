"""Sizes, boxes back in the image, and masks pasted inside their boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instance_samples import make_spec
from torch.nn import functional

from offline_infer.errors import EngineFailed, GeometryError, UsageError
from offline_infer.tasks.instances.geometry import InstanceGeometry, fit, geometry_from_json, scaled_size
from offline_infer.tasks.instances.network_input import network_input
from offline_infer.tasks.instances.paste import paste
from offline_infer.tasks.instances.result import read_outputs
from offline_infer.tasks.instances.spec import MaskRule, Padding, Scaling


@pytest.mark.parametrize(
    ("size", "scaled", "network"),
    [
        ((480, 640), (800, 1067), (800, 1088)),
        ((33, 47), (800, 1139), (800, 1152)),
        ((3000, 500), (1333, 222), (1344, 224)),
    ],
)
def test_the_published_resize_rule(size, scaled, network) -> None:
    geometry = fit(size, make_spec(scaling=Scaling(long_side=1333, short_side=800)))
    assert (geometry.scaled, geometry.network) == (scaled, network)
    assert geometry.scale[0] == np.float32(scaled[1]) / np.float32(size[1])


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["corner", "centre"]))
def test_boxes_come_back_and_records_survive(height: int, width: int, place: str) -> None:
    spec = make_spec(padding=Padding(divisor=32, place=place), scale_limit=1000)
    try:
        geometry = fit((height, width), spec)
    except GeometryError:
        assert min(height, width) * 1000 < 2 * max(height, width) or min(height, width) < 20
        return
    y, x = geometry.offset
    whole = np.array([[x, y, x + geometry.scaled[1], y + geometry.scaled[0]]], np.float32)
    np.testing.assert_allclose(geometry.to_image(whole), [[0, 0, width, height]], rtol=1e-5, atol=1e-3)
    assert geometry_from_json(geometry.to_json()) == geometry


def test_an_image_that_exceeds_a_canvas_is_refused_by_name() -> None:
    with pytest.raises(GeometryError, match="240 x 320"):
        fit((640, 480), make_spec(padding=Padding(canvas=(256, 320))))


@pytest.mark.parametrize("damage", [{"size": [0, 4]}, {"size": "x"}, {"scaled": [999, 999]}, {"offset": [1.5, 0]}])
def test_a_damaged_record_is_refused(damage) -> None:
    record = InstanceGeometry((10, 10), (20, 20), (32, 32)).to_json()
    with pytest.raises(UsageError, match="preprocess"):
        geometry_from_json({**record, **damage})


def test_the_input_is_normalised_inside_and_zero_outside() -> None:
    spec = make_spec(scaling=Scaling())
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    found = network_input(image, fit((20, 40), spec), spec)
    assert found.shape == (1, 4, 32, 64)
    expected = (image.astype(np.float64) - spec.pixels.mean) / spec.pixels.std
    np.testing.assert_allclose(found[0, :3, :20, :40], expected.transpose(2, 0, 1), atol=1e-6)
    assert not found[0, :, 20:].any()
    assert found[0, 3].sum() == 800


def grid_sampled(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole image sampled from the mask, as torch does it."""
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=2)[None].float()
    sampled = functional.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)
    return sampled[0, 0].numpy()


@given(st.integers(0, 10_000))
def test_pasting_is_grid_sampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(5, 70, 2))
    mask = rng.random((14, 14), dtype=np.float32)
    corner = rng.uniform(-20, 60, 2)
    box = np.concatenate([corner, corner + rng.uniform(0.3, 80, 2)]).astype(np.float32)
    found = paste(mask, box, InstanceGeometry((height, width), (height, width), (height, width)), MaskRule()).mask()
    expected = grid_sampled(mask, box, height, width)
    wrong = found != (expected >= 0.5)
    assert np.abs(expected[wrong] - 0.5).max(initial=0) < 1e-5


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 5, 5, 9], [np.nan, 0, 1, 1], [50, 50, 60, 60], [0, 0, np.inf, 5]])
def test_boxes_without_place_give_empty_masks(box) -> None:
    geometry = InstanceGeometry((20, 20), (20, 20), (20, 20))
    for rule in (MaskRule(), MaskRule(paste="integer_box")):
        assert paste(np.ones((28, 28), np.float32), np.array(box, np.float32), geometry, rule).area == 0


def test_a_mask_over_the_input_is_cut_to_its_box() -> None:
    geometry = InstanceGeometry((20, 40), (40, 80), (64, 96))
    rule = MaskRule(frame="input", activation="none")
    found = paste(np.ones((16, 24), np.float32), np.array([3.2, 4, 9, 8.5], np.float32), geometry, rule)
    assert found.box() == (3, 4, 9, 9)
    assert found.area == 30


def outputs(**changes) -> dict[str, np.ndarray]:
    dets = np.zeros((10, 5), np.float32)
    dets[:3] = [[0, 0, 20, 20, 0.3], [4, 4, 30, 30, 0.9], [1, 1, 5, 5, 0.01]]
    given = {"dets": dets, "labels": np.array([1, 2, 9] + [0] * 7), "masks": np.full((10, 28, 28), 4, np.float32)}
    return {**given, **changes}


def test_rows_below_the_floor_are_left_out_and_the_best_comes_first() -> None:
    spec = make_spec()
    found = read_outputs(outputs(), fit((240, 320), spec), spec)
    assert found.scores.tolist() == [np.float32(0.9), np.float32(0.3)]
    assert found.labels.tolist() == [2, 1]
    assert len(found.above(0.3)) == 1  # strictly above


@pytest.mark.parametrize("name", ["dets", "labels", "masks"])
def test_what_no_model_answers_is_refused(name: str) -> None:
    spec = make_spec()
    geometry = fit((240, 320), spec)
    good = outputs()
    wrong = {
        "dets": [
            good["dets"][:, :4],
            *(
                np.where(good["dets"] == np.float32(old), np.float32(new), good["dets"])
                for old, new in ((0.9, np.nan), (0.9, np.inf), (30, np.nan), (30, np.inf), (30, 3e38))
            ),
        ],
        "labels": [
            good["labels"][:5],
            good["labels"] + 2,
            good["labels"] - 2,
            good["labels"] + 0.5,
            good["labels"] * np.nan,
        ],
        "masks": [
            good["masks"][0],
            np.full_like(good["masks"], np.nan),
            good["masks"][:, :0],
            good["masks"].astype(str),
        ],
    }[name]
    for array in wrong:
        with pytest.raises(EngineFailed):
            read_outputs(outputs(**{name: array}), geometry, spec)
    del good[name]
    with pytest.raises(EngineFailed, match=name):
        read_outputs(good, geometry, spec)


def test_a_mask_over_whole_pixels_is_not_stretched_without_bound() -> None:
    spec = make_spec()
    spec = spec.model_copy(update={"mask": MaskRule(paste="integer_box")})
    geometry = fit((240, 320), spec)
    dets = outputs()["dets"]
    dets[1, :4] = [-9e5, -9e5, 9e5, 9e5]
    with pytest.raises(EngineFailed, match="more than twice as large"):
        read_outputs(outputs(dets=dets), geometry, spec)
    dets[1, :4] = [500, 500, 600, 600]  # outside the image
    assert read_outputs(outputs(dets=dets), geometry, spec).masks[0].area == 0


def test_an_image_fits_a_canvas_that_is_not_square_however_it_lies() -> None:
    scaling = Scaling(inside=(160, 192))
    assert scaled_size((160, 192), scaling) == (160, 192)
    assert scaled_size((300, 200), scaling) == (160, 107)
    assert scaled_size((100, 400), scaling) == (48, 192)
    with pytest.raises(ValueError, match="not both"):
        Scaling(inside=(160, 192), long_side=5, short_side=5)
