"""INT8 written into a graph as pairs of QuantizeLinear and DequantizeLinear (QDQ): the form that engines take up.

A convolution is quantized by rounding what goes into it: its activation to 256 steps (unsigned, with a zero point), its
weight to 255 steps around zero (signed, one scale for each output channel). What comes out is float, so norms, activation
functions and everything else stay what they are. From a range alone follow::

    scale = (high - low) / 255,   zero point = round(-low / scale),   weight scale = max |w| / 127 of a channel

An activation may also have a scale for each channel. Engines add up whole numbers over the channels, so there such a scale
cannot be put back behind the sum; it is put into the weight before that is rounded: ``sum w x = sum (w s) (x / s)``.

Zero is always one of the steps: padding is exact. Definition of the operators: https://onnx.ai/onnx/operators/ .

Where an image is smooth, neighbouring values are rounded alike, so the error of a whole organ has one sign and survives every
sum behind it. An ordered dither breaks that: before an activation is rounded, a fixed pattern of 2 x 2 x 2 thresholds, all less
than half a step, is added. Eight neighbours are then rounded differently and their mean is right to an eighth of the error
(ordered dither: Bayer, 1973; why it takes the bias away: Lipshitz, Wannamaker and Vanderkooy, J. Audio Eng. Soc. 40(5), 1992).
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
ACTIVATION_STEPS, WEIGHT_STEPS = 255, 127


@dataclass(frozen=True)
class Range:
    """Ends of the values that a tensor takes."""

    low: float
    high: float


@dataclass(frozen=True)
class Rounding:
    """How a convolution is computed in whole numbers.

    Attributes:
        scale: of its activation: one (), or one for each channel (c,), float32.
        zero: the activation's zero point, from 0 to 255; the same in all channels, or padding would not be exact.
        weight: (k, c, ...), int8: the weight, times the scale of the channel it reads where each has its own.
        weight_scale: of each output channel (k,), float32.
    """

    scale: npt.NDArray[np.float32]
    zero: int
    weight: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """What a convolution reads for one value, axes (z, y, x) or (y, x).

    Attributes:
        kernel, strides, dilations: one number an axis.
        padding: zeros (before, after) each axis.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Convolution:
    """A convolution that could be quantized.

    Attributes:
        name: of the tensor it computes, which is unique in a graph.
        source: name of its activation.
        weight: name of its weight.
        products: multiplications that one input of the network takes; axes of open size count as 1.
        window: None where channels are convolved in groups, or the padding is not given in numbers.
        normalized: only instance norms read what it computes: they take the mean of a channel away.
        source_shape: of the activation (n, c, ...); None where the graph leaves a size open.
    """

    name: str
    source: str
    weight: str
    products: int
    window: Window | None = None
    normalized: bool = False
    source_shape: tuple[int, ...] | None = None

    @property
    def source_bytes(self) -> int:
        """Of the activation for one input, in float32; 0 where the graph leaves its size open."""
        return 0 if self.source_shape is None else 4 * math.prod(self.source_shape)


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
    readers = _readers(source)
    found = []
    for node in source.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]]
        found.append(
            Convolution(
                node.output[0],
                node.input[0],
                node.input[1],
                products=math.prod(weight[1:]) * math.prod(_known_sizes(types, node.output[0])),
                window=_window(node, weight),
                normalized=set(readers.get(node.output[0], ())) == {"InstanceNormalization"},
                source_shape=_whole_shape(types, node.input[0]),
            )
        )
    return found


