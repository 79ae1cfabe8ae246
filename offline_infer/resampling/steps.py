"""Which axis is resampled how: nnU-Net's choice of a low-resolution axis, and the operators that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline_infer.errors import GeometryError
from offline_infer.resampling.operators import Axis, Method
from offline_infer.spec import Resampling

Shape3 = tuple[int, int, int]

_TORCH_METHODS: dict[str, Method] = {
    "linear": "torch-linear",
    "bilinear": "torch-linear",
    "trilinear": "torch-linear",
    "nearest-exact": "torch-nearest-exact",
    "nearest": "torch-nearest",
}


@dataclass(frozen=True)
class ResamplingSteps:
    """A resampling of (z, y, x) volumes as one operator per axis.

    Attributes:
        axes: the operator of each array axis.
        apart: the axis that is resampled after, and apart from, the other two; None if all three are treated alike.
        clip: limit the result to the input's range, that of the volume or of each slice across ``apart``. Only splines
            of order 2 and more overshoot.
    """

    axes: tuple[Axis, Axis, Axis]
    apart: int | None
    clip: bool

    @property
    def identity(self) -> bool:
        return all(axis.identity for axis in self.axes)

    @property
    def two_taps(self) -> bool:
        """Whether the result is a convex combination of at most eight neighbours."""
        return all(axis.two_taps for axis in self.axes)

    @property
    def coarse(self) -> Shape3:
        z, y, x = self.axes
        return (z.n_in, y.n_in, x.n_in)

    @property
    def fine(self) -> Shape3:
        z, y, x = self.axes
        return (z.n_out, y.n_out, x.n_out)


def lowres_axis(current_spacing: Sequence[float], new_spacing: Sequence[float], rule: Resampling) -> int | None:
    """The axis nnU-Net resamples apart from the others, or None.

    It is the one axis with the largest spacing where max/min exceeds ``rule.anisotropy_threshold``: tested on the
    current spacing, then on the new one. ``force_separate_z`` True takes the current spacing's largest whatever the
    ratio, False never separates. Two or three axes that share the maximum: None.

    Args:
        current_spacing, new_spacing: mm, in the order of the array's axes.
    """
    if rule.function == "none" or rule.force_separate_z is False:
        return None
    if rule.force_separate_z:
        return _single_largest(current_spacing)
    for spacing in (current_spacing, new_spacing):
        if max(spacing) / min(spacing) > rule.anisotropy_threshold:
            return _single_largest(spacing)
    return None


def resampling_steps(
    shape: Sequence[int], new_shape: Sequence[int], axis: int | None, rule: Resampling
) -> ResamplingSteps:
    """The operators that bring ``shape`` to ``new_shape``, both (z, y, x).

    Args:
        axis: the axis to treat apart, as :func:`lowres_axis` says.

    Raises:
        GeometryError: the shapes are not three positive sizes, or the rule cannot join them.
    """
    old, new = tuple(int(n) for n in shape), tuple(int(n) for n in new_shape)
    if len(old) != 3 or len(new) != 3 or min(old + new) < 1:
        raise GeometryError(
            f"cannot resample a volume of shape {old} to {new}: three sizes of at least one voxel are needed"
        )
    if axis is not None and axis not in (0, 1, 2):
        raise GeometryError(f"the axis to resample apart is {axis}; expected 0, 1, 2 or None")
    if rule.function == "none" and old != new:
        raise GeometryError(
            f"the model's plans forbid resampling, but a volume of shape {old} should become {new}; "
            "bring the image to the model's spacing first"
        )
    in_plane, apart = _methods(rule, axis)
    axes = tuple(Axis(old[i], new[i], *(apart if i == axis else in_plane)) for i in range(3))
    return ResamplingSteps((axes[0], axes[1], axes[2]), axis, clip=rule.function == "default" and rule.order >= 2)


def _single_largest(spacing: Sequence[float]) -> int | None:
    # The quotient, not the values, is what the framework compares with one.
    (largest,) = np.nonzero(max(spacing) / np.asarray(spacing, np.float64) == 1)
    return int(largest[0]) if len(largest) == 1 else None


def _methods(rule: Resampling, axis: int | None) -> tuple[tuple[Method, int], tuple[Method, int]]:
    """(method, order) in plane and along the axis treated apart."""
    if rule.function in ("default", "none"):
        return ("spline", rule.order), ("spline", rule.order_z)
    # The framework hands its in-plane mode on only where it separates an axis.
    return _torch_method(rule.mode if axis is not None else "linear"), _torch_method(rule.aniso_axis_mode)


def _torch_method(mode: str) -> tuple[Method, int]:
    if mode not in _TORCH_METHODS:
        raise GeometryError(
            f"interpolation mode {mode!r} of the plans is not supported; legal: {', '.join(sorted(_TORCH_METHODS))}"
        )
    method = _TORCH_METHODS[mode]
    return method, 1 if method == "torch-linear" else 0
