"""Graphs whose indices lead out of their tensors bring out nothing of the process's memory, and change none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import BundleError

onnx = pytest.importorskip("onnx")
helper, from_array = onnx.helper, onnx.numpy_helper.from_array
SHAPE = (1, 2, 6, 8)


def answer(path: Path, nodes: list[Any], weights: dict[str, Any], image: Any) -> Any:
    """What OpenVINO says to a graph with these nodes."""
    ports = [
        helper.make_tensor_value_info("image", 1, list(SHAPE)),
        helper.make_tensor_value_info("logits", 1, None),
    ]
    graph = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [from_array(np.array(w), n) for n, w in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with get_engine("openvino").open(path, EngineOptions(threads=1)) as session:
        return np.asarray(session.run(image))


@pytest.fixture
def image() -> Any:
    return np.random.default_rng(0).random(SHAPE, np.float32) + 7


def flat(shape: list[int]) -> tuple[Any, dict[str, Any]]:
    return helper.make_node("Reshape", ["image", "flat"], ["x"]), {"flat": np.array(shape)}


def test_gathering_stays_inside(tmp_path: Path, image: Any) -> None:
    reshape, weights = flat([6, 16])
    node = helper.make_node("GatherND", ["x", "i"], ["logits"])
    table = image.reshape(6, 16)
    legal = np.array([[0, 0], [5, 15], [-1, -16], [-6, 3]])
    found = answer(tmp_path / "g.onnx", [reshape, node], {**weights, "i": legal}, image)
    assert np.array_equal(found, [table[tuple(place)] for place in legal])
    leading_out = np.array([[6, 0], [0, 16], [-7, 0], [1 << 20, 1 << 20], [-(1 << 30), 0]])
    found = answer(tmp_path / "g.onnx", [reshape, node], {**weights, "i": leading_out}, image)
    assert np.isin(found, table).all()
    rows = helper.make_node("GatherND", ["x", "i"], ["logits"], batch_dims=1)
    found = answer(tmp_path / "g.onnx", [reshape, rows], {**weights, "i": np.full((6, 1), 5000)}, image)
    assert np.array_equal(found, table[:, 15])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scattering_stays_inside(tmp_path: Path, image: Any, axis: int) -> None:
    reshape, weights = flat([6, 16])
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["logits"], axis=axis)
    table = image.reshape(6, 16)
    length = table.shape[axis]
    index = np.full((2, 3), -length)
    index[1] = length - 1
    update = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = table.copy()
    for row, column in np.ndindex(2, 3):
        place = [row, column]
        place[axis] = index[row, column]
        expected[tuple(place)] = update[row, column]
    found = answer(tmp_path / "g.onnx", [reshape, node], {**weights, "i": index, "u": update}, image)
    assert np.array_equal(found, expected)
    for wrong in (np.full((2, 3), -60_000), np.zeros((600, 3), np.int64), np.zeros((2, 6000), np.int64)):
        updates = np.full(wrong.shape, 3, np.float32)
        found = answer(tmp_path / "g.onnx", [reshape, node], {**weights, "i": wrong, "u": updates}, image)
        assert found.shape == table.shape
        assert np.isin(found, [*table.ravel(), 3.0]).all()


def test_sizes_that_are_known_when_it_runs(tmp_path: Path, image: Any) -> None:
    """What detectors have: as many rows as were found."""
    found = np.argwhere(image > 7.5).astype(np.float32)
    nodes = [
        helper.make_node("Greater", ["image", "least"], ["some"]),
        helper.make_node("NonZero", ["some"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["x"], to=1),
        helper.make_node("GatherND", ["x", "i"], ["g"]),
        helper.make_node("ScatterElements", ["x", "j", "u"], ["logits"], axis=0),
    ]
    weights: dict[str, Any] = {"least": np.array(7.5, np.float32)}
    weights |= {"j": np.array([[3, 3], [-1, 0]]), "u": np.full((2, 2), 99, np.float32)}
    expected = found.copy()
    expected[3, :2] = expected[-1, 0] = expected[0, 1] = 99
    assert np.array_equal(answer(tmp_path / "g.onnx", [*nodes[:4], nodes[5]], weights, image), expected)
    nodes[4] = helper.make_node("GatherND", ["x", "i"], ["logits"])
    weights["i"] = np.array([[2, 3], [-1, 1]])
    gathered = answer(tmp_path / "g.onnx", nodes[:5], weights, image)
    assert np.array_equal(gathered, [found[2, 3], found[-1, 1]])


def test_empty_tensors_have_no_places(tmp_path: Path, image: Any) -> None:
    """Where nothing was found there is nothing to read."""
    nodes = [
        helper.make_node("Less", ["image", "least"], ["none"]),
        helper.make_node("NonZero", ["none"], ["places"]),
        helper.make_node("Cast", ["places"], ["x"], to=1),
        helper.make_node("GatherND", ["x", "i"], ["logits"]),
    ]
    weights = {"least": np.array(-1, np.float32), "i": np.array([[0, 0], [3, 900]])}
    assert answer(tmp_path / "g.onnx", nodes, weights, image).size == 0


def test_a_negative_padding_that_repeats_values_is_refused(tmp_path: Path, image: Any) -> None:
    node = helper.make_node("Pad", ["image", "p"], ["logits"], mode="edge")
    with pytest.raises(BundleError, match="repeats values"):
        answer(tmp_path / "g.onnx", [node], {"p": np.array([0, 0, -20, 0, 0, 0, 0, 30])}, image)
    found = answer(tmp_path / "g.onnx", [node], {"p": np.array([0, 0, 1, 0, 0, 0, 0, 2])}, image)
    assert np.array_equal(found, np.pad(image, ((0, 0), (0, 0), (1, 0), (0, 2)), "edge"))


def test_what_no_machine_holds_is_refused_before_it_is_allocated(tmp_path: Path, image: Any) -> None:
    nodes = [helper.make_node("Concat", [f"x{i}" if i else "image"] * 2, [f"x{i + 1}"], axis=2) for i in range(40)]
    nodes.append(helper.make_node("ReduceMax", ["x40"], ["logits"], axes=[2]))
    with pytest.raises(BundleError, match="GiB of memory"):
        answer(tmp_path / "g.onnx", nodes, {}, image)
