"""Small graphs that keep a tile's answers on the device: turn the tile, add up its mirrors, weigh the sum, stitch it.

They hold no weights of a network and stand beside it, so that the network itself stays as it was exported. Where a part
begins and ends, and which way round it is read, are inputs (int64, in the host's memory), so one graph serves every
mirror and every place. Each operator does one arithmetic step, in the order in which the host does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offline_infer.graph.model import Model, onnx_package

_OPSET = 17
_IR = 8
_FLOAT, _HALF, _INT64 = 1, 10, 7  # onnx.TensorProto's numbers

FIRST, LAST = -(2**63) + 1, 2**63 - 1
"""Ends of a slice that reaches to an axis' beginning (read backwards) or its end."""


def turn_graph(shape: Sequence[int], half: bool, count: int) -> Model:
    """A tile in ``count`` mirrors, as one batch.

    Args:
        shape: (1, c, *patch), the network's input.
        half: the network's input is float16.

    Returns:
        Inputs ``tile``; ``starts_I``, ``ends_I``, ``steps_I`` (one number per spatial axis) for I below ``count``. Output
        ``batch``, (count, c, *patch).
    """
    kind = _HALF if half else _FLOAT
    axes = list(range(2, len(shape)))
    inputs: list[_Port] = [("tile", kind, list(shape))]
    nodes: list[_Node] = []
    for i in range(count):
        parameters = [f"{part}_{i}" for part in ("starts", "ends")]
        inputs += [(f"{part}_{i}", _INT64, [len(axes)]) for part in ("starts", "ends", "steps")]
        made = "batch" if count == 1 else f"turned_{i}"
        nodes.append(("Slice", ["tile", *parameters, "axes", f"steps_{i}"], made, {}))
    if count > 1:
        nodes.append(("Concat", [f"turned_{i}" for i in range(count)], "batch", {"axis": 0}))
    return _model(nodes, inputs, ("batch", kind, [count, *shape[1:]]), {"axes": np.array(axes, np.int64)})


def gather_graph(shape: Sequence[int], half: bool, activation: str | None) -> Model:
    """One answer of a batch, turned back, made probabilities where asked, added to the sum of those before it.

    Args:
        shape: (n, k, *patch), the network's output.
        half: the network's output is float16; the sum is float32 all the same.
        activation: ``softmax`` or ``sigmoid`` over the classes, None for none.

    Returns:
        Inputs ``answers``; ``starts``, ``ends``, ``steps`` for axis 0 and the spatial ones; ``total``, (1, k, pz, py, px), or one
        zero for the first answer. Output ``sum``, (1, k, pz, py, px) with pz = 1 for a two-dimensional network.
    """
    axes = [0, *range(2, len(shape))]
    inputs: list[_Port] = [("answers", _HALF if half else _FLOAT, list(shape))]
    inputs += [(part, _INT64, [len(axes)]) for part in ("starts", "ends", "steps")]
    inputs.append(("total", _FLOAT, [f"t{i}" for i in range(5)]))
    constants = {"axes": np.array(axes, np.int64)}
    nodes: list[_Node] = [("Slice", ["answers", "starts", "ends", "axes", "steps"], "turned", {})]
    value = "turned"
    if half:
        nodes.append(("Cast", [value], "wide", {"to": _FLOAT}))
        value = "wide"
    if activation is not None:
        # x - x is zero, or NaN where an infinite or no number would be lost in a probability.
        nodes += [
            ("Softmax", [value], "probability", {"axis": 1})
            if activation == "softmax"
            else ("Sigmoid", [value], "probability", {}),
            ("Sub", [value, value], "fault", {}),
            ("Add", ["probability", "fault"], "checked", {}),
        ]
        value = "checked"
    if len(shape) == 4:
        constants["depth"] = np.array([2], np.int64)
        nodes.append(("Unsqueeze", [value, "depth"], "volume", {}))
        value = "volume"
    nodes.append(("Add", ["total", value], "sum", {}))
    patch = list(shape[2:]) if len(shape) == 5 else [1, *shape[2:]]
    return _model(nodes, inputs, ("sum", _FLOAT, [1, shape[1], *patch]), constants)


def weigh_graph() -> Model:
    """A sum divided by the number of its answers, times the weights.

    Inputs ``sum`` (1, k, z, y, x), ``answers`` (1,), ``weights`` (1, 1, z, y, x) or a single one. Output ``weighted``. float32.
    """
    nodes: list[_Node] = [
        ("Div", ["sum", "answers"], "mean", {}),
        ("Mul", ["mean", "weights"], "weighted", {}),
    ]
    inputs: list[_Port] = [("sum", _FLOAT, list("nkzyx")), ("answers", _FLOAT, [1]), ("weights", _FLOAT, list("abcde"))]
    return _model(nodes, inputs, ("weighted", _FLOAT, list("nkzyx")), {})


def stitch_graph(half: bool) -> Model:
    """A box of the slab with its part of a weighted tile added.

    With half-precision sums the addition is in float32 and rounded once, as the framework does.

    Returns:
        Inputs ``box`` (1, k, dz, dy, dx), or a single zero for a box with nothing in it yet; ``weighted`` (1, k, z, y, x);
        ``starts``, ``ends`` (3,): the box within the tile. Output ``stitched``, like ``box``.
    """
    kind = _HALF if half else _FLOAT
    inputs: list[_Port] = [
        ("box", kind, [f"b{i}" for i in range(5)]),
        ("weighted", _FLOAT, list("nkzyx")),
        ("starts", _INT64, [3]),
        ("ends", _INT64, [3]),
    ]
    nodes: list[_Node] = [("Slice", ["weighted", "starts", "ends", "axes"], "part", {})]
    if half:
        nodes += [
            ("Cast", ["box"], "wide", {"to": _FLOAT}),
            ("Add", ["wide", "part"], "total", {}),
            ("Cast", ["total"], "stitched", {"to": _HALF}),
        ]
    else:
        nodes.append(("Add", ["box", "part"], "stitched", {}))
    output: _Port = ("stitched", kind, ["n", "k", "dz", "dy", "dx"])
    return _model(nodes, inputs, output, {"axes": np.array([2, 3, 4], np.int64)})


_Node = tuple[str, list[str], str, dict[str, Any]]
_Port = tuple[str, int, list[Any]]


def _model(nodes: Sequence[_Node], inputs: Sequence[_Port], output: _Port, constants: dict[str, Any]) -> Model:
    onnx = onnx_package()
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(op, taken, [made], name=made, **attributes) for op, taken, made, attributes in nodes],
        "stitching",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*output)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
