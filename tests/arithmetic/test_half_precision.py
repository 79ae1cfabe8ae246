"""Half-precision sums kept packed and kept as float32: the same numbers, and the same refusals."""

from __future__ import annotations

import numpy as np
import pytest

from offline_infer.arithmetic.half_precision import PackedHalfSums, WideHalfSums, mean_of_folds
from offline_infer.errors import EngineFailed


def fold_maps(count: int, seed: int, scale: float = 100.0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(0, scale, (3, 5, 7, 9)).astype(np.float16) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mean_of_folds_is_numpys_in_both_ways(count: int) -> None:
    for scale in (1e-6, 1e-3, 1.0, 5000.0):
        parts = fold_maps(count, seed=count, scale=scale)
        expected = parts[0].copy()
        for part in parts[1:]:
            expected += part
        expected /= np.float16(count)
        np.testing.assert_array_equal(mean_of_folds([part.astype(np.float32) for part in parts]), expected)
        np.testing.assert_array_equal(mean_of_folds(parts), expected)


@pytest.mark.parametrize("bad", [40000.0, -40000.0, np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_folds_whose_sum_does_not_fit_are_refused_in_both_ways(dtype: type, bad: float) -> None:
    parts = [part.astype(dtype) for part in fold_maps(2, seed=1)]
    for part in parts:
        part[2, 4, 6, 8] = bad
    with pytest.raises(EngineFailed, match="half precision"):
        mean_of_folds(parts)


@pytest.mark.parametrize("sums", [PackedHalfSums(), WideHalfSums()])
@pytest.mark.parametrize("bad", [65520.0, -70000.0, np.inf, -np.inf, np.nan])
def test_a_sum_that_does_not_fit_is_refused_in_both_ways(sums: PackedHalfSums | WideHalfSums, bad: float) -> None:
    total = np.zeros((4, 6), sums.dtype)
    part = np.ones((4, 6), np.float32)
    part[3, 5] = bad
    with pytest.raises(EngineFailed, match="half precision"):
        sums.add(total, part)
    with pytest.raises(EngineFailed, match="half precision"), np.errstate(divide="ignore"):
        sums.divide(np.ones((4, 6), sums.dtype), np.zeros((4, 6), sums.dtype))
