"""The messages an ONNX file is made of: which fields each may have, how they are stored, and which may stand more than once.

Readers differ in what they do with a field that stands twice, that is stored in another way than its type says, or that they
do not know: one takes the first, another the last, a third joins them. A file that passes here means the same to all of them.

Field numbers are those of ONNX's published ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from offline_infer.graph.wire import BYTES, FIXED32, FIXED64, VARINT

_NUMBER, _CONTENT, _FLOAT = frozenset({VARINT}), frozenset({BYTES}), frozenset({FIXED32})
_NUMBERS, _FLOATS, _DOUBLES = frozenset({VARINT, BYTES}), frozenset({FIXED32, BYTES}), frozenset({FIXED64, BYTES})


@dataclass(frozen=True)
class Message:
    """One kind of message.

    Attributes:
        what: in a sentence.
        kinds: field number -> wire types it may be stored in; repeated numbers may also be packed.
        repeated: numbers of fields that may stand more than once.
    """

    what: str
    kinds: Mapping[int, frozenset[int]]
    repeated: frozenset[int] = frozenset()


def _message(what: str, *, once: Mapping[int, frozenset[int]], often: Mapping[int, frozenset[int]]) -> Message:
    return Message(what, {**once, **often}, frozenset(often))


MODEL = _message(
    "the file",
    once={1: _NUMBER, 2: _CONTENT, 3: _CONTENT, 4: _CONTENT, 5: _NUMBER, 6: _CONTENT, 7: _CONTENT},
    often={8: _CONTENT, 14: _CONTENT, 20: _CONTENT, 25: _CONTENT},
)
OPERATOR_SET = _message("an operator set", once={1: _CONTENT, 2: _NUMBER}, often={})
ENTRY = _message("an entry of the metadata", once={1: _CONTENT, 2: _CONTENT}, often={})
GRAPH = _message(
    "the graph",
    once={2: _CONTENT, 10: _CONTENT},
    often=dict.fromkeys((1, 5, 11, 12, 13, 14, 15, 16), _CONTENT),
)
NODE = _message("a node", once=dict.fromkeys((3, 4, 6, 7, 8), _CONTENT), often=dict.fromkeys((1, 2, 5, 9), _CONTENT))
ATTRIBUTE = _message(
    "an attribute",
    once={2: _FLOAT, 3: _NUMBER, 20: _NUMBER, **dict.fromkeys((1, 4, 5, 6, 13, 14, 21, 22), _CONTENT)},
    often={7: _FLOATS, 8: _NUMBERS, **dict.fromkeys((9, 10, 11, 15, 23), _CONTENT)},
)
TENSOR = _message(
    "a weight",
    once={2: _NUMBER, 3: _CONTENT, 8: _CONTENT, 9: _CONTENT, 12: _CONTENT, 14: _NUMBER},
    often={
        1: _NUMBERS, 4: _FLOATS, 5: _NUMBERS, 6: _CONTENT, 7: _NUMBERS, 10: _DOUBLES, 11: _NUMBERS, 13: _CONTENT,
        16: _CONTENT,
    },
)  # fmt: skip
PORT = _message("an input or output", once={1: _CONTENT, 2: _CONTENT, 3: _CONTENT}, often={4: _CONTENT})
TYPE = _message("a type", once=dict.fromkeys((1, 4, 5, 6, 7, 8, 9), _CONTENT), often={})
TENSOR_TYPE = _message("a tensor's type", once={1: _NUMBER, 2: _CONTENT}, often={})
SHAPE = _message("a shape", once={}, often={1: _CONTENT})
AXIS = _message("an axis", once={1: _NUMBER, 2: _CONTENT, 3: _CONTENT}, often={})
