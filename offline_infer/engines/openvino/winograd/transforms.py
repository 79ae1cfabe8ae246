"""F(m, 3): the matrices of one-dimensional minimal filtering, and a kernel's weights under them.

    y = A^T ((G w) * (B^T d))

gives the m outputs y_p = sum over k of w_k d_(p + k) from m + 2 inputs d with m + 2 products (S. Winograd, *Arithmetic
Complexity of Computations*, 1980; the Toom-Cook construction over the points 0, 1, -1, (2, -2,) infinity, with the notation
of A. Lavin and S. Gray, *Fast Algorithms for Convolutional Neural Networks*, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

TAPS = 3
_POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2)}
OUTPUTS = tuple(_POINTS)
"""The m that there are."""

Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Transform:
    """The exact matrices of F(m, 3).

    Attributes:
        inputs: B^T, (m + 2, m + 2): from inputs to factors.
        kernel: G, (m + 2, 3): from taps to factors.
        outputs: A^T, (m, m + 2): from products to outputs.
    """

    inputs: Matrix
    kernel: Matrix
    outputs: Matrix


def transform(m: int) -> Transform:
    """F(m, 3) for an m of :data:`OUTPUTS`.

    Every finite point p has the monic polynomial N_p = product over the other points q of (x - q), the point infinity
    the one over all points. B^T holds the coefficients of N_p, G the powers of p over N_p(p), A^T the powers of p.
    """
    points = [Fraction(point) for point in _POINTS[m]]
    inputs, kernel = [], []
    for point in points:
        others = [other for other in points if other != point]
        factor = _value(_monic(others), point)
        sign = -1 if factor < 0 else 1  # on the inputs, so that no factor of a kernel's sum is negative
        inputs.append([sign * value for value in [*_monic(others), Fraction(0)]])
        kernel.append([sign * point**k / factor for k in range(TAPS)])
    inputs.append(_monic(points))
    kernel.append([Fraction(0)] * (TAPS - 1) + [Fraction(1)])
    outputs = [[point**p for point in points] + [Fraction(int(p == m - 1))] for p in range(m)]
    return Transform(_rows(inputs), _rows(kernel), _rows(outputs))


def kernel_factors(weights: npt.NDArray[np.float32], axis: int, m: int) -> list[npt.NDArray[np.float32]]:
    """A kernel under G along one of its axes: m + 2 kernels with one tap there, computed in float64.

    Args:
        weights: (c_out, c_in, *kernel), three taps along ``axis``.
        axis: of the array.
    """
    matrix = np.array([[float(value) for value in row] for row in transform(m).kernel])
    factors = np.tensordot(matrix, weights.astype(np.float64), axes=(1, axis))
    return [np.ascontiguousarray(np.expand_dims(factor, axis).astype(np.float32)) for factor in factors]


def _monic(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [high - root * low for high, low in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found


def _value(coefficients: list[Fraction], point: Fraction) -> Fraction:
    return sum((value * point**power for power, value in enumerate(coefficients)), Fraction(0))


def _rows(matrix: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in matrix)
