"""Turning an array to RAS axes and back: what nnU-Net's ``...WithReorient`` readers do. Pure arithmetic.

A :class:`Turn` says, for each axis (x, y, z) of the turned image, which stored axis it is and whether it is reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RAS = "RAS"
_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}


@dataclass(frozen=True)
class Turn:
    """Axis ``i`` (x, y, z) of the turned image is stored axis ``axes[i]``, reversed where ``flips[i]``."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def identity(self) -> bool:
        return self.axes == (0, 1, 2) and not any(self.flips)

    def to_json(self) -> dict[str, Any]:
        return {"axes": list(self.axes), "flips": list(self.flips)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Turn:
        a, b, c = (int(axis) for axis in record["axes"])
        d, e, f = (bool(flip) for flip in record["flips"])
        return cls((a, b, c), (d, e, f))

    @classmethod
    def from_codes(cls, stored: str, wanted: str = RAS) -> Turn:
        """From three letters that say where each stored axis leads (``LPS``) to the wanted ones."""
        axes, flips = [], []
        for letter in wanted:
            backwards = letter not in stored
            axes.append(stored.index(_OPPOSITE[letter] if backwards else letter))
            flips.append(backwards)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def permuted(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Per-axis values (x, y, z) of the stored image, in the order of the turned one."""
        return tuple(values[axis] for axis in self.axes)

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view (z, y, x) of the turned image.

        Args:
            stored: (z, y, x).
        """
        turned = stored.transpose([2 - axis for axis in self.axes[::-1]])
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips[::-1])]

    def undo(self, turned: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view (z, y, x) in the stored orientation: the inverse of :meth:`apply`."""
        unflipped = turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips[::-1])]
        return unflipped.transpose(np.argsort([2 - axis for axis in self.axes[::-1]]))

    def turn_frame(
        self, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
    ) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Size, spacing, origin and direction (ITK order) of the turned image."""
        matrix = np.asarray(direction, dtype=np.float64).reshape(3, 3)
        start = np.asarray(origin, dtype=np.float64)
        columns = []
        for axis, flip in zip(self.axes, self.flips, strict=True):
            column = matrix[:, axis]
            if flip:  # the new first voxel is the stored last one
                start = start + column * (spacing[axis] * (size[axis] - 1))
            columns.append(-column if flip else column)
        turned = np.stack(columns, axis=1)
        return (
            self.permuted(size),
            self.permuted(spacing),
            tuple(float(value) for value in start),
            tuple(float(value) for value in turned.ravel()),
        )
