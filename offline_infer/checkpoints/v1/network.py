"""Which network an nnU-Net v1 state dict belongs to, from the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from offline_infer.checkpoints.description import NetworkDescription
from offline_infer.checkpoints.fields import shown
from offline_infer.checkpoints.v1.trainers import Traits
from offline_infer.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
FEATURE_CAPS = {2: 480, 3: 320}
"""Features a stage has at most, by number of spatial axes."""


@dataclass(frozen=True)
class _Sizes:
    """What the weights show."""

    features: list[int]
    kernels: list[list[int]]
    convs_per_stage: int
    inputs: int
    outputs: int


def describe(
    shapes: Shapes,
    pool_kernels: Sequence[Sequence[int]],
    conv_kernels: Sequence[Sequence[int]],
    patch_size: tuple[int, ...],
    traits: Traits,
    origin: str,
) -> NetworkDescription:
    """The network to rebuild.

    Args:
        shapes: state dict names and shapes, without wrapper prefixes.
        pool_kernels: of the plans; strides do not show in the weights of the encoder.
        conv_kernels: of the plans; where the weights differ (trainers that change them), the weights win.
        patch_size: network axis order.
        traits: of the trainer.
        origin: how messages call the weights file.

    Raises:
        CheckpointError: the names are those of another network, or shapes that contradict the plans.
    """
    kind = _kind(shapes, origin)
    sizes = _sizes(shapes, origin)
    _check(sizes, kind, pool_kernels, patch_size, origin)
    base, cap = sizes.features[0], max(sizes.features)
    arguments: dict[str, Any] = {
        "base_features": base,
        "pool_kernels": [list(kernel) for kernel in pool_kernels],
        "conv_kernels": sizes.kernels,
        "convs_per_stage": sizes.convs_per_stage,
    }
    if cap != min(base * 2 ** (len(sizes.features) - 1), FEATURE_CAPS[len(patch_size)]):
        arguments["max_features"] = cap
    arguments |= _style(shapes, traits)
    return NetworkDescription(
        kind=kind,
        class_name="Generic_UNetPlusPlus" if kind == "unetplusplus" else "Generic_UNet",
        arguments=arguments,
        input_channels=sizes.inputs,
        output_channels=sizes.outputs,
        patch_size=patch_size,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
    )


def _check(
    sizes: _Sizes, kind: str, pool_kernels: Sequence[Sequence[int]], patch_size: tuple[int, ...], origin: str
) -> None:
    """See that the weights and the plans describe one network.

    Raises:
        CheckpointError: they contradict each other.
    """
    dims = len(patch_size)
    if len(sizes.features) != len(pool_kernels) + 1 or len(sizes.kernels[0]) != dims:
        raise CheckpointError(
            f"{origin}: the weights have {len(sizes.features) - 1} poolings in {len(sizes.kernels[0])}D, the plans "
            f"{len(pool_kernels)} in {dims}D; weights and plans are not from one training"
        )
    if kind == "unetplusplus" and len(pool_kernels) != 5:
        raise CheckpointError(f"{origin}: a UNet++ of this framework has five poolings, not {len(pool_kernels)}")
    base, cap = sizes.features[0], max(sizes.features)
    if sizes.features != [min(base * 2**stage, cap) for stage in range(len(sizes.features))]:
        raise CheckpointError(f"{origin}: feature counts {sizes.features} do not double from stage to stage")
    for axis, size in enumerate(patch_size):
        factor = 1
        for pool in pool_kernels:
            factor *= pool[axis]
        if size % factor:
            raise CheckpointError(
                f"{origin}: patch size {patch_size} cannot be divided by the poolings' factor {factor}"
            )


def deviations(network: NetworkDescription, base: int, convs: int, kernels: Sequence[Sequence[int]]) -> list[str]:
    """How the network differs from the one its plans describe, in words."""
    found = []
    expected = {"base_features": base, "convs_per_stage": convs, "conv_kernels": [list(kernel) for kernel in kernels]}
    for name, value in expected.items():
        if network.arguments[name] != value:
            found.append(f"{name.replace('_', ' ')} {network.arguments[name]} instead of {value}")
    for name in ("max_features", "norm", "head_bias"):
        if name in network.arguments:
            found.append(f"{name.replace('_', ' ')} {network.arguments[name]}")
    return found


def _kind(shapes: Shapes, origin: str) -> Literal["unetplusplus", "generic_unet"]:
    heads = {name.split(".")[0] for name in shapes}
    if {"loc0", "up0", "conv_blocks_context"} <= heads:
        return "unetplusplus"
    if {"conv_blocks_localization", "tu", "conv_blocks_context"} <= heads:
        return "generic_unet"
    raise CheckpointError(
        f"{origin}: the weights belong to neither Generic_UNet nor UNet++ (they have {shown(sorted(heads)[:6])}); "
        "other networks of nnU-Net v1 are not supported"
    )


def _sizes(shapes: Shapes, origin: str) -> _Sizes:
    features: list[int] = []
    kernels: list[list[int]] = []
    depth = 1 + max(
        (int(m[1]) for name in shapes if (m := re.match(r"conv_blocks_context\.(\d{1,4})\.", name))), default=0
    )
    if depth > 32:
        raise CheckpointError(f"{origin}: the encoder claims {depth} stages")
    for stage in range(depth):
        inner = "0." if stage == depth - 1 else ""  # the bottleneck is in two parts
        shape = _shape(shapes, f"conv_blocks_context.{stage}.{inner}blocks.0.conv.weight", origin)
        features.append(shape[0])
        kernels.append(list(shape[2:]))
    counted = sum(bool(re.match(r"conv_blocks_context\.0\.blocks\.\d+\.conv\.weight$", name)) for name in shapes)
    first = _shape(shapes, "conv_blocks_context.0.blocks.0.conv.weight", origin)
    head = _shape(shapes, "seg_outputs.0.weight", origin)
    return _Sizes(features, kernels, counted, first[1], head[0])


def _shape(shapes: Shapes, name: str, origin: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) not in (4, 5) or 0 in shape:
        raise CheckpointError(f"{origin}: {name} is missing from the weights or is not a convolution")
    return shape


def _style(shapes: Shapes, traits: Traits) -> dict[str, Any]:
    """Arguments that differ from the default network's."""
    style: dict[str, Any] = {}
    if any(name.endswith("instnorm.running_mean") for name in shapes):
        style["norm"] = "batch"
    elif not any(".instnorm." in name for name in shapes):
        style["norm"] = "none"
    elif traits.group_norm:
        style["norm"] = "group"
    if traits.activation != "leaky_relu":
        style["activation"] = traits.activation
    if traits.negative_slope != 0.01:
        style["negative_slope"] = traits.negative_slope
    if traits.norm_last:
        style["norm_last"] = True
    if "seg_outputs.0.bias" in shapes:
        style["head_bias"] = True
    return style
