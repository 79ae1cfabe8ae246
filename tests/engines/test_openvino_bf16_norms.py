"""What stays float32 in a bfloat16 graph: the norms' statistics, exact on large tiles, and both ends of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline_infer.engines.base import EngineOptions, Norms, get_engine
from offline_infer.engines.openvino.bf16_norms import keep_ends_float32, make_norms_float32, rounded_node

onnx = pytest.importorskip("onnx")
ov = pytest.importorskip("openvino")

pytestmark = pytest.mark.skipif(
    "BF16" not in [str(item) for item in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")],
    reason="this processor has no bfloat16 arithmetic",
)

CHANNELS = 4


def as_bf16(values: np.ndarray) -> np.ndarray:
    """Float32 values that bfloat16 holds exactly: the upper half of the bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def graph_of(path: Path, shape: tuple[int, ...]) -> Path:
    """Convolutions that change nothing, the norm, LeakyReLU, more of them: bfloat16 but for the norm and both ends."""
    helper, spatial = onnx.helper, len(shape) - 2
    same = np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS, *(1,) * spatial)
    weights = {
        "same": same,
        "s": np.linspace(0.5, 1.5, CHANNELS, dtype=np.float32),
        "b": np.linspace(-0.2, 0.3, CHANNELS, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "same"], ["w"], name="first"),
        helper.make_node("Conv", ["w", "same"], ["x"], name="second"),
        helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], name="norm", epsilon=1e-5),
        helper.make_node("LeakyRelu", ["y"], ["z"], name="nonlin", alpha=0.01),
        helper.make_node("Conv", ["z", "same"], ["last"], name="last but one"),
        helper.make_node("Conv", ["last", "same"], ["logits"], name="last"),
    ]
    ports = [[helper.make_tensor_value_info(name, 1, list(shape))] for name in ("image", "logits")]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *ports, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def expected(image: np.ndarray) -> np.ndarray:
    wide, axes = image.astype(np.float64), tuple(range(2, image.ndim))
    mean, variance = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    each = (1, CHANNELS, *(1,) * (image.ndim - 2))
    scale, bias = np.linspace(0.5, 1.5, CHANNELS).reshape(each), np.linspace(-0.2, 0.3, CHANNELS).reshape(each)
    normed = (wide - mean) / np.sqrt(variance + 1e-5) * scale + bias
    return np.where(normed > 0, normed, 0.01 * normed)


