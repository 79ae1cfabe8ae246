"""How far two engines' raw outputs are apart, and whether it changes a label.

Cosine similarity, relative Euclidean distance and Kullback-Leibler divergence follow the definitions of the Ascend
toolkit's accuracy comparison, so that the figures can be read beside its own. They say nothing about labels, which is
what counts for a segmentation, so flips and the margins at the flips are counted as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError, UsageError

FloatArray = npt.NDArray[np.floating[Any]]

NEAR_HALF_LIMIT = 65000.0
"""From here on a value is suspected of having hit the largest half-precision number, 65504."""

_EPSILON = float(np.finfo(np.float32).eps)
_CHUNK = 1 << 16
"""Elements compared at a time: few enough to stay in a core's cache."""


@dataclass(frozen=True)
class LabelFlips:
    """What the differences do to the decision.

    Attributes:
        decided: voxels decided (for ``sign``: channel decisions).
        flips: decisions that differ.
        margin_max, margin_mean: at the flips, how far ``b`` was from deciding otherwise (argmax: between its two
            largest channels; sign: its distance from 0), in the arrays' own unit. None without flips.
    """

    decided: int
    flips: int
    margin_max: float | None
    margin_mean: float | None


@dataclass(frozen=True)
class ArrayComparison:
    """``a`` measured against ``b``. Differences are over the elements that are finite in both.

    Attributes:
        max_abs, mean_abs, p50_abs, p99_abs, p999_abs, rmse: of ``|a - b|``.
        max_rel: of ``|a - b| / |b|``; infinite where b is 0 and a is not.
        relative_euclidean, cosine, kl: as the Ascend toolkit defines them; cosine is None where just one is all zeros.
        atol, rtol, outside: elements with ``|a - b| > atol + rtol * |b|``.
        required_atol: the smallest absolute tolerance that passes with no relative one; None where none would.
        required_rtol: the smallest relative tolerance that passes with no absolute one; None where none would.
        non_finite_a, non_finite_b: NaN and infinite elements. Any of them is a mismatch at every tolerance.
        near_half_limit_a, near_half_limit_b: finite elements of magnitude 65000 and above.
        flips: what happened to the labels, if a class axis was given.
    """

    shape: tuple[int, ...]
    max_abs: float
    mean_abs: float
    p50_abs: float
    p99_abs: float
    p999_abs: float
    rmse: float
    max_rel: float
    relative_euclidean: float
    cosine: float | None
    kl: float
    atol: float
    rtol: float
    outside: int
    required_atol: float | None
    required_rtol: float | None
    non_finite_a: int
    non_finite_b: int
    near_half_limit_a: int
    near_half_limit_b: int
    flips: LabelFlips | None

    @property
    def finite(self) -> bool:
        return self.non_finite_a == 0 and self.non_finite_b == 0

    @property
    def passed(self) -> bool:
        """Whether every element is finite and within ``atol`` and ``rtol``."""
        return self.finite and self.outside == 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures suspect, in words."""
        found = []
        for name, bad, near in (
            ("a", self.non_finite_a, self.near_half_limit_a),
            ("b", self.non_finite_b, self.near_half_limit_b),
        ):
            if bad:
                found.append(f"{name} holds {bad} NaN or infinite values: a mismatch at every tolerance")
            if near:
                found.append(f"{name} holds {near} values near 65504: half precision has probably overflowed")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: an infinite figure is null."""
        record = {key: _strict(value) for key, value in asdict(self).items()}
        return {
            "kind": "offline_infer.comparison.arrays",
            "version": 1,
            "passed": self.passed,
            **record,
            "warnings": list(self.warnings),
        }


