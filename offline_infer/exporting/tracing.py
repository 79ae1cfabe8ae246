"""Torch network -> clean ONNX model of one fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offline_infer import graph as passes
from offline_infer.errors import ExportError
from offline_infer.exporting.torch_export import import_torch, write_onnx
from offline_infer.spec import VolumeSpec

if TYPE_CHECKING:
    from torch import nn

OPSETS = range(11, 18)
"""What torch's tracing exporter writes and both Ascend and the other engines read."""

TRACED = 64
"""Largest spatial size traced, where the size cannot matter."""

# Operators that mean the same at any spatial size.
_SIZE_FREE = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose", "Identity",
        "InstanceNormalization", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Sigmoid",
    }
)  # fmt: skip


def trace(network: nn.Module, spec: VolumeSpec, opset: int, *, all_heads: bool = False) -> Any:
    """The network as a clean ONNX model with the fixed shape (1, c, *patch).

    torch's tracer keeps every intermediate result, 16 GB for a full-size UNet++. A network of operators that mean the
    same at any size is therefore traced at a smaller one; shape inference then has to give the right output shape.

    Raises:
        ExportError: torch cannot trace the network, or the result holds operators that have no place in inference.
    """
    small = tuple(min(size, TRACED) for size in spec.patch_size)
    if int(np.prod(small)) < int(np.prod(spec.patch_size)) and len(small) == 3:
        try:
            model = _trace_at(network, spec, small, opset, all_heads)
            if {node.op_type for node in model.graph.node} <= _SIZE_FREE:
                model = passes.fix_shapes(model, spec.input_shape)
                check_graph(model, spec)
                return model
        except ExportError:
            pass  # the trace at full size decides
    model = passes.fix_shapes(_trace_at(network, spec, spec.patch_size, opset, all_heads), spec.input_shape)
    check_graph(model, spec)
    return model


def _trace_at(network: nn.Module, spec: VolumeSpec, patch: Sequence[int], opset: int, all_heads: bool) -> Any:
    torch = import_torch()
    image = torch.zeros((1, spec.input_channels, *patch), dtype=torch.float32)
    written = write_onnx(network, image, opset, spec.input_name)
    onnx = passes.onnx_package()
    model = onnx.load_from_string(written)
    heads = [value.name for value in model.graph.output]
    if not all_heads:
        model = passes.select_outputs(model, heads[:1])
        heads = heads[:1]
    model = passes.clean(model)
    return passes.rename_outputs(model, ["logits", *(f"logits_{i}" for i in range(1, len(heads)))])


def check_graph(model: Any, spec: VolumeSpec) -> None:
    """The graph is valid, has the declared ports, and holds nothing that belongs to training."""
    onnx = passes.onnx_package()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise ExportError(f"the exported graph is not valid ONNX: {' '.join(str(error).split())[:400]}") from error
    facts = passes.inspect_graph(model)
    expected = passes.Port(spec.input_name, "float32", spec.input_shape)
    if facts.inputs != (expected,):
        raise ExportError(f"the graph's inputs are {facts.inputs}, expected {expected}")
    logits, shape = facts.outputs[0], (1, spec.labels.channels, *spec.patch_size)
    if logits.shape != shape or logits.dtype != "float32":
        raise ExportError(
            f"the network gives {logits.dtype} {logits.shape}, but labels and patch size ask for float32 {shape}; "
            "check that plans and weights are from one training"
        )
    bad = [advice for advice in facts.advice if "eval mode" in advice]
    if bad:
        raise ExportError(f"the graph is not fit for inference: {'; '.join(bad)}")
