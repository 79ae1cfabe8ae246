"""Graphs of one operator, written without the ``onnx`` package: for checks where a bundle runs.

Field numbers are those of ONNX's published ``onnx.proto``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = {"float32": 1, "float16": 10}
_IR_VERSION, _OPSET = 8, 17
_INTS = 7  # AttributeProto.AttributeType


def single_operator(
    operator: str,
    input_shape: Sequence[int],
    weight: npt.NDArray[Any],
    output_shape: Sequence[int],
    attributes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """An ONNX file with one node: ``image`` and a weight in, ``logits`` out, all of the weight's type.

    Args:
        operator: of the standard operator set, e.g. ``Conv``.
        weight: float32 or float16.
        attributes: of the node, lists of whole numbers.
    """
    kind = _TYPES[weight.dtype.name]
    node = b"".join([_text(1, "image"), _text(1, "weight"), _text(2, "logits"), _text(4, operator)])
    for name, values in (attributes or {}).items():
        numbers = b"".join(_number(8, value) for value in values)
        node += _field(5, _text(1, name) + numbers + _number(20, _INTS))
    tensor = b"".join(_number(1, size) for size in weight.shape) + _number(2, kind) + _text(8, "weight")
    tensor += _field(9, np.ascontiguousarray(weight).tobytes())
    graph = _field(1, node) + _text(2, operator) + _field(5, tensor)
    graph += _field(11, _port("image", kind, input_shape)) + _field(12, _port("logits", kind, output_shape))
    about = json.dumps({"precision": "fp16" if weight.dtype == np.float16 else "fp32"})
    return b"".join(
        [
            _number(1, _IR_VERSION),
            _field(7, graph),
            _field(8, _text(1, "") + _number(2, _OPSET)),
            _field(14, _text(1, "offline_infer.graph") + _text(2, about)),
        ]
    )


def _port(name: str, kind: int, shape: Sequence[int]) -> bytes:
    sizes = b"".join(_field(1, _number(1, size)) for size in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, sizes)))


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
