"""What nnU-Net v1's plans say about a stage, as the pieces of a specification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from offline_infer.checkpoints.fields import Fields
from offline_infer.checkpoints.limits import MAX_CHANNELS
from offline_infer.checkpoints.plausibility import check_arguments, check_count, check_patch, check_spacing
from offline_infer.errors import CheckpointError
from offline_infer.spec import Channel, Intensity, Resampling

_SPLINE = Resampling(order=3, order_z=0)

PREPROCESSORS: dict[str, Resampling] = {
    "GenericPreprocessor": _SPLINE,
    "PreprocessorFor2D": _SPLINE,
    "GenericPreprocessor_scale_uint8_to_0_1": _SPLINE,
    "GenericPreprocessor_linearResampling": Resampling(order=1, order_z=0),
    "Preprocessor3DDifferentResampling": Resampling(order=3, order_z=3),
    "Preprocessor3DBetterResampling": Resampling(order=3, order_z=0, force_separate_z=False),
    "PreprocessorFor3D_LeaveOriginalZSpacing": _SPLINE,
}
"""Preprocessor class -> how it resamples the image."""

_SCHEMES = {"CT": "ct", "CT2": "ct2", "noNorm": "none"}
"""Normalisation schemes; every other name means z-score in nnU-Net v1."""
_GUARDS = {"ct": "none", "ct2": "none", "zscore": "add", "none": "none", "rgb_to_01": "none"}


@dataclass(frozen=True)
class Stage:
    """One entry of ``plans_per_stage``, network axis order throughout.

    Attributes:
        patch_size: (y, x) or (z, y, x).
        spacing: mm, as many entries as ``patch_size``.
        pool_kernels, conv_kernels: per stage, finest first.
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    pool_kernels: list[list[int]]
    conv_kernels: list[list[int]]


def read_stage(plans: Fields, number: int | None) -> Stage:
    """The stage a network was trained on.

    Args:
        plans: from inside ``.model.pkl``.
        number: the trainer's ``stage``; None where there is only one.

    Raises:
        CheckpointError: no such stage, or fields that do not fit together.
    """
    stages = plans.fields("plans_per_stage")
    if number is None:
        if len(stages) != 1:
            raise CheckpointError(f"{plans.origin}: the trainer names no stage but the plans have {len(stages)}")
        number = next(iter(stages))
    stage = stages.fields(number)
    patch = stage.integers("patch_size")
    check_patch(patch, stage.origin)
    dims = len(patch)
    spacing = stage.numbers("current_spacing")
    if len(spacing) != 3 and not (dims == 2 and len(spacing) == 2):
        raise CheckpointError(f"{stage.origin}: current_spacing {spacing} does not have three entries")
    # A 2d network's first spacing is that of the slice axis, which the framework overwrites with the image's own.
    spacing = spacing[-dims:]
    if not all(value > 0 and math.isfinite(value) for value in spacing):
        raise CheckpointError(
            f"{stage.origin}: current_spacing {spacing} is not a target spacing (plans that keep the image's own z "
            "spacing are not supported)"
        )
    check_spacing(spacing, stage.origin)
    pools = _pool_kernels(stage, dims)
    convs = (
        stage.integer_lists("conv_kernel_sizes") if "conv_kernel_sizes" in stage else [[3] * dims] * (len(pools) + 1)
    )
    check_arguments({"pool_op_kernel_sizes": pools, "conv_kernel_sizes": convs}, stage.origin)
    if any(len(kernel) != dims for kernel in (*pools, *convs)) or len(convs) != len(pools) + 1:
        raise CheckpointError(f"{stage.origin}: kernels {pools} and {convs} do not fit a {dims}D network")
    if min(min(kernel) for kernel in (*pools, *convs)) < 1:
        raise CheckpointError(f"{stage.origin}: kernels {pools} and {convs} must be positive")
    return Stage(patch, spacing, pools, convs)


