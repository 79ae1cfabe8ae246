"""UNet++ (nested U-Net) as nnU-Net v1's UNet++ fork builds it, with the same parameter names.

Node ``x_i_j`` sits at resolution ``i`` (0 = full) and nesting ``j``. ``x_i_0`` is the encoder; every other node sees
all nodes left of it at its resolution and the up-sampled node below::

    x_i_j = conv(concat(x_i_0, ..., x_i_{j-1}, up(x_{i+1}_{j-1})))

The fork stores the nodes by diagonal: ``loc<D>.<k>`` and ``up<D>.<k>`` make ``x_{4-D-k}_{k+1}``. Heads are numbered
from the deepest nesting: ``seg_outputs.0`` reads ``x_0_5`` and is the one inference uses, ``seg_outputs.4`` reads
``x_0_1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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

POOLINGS = 5
"""The fork's nesting is written out for exactly five poolings."""


class UNetPlusPlus(nn.Module):
    """UNet++ with five poolings, two- or three-dimensional.

    Args:
        input_channels: channels of the image.
        base_features: features at full resolution; doubled per pooling up to ``max_features``.
        output_channels: classes, background included.
        pool_kernels: five poolings, each with one factor per spatial axis (1 = no pooling along it), finest first.
        conv_kernels: six kernels (1 or 3 per axis), finest first.
        convs_per_stage: convolutions per encoder stage and per node.
        max_features: feature cap; None takes the framework's (320 in 3D, 480 in 2D).
        deep_supervision: if True, ``forward`` returns all five heads.

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
        if len(pool_kernels) != POOLINGS:
            raise ValueError(f"UNet++ has exactly {POOLINGS} poolings, not {len(pool_kernels)}")
        if convs_per_stage < 2:
            raise ValueError(f"convs_per_stage must be at least 2, not {convs_per_stage}")
        self.deep_supervision = deep_supervision
        style = Style(dims, norm, activation, negative_slope, norm_last)
        cap = MAX_FEATURES[dims] if max_features is None else max_features
        features = feature_counts(base_features, POOLINGS + 1, cap)
        all_ups: list[nn.ModuleList] = []
        for diagonal in range(POOLINGS):
            nodes: list[nn.Module] = []
            ups: list[nn.Module] = []
            for k in range(POOLINGS - diagonal):
                level = POOLINGS - 1 - diagonal - k
                ups.append(style.up(features[level + 1], features[level], pool_kernels[level]))
                inputs = features[level] * (k + 2)
                # The node's kernel is counted from the coarsest end, so that the finest nodes use conv_kernels[1].
                kernel = conv_kernels[level + 1]
                nodes.append(decoder_block(style, inputs, features[level], kernel, convs_per_stage))
            self.add_module(f"loc{diagonal}", nn.ModuleList(nodes))
            all_ups.append(nn.ModuleList(ups))
        self.conv_blocks_context = encoder(style, input_channels, features, pool_kernels, conv_kernels, convs_per_stage)
        for diagonal, modules in enumerate(all_ups):  # after the encoder, as the checkpoints order their entries
            self.add_module(f"up{diagonal}", modules)
        self.seg_outputs = nn.ModuleList(
            style.head(features[0], output_channels, bias=head_bias) for _ in range(POOLINGS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits.

        Args:
            x: (n, c, y, x) or (n, c, z, y, x); every spatial size a multiple of its axis's pooling factors' product.

        Returns:
            (n, k, *spatial) from the final head; with ``deep_supervision`` a tuple of five such tensors, the final one
            first. No softmax.
        """
        rows: list[list[torch.Tensor]] = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            rows.append([x])
        heads: list[torch.Tensor] = []
        # Diagonal by diagonal, shallowest first: each one climbs from a coarse encoder stage to full resolution.
        for diagonal in reversed(range(POOLINGS)):
            nodes = cast("nn.ModuleList", getattr(self, f"loc{diagonal}"))
            ups = cast("nn.ModuleList", getattr(self, f"up{diagonal}"))
            for k, (node, up) in enumerate(zip(nodes, ups, strict=True)):
                level = POOLINGS - 1 - diagonal - k
                below = up(rows[level + 1][k])
                rows[level].append(node(torch.cat([*rows[level], below], dim=1)))
            if self.deep_supervision or diagonal == 0:
                heads.insert(0, self.seg_outputs[diagonal](rows[0][-1]))
        return tuple(heads) if self.deep_supervision else heads[0]
