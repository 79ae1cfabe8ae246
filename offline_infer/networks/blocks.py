"""The convolution blocks nnU-Net v1's networks are made of, with the parameter names its checkpoints use.

A block is convolution with bias, then normalisation, then activation (trainer variants swap the last two or change
them). Attribute names (``conv``, ``instnorm``, ``blocks``) are part of the checkpoint format: they must stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

NORM_EPS = 1e-5
MAX_FEATURES = {2: 480, 3: 320}
"""Feature cap by number of spatial axes."""

Norm = Literal["instance", "batch", "group", "none"]
Activation = Literal["leaky_relu", "relu", "gelu", "mish"]


@dataclass(frozen=True)
class Style:
    """How every block of a network is made.

    Attributes:
        dims: number of spatial axes, 2 or 3.
        norm: ``group`` uses eight groups; ``none`` leaves normalisation out.
        activation: applied after every normalisation.
        negative_slope: of ``leaky_relu``.
        norm_last: activation before normalisation, as a few trainer variants have it.
    """

    dims: int
    norm: Norm = "instance"
    activation: Activation = "leaky_relu"
    negative_slope: float = 0.01
    norm_last: bool = False

    def conv(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], *, bias: bool) -> nn.Module:
        """A convolution that keeps the shape for odd kernels of size 1 or 3 (before its stride)."""
        pad = tuple(1 if size == 3 else 0 for size in kernel)
        if self.dims == 3:
            k3, s3, p3 = (cast("tuple[int, int, int]", tuple(v)) for v in (kernel, stride, pad))
            return nn.Conv3d(inputs, outputs, k3, s3, p3, bias=bias)
        k2, s2, p2 = (cast("tuple[int, int]", tuple(v)) for v in (kernel, stride, pad))
        return nn.Conv2d(inputs, outputs, k2, s2, p2, bias=bias)

    def up(self, inputs: int, outputs: int, factor: Sequence[int]) -> nn.Module:
        """A transposed convolution with kernel = stride = ``factor`` and no bias."""
        if self.dims == 3:
            f3 = cast("tuple[int, int, int]", tuple(factor))
            return nn.ConvTranspose3d(inputs, outputs, f3, f3, bias=False)
        f2 = cast("tuple[int, int]", tuple(factor))
        return nn.ConvTranspose2d(inputs, outputs, f2, f2, bias=False)

    def head(self, inputs: int, outputs: int, *, bias: bool = False) -> nn.Module:
        """The 1x1 convolution that turns features into logits."""
        ones = (1,) * self.dims
        return self.conv(inputs, outputs, ones, ones, bias=bias)

    def make_norm(self, features: int) -> nn.Module | None:
        """The normalisation layer, or None."""
        if self.norm == "none":
            return None
        if self.norm == "group":
            return nn.GroupNorm(8, features, eps=NORM_EPS)
        if self.norm == "batch":
            return nn.BatchNorm3d(features, NORM_EPS) if self.dims == 3 else nn.BatchNorm2d(features, NORM_EPS)
        if self.dims == 3:
            return nn.InstanceNorm3d(features, NORM_EPS, affine=True)
        return nn.InstanceNorm2d(features, NORM_EPS, affine=True)

    def make_activation(self) -> nn.Module:
        """The activation layer; it works in place where that is possible, to save memory."""
        if self.activation == "relu":
            return nn.ReLU(inplace=True)
        if self.activation == "gelu":
            return nn.GELU()
        if self.activation == "mish":
            return nn.Mish()
        return nn.LeakyReLU(self.negative_slope, inplace=True)


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation. (n, c, ...) -> (n, outputs, ...)."""

    def __init__(self, style: Style, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = style.conv(inputs, outputs, kernel, stride, bias=True)
        norm = style.make_norm(outputs)
        if norm is not None:
            self.instnorm = norm
        self.lrelu = style.make_activation()
        self._has_norm = norm is not None
        self._norm_last = style.norm_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if not self._has_norm:
            return cast("torch.Tensor", self.lrelu(x))
        if self._norm_last:
            return cast("torch.Tensor", self.instnorm(self.lrelu(x)))
        return cast("torch.Tensor", self.lrelu(self.instnorm(x)))


class Stack(nn.Module):
    """Several :class:`ConvBlock` in a row; only the first one has a stride."""

    def __init__(
        self,
        style: Style,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        count: int,
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        ones = (1,) * style.dims
        self.blocks = nn.Sequential(
            *(
                ConvBlock(style, inputs if i == 0 else outputs, outputs, kernel, stride if i == 0 and stride else ones)
                for i in range(count)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.blocks(x))


def encoder(
    style: Style,
    input_channels: int,
    features: Sequence[int],
    pool_kernels: Sequence[Sequence[int]],
    conv_kernels: Sequence[Sequence[int]],
    convs_per_stage: int,
) -> nn.ModuleList:
    """The contracting path. Each stage begins with the stride of the pooling before it; the last stage (the bottleneck)
    is split into two parts because the framework's is."""
    stages: list[nn.Module] = []
    channels = input_channels
    for depth, kernel in enumerate(conv_kernels[:-1]):
        stride = pool_kernels[depth - 1] if depth else None
        stages.append(Stack(style, channels, features[depth], kernel, convs_per_stage, stride))
        channels = features[depth]
    kernel, last = conv_kernels[-1], features[-1]
    stages.append(
        nn.Sequential(
            Stack(style, channels, last, kernel, convs_per_stage - 1, pool_kernels[-1]),
            Stack(style, last, last, kernel, 1),
        )
    )
    return nn.ModuleList(stages)


def decoder_block(
    style: Style, inputs: int, outputs: int, kernel: Sequence[int], convs_per_stage: int
) -> nn.Sequential:
    """One stage of the expanding path: all convolutions but one, then one."""
    return nn.Sequential(
        Stack(style, inputs, outputs, kernel, convs_per_stage - 1), Stack(style, outputs, outputs, kernel, 1)
    )


def feature_counts(base: int, stages: int, cap: int) -> list[int]:
    """Features of every stage: doubled from stage to stage, at most ``cap``."""
    return [min(base * 2**stage, cap) for stage in range(stages)]


def check_kernels(pool_kernels: Sequence[Sequence[int]], conv_kernels: Sequence[Sequence[int]]) -> int:
    """Number of spatial axes of a consistent set of kernels.

    Raises:
        ValueError: lengths disagree, or a convolution kernel is neither 1 nor 3 wide.
    """
    if not pool_kernels:
        raise ValueError("a network needs at least one pooling")
    if len(conv_kernels) != len(pool_kernels) + 1:
        raise ValueError(
            f"{len(pool_kernels)} poolings need {len(pool_kernels) + 1} convolution kernels, not {len(conv_kernels)}"
        )
    dims = {len(kernel) for kernel in (*pool_kernels, *conv_kernels)}
    if dims not in ({2}, {3}):
        raise ValueError(f"kernels must all have two or all have three entries, not {sorted(dims)}")
    if any(size not in (1, 3) for kernel in conv_kernels for size in kernel):
        raise ValueError(f"convolution kernels must be 1 or 3 wide: {[list(k) for k in conv_kernels]}")
    if any(size < 1 for kernel in pool_kernels for size in kernel):
        raise ValueError(f"pooling factors must be positive: {[list(k) for k in pool_kernels]}")
    return dims.pop()
