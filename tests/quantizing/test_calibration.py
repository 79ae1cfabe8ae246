"""Ranges of activations: what NNCF decides, and what the package's own observation does without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from int8_samples import PATCH, graph_bytes

from offline_infer.errors import UsageError
from offline_infer.quantizing.calibration import calibration_method, ranges_of

TENSORS = ("image", "r1", "r2")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph_bytes())
    return path


@pytest.fixture
def inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, high, (1, 1, *PATCH)).astype(np.float32) for high in (2.0, 4.0)]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_observed_range_is_the_mean_of_the_ends(graph: Path, inputs: list[np.ndarray], engine: str) -> None:
    pytest.importorskip(engine)
    found = ranges_of(graph, TENSORS, inputs, "observed", engine, 1)
    assert set(found) == set(TENSORS)
    assert found["image"].low == pytest.approx(-1, abs=0.01)
    assert found["image"].high == pytest.approx(3, abs=0.01)
    assert found["r1"].high == pytest.approx(4.5, abs=0.02)


def test_nncf_finds_a_range_for_every_tensor_near_the_observed_one(graph: Path, inputs: list[np.ndarray]) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'offline-infer[quantize]'")
    found = ranges_of(graph, TENSORS, inputs, "nncf", "openvino", 1)
    observed = ranges_of(graph, TENSORS, inputs, "observed", "openvino", 1)
    assert set(found) == set(TENSORS)
    for name in TENSORS:
        width = observed[name].high - observed[name].low
        assert found[name].low == pytest.approx(observed[name].low, abs=0.4 * width)
        assert found[name].high == pytest.approx(observed[name].high, abs=0.4 * width)


def test_without_nncf_auto_is_the_own_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert calibration_method("auto") == "observed"
    with pytest.raises(UsageError, match="needs the packages nncf") as raised:
        calibration_method("nncf")
    assert [remedy.code for remedy in raised.value.remedies] == ["install-quantize"]
