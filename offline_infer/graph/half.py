"""Half precision with float32 islands.

The weights and most operators become float16; normalisation keeps its statistics in float32, because a sum over a large
volume, or the square of a large number, does not fit float16 (largest value 65504). Casts stand where the two meet.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline_infer.errors import ExportError
from offline_infer.graph import instance_norm
from offline_infer.graph.clean import constants_to_initializers, prune
from offline_infer.graph.model import (
    Model,
    copy,
    inferred,
    onnx_package,
    refuse_subgraphs,
    replace_nodes,
    tensor_types,
)

FLOAT32_OPS = frozenset(
    {
        "InstanceNormalization", "BatchNormalization", "GroupNormalization", "LayerNormalization",
        "LpNormalization", "MeanVarianceNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1",
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "GlobalAveragePool", "CumSum", "Softmax",
        "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
    }
)  # fmt: skip
"""Operators that sum over many values or leave float16's range; they compute in float32."""

# Their float type is not that of an input, so what they make stays float32 and is cast behind them.
_SOURCES = frozenset(
    {"Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "EyeLike", "RandomNormal", "RandomUniform", "Range"}
)
_FLOAT32_INPUTS = {"Resize": (2,), "Upsample": (1,)}  # scale factors are float32 by definition
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfReport:
    """What a conversion did.

    Attributes:
        halved, kept: number of nodes that touch floats and compute in float16, in float32.
        casts: number of Cast nodes put in.
        clipped: weight -> how many values lay beyond +-65504 and were set to it.
        vanished: weight -> how many non-zero values are too small for float16 and became zero.
    """

    halved: int
    kept: int
    casts: int
    clipped: dict[str, int]
    vanished: dict[str, int]


def to_float16(
    model: Model, *, keep_ops: Collection[str] = FLOAT32_OPS, keep_nodes: Collection[str] = (), keep_io: bool = True
) -> tuple[Model, HalfReport]:
    """Convert a float32 graph to half precision.

    Args:
        model: a flat float32 graph.
        keep_ops: operator types that stay float32, everywhere.
        keep_nodes: names of further nodes that stay float32.
        keep_io: inputs and outputs of the graph stay float32.

    Returns:
        The new model and what was done.

    Raises:
        ExportError: ``keep_nodes`` names no node, a weight is NaN or infinite, or the result is not a valid graph.
    """
    refuse_subgraphs(model)
    _refuse_unknown(model, keep_nodes)
    source = constants_to_initializers(model)
    types = tensor_types(inferred(source))
    new = copy(source)
    del new.graph.value_info[:]
    builder = _Builder(new, types, keep_io)
    for node in source.graph.node:
        wide = (
            node.op_type in keep_ops
            or node.op_type in _SOURCES
            or node.name in keep_nodes
            or instance_norm.is_part(node.name)
        )
        builder.add(node, wide)
    result = prune(builder.finish())
    _check(result)
    return result, builder.report()


class _Builder:
    """Copies nodes one by one and casts where types meet. A tensor keeps its name in the type it is made in."""

    def __init__(self, model: Model, types: dict[str, Any], keep_io: bool) -> None:
        self._onnx = onnx_package()
        self._float = int(self._onnx.TensorProto.FLOAT)
        self._half = int(self._onnx.TensorProto.FLOAT16)
        self._model = model
        self._floats = {name for name, (kind, _) in types.items() if kind == self._float}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {output.name for output in model.graph.output}
        self._keep_io = keep_io
        self._made: dict[str, int] = {}  # tensor -> the type it is made in
        self._cast: dict[tuple[str, int], str] = {}  # (tensor, type) -> name of its cast
        self._nodes: list[Any] = []
        self._counts = {"halved": 0, "kept": 0, "casts": 0}
        self._clipped: dict[str, int] = {}
        self._vanished: dict[str, int] = {}
        for value in model.graph.input:
            if value.name in self._floats:
                if not keep_io:
                    value.type.tensor_type.elem_type = self._half
                self._made[value.name] = self._float if keep_io else self._half

    def add(self, node: Any, wide: bool) -> None:
        """Take over one node, computing in float32 if ``wide``."""
        copy_ = self._onnx.NodeProto()
        copy_.CopyFrom(node)
        own = self._float if wide else self._half
        always = _FLOAT32_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in self._floats:
                copy_.input[i] = self._typed(name, self._float if i in always else own)
        makes = [name for name in node.output if name in self._floats]
        if makes or any(name in self._floats for name in node.input):
            self._counts["kept" if wide else "halved"] += 1
        self._nodes.append(copy_)
        for i, name in enumerate(node.output):
            if name not in makes:
                continue
            self._made[name] = own
            io = self._float if self._keep_io else self._half
            if name in self._outputs and own != io:
                inner = f"{name}__{'fp32' if own == self._float else 'fp16'}"
                copy_.output[i] = inner
                self._cast[name, own] = inner
                self._put_cast(inner, name, io)
                self._made[name] = io

    def finish(self) -> Model:
        """The model with the new nodes, output types and weights."""
        replace_nodes(self._model, self._nodes)
        if not self._keep_io:
            for value in self._model.graph.output:
                if value.name in self._floats:
                    value.type.tensor_type.elem_type = self._half
        return self._model

    def report(self) -> HalfReport:
        return HalfReport(clipped=self._clipped, vanished=self._vanished, **self._counts)

    def _typed(self, name: str, kind: int) -> str:
        """Name under which a float tensor is available in ``kind``."""
        if name in self._weights:
            return name if kind == self._float else self._half_weight(name)
        if self._made[name] == kind:
            return name
        if (name, kind) not in self._cast:
            target = f"{name}__{'fp32' if kind == self._float else 'fp16'}"
            self._put_cast(name, target, kind)
            self._cast[name, kind] = target
        return self._cast[name, kind]

    def _put_cast(self, source: str, target: str, kind: int) -> None:
        self._counts["casts"] += 1
        self._nodes.append(self._onnx.helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind))

    def _half_weight(self, name: str) -> str:
        if (name, self._half) not in self._cast:
            values = self._onnx.numpy_helper.to_array(self._weights[name])
            if not np.isfinite(values).all():
                raise ExportError(f"weight {name!r} holds NaN or infinite values; the checkpoint is damaged")
            small = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
            if beyond := int(np.count_nonzero(np.abs(values) > _LARGEST)):
                self._clipped[name] = beyond
            if lost := int(np.count_nonzero((small == 0) & (values != 0))):
                self._vanished[name] = lost
            target = f"{name}__fp16"
            self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(small, target))
            self._cast[name, self._half] = target
        return self._cast[name, self._half]


def _refuse_unknown(model: Model, names: Collection[str]) -> None:
    present = [node.name for node in model.graph.node]
    for name in sorted(set(names) - set(present)):
        near = difflib.get_close_matches(name, present, 3)
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise ExportError(f"no node of the graph is called {name!r}{hint}")


def _check(model: Model) -> None:
    onnx = onnx_package()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the half-precision graph is not valid: {str(error).strip()[:500]}") from error
