"""Small tools every pass uses: loading, saving, copying, names and opsets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from offline_infer.errors import BundleError, ExportError, UsageError
from offline_infer.files import replacing
from offline_infer.graph.admission import admit
from offline_infer.graph.operators import CONTROL_FLOW

Model = Any
"""An ``onnx.ModelProto``; typed loosely because the package is optional."""


def onnx_package() -> Any:
    """The ``onnx`` package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import onnx
        import onnx.shape_inference
    except ImportError as error:
        raise UsageError(
            f"this needs the onnx package, which cannot be imported ({error}); pip install 'offline-infer[export]'"
        ) from error
    return onnx


def load_model(path: Path | str) -> Model:
    """Read an ONNX file, after it has been looked at (:func:`offline_infer.graph.admission.admit`).

    Raises:
        BundleError: missing, damaged, or not admitted; graphs inside the graph are, for a pass says itself what it can take.
    """
    onnx = onnx_package()
    admit(Path(path), control_flow=CONTROL_FLOW)
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError; its class has moved between releases
        raise BundleError(f"{path} is not an ONNX file: {error}") from error


def save_model(model: Model, path: Path | str) -> None:
    """Write a model atomically. The same model gives the same bytes.

    Raises:
        ExportError: larger than the 2 GiB a single ONNX file can have.
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf: "exceeds maximum protobuf size"
        raise ExportError(f"{path}: the graph cannot be written as one file: {error}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def graph_sha256(model: Model) -> str:
    """SHA-256 of the graph, weights and all, as :func:`save_model` writes it; metadata and opset are not part of it."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def set_metadata(model: Model, entries: Mapping[str, str]) -> Model:
    """The model with ``entries`` added to its key-value metadata, sorted by key; equal keys are replaced."""
    new = copy(model)
    merged = {prop.key: prop.value for prop in new.metadata_props} | dict(entries)
    del new.metadata_props[:]
    for key in sorted(merged):
        prop = new.metadata_props.add()
        prop.key, prop.value = key, merged[key]
    return new


def copy(model: Model) -> Model:
    """A copy that can be changed."""
    new = onnx_package().ModelProto()
    new.CopyFrom(model)
    return new


def opset(model: Model) -> int:
    """Version of the default operator set, 0 if none is named."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions, default=0)


def refuse_subgraphs(model: Model) -> None:
    """Passes look at one flat graph.

    Raises:
        ExportError: a node holds a graph of its own (If, Loop, Scan).
    """
    onnx = onnx_package()
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise ExportError(
                f"node {node.name!r} ({node.op_type}) is control flow; export the network with fixed shapes"
            )


def replace_inputs(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Let nodes read other tensors."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in names:
                node.input[i] = names[name]


def replace_nodes(model: Model, nodes: Iterable[Any]) -> None:
    """Give the graph this list of nodes."""
    kept = list(nodes)
    fresh = type(model.graph)()
    fresh.node.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(fresh.node)


def drop(repeated: Any, wanted: Iterable[bool]) -> None:
    """Delete the entries of a repeated field whose flag is false."""
    for index in reversed([i for i, keep in enumerate(wanted) if not keep]):
        del repeated[index]


def attribute(node: Any, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx_package().helper.get_attribute_value(entry)
    return default


def inferred(model: Model) -> Model:
    """The model with every tensor's type and shape filled in.

    Raises:
        ExportError: the types contradict each other.
    """
    onnx = onnx_package()
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph's types or shapes contradict each other: {_short(error)}") from error


def tensor_types(model: Model) -> dict[str, tuple[int, tuple[int | str | None, ...] | None]]:
    """Element type and shape of every tensor of an inferred model; a dynamic axis is its name or None."""
    found: dict[str, tuple[int, tuple[int | str | None, ...] | None]] = {}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        found[value.name] = (value.type.tensor_type.elem_type, shape_of(value))
    for tensor in model.graph.initializer:
        found[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    return found


def shape_of(value: Any) -> tuple[int | str | None, ...] | None:
    """Shape of a ValueInfoProto; None when even the rank is open."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes: list[int | str | None] = []
    for axis in tensor.shape.dim:
        sizes.append(int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or None)
    return tuple(sizes)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
