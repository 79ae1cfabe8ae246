"""Graph passes: what they change, and that the network's answer stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer import graph as passes
from offline_infer.errors import BundleError, ExportError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
Array = np.ndarray[Any, Any]


def run(model: Any, image: Array, *, optimized: bool = True) -> dict[str, Array]:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {name: image}), strict=True))


def build(
    nodes: list[Any],
    weights: dict[str, Array],
    outputs: dict[str, list[int]],
    *,
    shape: tuple[int, ...] = (1, 2, 6, 8, 10),
    opset: int = 17,
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", 1, list(shape))],
        [helper.make_tensor_value_info(name, 1, size) for name, size in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def unet(*, opset: int = 17, seed: int = 0, rank: int = 3, gain: float = 1.0) -> Any:
    """A one-level U-Net with instance norms and two heads."""
    rng = np.random.default_rng(seed)
    k, s, p = (3,) * rank, (2,) * rank, [1] * 2 * rank
    size = (6, 8, 10)[-rank:]

    def weight(*dims: int) -> Array:
        return (rng.standard_normal(dims) * 0.3).astype(np.float32)

    weights = {
        "c1.w": weight(4, 2, *k), "c1.b": weight(4), "n1.s": weight(4) + 1, "n1.b": weight(4),
        "c2.w": weight(8, 4, *k), "n2.s": weight(8) * np.float32(gain) + 1, "n2.b": weight(8),
        "up.w": weight(8, 4, *s), "c3.w": weight(4, 8, *k), "n3.s": weight(4) + 1, "n3.b": weight(4),
        "h.w": weight(3, 4, *(1,) * rank), "h1.w": weight(3, 8, *(1,) * rank), "unused.w": weight(7),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "c1.w", "c1.b"], ["t1"], name="c1", pads=p),
        node("InstanceNormalization", ["t1", "n1.s", "n1.b"], ["t2"], name="n1", epsilon=1e-5),
        node("LeakyRelu", ["t2"], ["t3"], name="a1", alpha=0.01),
        node("Conv", ["t3", "c2.w"], ["t4"], name="c2", pads=p, strides=list(s)),
        node("InstanceNormalization", ["t4", "n2.s", "n2.b"], ["t5"], name="n2", epsilon=1e-3),
        node("LeakyRelu", ["t5"], ["t6"], name="a2", alpha=0.01),
        node("ConvTranspose", ["t6", "up.w"], ["t7"], name="up", strides=list(s)),
        node("Concat", ["t7", "t3"], ["t8"], name="cat", axis=1),
        node("Conv", ["t8", "c3.w"], ["t9"], name="c3", pads=p),
        node("InstanceNormalization", ["t9", "n3.s", "n3.b"], ["t10"], name="n3"),
        node("LeakyRelu", ["t10"], ["t11"], name="a3", alpha=0.01),
        node("Conv", ["t11", "h.w"], ["logits"], name="head"),
        node("Conv", ["t6", "h1.w"], ["logits_1"], name="head1"),
    ]
    outputs = {"logits": [1, 3, *size], "logits_1": [1, 3, *(n // 2 for n in size)]}
    return build(nodes, weights, outputs, shape=(1, 2, *size), opset=opset)


def image(seed: int = 0, shape: tuple[int, ...] = (1, 2, 6, 8, 10), scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def ops(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def same(before: Any, after: Any, tolerance: float = 0.0) -> None:
    left, right = run(before, image()), run(after, image())
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], atol=tolerance, rtol=0)


# ---- clean -----------------------------------------------------------------------------------------------------------


def test_passes_do_not_touch_their_input() -> None:
    model = unet()
    before = model.SerializeToString(deterministic=True)
    for change in (
        passes.clean,
        passes.prune,
        passes.fold_identity,
        passes.merge_equal_initializers,
        passes.constants_to_initializers,
        passes.decompose_instance_norm,
        passes.to_float16,
        lambda m: passes.select_outputs(m, ["logits_1"]),
        lambda m: passes.set_metadata(m, {"a": "b"}),
    ):
        change(model)
        assert model.SerializeToString(deterministic=True) == before


def test_prune_drops_what_no_output_needs() -> None:
    model = unet()
    model.graph.node.insert(3, helper.make_node("Relu", ["t3"], ["nowhere"]))
    model.graph.node.insert(4, helper.make_node("Relu", ["nowhere"], ["nowhere2"]))
    pruned = passes.prune(model)
    assert "Relu" not in ops(pruned)
    assert "unused.w" not in [w.name for w in pruned.graph.initializer]
    same(model, pruned)


def test_select_outputs() -> None:
    model = unet()
    full = run(model, image())
    final = passes.select_outputs(model, ["logits"])
    assert "head1" not in [n.name for n in final.graph.node]
    assert list(run(final, image())) == ["logits"]
    np.testing.assert_array_equal(run(final, image())["logits"], full["logits"])
    deep = passes.select_outputs(model, ["logits_1"])
    assert "up" not in [n.name for n in deep.graph.node]
    np.testing.assert_array_equal(run(deep, image())["logits_1"], full["logits_1"])
    assert list(run(passes.select_outputs(model, ["logits_1", "logits"]), image())) == ["logits_1", "logits"]
    with pytest.raises(ExportError, match="no output 'x'; it has logits, logits_1"):
        passes.select_outputs(model, ["x"])
    for bad in ([], ["logits", "logits"]):
        with pytest.raises(ExportError, match="one or more different names"):
            passes.select_outputs(model, bad)


def test_outputs_are_renamed_wherever_they_are_read() -> None:
    node = helper.make_node
    nodes = [node("Relu", ["image"], ["a"]), node("Neg", ["a"], ["b"])]
    model = build(nodes, {}, {"a": [1, 2, 6, 8, 10], "b": [1, 2, 6, 8, 10]})
    renamed = passes.rename_outputs(model, ["logits", "logits_1"])
    left, right = run(model, image()), run(renamed, image())
    np.testing.assert_array_equal(left["a"], right["logits"])
    np.testing.assert_array_equal(left["b"], right["logits_1"])
    for bad in (["x"], ["x", "x"]):
        with pytest.raises(ExportError, match="cannot be called"):
            passes.rename_outputs(model, bad)
    with pytest.raises(ExportError, match="another tensor"):
        passes.rename_outputs(model, ["image", "y"])


def test_shapes_are_fixed_and_checked() -> None:
    model = unet()
    larger = passes.fix_shapes(model, (1, 2, 12, 16, 8))
    facts = passes.inspect_graph(larger)
    assert [port.shape for port in facts.outputs] == [(1, 3, 12, 16, 8), (1, 3, 6, 8, 4)]
    assert run(larger, image(0, (1, 2, 12, 16, 8)))["logits"].shape == (1, 3, 12, 16, 8)
    for shape in [(1, 2, 7, 8, 10), (1, 2, 6, 8)]:
        with pytest.raises(ExportError, match="cannot take an input of"):
            passes.fix_shapes(model, shape)


def test_identities_of_every_kind_fold() -> None:
    node = helper.make_node
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((2, 2, 1, 1, 1)).astype(np.float32)}
    nodes = [
        node("Identity", ["w"], ["w2"]),  # of a weight
        node("Identity", ["image"], ["i2"]),  # of the input
        node("Conv", ["i2", "w2"], ["t1"]),
        node("Identity", ["t1"], ["t2"]),  # a chain
        node("Identity", ["t2"], ["t3"]),
        node("Relu", ["t3"], ["t4"]),
        node("Identity", ["t4"], ["out"]),  # to an output, whose source is read by others too
        node("Neg", ["t4"], ["out2"]),
        node("Identity", ["t2"], ["out3"]),
        node("Identity", ["out"], ["out4"]),  # an output that is another output
        node("Identity", ["image"], ["out5"]),  # an output that is the input
        node("Identity", ["t3"], ["t5"]),
        node("Abs", ["t5"], ["out6"]),
    ]
    outputs = {name: [1, 2, 6, 8, 10] for name in ("out", "out2", "out3", "out4", "out5", "out6")}
    model = build(nodes, weights, outputs)
    folded = passes.fold_identity(model)
    assert ops(folded) == ["Conv", "Relu", "Neg", "Identity", "Identity", "Abs"]
    same(model, folded)


def test_equal_weights_are_shared_and_constants_become_weights() -> None:
    node = helper.make_node
    ones = np.ones((2, 2, 1, 1, 1), np.float32)
    constant = numpy_helper.from_array(np.float32(3.0).reshape(1), "c")
    nodes = [
        node("Conv", ["image", "a"], ["t1"]),
        node("Conv", ["t1", "b"], ["t2"]),
        node("Conv", ["t2", "c"], ["t3"]),
        node("Constant", [], ["k"], value=constant),
        node("Mul", ["t3", "k"], ["out"]),
    ]
    model = build(nodes, {"a": ones, "b": ones.copy(), "c": ones * 2}, {"out": [1, 2, 6, 8, 10]})
    cleaned = passes.clean(model)
    assert ops(cleaned) == ["Conv", "Conv", "Conv", "Mul"]
    assert [w.name for w in cleaned.graph.initializer] == ["a", "c", "k"]
    same(model, cleaned)


def test_clean_strips_paths_and_is_idempotent() -> None:
    model = unet()
    model.doc_string = model.graph.node[0].doc_string = model.graph.initializer[0].doc_string = "/home/me/net.py"
    once = passes.clean(model)
    assert b"/home/me" not in once.SerializeToString()
    assert passes.clean(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    same(model, once)


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    nodes = [helper.make_node("If", ["c"], ["out"], name="fork", then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", 1, [1, 1, 2])],
        [helper.make_tensor_value_info("out", 1, [1, 1, 2])],
        [numpy_helper.from_array(np.array(True), "c")],
    )
    model = helper.make_model(graph)
    for change in (passes.prune, passes.fold_identity, passes.to_float16, passes.decompose_instance_norm):
        with pytest.raises(ExportError, match=r"'fork' \(If\) is control flow"):
            change(model)


# ---- instance norm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize("rank", [2, 3])
def test_instance_norm_written_out_gives_the_same(opset: int, rank: int) -> None:
    model = unet(opset=opset, rank=rank)
    plain = passes.decompose_instance_norm(model)
    assert "InstanceNormalization" not in ops(plain)
    assert ops(plain).count("ReduceMean") == 6
    shape = (1, 2, *(6, 8, 10)[-rank:])
    for scale in (1.0, 300.0):
        left, right = run(model, image(1, shape, scale)), run(plain, image(1, shape, scale))
        for name in left:
            np.testing.assert_allclose(left[name], right[name], atol=2e-5, rtol=0)
    assert len({node.name for node in plain.graph.node}) == len(plain.graph.node)
    assert not {"n1.s", "n1.b"} & {w.name for w in plain.graph.initializer}


def test_instance_norm_follows_the_formula_even_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    weights = {"s": rng.standard_normal(2).astype(np.float32), "b": rng.standard_normal(2).astype(np.float32)}
    nodes = [helper.make_node("InstanceNormalization", ["image", "s", "b"], ["out"], name="n", epsilon=0.01)]
    plain = passes.decompose_instance_norm(build(nodes, weights, {"out": [1, 2, 6, 8, 10]}))
    x = image() + np.float32(1000)
    wide = x.astype(np.float64)
    mean, variance = wide.mean((2, 3, 4), keepdims=True), wide.var((2, 3, 4), keepdims=True)
    s, b = (weights[k].astype(np.float64).reshape(1, 2, 1, 1, 1) for k in "sb")
    np.testing.assert_allclose(run(plain, x)["out"], (wide - mean) / np.sqrt(variance + 0.01) * s + b, atol=2e-3)


@pytest.mark.parametrize("opset", [13, 18])
def test_means_axis_by_axis(opset: int) -> None:
    model = unet(opset=opset)
    plain = passes.decompose_instance_norm(model, axis_by_axis=True)
    assert ops(plain).count("ReduceMean") == 18
    assert len({node.name for node in plain.graph.node}) == len(plain.graph.node)
    same(model, plain, 2e-5)
    half, report = passes.to_float16(plain)
    assert report.halved == 10
    assert np.abs(run(model, image())["logits"] - run(half, image())["logits"]).max() < 0.05


def test_only_the_named_norms() -> None:
    model = unet()
    plain = passes.decompose_instance_norm(model, only=["n2"])
    assert ops(plain).count("InstanceNormalization") == 2
    same(model, plain, 2e-5)
    with pytest.raises(ExportError, match="no InstanceNormalization is called n9; there are n1, n2, n3"):
        passes.decompose_instance_norm(model, only=["n9"])


def test_instance_norm_with_computed_scale() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Exp", ["s"], ["s2"]),
        helper.make_node("InstanceNormalization", ["image", "s2", "s"], ["out"], name="n"),
    ]
    model = build(nodes, {"s": rng.standard_normal(2).astype(np.float32)}, {"out": [1, 2, 6, 8, 10]})
    same(model, passes.decompose_instance_norm(model), 2e-5)


# ---- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("written_out", [False, True])
def test_half_precision_keeps_norms_in_float32(opset: int, written_out: bool) -> None:
    model = unet(opset=opset)
    source = passes.decompose_instance_norm(model) if written_out else model
    half, report = passes.to_float16(source)
    assert {w.name: w.data_type for w in half.graph.initializer}["c1.w__fp16"] == onnx.TensorProto.FLOAT16
    assert "c1.w" not in {w.name for w in half.graph.initializer}
    assert report.kept == (27 if written_out else 3)
    assert report.halved == 10
    assert report.casts == ops(half).count("Cast")
    assert report.clipped == report.vanished == {}
    types = {w.name: w.data_type for w in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type in ("InstanceNormalization", "ReduceMean"):
            assert all(types.get(name, 1) in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64) for name in node.input)
        if node.op_type in ("Conv", "ConvTranspose"):
            assert types[node.input[1]] == onnx.TensorProto.FLOAT16
    assert [o.type.tensor_type.elem_type for o in half.graph.output] == [onnx.TensorProto.FLOAT] * 2
    for optimized in (False, True):
        left, right = run(model, image()), run(half, image(), optimized=optimized)
        for name in left:
            assert right[name].dtype == np.float32
            difference = np.abs(left[name] - right[name]).max()
            assert 0 < difference < 0.03 * np.abs(left[name]).max()


def test_half_precision_ports() -> None:
    model = unet()
    half, _ = passes.to_float16(model, keep_io=False)
    answer = run(half, image().astype(np.float16))
    assert answer["logits"].dtype == np.float16
    np.testing.assert_allclose(answer["logits"], run(model, image())["logits"], atol=0.05)


def test_an_output_that_a_later_node_reads_too() -> None:
    node = helper.make_node
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((2, 2, 1, 1, 1)).astype(np.float32), "s": np.ones(2, np.float32)}
    nodes = [
        node("Conv", ["image", "w"], ["mid"], name="c"),
        node("InstanceNormalization", ["mid", "s", "s"], ["n"], name="n"),
        node("Conv", ["n", "w"], ["out"], name="d"),
        node("Relu", ["mid"], ["out2"], name="r"),
    ]
    model = build(nodes, weights, {name: [1, 2, 6, 8, 10] for name in ("mid", "out", "out2")})
    half, _ = passes.to_float16(model)
    left, right = run(model, image()), run(half, image())
    for name in left:
        np.testing.assert_allclose(left[name], right[name], atol=0.02)


def test_kept_nodes_are_checked_by_name() -> None:
    model = unet()
    half, report = passes.to_float16(model, keep_nodes=["head", "c1"])
    types = {w.name: w.data_type for w in half.graph.initializer}
    assert types["h.w"] == types["c1.w"] == onnx.TensorProto.FLOAT
    assert report.kept == 5
    run(half, image())
    with pytest.raises(ExportError, match=r"no node of the graph is called 'haed'; similar: head"):
        passes.to_float16(model, keep_nodes=["haed"])


def test_everything_kept_is_the_same_network() -> None:
    model = unet()
    half, report = passes.to_float16(model, keep_nodes=[node.name for node in model.graph.node])
    assert report.casts == report.halved == 0
    same(model, half)


def test_constants_out_of_range_are_clipped_and_reported() -> None:
    weights = {
        "w": np.array([1.0, 1e5, -3e38, 1e-9], np.float32).reshape(2, 2, 1, 1, 1),
        "b": np.array([65504.0, 0.0], np.float32),
    }
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["out"], name="c")]
    half, report = passes.to_float16(build(nodes, weights, {"out": [1, 2, 6, 8, 10]}))
    assert report.clipped == {"w": 2}
    assert report.vanished == {"w": 1}
    stored = {w.name: numpy_helper.to_array(w) for w in half.graph.initializer}
    np.testing.assert_array_equal(stored["w__fp16"].ravel(), np.array([1, 65504, -65504, 0], np.float16))
    weights["b"][1] = np.nan
    with pytest.raises(ExportError, match="'b' holds NaN"):
        passes.to_float16(build(nodes, weights, {"out": [1, 2, 6, 8, 10]}))


def test_resize_keeps_its_factors() -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["t"], name="r"),
        helper.make_node("Resize", ["t", "", "f"], ["out"], name="z", mode="nearest"),
    ]
    model = build(nodes, {"f": np.array([1, 1, 2, 2, 2], np.float32)}, {"out": [1, 2, 12, 16, 20]})
    half, _ = passes.to_float16(model)
    np.testing.assert_allclose(run(half, image())["out"], run(model, image())["out"], atol=2e-3)


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_inspect_a_usual_graph(tmp_path: Path) -> None:
    model = passes.clean(passes.select_outputs(unet(), ["logits"]))
    passes.save_model(model, tmp_path / "g.onnx")
    facts = passes.inspect_graph(tmp_path / "g.onnx")
    assert facts == passes.inspect_graph(model)
    assert facts.opset == 17
    assert facts.ops == {"Conv": 4, "InstanceNormalization": 3, "LeakyRelu": 3, "Concat": 1, "ConvTranspose": 1}
    assert facts.inputs == (passes.Port("image", "float32", (1, 2, 6, 8, 10)),)
    assert facts.outputs == (passes.Port("logits", "float32", (1, 3, 6, 8, 10)),)
    expected = sum(numpy_helper.to_array(w).size for w in model.graph.initializer)
    assert (facts.parameters, facts.weight_bytes) == (expected, 4 * expected)
    assert facts.instance_norms == 3
    assert facts.dynamic == ()
    assert facts.advice == ()
    assert facts.to_json()["outputs"][0]["name"] == "logits"


def test_advice_names_what_may_go_wrong() -> None:
    def advice(model: Any) -> str:
        return "\n".join(passes.inspect_graph(model).advice)

    model = unet(opset=20)
    assert "opset 20" in advice(model)
    assert "2 outputs" in advice(model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model.graph.input[0].type.tensor_type.shape.dim[3].Clear()
    facts = passes.inspect_graph(model)
    assert facts.dynamic == ("image[0]", "image[3]")
    assert "fixed" in "\n".join(facts.advice)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert passes.inspect_graph(model).dynamic == ("image[?]",)
    node = helper.make_node
    odd = build([node("Erf", ["image"], ["t"]), node("Identity", ["t"], ["out"])], {}, {"out": [1, 2, 6, 8, 10]})
    assert "Erf" in advice(odd)
    assert "1 Identity" in advice(odd)
    dropout = build([node("Dropout", ["image"], ["out"])], {}, {"out": [1, 2, 6, 8, 10]})
    assert "eval mode" in advice(dropout)


def test_files_that_are_no_graph(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        passes.inspect_graph(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match="not a complete ONNX file"):
        passes.inspect_graph(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="is empty"):
        passes.inspect_graph(tmp_path / "empty.onnx")
    model = unet()
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(BundleError, match="outside the file"):
        passes.inspect_graph(tmp_path / "out.onnx")


def test_metadata_and_bytes_are_stable(tmp_path: Path) -> None:
    model = passes.set_metadata(passes.set_metadata(unet(), {"b": "2", "a": "0"}), {"a": "1"})
    assert [(p.key, p.value) for p in model.metadata_props] == [("a", "1"), ("b", "2")]
    passes.save_model(model, tmp_path / "a.onnx")
    passes.save_model(passes.load_model(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_sizes_that_stay_open_are_taken_from_the_original() -> None:
    onnx = pytest.importorskip("onnx")
    helper, value = onnx.helper, onnx.helper.make_tensor_value_info
    nodes = [  # the number of positive values decides the first axis: nobody can infer it
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["y"], perm=[1, 0]),
    ]
    floats, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = helper.make_graph(nodes, "open", [value("x", floats, [2, 3])], [value("y", whole, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(ExportError, match="'y' stays open"):
        passes.fix_shapes(model, (2, 3))
    with pytest.raises(ExportError, match="'y' stays open"):
        passes.fix_shapes(model, (2, 3), {"y": (6, 3)})  # contradicts what is known
    fixed = passes.fix_shapes(model, (2, 3), {"y": (6, 2)})
    assert [axis.dim_value for axis in fixed.graph.output[0].type.tensor_type.shape.dim] == [6, 2]
