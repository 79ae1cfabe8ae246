"""A tensor cut into planes along one axis, as outputs of an OpenVINO graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Parts = list[Any]
"""Outputs of nodes; see :class:`Cut`."""


@dataclass(frozen=True)
class Cut:
    """How tensors are cut: one of n planes becomes n / depth parts, and part p holds planes p, p + parts, p + 2 parts, ...

    So the neighbours of all planes of a part lie in the neighbouring part; only the first and the last part have theirs
    in each other, one further on.

    Attributes:
        axis: of (n, c, *sizes).
        depth: planes a part.
    """

    axis: int
    depth: int

    def parts_of(self, size: int) -> int:
        """Number of parts of a tensor of that many planes; 0 where it cannot be cut."""
        return size // self.depth if size % self.depth == 0 else 0


class Constants:
    """A graph's constants, each made once: the time to compile a graph grows with its nodes, those included."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, tuple[int, ...], bytes], Any] = {}

    def __call__(self, value: Any, dtype: Any = np.float32) -> Any:
        """The output of a constant that may be one from before."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = self.weights(array)
        return self._made[key]

    @staticmethod
    def weights(array: np.ndarray[Any, Any]) -> Any:
        """The output of a constant of its own, for what is large and not needed again."""
        import openvino.opset13 as ops

        return ops.constant(array).output(0)


def split(whole: Any, cut: Cut, constant: Constants) -> Parts:
    """The parts of a tensor."""
    import openvino.opset13 as ops

    size = int(whole.get_shape()[cut.axis])
    count = cut.parts_of(size)
    if count == 1:
        return [whole]
    if cut.depth == 1:
        return list(ops.split(whole, constant(cut.axis, np.int64), count).outputs())
    axis, stop, step = (constant([value], np.int64) for value in (cut.axis, size, count))
    return [ops.slice(whole, constant([first], np.int64), stop, step, axis).output(0) for first in range(count)]


def join(parts: Parts, cut: Cut, constant: Constants) -> Any:
    """The tensor that the parts belong to; the inverse of :func:`split`."""
    import openvino.opset13 as ops

    if len(parts) == 1:
        return parts[0]
    if cut.depth == 1:
        return ops.concat(parts, cut.axis).output(0)
    shape = [int(size) for size in parts[0].get_shape()]
    shape[cut.axis] *= len(parts)
    behind = constant(cut.axis + 1, np.int64)
    interleaved = ops.concat([ops.unsqueeze(part, behind) for part in parts], cut.axis + 1)
    return ops.reshape(interleaved, constant(shape, np.int64), False).output(0)


def neighbour(parts: Parts, index: int, cut: Cut, constant: Constants) -> Any | None:
    """The part whose planes lie ``index`` planes behind those of part 0; None where that is all padding.

    Args:
        index: may lie up to the number of parts outside.
    """
    import openvino.opset13 as ops

    further, place = divmod(index, len(parts))
    if further == 0:
        return parts[place]
    if abs(further) >= cut.depth:
        return None
    rank = len(parts[place].get_shape())
    pads = [further if axis == cut.axis else 0 for axis in range(rank)]
    before, after = constant([-pad for pad in pads], np.int64), constant(pads, np.int64)
    return ops.pad(parts[place], before, after, "constant", constant(0.0)).output(0)


def total(terms: Sequence[tuple[Any, Any | None]], constant: Constants) -> Any | None:
    """A sum of (factor, output); None for an output that is all zeros, and where nothing is left.

    Factors are numbers; those of 1 and -1 cost nothing.
    """
    import openvino.opset13 as ops

    found: Any | None = None
    # A term that need not be turned round comes first.
    for factor, output in sorted(terms, key=lambda term: term[0] != 1):
        if output is None or factor == 0:
            continue
        if found is None:
            found = output if factor == 1 else ops.multiply(output, constant(float(factor)))
        elif factor in (1, -1):
            found = (ops.add if factor == 1 else ops.subtract)(found, output)
        else:
            found = ops.add(found, ops.multiply(output, constant(float(factor))))
    return found if found is None or hasattr(found, "get_node") else found.output(0)
