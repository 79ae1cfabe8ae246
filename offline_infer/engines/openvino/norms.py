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
    """Replace every MVN over the spatial axes of an ``openvino.Model``, in place.

    Returns:
        How many had to stay because the size of an axis they sum over is open.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "MVN" and is_spatial_norm(node)]
    fixed = [node for node in nodes if has_fixed_sizes(node)]
    for node in fixed:
        _write_out(node)
    if fixed:
        model.validate_nodes_and_infer_types()
    return len(nodes) - len(fixed)


def is_spatial_norm(node: Any) -> bool:
    """Whether an MVN normalises each channel of float32 values (n, c, *sizes) over all of its sizes."""
    source, axes_node = node.input_value(0), node.input_value(1).get_node()
    attributes, rank = node.get_attributes(), source.get_partial_shape().rank
    if axes_node.get_type_name() != "Constant" or attributes.get("eps_mode") != "INSIDE_SQRT" or rank.is_dynamic:
        return False
    if np.dtype(source.get_element_type().to_dtype()) != np.float32 or not attributes.get("normalize_variance"):
        return False
    axes = sorted(int(axis) % rank.get_length() for axis in np.asarray(axes_node.data).ravel())
    return axes == list(range(2, rank.get_length()))


def has_fixed_sizes(node: Any) -> bool:
    """Whether the sizes an MVN sums over are known."""
    return not any(size.is_dynamic for size in list(node.input_value(0).get_partial_shape())[2:])


def norm_shape(source: Any) -> list[int]:
    """The shape (n, c, *sizes) of a norm's input; n and c are 0 where they are open, for nothing is summed over them."""
    return [0 if size.is_dynamic else int(size.get_length()) for size in source.get_partial_shape()]


def _write_out(node: Any) -> None:
    import openvino.opset13 as ops

    source = node.input_value(0)
    shape = norm_shape(source)
    axes = list(range(2, len(shape)))

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
    deviation = ops.sqrt(ops.add(variance, constant(node.get_attributes()["eps"])))
    node.output(0).replace(ops.divide(centred, deviation).output(0))
