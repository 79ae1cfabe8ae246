"""Graphs that are refused before any engine reads them, and graphs that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import BundleError
from offline_infer.graph.admission import Limits, admit
from offline_infer.graph.operators import CONTROL_FLOW, TENSOR_OPERATORS

onnx = pytest.importorskip("onnx")
helper, from_array = onnx.helper, onnx.numpy_helper.from_array
Change = Callable[[Any], None]


def model(*nodes: Any, weights: tuple[Any, ...] = (), shape: tuple[Any, ...] = (1, 2, 4, 4)) -> Any:
    """A graph image -> logits; by default one Relu."""
    ports = [helper.make_tensor_value_info(name, 1, list(shape)) for name in ("image", "logits")]
    made = list(nodes) or [helper.make_node("Relu", ["image"], ["logits"], name="only")]
    graph = helper.make_graph(made, "g", ports[:1], ports[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stored(path: Path, made: Any) -> Path:
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def refusal(path: Path, made: Any, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        admit(stored(path, made), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def branch(name: str) -> Any:
    out = helper.make_tensor_value_info(name, 1, None)
    return helper.make_graph([helper.make_node("Relu", ["image"], [name])], name, [], [out])


def test_what_is_found_in_an_ordinary_graph(tmp_path: Path) -> None:
    weight = from_array(np.ones((3, 2, 1, 1), np.float32), "w")
    made = model(
        helper.make_node("Conv", ["image", "w"], ["x"]),
        helper.make_node("Relu", ["x"], ["logits"]),
        weights=(weight,),
        shape=("n", 2, None, 4),
    )
    helper.set_model_props(made, {"key": "value"})
    made.graph.input.append(helper.make_tensor_value_info("w", 1, [3, 2, 1, 1]))  # as old writers list weights
    found = admit(stored(tmp_path / "g.onnx", made))
    assert found.opset == 17
    assert found.operators == {"Conv": 1, "Relu": 1}
    assert [(port.name, port.dtype, port.shape) for port in found.inputs] == [("image", "float32", (-1, 2, -1, 4))]
    assert [port.name for port in found.outputs] == ["logits"]
    assert found.weight_bytes == 24
    assert found.metadata == {"key": "value"}


def test_every_admitted_operator_is_of_the_standard() -> None:
    """No name is misspelt: a name nobody knows would admit nothing and hide the one that was meant."""
    newest = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    later = {
        "Attention",
        "RMSNormalization",
        "Swish",
    }  # of releases of the onnx package later than the oldest supported
    assert TENSOR_OPERATORS - newest <= later
    assert newest & TENSOR_OPERATORS & CONTROL_FLOW == set()


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../x", "*/_ORT_MEM_ADDR_/*"])
def test_data_outside_the_file(tmp_path: Path, location: str) -> None:
    """One name makes an engine read the process's own memory at the address that stands as the offset."""
    weight = from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "4096", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    made = model(helper.make_node("Conv", ["image", "w"], ["logits"]), weights=(weight,))
    assert "outside the file" in refusal(tmp_path / "g.onnx", made)
    weight.data_location = onnx.TensorProto.DEFAULT  # the entries alone are enough for some readers
    assert "outside the file" in refusal(
        tmp_path / "g.onnx", model(helper.make_node("Conv", ["image", "w"], ["logits"]), weights=(weight,))
    )
    inside = model(
        helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Conv", ["image", "w"], ["logits"])
    )
    assert "outside the file" in refusal(tmp_path / "g.onnx", inside)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_no_engine_opens_what_is_not_admitted(tmp_path: Path, name: str) -> None:
    engine = get_engine(name)
    if engine.available() is not None:
        pytest.skip(str(engine.available()))
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    weight = from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret.bin")
    made = model(helper.make_node("Conv", ["image", "w"], ["logits"]), weights=(weight,))
    with pytest.raises(BundleError, match="outside the file"):
        engine.open(stored(tmp_path / "g.onnx", made), EngineOptions(threads=1))


