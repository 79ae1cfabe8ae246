"""Figures of two engine outputs against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from offline_infer.errors import GeometryError, UsageError
from offline_infer.proof.comparison.arrays import array_distance, compare_arrays


def pair(noise: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    b = rng.normal(size=(1, 3, 8, 9, 10)).astype(np.float32)
    return (b + rng.normal(size=b.shape) * noise).astype(np.float32), b


def test_figures_follow_their_definitions() -> None:
    a, b = pair()
    found = compare_arrays(a, b, class_axis=1)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    gap = np.abs(x - y)
    assert found.max_abs == pytest.approx(gap.max())
    assert found.mean_abs == pytest.approx(gap.mean())
    assert found.p999_abs == pytest.approx(np.quantile(gap, 0.999), rel=1e-4)
    assert found.rmse == pytest.approx(math.sqrt((gap**2).mean()))
    assert found.relative_euclidean == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    eps = np.finfo(np.float32).eps
    p, q = (np.maximum((v - v.min()) / (v.max() - v.min()), eps) for v in (x, y))
    p, q = p / p.sum(), q / q.sum()
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)
    assert found.max_rel == pytest.approx((gap / np.abs(y)).max())
    assert found.outside == int((gap > 1e-3 + 1e-2 * np.abs(y)).sum())
    json.dumps(found.to_json(), allow_nan=False)


def test_the_required_tolerance_passes_and_less_does_not() -> None:
    a, b = pair()
    needed = compare_arrays(a, b).required_atol
    assert needed is not None
    assert compare_arrays(a, b, atol=needed, rtol=0).passed
    assert not compare_arrays(a, b, atol=needed * 0.999, rtol=0).passed
    relative = compare_arrays(a, b).required_rtol
    assert relative is not None
    assert compare_arrays(a, b, atol=1e-12, rtol=relative).passed


def test_flips_and_their_margins() -> None:
    a, b = pair(0.05)
    found = compare_arrays(a, b, class_axis=1).flips
    assert found is not None
    changed = a.argmax(axis=1) != b.argmax(axis=1)
    top = np.sort(b, axis=1)
    margin = (top[:, -1] - top[:, -2])[changed]
    assert found.flips == changed.sum() > 0
    assert found.decided == 720
    assert found.margin_max == pytest.approx(margin.max())
    assert found.margin_mean == pytest.approx(margin.mean())
    sign = compare_arrays(a, b, class_axis=1, decision="sign").flips
    assert sign is not None
    assert sign.flips == ((a > 0) != (b > 0)).sum()
    assert sign.margin_max == pytest.approx(np.abs(b[(a > 0) != (b > 0)]).max())


def test_equal_arrays() -> None:
    _, b = pair()
    found = compare_arrays(b, b, class_axis=1)
    assert found.passed
    assert (found.max_abs, found.required_atol, found.required_rtol) == (0.0, 0.0, 0.0)
    assert found.kl == pytest.approx(0.0, abs=1e-12)
    assert found.flips is not None
    assert (found.flips.flips, found.flips.margin_max) == (0, None)
    zeros = compare_arrays(np.zeros(4), np.zeros(4))
    assert (zeros.cosine, zeros.relative_euclidean, zeros.max_rel) == (1.0, 0.0, 0.0)
    assert compare_arrays(np.ones(4), np.zeros(4)).cosine is None
    assert compare_arrays(np.ones(4), np.zeros(4)).required_rtol is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(bad: float) -> None:
    a, b = pair()
    a[0, 1, 2, 3, 4] = b[0, 1, 2, 3, 4] = bad
    found = compare_arrays(a, b, atol=1e9, rtol=1e9, class_axis=1)
    assert not found.passed
    assert found.required_atol is None
    assert (found.non_finite_a, found.non_finite_b) == (1, 1)
    assert math.isfinite(found.max_abs)
    assert "NaN or infinite" in found.warnings[0]
    json.dumps(found.to_json(), allow_nan=False)
    nothing = compare_arrays(np.full(3, bad), np.zeros(3))
    assert nothing.to_json()["max_abs"] is None


def test_half_precision_overflow_is_flagged() -> None:
    a, b = pair()
    a[0, 0, 0, 0, 0] = 65504
    found = compare_arrays(a, b)
    assert found.near_half_limit_a == 1
    assert found.near_half_limit_b == 0
    assert "half precision" in found.warnings[0]


def test_wrong_arrays() -> None:
    a, b = pair()
    with pytest.raises(GeometryError, match="differ in shape"):
        compare_arrays(a[:, :2], b)
    with pytest.raises(UsageError, match="empty"):
        compare_arrays(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(UsageError, match="class axis 7"):
        compare_arrays(a, b, class_axis=7)
    with pytest.raises(UsageError, match="legal names"):
        compare_arrays(a, b, class_axis=1, decision="max")  # type: ignore[arg-type]


def test_the_distance_alone_is_that_of_the_whole_comparison() -> None:
    rng = np.random.default_rng(3)
    b = rng.normal(size=(2, 70_001)).astype(np.float32)
    a = b + rng.normal(scale=1e-3, size=b.shape).astype(np.float32)
    a[1, 5], b[0, 9] = np.nan, np.inf
    for first, second in ((a, b), (a[:1], a[:1]), (a * 0, a * 0 + 1)):
        whole, found = compare_arrays(first, second), array_distance(first, second)
        for name in ("shape", "max_abs", "relative_euclidean", "cosine", "required_atol", "required_rtol", "finite"):
            mine, theirs = getattr(found, name), getattr(whole, name)
            assert mine == theirs or (mine != mine and theirs != theirs), name
    with pytest.raises(GeometryError, match="differ in shape"):
        array_distance(a, b[:, 1:])
