"""Label volumes from coarse maps: the short cuts must give what the full computation gives."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampling_reference import SHAPES, resample_channels, smooth

from offline_infer.arithmetic.labels import decide, probabilities
from offline_infer.arithmetic.map_to_labels import MapToLabels
from offline_infer.errors import GeometryError
from offline_infer.resampling import resample_map
from offline_infer.spec import Aggregation, Labels, Resampling

Shape = tuple[int, int, int]
Array = npt.NDArray[Any]
LINEAR = Resampling(order=1)
SINGLE = Aggregation(domain="logits")
HALF = Aggregation(domain="logits", accumulate="float16")


def classes(count: int) -> Labels:
    return Labels(names={}, channel_values=tuple(range(count)))


def stream(
    data: Array,
    new: Shape,
    axis: int | None,
    labels: Labels,
    aggregation: Aggregation,
    *,
    rule: Resampling = LINEAR,
    slab: int = 4,
    **options: Any,
) -> tuple[Array, Array | None]:
    """Push a map slab by slab through one buffer that is spoiled after every push."""
    decider = MapToLabels(
        fine_shape=new,
        coarse_shape=data.shape[1:],
        axis=axis,
        rule=rule,
        labels=labels,
        aggregation=aggregation,
        threads=2,
        **options,
    )
    buffer = np.empty((data.shape[0], slab, data.shape[2] + 3, data.shape[3] + 2), data.dtype)
    for first in range(0, data.shape[1], slab):
        part = data[:, first : first + slab]
        view = buffer[:, : part.shape[1], 1:-2, 1:-1]  # a slab is a view into a padded ring
        view[...] = part
        decider.push(view)
        buffer[...] = np.nan
    return decider.finish()


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize("count", [2, 3, 9])
def test_labels_are_those_of_the_framework(old: Shape, new: Shape, axis: int | None, count: int) -> None:
    fields = smooth(np.random.default_rng(count), count, old)
    for dtype, aggregation in ((np.float32, SINGLE), (np.float16, HALF)):
        data = fields.astype(dtype)
        expected = resample_channels(data, new, axis, 1, 0).argmax(axis=0)
        result, nothing = stream(data, new, axis, classes(count), aggregation, framework_exact=True)
        assert nothing is None
        assert result.dtype == np.uint8
        assert np.array_equal(result, expected)


@pytest.mark.parametrize("count", [5, 40, 300])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("new", "axis"), [((9, 28, 34), None), ((5, 20, 9), None), ((18, 14, 40), 0), ((18, 14, 40), 2)]
)
def test_leaving_out_classes_that_cannot_win_changes_nothing(
    new: Shape, axis: int | None, count: int, ties: bool
) -> None:
    data = smooth(np.random.default_rng(count), count, (9, 14, 17)).astype(np.float32)
    if ties:
        data = np.round(data)
    expected = decide(resample_map(data, new, axis, LINEAR), classes(count), SINGLE)
    assert np.array_equal(stream(data, new, axis, classes(count), SINGLE)[0], expected)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_shape_any_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = (tuple(int(n) for n in rng.integers(1, 9, 3)) for _ in range(2))
    count = int(rng.integers(1, 12))
    axis = [None, 0, 1, 2][rng.integers(4)]
    data = (rng.standard_normal((count, *old)) * 3).astype(np.float16)
    if rng.integers(2):
        data = np.round(data)
    regions = bool(rng.integers(2))
    labels = Labels(names={}, regions_class_order=tuple(range(1, count + 1))) if regions else classes(count)
    full = resample_channels(data, new, axis, 1, 0) if old != new else data
    expected = decide(full, labels, HALF)
    result, _ = stream(data, new, axis, labels, HALF, slab=int(rng.integers(1, 5)), framework_exact=True)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("domain", ["logits", "probabilities"])
@pytest.mark.parametrize("axis", [None, 1])
def test_regions_are_written_in_their_order(domain: str, axis: int | None) -> None:
    data = smooth(np.random.default_rng(5), 3, (8, 12, 11)).astype(np.float32)
    if domain == "probabilities":
        data = 1 / (1 + np.exp(-data))
    aggregation = Aggregation.model_validate({"domain": domain, "activation": "sigmoid"})
    labels = Labels(names={}, regions_class_order=(2, 1, 300))
    full = resample_channels(data, (13, 20, 12), axis, 1, 0)
    expected = np.zeros(full.shape[1:], int)
    for value, channel in zip((2, 1, 300), full, strict=True):
        expected[channel > (0 if domain == "logits" else 0.5)] = value
    result, _ = stream(data, (13, 20, 12), axis, labels, aggregation)
    assert result.dtype == np.uint16
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("aggregation", [SINGLE, HALF])
@pytest.mark.parametrize("rule", [LINEAR, Resampling(order=3), Resampling(order=1, order_z=1)])
def test_probabilities_come_with_the_same_labels(aggregation: Aggregation, rule: Resampling) -> None:
    data = smooth(np.random.default_rng(6), 4, (8, 12, 11)).astype(aggregation.accumulate)
    for axis in (None, 0):
        options: dict[str, Any] = {"rule": rule, "framework_exact": True}
        alone, _ = stream(data, (13, 20, 12), axis, classes(4), aggregation, **options)
        labels, maps = stream(data, (13, 20, 12), axis, classes(4), aggregation, keep_probabilities=True, **options)
        assert np.array_equal(alone, labels)
        assert maps is not None
        assert maps.dtype == np.float32
        expected = probabilities(resample_map(data, (13, 20, 12), axis, rule), aggregation)
        assert np.array_equal(maps, expected)


def test_without_a_proof_to_give_half_precision_is_not_used() -> None:
    data = smooth(np.random.default_rng(7), 2, (6, 10, 10)).astype(np.float32)
    data[1] = data[0] + 1e-5  # lost in half precision, where the first class wins
    assert stream(data, (9, 12, 13), None, classes(2), HALF)[0].all()
    rounded = data.astype(np.float16)
    for slabs in (rounded, rounded.astype(np.float32)):
        assert not stream(slabs, (9, 12, 13), None, classes(2), HALF, framework_exact=True)[0].all()


def test_equal_shapes_only_decide() -> None:
    data = smooth(np.random.default_rng(8), 6, (7, 8, 9)).astype(np.float32)
    assert np.array_equal(stream(data, (7, 8, 9), 0, classes(6), SINGLE)[0], data.argmax(axis=0))


def test_slabs_of_another_shape_or_number_are_refused() -> None:
    for keep in (False, True):
        decider = MapToLabels(
            fine_shape=(8, 5, 6),
            coarse_shape=(4, 5, 6),
            axis=None,
            rule=LINEAR,
            labels=classes(2),
            aggregation=SINGLE,
            keep_probabilities=keep,
        )
        with pytest.raises(GeometryError, match="expected"):
            decider.push(np.zeros((3, 1, 5, 6), np.float32))
        decider.push(np.zeros((2, 3, 5, 6), np.float32))
        with pytest.raises(GeometryError, match="only 3"):
            decider.finish()
        with pytest.raises(GeometryError, match="5 planes"):
            decider.push(np.zeros((2, 2, 5, 6), np.float32))


def test_size_of_slabs_and_number_of_threads_change_nothing() -> None:
    data = smooth(np.random.default_rng(9), 7, (50, 10, 12)).astype(np.float32)
    expected = decide(resample_map(data, (71, 15, 9), None, LINEAR), classes(7), SINGLE)
    for slab in (1, 7, 50):
        for keep in (False, True):
            result, _ = stream(data, (71, 15, 9), None, classes(7), SINGLE, slab=slab, keep_probabilities=keep)
            assert np.array_equal(result, expected)


def test_memory_does_not_grow_with_the_number_of_planes() -> None:
    slab = smooth(np.random.default_rng(10), 12, (8, 40, 40)).astype(np.float32)
    peaks = []
    for slabs in (4, 16):
        decider = MapToLabels(
            fine_shape=(slabs * 12, 70, 70),
            coarse_shape=(slabs * 8, 40, 40),
            axis=None,
            rule=LINEAR,
            labels=classes(12),
            aggregation=SINGLE,
            threads=1,
        )
        tracemalloc.start()
        for _ in range(slabs):
            decider.push(slab)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        decider.finish()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 12 * 12 * 70 * 70 * 4  # one fine slab of all classes