def looped(rounds: Any) -> Any:
    """A loop that runs as often as its first input says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("x", 1, None),
        ],
        [helper.make_tensor_value_info("go_on", 9, []), helper.make_tensor_value_info("y", 1, None)],
    )
    first = [rounds] if not isinstance(rounds, list) else rounds
    name = "" if rounds is None else "rounds"
    loop = helper.make_node("Loop", [name, "yes", "image"], ["logits"], body=body)
    weights = [from_array(np.array(True), "yes"), from_array(np.array(0, np.int64), "zero")]
    if isinstance(rounds, int):
        return model(loop, weights=(*weights, from_array(np.array(rounds, np.int64), "rounds")))
    return model(*([] if rounds is None else first), loop, weights=tuple(weights))


def test_control_flow(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    condition = from_array(np.array(True), "c")
    choice = helper.make_node("If", ["c"], ["logits"], then_branch=branch("a"), else_branch=branch("b"))
    assert "(If) is not an operator" in refusal(path, model(choice, weights=(condition,)))
    assert admit(stored(path, model(choice, weights=(condition,))), control_flow=CONTROL_FLOW).operators == {
        "If": 1,
        "Relu": 2,
    }
    assert "(Loop) is not an operator" in refusal(path, looped(3))
    both = {"control_flow": CONTROL_FLOW}
    admit(stored(path, looped(3)), **both)
    for rounds in (10**9, -1, None):
        assert "without end" in refusal(path, looped(rounds), **both)
    shape = helper.make_node("Shape", ["image"], ["shape"])
    axis = helper.make_node("Gather", ["shape", "zero"], ["rounds"])
    admit(stored(path, looped([shape, axis])), **both)
    power = helper.make_node("Mul", ["shape", "shape"], ["rounds"])
    assert "without end" in refusal(path, looped([shape, power]), **both)
    assert "(Scan)" in refusal(path, model(helper.make_node("Scan", ["image"], ["logits"])), **both)


@pytest.mark.parametrize("operator", ["RandomNormal", "StringConcat", "SequenceMap", "ImageDecoder", "Exploit", ""])
def test_operators_that_are_not_admitted(tmp_path: Path, operator: str) -> None:
    node = helper.make_node(operator or "x", ["image"], ["logits"], name="strange")
    node.op_type = operator
    assert "'strange'" in refusal(tmp_path / "g.onnx", model(node))


def test_other_operator_sets(tmp_path: Path) -> None:
    for domain in ("com.microsoft", "mmcv", "ai.onnx.ml", "ai.onnx.preview.training"):
        node = helper.make_node("Relu", ["image"], ["logits"], domain=domain)
        assert domain in refusal(tmp_path / "g.onnx", model(node))
    unused = model()
    unused.opset_import.append(helper.make_opsetid("pkg.onnxscript.torch_lib", 1))
    admit(stored(tmp_path / "g.onnx", unused))


def functions(made: Any) -> None:
    made.functions.append(
        helper.make_function("", "F", ["x"], ["y"], [helper.make_node("F", ["x"], ["y"])], made.opset_import)
    )


def training(made: Any) -> None:
    made.training_info.add()


def sparse(made: Any) -> None:
    made.graph.sparse_initializer.add(dims=[1 << 30, 1 << 30])


def session_options(made: Any) -> None:
    helper.set_model_props(made, {"ort_config": "{}"})


def no_opset(made: Any) -> None:
    del made.opset_import[:]


def vast_input(made: Any) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40


def text_input(made: Any) -> None:
    made.graph.input[0].type.tensor_type.elem_type = 8


def sequence_output(made: Any) -> None:
    made.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def long_name(made: Any) -> None:
    made.graph.node[0].name = "n" * 10_000


def weight_without_data(made: Any) -> None:
    made.graph.initializer.add(name="w", data_type=1, dims=[1000, 1000, 1000])


def weight_with_too_little_data(made: Any) -> None:
    made.graph.initializer.add(name="w", data_type=1, dims=[4], raw_data=b"\0" * 8)


def negative_shape(made: Any) -> None:
    made.graph.initializer.add(name="w", data_type=1, dims=[-1], raw_data=b"\0" * 4)


def text_weight(made: Any) -> None:
    made.graph.initializer.add(name="w", data_type=8, dims=[1], string_data=[b"x"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (functions, "functions of its own"),
        (training, "training graph"),
        (sparse, "sparse weights"),
        (session_options, "ort_config"),
        (no_opset, "operator set"),
        (vast_input, "more than"),
        (text_input, "element type 8"),
        (sequence_output, "expected a tensor"),
        (long_name, "10000 bytes"),
        (weight_without_data, "but 0 values"),
        (weight_with_too_little_data, "but 2 values"),
        (negative_shape, r"shape \[-1\]"),
        (text_weight, "text"),
    ],
)
def test_oddities(tmp_path: Path, change: Change, words: str) -> None:
    made = model()
    change(made)
    path = stored(tmp_path / "g.onnx", made)
    with pytest.raises(BundleError, match=words):
        admit(path)


def field_of(number: int, kind: int, content: bytes) -> bytes:
    """A field as it stands in a file; content shorter than 128 bytes."""
    key = number << 3 | kind
    begin = bytes([key]) if key < 128 else bytes([key & 0x7F | 0x80, key >> 7])
    return begin + (bytes([len(content)]) if kind == 2 else b"") + content


def with_weight(weight: bytes) -> bytes:
    """The one-Relu graph with a weight of these bytes."""
    made = model()
    graph = made.graph.SerializeToString()
    made.ClearField("graph")
    whole = graph + field_of(5, 2, weight)
    return bytes(made.SerializeToString()) + bytes([7 << 3 | 2, len(whole) & 0x7F | 0x80, len(whole) >> 7]) + whole


FOUR = field_of(1, 0, b"\x04") + field_of(2, 0, b"\x01") + field_of(8, 2, b"w")  # four values of float32, named w


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (FOUR + field_of(4, 0, b"\x10"), "another way"),  # a number where packed values belong; readers skip it
        (FOUR + field_of(4, 1, b"\0" * 8) * 2, "another way"),
        (FOUR + field_of(7, 2, b"\x01" * 4), "another element type"),
        (FOUR + field_of(10, 2, b"\0" * 32), "another element type"),
        (FOUR + field_of(9, 2, b"\0" * 8) + field_of(4, 2, b"\0" * 8), "another element type"),
        (FOUR + field_of(9, 2, b"\0" * 16) * 2, "stands twice"),
        (FOUR + field_of(9, 2, b"\0" * 16) + field_of(15, 0, b"\x01"), "not known"),
    ],
)
def test_readers_that_differ_cannot_be_played_against_each_other(tmp_path: Path, weight: bytes, words: str) -> None:
    assert words in refusal(tmp_path / "g.onnx", with_weight(weight))
    admit(stored(tmp_path / "g.onnx", with_weight(FOUR + field_of(9, 2, b"\0" * 16))))


def test_a_name_means_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    weights = tuple(from_array(np.full(1, value, np.float32), "w") for value in (1, 2))
    assert "two weights" in refusal(path, model(weights=weights))
    relu = [helper.make_node("Relu", ["image"], ["logits"]) for _ in range(2)]
    assert "exists already" in refusal(path, model(*relu))
    pool = helper.make_node("MaxPool", ["image"], ["logits"], kernel_shape=[1, 1])
    pool.attribute.add().CopyFrom(pool.attribute[0])
    assert "two attributes" in refusal(path, model(pool))
    tensor = weights[0].SerializeToString()  # of an attribute with two tensors some readers make one
    attribute = field_of(1, 2, b"value") + field_of(20, 0, b"\x04") + field_of(5, 2, tensor) * 2
    made = model(weights=weights[:1]).SerializeToString()
    node = field_of(2, 2, b"v") + field_of(4, 2, b"Constant") + field_of(5, 2, attribute)
    graph = onnx.load_from_string(made).graph.SerializeToString() + field_of(1, 2, node)
    head = onnx.load_from_string(made)
    head.ClearField("graph")
    whole = head.SerializeToString() + bytes([7 << 3 | 2, len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph
    assert "field 5 of an attribute stands twice" in refusal(path, whole)


def test_versions_and_rows_that_keep_an_engine_busy(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    made = model()
    made.opset_import[0].version = 1 << 60
    assert "operator set" in refusal(path, made)
    made.opset_import[0].version = 17
    made.opset_import.append(helper.make_opsetid("ai.onnx", 18))
    assert "two versions" in refusal(path, made)
    chain = [helper.make_node("Relu", [f"x{i}" if i else "image"], [f"x{i + 1}"]) for i in range(200)]
    assert "in a row" in refusal(path, model(*chain))


def sized(operator: str, values: Any, dtype: Any = np.int64, position: int = 1, **attributes: Any) -> Any:
    inputs = ["image", *[""] * (position - 1), "size"] if position else ["size"]
    node = helper.make_node(operator, inputs, ["logits"], **attributes)
    return model(node, weights=(from_array(np.array(values, dtype), "size"),))


@pytest.mark.parametrize(
    "made",
    [
        sized("Expand", [1 << 20, 1 << 20]),
        sized("ConstantOfShape", [1 << 40], position=0),
        sized("Tile", [1, 1, 1 << 20, 1 << 20]),
        sized("Resize", [1.0, 1.0, 1e6, 1e6], np.float32, position=2),
        sized("Resize", [1.0, 1.0, np.inf, 1.0], np.float32, position=2),
        sized("Resize", [1.0, 1.0, np.nan, 1.0], np.float32, position=2),
        sized("Pad", [0, 0, 1 << 33, 0, 0, 0, 0, 0]),
        model(helper.make_node("MaxPool", ["image"], ["logits"], kernel_shape=[1 << 30, 1], strides=[1, 1])),
        model(helper.make_node("ConvTranspose", ["image", "image"], ["logits"], strides=[1 << 30, 1])),
        model(helper.make_node("RoiAlign", ["image", "image", "image"], ["logits"], sampling_ratio=1 << 30)),
    ],
)
def test_absurd_sizes(tmp_path: Path, made: Any) -> None:
    assert "size" in refusal(tmp_path / "g.onnx", made) or "more than" in refusal(tmp_path / "g.onnx", made)


def test_sizes_of_real_networks(tmp_path: Path) -> None:
    for made in (
        sized("Pad", [0, 0, 300, 300, 0, 0, 300, 300]),
        sized("Resize", [1.0, 1.0, 2.0, 2.0], np.float32, position=2),
        sized("Expand", [1, 64, 128, 128]),
    ):
        admit(stored(tmp_path / "g.onnx", made))


def test_counts_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    chain = [helper.make_node("Relu", [f"x{i}" if i else "image"], [f"x{i + 1}"]) for i in range(20)]
    assert "more than 10 nodes" in refusal(path, model(*chain), limits=Limits(nodes=10))
    assert "more fields" in refusal(path, model(*chain), limits=Limits(fields=50))
    many = tuple(from_array(np.zeros(1, np.float32), f"w{i}") for i in range(20))
    assert "more than 10 weights" in refusal(path, model(weights=many), limits=Limits(weights=10))
    deep = branch("x0")
    for i in range(8):
        inner = helper.make_node("If", ["c"], [f"y{i}"], then_branch=deep, else_branch=deep)
        deep = helper.make_graph([inner], "g", [], [helper.make_tensor_value_info(f"y{i}", 1, None)])
    node = helper.make_node("If", ["c"], ["logits"], then_branch=deep, else_branch=deep)
    assert "deep" in refusal(path, model(node), control_flow=CONTROL_FLOW)


def test_damage_is_never_more_than_a_refusal(tmp_path: Path) -> None:
    """Cut and changed files: a clear error or a graph that is admitted, whatever the damage."""
    weight = from_array(np.ones((2, 2, 3, 3), np.float32), "w")
    whole = model(
        helper.make_node("Conv", ["image", "w"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["x"], ["logits"], alpha=0.01),
        weights=(weight,),
    ).SerializeToString()
    random = np.random.default_rng(0)
    path = tmp_path / "g.onnx"
    refused = 0
    for round_ in range(1500):
        data = bytearray(whole)
        if round_ % 3 == 0:
            del data[int(random.integers(len(data))) :]
        else:
            for _ in range(int(random.integers(1, 4))):
                data[int(random.integers(len(data)))] = int(random.integers(256))
        try:
            admit(stored(path, bytes(data)))
        except BundleError:
            refused += 1
    assert refused > 500


def test_what_is_no_graph_at_all(tmp_path: Path) -> None:
    for content in (b"", b"hello world, this is no graph", b"\x08\x08", b"PK\x03\x04" + b"\0" * 40, b"\xff" * 100):
        assert "ONNX" in refusal(tmp_path / "g.onnx", content)
    with pytest.raises(BundleError, match="does not exist"):
        admit(tmp_path / "missing.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        admit(tmp_path)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A file of a few GiB is looked at without its weights: a sparse file holds them here."""
    size = 1 << 31
    head = model().SerializeToString()
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[size // 4]).SerializeToString()

    def field(number: int, length: int) -> bytes:
        out, value = bytearray([number << 3 | 2]), length
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    raw = tensor + field(9, size)
    weight = field(5, len(raw) + size) + raw
    graph = onnx.load_from_string(head).graph.SerializeToString()
    rest = onnx.load_from_string(head)
    rest.ClearField("graph")
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.write(rest.SerializeToString() + field(7, len(graph) + len(weight) + size) + graph + weight)
        stream.truncate(stream.tell() + size)
    assert admit(path).weight_bytes == size
