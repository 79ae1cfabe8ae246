"""Boxes: anchors, deltas, pyramid levels. All on the network's scale, x0, y0, x1, y1 in pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offline_infer.checkpoints.mmdet.settings import AnchorSettings

MAX_STRETCH = abs(math.log(16 / 1000))
"""Largest change of a side's logarithm that a delta may ask for."""
FINEST_SCALE = 56.0
"""Boxes whose side (square root of the area) is below twice this take features from the finest pyramid level."""


def base_anchors(settings: AnchorSettings, stride: int) -> Tensor:
    """Anchors (ratios, 4) of the cell at the origin: centred on its top-left corner, not rounded."""
    side = settings.scale * stride
    ratios = torch.tensor(settings.ratios, dtype=torch.float32)
    stretch = torch.sqrt(ratios)
    half_width, half_height = side / stretch / 2, side * stretch / 2
    return torch.stack([-half_width, -half_height, half_width, half_height], dim=1)


def grid_anchors(base: Tensor, features: Tensor, stride: int) -> Tensor:
    """Anchors (y * x * ratios, 4) of a feature map (1, c, y, x), row by row."""
    rows = torch.arange(features.shape[2], dtype=torch.float32) * stride
    columns = torch.arange(features.shape[3], dtype=torch.float32) * stride
    y = rows[:, None] + torch.zeros_like(columns)[None, :]
    x = columns[None, :] + torch.zeros_like(rows)[:, None]
    shifts = torch.stack([x, y, x, y], dim=2)
    return (shifts[:, :, None, :] + base).reshape(-1, 4)


def decode(boxes: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Move boxes by a network's deltas and clip them to the image.

    Source: Girshick et al., R-CNN (2014), appendix C.

    Args:
        boxes: (n, 4), or (n, 1, 4) to move each by several deltas.
        deltas: (n, 4) or (n, k, 4), already multiplied with their standard deviations: shift of the centre in units of
            the side, change of the side's logarithm.
        size: width, height of the image without its padding.

    Returns:
        boxes of the shape of ``deltas``.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    side = high - low
    centre = (low + high) * 0.5 + side * deltas[..., :2]
    half = side * deltas[..., 2:].clamp(-MAX_STRETCH, MAX_STRETCH).exp() * 0.5
    corners = torch.cat([centre - half, centre + half], dim=-1)
    return torch.minimum(corners.clamp(min=0), torch.cat([size, size]))


def pyramid_level(boxes: Tensor, levels: int) -> Tensor:
    """Pyramid level (n,) float32 a box takes its features from; source: Lin et al. (2017), equation 1."""
    side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return torch.floor(torch.log2(side / FINEST_SCALE + 1e-6)).clamp(0, levels - 1)
