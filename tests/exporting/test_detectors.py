"""Detectors as graphs: our own traced, other people's brought to the same three outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from refinemask_samples import SETTINGS, sample_input, tiny_network

from offline_infer import graph as passes
from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import ExportError
from offline_infer.exporting.adopted_detectors import Suppression, adopt_graph, recognise
from offline_infer.exporting.detectors import NAMES, DetectorShapes, torch_answers, trace_detector, verify_detector

ENGINES = ("openvino", "onnxruntime")
PIXELS = 0.02
"""Random weights magnify rounding: boxes move by some thousandths of a pixel between libraries."""


def answers_of(engine: str, path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    options = EngineOptions(outputs=NAMES, control_flow=frozenset({"If"}))
    with get_engine(engine).open(path, options) as session:
        return session.run_all(np.ascontiguousarray(image, dtype=np.float32))


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "any.onnx"
    passes.save_model(trace_detector(tiny_network(), DetectorShapes(4, None, 10, 112), 17), path)
    return path


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("canvas", [(96, 128), (64, 64), (160, 96)])
def test_the_graph_gives_the_networks_answer_at_any_size(any_size: Path, engine: str, canvas: tuple[int, int]) -> None:
    image = sample_input(canvas[0] - 5, canvas[1] - 17, canvas).numpy()
    expected = torch_answers(tiny_network(), [image])[0]
    found = answers_of(engine, any_size, image)
    count = int((expected["dets"][:, 4] > 0).sum())
    np.testing.assert_allclose(found["dets"], expected["dets"], atol=PIXELS)
    assert found["labels"][:count].tolist() == expected["labels"][:count].tolist()
    assert (np.abs(found["masks"][:count] - expected["masks"][:count]) > 3e-3).mean() < 1e-2
    assert np.isfinite(found["masks"]).all()


def test_a_canvas_of_one_shape_keeps_the_answer(tmp_path: Path) -> None:
    exact = sample_input()
    expected = torch_answers(tiny_network(), [exact.numpy()])[0]
    network = tiny_network()
    network.canvas = network.every_row = True
    path = tmp_path / "canvas.onnx"
    passes.save_model(trace_detector(network, DetectorShapes(4, (160, 160), 10, 112), 16), path)
    assert all(-1 not in port.shape for port in passes.inspect_graph(path).inputs if port.shape)
    large = np.zeros((1, 4, 160, 160), np.float32)
    large[:, :, :96, :128] = exact.numpy()
    for engine in ENGINES:
        found = answers_of(engine, path, large)
        np.testing.assert_allclose(found["dets"], expected["dets"], atol=PIXELS, err_msg=engine)
        assert np.isfinite(found["masks"]).all(), engine  # rows without area among them


def test_nothing_found_is_empty_rows(tmp_path: Path) -> None:
    network = tiny_network()
    network.settings = replace(SETTINGS, detections=replace(SETTINGS.detections, score=1.0))
    path = tmp_path / "nothing.onnx"
    passes.save_model(trace_detector(network, DetectorShapes(4, None, 10, 112), 17), path)
    for engine in ENGINES:
        found = answers_of(engine, path, sample_input().numpy())
        assert not found["dets"].any(), engine
        assert found["masks"].shape == (10, 112, 112), engine
        assert np.isfinite(found["masks"]).all(), engine


def test_an_engine_that_disagrees_ends_the_export(any_size: Path) -> None:
    image = sample_input().numpy()

    def never(answers: Any, reference: Any) -> dict[str, Any]:
        return {"status": "failed", "reason": "it is different"}

    with pytest.raises(ExportError, match="it is different"):
        verify_detector(any_size, [image], torch_answers(tiny_network(), [image]), never, ["onnxruntime"])


def test_an_opset_without_aligned_regions_is_refused() -> None:
    with pytest.raises(ExportError, match="16 to 17"):
        trace_detector(tiny_network(), DetectorShapes(4, None, 10, 112), 15)


# ---- other people's graphs -------------------------------------------------------------------------------------------


def constant_graph(values: dict[str, np.ndarray], shape: list[Any], opset: int = 17) -> Any:
    """A graph whose outputs are given numbers, whatever the image."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
    ]
    weights = [numpy_helper.from_array(np.array(0, np.float32), "nothing")]
    outputs = []
    for name, value in values.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        added = np.int32 if value.dtype == np.uint8 else value.dtype  # older engines add no bytes
        weights.append(numpy_helper.from_array(value.astype(added), f"{name}_value"))
        to = helper.np_dtype_to_tensor_dtype(np.dtype(added))
        nodes.append(helper.make_node("Cast", ["zero"], [f"{name}_zero"], to=to))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_zero"], [f"{name}_sum"]))
        nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=kind))
        outputs.append(helper.make_tensor_value_info(name, kind, value.shape))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)], outputs, weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run_adopted(tmp_path: Path, model: Any, engine: str, **options: Any) -> tuple[Any, dict[str, np.ndarray]]:
    adopted = adopt_graph(model, **options)
    path = tmp_path / "adopted.onnx"
    passes.save_model(adopted.model, path)
    return adopted, answers_of(engine, path, np.ones((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opset", [11, 12, 17])
def test_the_mmdeploy_convention(tmp_path: Path, engine: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    values = {
        "dets": rng.random((1, 4, 5), dtype=np.float32),
        "labels": np.array([[3, 1, 2, 0]]),
        "masks": rng.random((1, 4, 28, 28), dtype=np.float32),
    }
    adopted, found = run_adopted(tmp_path, constant_graph(values, [1, 3, "h", "w"], opset), engine, limit=6)
    assert (adopted.convention, adopted.mask_size, adopted.canvas) == ("mmdeploy", 28, None)
    np.testing.assert_array_equal(found["dets"][:4], values["dets"][0])
    assert not found["dets"][4:].any()
    assert found["labels"].tolist() == [3, 1, 2, 0, 0, 0]
    np.testing.assert_array_equal(found["masks"][:4], values["masks"][0])


@pytest.mark.parametrize("engine", ENGINES)
def test_prototype_masks_are_thinned_out_and_composed(tmp_path: Path, engine: str) -> None:
    classes, coefficients, anchors = 3, 2, 5
    rows = np.zeros((1, 4 + classes + coefficients, anchors), np.float32)
    centres = np.array([[20, 20, 10, 10], [21, 20, 10, 10], [50, 40, 8, 6], [20, 20, 10, 10], [1, 1, 1, 1]], np.float32)
    rows[0, :4] = centres.T
    rows[0, 4, :2] = [0.9, 0.8]  # the second overlaps the first and loses
    rows[0, 6, 2] = 0.7
    rows[0, 5, 3] = 0.6  # same place, another class: stays
    rows[0, 4, 4] = 0.1  # below the score
    rows[0, 7:, :] = [[1, 1, -1, 2, 0], [0, 0, 3, 0, 0]]
    maps = np.random.default_rng(0).standard_normal((1, coefficients, 16, 16)).astype(np.float32)
    model = constant_graph({"output0": rows, "output1": maps}, [1, 3, 64, 64])
    adopted, found = run_adopted(tmp_path, model, engine, suppression=Suppression(0.25, 0.7, 50))
    assert (adopted.convention, adopted.classes, adopted.canvas) == ("prototypes", 3, (64, 64))
    order = np.argsort(-found["dets"][:, 4])
    np.testing.assert_allclose(found["dets"][order, 4], [0.9, 0.7, 0.6])
    assert found["labels"][order].tolist() == [0, 2, 1]
    np.testing.assert_allclose(found["dets"][order][1, :4], [46, 37, 54, 43])
    np.testing.assert_allclose(found["masks"][order][1], -maps[0, 0] + 3 * maps[0, 1], atol=1e-5)


def test_masks_over_the_input_keep_their_rows(tmp_path: Path) -> None:
    values = {
        "dets": np.ones((1, 2, 5), np.float32),
        "labels": np.zeros((1, 2), np.int64),
        "masks": np.ones((1, 2, 64, 48), np.float32),
    }
    adopted, found = run_adopted(tmp_path, constant_graph(values, [1, 3, 64, 64]), "onnxruntime")
    assert adopted.mask_size == -1
    assert found["masks"].shape == (2, 64, 48)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"logits": np.zeros((1, 2, 8, 8), np.float32)}, [1, 3, 64, 64]),
        ({"a": np.zeros((1, 6, 5), np.float32), "b": np.zeros((1, 2, 4, 4), np.float32)}, [1, 3, 64, 64]),
        ({"a": np.zeros((1, 9, 5), np.float32), "b": np.zeros((1, 2, 4, 4), np.float32)}, [1, 1, 64, 64]),
        ({"a": np.zeros((1, 9, 5), np.float32), "b": np.zeros((1, 2, 4, 4), np.float32)}, [3, 64]),
    ],
)
def test_a_graph_of_no_known_kind_is_refused(values: dict[str, np.ndarray], shape: list[int]) -> None:
    with pytest.raises(ExportError):
        adopt_graph(constant_graph(values, shape))


