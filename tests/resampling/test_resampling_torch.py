"""The resampling functions that nnU-Net v2 plans may name instead of the default one, against torch itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from resampling_reference import SHAPES, smooth

from offline_infer.resampling import lowres_axis, resample_image, resample_labels, resample_map
from offline_infer.spec import Resampling

torch = pytest.importorskip("torch")
Shape = tuple[int, int, int]
Array = npt.NDArray[Any]
SPACINGS = {None: (1.0, 1.0, 1.0), 0: (9.0, 1.0, 1.0), 1: (1.0, 9.0, 1.0), 2: (1.0, 1.0, 9.0)}


def interpolate(data: Array, shape: Shape, axis: int | None) -> Array:
    """(c, z, y, x): linear, or linear in plane and then nearest-exact along ``axis``."""

    def run(values: Array, size: tuple[int, ...], mode: str) -> Array:
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
        return np.asarray(torch.nn.functional.interpolate(tensor, size, mode=mode)[0].numpy())

    if axis is None:
        return run(data, shape, "trilinear")
    slices = np.moveaxis(data, axis + 1, 1)
    rest = tuple(n for i, n in enumerate(shape) if i != axis)
    flat = run(slices.reshape(-1, *slices.shape[2:]), rest, "bilinear").reshape(*slices.shape[:2], *rest)
    return run(np.moveaxis(flat, 1, axis + 1), shape, "nearest-exact")


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [*SHAPES, ((30, 200, 20), (37, 333, 20))])
def test_images_and_maps(old: Shape, new: Shape, axis: int | None) -> None:
    data = np.random.default_rng(1).standard_normal((2, *old)).astype(np.float32)
    rule = Resampling(function="torch_separate_z" if axis is not None else "torch")
    expected = interpolate(data, new, axis)
    assert lowres_axis(SPACINGS[axis], (1, 1, 1), rule) == axis
    assert np.abs(resample_image(data, new, SPACINGS[axis], (1, 1, 1), rule) - expected).max() < 2e-5
    half = data.astype(np.float16)
    result = resample_map(half, new, axis, rule)
    assert result.dtype == np.float32  # torch computes in single precision and nnU-Net keeps that
    assert np.abs(result - interpolate(half, new, axis)).max() < 2e-5


@pytest.mark.parametrize("frugal", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize(
    ("old", "new"), [((12, 30, 26), (16, 53, 39)), ((6, 20, 20), (12, 40, 40)), ((9, 21, 15), (3, 40, 15))]
)
def test_labels(old: Shape, new: Shape, axis: int | None, frugal: bool) -> None:
    labels = smooth(np.random.default_rng(2), 4, old).argmax(axis=0).astype(np.int16)
    values = np.unique(labels)
    scores = interpolate(np.stack([labels == value for value in values]), new, None) if axis is None else None
    if scores is None:
        assert axis is not None
        in_plane = tuple(old[i] if i == axis else new[i] for i in range(3))
        scores = interpolate(np.stack([labels == value for value in values]), in_plane, axis)
    if frugal:
        expected = np.zeros(scores.shape[1:], labels.dtype)
        for value, score in zip(values, scores, strict=True):
            expected[score > 0.5] = value
    else:
        expected = values[(scores * 1000).astype(np.float16).argmax(axis=0)]
    if axis is not None:
        expected = interpolate(expected[None].astype(np.float32), new, axis)[0].astype(labels.dtype)
    rule = Resampling(function="torch", memory_efficient_labels=frugal)
    # An exact tie can fall either way with the last bit of torch's own float32 sums.
    assert (resample_labels(labels, new, axis, rule, "argmax") != expected).mean() < 5e-3
