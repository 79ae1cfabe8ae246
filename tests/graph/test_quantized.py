"""Pairs of QuantizeLinear and DequantizeLinear around convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from int8_samples import graph_bytes

from offline_infer.errors import ExportError
from offline_infer.graph.admission import admit
from offline_infer.graph.quantized import Range, convolutions, quantized, scale_of, whole_weights

onnx = pytest.importorskip("onnx")


def _model():
    return onnx.load_from_string(graph_bytes(random=True))


def test_convolutions_and_their_multiplications() -> None:
    found = convolutions(_model())
    assert [each.name for each in found] == ["a1", "a2", "logits"]
    assert [each.products for each in found] == [8 * 27 * 2048, 64 * 27 * 2048, 16 * 2048]


def test_chosen_layers_alone_are_changed_and_the_graph_is_admitted(tmp_path) -> None:
    made = quantized(_model(), {"r1": Range(-3, 5), "image": Range(0, 1)}, ["a2"])
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
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w1"))
    whole, scales = whole_weights(weight)
    rounded = (np.clip(np.rint(image / scale) + zero, 0, 255) - zero) * scale
    padded = np.pad(rounded, [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])[0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    expected = np.einsum("zyxijk,nijk->nzyx", windows, whole[:, 0] * scales.reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(answer(quantized(model, {"image": found}, ["a1"]))[0], expected, atol=1e-4)


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
    with pytest.raises(ExportError, match="no convolution with a range"):
        quantized(_model(), {}, ["a1"])


def test_an_old_operator_set_is_refused() -> None:
    model = _model()
    model.opset_import[0].version = 12
    with pytest.raises(ExportError, match="operator set 12"):
        quantized(model, {"image": Range(0, 1)}, ["a1"])
