"""Image resampling against scikit-image and SciPy."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from resampling_reference import SHAPES, resample_channels
from threadpoolctl import threadpool_info

from offline_infer.errors import GeometryError
from offline_infer.resampling import resample_image
from offline_infer.resampling.blas import single_threaded_blas
from offline_infer.spec import Resampling

Shape = tuple[int, int, int]
SPACINGS = {None: (1.0, 1.0, 1.0), 0: (9.0, 1.0, 1.0), 1: (1.0, 9.0, 1.0), 2: (1.0, 1.0, 9.0)}


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_cubic_resampling_is_nnunets(old: Shape, new: Shape, axis: int | None) -> None:
    data = np.random.default_rng(1).standard_normal((2, *old)).astype(np.float32)
    result = resample_image(data, new, SPACINGS[axis], (1, 1, 1), Resampling())
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert np.abs(result - resample_channels(data, new, axis, 3, 0)).max() < 3e-6


@pytest.mark.parametrize(("order", "order_z"), [(0, 0), (1, 0), (2, 1), (3, 3), (4, 2), (5, 5)])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_every_order(order: int, order_z: int, axis: int | None) -> None:
    data = np.random.default_rng(2).standard_normal((1, 11, 17, 13)).astype(np.float32)
    rule = Resampling(order=order, order_z=order_z)
    result = resample_image(data, (7, 30, 19), SPACINGS[axis], (1, 1, 1), rule)
    assert np.abs(result - resample_channels(data, (7, 30, 19), axis, order, order_z)).max() < 4e-6


@pytest.mark.parametrize("new", [(70, 50, 45), (20, 45, 50), (20, 12, 90), (90, 12, 10)])
def test_volumes_larger_than_a_block_and_either_order_of_axes(new: Shape) -> None:
    data = np.random.default_rng(3).standard_normal((1, 60, 40, 50)).astype(np.float32)
    result = resample_image(data, new, (1, 1, 1), (1, 1, 1), Resampling(), threads=2)
    assert np.abs(result - resample_channels(data, new, None, 3, 0)).max() < 3e-6


def test_hounsfield_units_keep_their_accuracy() -> None:
    # nnU-Net v1 resamples before it normalises.
    rng = np.random.default_rng(4)
    data = (rng.standard_normal((1, 30, 40, 40)) * 300).clip(-1024, 3071).astype(np.float32)
    data[0, 10:14, 10:14, 10:14] = 3071
    data[0, :, :5] = -1024
    result = resample_image(data, (45, 41, 43), (1, 1, 1), (1, 1, 1), Resampling())
    assert np.abs(result - resample_channels(data, (45, 41, 43), None, 3, 0)).max() / 80 < 3e-5


def test_result_stays_within_the_range_of_its_volume_or_slice() -> None:
    data = np.zeros((1, 8, 16, 16), np.float32)
    data[0, :, 4:12, 4:12] = 1
    data[0, 3] *= 5
    whole = resample_image(data, (8, 40, 40), (1, 1, 1), (1, 1, 1), Resampling())
    assert whole.min() == 0
    assert whole.max() <= 5
    assert whole[0, 5].max() > 1.01  # limited by the volume, a plain slice may overshoot its own range
    apart = resample_image(data, (8, 40, 40), (9, 1, 1), (1, 1, 1), Resampling())
    assert apart[0, 5].max() == 1


def test_equal_shapes_are_returned_untouched() -> None:
    data = np.random.default_rng(5).standard_normal((1, 4, 5, 6)).astype(np.float32)
    assert resample_image(data, (4, 5, 6), (9, 1, 1), (1, 1, 1), Resampling()) is data


def test_views_in_any_memory_order_are_accepted_and_not_changed() -> None:
    source = np.random.default_rng(6).standard_normal((14, 12, 10, 1)).astype(np.float32)
    before = source.copy()
    view = source.transpose(3, 2, 1, 0)[:, ::-1, 1:]
    for spacing in SPACINGS.values():
        copy = resample_image(np.ascontiguousarray(view), (15, 7, 20), spacing, (1, 1, 1), Resampling())
        assert np.array_equal(resample_image(view, (15, 7, 20), spacing, (1, 1, 1), Resampling()), copy)
    assert np.array_equal(source, before)


def test_number_of_threads_does_not_change_the_numbers() -> None:
    data = np.random.default_rng(7).standard_normal((2, 30, 31, 32)).astype(np.float32)
    for spacing in ((1, 1, 1), (9, 1, 1)):
        one, many = (resample_image(data, (41, 33, 60), spacing, (1, 1, 1), Resampling(), threads=n) for n in (1, 5))
        assert np.array_equal(one, many)


def test_a_rule_without_resampling_refuses_to_resample() -> None:
    data = np.zeros((1, 4, 5, 6), np.float32)
    rule = Resampling(function="none")
    assert resample_image(data, (4, 5, 6), (1, 1, 1), (1, 1, 1), rule) is data
    with pytest.raises(GeometryError, match="forbid"):
        resample_image(data, (4, 5, 7), (1, 1, 1), (1, 1, 1), rule)


def test_blas_threads_are_restored_after_concurrent_use() -> None:
    def blas_threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with single_threaded_blas():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with single_threaded_blas():
        other.start()
        assert inside.wait(10)
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {1}  # the other one is still inside
    leave.set()
    other.join()
    assert blas_threads() == before
