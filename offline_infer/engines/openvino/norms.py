"""Instance normalisation whose sums stay exact on large volumes, for OpenVINO's CPU plugin.

The plugin's own kernel (MVN) adds up a whole channel in float32, one value after the other. Over the two million voxels of
a 128^3 tile, above all where they are equal (clipped air), the rounding errors add up: on such a tile logits were off by
0.2, and by more with fewer threads. Here every sum runs along one axis at a time, so that no chain is longer than the tile
is wide, and the error falls to that of the framework, at about the same speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

VERSION = "1"
"""Part of the key of a cached graph: change it with this module."""


def make_norms_exact(model: Any) -> int:
    """Replace every MVN over the spatial axes of a fixed-shape ``openvino.Model``, in place.

    Returns:
        How many were replaced.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MVN" and _written_out(node):
            count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _written_out(node: Any) -> bool:
    import openvino.opset13 as ops

    source = node.input_value(0)
    axes_node = node.input_value(1).get_node()
    shape = [int(size) for size in source.get_shape()]
    attributes = node.get_attributes()
    if axes_node.get_type_name() != "Constant" or attributes.get("eps_mode") != "INSIDE_SQRT":
        return False
    if np.dtype(source.get_element_type().to_dtype()) != np.float32:
        return False
    axes = sorted(int(axis) % len(shape) for axis in np.asarray(axes_node.data).ravel())
    if axes != list(range(2, len(shape))) or not attributes.get("normalize_variance"):
        return False

    def constant(value: Any, dtype: Any = np.float32) -> Any:
        return ops.constant(np.array(value, dtype))

    def mean(values: Any, over: list[int]) -> Any:
        # Sum and factor, not ReduceMean: the plugin merges ReduceMeans in a row into one over all axes.
        for axis in reversed(over):
            total = ops.reduce_sum(values, constant([axis], np.int64), keep_dims=True)
            values = ops.multiply(total, constant(1.0 / shape[axis]))
        return values

    centred = ops.subtract(source, mean(source, axes))
    # The sum of squares along the innermost axis as the square of a norm: saves writing the squares to memory.
    length = ops.reduce_l2(centred, constant([axes[-1]], np.int64), keep_dims=True)
    inner = ops.multiply(ops.multiply(length, length), constant(1.0 / shape[axes[-1]]))
    variance = mean(inner, axes[:-1])
    deviation = ops.sqrt(ops.add(variance, constant(attributes["eps"])))
    node.output(0).replace(ops.divide(centred, deviation).output(0))
    return True
