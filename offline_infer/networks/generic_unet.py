"""nnU-Net v1's Generic_UNet, two- or three-dimensional and of any depth, with the same parameter names.

Encoder ``conv_blocks_context``, decoder ``conv_blocks_localization`` (coarsest first), transposed convolutions ``tu``
and one head per decoder stage in ``seg_outputs``. Unlike UNet++, the *last* head is the final one, and the heads of
coarser stages give logits at their own, lower resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from offline_infer.networks.blocks import (
    MAX_FEATURES,
    Activation,
    Norm,
    Style,
    check_kernels,
    decoder_block,
    encoder,
    feature_counts,
)


class GenericUNet(nn.Module):
    """U-Net with strided convolutions down and transposed convolutions up.

    Args:
        input_channels: channels of the image, a previous stage's one-hot channels included.
        base_features: features at full resolution; doubled per pooling up to ``max_features``.
        output_channels: classes (background included) or regions.
        pool_kernels: one factor per spatial axis for every pooling, finest first.
        conv_kernels: one kernel (1 or 3 per axis) more than there are poolings, finest first. The decoder stage at
            full resolution uses the second one, as in the framework.
        convs_per_stage: convolutions per stage.
        max_features: feature cap; None takes the framework's (320 in 3D, 480 in 2D).
        deep_supervision: if True, ``forward`` returns one head per decoder stage.

    Raises:
        ValueError: kernels that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        base_features: int,
        output_channels: int,
        pool_kernels: Sequence[Sequence[int]],
        conv_kernels: Sequence[Sequence[int]],
        *,
        convs_per_stage: int = 2,
        max_features: int | None = None,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        negative_slope: float = 0.01,
        norm_last: bool = False,
        head_bias: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        dims = check_kernels(pool_kernels, conv_kernels)
        if convs_per_stage < 2:
            raise ValueError(f"convs_per_stage must be at least 2, not {convs_per_stage}")
        self.deep_supervision = deep_supervision
        style = Style(dims, norm, activation, negative_slope, norm_last)
        cap = MAX_FEATURES[dims] if max_features is None else max_features
        poolings = len(pool_kernels)
        features = feature_counts(base_features, poolings + 1, cap)
        levels = list(reversed(range(poolings)))  # coarsest first
        self.conv_blocks_localization = nn.ModuleList(
            decoder_block(style, 2 * features[level], features[level], conv_kernels[level + 1], convs_per_stage)
            for level in levels
        )
        self.conv_blocks_context = encoder(style, input_channels, features, pool_kernels, conv_kernels, convs_per_stage)
        self.tu = nn.ModuleList(style.up(features[level + 1], features[level], pool_kernels[level]) for level in levels)
        self.seg_outputs = nn.ModuleList(
            style.head(features[level], output_channels, bias=head_bias) for level in levels
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits.

        Args:
            x: (n, c, y, x) or (n, c, z, y, x); every spatial size a multiple of its axis's pooling factors' product.

        Returns:
            (n, k, *spatial); with ``deep_supervision`` a tuple, full resolution (the final head) first, then ever
            coarser. No softmax.
        """
        skips: list[torch.Tensor] = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        skips.pop()  # the bottleneck's own output is x
        heads: list[torch.Tensor] = []
        last = len(self.tu) - 1
        for index, (up, block, head) in enumerate(
            zip(self.tu, self.conv_blocks_localization, self.seg_outputs, strict=True)
        ):
            x = block(torch.cat([up(x), skips.pop()], dim=1))
            if self.deep_supervision or index == last:
                heads.insert(0, head(x))
        return tuple(heads) if self.deep_supervision else heads[0]
