"""Sums over overlapping tiles in single precision, or rounded to half precision after every addition.

nnU-Net v2 sums in half precision, and repeating its labels to the last voxel means repeating its roundings. Two ways give
the same numbers: kept as half precision (half the memory), or kept as float32 that only ever hold half-precision values
(half the arithmetic, since nothing is unpacked). NumPy's own casts between the two take several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from offline_infer.errors import EngineFailed
from offline_infer.threads import ThreadBuffers

Single = npt.NDArray[np.float32]

WIDE_BYTES = 2**30
"""Half-precision sums are kept as float32 where that takes no more than this."""


class Sums(Protocol):
    """Arithmetic on sums kept in arrays of ``dtype``. Several threads may use it at once, on different voxels."""

    dtype: np.dtype[Any]

    def add(self, target: npt.NDArray[Any], part: Single) -> None:
        """``target += part``; torch adds float32 to a half-precision volume in float32 and rounds once, and so does this."""
        ...

    def divide(self, total: npt.NDArray[Any], count: npt.NDArray[Any]) -> None:
        """``total /= count``, in float32, rounded once."""
        ...


def make_sums(precision: str, count: int) -> Sums:
    """How to keep ``count`` sums of ``precision`` (``float32`` or ``float16``)."""
    if precision != "float16":
        return SingleSums()
    return WideHalfSums() if sum_bytes(precision, count) == 4 * count else PackedHalfSums()


def sum_bytes(precision: str, count: int) -> int:
    """Memory that ``count`` sums of ``precision`` take."""
    return 2 * count if precision == "float16" and 4 * count > WIDE_BYTES else 4 * count


class SingleSums:
    """float32, nothing else."""

    dtype = np.dtype(np.float32)

    def add(self, target: npt.NDArray[Any], part: Single) -> None:
        target += part

    def divide(self, total: npt.NDArray[Any], count: npt.NDArray[Any]) -> None:
        np.divide(total, count, out=total)


class WideHalfSums:
    """float32 that hold half-precision values."""

    dtype = np.dtype(np.float32)

    def __init__(self) -> None:
        self._buffers = ThreadBuffers()

    def add(self, target: npt.NDArray[Any], part: Single) -> None:
        total = self._buffers.take("total", part.shape)
        np.add(target, part, out=total)
        round_to_half(total, target, self._buffers)

    def divide(self, total: npt.NDArray[Any], count: npt.NDArray[Any]) -> None:
        quotient = self._buffers.take("total", total.shape)
        np.divide(total, count, out=quotient)
        round_to_half(quotient, total, self._buffers)


class PackedHalfSums:
    """float16."""

    dtype = np.dtype(np.float16)

    def __init__(self) -> None:
        self._buffers = ThreadBuffers()

    def add(self, target: npt.NDArray[Any], part: Single) -> None:
        total = self._buffers.take("total", part.shape)
        half_to_single(target, total)
        np.add(total, part, out=total)
        single_to_half(total, target, self._buffers)

    def divide(self, total: npt.NDArray[Any], count: npt.NDArray[Any]) -> None:
        quotient, divisor = self._buffers.take("total", (2, *total.shape))
        half_to_single(total, quotient)
        half_to_single(count, divisor)
        np.divide(quotient, divisor, out=quotient)
        single_to_half(quotient, total, self._buffers)


def mean_of_folds(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Half-precision sum of several folds' maps, then division, as nnU-Net v2 does with whole volumes.

    Args:
        parts: (k, ...) of equal shapes, all float16 or all float32 that hold half-precision values; overwritten.

    Returns:
        The first of ``parts``.

    Raises:
        EngineFailed: a sum does not fit half precision, or is not a number.
    """
    total = parts[0]
    buffers = ThreadBuffers()
    mean = _packed_mean if total.dtype == np.float16 else _wide_mean
    for channels in zip(*parts, strict=True):  # one by one, so that what is unpacked stays small
        mean(channels, buffers)
    return total


def _packed_mean(parts: Sequence[npt.NDArray[Any]], buffers: ThreadBuffers) -> None:
    """The mean of float16 arrays, left in the first."""
    first = parts[0]
    total, single = buffers.take("total", (2, *first.shape))
    for part in parts[1:]:
        half_to_single(first, total)
        half_to_single(part, single)
        np.add(total, single, out=total)
        single_to_half(total, first, buffers)
    half_to_single(first, total)
    np.divide(total, np.float32(len(parts)), out=total)
    single_to_half(total, first, buffers)


