"""Tensors as torch's pickles store them, as references to storages; rebuilt as NumPy arrays with bounds checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.checkpoints.limits import MAX_BROADCAST
from offline_infer.checkpoints.pickles.values import Constructor, Symbol
from offline_infer.errors import CheckpointError, UnsafePickleError

_DTYPES = {
    "float64": ("Double", "f8"),
    "float32": ("Float", "f4"),
    "float16": ("Half", "f2"),
    "bfloat16": ("BFloat16", "u2"),
    "int64": ("Long", "i8"),
    "int32": ("Int", "i4"),
    "int16": ("Short", "i2"),
    "int8": ("Char", "i1"),
    "uint8": ("Byte", "u1"),
    "bool": ("Bool", "b1"),
    "complex64": ("ComplexFloat", "c8"),
    "complex128": ("ComplexDouble", "c16"),
    "uint16": ("", "u2"),
    "uint32": ("", "u4"),
    "uint64": ("", "u8"),
}
"""torch dtype -> prefix of its storage class, NumPy type code of the stored bytes (bfloat16 as its bit pattern)."""


@dataclass(frozen=True)
class StorageRef:
    """A block of numbers in the file.

    Attributes:
        key: its name in the file.
        dtype: torch name such as ``float32``; ``uint8`` for an untyped block of bytes.
        count: number of elements of that type.
    """

    key: str
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * np.dtype(_DTYPES[self.dtype][1]).itemsize


@dataclass(frozen=True)
class TensorRef:
    """A tensor that is still in the file. ``offset`` and ``stride`` count elements of ``dtype``."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    drops_state: ClassVar[bool] = True
    """Attributes that were set on a tensor are left out."""


def storage_reference(identity: Any) -> StorageRef:
    """What a persistent id stands for.

    Raises:
        UnsafePickleError: it stands for something other than a storage (a pickled module's source code, for example).
        CheckpointError: it is malformed.
    """
    if not isinstance(identity, tuple) or not identity or identity[0] != "storage":
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        raise UnsafePickleError(
            f"it was saved as a whole object ({kind!r}), not as a state dict; save module.state_dict() instead"
        )
    if len(identity) not in (5, 6) or not isinstance(identity[1], Symbol):
        raise CheckpointError("a storage reference is malformed")
    _, kind, key, _, count = identity[:5]
    if len(identity) == 6 and identity[5] is not None:
        raise CheckpointError("the file uses storage views (torch before 0.4), which are not supported; re-save it")
    if not isinstance(key, (str, int)) or not _is_size(count):
        raise CheckpointError("a storage reference is malformed")
    return StorageRef(str(key), kind.name, count)


def strided(tensor: TensorRef, data: bytes, order: Literal["<", ">"], name: str) -> npt.NDArray[Any]:
    """The tensor's numbers as a new C-contiguous array in native byte order; bfloat16 as float32.

    Args:
        tensor: which part of the storage.
        data: the whole storage.
        order: its byte order, ``<`` or ``>``.
        name: how messages call it.

    Raises:
        CheckpointError: the tensor reaches beyond its storage.
    """
    check_bounds(tensor, len(data), name)
    kind = np.dtype(_DTYPES[tensor.dtype][1]).newbyteorder(order)
    if 0 in tensor.shape:
        flat = np.zeros(tensor.shape, kind.newbyteorder("="))
    else:
        block = np.frombuffer(data, dtype=kind, count=len(data) // kind.itemsize)
        steps = tuple(step * kind.itemsize for step in tensor.stride)
        view = np.lib.stride_tricks.as_strided(block[tensor.offset :], tensor.shape, steps, writeable=False)
        flat = np.array(view, dtype=kind.newbyteorder("="), order="C")
    if tensor.dtype == "bfloat16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat


def check_bounds(tensor: TensorRef, stored: int, name: str) -> int:
    """See that a tensor lies within its storage.

    Args:
        tensor: which part of the storage.
        stored: bytes of the storage.
        name: how messages call it.

    Returns:
        Bytes of its array.

    Raises:
        CheckpointError: it reaches beyond the storage, or repeats a small one to an absurd size.
    """
    width = np.dtype(_DTYPES[tensor.dtype][1]).itemsize
    available = stored // width
    reach = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if 0 not in tensor.shape and reach >= available:
        raise CheckpointError(
            f"tensor {name!r} of shape {tensor.shape} reaches element {reach} of a storage with {available}"
        )
    # A broadcast tensor has more elements than its storage, and an empty one any shape; only small ones are plausible.
    if math.prod(max(size, 1) for size in tensor.shape) > max(available, MAX_BROADCAST):
        raise CheckpointError(
            f"tensor {name!r} of shape {tensor.shape} is larger than its storage of {available} elements"
        )
    return math.prod(tensor.shape) * (4 if tensor.dtype == "bfloat16" else width)


# --- the table -------------------------------------------------------------------------------------------------------


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: str | None = None
) -> TensorRef:
    """``torch._utils._rebuild_tensor_v2`` and its forerunner; gradients and hooks are dropped."""
    if not isinstance(storage, StorageRef):
        raise CheckpointError("a tensor is built from something that is not a storage")
    shape, steps = _sizes(size), _sizes(stride)
    if len(shape) != len(steps) or not _is_size(offset):
        raise CheckpointError(f"a tensor has shape {shape} but strides {steps}, or a negative offset")
    return TensorRef(storage, dtype or storage.dtype, offset, shape, steps)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorRef:
    """For dtypes without a storage class of their own."""
    if not isinstance(dtype, Symbol) or dtype.name not in _DTYPES:
        raise CheckpointError("a tensor has an unknown type")
    return _rebuild_tensor(storage, offset, size, stride, dtype=dtype.name)


def _rebuild_parameter(data: Any, *rest: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise CheckpointError("a parameter is built from something that is not a tensor")
    return data


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > 16 or not all(_is_size(value) for value in values):
        raise CheckpointError(f"a tensor has shape or strides {values!r:.80}")
    return tuple(values)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _table() -> dict[tuple[str, str], Constructor | Symbol]:
    utils = "torch._utils"
    table: dict[tuple[str, str], Constructor | Symbol] = {
        (utils, "_rebuild_tensor"): Constructor(f"{utils}._rebuild_tensor", _rebuild_tensor),
        (utils, "_rebuild_tensor_v2"): Constructor(f"{utils}._rebuild_tensor_v2", _rebuild_tensor),
        (utils, "_rebuild_tensor_v3"): Constructor(f"{utils}._rebuild_tensor_v3", _rebuild_tensor_v3),
        (utils, "_rebuild_parameter"): Constructor(f"{utils}._rebuild_parameter", _rebuild_parameter),
        (utils, "_rebuild_parameter_with_state"): Constructor(f"{utils}._rebuild_parameter", _rebuild_parameter),
        ("torch.storage", "UntypedStorage"): Symbol("uint8"),
        ("torch", "UntypedStorage"): Symbol("uint8"),
    }
    for dtype, (prefix, _) in _DTYPES.items():
        table["torch", dtype] = Symbol(dtype)
        if prefix:
            table["torch", f"{prefix}Storage"] = Symbol(dtype)
    return table


TABLE = _table()
