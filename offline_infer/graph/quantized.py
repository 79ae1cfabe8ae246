"""INT8 written into a graph as pairs of QuantizeLinear and DequantizeLinear (QDQ): the form that engines take up.

A convolution is quantized by rounding what goes into it: its activation to 256 steps between the ends of a range
(unsigned, with a zero point, one scale for the tensor), its weight to 255 steps around zero (signed, one scale for each
output channel). What comes out is float, so norms, activation functions and everything else stay what they are::

    scale = (high - low) / 255,   zero point = round(-low / scale),   weight scale = max |w| / 127 of a channel

Zero is always one of the steps: padding is exact. Definition of the operators: https://onnx.ai/onnx/operators/ .
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.errors import ExportError
from offline_infer.graph.clean import constants_to_initializers
from offline_infer.graph.model import (
    Model,
    copy,
    inferred,
    onnx_package,
    opset,
    refuse_subgraphs,
    replace_nodes,
    tensor_types,
)

OLDEST_OPSET = 13
"""The first one in which DequantizeLinear takes a scale for each channel."""
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255, 127


@dataclass(frozen=True)
class Range:
    """Ends of the values that a tensor takes."""

    low: float
    high: float

    def joined(self, other: Range) -> Range:
        """The range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Convolution:
    """A convolution that could be quantized.

    Attributes:
        name: of the tensor it computes, which is unique in a graph.
        source: name of its activation.
        weight: name of its weight.
        products: multiplications that one input of the network takes; axes of open size count as 1.
    """

    name: str
    source: str
    weight: str
    products: int


def convolutions(model: Model) -> list[Convolution]:
    """The convolutions of a float32 graph whose weights are constant, in the order they are computed.

    Transposed ones are left out: they hardly count in time, and no engine at hand runs them in INT8.

    Raises:
        ExportError: the graph holds control flow, or its types contradict each other.
    """
    refuse_subgraphs(model)
    source = constants_to_initializers(model)
    onnx = onnx_package()
    weights = {
        tensor.name: tuple(tensor.dims)
        for tensor in source.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    types = tensor_types(inferred(source))
    found = []
    for node in source.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        _, shape = types.get(node.output[0], (0, ()))
        per_value = math.prod(weights[node.input[1]][1:])
        sizes = [size for size in shape or () if isinstance(size, int)]
        found.append(Convolution(node.output[0], node.input[0], node.input[1], per_value * math.prod(sizes)))
    return found


def with_observed_ranges(model: Model, tensors: Collection[str]) -> tuple[Model, dict[str, tuple[str, str]]]:
    """The model with the smallest and the largest value of some tensors as further outputs.

    Returns:
        The model, and tensor -> names of its two outputs.
    """
    onnx = onnx_package()
    new = copy(model)
    types = tensor_types(inferred(model))
    names = {}
    for number, tensor in enumerate(sorted(set(tensors))):
        pair = (f"lowest_{number}", f"highest_{number}")
        rank = len(types[tensor][1] or ())
        for name, operator in zip(pair, ("ReduceMin", "ReduceMax"), strict=True):
            new.graph.node.append(onnx.helper.make_node(operator, [tensor], [name], keepdims=1))
            new.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1] * rank))
        names[tensor] = pair
    return new, names


def quantized(model: Model, ranges: Mapping[str, Range], chosen: Collection[str]) -> Model:
    """The graph with some of its convolutions in INT8.

    Args:
        model: a flat float32 graph.
        ranges: activation (:attr:`Convolution.source`) -> its range.
        chosen: names of convolutions (:attr:`Convolution.name`).

    Raises:
        ExportError: the graph's operator set is too old, a range or a weight is not finite, or a name is unknown.
    """
    if opset(model) < OLDEST_OPSET:
        raise ExportError(
            f"the graph is of operator set {opset(model)}; INT8 needs {OLDEST_OPSET} or later, export the checkpoint again"
        )
    source = constants_to_initializers(model)
    known = {convolution.name: convolution for convolution in convolutions(source)}
    unknown = sorted(name for name in chosen if name not in known or known[name].source not in ranges)
    if unknown:
        raise ExportError(f"no convolution with a range: {', '.join(unknown[:5])}")
    writer = _Writer(source)
    nodes = []
    for node in source.graph.node:
        if node.op_type == "Conv" and node.output[0] in chosen:
            tensor = node.input[0]
            nodes += writer.activation(tensor, ranges[tensor])
            nodes += writer.weight(node)
            changed = type(node)()
            changed.CopyFrom(node)
            changed.input[0], changed.input[1] = writer.activations[tensor], writer.weights[node.input[1]]
            nodes.append(changed)
        else:
            nodes.append(node)
    replace_nodes(writer.model, nodes)
    writer.drop_unused_weights()
    del writer.model.graph.value_info[:]
    onnx_package().checker.check_model(writer.model)
    return writer.model


