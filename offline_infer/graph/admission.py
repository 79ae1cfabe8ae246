"""Whether a graph may be opened at all: looked at before any engine reads the file, wherever the file came from.

Engines trust a graph: one reads files, or the process's own memory, where a weight says that its data lie elsewhere; others
run loops without end or allocate what a few bytes ask for. So the file is walked here first, without the ``onnx`` package
and without reading the weights, and admitted if it is complete in itself, uses known operators only and asks for sizes a
network may have. Whatever is not known to be harmless is refused.

Field numbers are those of ONNX's published ``onnx.proto``.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from offline_infer.errors import BundleError
from offline_infer.graph.messages import (
    ATTRIBUTE,
    AXIS,
    ENTRY,
    GRAPH,
    MODEL,
    NODE,
    OPERATOR_SET,
    PORT,
    SHAPE,
    TENSOR,
    TENSOR_TYPE,
    TYPE,
    Message,
)
from offline_infer.graph.operators import (
    CONTROL_FLOW,
    DOMAINS,
    ELEMENTWISE,
    LOOP_LENGTHS,
    SIZING_ATTRIBUTES,
    SIZING_INPUTS,
    SIZING_PADDINGS,
    TENSOR_OPERATORS,
)
from offline_infer.graph.wire import BYTES, Buffer, Field, Walker, WireError, mapped, signed

_MODEL = {"ir_version": 1, "graph": 7, "opset": 8, "metadata": 14, "training": 20, "functions": 25}
_GRAPH = {"node": 1, "weight": 5, "input": 11, "output": 12, "value": 13, "sparse": 15}
_NODE = {"input": 1, "output": 2, "name": 3, "op": 4, "attribute": 5, "domain": 7, "overload": 8}
_ATTRIBUTE = {
    "name": 1, "f": 2, "i": 3, "tensor": 5, "graph": 6, "floats": 7, "ints": 8, "tensors": 10, "graphs": 11, "type": 20,
    "reference": 21, "sparse": 22, "sparse_list": 23,
}  # fmt: skip
_TENSOR = {
    "dims": 1, "type": 2, "segment": 3, "floats": 4, "int32s": 5, "strings": 6, "int64s": 7, "name": 8, "raw": 9,
    "doubles": 10, "uint64s": 11, "external": 13, "location": 14,
}  # fmt: skip

ITEM_BYTES: Mapping[int, int] = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2,
}  # fmt: skip
"""ONNX element type -> bytes a value; types that are missing here (strings, complex numbers, packed ones) are refused."""
DTYPES: Mapping[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip

_FIELD_OF: Mapping[int, int] = {
    1: _TENSOR["floats"], 7: _TENSOR["int64s"], 11: _TENSOR["doubles"], 12: _TENSOR["uint64s"], 13: _TENSOR["uint64s"],
    **dict.fromkeys((2, 3, 4, 5, 6, 9, 10, 16), _TENSOR["int32s"]),
}  # fmt: skip
"""ONNX element type -> field its values stand in where they are not raw bytes."""
_DATA = frozenset({_TENSOR["raw"], *_FIELD_OF.values()})

_FORBIDDEN_METADATA = frozenset({"ort_config"})  # ONNX Runtime may take session options from it


@dataclass(frozen=True)
class Limits:
    """What no network of this family comes near.

    Attributes:
        nodes, weights: how many, over the whole file.
        fields: of the whole file, counted one by one; bounds the time.
        rank: axes of a tensor.
        values: elements of an input, an output, or a tensor whose size stands in the file.
        extent: a padding.
        name: bytes of a name.
        depth: graphs within graphs.
        row: operators one after the other that compute value by value.
        opset: version of the standard operator set; engines count down from it.
        rounds: of a loop whose number stands in the file.
    """

    nodes: int = 10_000
    weights: int = 20_000
    fields: int = 4_000_000
    rank: int = 16
    values: int = 1 << 32
    extent: int = 1 << 16
    name: int = 4096
    depth: int = 4
    row: int = 128
    opset: int = 99
    rounds: int = 10_000


LIMITS = Limits()


@dataclass(frozen=True)
class GraphPort:
    """An input or output. ``shape``: -1 for an open size; None if the rank is open."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Admitted:
    """What an admitted graph is made of.

    Attributes:
        opset: of the standard operator set.
        operators: operator -> how many, graphs inside others counted with them.
        inputs, outputs: in the graph's order; weights that are listed as inputs are left out.
        weight_bytes: of all weights.
        metadata: the file's key-value entries, of keys that are no longer than a name.
    """

    opset: int
    operators: Mapping[str, int]
    inputs: tuple[GraphPort, ...]
    outputs: tuple[GraphPort, ...]
    weight_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def admit(path: Path, *, control_flow: frozenset[str] = frozenset(), limits: Limits = LIMITS) -> Admitted:
    """Look at an ONNX file before anything opens it.

    Args:
        path: the file.
        control_flow: operators with graphs inside that may be used, from :data:`~offline_infer.graph.operators.CONTROL_FLOW`.
        limits: what is refused as absurd.

    Raises:
        BundleError: missing, damaged, not complete in itself, or with an operator or a size that is not admitted; the message
            names it.
    """
    try:
        with mapped(path) as data:
            return _Inspection(data, control_flow, limits).model()
    except WireError as damage:
        raise BundleError(f"{path} is not a complete ONNX file ({damage}); copy or export it again") from damage
    except _RefusedError as refusal:
        raise BundleError(f"{path} is not opened: {refusal}") from refusal
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist; expected an ONNX graph") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


