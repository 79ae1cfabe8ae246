"""Convolutions on parts of a tensor (see :mod:`offline_infer.engines.openvino.winograd.cut`)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.engines.openvino.winograd.cut import Constants, Cut, Parts, neighbour, total
from offline_infer.engines.openvino.winograd.transforms import TAPS, Transform, kernel_factors, transform

_NOTHING = 1e-30
"""A factor that leaves nothing of a value."""


@dataclass(frozen=True)
class Kernel:
    """A convolution's constants.

    Attributes:
        weights: (c_out, c_in, *kernel), of a transposed one (c_in, c_out, *kernel).
        strides, dilations, before, after: for every spatial axis; the last two are the padding.
    """

    weights: npt.NDArray[np.float32]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def along(self, axis: int) -> tuple[int, int, int, int, int]:
        """Taps, stride, dilation and both paddings along an axis of (n, c, *sizes)."""
        i = axis - 2
        return self.weights.shape[axis], self.strides[i], self.dilations[i], self.before[i], self.after[i]

    def is_same(self, axis: int) -> bool:
        """Three neighbouring taps that keep the size along an axis."""
        return self.along(axis) == (TAPS, 1, 1, 1, 1)

    def is_flat(self, axis: int) -> bool:
        """One tap at every place along an axis."""
        taps, stride, _, *padding = self.along(axis)
        return taps == 1 and stride == 1 and padding == [0, 0]


def winograd(parts: Parts, kernel: Kernel, cut: Cut, m: int, constant: Constants, *, centred: bool = False) -> Parts:
    """A convolution with ``kernel.is_same(cut.axis)`` as F(m, 3) along the cut.

    The last parts may be fewer than m: what lies behind them is padding, and outputs there are not computed.

    Args:
        centred: give the answer less one number for each channel, the mean of its first part, which lies within
            sqrt(parts) standard deviations of the mean of all.
    """
    pilot: Any | None = None
    matrices = transform(m)
    factors = [constant.weights(factor) for factor in kernel_factors(kernel.weights, cut.axis, m)]
    found: Parts = []
    for first in range(0, len(parts), m):
        inputs = [
            neighbour(parts, first - 1 + k, cut, constant) if first - 1 + k <= len(parts) else None
            for k in range(m + 2)
        ]
        values = _factors_of(inputs, matrices, constant)
        products = [
            None if value is None else _convolve(value, factor, kernel, cut.axis)
            for value, factor in zip(values, factors, strict=True)
        ]
        answers = _outputs_of(products, matrices, pilot, constant)[: len(parts) - first]
        if centred and pilot is None:
            pilot = _mean(answers[0], constant)
            answers = [total([(1, answer), (-1, pilot)], constant) for answer in answers]
        found += answers
    return found


def direct(parts: Parts, kernel: Kernel, cut: Cut, planes: int, constant: Constants) -> Parts:
    """Any convolution: the parts that a part of the answer is made of become channels of one input.

    Args:
        planes: of the answer.
    """
    import openvino.opset13 as ops

    taps, stride, dilation, before, _ = kernel.along(cut.axis)
    weights: dict[tuple[int, ...], Any] = {}
    found: Parts = []
    for index in range(cut.parts_of(planes)):
        places = [(tap, index * stride - before + tap * dilation) for tap in range(taps)]
        near = [
            (tap, neighbour(parts, place, cut, constant))
            for tap, place in places
            if cut.depth > 1 or 0 <= place < len(parts)
        ]
        present = tuple(tap for tap, part in near if part is not None)
        if present not in weights:
            taken = [np.take(kernel.weights, [tap], axis=cut.axis) for tap in present]
            weights[present] = constant.weights(np.concatenate(taken, axis=1))
        source = [part for _, part in near if part is not None]
        whole = source[0] if len(source) == 1 else ops.concat(source, 1)
        found.append(_convolve(whole, weights[present], kernel, cut.axis))
    return found


def transposed(parts: Parts, kernel: Kernel, cut: Cut, constant: Constants) -> Parts:
    """A transposed convolution whose kernel is as large as its stride along the cut, without padding there."""
    import openvino.opset13 as ops

    taps = [
        constant.weights(np.take(kernel.weights, [tap], axis=cut.axis)) for tap in range(kernel.strides[cut.axis - 2])
    ]
    rest = [_without(values, cut.axis, fill) for values, fill in _geometry(kernel)]
    return [
        ops.convolution_backprop_data(part, tap, rest[0], None, rest[2], rest[3], rest[1]).output(0)
        for part in parts
        for tap in taps
    ]


def _convolve(source: Any, weights: Any, kernel: Kernel, axis: int) -> Any:
    """The convolution with one tap and no padding along an axis."""
    import openvino.opset13 as ops

    strides, dilations, before, after = (_without(values, axis, fill) for values, fill in _geometry(kernel))
    return ops.convolution(source, weights, strides, before, after, dilations).output(0)


def _geometry(kernel: Kernel) -> list[tuple[tuple[int, ...], int]]:
    """Strides, dilations and paddings, each with its value where nothing happens."""
    return [(kernel.strides, 1), (kernel.dilations, 1), (kernel.before, 0), (kernel.after, 0)]


def _without(values: tuple[int, ...], axis: int, fill: int) -> list[int]:
    return [fill if index == axis - 2 else value for index, value in enumerate(values)]


def _pairs(m: int) -> list[tuple[int, int]]:
    """Indices of the points p and -p."""
    return [(index, index + 1) for index in range(1, m, 2)]


def _factors_of(inputs: list[Any | None], matrices: Transform, constant: Constants) -> list[Any | None]:
    """B^T d. The rows of p and -p are the sum and the difference of the same two values.

    The sum is made from the difference: the plugin computes values in one pass over memory only if nobody outside can ask
    for one before the other, and a convolution of the sum alone could.
    """
    rows = matrices.inputs
    found: list[Any | None] = [None] * len(rows)
    for index in (0, len(rows) - 1):
        found[index] = total(list(zip(rows[index], inputs, strict=True)), constant)
    for plus, minus in _pairs(len(rows) - 2):
        terms = list(zip(rows[plus], inputs, strict=True))
        even, odd = total(terms[::2], constant), total(terms[1::2], constant)
        found[minus] = total([(1, even), (-1, odd)], constant)
        found[plus] = total([(1, found[minus]), (2, odd)], constant)
    return found


def _outputs_of(products: list[Any | None], matrices: Transform, pilot: Any | None, constant: Constants) -> Parts:
    """A^T applied to the products, less the pilot.

    Those of p and -p enter the even outputs as a sum, the odd ones as a difference; those of 0 and of infinity one output
    each as they are.

    The plugin writes several outputs in one pass over memory, but no more than its registers have room for: all of F(2, 3)
    together, the even and the odd ones of F(4, 3) apart. So that it does, every product of a pass enters two of its outputs,
    next to nothing of it where need be, and the first output follows the others. A product that one sum alone asks for would be
    kept for the convolution to add, which then cannot, since the other term is made together with others.
    """
    m = len(products) - 2
    pairs = _pairs(m)
    sums = [total([(1, products[plus]), (1, products[minus])], constant) for plus, minus in pairs]
    differences = [total([(1, products[plus]), (-1, products[minus])], constant) for plus, minus in pairs]
    ends = {0: products[0], m - 1: products[-1]}
    found: list[Any] = [None] * m
    for indices in [range(m)] if m == 2 else [range(0, m, 2), range(1, m, 2)]:
        for index in indices:
            row, taken = matrices.outputs[index], differences if index % 2 else sums
            terms: list[tuple[float | Fraction, Any]] = [
                (row[plus], value) for (plus, _), value in zip(pairs, taken, strict=True)
            ]
            terms += [(1 if end == index else _NOTHING, ends[end]) for end in ends if end in indices]
            found[index] = total([*terms, (-1, pilot)], constant)
        first, *others = indices
        found[first] = total([(1, found[first]), *((_NOTHING, found[other]) for other in others)], constant)
    return found


def _mean(part: Any, constant: Constants) -> Any:
    """The mean of each channel of a part, along one axis at a time, so that no chain of additions is long."""
    import openvino.opset13 as ops

    shape = part.get_shape()
    for axis in range(len(shape) - 1, 1, -1):
        part = ops.reduce_sum(part, constant([axis], np.int64), keep_dims=True)
        part = ops.multiply(part, constant(1.0 / int(shape[axis])))
    return part