def scale_of(found: Range) -> tuple[np.float32, int]:
    """Scale and zero point of an activation's range, which is widened to hold zero.

    Raises:
        ExportError: an end is NaN or infinite.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ExportError(
            f"an activation ranges from {found.low} to {found.high}, which no whole numbers can stand for"
        )
    scale = np.float32((high - low) / _ACTIVATION_STEPS)
    if not scale > 0 or not np.isfinite(np.float32(1) / scale):
        return np.float32(1), 0  # the tensor is zero wherever it was looked at
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, _ACTIVATION_STEPS))


def whole_weights(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A weight (k, c, ...) in whole numbers, and the scale of each output channel (k,).

    Raises:
        ExportError: it holds NaN or infinite values.
    """
    if not np.isfinite(weight).all():
        raise ExportError("a weight holds NaN or infinite values")
    largest = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1)
    scale = (largest / np.float32(_WEIGHT_STEPS)).astype(np.float32)
    scale[~(scale > np.finfo(np.float32).tiny)] = 1  # a channel of zeros
    divided = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(divided), -_WEIGHT_STEPS, _WEIGHT_STEPS).astype(np.int8), scale


class _Writer:
    """Puts pairs of operators into a copy of a model; each tensor and each weight gets one pair."""

    def __init__(self, model: Model) -> None:
        self._onnx = onnx_package()
        self.model = copy(model)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | set(self._constants)
        self.activations: dict[str, str] = {}
        self.weights: dict[str, str] = {}

    def activation(self, tensor: str, found: Range) -> list[Any]:
        """The pair behind a tensor; empty where it has one."""
        if tensor in self.activations:
            return []
        scale, zero = scale_of(found)
        constants = [self._constant(scale, "scale"), self._constant(np.uint8(zero), "zero")]
        rounded, restored = self._name("rounded"), self._name("restored")
        self.activations[tensor] = restored
        make = self._onnx.helper.make_node
        return [
            make("QuantizeLinear", [tensor, *constants], [rounded], name=rounded),
            make("DequantizeLinear", [rounded, *constants], [restored], name=restored),
        ]

    def weight(self, node: Any) -> list[Any]:
        """The operator that restores a convolution's weight from whole numbers; empty where it is there."""
        name = node.input[1]
        if name in self.weights:
            return []
        values, scale = whole_weights(self._onnx.numpy_helper.to_array(self._constants[name]))
        zeros = np.zeros(scale.shape, np.int8)
        inputs = [self._constant(values, "weight"), self._constant(scale, "scale"), self._constant(zeros, "zero")]
        self.weights[name] = self._name("weight_restored")
        return [
            self._onnx.helper.make_node(
                "DequantizeLinear", inputs, [self.weights[name]], name=self.weights[name], axis=0
            )
        ]

    def drop_unused_weights(self) -> None:
        """Leave out the float weights that nothing reads any more."""
        read = {name for node in self.model.graph.node for name in node.input}
        read |= {port.name for port in self.model.graph.output}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        fresh = type(self.model.graph)()
        fresh.initializer.extend(kept)
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(fresh.initializer)

    def _constant(self, value: Any, kind: str) -> str:
        name = self._name(kind)
        self.model.graph.initializer.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _name(self, kind: str) -> str:
        number = len(self._taken)
        while f"int8_{kind}_{number}" in self._taken:
            number += 1
        self._taken.add(f"int8_{kind}_{number}")
        return f"int8_{kind}_{number}"
