"""Spline matrices against SciPy's zoom of unit vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from offline_infer.resampling.splines import basis_weights, spline_matrix

PAIRS = [(1, 1), (1, 5), (2, 3), (3, 2), (5, 1), (17, 17), (64, 128), (128, 64), (97, 131), (160, 120), (33, 211)]


def zoomed(n_in: int, n_out: int, order: int) -> npt.NDArray[np.float64]:
    columns = [
        ndimage.zoom(unit, n_out / n_in, order=order, mode="nearest", grid_mode=True)  # type: ignore[arg-type]
        for unit in np.eye(n_in)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n_in", "n_out"), PAIRS)
def test_the_orders_of_nnunet_agree_with_scipy_to_the_bit(n_in: int, n_out: int, order: int) -> None:
    np.testing.assert_array_equal(spline_matrix(n_in, n_out, order), zoomed(n_in, n_out, order))


@pytest.mark.parametrize("order", [2, 4, 5])
@pytest.mark.parametrize(("n_in", "n_out"), PAIRS)
def test_the_other_orders_agree_to_rounding(n_in: int, n_out: int, order: int) -> None:
    np.testing.assert_allclose(spline_matrix(n_in, n_out, order), zoomed(n_in, n_out, order), rtol=0, atol=2e-14)


@pytest.mark.parametrize("order", range(6))
def test_a_constant_stays_constant(order: int) -> None:
    np.testing.assert_allclose(spline_matrix(23, 37, order).sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", range(1, 6))
def test_weights_are_positive_and_sum_to_one(order: int) -> None:
    offset = np.linspace(0, 1, 33) if order % 2 else np.linspace(-0.5, 0.5, 33)
    weights = np.stack(basis_weights(offset, order))
    assert weights.shape == (order + 1, 33)
    assert weights.min() > -1e-15
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-14)