def images(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    air = np.where(np.random.default_rng(1).random(shape) < 0.9, np.float32(-1.3), noise)
    return {"plain": noise, "offset": noise + 3, "air": air}


@pytest.mark.parametrize("shape", [(1, CHANNELS, 48, 64, 64), (1, CHANNELS, 300, 400)])
def test_statistics_are_float32(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The answer is the exact one rounded once: a wrong mean or deviation would show in every voxel."""
    path = graph_of(tmp_path / "g.onnx", shape)
    equal: dict[str, dict[str, float]] = {"exact": {}, "native": {}}
    for norms, found in equal.items():
        with get_engine("openvino").open(path, EngineOptions("cpu", "bf16", 2, extra={"norms": norms})) as session:
            assert session.info.norms == Norms(norms)
            for name, image in images(shape).items():
                given = as_bf16(image)
                found[name] = float((session.run(given) == as_bf16(expected(given).astype(np.float32))).mean())
    assert min(equal["exact"].values()) > 0.99
    assert equal["exact"]["air"] > equal["native"]["air"]


@pytest.mark.parametrize("sizes", [(1, 4, 4), (4, 4, 1), (2, 2, 2), (1, 1, 4), (1, 1, 1), (5, 5), (1, 5)])
def test_small_grids(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    shape = (1, CHANNELS, *sizes)
    path = graph_of(tmp_path / "g.onnx", shape)
    given = as_bf16(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    with get_engine("openvino").open(path, EngineOptions(precision="bf16", threads=1)) as session:
        assert session.info.norms == Norms("exact")
        np.testing.assert_allclose(session.run(given), expected(given), atol=0.02)


def test_a_constant_channel_gives_the_bias(tmp_path: Path) -> None:
    shape = (1, CHANNELS, 16, 24, 32)
    path = graph_of(tmp_path / "g.onnx", shape)
    with get_engine("openvino").open(path, EngineOptions(precision="bf16", threads=1)) as session:
        for value in (0.0, 1.0, -37.0, 1000.0):
            given = as_bf16(np.full(shape, value, np.float32))
            answer = session.run(given)
            assert np.isfinite(answer).all()
            assert np.abs(answer - expected(given)).max() < 0.05


def test_the_compiled_graph_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graph_of(tmp_path / "g.onnx", (1, CHANNELS, 8, 12, 16))
    core = ov.Core()
    model = core.read_model(str(path))
    assert make_norms_float32(core, model) == 0  # none had to stay
    assert "MVN" not in [op.get_type_name() for op in model.get_ops()]
    config = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "1"}
    assert rounded_node(core.compile_model(model, "CPU", config)) is None

    # An OpenVINO that ignores the mark is noticed, its own kernel is used, and the session says so.
    monkeypatch.setattr("offline_infer.engines.openvino.bf16_norms._Keeper.__call__", _only_named)
    with get_engine("openvino").open(path, EngineOptions(precision="bf16", threads=1, cache=tmp_path)) as session:
        assert str(session.info.norms).startswith("native: ")
        assert str(session.info.cache).startswith("not stored")
        assert np.isfinite(session.run(np.zeros((1, CHANNELS, 8, 12, 16), np.float32))).all()


def test_it_comes_back_from_the_cache(tmp_path: Path) -> None:
    path = graph_of(tmp_path / "g.onnx", (1, CHANNELS, 8, 12, 16))
    options = EngineOptions(precision="bf16", threads=1, cache=tmp_path / "cache")
    given = np.random.default_rng(0).normal(size=(1, CHANNELS, 8, 12, 16)).astype(np.float32)
    answers = []
    for state in ("stored", "hit"):
        with get_engine("openvino").open(path, options) as session:
            assert str(session.info.cache) == state
            assert session.info.norms == Norms("exact")
            answers.append(session.run(given).copy())
    np.testing.assert_array_equal(*answers)


def _only_named(self: object, node: object) -> object:
    node.set_friendly_name(f"offline_infer.float32.{id(node)}")  # type: ignore[attr-defined]
    return node


def test_both_ends_of_the_network_are_float32(tmp_path: Path) -> None:
    """One convolution is both the first and the last here, so nothing at all is rounded."""
    shape = (1, CHANNELS, 6, 8, 10)
    helper = onnx.helper
    weights = np.random.default_rng(2).normal(size=(CHANNELS, CHANNELS, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("LeakyRelu", ["image"], ["x"], alpha=0.5),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 6),
        helper.make_node("LeakyRelu", ["y"], ["logits"], alpha=0.5),
    ]
    ports = [[helper.make_tensor_value_info(name, 1, list(shape))] for name in ("image", "logits")]
    graph = helper.make_graph(nodes, "g", *ports, [onnx.numpy_helper.from_array(weights, "w")])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    given = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    answers = {}
    for name, precision, norms in (("fp32", "fp32", "exact"), ("ends", "bf16", "exact"), ("all", "bf16", "native")):
        options = EngineOptions(precision=precision, threads=1, extra={"norms": norms})
        with get_engine("openvino").open(path, options) as session:
            answers[name] = session.run(given).copy()
    size = np.abs(answers["fp32"]).max()
    assert np.abs(answers["ends"] - answers["fp32"]).max() < 1e-5 * size
    assert np.abs(answers["all"] - answers["fp32"]).max() > 1e-4 * size


def test_the_ends_are_found_past_other_operators(tmp_path: Path) -> None:
    model = ov.Core().read_model(str(graph_of(tmp_path / "g.onnx", (1, CHANNELS, 8, 12, 16))))
    assert keep_ends_float32(ov.Core(), model) == 2
    names = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    assert [name.startswith("offline_infer.float32.end.") for name in names] == [True, False, False, True]
