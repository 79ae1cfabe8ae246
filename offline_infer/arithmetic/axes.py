"""How an array's axes relate to those of the file it was read from. Pure arithmetic.

Every reader leaves one member of the union :data:`Axes` in the :class:`~offline_infer.arithmetic.geometry.ImageGeometry`
it reports. It holds what is needed to write a label map in the file's own frame:

=====================  ==============================================================================
:class:`FileAxes`      the array's axes are the file's
:class:`TurnedAxes`    turned to RAS axes by an ITK reader; the stored frame is kept
:class:`AffineAxes`    NIfTI as nibabel sees it, turned or not; the stored affine is kept
:class:`PictureAxes`   a two-dimensional picture, which has no place in space
=====================  ==============================================================================

A :class:`Turn` says, for each axis (x, y, z) of the turned image, which stored axis it is and whether it is reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from offline_infer.errors import GeometryError

RAS = "RAS"
Vector3 = tuple[float, float, float]
Matrix4 = tuple[tuple[float, ...], ...]
_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}


@dataclass(frozen=True)
class Turn:
    """Axis ``i`` (x, y, z) of the turned image is stored axis ``axes[i]``, reversed where ``flips[i]``."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def identity(self) -> bool:
        return self.axes == (0, 1, 2) and not any(self.flips)

    @property
    def stored_codes(self) -> str:
        """Three letters that say where each stored axis leads (``LPS``), for an image that was turned to RAS."""
        letters = dict(zip(self.axes, zip(RAS, self.flips, strict=True), strict=True))
        return "".join(_OPPOSITE[letter] if flip else letter for letter, flip in (letters[axis] for axis in range(3)))

    def to_json(self) -> dict[str, Any]:
        return {"axes": list(self.axes), "flips": list(self.flips)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Turn:
        a, b, c = (int(axis) for axis in record["axes"])
        d, e, f = record["flips"]
        if not all(isinstance(flip, bool) for flip in (d, e, f)):
            raise TypeError("flips are true or false")
        if sorted((a, b, c)) != [0, 1, 2]:
            raise GeometryError(
                f"the record of a turned image names the axes {(a, b, c)}; expected 0, 1 and 2, each once"
            )
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

    def turned_places(self, places: npt.NDArray[np.int64], stored_shape: Sequence[int]) -> npt.NDArray[np.int64]:
        """Where voxels of the stored array lie in the turned one.

        Args:
            places: (n, 3) of the stored array, (z, y, x).
            stored_shape: its shape, (z, y, x).
        """
        stored = places[:, ::-1]
        last = np.asarray(stored_shape)[::-1] - 1
        columns = [
            last[axis] - stored[:, axis] if flip else stored[:, axis]
            for axis, flip in zip(self.axes, self.flips, strict=True)
        ]
        return np.stack(columns[::-1], axis=1)

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


IDENTITY = Turn((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class FileAxes:
    """The array's axes are the file's own; an image of two dimensions is one slice of the array."""

    dimensions: Literal[2, 3] = 3

    def to_json(self) -> dict[str, Any]:
        return {"kind": "file", "dimensions": self.dimensions}


@dataclass(frozen=True)
class TurnedAxes:
    """The array was turned to RAS axes after ITK had read it.

    Attributes:
        turn: from the stored array to this one.
        spacing, origin: of the stored image, (x, y, z) in mm, LPS.
        direction: of the stored image, nine numbers, row-major.
    """

    turn: Turn
    spacing: Vector3
    origin: Vector3
    direction: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "turned",
            "turn": self.turn.to_json(),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": list(self.direction),
        }


@dataclass(frozen=True)
class AffineAxes:
    """NIfTI read by nibabel.

    Attributes:
        affine: (4, 4) of the stored image, voxel (x, y, z) to mm in RAS; may be sheared.
        turn: from the stored array to this one; the identity for ``NibabelIO``.
    """

    affine: Matrix4
    turn: Turn = field(default=IDENTITY)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "affine", "affine": [list(row) for row in self.affine], "turn": self.turn.to_json()}


@dataclass(frozen=True)
class PictureAxes:
    """A grey or colour picture: one slice without a place in space."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": "picture"}


Axes: TypeAlias = FileAxes | TurnedAxes | AffineAxes | PictureAxes


def axes_from_json(record: Mapping[str, Any]) -> Axes:
    """The union's member that a record stands for.

    Raises:
        GeometryError: an unknown kind, or numbers that do not describe a frame.
        KeyError, TypeError, ValueError: a record of another structure.
    """
    kind = record["kind"]
    if kind == "file":
        return FileAxes(2 if record["dimensions"] == 2 else 3)
    if kind == "turned":
        return TurnedAxes(
            Turn.from_json(record["turn"]),
            three_positive(record["spacing"]),
            three_finite(record["origin"]),
            finite(record["direction"], 9),
        )
    if kind == "affine":
        rows = tuple(finite(row, 4) for row in record["affine"])
        if len(rows) != 4:
            raise GeometryError(f"the record of an image has an affine of {len(rows)} rows; expected four")
        return AffineAxes(rows, Turn.from_json(record["turn"]))
    if kind == "picture":
        return PictureAxes()
    raise GeometryError(f"the record of an image has axes of the unknown kind {kind!r:.40}")


def axes_from_first_schema(extra: Mapping[str, Any]) -> Axes:
    """The same from work folders of releases before 0.2, which kept a loose set of optional keys.

    Raises:
        GeometryError, KeyError, TypeError, ValueError: as :func:`axes_from_json`.
    """
    turn = extra.get("turn", IDENTITY.to_json())
    if "affine" in extra:
        return axes_from_json({"kind": "affine", "affine": extra["affine"], "turn": turn})
    if "stored" in extra:
        return axes_from_json({"kind": "turned", "turn": turn, **extra["stored"]})
    if extra.get("flat"):
        return PictureAxes()
    return FileAxes(2 if extra.get("dimensions") == 2 else 3)


def ras_affine(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Matrix4:
    """The affine (4, 4) that nibabel would report, voxel (x, y, z) to mm in RAS, of a frame in ITK's terms (LPS)."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, dtype=np.float64).reshape(3, 3) * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = origin
    affine[:2] *= -1
    return tuple(tuple(row) for row in affine.tolist())


def finite(values: Sequence[Any], count: int) -> tuple[float, ...]:
    """``count`` finite numbers.

    Raises:
        GeometryError: another number of values, or one that is not finite.
        TypeError, ValueError: something that is not a number.
    """
    try:
        numbers = tuple(float(value) for value in values)
    except OverflowError as error:  # an integer of hundreds of digits
        raise GeometryError("the record of an image holds a number that is out of range") from error
    if len(numbers) != count or not all(isfinite(number) for number in numbers):
        raise GeometryError(
            f"the record of an image holds {len(numbers)} numbers where {count} finite ones are expected"
        )
    return numbers


def three_finite(values: Sequence[Any]) -> Vector3:
    """Three finite numbers; raises as :func:`finite`."""
    a, b, c = finite(values, 3)
    return (a, b, c)


def three_positive(values: Sequence[Any]) -> Vector3:
    """Three finite numbers above 0, mm; raises as :func:`finite`."""
    spacing = three_finite(values)
    if min(spacing) <= 0:
        raise GeometryError(f"the record of an image holds the impossible spacing {spacing}")
    return spacing
