"""The pass: an ``openvino.Model`` whose chosen convolutions are computed with fewer multiplications.

First, from the outputs backwards, it is found out which tensors are *wanted* cut: what a chosen convolution reads, and what
operators read that work part by part on the way there. Then every operator, in the order of computation, is written on
parts where its answer is wanted cut or an input lies in parts already; everybody else gets the parts joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from offline_infer.engines.openvino.norms import is_spatial_norm
from offline_infer.engines.openvino.winograd.convolution import Kernel, direct, transposed, winograd
from offline_infer.engines.openvino.winograd.cut import Constants, Cut, Parts, join, split
from offline_infer.engines.openvino.winograd.layers import Layer, is_fixed_float32, kernel_of, shape_of
from offline_infer.engines.openvino.winograd.operators import BINARY, UNARY, instance_norm, repeated, size_along

FEW_CHANNELS = 4
"""An image of so few channels is cut before its first convolution; a tensor of more would not be worth it."""

_Port = tuple[str, int]


def rewrite(model: Any, chosen: Mapping[str, int], layers: Mapping[str, Layer], cuts: Mapping[int, Cut]) -> None:
    """Write the chosen convolutions of a model as F(m, 3), in place.

    Args:
        chosen: m of each, by the names of nodes.
        layers: what is known of them, by the same names.
        cuts: for every axis.
    """
    if chosen:
        _Pass(chosen, {name: cuts[layers[name].axis] for name in chosen}).run(model)
        model.validate_nodes_and_infer_types()


class _Pass:
    def __init__(self, chosen: Mapping[str, int], cuts: Mapping[str, Cut]) -> None:
        self._chosen, self._cuts = chosen, cuts
        self._constants = Constants()
        self._wanted: dict[_Port, Cut] = {}
        self._parts: dict[_Port, tuple[Cut, Parts]] = {}
        self._joined: dict[_Port, Any] = {}
        self._centred: set[_Port] = set()
        self._writers: dict[str, Callable[[Any, Cut], Parts | None]] = {
            "Concat": self._part_by_part,
            "Convolution": self._convolution,
            "ConvolutionBackpropData": self._transposed,
            "MVN": self._norm,
            **dict.fromkeys(UNARY | BINARY, self._part_by_part),
        }

    def run(self, model: Any) -> None:
        nodes = model.get_ordered_ops()
        for node in reversed(nodes):
            self._want(node)
        for node in nodes:
            cut = self._cut_of(node)
            parts = None if cut is None else self._written(node, cut)
            if cut is not None and parts is not None:
                self._parts[_port(node.output(0))] = cut, parts
            else:
                self._read_joined(node)

    def _want(self, node: Any) -> None:
        """Note that the inputs of an operator whose answer is wanted cut are wanted cut too."""
        name = node.get_name()
        if name in self._chosen:
            self._wanted.setdefault(_port(node.input_value(0)), self._cuts[name])
        elif node.get_output_size() == 1 and (cut := self._wanted.get(_port(node.output(0)))) is not None:
            for source in _cut_inputs(node, cut) or []:
                self._wanted.setdefault(_port(source), cut)

    def _cut_of(self, node: Any) -> Cut | None:
        """How an operator's answer is to be cut, None where it is not."""
        name = node.get_name()
        if name in self._chosen:
            return self._cuts[name]
        if node.get_type_name() not in self._writers or not is_fixed_float32(node.output(0)):
            return None
        wanted = self._wanted.get(_port(node.output(0)))
        if wanted is not None:
            return wanted
        present = [self._parts[_port(source)][0] for source in node.input_values() if _port(source) in self._parts]
        return next((cut for cut in present if _cut_inputs(node, cut)), None)

    def _written(self, node: Any, cut: Cut) -> Parts | None:
        """The parts of an operator's answer; None where it cannot be written on parts."""
        rank = len(node.output(0).get_shape())
        if cut.axis >= rank - 1 or not cut.parts_of(shape_of(node.output(0))[cut.axis]):
            return None
        return self._writers[node.get_type_name()](node, cut)

    def _part_by_part(self, node: Any, cut: Cut) -> Parts | None:
        whole = _cut_inputs(node, cut)
        if whole is None:
            return None
        taken = {_port(source) for source in whole}
        return repeated(
            node,
            [self._cut(source, cut) if _port(source) in taken else source for source in node.input_values()],
        )

    def _norm(self, node: Any, cut: Cut) -> Parts | None:
        if _cut_inputs(node, cut) is None:
            return None
        source = _without_bias(node)
        if _port(source) not in self._parts:
            source = node.input_value(0)
        epsilon = float(node.get_attributes()["eps"])
        return instance_norm(
            self._cut(source, cut), cut, epsilon, self._constants, centred=_port(source) in self._centred
        )

    def _convolution(self, node: Any, cut: Cut) -> Parts | None:
        kernel = kernel_of(node)
        if kernel is None:
            return None
        source = node.input_value(0)
        planes = shape_of(node.output(0))[cut.axis]
        if node.get_name() in self._chosen:
            centred = _is_only_normed(node.output(0))
            if centred:
                self._centred.add(_port(node.output(0)))
            m = self._chosen[node.get_name()]
            return winograd(self._cut(source, cut), kernel, cut, m, self._constants, centred=centred)
        near = self._parts.get(_port(source), (None, []))[0] == cut or shape_of(source)[1] <= FEW_CHANNELS
        if not kernel.is_flat(cut.axis) and (not near or not _fits(kernel, shape_of(source)[cut.axis], planes, cut)):
            return None
        return direct(self._cut(source, cut), kernel, cut, planes, self._constants)

    def _transposed(self, node: Any, cut: Cut) -> Parts | None:
        kernel = kernel_of(node)
        source = node.input_value(0)
        if kernel is None or not cut.parts_of(shape_of(source)[cut.axis]):
            return None
        taps, stride, dilation, *padding = kernel.along(cut.axis)
        if (taps, dilation, padding) != (stride, 1, [0, 0]):
            return None
        return transposed(self._cut(source, cut), kernel, cut, self._constants)

    def _cut(self, whole: Any, cut: Cut) -> Parts:
        """A tensor's parts."""
        port = _port(whole)
        present = self._parts.get(port)
        if present is not None and present[0] == cut:
            return present[1]
        parts = split(self._whole(whole), cut, self._constants)
        if present is None:
            self._parts[port] = cut, parts
            self._joined[port] = whole
        return parts

    def _whole(self, output: Any) -> Any:
        """A tensor in one piece, under its own names."""
        port = _port(output)
        if port not in self._parts:
            return output
        if port not in self._joined:
            cut, parts = self._parts[port]
            joined, names = join(parts, cut, self._constants), set(output.get_names())
            output.set_names(set())
            joined.set_names(names)
            self._joined[port] = joined
        return self._joined[port]

    def _read_joined(self, node: Any) -> None:
        for port in node.inputs():
            source = port.get_source_output()
            whole = self._whole(source)
            if whole is not source:
                port.replace_source_output(whole)


