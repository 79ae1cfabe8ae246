"""Pairs of QuantizeLinear and DequantizeLinear around convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from int8_samples import graph_bytes

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import ExportError
from offline_infer.graph.admission import admit
from offline_infer.graph.quantized import (
    Range,
    Rounding,
    Window,
    convolutions,
    dither_block,
    quantized,
    rounding_by_range,
    scale_of,
    whole_weights,
)

onnx = pytest.importorskip("onnx")


def _model():
    return onnx.load_from_string(graph_bytes(random=True))


def _weight(model, name):
    return onnx.numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def test_convolutions_and_their_multiplications() -> None:
    found = convolutions(_model())
    assert [each.name for each in found] == ["a1", "a2", "logits"]
    assert [each.products for each in found] == [8 * 27 * 2048, 64 * 27 * 2048, 16 * 2048]


def test_chosen_layers_alone_are_changed_and_the_graph_is_admitted(tmp_path) -> None:
    model = _model()
    roundings = {
        "a1": rounding_by_range(_weight(model, "w1"), Range(0, 1)),
        "a2": rounding_by_range(_weight(model, "w2"), Range(-3, 5)),
    }
    made = quantized(model, roundings, ["a2"])
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    assert "w2" not in {tensor.name for tensor in made.graph.initializer}
    path = tmp_path / "graph.onnx"
    path.write_bytes(made.SerializeToString())
    assert admit(path).operators["QuantizeLinear"] == 1


def test_the_answer_is_the_rounded_one() -> None:
    ort = pytest.importorskip("onnxruntime")
    model = _model()
    image = np.random.default_rng(1).normal(size=(1, 1, 8, 16, 16)).astype(np.float32)

    def answer(of):
        return ort.InferenceSession(of.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["a1"], {"image": image}
        )[0]

    for each in ("a1",):
        model.graph.output.append(onnx.helper.make_tensor_value_info(each, 1, [1, 8, 8, 16, 16]))
    found = Range(float(image.min()), float(image.max()))
    scale, zero = scale_of(found)
    weight = _weight(model, "w1")
    whole, scales = whole_weights(weight)
    rounded = (np.clip(np.rint(image / scale) + zero, 0, 255) - zero) * scale
    padded = np.pad(rounded, [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])[0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    expected = np.einsum("zyxijk,nijk->nzyx", windows, whole[:, 0] * scales.reshape(-1, 1, 1, 1))
    made = quantized(model, {"a1": rounding_by_range(weight, found)}, ["a1"])
    np.testing.assert_allclose(answer(made)[0], expected, atol=1e-4)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_scale_for_each_channel_is_taken_back_by_the_weight(tmp_path, engine) -> None:
    """With steps fine enough for nothing to be lost, the convolution computes what it did."""
    pytest.importorskip(engine)
    model = _model()
    scale = np.float32(2.0) ** np.arange(-6, 2, dtype=np.float32)
    weight = np.random.default_rng(0).integers(-3, 4, (8, 8, 3, 3, 3)).astype(np.float32)
    next(t for t in model.graph.initializer if t.name == "w2").CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
    first = np.zeros((8, 1, 3, 3, 3), np.float32)
    first[:, 0, 1, 1, 1] = scale
    next(t for t in model.graph.initializer if t.name == "w1").CopyFrom(onnx.numpy_helper.from_array(first, "w1"))
    image = np.random.default_rng(1).integers(0, 60, (1, 1, 8, 16, 16)).astype(np.float32)
    whole = weight * scale.reshape(-1, 1, 1, 1) * 64
    assert np.abs(whole).max() > 127
    half = np.clip(whole / 4, -127, 127)  # what a coarser step leaves of it
    rounding = Rounding(scale, 5, half.astype(np.int8), np.full(8, 1 / 16, np.float32))
    expected = weight.copy()
    expected[:] = half.astype(np.int8) / 16 / scale.reshape(-1, 1, 1, 1)
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    next(t for t in exact.graph.initializer if t.name == "w2").CopyFrom(onnx.numpy_helper.from_array(expected, "w2"))
    answers = []
    for name, each in (("exact", exact), ("rounded", quantized(model, {"a2": rounding}, ["a2"]))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(each.SerializeToString())
        options = EngineOptions(threads=1, precision="int8" if name == "rounded" else "fp32")
        with get_engine(engine).open(path, options) as session:
            answers.append(session.run(image).copy())
    assert np.abs(answers[0]).max() > 1
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4, atol=1e-3 * np.abs(answers[0]).max())


@pytest.mark.parametrize("axes", [2, 3])
def test_thresholds_of_a_dither_are_evenly_apart_and_neighbours_differ_in_sign(axes) -> None:
    block = dither_block(axes)
    levels = np.sort(block.ravel())
    np.testing.assert_allclose(np.diff(levels), 1 / 2**axes)
    assert abs(levels.mean()) < 1e-7
    assert levels[-1] < 0.5
    for axis in range(axes):
        assert (np.sign(block) == -np.sign(np.flip(block, axis))).all()


def _averaging(shape):
    """A model whose one convolution takes the mean of 2 x 2 x 2 (or 2 x 2) values of each channel and of both channels."""
    axes = len(shape) - 2
    make, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    weight = np.full((1, 2, *[2] * axes), 1 / 2 ** (axes + 1), np.float32)
    out = (1, 1, *(size - 1 for size in shape[2:]))
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Relu", ["image"], ["positive"]),
            onnx.helper.make_node("Conv", ["positive", "w"], ["mean"], kernel_shape=[2] * axes),
        ],
        "g",
        [make("image", kinds.FLOAT, shape)],
        [make("mean", kinds.FLOAT, out)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), weight


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("shape", [(1, 2, 6, 7, 9), (1, 2, 8, 9)])
@pytest.mark.parametrize("scale", [np.float32(0.5), np.array([0.5, 0.25], np.float32)])
def test_a_dither_makes_the_mean_of_a_flat_image_right(tmp_path, engine, shape, scale) -> None:
    """0.65 steps are rounded to 1 everywhere without it: a third of a step too much, in every mean that is taken."""
    pytest.importorskip(engine)
    model, weight = _averaging(shape)
    (layer,) = convolutions(model)
    assert layer.source_shape == shape
    steps = np.broadcast_to(scale, 2).astype(np.float32)
    scaled = weight * (steps.reshape(1, 2, *[1] * (len(shape) - 2)) if scale.ndim else 1)
    whole, weight_scale = whole_weights(scaled)
    rounding = Rounding(scale, 0, whole, weight_scale)
    image = np.empty(shape, np.float32)
    image[:] = 0.65 * steps.reshape(1, 2, *[1] * (len(shape) - 2))
    answers = {}
    for dithered in (False, True):
        made = quantized(model, {"mean": rounding}, ["mean"], dithered=["mean"] if dithered else [])
        path = tmp_path / f"{dithered}.onnx"
        path.write_bytes(made.SerializeToString())
        assert admit(path)
        with get_engine(engine).open(path, EngineOptions(threads=1, precision="int8")) as session:
            answers[dithered] = session.run(image).copy()
            assert not session.run(np.zeros_like(image)).any(), "zero stays zero"
            full = session.run(np.full_like(image, 1000.0)).max()
    step = float(steps.mean())
    wanted = 0.65 * step
    np.testing.assert_allclose(answers[False], step, rtol=0.01)
    assert np.abs(answers[True] - wanted).max() <= step / 2 ** (len(shape) - 1) + 0.01 * step
    assert np.ptp(answers[True]) < 1e-6, "wherever the mean is taken"
    np.testing.assert_allclose(full, 255 * step, rtol=0.01)


def test_an_activation_of_open_size_is_not_dithered() -> None:
    model, _ = _averaging((1, 2, 8, 9))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "y"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "out"
    rounding = rounding_by_range(_weight(model, "w"), Range(0, 1))
    made = quantized(model, {"mean": rounding}, ["mean"], dithered=["mean"])
    assert [node.op_type for node in made.graph.node] == [
        "Relu",
        "QuantizeLinear",
        "DequantizeLinear",
        *("DequantizeLinear", "Conv"),
    ]


def test_what_a_convolution_reads_and_what_reads_it() -> None:
    model = _model()
    model.graph.node[2].attribute[0].ints[:] = [1, 2, 3, 1, 2, 3]
    model.graph.node[2].attribute.append(onnx.helper.make_attribute("dilations", [1, 2, 3]))
    model.graph.node[4].attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    del model.graph.node[3:4]
    gamma = onnx.numpy_helper.from_array(np.ones(8, np.float32), "gamma")
    model.graph.initializer.append(gamma)
    norm = onnx.helper.make_node("InstanceNormalization", ["a2", "gamma", "gamma"], ["r2"])
    model.graph.node.insert(3, norm)
    first, second, last = convolutions(model)
    assert first.window == Window((3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1),) * 3)
    assert second.window == Window((3, 3, 3), (1, 1, 1), (1, 2, 3), ((1, 1), (2, 2), (3, 3)))
    assert last.window is None
    assert (first.normalized, second.normalized, last.normalized) == (False, True, False)
    assert first.source_bytes == 4 * 2048


def test_zero_is_a_step_whatever_the_range() -> None:
    for low, high in ((-1.0, 3.0), (2.0, 5.0), (-7.0, -1.0), (0.0, 0.0)):
        scale, zero = scale_of(Range(low, high))
        assert scale > 0
        assert 0 <= zero <= 255


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(ExportError, match="ranges from"):
        scale_of(Range(float("nan"), 1.0))
    with pytest.raises(ExportError, match="NaN or infinite"):
        whole_weights(np.full((2, 1, 1), np.inf, np.float32))
    with pytest.raises(ExportError, match="no convolution with a rounding"):
        quantized(_model(), {}, ["a1"])


def test_an_old_operator_set_is_refused() -> None:
    model = _model()
    model.opset_import[0].version = 12
    with pytest.raises(ExportError, match="operator set 12"):
        quantized(model, {}, ["a1"])
