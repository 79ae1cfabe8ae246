"""Pixel and image measures on small arrays whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline_infer.errors import GeometryError, UsageError
from offline_infer.tasks.image.evaluation.distribution import Pool, auc, auc_error, best_f1, binned, of_floats
from offline_infer.tasks.image.evaluation.image_measures import image_measures
from offline_infer.tasks.image.evaluation.pixel_measures import border_ignored, eroded, pixel_measures
from offline_infer.tasks.image.evaluation.protocols import get_protocol
from offline_infer.tasks.image.evaluation.upstream import tail_start, upstream_image_measures, upstream_pixel_measures

P = np.array([[0.9, 0.8, 0.4], [0.5, 0.2, 0.1], [0.6, 0.3, 0.05]], np.float32)
M = np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
CORNER = np.zeros((3, 3), bool)
CORNER[:2, :2] = True


def test_a_known_mask() -> None:
    values = pixel_measures(P, M).values
    expected = {"F1": 2 / 3, "IOU": 0.5, "Accuracy": 7 / 9, "AUC": 8 / 9}
    expected |= {"F1_reverse": 2 / 9, "IOU_reverse": 1 / 7, "Accuracy_reverse": 2 / 9, "AUC_reverse": 1 / 9}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name
    assert values["F1_double"] == values["F1"]
    assert values["F1_best"] == pytest.approx(4 / 5)


def test_only_what_lies_inside_counts() -> None:
    values = pixel_measures(P, M, inside=CORNER).values
    assert [values[name] for name in ("F1", "IOU", "Accuracy", "AUC")] == [1, 1, 1, 1]


def test_what_is_undefined_is_none_and_never_zero() -> None:
    nothing = pixel_measures(P, np.zeros_like(M))
    assert nothing.values["F1"] is nothing.values["IOU"] is nothing.values["AUC"] is nothing.values["F1_best"] is None
    assert nothing.values["Accuracy"] == pytest.approx(6 / 9)
    everything = pixel_measures(P, np.ones_like(M))
    assert everything.values["AUC"] is None
    assert everything.values["F1"] == pytest.approx(0.5)


def test_a_constant_mask_has_area_one_half() -> None:
    assert pixel_measures(np.full((3, 3), 0.7, np.float32), M).values["AUC"] == 0.5


def test_bytes_decide_as_their_fractions() -> None:
    soft = np.array([[127, 128]], np.uint8)
    reference = np.array([[False, True]])
    assert pixel_measures(soft, reference).values["F1"] == 1
    assert pixel_measures(soft, reference).halves == 0


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(GeometryError, match="3 x 3 pixels and its reference 2 x 3"):
        pixel_measures(P, M[:, :2])
    with pytest.raises(GeometryError, match="outside 0 to 1"):
        pixel_measures(P * 2, M)
    with pytest.raises(GeometryError, match="outside 0 to 1"):
        pixel_measures(P * np.float32(np.nan), M)


@given(st.integers(0, 1000), st.sampled_from([2, 11, 1000]))
def test_the_area_is_scikit_learns(seed: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    reference = rng.random(60) < 0.3
    soft = (rng.integers(0, levels, 60) / levels).astype(np.float32)
    if reference.all() or not reference.any():
        return
    assert auc(of_floats(soft, reference)) == pytest.approx(metrics.roc_auc_score(reference, soft), abs=1e-12)


@given(st.integers(0, 1000))
def test_a_pool_of_bins_keeps_its_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.random((4, 50)) < 0.4
    soft = rng.beta(0.3, 0.3, (4, 50)).astype(np.float32)
    exact = auc(of_floats(soft, reference))
    pool = Pool(bins=16)
    for row, truth in zip(soft, reference, strict=True):
        pool.add(row, truth)
    pooled = pool.distribution()
    assert exact is not None
    value = auc(pooled)
    assert value is not None
    assert not pooled.exact
    assert abs(value - exact) <= auc_error(pooled) + 1e-12
    assert auc(binned(soft, reference, 16)) == pytest.approx(value)


def test_a_pool_of_bytes_is_exact() -> None:
    rng = np.random.default_rng(0)
    soft, reference = rng.integers(0, 256, 500, dtype=np.uint8), rng.random(500) < 0.5
    pool = Pool()
    pool.add(soft[:100], reference[:100])
    pool.add(soft[100:], reference[100:])
    table = pool.distribution()
    assert table.exact
    assert auc_error(table) == 0
    assert auc(table) == pytest.approx(auc(of_floats(soft.astype(np.float32) / 255, reference)))


@given(st.integers(0, 500))
def test_the_best_threshold_is_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    soft, reference = (rng.integers(0, 9, 30) / 8).astype(np.float32), rng.random(30) < 0.5
    found = best_f1(of_floats(soft, reference))
    if not reference.any():
        assert found is None
        return
    tried = [pixel_measures(soft, reference, threshold=float(t)).values["F1"] for t in {0.0, *soft.tolist()}]
    assert found is not None
    assert found[0] == pytest.approx(max(value for value in tried if value is not None))


def test_borders_are_left_out() -> None:
    reference = np.zeros((40, 40), bool)
    reference[10:30, 10:30] = True
    counted = border_ignored(reference, 15, 11)
    assert counted[20, 20]
    assert counted[0, 0]
    assert not counted[10, 20]
    assert not counted[6, 20]
    assert (get_protocol("trufor").border, get_protocol("benco").border) == ((15, 11), None)
    with pytest.raises(UsageError, match="benco, trufor"):
        get_protocol("casia")


@given(st.integers(0, 200), st.integers(1, 9))
def test_erosion_is_scipys_minimum_filter(seed: int, size: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < 0.9
    np.testing.assert_array_equal(eroded(mask, size), ndimage.minimum_filter(mask, size))


def test_scores() -> None:
    scores, labels = [0.9, 0.5, 0.2, 0.7, 0.4], [True, True, False, False, True]
    values = image_measures(scores, labels)
    assert (values["F1"], values["Accuracy"]) == (pytest.approx(0.4), pytest.approx(0.4))
    assert values["AUC"] == pytest.approx(2 / 3)
    assert image_measures(scores, [False] * 5)["F1"] is None
    assert upstream_image_measures(scores, labels, column_scores=True)["Accuracy"] == pytest.approx(2.4)


def test_the_originals_conventions() -> None:
    zero = upstream_pixel_measures(P, np.zeros_like(M))
    assert (zero["F1"], zero["IOU"], zero["AUC"]) == (0, 0, 0)
    assert np.isnan(upstream_pixel_measures(P, np.ones_like(M))["AUC"])
    tail = upstream_pixel_measures(P, M, CORNER, in_tail=True)
    assert tail["Accuracy"] == pytest.approx(7 / 9)
    assert tail["F1"] == pytest.approx(1)
    assert [tail_start(10, 2, 2), tail_start(10, 1, 2), tail_start(7, 4, 2)] == [8, 10, 0]