class _RefusedError(Exception):
    """Why a well-formed file is not admitted."""


@dataclass
class _Tensor:
    """What is known of a tensor that stands in the file; ``values`` only of short lists of whole or floating numbers."""

    name: str = ""
    values: list[float] | None = None


@dataclass
class _Scope:
    """A graph that is walked.

    Attributes:
        depth: 0 for the main graph.
        constants: short lists of numbers by name, those of the graphs around it among them.
        made: tensors of this graph that a weight or a node gives.
        rows: tensor -> how many operators in a row compute it value by value.
        makers: tensor -> operator that makes it, and its inputs.
    """

    depth: int
    constants: dict[str, list[float]]
    made: set[str]
    rows: dict[str, int] = field(default_factory=dict)
    makers: dict[str, tuple[str, list[str]]] = field(default_factory=dict)


@dataclass
class _Found:
    """What the walk has gathered so far, over all graphs of the file."""

    operators: Counter[str] = field(default_factory=Counter)
    nodes: int = 0
    weights: int = 0
    weight_bytes: int = 0


class _Inspection:
    """One walk over one file."""

    def __init__(self, data: Buffer, control_flow: frozenset[str], limits: Limits) -> None:
        self._data = data
        self._walker = Walker(data, limits.fields)
        self._allowed = TENSOR_OPERATORS | (control_flow & CONTROL_FLOW)
        self._limits = limits
        self._found = _Found()

    # ---- the file

    def model(self) -> Admitted:
        opset, metadata, seen = 0, {}, set()
        inputs: list[GraphPort] = []
        outputs: list[GraphPort] = []
        for part in self._fields(Field(0, BYTES, len(self._data), 0), MODEL):
            if part.number == _MODEL["graph"]:
                inputs, outputs = self._graph(part, 0, {})
            elif part.number == _MODEL["opset"]:
                version = self._opset(part)
                if version and opset not in (0, version):
                    raise _RefusedError("it names two versions of the standard operator set")
                opset = opset or version
            elif part.number == _MODEL["metadata"]:
                metadata.update(self._entry(part))
            elif part.number == _MODEL["functions"]:
                raise _RefusedError("it defines functions of its own; inline them (onnx.inliner)")
            elif part.number == _MODEL["training"]:
                raise _RefusedError("it holds a training graph")
            seen.add(part.number)
        if _MODEL["graph"] not in seen or _MODEL["ir_version"] not in seen:
            raise WireError("it holds no graph")
        if opset == 0:
            raise _RefusedError("it does not name the standard operator set")
        found = self._found
        if not found.operators:
            raise WireError("it holds no graph")
        return Admitted(opset, dict(found.operators), tuple(inputs), tuple(outputs), found.weight_bytes, metadata)

    def _opset(self, part: Field) -> int:
        """Version of the standard operator set; 0 for another one, which no admitted node uses."""
        domain, version = "", 0
        for entry in self._fields(part, OPERATOR_SET):
            if entry.number == 1:
                domain = self._name(entry)
            elif entry.number == 2:
                version = entry.value
        if domain not in DOMAINS:
            return 0
        if version > self._limits.opset:
            raise _RefusedError(f"it asks for version {version} of the operator set; there is none beyond some dozens")
        return version

    def _entry(self, part: Field) -> dict[str, str]:
        key, value = "", b""
        for entry in self._fields(part, ENTRY):
            if entry.number == 1:
                key = self._name(entry)
            elif entry.number == 2:
                value = self._walker.raw(entry, 1 << 26)
        if key in _FORBIDDEN_METADATA:
            raise _RefusedError(f"its metadata key {key!r} would change how an engine runs it")
        return {key: value.decode("utf-8", "replace")}

    # ---- graphs and nodes

    def _graph(
        self, part: Field, depth: int, outer: Mapping[str, list[float]]
    ) -> tuple[list[GraphPort], list[GraphPort]]:
        """Walk a graph; ``outer``: short constants of the graphs around it, by name."""
        if depth > self._limits.depth:
            raise _RefusedError(f"graphs stand in graphs more than {self._limits.depth} deep")
        ports: dict[int, list[GraphPort]] = {_GRAPH["input"]: [], _GRAPH["output"]: []}
        constants: dict[str, list[float]] = dict(outer)
        weights: set[str] = set()
        nodes: list[Field] = []
        for entry in self._fields(part, GRAPH):
            if entry.number == _GRAPH["node"]:
                nodes.append(entry)
                self._count_node()
            elif entry.number == _GRAPH["weight"]:
                tensor = self._tensor(entry)
                if tensor.name in weights:
                    raise _RefusedError(f"two weights are named {tensor.name[:80]!r}")
                weights.add(tensor.name)
                if tensor.values is not None:
                    constants[tensor.name] = tensor.values
            elif entry.number in ports:
                ports[entry.number].append(self._port(entry))
            elif entry.number == _GRAPH["sparse"]:
                raise _RefusedError("it holds sparse weights")
        scope = _Scope(depth, constants, made=set(weights))
        for node in nodes:  # after the weights, wherever those stand in the file
            self._node(node, scope)
        return [port for port in ports[_GRAPH["input"]] if port.name not in weights], ports[_GRAPH["output"]]

    def _count_node(self) -> None:
        self._found.nodes += 1
        if self._found.nodes > self._limits.nodes:
            raise _RefusedError(f"it has more than {self._limits.nodes:,} nodes")

    def _node(self, part: Field, scope: _Scope) -> None:
        operator, name, domain, inputs, outputs = "", "", "", [], []
        attributes: list[Field] = []
        for entry in self._fields(part, NODE):
            if entry.number == _NODE["op"]:
                operator = self._name(entry)
            elif entry.number == _NODE["domain"]:
                domain = self._name(entry)
            elif entry.number == _NODE["name"]:
                name = self._name(entry)
            elif entry.number == _NODE["input"]:
                inputs.append(self._name(entry))
            elif entry.number == _NODE["output"]:
                outputs.append(self._name(entry))
            elif entry.number == _NODE["attribute"]:
                attributes.append(entry)
            elif entry.number == _NODE["overload"]:
                raise _RefusedError(f"{_shown(operator, name)} names a function overload")
        if domain not in DOMAINS:
            raise _RefusedError(
                f"{_shown(operator, name)} belongs to the operator set {domain[:60]!r}, not to the standard"
            )
        if operator not in self._allowed:
            raise _RefusedError(f"{_shown(operator, name)} is not an operator that is admitted here")
        self._found.operators[operator] += 1
        names: set[str] = set()
        for attribute in attributes:
            value = self._attribute(attribute, operator, name, scope, names)
            if operator == "Constant" and value is not None and outputs:
                scope.constants[outputs[0]] = value
        self._note_outputs(operator, name, inputs, outputs, scope)
        self._check_sizing(operator, name, inputs, scope.constants)
        if operator == "Loop":
            self._check_loop(name, inputs, scope)

    def _note_outputs(self, operator: str, node: str, inputs: list[str], outputs: Sequence[str], scope: _Scope) -> None:
        """Refuse a tensor that two nodes give, for which one counts would be the engine's choice, and rows that are too long."""
        row = 1 + max((scope.rows.get(each, 0) for each in inputs), default=0) if operator in ELEMENTWISE else 0
        if row > self._limits.row:
            raise _RefusedError(f"{_shown(operator, node)} is in a row of more than {self._limits.row} such operators")
        scope.rows.update(dict.fromkeys(outputs, row))
        for output in filter(None, outputs):
            if output in scope.made:
                raise _RefusedError(f"{_shown(operator, node)} gives {output[:80]!r}, which exists already")
            scope.made.add(output)
            scope.makers[output] = (operator, inputs)

    def _attribute(self, part: Field, operator: str, node: str, scope: _Scope, names: set[str]) -> list[float] | None:
        """Check an attribute; its numbers, where it holds a few. ``names``: of the node's attributes so far."""
        name = ""
        values: list[float] = []
        for entry in self._fields(part, ATTRIBUTE):
            if entry.number == _ATTRIBUTE["name"]:
                name = self._name(entry)
            elif entry.number in (_ATTRIBUTE["tensor"], _ATTRIBUTE["tensors"]):
                values += self._tensor(entry).values or []
            elif entry.number in (_ATTRIBUTE["graph"], _ATTRIBUTE["graphs"]):
                if operator not in CONTROL_FLOW:
                    raise _RefusedError(f"{_shown(operator, node)} holds a graph")
                self._graph(entry, scope.depth + 1, scope.constants)
            elif entry.number in (_ATTRIBUTE["i"], _ATTRIBUTE["ints"]):
                values += self._walker.numbers(entry, 1 << 16)
            elif entry.number in (_ATTRIBUTE["f"], _ATTRIBUTE["floats"]):
                values += self._floats(entry)
            elif entry.number in (_ATTRIBUTE["sparse"], _ATTRIBUTE["sparse_list"]):
                raise _RefusedError(f"{_shown(operator, node)} holds a sparse tensor")
            elif entry.number == _ATTRIBUTE["reference"]:
                raise _RefusedError(f"{_shown(operator, node)} refers to an attribute of a function")
        if name in names:
            raise _RefusedError(f"{_shown(operator, node)} has two attributes {name[:80]!r}")
        names.add(name)
        largest = SIZING_ATTRIBUTES.get(name, math.inf)
        if any(abs(value) > largest for value in values):
            raise _RefusedError(f"{_shown(operator, node)}: {name} is {values[:6]}, more than {largest:,}")
        return values or None

    def _check_sizing(
        self, operator: str, node: str, inputs: Sequence[str], constants: Mapping[str, list[float]]
    ) -> None:
        """Refuse constants that ask for an absurd output."""
        for index in SIZING_INPUTS.get(operator, ()):
            values = constants.get(inputs[index]) if index < len(inputs) else None
            if not values:
                continue
            largest = max(abs(value) for value in values)
            product = math.prod(max(abs(value), 1.0) for value in values)
            # Compared this way round, NaN is refused as well.
            if not (product <= self._limits.values or (operator in SIZING_PADDINGS and largest <= self._limits.extent)):
                raise _RefusedError(f"{_shown(operator, node)} asks for a size of {values[:6]}")
        if operator == "Range" and all(len(constants.get(name, ())) == 1 for name in inputs) and len(inputs) == 3:
            (start,), (limit,), (step,) = (constants[name] for name in inputs)
            if not abs(limit - start) <= self._limits.values * abs(step):
                raise _RefusedError(f"{_shown(operator, node)} counts from {start} to {limit} by {step}")

    def _check_loop(self, node: str, inputs: Sequence[str], scope: _Scope) -> None:
        """Refuse a loop whose number of rounds is neither small nor the length of a tensor's axis."""
        name = inputs[0] if inputs else ""
        if scope.depth:
            raise _RefusedError(f"{_shown('Loop', node)} stands inside another graph")
        for _ in range(self._limits.nodes):
            if name in scope.constants:
                if len(scope.constants[name]) == 1 and 0 <= scope.constants[name][0] <= self._limits.rounds:
                    return
                break
            operator, sources = scope.makers.get(name, ("", []))
            if operator in ("Shape", "Size"):
                return
            if operator not in LOOP_LENGTHS or not sources:
                break
            name = sources[0]
        raise _RefusedError(f"{_shown('Loop', node)} may run without end: its rounds are not the length of an axis")

    # ---- tensors and ports

    def _tensor(self, part: Field) -> _Tensor:
        """Check a tensor that stands in the file: complete, of a plain type, and as many values as its shape says."""
        tensor, dims, kind = _Tensor(), [], 0
        data: list[Field] = []
        for entry in self._fields(part, TENSOR):
            if entry.number == _TENSOR["dims"]:
                dims += self._walker.numbers(entry, self._limits.rank)
            elif entry.number == _TENSOR["type"]:
                kind = entry.value
            elif entry.number == _TENSOR["name"]:
                tensor.name = self._name(entry)
            elif entry.number == _TENSOR["external"] or (entry.number == _TENSOR["location"] and entry.value != 0):
                raise _RefusedError(
                    f"the data of weight {tensor.name[:80]!r} lie outside the file; save the graph as a single file"
                )
            elif entry.number in (_TENSOR["segment"], _TENSOR["strings"]):
                raise _RefusedError(f"weight {tensor.name[:80]!r} is segmented or holds text")
            elif entry.number in _DATA:
                data.append(entry)
        self._found.weights += 1
        if self._found.weights > self._limits.weights:
            raise _RefusedError(f"it has more than {self._limits.weights:,} weights")
        if kind not in ITEM_BYTES:
            raise _RefusedError(f"weight {tensor.name[:80]!r} is of element type {kind}, which is not admitted")
        count = self._size(dims, f"weight {tensor.name[:80]!r}")
        used = {entry.number for entry in data}
        if len(used) > 1 or not used <= {_TENSOR["raw"], _FIELD_OF[kind]}:
            raise _RefusedError(f"weight {tensor.name[:80]!r} has its values in a field of another element type")
        stored = self._stored(data, kind)
        if stored != count:
            raise _RefusedError(f"weight {tensor.name[:80]!r} has shape {dims[:8]} but {stored:,} values")
        self._found.weight_bytes += count * ITEM_BYTES[kind]
        if count <= self._limits.rank:
            tensor.values = self._short_values(data, kind)
        return tensor

    def _stored(self, data: Sequence[Field], kind: int) -> int:
        """Number of values that stand in a tensor's data fields."""
        count = 0
        for entry in data:
            if entry.number == _TENSOR["raw"]:
                if entry.value % ITEM_BYTES[kind]:
                    raise WireError("a weight's bytes do not fit its element type")
                count += entry.value // ITEM_BYTES[kind]
            elif entry.number in (_TENSOR["floats"], _TENSOR["doubles"]):
                count += entry.value // (4 if entry.number == _TENSOR["floats"] else 8)
            elif entry.kind == BYTES:  # packed: the last byte of every number is below 128
                packed = np.frombuffer(self._data, np.uint8, entry.value, entry.start) if entry.value else np.zeros(0)
                count += int(np.count_nonzero(packed < 0x80))
            else:
                count += 1
        return count

    def _short_values(self, data: Sequence[Field], kind: int) -> list[float] | None:
        """The values of a tensor of a few numbers; None of types that never say a size."""
        values: list[float] = []
        for entry in data:
            if entry.number == _TENSOR["raw"]:
                code = {1: "f", 6: "i", 7: "q", 11: "d"}.get(kind)
                if code is None:
                    return None
                content = self._walker.raw(entry, 8 * self._limits.rank)
                values += struct.unpack(f"<{len(content) // struct.calcsize(code)}{code}", content)
            elif entry.number == _TENSOR["floats"]:
                values += self._floats(entry)
            elif entry.number in (_TENSOR["int32s"], _TENSOR["int64s"]):
                values += self._walker.numbers(entry, self._limits.rank)
        return values

    def _floats(self, entry: Field) -> list[float]:
        """The float32 values of a repeated field that stands here; of a long list the first ones only."""
        length = min(entry.value, 4 * (1 << 10)) // 4
        return list(struct.unpack_from(f"<{length}f", self._data, entry.start))

    def _port(self, part: Field) -> GraphPort:
        """An input or output: a tensor of a plain type."""
        name, found = "", None
        for entry in self._fields(part, PORT):
            if entry.number == 1:
                name = self._name(entry)
            elif entry.number == 2:
                found = self._tensor_type(entry, name)
        if found is None:
            raise _RefusedError(f"{name[:80]!r} has no type")
        return GraphPort(name, *found)

    def _tensor_type(self, part: Field, name: str) -> tuple[str, tuple[int, ...] | None]:
        kind, shape = 0, None
        for entry in self._fields(part, TYPE):
            if entry.number == 6:  # a denotation, in words
                continue
            if entry.number != 1:
                raise _RefusedError(f"{name[:80]!r} is a sequence, a map or an optional value, expected a tensor")
            for inner in self._fields(entry, TENSOR_TYPE):
                if inner.number == 1:
                    kind = inner.value
                elif inner.number == 2:
                    shape = self._shape(inner, name)
        if kind not in DTYPES:
            raise _RefusedError(f"{name[:80]!r} is of element type {kind}, which is not admitted")
        return DTYPES[kind], shape

    def _shape(self, part: Field, name: str) -> tuple[int, ...]:
        sizes: list[int] = []
        for axis in self._fields(part, SHAPE):
            size = -1
            for entry in self._fields(axis, AXIS):
                if entry.number == 1:
                    size = signed(entry.value)
            sizes.append(size if size > 0 else -1)
            if len(sizes) > self._limits.rank:
                raise _RefusedError(f"{name[:80]!r} has more than {self._limits.rank} axes")
        self._size([size for size in sizes if size > 0], repr(name[:80]))
        return tuple(sizes)

    def _size(self, dims: Sequence[int], what: str) -> int:
        """Number of values of a shape."""
        if len(dims) > self._limits.rank:
            raise _RefusedError(f"{what} has {len(dims)} axes")
        if any(size < 0 for size in dims):
            raise _RefusedError(f"{what} has shape {list(dims[:8])}")
        count = math.prod(dims)
        if count > self._limits.values:
            raise _RefusedError(f"{what} has shape {list(dims[:8])}, more than {self._limits.values:,} values")
        return count

    # ---- small parts

    def _fields(self, part: Field, message: Message) -> Iterator[Field]:
        """The fields of a message, each known, stored as its type says, and no more often than it may."""
        seen: set[int] = set()
        for entry in self._walker.fields(part.start, part.end):
            kinds = message.kinds.get(entry.number)
            if kinds is None and message is MODEL:
                raise WireError(f"field {entry.number} is none of an ONNX file")
            if kinds is None:
                raise _RefusedError(f"field {entry.number} of {message.what} is not known here")
            if entry.kind not in kinds:
                raise WireError(f"field {entry.number} of {message.what} is stored in another way than its type says")
            if entry.number not in message.repeated:
                if entry.number in seen:
                    raise _RefusedError(f"field {entry.number} of {message.what} stands twice")
                seen.add(entry.number)
            yield entry

    def _name(self, part: Field) -> str:
        return self._walker.text(part, self._limits.name)


def _shown(operator: str, name: str) -> str:
    """A node in a message."""
    return f"node {name[:80]!r} ({operator[:60]})" if name else f"a node ({operator[:60]})"