@pytest.mark.parity
@pytest.mark.parametrize("engine", ENGINES)
def test_the_recorded_torchvision_model(goldens: Path, tmp_path: Path, engine: str) -> None:
    from PIL import Image

    folder = goldens / "instances"
    model = passes.load_model(folder / "torchvision/tiny_maskrcnn.onnx")
    assert recognise(model) == "torchvision"
    adopted = adopt_graph(model)
    assert (adopted.mask_size, adopted.canvas) == (28, None)
    passes.save_model(adopted.model, tmp_path / "adopted.onnx")
    pixels = np.asarray(Image.open(folder / "refinemask/images/a_320x240.png").convert("RGB"), np.float32) / 255
    found = answers_of(engine, tmp_path / "adopted.onnx", pixels.transpose(2, 0, 1)[None])
    expected = np.load(folder / "torchvision/expected/a_320x240.npz")
    count = len(expected["boxes"])
    np.testing.assert_allclose(found["dets"][:count, :4], expected["boxes"], atol=0.01)
    np.testing.assert_allclose(found["dets"][:count, 4], expected["scores"], atol=1e-4)
    assert (found["labels"][:count] + 1).tolist() == expected["labels"].tolist()
    assert not found["dets"][count:].any()
    probabilities = torch.from_numpy(expected["mask_logits28"]).sigmoid().numpy()
    np.testing.assert_allclose(found["masks"][:count], probabilities, atol=1e-4)


@pytest.mark.parametrize("whole", [1, 255])
def test_masks_in_bytes_become_fractions(tmp_path: Path, whole: int) -> None:
    values = {
        "dets": np.ones((1, 2, 5), np.float32),
        "labels": np.zeros((1, 2), np.int64),
        "masks": (np.eye(8, dtype=np.uint8)[None, None] * np.uint8(whole)).repeat(2, axis=1),
    }
    _, found = run_adopted(tmp_path, constant_graph(values, [1, 3, 64, 64]), "onnxruntime", limit=2)
    np.testing.assert_array_equal(found["masks"][0], np.eye(8))


@pytest.mark.parity
def test_the_number_of_classes_is_seen_in_torchvisions_graph(goldens: Path) -> None:
    model = passes.load_model(goldens / "instances/torchvision/tiny_maskrcnn.onnx")
    assert adopt_graph(model).classes == 20
