"""The shapes of a graph's tensors, worked out without running it and without believing it.

The ``onnx`` package can follow the values of tensors that say sizes (``data_prop``), but it writes such a list out number by
number: a graph of two kilobytes that counts to 2^30, or doubles a list thirty times, takes all memory there. So sizes are followed
here, with short lists only, and the package's own way is taken where no list is long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offline_infer.errors import ExportError
from offline_infer.graph.model import Model, copy, onnx_package, shape_of
from offline_infer.graph.operators import ELEMENTWISE, SIZING_INPUTS

Ranked = Mapping[str, tuple[tuple[int, ...], int]]
"""Tensor -> its shape (an open size as 0) and its element type."""

_SHORT = 64  # values of a tensor that may say sizes
_LONG = 1 << 16  # values of a list that the onnx package may follow
_ROUNDS = 32  # in which sizes that follow from sizes are worked out
_ARITHMETIC = ELEMENTWISE | {
    "Concat", "Constant", "Gather", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze",
    "Unsqueeze",
}  # fmt: skip
"""Operators on sizes that are worked out here; of few values they make few."""
_SIZING = {**SIZING_INPUTS, "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "TopK": (1,)}


def infer_shapes(model: Model, *, strict: bool = False) -> Model:
    """The graph with the shapes of its tensors in ``value_info`` and at its outputs, and without its larger weights.

    Args:
        strict: a node whose shapes contradict each other is an error; otherwise its tensors stay unknown.

    Raises:
        ExportError: a contradiction.
    """
    onnx = onnx_package()
    how = {"check_type": strict, "strict_mode": strict}
    known: dict[str, Any] = {}
    try:
        found = onnx.shape_inference.infer_shapes(_without_values(onnx, model), **how)
        for _ in range(_ROUNDS):
            if not _write_sizes(onnx, found, known):
                break
            found = onnx.shape_inference.infer_shapes(found, **how)
        return found if _has_long_list(found) else onnx.shape_inference.infer_shapes(found, data_prop=True, **how)
    except Exception as error:  # of shape inference, of protobuf: they share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ExportError(f"the shapes of its tensors cannot be worked out: {reason[:200]}") from error


def fix_shapes(model: Model, input_shape: Sequence[int], known: Mapping[str, Sequence[int]] | None = None) -> Model:
    """Give the only input this shape and let it decide the shapes of the outputs.

    Args:
        known: output -> shape that the original gives for this input, for sizes that shape inference cannot work out.

    Raises:
        ExportError: several inputs, operators that cannot take that shape, or an output whose shape stays open.
    """
    new = copy(model)
    if len(new.graph.input) != 1:
        raise ExportError(f"the graph has {len(new.graph.input)} inputs, expected one")
    _set_shape(new.graph.input[0], input_shape)
    for value in new.graph.output:
        value.type.tensor_type.ClearField("shape")
    del new.graph.value_info[:]
    try:
        found = infer_shapes(new, strict=True)
    except ExportError as error:
        raise ExportError(f"the graph cannot take an input of {tuple(input_shape)}: {error}") from error
    for value, worked_out in zip(new.graph.output, found.graph.output, strict=True):
        shape, told = shape_of(worked_out), (known or {}).get(value.name)
        if told is not None and _fits(shape, told):
            shape = tuple(told)
        if shape is None or not all(isinstance(size, int) for size in shape):
            raise ExportError(f"the shape of output {value.name!r} stays open ({shape})")
        _set_shape(value, [size for size in shape if isinstance(size, int)])
    return new


def ranked(*ports: Any) -> Ranked:
    """Of the ports (``ValueInfoProto``) those whose rank is known."""
    found = {}
    for port in ports:
        kind = port.type.tensor_type
        if kind.HasField("shape"):
            found[port.name] = (tuple(int(size.dim_value) for size in kind.shape.dim), int(kind.elem_type))
    return found


def _fits(shape: Sequence[int | str | None] | None, told: Sequence[int]) -> bool:
    """Whether a shape, as far as it is known, is the one that is told."""
    if shape is None:
        return True
    return len(shape) == len(told) and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(shape, told, strict=True)
    )


def _set_shape(value: Any, shape: Sequence[int]) -> None:
    tensor = value.type.tensor_type
    tensor.ClearField("shape")
    for size in shape:
        tensor.shape.dim.add().dim_value = size


def _without_values(onnx: Any, model: Model) -> Model:
    """The model with its larger weights as inputs: their shapes decide others, their values do not."""
    shell = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    shell.graph.node.extend(model.graph.node)
    shell.graph.output.extend(model.graph.output)
    named = {weight.name for weight in model.graph.initializer}
    shell.graph.input.extend(port for port in model.graph.input if port.name not in named)
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= _SHORT:
            shell.graph.initializer.append(weight)
        else:
            shell.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    return shell


def _has_long_list(model: Model) -> bool:
    """Whether a tensor that shape inference could take for a list of sizes has many values, or an unknown number."""
    lists = ranked(*model.graph.value_info, *model.graph.output)
    for node in model.graph.node:
        shape, _ = lists.get(node.output[0] if node.output else "", ((), 0))
        unknown = node.op_type == "Range" and (len(shape) != 1 or shape[0] < 1)
        if unknown or (len(shape) == 1 and shape[0] > _LONG):
            return True
    return False


def _write_sizes(onnx: Any, model: Model, known: dict[str, Any]) -> bool:
    """Write sizes that follow from shapes by arithmetic into the graph as constants, where a node asks for them.

    Args:
        known: tensor -> its few values, as far as they are known already; more are added.

    Returns:
        Whether there were any.
    """
    stored = {weight.name: weight for weight in model.graph.initializer}
    known.update((name, onnx.numpy_helper.to_array(weight)) for name, weight in stored.items() if name not in known)
    shapes = ranked(*model.graph.input, *model.graph.value_info, *model.graph.output)
    wrote = False
    for node in model.graph.node:
        for place in _SIZING.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if name in known and name not in stored:
                constant = f"{name}:size"
                if constant not in stored:
                    stored[constant] = onnx.numpy_helper.from_array(known[name], constant)
                    model.graph.initializer.append(stored[constant])
                node.input[place] = constant
                wrote = True
        if node.output and node.output[0] not in known:
            known.update(_computed(onnx, node, known, shapes, model.opset_import))
    return wrote


def _computed(onnx: Any, node: Any, known: Mapping[str, Any], shapes: Ranked, opsets: Any) -> dict[str, Any]:
    """The result of a node that works on few known numbers, or asks for a known shape; empty for others."""
    if node.op_type in ("Shape", "Size"):
        shape, _ = shapes.get(node.input[0], ((0,), 0))
        if node.attribute or min(shape, default=1) < 1:
            return {}
        return {node.output[0]: np.array(shape if node.op_type == "Shape" else math.prod(shape), np.int64)}
    inputs = list(dict.fromkeys(filter(None, node.input)))
    if node.op_type not in _ARITHMETIC or not all(name in known for name in inputs):
        return {}
    from onnx.reference import ReferenceEvaluator

    kind = onnx.helper.np_dtype_to_tensor_dtype
    ports = [onnx.helper.make_tensor_value_info(name, kind(known[name].dtype), None) for name in inputs]
    ends = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    try:
        single = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports, ends), opset_imports=opsets)
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(single).run(None, {name: known[name] for name in inputs})
    except Exception:  # whatever it finds wrong: the size stays unknown, and the engine says so itself
        return {}
    made = {name: np.asarray(value) for name, value in zip(node.output, results, strict=True)}
    return {name: value for name, value in made.items() if value.size <= _SHORT}
