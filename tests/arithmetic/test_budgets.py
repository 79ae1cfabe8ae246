"""Cases that are too large to be meant are refused by arithmetic alone."""

from __future__ import annotations

import pytest

from offline_infer.arithmetic.budgets import check_tiles, check_voxels
from offline_infer.arithmetic.geometry import resampled_shape
from offline_infer.arithmetic.sliding_window import lay_tiles
from offline_infer.errors import GeometryError


@pytest.mark.parametrize("spacing", [1e30, 1e308, 1e5, 2e4, 1e-320, 1e-30])
def test_absurd_spacing(spacing: float) -> None:
    with pytest.raises(GeometryError, match="is the spacing in its header right"):
        resampled_shape((100, 512, 512), (spacing, spacing, spacing), (0.8, 0.8, 0.8))


@pytest.mark.parametrize("target", [1e-320, 1e-30, 1e30, 1e308])
def test_absurd_spacing_of_the_model(target: float) -> None:
    with pytest.raises(GeometryError, match="is the spacing in its header right"):
        resampled_shape((100, 512, 512), (1.0, 1.0, 1.0), (target, target, target))


def test_large_scans_are_not_refused() -> None:
    assert resampled_shape((2000, 512, 512), (1.0, 0.9, 0.9), (0.5, 0.8, 0.8)) == (4000, 576, 576)
    assert len(lay_tiles((2000, 1024, 1024), (96, 96, 96), 0.25)) == 129_600


@pytest.mark.parametrize("step", [1e-9, 1e-300])
def test_a_tiny_step(step: float) -> None:
    with pytest.raises(GeometryError, match="step size"):
        lay_tiles((200, 512, 512), (64, 64, 64), step)


@pytest.mark.parametrize("count", [2**21, 10**400])
def test_messages_of_absurd_numbers_are_short(count: int) -> None:
    with pytest.raises(GeometryError) as tiles:
        check_tiles(count)
    with pytest.raises(GeometryError) as voxels:
        check_voxels((count, 1, 1), "the image", "repair it")
    assert max(len(str(error.value)) for error in (tiles, voxels)) < 500
