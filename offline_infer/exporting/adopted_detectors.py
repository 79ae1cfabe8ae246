"""Somebody else's detector as ONNX -> the same graph with the three outputs ``dets``, ``labels`` and ``masks``.

Three conventions are known, recognised by the outputs' names and shapes:

``torchvision``: ``boxes (N, 4)``, ``labels (N)`` from 1, ``scores (N)``, ``masks (N, 1, H, W)`` pasted into the image, for an
image (3, H, W). The pasting, a loop, is cut off: its input, a small mask per box, is what is wanted here.
``mmdeploy``: ``dets (1, N, 5)``, ``labels (1, N)`` and ``masks (1, N, h, w)``, over the boxes or over the whole input.
``prototypes``: ``(1, 4 + classes + p, A)`` and ``(1, p, h, w)``: boxes with class scores and coefficients of prototype masks, as
Ultralytics writes them, before any suppression, which is added here.
``fixed``: already of the wanted form.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from offline_infer import graph as passes
from offline_infer.errors import ExportError

Convention = Literal["fixed", "torchvision", "mmdeploy", "prototypes"]
CONVENTIONS: tuple[Convention, ...] = ("fixed", "torchvision", "mmdeploy", "prototypes")

IMAGE, DETS, LABELS, MASKS = "image", "dets", "labels", "masks"
_OLDEST = 11
_PREFIX = "adopted/"


@dataclass(frozen=True)
class Suppression:
    """How overlapping boxes of the ``prototypes`` convention are thinned out."""

    score: float = 0.25
    iou: float = 0.7
    limit: int = 300


@dataclass(frozen=True)
class AdoptedGraph:
    """What became of a graph.

    Attributes:
        model: with the input ``image`` (1, 3, y, x) and the three outputs.
        convention: what it was recognised as.
        canvas: the only (height, width) it takes, or None.
        limit: rows of the outputs.
        mask_size: side of a mask over its box; -1 for masks over the whole input, whose rows are as many as were found.
        classes: number of classes, where the graph tells it.
    """

    model: Any
    convention: Convention
    canvas: tuple[int, int] | None
    limit: int
    mask_size: int
    classes: int | None


def adopt_graph(
    model: Any,
    *,
    convention: Convention | None = None,
    limit: int = 100,
    suppression: Suppression | None = None,
) -> AdoptedGraph:
    """Give a detector the three outputs.

    Args:
        model: an ONNX model in memory.
        convention: None recognises it.
        limit: rows of the outputs.
        suppression: for ``prototypes``.

    Raises:
        ExportError: none of the known conventions, or an operator set that is too old; the message lists what was found.
    """
    version = passes.inspect_graph(model).opset
    if version < _OLDEST:
        raise ExportError(f"the graph has opset {version}; {_OLDEST} or later is needed")
    kind = convention or recognise(model)
    build = _Builder(model, version)
    canvas = build.four_axes()
    rows = (suppression or Suppression()).limit if kind == "prototypes" else limit
    classes: int | None = None
    if kind == "torchvision":
        found, side = _torchvision(build)
        classes = _scored_classes(build)
    elif kind == "prototypes":
        found, side, classes = _prototypes(build, suppression or Suppression())
    else:
        found, side = _dets_labels_masks(build)
    build.finish(found, rows, side)
    return AdoptedGraph(build.cleaned(), kind, canvas, rows, side, classes)


def recognise(model: Any) -> Convention:
    """The convention of a graph.

    Raises:
        ExportError: none that is known.
    """
    ports = {port.name: port.shape for port in passes.inspect_graph(model).outputs}
    names, ranks = set(ports), sorted(len(shape) if shape is not None else -1 for shape in ports.values())
    if {"boxes", "labels", "scores", "masks"} <= names:
        return "torchvision"
    if {DETS, LABELS, MASKS} <= names:
        shape = ports[DETS]
        return "fixed" if shape is not None and len(shape) == 2 else "mmdeploy"
    if len(ports) == 2 and ranks == [3, 4]:
        return "prototypes"
    listed = ", ".join(f"{name} {shape}" for name, shape in ports.items())
    raise ExportError(
        f"the graph's outputs ({listed}) are none of the known kinds: torchvision (boxes, labels, scores, masks), mmdeploy "
        "(dets, labels, masks), or prototypes (two outputs of three and four axes)"
    )


# ---- the conventions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Names of tensors: dets (n, 5), labels (n) from 0, masks (n, h, w)."""

    dets: str
    labels: str
    masks: str