def _cut_inputs(node: Any, cut: Cut) -> list[Any] | None:
    """The inputs to be cut where an operator works part by part; None where it does not."""
    kind, answer = node.get_type_name(), node.output(0)
    if not is_fixed_float32(answer) or not all(is_fixed_float32(source) for source in _values(node)):
        return None
    rank, size = len(answer.get_shape()), shape_of(answer)[cut.axis] if cut.axis < len(answer.get_shape()) else 0
    if kind == "Convolution":
        kernel = kernel_of(node)
        return [node.input_value(0)] if kernel is not None and kernel.is_flat(cut.axis) else None
    if kind == "MVN":
        return [node.input_value(0)] if is_spatial_norm(node) else None
    if kind == "Concat":
        return list(node.input_values()) if node.get_attributes()["axis"] in (1, 1 - rank) else None
    if kind not in UNARY | BINARY:
        return None
    whole = [source for source in node.input_values() if size_along(source, cut.axis, rank) == size]
    full = all(len(source.get_shape()) == rank for source in whole)
    rest = all(size_along(source, cut.axis, rank) in (1, size) for source in node.input_values())
    return list(whole) if whole and full and rest else None


def _values(node: Any) -> list[Any]:
    """The inputs that are tensors of the network, not axes."""
    values = list(node.input_values())
    return values[:1] if node.get_type_name() == "MVN" else values


def _fits(kernel: Kernel, size: int, planes: int, cut: Cut) -> bool:
    """Whether every part of a convolution's answer is made of whole parts of its input."""
    stride = kernel.along(cut.axis)[1]
    if cut.depth == 1:
        return True
    parts, answers = cut.parts_of(size), cut.parts_of(planes)
    taps, _, dilation, before, _ = kernel.along(cut.axis)
    reach = max(before, (answers - 1) * stride - before + (taps - 1) * dilation - parts + 1)
    return parts == answers * stride and reach <= parts


def _without_bias(norm: Any) -> Any:
    """What a norm reads, before a bias for each channel that nobody else reads: subtracting the mean removes it again."""
    source = norm.input_value(0)
    return source.get_node().input_value(0) if _is_bias(source.get_node()) and _readers(source) == 1 else source


def _is_only_normed(output: Any) -> bool:
    """Whether a tensor is read by one instance norm alone, perhaps after a bias, so that any number may be added to a channel."""
    node = output
    while True:
        if _readers(node) != 1:
            return False
        reader = next(iter(node.get_target_inputs())).get_node()
        if not _is_bias(reader):
            return bool(reader.get_type_name() == "MVN" and is_spatial_norm(reader))
        node = reader.output(0)


def _is_bias(node: Any) -> bool:
    """Whether an operator adds a constant to each channel."""
    if node.get_type_name() != "Add":
        return False
    value, bias = node.input_values()
    fixed = bias.get_node().get_type_name() == "Constant" and is_fixed_float32(value)
    return fixed and len(bias.get_shape()) == len(value.get_shape()) and all(size == 1 for size in shape_of(bias)[2:])


def _readers(output: Any) -> int:
    return len(output.get_target_inputs())


def _port(output: Any) -> _Port:
    return output.get_node().get_name(), output.get_index()