def compare_arrays(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    *,
    atol: float = 1e-3,
    rtol: float = 1e-2,
    class_axis: int | None = None,
    decision: Literal["argmax", "sign"] = "argmax",
) -> ArrayComparison:
    """Compare an engine's output ``a`` with the reference output ``b``.

    Args:
        a, b: floating point, equal shape, e.g. logits (n, k, z, y, x).
        atol, rtol: the tolerance to judge by; the default is a usual one for half precision.
        class_axis: the channel axis; given, label flips are counted.
        decision: ``argmax`` over channels, or ``sign`` of each channel's logit (region models).

    Raises:
        GeometryError: the shapes differ.
        UsageError: empty arrays, or no such axis.
    """
    _check_shapes(a, b)
    if class_axis is not None and not -a.ndim <= class_axis < a.ndim:
        raise UsageError(f"class axis {class_axis} does not exist in an array of shape {a.shape}")
    difference = np.empty(a.size, np.float32)
    sums = _measure(a, b, atol, rtol, difference)
    finite = sums.count > 0
    difference = difference[: sums.count]
    p50, p99, p999 = (float(q) for q in np.quantile(difference, [0.5, 0.99, 0.999])) if finite else (math.nan,) * 3
    whole = sums.bad_a == 0 and sums.bad_b == 0
    return ArrayComparison(
        shape=tuple(a.shape),
        max_abs=sums.max_abs if finite else math.nan,
        mean_abs=sums.abs / sums.count if finite else math.nan,
        p50_abs=p50,
        p99_abs=p99,
        p999_abs=p999,
        rmse=math.sqrt(sums.square / sums.count) if finite else math.nan,
        max_rel=sums.max_rel if finite else math.nan,
        relative_euclidean=_relative_euclidean(sums) if finite else math.nan,
        cosine=_cosine(sums, a.ndim) if finite else None,
        kl=_kl(a, b, sums) if finite else math.nan,
        atol=atol,
        rtol=rtol,
        outside=sums.outside,
        required_atol=sums.max_abs if whole else None,
        required_rtol=sums.max_rel if whole and math.isfinite(sums.max_rel) else None,
        non_finite_a=sums.bad_a,
        non_finite_b=sums.bad_b,
        near_half_limit_a=sums.near_a,
        near_half_limit_b=sums.near_b,
        flips=None if class_axis is None else _flips(a, b, class_axis, decision),
    )


@dataclass(frozen=True)
class ArrayDistance:
    """How far ``a`` is from ``b``, in figures that one pass over both gives; see :class:`ArrayComparison`."""

    shape: tuple[int, ...]
    max_abs: float
    relative_euclidean: float
    cosine: float | None
    required_atol: float | None
    required_rtol: float | None
    finite: bool


