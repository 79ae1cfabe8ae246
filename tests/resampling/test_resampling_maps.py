"""Maps of logits back to the image's grid: whole, slab by slab, and the dtype nnU-Net rounds to."""

from __future__ import annotations

import numpy as np
import pytest
from resampling_reference import SHAPES, resample_channels, smooth

from offline_infer.errors import GeometryError
from offline_infer.resampling import SlabResampler, resample_map
from offline_infer.resampling.maps import PlaneWindow
from offline_infer.resampling.operators import Axis
from offline_infer.spec import Resampling

Shape = tuple[int, int, int]
LINEAR = Resampling(order=1)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_half_precision_maps_are_bit_equal(old: Shape, new: Shape, axis: int | None) -> None:
    data = smooth(np.random.default_rng(1), 3, old).astype(np.float16)
    result = resample_map(data, new, axis, LINEAR)
    assert result.dtype == np.float16
    assert np.array_equal(result, resample_channels(data, new, axis, 1, 0))


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_single_precision_maps_agree_to_the_last_bit_or_two(old: Shape, new: Shape, axis: int | None) -> None:
    data = smooth(np.random.default_rng(2), 2, old).astype(np.float32)
    result = resample_map(data, new, axis, LINEAR)
    expected = resample_channels(data, new, axis, 1, 0)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 2e-6
    assert (result != expected).mean() < 1e-2  # sums in another order, where a float64 lies just between two values


@pytest.mark.parametrize(("order", "order_z"), [(0, 0), (1, 1), (3, 0), (2, 3)])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_other_orders(order: int, order_z: int, axis: int | None) -> None:
    data = smooth(np.random.default_rng(3), 2, (9, 14, 11)).astype(np.float32)
    result = resample_map(data, (17, 10, 23), axis, Resampling(order=order, order_z=order_z))
    assert np.abs(result - resample_channels(data, (17, 10, 23), axis, order, order_z)).max() < 2e-6


@pytest.mark.parametrize("slab", [1, 3, 5, 64])
@pytest.mark.parametrize("rule", [LINEAR, Resampling(order=1, order_z=1), Resampling(order=3)])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(
    ("old", "new"), [((13, 9, 11), (31, 8, 12)), ((13, 9, 11), (4, 9, 20)), ((1, 9, 9), (6, 9, 9))]
)
def test_slabs_give_the_same_as_the_whole(
    old: Shape, new: Shape, axis: int | None, rule: Resampling, slab: int
) -> None:
    data = smooth(np.random.default_rng(4), 3, old).astype(np.float32)
    whole = resample_map(data, new, axis, rule)
    stream = SlabResampler(3, old, new, axis, rule)
    buffer = np.empty((3, slab, *old[1:]), np.float32)
    pieces = []
    done = 0
    for first in range(0, old[0], slab):
        part = data[:, first : first + slab]
        buffer[:, : part.shape[1]] = part
        for start, planes in stream.push(buffer[:, : part.shape[1]]):
            assert start == done
            pieces.append(planes.copy())
            done += planes.shape[1]
        buffer[...] = np.nan  # the caller reuses its memory
    for start, planes in stream.finish():
        assert start == done
        pieces.append(planes)
        done += planes.shape[1]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_a_stream_holds_on_to_a_few_planes_only() -> None:
    window = PlaneWindow(Axis(200, 330, "spline", 1).taps())
    for _ in range(20):
        window.push(np.zeros((2, 10, 3, 3), np.float32))
        assert len(window._kept) <= 2


def test_pairs_cover_every_fine_plane_once_and_in_order() -> None:
    for n_in, n_out, order in ((7, 31, 1), (31, 7, 1), (5, 22, 0), (22, 5, 0), (1, 4, 1), (4, 1, 1), (6, 6, 1)):
        taps = Axis(n_in, n_out, "spline", order).taps()
        window = PlaneWindow(taps)
        values = np.arange(n_in, dtype=float).reshape(1, n_in, 1, 1)
        pairs = [pair for i in range(n_in) for pair in window.push(values[:, i : i + 1])]
        assert [i for pair in pairs for i in range(pair.start, pair.stop)] == list(range(n_out))
        for pair in pairs:
            assert (pair.lower.item(), pair.upper.item()) == (taps.low[pair.start], taps.high[pair.start])


def test_equal_shapes_pass_through() -> None:
    data = smooth(np.random.default_rng(5), 2, (4, 5, 6)).astype(np.float16)
    assert resample_map(data, (4, 5, 6), 0, LINEAR) is data
    (piece,) = list(SlabResampler(2, (4, 5, 6), (4, 5, 6), None, LINEAR, np.float16).push(data))
    assert np.array_equal(piece[1], data)


def test_wrong_slabs_are_refused() -> None:
    stream = SlabResampler(2, (4, 5, 6), (8, 5, 6), None, LINEAR)
    with pytest.raises(GeometryError, match=r"expected \(2, any, 5, 6\)"):
        stream.push(np.zeros((3, 1, 5, 6), np.float32))
    list(stream.push(np.zeros((2, 3, 5, 6), np.float32)))
    with pytest.raises(GeometryError, match="only 3 of the map's 4"):
        list(stream.finish())
    with pytest.raises(GeometryError, match="5 planes were given for a map of 4"):
        stream.push(np.zeros((2, 2, 5, 6), np.float32))
