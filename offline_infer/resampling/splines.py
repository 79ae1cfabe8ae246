"""Interpolating B-splines along one axis, as skimage's ``resize`` and ``scipy.ndimage.zoom`` evaluate them.

Sources: M. Unser, A. Aldroubi and M. Eden, "B-spline signal processing: part II", IEEE Transactions on Signal
Processing 41 (1993), for the prefilter; SciPy's documented conventions for the grid (``grid_mode=True``), the border
(``mode="nearest"``: twelve repeated voxels on either side before the prefilter).

Orders 0, 1 and 3, which nnU-Net's plans name, are computed in SciPy's order of operations and agree with it to the last
bit; the others agree to rounding. The tests compare all of them. Having the splines here keeps SciPy, 140 MB, out of
what running a bundle needs, and makes a matrix faster: all its columns are filtered at once.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

BORDER = 12
"""Voxels repeated beyond either end before the prefilter."""


def spline_matrix(n_in: int, n_out: int, order: int) -> Doubles:
    """What resizing ``n_in`` voxels to ``n_out`` does to unit vectors: float64, (n_out, n_in).

    Args:
        order: of the spline, 0 (nearest) to 5.

    >>> spline_matrix(2, 4, order=1)
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]])
    """
    if n_in == n_out:
        return np.eye(n_in)
    border = BORDER if order > 1 else 0
    coefficients = np.pad(np.eye(n_in), ((border, border), (0, 0)), mode="edge")
    if order > 1:
        _prefilter(coefficients, order)
    place = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    if border:
        place = place + border
    first = np.floor(place if order % 2 else place + 0.5)
    weights = basis_weights(place - first, order)
    matrix = np.zeros((n_out, n_in))
    for tap, weight in enumerate(weights):
        source = np.clip(first.astype(np.intp) + (tap - order // 2), 0, len(coefficients) - 1)
        matrix += coefficients[source] * weight[:, None]
    return matrix


def basis_weights(offset: Doubles, order: int) -> list[Doubles]:
    """Weights of the ``order + 1`` nearest coefficients, ascending; the last one is the complement to one.

    Args:
        offset: distance to the voxel before (odd orders, 0..1) or to the nearest voxel (even orders, -0.5..0.5).
    """
    if order == 1:
        weights = [1 - offset]
    elif order == 3:
        other = 1 - offset
        weights = [
            other * other * other / 6,
            (offset * offset * (offset - 2) * 3 + 4) / 6,
            (other * other * (other - 2) * 3 + 4) / 6,
        ]
    else:
        weights = [_basis(np.abs(offset - (tap - order // 2)), order) for tap in range(order)]
    last = np.ones_like(offset)
    for weight in weights:
        last = last - weight
    return [*weights, last]


def _basis(distance: Doubles, order: int) -> Doubles:
    """The centred B-spline of that order at a distance >= 0 from its centre, as a sum of truncated powers."""
    total = np.zeros_like(distance)
    for k in range((order + 1) // 2 + 1):  # the other powers are zero on this side
        total += (-1) ** k * math.comb(order + 1, k) * np.maximum((order + 1) / 2 - k - distance, 0) ** order
    return total / math.factorial(order)


_POLES = {
    2: (-0.17157287525380990240,),  # sqrt(8) - 3
    3: (-0.26794919243112270647,),  # sqrt(3) - 2
    # sqrt(664 -+ sqrt(438976)) +- sqrt(304) - 19
    4: (-0.36134122590022017709, -0.013725429297339121360),
    # sqrt(67.5 -+ sqrt(4436.25)) +- sqrt(26.25) - 6.5
    5: (-0.43057534709997379185, -0.043096288203264653823),
}
"""Roots inside the unit circle of the sampled B-spline's z-transform."""


def _prefilter(columns: Doubles, order: int) -> None:
    """Turn the samples in each column into B-spline coefficients, in place: one recursion each way per pole.

    The signal is taken as reflected about the outer edges of its first and last samples.
    """
    gain = 1.0
    for pole in _POLES[order]:
        gain *= (1.0 - pole) * (1.0 - 1.0 / pole)
    columns *= gain
    last = len(columns) - 1
    for pole in _POLES[order]:
        columns[0] = _first_coefficient(columns, pole)
        for i in range(1, last + 1):
            columns[i] += pole * columns[i - 1]
        columns[last] *= pole / (pole - 1.0)
        for i in range(last - 1, -1, -1):
            columns[i] = pole * (columns[i + 1] - columns[i])


def _first_coefficient(columns: Doubles, pole: float) -> Doubles:
    """Where the causal recursion starts: the geometric sum over the reflected signal."""
    n = len(columns)
    period = pole**n
    total: Doubles = columns[0] + period * columns[n - 1]
    power = pole
    for i in range(1, n):
        total += power * (columns[i] + period * columns[n - 1 - i])
        power *= pole
    total *= pole / (1.0 - period * period)
    total += columns[0]
    return total