def array_distance(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> ArrayDistance:
    """The distance of an engine's tensor ``a`` from the reference ``b``; several times faster than :func:`compare_arrays`.

    Raises:
        GeometryError: the shapes differ.
        UsageError: empty arrays.
    """
    _check_shapes(a, b)
    sums = _measure(a, b, 0.0, 0.0, None)
    some, whole = sums.count > 0, sums.bad_a == 0 and sums.bad_b == 0
    return ArrayDistance(
        shape=tuple(a.shape),
        max_abs=sums.max_abs if some else math.nan,
        relative_euclidean=_relative_euclidean(sums) if some else math.nan,
        cosine=_cosine(sums, a.ndim) if some else None,
        required_atol=sums.max_abs if whole else None,
        required_rtol=sums.max_rel if whole and math.isfinite(sums.max_rel) else None,
        finite=whole,
    )


def _check_shapes(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise GeometryError(
            f"the outputs differ in shape: {a.shape} and {b.shape}; are they of the same graph and input?"
        )
    if a.size == 0:
        raise UsageError(f"nothing to compare: both outputs are empty {a.shape}")


@dataclass
class _Sums:
    count: int = 0
    bad_a: int = 0
    bad_b: int = 0
    near_a: int = 0
    near_b: int = 0
    outside: int = 0
    abs: float = 0.0
    square: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    low_a: float = math.inf
    high_a: float = -math.inf
    low_b: float = math.inf
    high_b: float = -math.inf


def _measure(
    a: npt.NDArray[Any], b: npt.NDArray[Any], atol: float, rtol: float, differences: npt.NDArray[np.float32] | None
) -> _Sums:
    """Running sums in double precision over the elements finite in both, piecewise, to keep memory flat.

    Args:
        differences: takes |a - b| of those elements, where it is wanted.
    """
    sums = _Sums()
    for first, second in _pieces(a, b):
        ok_a, ok_b = np.isfinite(first), np.isfinite(second)
        sums.bad_a += first.size - int(np.count_nonzero(ok_a))
        sums.bad_b += second.size - int(np.count_nonzero(ok_b))
        size_a, size = np.abs(first), np.abs(second)
        sums.near_a += int(np.count_nonzero((size_a >= NEAR_HALF_LIMIT) & ok_a))
        sums.near_b += int(np.count_nonzero((size >= NEAR_HALF_LIMIT) & ok_b))
        both = ok_a & ok_b
        if not both.all():
            first, second, size = first[both], second[both], size[both]
        if not first.size:
            continue
        gap = np.abs(first - second)
        if differences is not None:
            differences[sums.count : sums.count + gap.size] = gap
        sums.count += gap.size
        sums.outside += int(np.count_nonzero(gap > atol + rtol * size))
        sums.abs += float(gap.sum())
        sums.square += float(gap @ gap)
        sums.aa += float(first @ first)
        sums.bb += float(second @ second)
        sums.ab += float(first @ second)
        sums.max_abs = max(sums.max_abs, float(gap.max()))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = gap / size
        # 0 against 0 agrees; anything else against 0 differs by infinitely much.
        relative[gap == 0] = 0
        sums.max_rel = max(sums.max_rel, float(relative.max()))
        sums.low_a, sums.high_a = min(sums.low_a, float(first.min())), max(sums.high_a, float(first.max()))
        sums.low_b, sums.high_b = min(sums.low_b, float(second.min())), max(sums.high_b, float(second.max()))
    return sums


def _pieces(
    a: npt.NDArray[Any], b: npt.NDArray[Any]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    first, second = a.reshape(-1), b.reshape(-1)
    for start in range(0, first.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        yield first[piece].astype(np.float64), second[piece].astype(np.float64)


def _relative_euclidean(sums: _Sums) -> float:
    return 0.0 if math.sqrt(sums.bb) <= _EPSILON else math.sqrt(sums.square / sums.bb)


def _cosine(sums: _Sums, dimensions: int) -> float | None:
    if dimensions == 0 or (sums.aa == 0 and sums.bb == 0):
        return 1.0
    if sums.aa == 0 or sums.bb == 0:
        return None
    return min(1.0, sums.ab / math.sqrt(sums.aa) / math.sqrt(sums.bb))


def _kl(a: npt.NDArray[Any], b: npt.NDArray[Any], sums: _Sums) -> float:
    """Sum of p ln(p / q): each array scaled to [0, 1], floored at float32's epsilon, normalised to sum 1."""

    def scaled(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
        span = high - low
        return np.maximum((values - low) / span if span > 0 else np.zeros_like(values), _EPSILON)

    total_p = total_q = weighted = 0.0
    for first, second in _pieces(a, b):
        both = np.isfinite(first) & np.isfinite(second)
        p = scaled(first[both], sums.low_a, sums.high_a)
        q = scaled(second[both], sums.low_b, sums.high_b)
        total_p += float(p.sum())
        total_q += float(q.sum())
        weighted += float((p * np.log(p / q)).sum())
    return weighted / total_p + math.log(total_q / total_p)


def _flips(a: npt.NDArray[Any], b: npt.NDArray[Any], axis: int, decision: str) -> LabelFlips:
    if decision == "sign":
        # A NaN decides nothing, so it never agrees.
        changed = ((a > 0) != (b > 0)) | np.isnan(a) | np.isnan(b)
        margins = np.abs(b[changed]).astype(np.float64)
        decided = int(b.size)
    elif decision == "argmax":
        first, second = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0)
        changed = first.argmax(axis=0) != second.argmax(axis=0)
        changed |= np.isnan(first).any(axis=0) | np.isnan(second).any(axis=0)
        decided = int(changed.size)
        margins = top_two_margin(second[:, changed].astype(np.float64))
    else:
        raise UsageError(f"unknown decision {decision!r}; legal names: argmax, sign")
    margins = margins[np.isfinite(margins)]
    return LabelFlips(
        decided=decided,
        flips=int(changed.sum()),
        margin_max=float(margins.max()) if margins.size else None,
        margin_mean=float(margins.mean()) if margins.size else None,
    )


def top_two_margin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Largest minus second-largest along the first axis: (k, ...) -> (...); infinite for a single channel."""
    if values.shape[0] < 2:
        return np.full(values.shape[1:], np.inf)
    top = np.partition(values, values.shape[0] - 2, axis=0)[-2:]
    return np.asarray(top[1] - top[0])


def _strict(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