def read_channels(plans: Fields) -> tuple[Channel, ...]:
    """The input channels and how they are normalised.

    Raises:
        CheckpointError: a channel without a scheme or, for CT, without intensity figures.
    """
    count = plans.integer("num_modalities")
    check_count("num_modalities", count, MAX_CHANNELS, plans.origin)
    schemes = plans.fields("normalization_schemes")
    masks = plans.fields("use_mask_for_norm")
    names = plans.fields("modalities") if plans.raw("modalities", None) is not None else Fields({}, plans.origin)
    figures = plans.fields("dataset_properties").raw("intensityproperties", None)
    rgb = str(plans.raw("preprocessor_name", None)) == "GenericPreprocessor_scale_uint8_to_0_1"
    channels = []
    for index in range(count):
        scheme = "rgb_to_01" if rgb else _SCHEMES.get(schemes.text(index), "zscore")
        channels.append(
            Channel(
                name=names.name(index, f"channel {index}"),
                scheme=scheme,  # type: ignore[arg-type]
                use_mask=bool(masks.raw(index)) and scheme in ("ct", "ct2", "zscore"),
                std_guard=_GUARDS[scheme],  # type: ignore[arg-type]
                intensity=_intensity(figures, index, plans.origin) if scheme in ("ct", "ct2") else None,
            )
        )
    return tuple(channels)


def read_resampling(plans: Fields, dims: int) -> Resampling:
    """How the image is resampled.

    Raises:
        CheckpointError: a preprocessor that is not known; the message lists the known ones.
    """
    default = "GenericPreprocessor" if dims == 3 else "PreprocessorFor2D"
    given = plans.raw("preprocessor_name", None)
    name = default if given is None else given
    resampling = Fields({"preprocessor_name": name}, plans.origin).choice(
        "preprocessor_name", PREPROCESSORS, "preprocessor"
    )
    assert isinstance(resampling, Resampling)
    return resampling


def read_export_resampling(plans: Fields) -> Resampling:
    """How the softmax map is resampled back."""
    if "segmentation_export_params" not in plans:
        return Resampling(order=1, order_z=0)
    params = plans.fields("segmentation_export_params")
    force = params.raw("force_separate_z")
    order_z = params.integer("interpolation_order_z")
    unused = force is not None and not force  # the framework's own planners then store 999999
    return Resampling(
        order=params.integer("interpolation_order"),
        order_z=0 if unused and order_z > 5 else order_z,
        force_separate_z=None if force is None else bool(force),
    )


def read_transpose(plans: Fields) -> tuple[int, int, int]:
    """``transpose_forward``; plans from before it existed mean the identity."""
    if plans.raw("transpose_forward", None) is None or plans.raw("transpose_backward", None) is None:
        return (0, 1, 2)
    forward = plans.integers("transpose_forward")
    if sorted(forward) != [0, 1, 2]:
        raise CheckpointError(f"{plans.origin}: transpose_forward {forward} is not a permutation of 0, 1, 2")
    return (forward[0], forward[1], forward[2])


def _pool_kernels(stage: Fields, dims: int) -> list[list[int]]:
    if "pool_op_kernel_sizes" in stage:
        return stage.integer_lists("pool_op_kernel_sizes")
    # Old plans only count the poolings per axis: an axis with fewer of them starts later.
    counts = stage.integers("num_pool_per_axis")
    if len(counts) != dims or not 0 < max(counts) <= 16:
        raise CheckpointError(f"{stage.origin}: num_pool_per_axis {counts} does not fit a {dims}D network")
    return [[2 if max(counts) - count <= level else 1 for count in counts] for level in range(max(counts))]


def _intensity(figures: Any, index: int, origin: str) -> Intensity:
    where = f"{origin}, intensityproperties"
    channel = Fields(figures, where).fields(index)
    values = {name: channel.number(name) for name in ("mean", "sd", "percentile_00_5", "percentile_99_5")}
    return Intensity(
        mean=values["mean"],
        std=values["sd"],
        percentile_00_5=values["percentile_00_5"],
        percentile_99_5=values["percentile_99_5"],
    )
