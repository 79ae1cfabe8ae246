"""NumPy arrays, scalars and dtypes as pickles store them, rebuilt with every size checked against the stored data.

Both spellings of NumPy's private modules occur: ``numpy.core`` before NumPy 2, ``numpy._core`` since. Only plain
numbers and fixed-width text are accepted; arrays of Python objects, records and dates are refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.checkpoints.pickles.values import Constructor, Pending, Symbol
from offline_infer.errors import CheckpointError, UnsafePickleError

_SIMPLE = re.compile(r"[|<>=]?(b1|i[1248]|u[1248]|f[248]|c8|c16|[SU]\d{0,6})$")
MAX_DIMS = 32
MAX_EMPTY = 1 << 16
"""Largest product of the non-zero sizes of an array that holds no bytes."""


class DtypeNote(Pending):
    """A dtype under construction: its BUILD brings the byte order and, for text, the width."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5:
            raise CheckpointError("a NumPy dtype has an unexpected state")
        order, record = state[1], state[2:5]
        if any(part is not None for part in record) or (len(state) > 8 and state[8] is not None):
            raise UnsafePickleError("it holds a NumPy record type; only plain numbers and text are accepted")
        if order not in ("<", ">", "|", "="):
            raise CheckpointError(f"a NumPy dtype has byte order {order!r}")
        self._text = order + self._text.lstrip("<>|=")

    def value(self) -> np.dtype[Any]:
        return np.dtype(self._text)


def _dtype(text: Any, align: Any = False, copy: Any = True) -> DtypeNote:
    if not isinstance(text, str) or not _SIMPLE.match(text):
        raise UnsafePickleError(f"it holds NumPy data of type {text!r}; only plain numbers and text are accepted")
    return DtypeNote(text)


class ArrayNote(Pending):
    """An array under construction: its BUILD brings shape, dtype, order and bytes."""

    __slots__ = ("_array",)

    def __init__(self, array: npt.NDArray[Any] | None = None) -> None:
        self._array = array

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise CheckpointError("a NumPy array has an unexpected state")
        _, shape, dtype, fortran, data = state
        self._array = _array(data, dtype, shape, "F" if fortran else "C")

    def value(self) -> npt.NDArray[Any]:
        if self._array is None:
            raise CheckpointError("a NumPy array has no content")
        return self._array


def _reconstruct(kind: Any, shape: Any, code: Any) -> ArrayNote:
    if not isinstance(kind, Symbol) or kind.name != "ndarray":
        raise UnsafePickleError("it holds a subclass of numpy.ndarray; only plain arrays are accepted")
    return ArrayNote()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", axis_order: Any = None) -> ArrayNote:
    """What protocol 5 uses for contiguous arrays."""
    if order not in ("C", "F"):
        raise CheckpointError(f"a NumPy array has memory order {order!r}")
    return ArrayNote(_array(data, dtype, shape, order))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    kind = _checked_dtype(dtype)
    if not isinstance(data, bytes) or len(data) != kind.itemsize:
        raise CheckpointError("a NumPy scalar's bytes do not match its type")
    if kind.itemsize == 0:
        return kind.type()
    return np.frombuffer(data, dtype=kind)[0]


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    kind = _checked_dtype(dtype)
    if isinstance(data, str):  # protocol 2 may carry bytes as Latin-1 text
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise CheckpointError(f"a NumPy array's data are a {type(data).__name__}, not bytes")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(_is_size(size) for size in shape):
        raise CheckpointError(f"a NumPy array has shape {shape!r}")
    if math.prod(shape) * kind.itemsize != len(data):
        raise CheckpointError(f"a NumPy array of shape {shape} and type {kind} has {len(data)} bytes")
    if not data:
        # Without elements, or with elements of no width, a shape costs no bytes in the file but may cost any here.
        if math.prod(max(size, 1) for size in shape) > MAX_EMPTY:
            raise CheckpointError(f"a NumPy array without data has shape {shape}")
        return np.zeros(shape, kind)
    return np.frombuffer(bytes(data), dtype=kind).reshape(shape, order=order).copy(order=order)


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, np.dtype):  # of a DtypeNote: nothing else makes one
        return dtype
    raise CheckpointError(f"a NumPy dtype is expected where a {type(dtype).__name__} stands")


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _table() -> dict[tuple[str, str], Constructor | Symbol]:
    table: dict[tuple[str, str], Constructor | Symbol] = {
        ("numpy", "dtype"): Constructor("numpy.dtype", _dtype),
        ("numpy", "ndarray"): Symbol("ndarray"),
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = Constructor(f"{core}.multiarray._reconstruct", _reconstruct)
        table[f"{core}.multiarray", "scalar"] = Constructor(f"{core}.multiarray.scalar", _scalar)
        table[f"{core}.numeric", "_frombuffer"] = Constructor(f"{core}.numeric._frombuffer", _from_buffer)
    return table


TABLE = _table()
