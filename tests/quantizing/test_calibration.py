"""How convolutions are rounded, from inputs: fitted by the package itself, or with NNCF's ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from int8_samples import PATCH, graph_bytes

from offline_infer.errors import UsageError
from offline_infer.graph import load_model
from offline_infer.graph.quantized import Rounding, convolutions, rounding_by_range
from offline_infer.quantizing import calibration
from offline_infer.quantizing.calibration import refuse_missing, roundings_of


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph_bytes())
    return path


@pytest.fixture
def inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, high, (1, 1, *PATCH)).astype(np.float32) for high in (2.0, 4.0)]


def _roundings(graph: Path, inputs: list[np.ndarray], method: str, engine: str) -> dict[str, Rounding]:
    layers = convolutions(load_model(graph))
    return roundings_of(graph, layers, inputs, method, engine, 1, lambda done, total: None)


def _width(rounding: Rounding) -> float:
    return float(255 * rounding.scale.max())


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_convolution_is_fitted_within_the_range_that_was_seen(
    graph: Path, inputs: list[np.ndarray], engine: str
) -> None:
    pytest.importorskip(engine)
    found = _roundings(graph, inputs, "fitted", engine)
    assert set(found) == {"a1", "a2", "logits"}
    assert 0.55 * 5 < _width(found["a1"]) < 1.3 * 5
    assert found["a2"].weight.shape == (8, 8, 3, 3, 3)


def test_it_does_not_matter_how_many_layers_are_held_at_a_time(
    graph: Path, inputs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    together = _roundings(graph, inputs, "fitted", "openvino")
    monkeypatch.setattr(calibration, "_HELD", 1)
    alone = _roundings(graph, inputs, "fitted", "openvino")
    for name, each in together.items():
        np.testing.assert_array_equal(each.weight, alone[name].weight)
        np.testing.assert_array_equal(each.scale, alone[name].scale)


def test_nncf_finds_a_range_for_every_convolution_near_the_one_that_was_seen(
    graph: Path, inputs: list[np.ndarray]
) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'offline-infer[quantize]'")
    found = _roundings(graph, inputs, "nncf", "openvino")
    assert set(found) == {"a1", "a2", "logits"}
    assert _width(found["a1"]) == pytest.approx(4.5, abs=1.8)


def test_nncf_is_asked_for_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_missing("fitted")
    with pytest.raises(UsageError, match="needs the packages nncf") as raised:
        refuse_missing("nncf")
    assert [remedy.code for remedy in raised.value.remedies] == ["install-quantize"]


def test_convolutions_in_groups_are_rounded_by_their_range(graph: Path, inputs: list[np.ndarray]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = onnx.load(str(graph))
    node = next(node for node in model.graph.node if node.output[0] == "a2")
    node.attribute.append(onnx.helper.make_attribute("group", 8))
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w2"]
    single = onnx.numpy_helper.to_array(weight)[:, :1]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(single), "w2"))
    onnx.save(model, str(graph))
    found = _roundings(graph, inputs, "fitted", "onnxruntime")["a2"]
    assert found.scale.shape == ()
    np.testing.assert_array_equal(found.weight, rounding_by_range(single, calibration.Range(0, 1)).weight)