def _readers(model: Model) -> dict[str, list[str]]:
    """Tensor -> types of the operators that read it; an output of the graph counts as one."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node.op_type)
    for port in model.graph.output:
        found.setdefault(port.name, []).append("")
    return found


def _known_sizes(types: Mapping[str, tuple[int, Any]], tensor: str) -> list[int]:
    _, shape = types.get(tensor, (0, ()))
    return [size for size in shape or () if isinstance(size, int)]


def _whole_shape(types: Mapping[str, tuple[int, Any]], tensor: str) -> tuple[int, ...] | None:
    _, shape = types.get(tensor, (0, ()))
    sizes = _known_sizes(types, tensor)
    return tuple(sizes) if shape and len(sizes) == len(shape) else None


def _window(node: Any, weight: tuple[int, ...]) -> Window | None:
    helper = onnx_package().helper
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if given.get("group", 1) != 1 or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    kernel = weight[2:]
    ones = [1] * len(kernel)
    pads = given.get("pads", [0] * 2 * len(kernel))
    return Window(
        tuple(kernel),
        tuple(given.get("strides", ones)),
        tuple(given.get("dilations", ones)),
        tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
    )


def quantized(
    model: Model, roundings: Mapping[str, Rounding], chosen: Collection[str], *, dithered: Collection[str] = ()
) -> Model:
    """The graph with some of its convolutions in INT8.

    Args:
        model: a flat float32 graph.
        roundings: convolution (:attr:`Convolution.name`) -> how it is rounded.
        chosen: names of convolutions.
        dithered: names of those with a pattern added to their activation before it is rounded; where the graph leaves the
            activation's size open, it is rounded without.

    Raises:
        ExportError: the graph's operator set is too old, or a name is unknown.
    """
    if opset(model) < OLDEST_OPSET:
        raise ExportError(
            f"the graph is of operator set {opset(model)}; INT8 needs {OLDEST_OPSET} or later, export the checkpoint again"
        )
    source = constants_to_initializers(model)
    known = {convolution.name: convolution for convolution in convolutions(source)}
    unknown = sorted(name for name in chosen if name not in known or name not in roundings)
    if unknown:
        raise ExportError(f"no convolution with a rounding: {', '.join(unknown[:5])}")
    writer = _Writer(source)
    nodes = []
    for node in source.graph.node:
        if node.op_type == "Conv" and node.output[0] in chosen:
            shape = known[node.output[0]].source_shape if node.output[0] in dithered else None
            nodes += writer.convolution(node, roundings[node.output[0]], shape)
        else:
            nodes.append(node)
    replace_nodes(writer.model, nodes)
    writer.drop_unused_weights()
    del writer.model.graph.value_info[:]
    onnx_package().checker.check_model(writer.model)
    return writer.model


def rounding_by_range(weight: npt.NDArray[np.float32], found: Range) -> Rounding:
    """One scale for the activation, from its range, and the weight (k, c, ...) rounded to the nearest.

    Raises:
        ExportError: an end of the range, or a weight, is NaN or infinite.
    """
    scale, zero = scale_of(found)
    return Rounding(np.asarray(scale), zero, *whole_weights(weight))


def weights_of(model: Model, layers: Collection[Convolution]) -> dict[str, npt.NDArray[np.float32]]:
    """Convolution (by its name) -> its weight (k, c, ...)."""
    onnx = onnx_package()
    constants = {tensor.name: tensor for tensor in constants_to_initializers(model).graph.initializer}
    return {each.name: np.asarray(onnx.numpy_helper.to_array(constants[each.weight])) for each in layers}


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
    scale = np.float32((high - low) / ACTIVATION_STEPS)
    if not scale > 0 or not np.isfinite(np.float32(1) / scale):
        return np.float32(1), 0  # the tensor is zero wherever it was looked at
    return scale, int(np.clip(np.rint(-low / float(scale)), 0, ACTIVATION_STEPS))


def weight_scale(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale of each output channel (k,) of a weight (k, c, ...): its largest value becomes the last step.

    Raises:
        ExportError: the weight holds NaN or infinite values.
    """
    if not np.isfinite(weight).all():
        raise ExportError("a weight holds NaN or infinite values")
    largest = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1)
    scale: npt.NDArray[np.float32] = (largest / np.float32(WEIGHT_STEPS)).astype(np.float32)
    scale[~(scale > np.finfo(np.float32).tiny)] = 1  # a channel of zeros
    return scale


