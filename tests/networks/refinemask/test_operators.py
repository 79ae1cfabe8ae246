"""RoIAlign, suppression and the boundary, against slow definitions of their own."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage

from offline_infer.networks.refinemask.boxes import decode
from offline_infer.networks.refinemask.operators import keep_best, roi_align, top
from offline_infer.networks.refinemask.refinement import boundary_of


def slow_roi_align(features: np.ndarray, box: np.ndarray, scale: float, size: int) -> np.ndarray:
    """The definition, one sample at a time."""
    channels, height, width = features.shape
    x0, y0, x1, y1 = box * scale - 0.5
    bin_x, bin_y = (x1 - x0) / size, (y1 - y0) / size
    nx, ny = math.ceil(bin_x), math.ceil(bin_y)
    out = np.zeros((channels, size, size))
    for i in range(size):
        for j in range(size):
            for a in range(ny):
                for b in range(nx):
                    y, x = y0 + (i + (a + 0.5) / ny) * bin_y, x0 + (j + (b + 0.5) / nx) * bin_x
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = max(y, 0), max(x, 0)
                    top_row, left = min(int(y), height - 1), min(int(x), width - 1)
                    below, right = min(top_row + 1, height - 1), min(left + 1, width - 1)
                    dy, dx = (y - top_row if below > top_row else 0), (x - left if right > left else 0)
                    out[:, i, j] += (
                        features[:, top_row, left] * (1 - dy) * (1 - dx)
                        + features[:, top_row, right] * (1 - dy) * dx
                        + features[:, below, left] * dy * (1 - dx)
                        + features[:, below, right] * dy * dx
                    ) / (nx * ny)
    return out


def test_roi_align_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 9, 13))
    boxes = np.array([[3.0, 2, 40, 30], [0, 0, 52, 36], [10.2, 5.1, 11.7, 20], [45, 30, 80, 60], [-20, -9, 5, 5]])
    found = roi_align(torch.from_numpy(features)[None], torch.from_numpy(boxes), 0.25, 3).numpy()
    for box, own in zip(boxes, found, strict=True):
        np.testing.assert_allclose(own, slow_roi_align(features, box, 0.25, 3), rtol=0, atol=1e-6)


def test_a_box_without_area_gives_zeros() -> None:
    boxes = torch.tensor([[4.0, 4, 4, 20], [5, 5, 5, 5], [4, 8, 20, 8]])
    assert not roi_align(torch.ones(1, 3, 8, 8), boxes, 0.25, 7).any()


def test_suppression_is_greedy_by_score_and_separate_for_every_class() -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 40, (2, 60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (2, 60, 2))], axis=2).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 60)).astype(np.float32)
    expected = []
    for k in range(2):
        alive: list[int] = []
        for index in np.argsort(-scores[k], kind="stable"):
            if scores[k, index] <= 0.2:
                continue
            a = boxes[k, index]
            for other in alive:
                b = boxes[k, other]
                sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
                shared = sides.prod()
                if shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared) > 0.4:
                    break
            else:
                alive.append(int(index))
        expected += [[k, index] for index in alive[:7]]
    found = keep_best(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4, 0.2, 7)
    assert found.tolist() == expected


def test_boxes_without_area_are_neither_dropped_nor_drop_others() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 9], [5, 5, 5, 9], [0, 0, 10, 10]]])
    assert keep_best(boxes, torch.tensor([[0.9, 0.8, 0.7]]), 0.5, 0.05, 10)[:, 1].tolist() == [0, 1, 2]


def test_equal_scores_stay_in_order() -> None:
    values, indices = top(torch.tensor([1.0, 3, 3, 2, 3]), 4)
    assert indices.tolist() == [1, 2, 4, 3]
    assert values.tolist() == [3, 3, 3, 2]


def test_the_boundary_is_what_dilation_adds_and_erosion_takes() -> None:
    mask = np.random.default_rng(2).random((1, 1, 20, 20)) > 0.3
    mask[0, 0, 5:15, 5:15] = True
    square = np.ones((3, 3), bool)
    expected = ndimage.binary_dilation(mask[0, 0], square) ^ ndimage.binary_erosion(mask[0, 0], square, border_value=0)
    found = boundary_of(torch.from_numpy(mask.astype(np.float32)))[0, 0].numpy() > 0
    np.testing.assert_array_equal(found, expected)


def test_deltas_are_limited_both_ways_and_boxes_clipped() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 50]])
    unmoved = decode(boxes, torch.zeros(1, 4), torch.tensor([100.0, 100]))
    torch.testing.assert_close(unmoved, boxes)
    huge = decode(boxes, torch.tensor([[0.0, 0, 99, -99]]), torch.tensor([100.0, 80]))
    assert huge[0, 0] == 0
    assert huge[0, 2] == 100
    torch.testing.assert_close(huge[0, 3] - huge[0, 1], torch.tensor(40 * 0.016))
