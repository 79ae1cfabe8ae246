"""Tensors inside a graph made visible as outputs, so that two engines can be compared step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offline_infer.graph.model import Model, copy, onnx_package, shape_of

_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_SILENT = frozenset(
    {"Constant", "Identity", "Cast", "Shape", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
)
"""Operators that compute nothing: their outputs differ exactly where their inputs do."""


@dataclass(frozen=True)
class Tap:
    """A tensor that a node computes.

    Attributes:
        name: of the tensor. node: name of the node that makes it, may be empty. op: its operator type.
        bytes: in float32; 0 where the shape is not known.
    """

    name: str
    node: str
    op: str
    bytes: int


def find_taps(model: Model) -> list[Tap]:
    """The floating-point tensors that nodes of a graph compute, in the order they are computed.

    Args:
        model: with fixed input sizes; where shape inference cannot tell a size, ``bytes`` is 0.
    """
    onnx = onnx_package()
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    legal = {getattr(onnx.TensorProto, name) for name in _FLOATS}
    taps = []
    for node in model.graph.node:
        value = values.get(node.output[0]) if node.output else None
        if value is None or node.op_type in _SILENT or value.type.tensor_type.elem_type not in legal:
            continue
        shape = shape_of(value)
        known = shape is not None and all(isinstance(size, int) and size > 0 for size in shape)
        size = 4 * math.prod(int(n) for n in shape or () if isinstance(n, int)) if known else 0
        taps.append(Tap(node.output[0], node.name, node.op_type, size))
    return taps


def with_outputs(model: Model, names: Sequence[str]) -> Model:
    """The model with these tensors as further outputs, beside its own.

    Raises:
        KeyError: no node computes a tensor of that name.
    """
    onnx = onnx_package()
    new = copy(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in inferred.graph.value_info}
    present = {value.name for value in new.graph.output}
    for name in names:
        if name not in present:
            new.graph.output.append(values[name])
    return new