def whole_weights(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A weight (k, c, ...) rounded to the nearest whole numbers, and the scale of each output channel (k,).

    Raises:
        ExportError: it holds NaN or infinite values.
    """
    scale = weight_scale(weight)
    divided = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(divided), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8), scale


def dither_block(axes: int) -> npt.NDArray[np.float32]:
    """Thresholds (2, ...) in steps, between -1/2 and 1/2 and evenly apart; neighbours lie on different sides of zero."""
    place = np.indices((2,) * axes)
    level = 2 ** (axes - 1) * (place.sum(axis=0) % 2) + sum(2**i * place[i] for i in range(axes - 1))
    return np.asarray((level + 0.5) / 2**axes - 0.5, np.float32)


class _Writer:
    """Puts pairs of operators into a copy of a model; convolutions that round an activation alike share its pair."""

    def __init__(self, model: Model) -> None:
        self._onnx = onnx_package()
        self.model = copy(model)
        self._taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for tensor in model.graph.initializer}
        self._restored: dict[tuple[str, bytes, int, bool], str] = {}

    def convolution(self, node: Any, rounding: Rounding, shape: tuple[int, ...] | None) -> list[Any]:
        """A convolution's node on restored whole numbers, behind the operators that it needs.

        Args:
            shape: of its activation (n, c, ...), which is dithered; None for one that is not.
        """
        nodes = []
        key = (node.input[0], rounding.scale.tobytes(), rounding.zero, shape is not None)
        if key not in self._restored:
            nodes += self._activation(node.input[0], rounding, shape)
            self._restored[key] = nodes[-1].output[0]
        nodes.append(self._weight(rounding))
        changed = type(node)()
        changed.CopyFrom(node)
        changed.input[0], changed.input[1] = self._restored[key], nodes[-1].output[0]
        return [*nodes, changed]

    def _activation(self, tensor: str, rounding: Rounding, shape: tuple[int, ...] | None) -> list[Any]:
        """The pair behind a tensor. Where every channel has a scale, the weights hold it and 1 restores the activation."""
        scale = np.asarray(rounding.scale, np.float32)
        if shape is not None:
            return self._dithered(tensor, scale, rounding.zero, shape)
        scales = [self._constant(scale, "scale"), self._constant(np.full(scale.shape, rounding.zero, np.uint8), "zero")]
        restoring = scales
        if scale.ndim:
            restoring = [self._constant(np.float32(1), "scale"), self._constant(np.uint8(rounding.zero), "zero")]
        rounded, restored = self._name("rounded"), self._name("restored")
        make = self._onnx.helper.make_node
        axis = {"axis": 1} if scale.ndim else {}
        return [
            make("QuantizeLinear", [tensor, *scales], [rounded], name=rounded, **axis),
            make("DequantizeLinear", [rounded, *restoring], [restored], name=restored),
        ]

    def _dithered(self, tensor: str, scale: npt.NDArray[np.float32], zero: int, shape: tuple[int, ...]) -> list[Any]:
        """The pair behind a tensor (n, c, ...) with a pattern added, and what makes the pattern; engines fold that away.

        Scales of channels are divided by before, so that one pattern serves them all.
        """
        make = self._onnx.helper.make_node
        nodes = []
        block = dither_block(len(shape) - 2)
        if scale.ndim:
            scaled = self._name("scaled")
            inverse = (np.float32(1) / scale).reshape(-1, *[1] * (len(shape) - 2))
            nodes.append(make("Mul", [tensor, self._constant(inverse, "inverse")], [scaled], name=scaled))
            tensor, scale = scaled, np.asarray(np.float32(1))
        pattern = self._name("pattern")
        repeats = np.asarray([1, 1, *(-(-size // 2) for size in shape[2:])], np.int64)
        block = (block * scale).reshape(1, 1, *block.shape)
        nodes.append(make("Tile", [self._constant(block, "block"), self._constant(repeats, "repeats")], [pattern]))
        if any(size % 2 for size in shape[2:]):
            axes = np.arange(2, len(shape), dtype=np.int64)
            ends = np.asarray(shape[2:], np.int64)
            given = [self._constant(value, "cut") for value in (np.zeros_like(ends), ends, axes)]
            cut = self._name("pattern")
            nodes.append(make("Slice", [pattern, *given], [cut]))
            pattern = cut
        shifted, rounded, restored = (self._name(kind) for kind in ("shifted", "rounded", "restored"))
        steps = [self._constant(scale, "scale"), self._constant(np.uint8(zero), "zero")]
        return [
            *nodes,
            make("Add", [tensor, pattern], [shifted], name=shifted),
            make("QuantizeLinear", [shifted, *steps], [rounded], name=rounded),
            make("DequantizeLinear", [rounded, *steps], [restored], name=restored),
        ]

    def _weight(self, rounding: Rounding) -> Any:
        """The operator that restores a convolution's weight from whole numbers."""
        zeros = np.zeros(rounding.weight_scale.shape, np.int8)
        values = {"weight": rounding.weight, "scale": rounding.weight_scale, "zero": zeros}
        inputs = [self._constant(value, kind) for kind, value in values.items()]
        restored = self._name("weight_restored")
        return self._onnx.helper.make_node("DequantizeLinear", inputs, [restored], name=restored, axis=0)

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