def _wide_mean(parts: Sequence[npt.NDArray[Any]], buffers: ThreadBuffers) -> None:
    """The same of float32 arrays that hold half-precision values; the others are overwritten on the way."""
    first = parts[0]
    for part in parts[1:]:
        np.add(first, part, out=part)
        round_to_half(part, first, buffers)
    np.divide(first, np.float32(len(parts)), out=parts[-1])
    round_to_half(parts[-1], first, buffers)


_SMALLEST_NORMAL = 2.0**-14
_FIRST_TOO_LARGE = 65520.0
"""Rounds to infinity."""


def round_to_half(values: Single, out: Single, buffers: ThreadBuffers) -> None:
    """Round to the nearest half-precision number, ties to even, and keep it as float32.

    Next to 1.5 * 2**13 times its own power of two, float32 has the spacing that half precision has next to a number; so adding
    that and taking it away again rounds. Below 2**-14, where half precision gets no finer, the power stays the same.

    Args:
        values: overwritten.

    Raises:
        EngineFailed: a value does not fit half precision, or is not a number.
    """
    power = buffers.take("power", values.shape)
    np.bitwise_and(values.view(np.uint32), np.uint32(0x7F800000), out=power.view(np.uint32))
    if power.max(initial=0) >= 2.0**15 and not float(np.abs(values).max()) < _FIRST_TOO_LARGE:
        raise too_large_for_half()
    np.maximum(power, buffers.constant(_SMALLEST_NORMAL, power.shape), out=power)
    np.multiply(power, np.float32(1.5 * 2**13), out=power)
    np.add(values, power, out=values)
    np.subtract(values, power, out=out)


_SMALLEST = np.array([2.0**-149], np.float32)
_LIFT = np.float32(2.0**112)


def half_to_single(values: npt.NDArray[np.float16], out: Single) -> None:
    """Cast finite ``values`` to ``out``, exactly, in a tenth of the time of NumPy's cast.

    The bits of a half-precision number, moved to where float32 has them, are that number times 2**-112, subnormal ones
    included; so one multiplication does the rest. Infinity comes out as 65536, which rounds to infinity again.
    """
    if _SMALLEST[0] * _LIFT == 0:  # some library made this thread flush subnormal numbers
        np.copyto(out, values)
        return
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # the sign is spread over the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # sign, five bits of exponent, ten of mantissa
    np.multiply(out, _LIFT, out=out)


def single_to_half(values: Single, out: npt.NDArray[np.float16], buffers: ThreadBuffers) -> None:
    """Round to half precision, ties to even, as NumPy's cast does in five times the time.

    Args:
        values: overwritten.

    Raises:
        EngineFailed: a value does not fit half precision, or is not a number.
    """
    magnitude, (normal, tie, negative) = (
        values.view(np.uint32),
        buffers.take("bits", (3, *values.shape)).view(np.uint32),
    )
    np.right_shift(magnitude, 16, out=negative)
    np.bitwise_and(negative, 0x8000, out=negative)
    np.bitwise_and(magnitude, 0x7FFFFFFF, out=magnitude)
    if magnitude.max(initial=0) >= 0x477FF000:  # 65520
        raise too_large_for_half()
    # Normal numbers: re-biased exponent, mantissa cut to ten bits after adding what rounds ties to even.
    np.maximum(magnitude, buffers.constant(_SMALLEST_NORMAL, values.shape).view(np.uint32), out=normal)
    np.right_shift(normal, 13, out=tie)
    np.bitwise_and(tie, 1, out=tie)
    np.add(normal, tie, out=normal)
    np.subtract(normal, (112 << 23) - 0xFFF, out=normal)
    np.right_shift(normal, 13, out=normal)
    # Subnormal ones: next to 0.5, float32 has the spacing 2**-24 that they have. For normal numbers this is never the
    # smaller of the two.
    np.add(values, np.float32(0.5), out=values)
    np.subtract(magnitude, 0x3F000000, out=magnitude)
    np.minimum(normal, magnitude, out=normal)
    np.bitwise_or(normal, negative, out=normal)
    np.copyto(out.view(np.uint16), normal, casting="unsafe")


def too_large_for_half() -> EngineFailed:
    """What to raise where a sum does not fit."""
    return EngineFailed(
        "the network's answers are so large that their sum does not fit half precision", remedy="accumulate-float32"
    )
