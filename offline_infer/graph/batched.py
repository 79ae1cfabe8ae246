"""Turn a graph for one image into one for a batch, where no operator mixes the images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline_infer.errors import ExportError
from offline_infer.graph.clean import constants_to_initializers, select_outputs
from offline_infer.graph.model import Model, attribute, onnx_package, refuse_subgraphs, shape_of
from offline_infer.graph.shapes import fix_shapes

# These treat every image of a batch independently, whatever their attributes.
_APART = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Conv", "ConvTranspose", "Div", "Dropout", "Elu", "Erf",
        "Exp", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LeakyRelu",
        "MaxPool", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub",
        "Tanh",
    }
)  # fmt: skip


def batched(model: Model, count: int, output: str | None = None) -> Model:
    """The graph with ``count`` images a call and one output.

    Args:
        model: a graph of one image, (1, c, *patch).
        output: the output that is kept, default the first.

    Raises:
        ExportError: an operator looks at more than one image, or holds the old batch size; or the graph is odd otherwise.
    """
    refuse_subgraphs(model)
    new = constants_to_initializers(select_outputs(model, [output or model.graph.output[0].name]))
    if len(new.graph.input) != 1:
        raise ExportError(f"the graph has {len(new.graph.input)} inputs, expected one")
    shape = _fixed(new.graph.input[0])
    if shape[0] != 1:
        raise ExportError(f"the graph takes {shape[0]} images at once already")
    weights = {tensor.name: tensor for tensor in new.graph.initializer}
    for node in new.graph.node:
        reason = _why_not(node, weights, len(shape))
        if reason is not None:
            raise ExportError(f"{node.op_type} {node.name!r} {reason}, so the graph cannot take {count} images at once")
    before = _fixed(new.graph.output[0])
    result = fix_shapes(new, (count, *shape[1:]))
    after = _fixed(result.graph.output[0])
    if after != (count, *before[1:]):
        raise ExportError(f"with {count} images the output's shape became {after}, expected {(count, *before[1:])}")
    return result


def _why_not(node: Any, weights: dict[str, Any], rank: int) -> str | None:
    """Why a node cannot be left as it is; None when it can."""
    kind = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return f"is not of the standard operator set ({node.domain})"
    if any(weights[name].dims[0] != 1 for name in node.input if name in weights and len(weights[name].dims) == rank):
        if kind in ("Conv", "ConvTranspose"):
            return None
        return "has weights for each image"
    if kind in _APART:
        return None
    if kind in ("Concat", "Softmax", "LogSoftmax"):
        axis = attribute(node, "axis", -1)
        return "works across the images" if axis % rank == 0 else None
    if kind in ("ReduceMean", "ReduceMax", "ReduceSum"):
        axes = attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            axes = _values(node.input[1], weights)
        keeps = attribute(node, "keepdims", 1)
        return None if axes and keeps and all(axis % rank for axis in axes) else "may work across the images"
    if kind == "Resize":
        scales = _values(node.input[2], weights) if len(node.input) > 2 else None
        sized = len(node.input) > 3 and node.input[3]
        return None if scales and scales[0] == 1 and not sized else "holds the old number of images"
    return "is not known to treat the images of a batch independently"


def _values(name: str, weights: dict[str, Any]) -> list[float] | None:
    tensor = weights.get(name)
    return None if tensor is None else onnx_package().numpy_helper.to_array(tensor).tolist()


def _fixed(value: Any) -> tuple[int, ...]:
    shape: Sequence[int | str | None] = shape_of(value) or ()
    sizes = tuple(size for size in shape if isinstance(size, int))
    if not sizes or len(sizes) != len(shape):
        raise ExportError(f"{value.name}: shape {shape}, expected fixed sizes")
    return sizes
