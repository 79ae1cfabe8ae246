"""Graphs that ask for more memory than there is are refused before anything is allocated, on every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from limited import limited

from offline_infer.engines.base import EngineOptions, get_engine
from offline_infer.errors import BundleError
from offline_infer.graph import fix_shapes, load_model
from offline_infer.graph.liveness import Step, Tensor, most_alive, steps_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
node, from_array = onnx.helper.make_node, onnx.numpy_helper.from_array
SHAPE = (1, 2, 6, 8)


def stored(path: Path, nodes: list[Any], **weights: Any) -> Path:
    ports = [
        onnx.helper.make_tensor_value_info("image", 1, list(SHAPE)),
        onnx.helper.make_tensor_value_info("logits", 1, None),
    ]
    tensors = [from_array(np.array(values), name) for name, values in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def row(operator: str, count: int, more: list[str], **attributes: Any) -> list[Any]:
    """The operator on its own result, again and again, and the largest value at the end."""
    nodes = [node(operator, ["image" if i == 0 else f"x{i}", *more], [f"x{i + 1}"], **attributes) for i in range(count)]
    return [*nodes, node("ReduceMax", [f"x{count}"], ["logits"])]


def doubled(count: int) -> list[Any]:
    nodes = [node("Concat", ["image" if i == 0 else f"x{i}"] * 2, [f"x{i + 1}"], axis=3) for i in range(count)]
    return [*nodes, node("ReduceMax", [f"x{count}"], ["logits"])]


def many_at_once() -> tuple[list[Any], dict[str, Any]]:
    """Tensors that each fit, and are all needed until the last one is made, in whatever order."""
    memory = psutil.virtual_memory().total
    times = int(min(memory / 8, 8 << 30) / (np.prod(SHAPE) * 4))
    count = int(memory / (times * np.prod(SHAPE) * 4)) + 2
    nodes = [node("Tile", ["image", "r"], ["x0"]), node("Sin", [f"x{count}"], ["y0"])]
    nodes[1:1] = [node("Sin", [f"x{i}"], [f"x{i + 1}"]) for i in range(count)]
    nodes += [node("Add", [f"y{i}", f"x{count - i}"], [f"y{i + 1}"]) for i in range(count)]
    return [*nodes, node("ReduceMax", [f"y{count}"], ["logits"])], {"r": [1, 1, 1, times]}


def sized(*nodes: Any) -> list[Any]:
    """A tensor of the shape ``t`` that the nodes work out."""
    return [*nodes, node("ConstantOfShape", ["t"], ["z"]), node("ReduceMax", ["z"], ["logits"])]


GREEDY: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "doubled": (doubled(40), {}),
    "tiled": (row("Tile", 3, ["r"]), {"r": [1, 1, 1000, 1000]}),
    "enlarged": (row("Resize", 15, ["", "s"]), {"s": np.array([1, 1, 4, 4], np.float32)}),
    "padded": (row("Pad", 2000, ["p"]), {"p": [0, 0, 0, 0, 0, 0, 60000, 60000]}),
    "a shape times a number": (
        sized(node("Shape", ["image"], ["s"]), node("Mul", ["s", "k"], ["t"])),
        {"k": [1, 1, 40000, 40000]},
    ),
    "tiled by the shape": (
        [
            node("Shape", ["image"], ["s"]),
            node("Mul", ["s", "k"], ["t"]),
            node("Tile", ["image", "t"], ["z"]),
            node("ReduceMax", ["z"], ["logits"]),
        ],
        {"k": [1, 1, 9000, 9000]},
    ),
    "a product of sizes": (
        sized(
            node("Shape", ["image"], ["s"]),
            node("ReduceProd", ["s"], ["p"], axes=[0], keepdims=1),
            node("Mul", ["p", "p"], ["p2"]),
            node("Mul", ["p2", "p2"], ["p4"]),
            node("Mul", ["p4", "p2"], ["t"]),
        ),
        {},
    ),
    "counted": (
        [
            node("Size", ["image"], ["s"]),
            node("Mul", ["s", "s"], ["s2"]),
            node("Mul", ["s2", "s2"], ["s4"]),
            node("Mul", ["s4", "s2"], ["t"]),
            node("Range", ["zero", "t", "one"], ["z"]),
            node("Cast", ["z"], ["f"], to=1),
            node("ReduceMax", ["f"], ["logits"]),
        ],
        {"zero": 0, "one": 1},
    ),
    "exponentials": (
        sized(
            node("Shape", ["image"], ["s"]),
            node("Cast", ["s"], ["f"], to=1),
            node("Mul", ["f", "k"], ["m"]),
            node("Exp", ["m"], ["e"]),
            node("Cast", ["e"], ["t"], to=7),
        ),
        {"k": np.float32(1.8)},
    ),
    "many at once": many_at_once(),
}


@pytest.mark.parametrize(
    ("engine", "kind"),
    # OpenVINO computes the sizes of "counted" in 32 bits, and gets one that fits.
    [("onnxruntime", kind) for kind in GREEDY] + [("openvino", kind) for kind in GREEDY if kind != "counted"],
)
def test_what_no_machine_holds_is_refused(engine: str, kind: str, tmp_path: Path) -> None:
    nodes, weights = GREEDY[kind]
    path = stored(tmp_path / "g.onnx", nodes, **weights)
    with pytest.raises(BundleError, match="GiB"):
        limited(lambda: get_engine(engine).open(path, EngineOptions(threads=1)).info)


def test_a_tensor_lives_until_it_is_taken_for_the_last_time() -> None:
    def step(takes: str, makes: str, in_place: bool = False, size: int = 10) -> Step:
        return Step(tuple(takes), tuple(Tensor(name, (size,), 1) for name in makes), in_place)

    assert most_alive([step("i", "a"), step("a", "b"), step("b", "c")]) == 20
    assert most_alive([step("i", "a"), step("a", "b", in_place=True), step("b", "c", in_place=True)]) == 10
    assert most_alive([step("i", "a"), step("a", "b"), step("b", "c"), step("ac", "d")]) == 30
    assert most_alive([step("i", "a"), step("a", "b", in_place=True), step("ab", "c")]) == 30  # a is needed again
    assert most_alive([step("i", "a", size=0), step("i", "bcd"), step("b", "e")]) == 30
    assert most_alive([]) == 0


def test_working_sizes_out_takes_little_time(tmp_path: Path) -> None:
    """Thousands of numbers that a size follows from, and a chain of sizes that each follow from another."""
    arithmetic = [node("Shape", ["image"], ["s0"])]
    for i in range(2000):
        arithmetic.append(node("Add", [f"s{i}", "k"], [f"a{i}"]))
        arithmetic.append(node("Reshape", [f"a{i}", "four"], [f"s{i + 1}"]))
    chain = [node("Shape", ["image"], ["s0"]), node("ConstantOfShape", ["s0"], ["x0"])]
    for i in range(100):
        chain.append(node("Shape", [f"x{i}"], [f"t{i}"]))
        chain.append(node("Min", [f"t{i}", "k"], [f"u{i}"]))
        chain.append(node("ConstantOfShape", [f"u{i}"], [f"x{i + 1}"]))
    graphs = [[*arithmetic, node("ConstantOfShape", ["s2000"], ["z"]), node("ReduceMax", ["z"], ["logits"])]]
    graphs.append([*chain, node("ReduceMax", ["x100"], ["logits"])])
    for nodes in graphs:
        path = stored(tmp_path / "g.onnx", nodes, k=[0, 0, 0, 1], four=[4])
        steps = limited(lambda path=path: len(steps_of(onnx.load(path))), cpu_seconds=30)
        assert steps == len(nodes)


def test_counting_far_takes_no_memory_when_a_graph_is_adopted(tmp_path: Path) -> None:
    """The onnx package writes a list of sizes out: 2^24 of them took 2.5 GB, 2^30 all there was."""
    far = [node("Range", ["zero", "most", "one"], ["list"])]
    lists = [node("Concat", ["one1" if i == 0 else f"x{i}"] * 2, [f"x{i + 1}"], axis=0) for i in range(30)]
    for nodes, last in ((far, "list"), (lists, "x30")):
        end = [
            node("Cast", [last], ["f"], to=1),
            node("ReduceMax", ["f"], ["m"]),
            node("Add", ["image", "m"], ["logits"]),
        ]
        numbers = {"zero": 0, "most": 1 << 30, "one": 1, "one1": [1]}
        path = stored(tmp_path / "g.onnx", [*nodes, *end], **numbers)
        shape = limited(lambda path=path: output_shape(fix_shapes(load_model(path), SHAPE)), memory=1 << 28)
        assert shape == SHAPE


def output_shape(model: Any) -> tuple[int, ...]:
    return tuple(axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim)


def test_shapes_that_follow_from_shapes_are_found(tmp_path: Path) -> None:
    """As exporters write them: a size taken out of a shape, changed and put together again."""
    nodes = [
        node("Shape", ["image"], ["s"]),
        node("Gather", ["s", "two"], ["h"], axis=0),
        node("Mul", ["h", "three"], ["h3"]),
        node("Unsqueeze", ["h3", "zero1"], ["h3u"]),
        node("Slice", ["s", "zero1", "two1"], ["nc"]),
        node("Concat", ["nc", "h3u", "minus1"], ["t"], axis=0),
        node("Tile", ["image", "r"], ["tiled"]),
        node("Reshape", ["tiled", "t"], ["y"]),
        node("Shape", ["y"], ["sy"]),
        node("Resize", ["y", "", "", "sy"], ["logits"]),
    ]
    numbers = {"two": 2, "three": 3, "zero1": [0], "two1": [2], "minus1": [-1], "r": [1, 1, 3, 1]}
    path = stored(tmp_path / "g.onnx", nodes, **numbers)
    assert output_shape(fix_shapes(load_model(path), SHAPE)) == (1, 2, 18, 8)
