"""Inside a graph: where two sides part is the tensor whose weights were changed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from offline_infer.engines.base import EngineOptions
from offline_infer.errors import UsageError
from offline_infer.graph.taps import find_taps, with_outputs
from offline_infer.proof.comparison.layers import Side, compare_layers, growth_svg, layers_text
from offline_infer.proof.report import write_report


def network(path: Path, change: int | None = None) -> Path:
    """Four convolutions with activations; ``change`` negates a weight of one of them."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "image"
    for number in range(4):
        values = rng.normal(scale=0.3, size=(3, 1 if number == 0 else 3, 3, 3)).astype(np.float32)
        if number == change:
            values[0] = -values[0]
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("Conv", [name, f"w{number}"], [f"conv{number}"], f"n{number}", pads=[1, 1, 1, 1]))
        name = "logits" if number == 3 else f"act{number}"
        nodes.append(helper.make_node("LeakyRelu", [f"conv{number}"], [name], f"a{number}", alpha=0.01))
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8]) for n, c in (("image", 1), ("logits", 3))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def batch() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 1, 8, 8)).astype(np.float32)


def side(graph: Path, engine: str = "onnxruntime") -> Side:
    return Side(engine, graph, EngineOptions(threads=1))


def test_every_tensor_is_found_in_order(tmp_path: Path) -> None:
    model = onnx.load(str(network(tmp_path / "a.onnx")))
    taps = find_taps(model)
    assert [tap.name for tap in taps][:3] == ["conv0", "act0", "conv1"]
    assert [tap.op for tap in taps][:2] == ["Conv", "LeakyRelu"]
    assert taps[0].bytes == 3 * 64 * 4
    more = with_outputs(model, ["act1", "logits"])
    assert [value.name for value in more.graph.output] == ["logits", "act1"]
    assert [value.name for value in model.graph.output] == ["logits"]


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_they_part_where_the_weights_do(tmp_path: Path, budget: int) -> None:
    changed, right = network(tmp_path / "a.onnx", change=2), network(tmp_path / "b.onnx")
    found = compare_layers(side(changed), side(right), batch(), budget=budget)
    assert found.first is not None
    assert found.layers[found.first].name == "conv2"
    names = ["conv0", "act0", "conv1", "act1", "conv2", "act2", "conv3", "logits"]
    assert [layer.name for layer in found.layers] == names
    assert all(layer.relative_euclidean == 0 for layer in found.layers[:4])
    text = layers_text(found)
    assert "they part at tensor 5 of 8: conv2, made by Conv" in text


def test_two_engines_agree_and_the_record_is_shown(tmp_path: Path) -> None:
    graph = network(tmp_path / "a.onnx")
    found = compare_layers(side(graph, "openvino"), side(graph), batch())
    assert found.first is None
    assert "all 8 tensors agree" in layers_text(found)
    changed = compare_layers(side(network(tmp_path / "b.onnx", change=1)), side(graph), batch())
    record = changed.to_json()
    (tmp_path / "layers.json").write_text(json.dumps(record, allow_nan=False))
    assert write_report([tmp_path / "layers.json"], tmp_path / "r.html").problems == ()
    text = (tmp_path / "r.html").read_text()
    assert "parts at conv1" in text
    assert "<polyline" in text
    root = ET.fromstring(growth_svg(changed))
    assert any("conv1" in (element.text or "") for element in root.iter())


def test_wrong_tolerance_and_nothing_in_common(tmp_path: Path) -> None:
    graph = network(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="tolerance"):
        compare_layers(side(graph), side(graph), batch(), tolerance=float("inf"))
    other = onnx.load(str(graph))
    for node in other.graph.node:
        node.output[0] = f"x{node.output[0]}"
        node.input[0] = node.input[0] if node.input[0] == "image" else f"x{node.input[0]}"
    other.graph.output[0].name = "xlogits"
    onnx.save(other, str(tmp_path / "b.onnx"))
    with pytest.raises(UsageError, match="no tensor in common"):
        compare_layers(side(graph), side(tmp_path / "b.onnx"), batch())