def _torchvision(build: _Builder) -> tuple[_Found, int]:
    masks, side = build.renamed(MASKS), -1
    small = _before_pasting(build, masks)
    if small is not None:
        masks, side = small
    one = build.constant("one", np.array(1, np.int64))
    labels = build.node("Sub", [build.node("Cast", [build.renamed(LABELS)], to=7), one])
    scores = build.reshape("scores", [-1, 1])
    dets = build.node("Concat", ["boxes", scores], axis=1)
    if side > 0:
        return _Found(dets, labels, build.reshape(masks, [-1, side, side])), side
    return _Found(dets, labels, build.squeeze(masks, 1)), -1


def _scored_classes(build: _Builder) -> int | None:
    """How many classes the box head scores beside the background, which is one column; None where that cannot be seen."""
    producers = {name: node for node in build.model.graph.node for name in node.output}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in build.model.graph.initializer}
    found = set()
    for node in build.model.graph.node:
        before = producers.get(node.input[0]) if node.op_type == "Softmax" else None
        bias = sizes.get(before.input[-1]) if before is not None and before.op_type in ("Gemm", "Add") else None
        if bias is not None and len(bias) == 1:
            found.add(bias[0] - 1)
    return found.pop() if len(found) == 1 else None


def _before_pasting(build: _Builder, masks: str) -> tuple[str, int] | None:
    """The masks before they are pasted, and their side: what is framed by one pixel of zeros for the pasting loop."""
    loop = build.producer_behind(masks, {"Unsqueeze", "Concat", "Cast", "Identity"}, "Loop")
    if loop is None:
        return None
    onnx = passes.onnx_package()
    body = next(onnx.helper.get_attribute_value(a) for a in loop.attribute if a.name == "body")
    used = {name for node in body.node for name in node.input}
    for node in build.model.graph.node:
        if node.op_type == "Pad" and node.output[0] in used:
            side = build.side_of_regions(node.input[0])
            if side is None:
                raise ExportError("the masks of the graph do not come from RoIAlign; their size is unknown")
            return node.input[0], side
    return None


def _dets_labels_masks(build: _Builder) -> tuple[_Found, int]:
    shape = build.port_shape(MASKS)
    rank = len(shape)
    if rank not in (3, 4):
        raise ExportError(f"output masks has {rank} axes; expected (n, h, w), with an axis of 1 before it or not")
    sides = shape[-2:]
    own = isinstance(sides[0], int) and sides[0] == sides[1] and sides[0] <= 256
    dets = build.reshape(build.renamed(DETS), [-1, 5])
    labels = build.node("Cast", [build.reshape(build.renamed(LABELS), [-1])], to=7)
    masks = build.renamed(MASKS)
    if rank == 4:
        masks = build.squeeze(masks, 0)
    side = sides[0] if own and isinstance(sides[0], int) else -1
    numbers = build.node("Cast", [masks], to=1)
    if build.is_bytes(MASKS):
        # Either 0 and 1, or probabilities times 255: nothing but the largest value tells which.
        largest = build.node("ReduceMax", [numbers], keepdims=0)
        many = build.node("Greater", [largest, build.constant("one", np.array(1, np.float32))])
        whole = [build.constant("whole", np.array(value, np.float32)) for value in (255, 1)]
        numbers = build.node("Div", [numbers, build.node("Where", [many, *whole])])
    return _Found(dets, labels, numbers), side


def _prototypes(build: _Builder, rule: Suppression) -> tuple[_Found, int, int]:
    ports = {port.name: port.shape for port in passes.inspect_graph(build.model).outputs}
    rows, maps = sorted(ports, key=lambda name: len(ports[name] or ()))
    channels, coefficients = (ports[rows] or ())[1], (ports[maps] or ())[1]
    if not isinstance(channels, int) or not isinstance(coefficients, int) or channels <= 4 + coefficients:
        raise ExportError(f"outputs {rows} {ports[rows]} and {maps} {ports[maps]} are not boxes with prototype masks")
    classes = channels - 4 - coefficients
    table = build.node("Transpose", [build.squeeze(rows, 0)], perm=[1, 0])  # (A, 4 + classes + p)
    centre, size = build.slice(table, 0, 2), build.slice(table, 2, 4)
    half = build.node("Mul", [size, build.constant("half", np.array(0.5, np.float32))])
    boxes = build.node("Concat", [build.node("Sub", [centre, half]), build.node("Add", [centre, half])], axis=1)
    scores = build.slice(table, 4, 4 + classes)
    best = build.reduce_max(scores)
    labels = build.node("ArgMax", [scores], axis=1, keepdims=0)
    # Boxes of different classes do not compete: each class is moved to a place of its own.
    far = build.constant("far", np.array(7680.0, np.float32))
    shift = build.reshape(build.node("Mul", [build.node("Cast", [labels], to=1), far]), [-1, 1])
    chosen = build.node(
        "NonMaxSuppression",
        [
            build.unsqueeze(build.node("Add", [boxes, shift]), 0),
            build.reshape(best, [1, 1, -1]),
            build.constant("limit", np.array([rule.limit], np.int64)),
            build.constant("iou", np.array([rule.iou], np.float32)),
            build.constant("score", np.array([rule.score], np.float32)),
        ],
    )
    kept = build.reshape(build.slice(chosen, 2, 3), [-1])
    dets = build.node("Concat", [boxes, build.reshape(best, [-1, 1])], axis=1)
    weights = build.node("Gather", [build.slice(table, 4 + classes, channels), kept], axis=0)
    prototypes = build.squeeze(maps, 0)  # (p, h, w)
    flat = build.reshape(prototypes, [coefficients, -1])
    sides = build.node("Slice", [build.node("Shape", [prototypes]), *build.constants([1], [3])])
    shape = build.node("Concat", [build.constant("rows", np.array([-1], np.int64)), sides], axis=0)
    masks = build.node("Reshape", [build.node("MatMul", [weights, flat]), shape])
    return (
        _Found(build.node("Gather", [dets, kept], axis=0), build.node("Gather", [labels, kept], axis=0), masks),
        -1,
        classes,
    )


