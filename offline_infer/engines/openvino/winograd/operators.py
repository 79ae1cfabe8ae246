"""Operators other than convolutions on parts of their inputs (see :mod:`offline_infer.engines.openvino.winograd.cut`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from offline_infer.engines.openvino.winograd.cut import Constants, Cut, Parts

UNARY = frozenset({"Abs", "Clamp", "Elu", "Gelu", "HSwish", "HSigmoid", "Mish", "Relu", "Sigmoid", "SoftPlus", "Tanh"})
_CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData")
BINARY = frozenset({"Add", "Divide", "Maximum", "Minimum", "Multiply", "PRelu", "Subtract"})


def size_along(output: Any, axis: int, rank: int) -> int:
    """Size of an operand along an axis of the answer, to whose last axes its own belong."""
    shape = output.get_shape()
    own = axis - (rank - len(shape))
    return int(shape[own]) if own >= 0 else 1


def repeated(node: Any, inputs: list[Parts | Any]) -> Parts:
    """The operator once for every part; an operand that is not cut is a single output and the same for all.

    A convolution's bias gets a constant of its own for every part: where others read it, the plugin does not let the convolution
    add it, but makes another pass over memory.
    """
    count = max(len(operand) for operand in inputs if isinstance(operand, list))
    bias = node.get_type_name() == "Add" and any(
        source.get_node().get_type_name() in _CONVOLUTIONS for source in node.input_values()
    )

    def operand_of(operand: Parts | Any, index: int) -> Any:
        if isinstance(operand, list):
            return operand[index]
        source = operand.get_node()
        return Constants.weights(source.data) if bias and source.get_type_name() == "Constant" else operand

    return [_again(node, [operand_of(operand, index) for operand in inputs]) for index in range(count)]


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
    means, length = _of_lines(parts, cut, last, constant, centred=centred)
    shape[cut.axis] *= len(parts)

    def mean_of_lines(values: Any) -> Any:
        # Sum and factor, not ReduceMean: the plugin merges ReduceMeans in a row into one over all axes.
        for axis in range(last - 1, 1, -1):
            values = ops.reduce_sum(values, constant([axis], np.int64), keep_dims=True)
            values = ops.multiply(values, constant(1.0 / shape[axis]))
        return values

    within = ops.multiply(ops.multiply(length, length), constant(1.0 / shape[last]))
    if centred:
        within = ops.subtract(within, ops.multiply(means, means))
    mean = mean_of_lines(means)
    distance = ops.subtract(means, mean)
    variance = mean_of_lines(ops.add(within, ops.multiply(distance, distance)))
    variance = ops.maximum(variance, constant(0.0))  # rounding may make the variance of equal voxels negative
    factor = ops.divide(constant(1.0), ops.sqrt(ops.add(variance, constant(epsilon))))
    return [ops.multiply(ops.subtract(part, mean), factor).output(0) for part in parts]


def _of_lines(parts: Parts, cut: Cut, last: int, constant: Constants, *, centred: bool) -> tuple[Any, Any]:
    """Mean of every line, and the root of its sum of squares - about its mean unless ``centred`` -, of all parts together.

    Both go through one concatenation. So the plugin, which follows inputs in their order, computes a part's two one after the
    other while the part is in its cache, not those of all parts first.
    """
    import openvino.opset13 as ops

    pairs = []
    for part in parts:
        mean = ops.reduce_mean(part, constant([last], np.int64), keep_dims=True)
        values = part if centred else ops.subtract(part, mean)
        # The root saves writing the squares to memory.
        pairs += [mean, ops.reduce_l2(values, constant([last], np.int64), keep_dims=True)]
    together = ops.concat(pairs, cut.axis)
    planes = np.arange(cut.depth * len(pairs)).reshape(len(parts), 2, cut.depth)
    axis = constant(cut.axis, np.int64)
    means, lengths = (ops.gather(together, constant(planes[:, k].ravel(), np.int64), axis) for k in range(2))
    return means, lengths


def _again(node: Any, inputs: list[Any]) -> Any:
    """The same operator on other inputs."""
    from openvino.utils.node_factory import NodeFactory

    return NodeFactory("opset13").create(node.get_type_name(), inputs, node.get_attributes()).output(0)
