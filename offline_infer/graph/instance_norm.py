"""InstanceNormalization written out in plain operators, for converters that lack it or get it wrong.

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias

over the spatial axes of each channel: the definition in ONNX's operator list. The variance is taken from centred
values, not as a difference of two large means.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from offline_infer.errors import ExportError
from offline_infer.graph.model import (
    Model,
    attribute,
    copy,
    inferred,
    onnx_package,
    opset,
    refuse_subgraphs,
    replace_nodes,
    tensor_types,
)

PARTS = ("mean", "centred", "squared", "variance", "shifted", "deviation", "normalised", "scaled", "result")
"""Last part of the names of the nodes made here, after ``.norm_``."""


def decompose_instance_norm(model: Model, *, only: Collection[str] | None = None, axis_by_axis: bool = False) -> Model:
    """Replace InstanceNormalization by ReduceMean, Sub, Mul, ReduceMean, Add, Sqrt, Div, Mul, Add.

    Args:
        model: any opset from 11 on; from 18 on ReduceMean takes its axes as an input.
        only: names of the nodes to replace, default all.
        axis_by_axis: take every mean along one axis after the other, innermost first. An engine that adds up in float32
            one value after the other (ONNX Runtime on a CPU does) then stays exact on large volumes, where a single sum
            over millions of voxels does not.

    Raises:
        ExportError: ``only`` names no such node, or a tensor's rank is unknown.
    """
    refuse_subgraphs(model)
    new = copy(model)
    present = [node.name for node in new.graph.node if node.op_type == "InstanceNormalization"]
    unknown = sorted(set(only or ()) - set(present))
    if unknown:
        raise ExportError(f"no InstanceNormalization is called {', '.join(unknown)}; there are {', '.join(present)}")
    types = tensor_types(inferred(new))
    nodes: list[Any] = []
    for node in new.graph.node:
        if node.op_type != "InstanceNormalization" or (only is not None and node.name not in only):
            nodes.append(node)
            continue
        shape = types.get(node.input[0], (0, None))[1]
        if shape is None:
            raise ExportError(f"the rank of {node.input[0]!r}, read by {node.name!r}, is not known")
        nodes.extend(_written_out(new, node, len(shape), axis_by_axis))
    replace_nodes(new, nodes)
    used = {name for node in new.graph.node for name in node.input}
    for index in reversed(range(len(new.graph.initializer))):
        if new.graph.initializer[index].name not in used:
            del new.graph.initializer[index]
    del new.graph.value_info[:]
    return new


def is_part(name: str) -> bool:
    """Whether a node of this name was made by :func:`decompose_instance_norm`."""
    _, mark, part = name.rpartition(".norm_")
    return bool(mark) and part in PARTS


def _written_out(model: Model, node: Any, rank: int, axis_by_axis: bool) -> list[Any]:
    helper, numpy_helper = onnx_package().helper, onnx_package().numpy_helper
    base = node.name or node.output[0]
    groups = [[axis] for axis in reversed(range(2, rank))] if axis_by_axis else [list(range(2, rank))]
    nodes: list[Any] = []

    def constant(part: str, array: Any) -> str:
        name = f"{base}.norm_{part}"
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def step(part: str, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{base}.norm_{part}"
        if any(earlier.name == name for earlier in nodes):
            name = f"{base}.{len(nodes)}.norm_{part}"
        output = node.output[0] if part == "result" else f"{name}_output"
        nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def mean(part: str, source: str) -> str:
        for axes in groups:
            if opset(model) < 18:
                source = step(part, "ReduceMean", source, axes=axes, keepdims=1)
            else:
                listed = constant(f"{part}_axes_{axes[0]}", np.array(axes, np.int64))
                source = step(part, "ReduceMean", source, listed, keepdims=1)
        return source

    def spread(part: str, name: str) -> str:
        """A (c,) tensor as (1, c, 1, ...)."""
        for tensor in model.graph.initializer:
            if tensor.name == name:
                array = numpy_helper.to_array(tensor)
                return constant(part, array.reshape(1, -1, *(1,) * (rank - 2)))
        shape = constant(f"{part}_shape", np.array([1, -1, *(1,) * (rank - 2)], np.int64))
        output = f"{base}.norm_{part}"
        nodes.append(helper.make_node("Reshape", [name, shape], [output], name=output))
        return output

    epsilon = constant("epsilon", np.array(attribute(node, "epsilon", 1e-5), np.float32))
    scale, bias = spread("scale", node.input[1]), spread("bias", node.input[2])
    centred = step("centred", "Sub", node.input[0], mean("mean", node.input[0]))
    variance = mean("variance", step("squared", "Mul", centred, centred))
    deviation = step("deviation", "Sqrt", step("shifted", "Add", variance, epsilon))
    scaled = step("scaled", "Mul", step("normalised", "Div", centred, deviation), scale)
    step("result", "Add", scaled, bias)
    return nodes
