"""Operators other than convolutions on parts of their inputs (see :mod:`offline_infer.engines.openvino.winograd.cut`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from offline_infer.engines.openvino.winograd.cut import Constants, Cut, Parts

UNARY = frozenset({"Abs", "Clamp", "Elu", "Gelu", "HSwish", "HSigmoid", "Mish", "Relu", "Sigmoid", "SoftPlus", "Tanh"})
BINARY = frozenset({"Add", "Divide", "Maximum", "Minimum", "Multiply", "PRelu", "Subtract"})


def size_along(output: Any, axis: int, rank: int) -> int:
    """Size of an operand along an axis of the answer, to whose last axes its own belong."""
    shape = output.get_shape()
    own = axis - (rank - len(shape))
    return int(shape[own]) if own >= 0 else 1


def repeated(node: Any, inputs: list[Parts | Any]) -> Parts:
    """The operator once for every part; an operand that is not cut is a single output and the same for all."""
    count = max(len(operand) for operand in inputs if isinstance(operand, list))
    return [
        _again(node, [operand[index] if isinstance(operand, list) else operand for operand in inputs])
        for index in range(count)
    ]


def instance_norm(parts: Parts, cut: Cut, epsilon: float, constant: Constants, *, centred: bool) -> Parts:
    """Every channel normalised over all voxels of all parts.

        variance = mean over lines of (mean of squares - squared mean of the line) + variance of the lines' means

    A line is a row of voxels along the last axis. Where a channel's mean may be large beside its standard deviation, each
    part is first centred on its lines' means, so that nothing cancels in the difference. Sums run along one axis at a
    time, as in :mod:`offline_infer.engines.openvino.norms`.

    Args:
        centred: the parts are near zero already, within a few standard deviations.
    """
    import openvino.opset13 as ops

    shape = [int(size) for size in parts[0].get_shape()]
    last = len(shape) - 1
    line_means, lengths = [], []
    for part in parts:
        line_mean = ops.reduce_mean(part, constant([last], np.int64), keep_dims=True)
        line_means.append(line_mean)
        values = part if centred else ops.subtract(part, line_mean)
        # The root of the sum of squares: saves writing the squares to memory.
        lengths.append(ops.reduce_l2(values, constant([last], np.int64), keep_dims=True))
    shape[cut.axis] *= len(parts)

    def mean_of_lines(values: Any) -> Any:
        # Sum and factor, not ReduceMean: the plugin merges ReduceMeans in a row into one over all axes.
        for axis in range(last - 1, 1, -1):
            values = ops.reduce_sum(values, constant([axis], np.int64), keep_dims=True)
            values = ops.multiply(values, constant(1.0 / shape[axis]))
        return values

    means, length = (
        values[0] if len(values) == 1 else ops.concat(values, cut.axis) for values in (line_means, lengths)
    )
    within = ops.multiply(ops.multiply(length, length), constant(1.0 / shape[last]))
    if centred:
        within = ops.subtract(within, ops.multiply(means, means))
    mean = mean_of_lines(means)
    distance = ops.subtract(means, mean)
    variance = mean_of_lines(ops.add(within, ops.multiply(distance, distance)))
    variance = ops.maximum(variance, constant(0.0))  # rounding may make the variance of equal voxels negative
    factor = ops.divide(constant(1.0), ops.sqrt(ops.add(variance, constant(epsilon))))
    return [ops.multiply(ops.subtract(part, mean), factor).output(0) for part in parts]


def _again(node: Any, inputs: list[Any]) -> Any:
    """The same operator on other inputs."""
    from openvino.utils.node_factory import NodeFactory

    return NodeFactory("opset13").create(node.get_type_name(), inputs, node.get_attributes()).output(0)
