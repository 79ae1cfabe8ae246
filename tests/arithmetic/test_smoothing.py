"""Smoothing against SciPy, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from offline_infer.arithmetic.smoothing import gaussian, gaussian_kernel


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("truncate", [3.0, 4.0])
@pytest.mark.parametrize("seed", range(12))
def test_it_gives_scipys_bits(dtype: npt.DTypeLike, truncate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 16, size=1 + seed % 4).tolist())
    array = rng.standard_normal(shape).astype(dtype)
    sigma = [float(value) for value in rng.choice([0.0, 0.3, 0.9, 2.0, 5.0], size=len(shape))]
    expected = ndimage.gaussian_filter(array, sigma, truncate=truncate)
    found = gaussian(array, sigma, truncate=truncate)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_the_input_is_kept() -> None:
    array = np.arange(5, dtype=np.float32)
    gaussian(array, 1.0)
    np.testing.assert_array_equal(array, np.arange(5))


def test_the_kernel_sums_to_one_and_is_symmetric() -> None:
    kernel = gaussian_kernel(1.7)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_array_equal(kernel, kernel[::-1])
