"""What a graph is made of, and what may go wrong with it on other machines: a pre-flight check."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.graph.model import (
    Model,
    attribute,
    load_model,
    onnx_package,
    opset,
    shape_of,
)

NEWEST_PORTABLE_OPSET = 17
"""Ascend's ONNX parser takes up to opset 17 in most releases; torch's tracing exporter stops there too."""

# Operators of the published nets of the family, after the passes of this package.
USUAL_OPS = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose", "GlobalAveragePool",
        "InstanceNormalization", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Resize", "Sigmoid",
        "Div", "ReduceMean", "Sqrt", "Sub",
    }
)  # fmt: skip
_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_LARGE = 1 << 31  # bytes a single ONNX file may have


@dataclass(frozen=True)
class Port:
    """An input or output. ``shape``: fixed sizes as numbers, open ones by name or None; None if the rank is open."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class GraphFacts:
    """What :func:`inspect_graph` found.

    Attributes:
        opset: of the default operator set; ``domains``: other operator sets with their versions.
        ops: operator type -> how many, most frequent first.
        dtypes: element types of inputs, outputs and weights -> how many tensors.
        inputs, outputs: ports, weights not counted as inputs.
        dynamic: ``name[axis]`` of every open size of an input or output.
        initializers: number of weight tensors; ``parameters``: number of values in floating-point ones.
        weight_bytes: bytes of all weights.
        instance_norms: number of InstanceNormalization nodes.
        advice: sentences about what may go wrong, worst first; empty for a graph as ``export`` makes it.
    """

    opset: int
    domains: dict[str, int]
    ops: dict[str, int]
    dtypes: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dynamic: tuple[str, ...]
    initializers: int
    parameters: int
    weight_bytes: int
    instance_norms: int
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def inspect_graph(graph: Path | str | Model) -> GraphFacts:
    """Look at a graph without running it.

    Args:
        graph: an ONNX file, or a model in memory.

    Raises:
        BundleError: the file cannot be read.
        UsageError: the onnx package is missing.
    """
    model = load_model(graph) if isinstance(graph, (str, Path)) else graph
    onnx = onnx_package()
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_port(onnx, value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_port(onnx, value) for value in model.graph.output)
    sizes = [(tensor, int(np.prod(tensor.dims, dtype=np.int64))) for tensor in model.graph.initializer]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    names = Counter(port.dtype for port in (*inputs, *outputs))
    names.update(_dtype_name(onnx, tensor.data_type) for tensor in model.graph.initializer)
    ops = Counter(node.op_type for node in model.graph.node)
    dynamic = tuple(
        f"{port.name}[{'?' if port.shape is None else axis}]"
        for port in (*inputs, *outputs)
        for axis, size in enumerate(port.shape if port.shape is not None else (None,))
        if not isinstance(size, int)
    )
    facts = GraphFacts(
        opset=opset(model),
        domains={e.domain: int(e.version) for e in model.opset_import if e.domain not in ("", "ai.onnx")},
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        dtypes=dict(sorted(names.items())),
        inputs=inputs,
        outputs=outputs,
        dynamic=dynamic,
        initializers=len(sizes),
        parameters=sum(count for tensor, count in sizes if tensor.data_type in floats),
        weight_bytes=sum(_tensor_bytes(onnx, tensor, count) for tensor, count in sizes),
        instance_norms=ops["InstanceNormalization"],
        advice=(),
    )
    return GraphFacts(**{**facts.__dict__, "advice": tuple(_advice(model, facts))})


def _advice(model: Model, facts: GraphFacts) -> list[str]:
    training = [
        node.name
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)
    ]
    rank = max((len(port.shape) for port in facts.inputs if port.shape is not None), default=0)
    random = sorted(set(facts.ops) & _RANDOM)
    odd = sorted(set(facts.ops) - USUAL_OPS - _RANDOM - {"Identity"})
    half = facts.dtypes.get("float16", 0)
    identities, outputs, newest = facts.ops.get("Identity", 0), len(facts.outputs), NEWEST_PORTABLE_OPSET
    found: list[tuple[Any, str]] = [
        (
            training,
            f"BatchNormalization in training mode ({', '.join(training)}) computes with each image's own statistics; "
            "export in eval mode",
        ),
        (random, f"training operators ({', '.join(random)}); export in eval mode"),
        (
            facts.dynamic,
            f"open sizes ({', '.join(facts.dynamic)}): the engines here and Ascend want fixed ones; "
            "export with a fixed shape",
        ),
        (len(facts.inputs) != 1, f"{len(facts.inputs)} inputs; the runtime here feeds one"),
        (
            facts.opset > newest,
            f"opset {facts.opset}: Ascend's parser takes up to {newest}; export at opset {newest} or lower",
        ),
        (0 < facts.opset < 11, f"opset {facts.opset} is older than any tested here; export at opset 11 or higher"),
        (facts.domains, f"operators outside the standard ({', '.join(facts.domains)}): only some engines know them"),
        (
            half and not facts.ops.get("Cast") and facts.instance_norms,
            "InstanceNormalization in half precision changes labels; convert the float32 graph with "
            "offline_infer.graph.to_float16",
        ),
        (facts.dtypes.get("float64"), "float64 tensors: most accelerators lack them; convert the network to float32"),
        (
            rank == 5 and facts.ops.get("Resize"),
            "Resize of a volume: older Ascend releases know it in two dimensions only",
        ),
        (
            outputs > 1,
            f"{outputs} outputs: tools that save all of them write {outputs} times the disk; "
            "offline_infer.graph.select_outputs keeps one",
        ),
        (odd, f"operators not seen in this family of networks ({', '.join(odd)}): see that the target engine has them"),
        (
            identities,
            f"{identities} Identity nodes: some converters trip over them; offline_infer.graph.clean folds them",
        ),
        (facts.weight_bytes >= _LARGE, "more weights than one ONNX file can hold (2 GiB)"),
    ]
    return [sentence for condition, sentence in found if condition]


def _port(onnx: Any, value: Any) -> Port:
    return Port(value.name, _dtype_name(onnx, value.type.tensor_type.elem_type), shape_of(value))


def _dtype_name(onnx: Any, kind: int) -> str:
    name = str(onnx.TensorProto.DataType.Name(kind)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _tensor_bytes(onnx: Any, tensor: Any, count: int) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
