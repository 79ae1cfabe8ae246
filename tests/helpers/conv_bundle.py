"""A bundle whose graph is a real one that every engine opens: a single convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from specimens import tiny_spec, with_graphs, with_outputs

from offline_infer.bundles.bundle import Bundle, save
from offline_infer.files import sha256_file

PATCH = (4, 6, 8)


def conv_bundle(folder: Path) -> Bundle:
    """Write the bundle; the test is skipped without the ``onnx`` package."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = save(with_graphs(with_outputs(tiny_spec(patch=PATCH)), folder, content=_graph(1)[:-1]), folder)
    path = bundle.graph_path("0")
    path.write_bytes(_graph(1))
    record = bundle.spec.graphs[0].model_copy(update={"sha256": sha256_file(path)})
    return save(bundle.spec.model_copy(update={"graphs": (record,)}), folder)


def negate_weights(bundle: Bundle) -> Path:
    """Negate the weights of the graph, and leave its record as it is; returns the graph's path."""
    path = bundle.graph_path("0")
    path.write_bytes(_graph(-1))
    return path


def _graph(sign: int) -> bytes:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weight = sign * np.random.default_rng(0).standard_normal((3, 1, 1, 1, 1)).astype(np.float32)
    image = helper.make_tensor_value_info("image", 1, [1, 1, *PATCH])
    logits = helper.make_tensor_value_info("logits", 1, [1, 3, *PATCH])
    nodes = [helper.make_node("Conv", ["image", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "g", [image], [logits], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
