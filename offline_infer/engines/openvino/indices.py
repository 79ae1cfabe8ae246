"""Kernels of OpenVINO's CPU plugin that believe what a graph says of places in memory, kept inside their tensors.

GatherND reads, and ScatterElementsUpdate writes, wherever an index leads, so that a graph could bring out the process's memory or
overwrite it. Here the indices are bounded inside the graph before the kernels see them; legal indices stay as they are, and so do
the answers. A padding that repeats or mirrors values writes beyond its buffer where it is negative; such a graph is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

VERSION = "1"
"""Part of the key of a cached graph: change it with this module."""


class UnsafeNodeError(Exception):
    """A node that cannot be kept inside its tensors; the text says which, and why."""


def bound_indices(model: Any) -> int:
    """Bound the indices of every GatherND and ScatterElementsUpdate of an ``openvino.Model``, in place.

    Returns:
        How many nodes were changed.

    Raises:
        UnsafeNodeError: a node whose tensors have an open number of axes, or a padding that is not safe.
    """
    changed = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Pad":
            _check_padding(node)
        if kind not in ("GatherND", "ScatterElementsUpdate"):
            continue
        if any(node.input_value(i).get_partial_shape().rank.is_dynamic for i in range(2)):
            raise UnsafeNodeError(f"{kind} {node.get_friendly_name()!a} takes tensors of any number of axes")
        _bound_gather(node) if kind == "GatherND" else _bound_scatter(node)
        changed += 1
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _check_padding(node: Any) -> None:
    if str(node.get_attributes().get("pad_mode", "")).lower() == "constant":
        return
    for source in (1, 2):
        pads = node.input_value(source).get_node()
        if pads.get_type_name() != "Constant" or np.any(np.asarray(pads.data) < 0):
            raise UnsafeNodeError(
                f"Pad {node.get_friendly_name()!a} repeats values by an amount that is negative or open"
            )


def _bound_gather(node: Any) -> None:
    """Indices (..., k) into k axes of the data behind the first ``batch_dims``: each within its axis."""
    import openvino.opset13 as ops

    indices = _whole(node.input_value(1))
    width = node.input_value(1).get_partial_shape()[-1]
    batch = int(node.get_attributes().get("batch_dims", 0))
    if width.is_dynamic:
        raise UnsafeNodeError(f"GatherND {node.get_friendly_name()!a} takes indices of any length")
    places = np.arange(batch, batch + width.get_length())
    sizes = ops.gather(ops.shape_of(node.input_value(0), "i64"), _numbers(places), _number(0))
    # Nothing can be read from an axis without values: then there are no indices.
    some = ops.minimum(ops.reduce_min(sizes, _numbers([0]), keep_dims=True), _number(1))
    end = ops.multiply(ops.gather(ops.shape_of(indices, "i64"), _numbers([0]), _number(0)), some)
    indices = ops.slice(indices, _numbers([0]), end, _numbers([1]), _numbers([0]))
    node.input(1).replace_source_output(_within(indices, sizes).output(0))


def _bound_scatter(node: Any) -> None:
    """Indices along one axis of the data, no longer than the data along the others; updates of the same shape."""
    import openvino.opset13 as ops

    axis_node = node.input_value(3).get_node()
    if axis_node.get_type_name() != "Constant":
        raise UnsafeNodeError(
            f"ScatterElementsUpdate {node.get_friendly_name()!a} works along an axis that is computed"
        )
    rank = node.input_value(0).get_partial_shape().rank.get_length()
    axis = int(np.asarray(axis_node.data).ravel()[0]) % rank
    sizes = ops.shape_of(node.input_value(0), "i64")
    given = ops.minimum(ops.shape_of(node.input_value(1), "i64"), ops.shape_of(node.input_value(2), "i64"))
    along = np.arange(rank) == axis
    # Along the axis any number of indices may stand, but none into an axis without values.
    within = ops.multiply(ops.minimum(given, sizes), _numbers(~along))
    end = ops.add(within, ops.multiply(ops.multiply(given, ops.minimum(sizes, _number(1))), _numbers(along)))
    bounds = (_numbers([0] * rank), end, _numbers([1] * rank), _numbers(range(rank)))
    size = ops.gather(sizes, _numbers([axis]), _number(0))
    indices, updates = ops.slice(_whole(node.input_value(1)), *bounds), ops.slice(node.input_value(2), *bounds)
    node.input(1).replace_source_output(_within(indices, size).output(0))
    node.input(2).replace_source_output(updates.output(0))


def _within(indices: Any, sizes: Any) -> Any:
    """Indices that count from the end made to count from the start, and all of them from 0 to size - 1."""
    import openvino.opset13 as ops

    counted = ops.select(ops.less(indices, _number(0)), ops.add(indices, sizes), indices)
    return ops.maximum(ops.minimum(counted, ops.subtract(sizes, _number(1))), _number(0))


def _whole(source: Any) -> Any:
    import openvino.opset13 as ops

    return ops.convert(source, "i64")


def _number(value: int) -> Any:
    import openvino.opset13 as ops

    return ops.constant(np.array(value, np.int64))


def _numbers(values: Any) -> Any:
    import openvino.opset13 as ops

    return ops.constant(np.array([int(value) for value in values], np.int64))