# ---- building --------------------------------------------------------------------------------------------------------


class _Builder:
    """Adds nodes behind a graph."""

    def __init__(self, model: Any, opset: int) -> None:
        self._onnx = passes.onnx_package()
        self.model = self._onnx.ModelProto()
        self.model.CopyFrom(model)
        self._opset = opset
        self._count = 0

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node; returns its output's name."""
        self._count += 1
        name = f"{_PREFIX}{kind}_{self._count}"
        self.model.graph.node.append(self._onnx.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self._count += 1
        full = f"{_PREFIX}{name}_{self._count}"
        self.model.graph.initializer.append(self._onnx.numpy_helper.from_array(value, full))
        return full

    def constants(self, *lists: Sequence[int]) -> list[str]:
        return [self.constant("list", np.array(values, np.int64)) for values in lists]

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [tensor, *self.constants(shape)])

    def slice(self, tensor: str, first: int, last: int) -> str:
        """Columns of a table."""
        return self.node("Slice", [tensor, *self.constants([first], [last], [1])])

    def squeeze(self, tensor: str, axis: int) -> str:
        if self._opset < 13:
            return self.node("Squeeze", [tensor], axes=[axis])
        return self.node("Squeeze", [tensor, *self.constants([axis])])

    def unsqueeze(self, tensor: str, axis: int) -> str:
        if self._opset < 13:
            return self.node("Unsqueeze", [tensor], axes=[axis])
        return self.node("Unsqueeze", [tensor, *self.constants([axis])])

    def reduce_max(self, table: str) -> str:
        """Of every row."""
        if self._opset < 18:
            return self.node("ReduceMax", [table], axes=[1], keepdims=0)
        return self.node("ReduceMax", [table, *self.constants([1])], keepdims=0)

    def renamed(self, output: str) -> str:
        """Free an output's name for the new output; returns what the tensor is called now."""
        fresh = f"{_PREFIX}{output}_before"
        for node in self.model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = fresh
        return fresh

    def port_shape(self, output: str) -> tuple[int | str | None, ...]:
        shapes = {port.name: port.shape for port in passes.inspect_graph(self.model).outputs}
        return shapes.get(output) or ()

    def is_bytes(self, output: str) -> bool:
        """Whether an output's numbers are whole ones from 0 to 255."""
        return {port.name: port.dtype for port in passes.inspect_graph(self.model).outputs}.get(output) == "uint8"

    def side_of_regions(self, tensor: str) -> int | None:
        """Side of what the nearest RoIAlign behind a tensor gives, times the strides of upsampling convolutions between."""
        producers = {name: node for node in self.model.graph.node for name in node.output}
        waiting, seen = deque([(tensor, 1)]), {tensor}
        attribute = self._onnx.helper.get_attribute_value
        while waiting:
            name, factor = waiting.popleft()
            node = producers.get(name)
            if node is None:
                continue
            values = {one.name: attribute(one) for one in node.attribute}
            if node.op_type == "RoiAlign":
                return int(values.get("output_height", 1)) * factor
            if node.op_type == "ConvTranspose":
                factor *= int(values.get("strides", [1])[0])
            for before in node.input:
                if before and before not in seen:
                    seen.add(before)
                    waiting.append((before, factor))
        return None

    def producer_behind(self, tensor: str, through: set[str], wanted: str) -> Any:
        """The node of kind ``wanted`` behind a tensor, with only nodes of the kinds ``through`` between them."""
        producers = {name: node for node in self.model.graph.node for name in node.output}
        node = producers.get(tensor)
        while node is not None and node.op_type in through and node.input:
            node = producers.get(node.input[0])
        return node if node is not None and node.op_type == wanted else None

    def four_axes(self) -> tuple[int, int] | None:
        """Make the only input ``image`` (1, 3, y, x); returns its fixed size, or None for any.

        Raises:
            ExportError: several inputs, or one that is no image.
        """
        ports = passes.inspect_graph(self.model).inputs
        if len(ports) != 1 or ports[0].shape is None or len(ports[0].shape) not in (3, 4):
            listed = ", ".join(f"{port.name} {port.shape}" for port in ports)
            raise ExportError(f"the graph's inputs are {listed}; expected one image (3, y, x) or (1, 3, y, x)")
        port = ports[0]
        shape = port.shape
        assert shape is not None
        if port.dtype != "float32" or (shape[-3] not in (3, None) and not isinstance(shape[-3], str)):
            raise ExportError(
                f"the graph's input {port.name} is {port.dtype} {shape}; expected float32 with 3 channels"
            )
        inside = f"{_PREFIX}input"
        _rename_everywhere(self.model.graph, port.name, inside)
        nodes = self.model.graph.node
        first = (
            self._onnx.helper.make_node("Squeeze", [IMAGE], [inside], f"{_PREFIX}squeeze", axes=[0])
            if self._opset < 13
            else self._onnx.helper.make_node("Squeeze", [IMAGE, self.constants([0])[0]], [inside], f"{_PREFIX}squeeze")
        )
        if len(shape) == 4:
            first = self._onnx.helper.make_node("Identity", [IMAGE], [inside], f"{_PREFIX}identity")
        nodes.insert(0, first)
        sizes = [size if isinstance(size, int) and size > 0 else None for size in shape[-2:]]
        for value in list(self.model.graph.input):
            if value.name == inside:
                self.model.graph.input.remove(value)
        declared = [1, 3, sizes[0] or "height", sizes[1] or "width"]
        self.model.graph.input.insert(0, self._onnx.helper.make_tensor_value_info(IMAGE, 1, declared))
        return (sizes[0], sizes[1]) if sizes[0] and sizes[1] else None

    def finish(self, found: _Found, limit: int, side: int) -> None:
        """Make the three outputs, filled up to ``limit`` rows where masks cover boxes."""
        del self.model.graph.output[:]
        rows: int | str = limit if side > 0 else "rows"
        fillers: dict[str, tuple[str, np.ndarray[Any, Any], list[Any] | None, int]] = {
            DETS: (found.dets, np.zeros((limit, 5), np.float32), [rows, 5], 1),
            LABELS: (found.labels, np.zeros(limit, np.int64), [rows], 7),
            MASKS: (found.masks, np.zeros((limit, max(side, 0), max(side, 0)), np.float32), None, 1),
        }
        for name, (tensor, filler, shape, kind) in fillers.items():
            if side > 0:
                filled = self.node("Concat", [tensor, self.constant("filler", filler)], axis=0)
                last = self.node("Slice", [filled, *self.constants([0], [limit], [0])])
            else:
                last = self.node("Slice", [tensor, *self.constants([0], [limit], [0])])
            self.model.graph.node.append(self._onnx.helper.make_node("Identity", [last], [name], f"{_PREFIX}{name}"))
            declared = shape or ([limit, side, side] if side > 0 else [rows, "mask_height", "mask_width"])
            self.model.graph.output.append(self._onnx.helper.make_tensor_value_info(name, kind, declared))

    def cleaned(self) -> Any:
        """The model without what no output needs, checked.

        Raises:
            ExportError: it is not valid.
        """
        graph = self.model.graph
        live, kept = {value.name for value in graph.output}, []
        for node in reversed(graph.node):
            if any(name in live for name in node.output):
                kept.append(node)
                live.update(_used(node))
        kept = [self._copy(node) for node in reversed(kept)]
        weights = [self._copy(tensor) for tensor in graph.initializer if tensor.name in live]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(kept)
        graph.initializer.extend(weights)
        try:
            self._onnx.checker.check_model(self.model)
        except Exception as error:  # ValidationError
            raise ExportError(f"the adopted graph is not valid ONNX: {' '.join(str(error).split())[:400]}") from error
        return self.model

    def _copy(self, message: Any) -> Any:
        new = type(message)()
        new.CopyFrom(message)
        return new


def _used(node: Any) -> Iterable[str]:
    """Names a node reads, those of graphs inside it among them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _used(inner)
        for output in attribute.g.output:
            yield output.name


def _rename_everywhere(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            _rename_everywhere(attribute.g, old, new)
    for value in graph.input:
        if value.name == old:
            value.name = new
