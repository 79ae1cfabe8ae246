"""Which axis nnU-Net treats apart, and the operators of an axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from offline_infer.errors import GeometryError
from offline_infer.resampling import lowres_axis
from offline_infer.resampling.operators import Axis
from offline_infer.resampling.steps import resampling_steps
from offline_infer.spec import Resampling
from offline_infer.threads import worker_count


@pytest.mark.parametrize(
    ("current", "new", "axis"),
    [
        ((3, 3, 3), (2.2, 1.7, 2.0), None),
        ((5, 1, 1), (3, 1.3, 0.8), 0),
        ((1, 4, 1), (1.2, 3, 0.9), 1),
        ((1, 1, 6), (1.2, 1.1, 4), 2),
        ((3, 1, 1), (2.5, 1.1, 0.9), None),  # a ratio of exactly the threshold does not separate
        ((2, 2, 2), (7, 2.1, 1.9), 0),  # only the new spacing is anisotropic
        ((0.5, 2, 2), (0.6, 2.2, 1.8), None),  # two axes share the maximum
        ((0.5, 2, 2), (9, 1, 1), None),  # the current spacing decides, even if it decides for nothing
        ((5, 1, 1), (1, 1, 9), 0),
    ],
)
def test_axis_is_chosen_by_the_current_spacing_then_by_the_new_one(
    current: tuple[float, ...], new: tuple[float, ...], axis: int | None
) -> None:
    assert lowres_axis(current, new, Resampling()) == axis


def test_force_separate_z_overrules_the_ratio_but_not_a_shared_maximum() -> None:
    never, always = Resampling(force_separate_z=False), Resampling(force_separate_z=True)
    assert lowres_axis((9, 1, 1), (1, 1, 1), never) is None
    assert lowres_axis((1.1, 1, 1), (1, 1, 9), always) == 0
    assert lowres_axis((1, 1, 1), (9, 1, 1), always) is None
    assert lowres_axis((1.1, 1.1, 1), (1, 1, 1), always) is None


def test_threshold_is_the_plans_own() -> None:
    assert lowres_axis((2.5, 1, 1), (1, 1, 1), Resampling(anisotropy_threshold=2)) == 0
    assert lowres_axis((5, 1, 1), (1, 1, 1), Resampling(anisotropy_threshold=6)) is None


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 4), (2, 7), (5, 3), (30, 53), (130, 40), (40, 130), (7, 1)])
def test_dense_taps_and_banded_are_the_same_operator(order: int, n_in: int, n_out: int) -> None:
    axis = Axis(n_in, n_out, "spline", order)
    signal = np.random.default_rng(order).standard_normal(n_in)
    expected = ndimage.zoom(signal, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    assert np.allclose(axis.dense() @ signal, expected, rtol=0, atol=1e-12)
    banded = np.empty((1, n_out))
    axis.banded(np.float64).along_last(signal[None], banded)
    assert np.allclose(banded[0], expected, rtol=0, atol=1e-12)
    rows = np.empty((n_out, 1))
    axis.banded(np.float64).along_rows(signal[:, None], rows)
    assert np.allclose(rows[:, 0], expected, rtol=0, atol=1e-12)
    if order <= 1:
        taps = axis.taps()
        assert np.array_equal(sum(signal[index] * weight for index, weight in taps.sides()), expected)


def test_bands_leave_most_of_a_spline_matrix_out() -> None:
    axis = Axis(512, 520, "spline", 3)
    assert axis.banded(np.float32).cost < 60
    dropped = axis.dense().copy()
    for block in axis.banded(np.float32).blocks:
        dropped[block.out, block.taken] = 0
    assert np.abs(dropped).sum(axis=1).max() < 1e-8


@pytest.mark.parametrize(
    ("old", "new", "axis", "rule", "word"),
    [
        ((3, 3), (3, 3, 3), None, Resampling(), "three sizes"),
        ((3, 3, 3), (3, 0, 3), None, Resampling(), "at least one voxel"),
        ((3, 3, 3), (4, 4, 4), 3, Resampling(), "0, 1, 2 or None"),
        ((3, 3, 3), (4, 4, 4), None, Resampling(function="none"), "forbid"),
        ((3, 3, 3), (4, 4, 4), 0, Resampling(function="torch", mode="bicubic"), "nearest-exact"),
    ],
)
def test_impossible_requests_are_refused_with_a_reason(
    old: tuple[int, ...], new: tuple[int, ...], axis: int | None, rule: Resampling, word: str
) -> None:
    with pytest.raises(GeometryError, match=word):
        resampling_steps(old, new, axis, rule)


def test_zero_and_none_threads_mean_all_cores() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) == worker_count(None) >= 1
