"""A widened network answers as the narrow one does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
TOOL = Path(__file__).parents[2] / "tools" / "widen_bundle.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    found = importlib.util.spec_from_file_location("widen_bundle", TOOL)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _unet() -> Any:
    """Down once, up once, a skip connection: 3, 5 and 3 channels, two classes."""
    make, rng = onnx.helper.make_node, np.random.default_rng(0)
    shapes = {
        "w0": (3, 1, 3, 3),
        "b0": (3,),
        "s": (3,),
        "t": (3,),
        "w1": (5, 3, 3, 3),
        "up": (5, 3, 2, 2),
        "head": (2, 6, 1, 1),
    }
    nodes = [
        make("Conv", ["image", "w0", "b0"], ["a"], pads=[1] * 4),
        make("InstanceNormalization", ["a", "s", "t"], ["n"]),
        make("LeakyRelu", ["n"], ["r"], alpha=0.01),
        make("Conv", ["r", "w1"], ["d"], pads=[1] * 4, strides=[2, 2]),
        make("ConvTranspose", ["d", "up"], ["u"], strides=[2, 2]),
        make("Concat", ["u", "r"], ["c"], axis=1),
        make("Conv", ["c", "head"], ["logits"]),
    ]
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, k, 8, 8]) for name, k in (("image", 1), ("logits", 2))]
    weights = [onnx.numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def _answer(model: Any) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    image = np.random.default_rng(1).normal(size=(1, 1, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"image": image})[0]
    return answer


def test_the_wide_network_computes_the_same(tool: ModuleType) -> None:
    narrow = _unet()
    wide = tool.Widener(narrow, factor=4, most=16, noise=0.0).widen()
    shapes = {each.name: tuple(each.dims) for each in wide.graph.initializer}
    assert (shapes["w0"], shapes["w1"], shapes["head"]) == ((12, 1, 3, 3), (16, 12, 3, 3), (2, 24, 1, 1))
    np.testing.assert_allclose(_answer(wide), _answer(narrow), atol=1e-4)


def test_noise_tells_the_copies_apart(tool: ModuleType) -> None:
    narrow = _unet()
    noisy = tool.Widener(narrow, factor=4, most=16, noise=0.01).widen()
    difference = np.abs(_answer(noisy) - _answer(narrow)).max()
    assert 0 < difference < 1


def test_an_operator_that_it_does_not_know_is_named(tool: ModuleType) -> None:
    model = _unet()
    model.graph.node[2].op_type = "HardSwish"
    with pytest.raises(ValueError, match="HardSwish is not understood"):
        tool.Widener(model, factor=2, most=16, noise=0.0).widen()
