"""What a detector needs beyond torch's own operators: RoIAlign, non-maximum suppression, a stable top-k.

Each is a plain torch function for the reference run and one node of ONNX's standard operator set in an exported graph,
so neither route needs torchvision or mmcv.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SAMPLES_AT_ONCE = 1 << 24  # interpolated values held at once by RoIAlign (float32: 64 MiB)


def roi_align(features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
    """RoIAlign with half-pixel alignment and as many samples per bin as it has feature pixels, averaged.

    Source: He et al., Mask R-CNN (2017), section 3; the half-pixel variant of detectron2 ("aligned"). A box without
    area gives zeros.

    Args:
        features: (1, c, y, x).
        boxes: (n, 4) x0, y0, x1, y1 on the image's scale.
        scale: feature pixels per image pixel.
        size: side of the square result.

    Returns:
        (n, c, size, size).
    """
    # Engines disagree about a box without area (some answer 0/0), so none is asked about one.
    usable = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))[:, None]
    result: Tensor = _RoiAlign.apply(  # type: ignore[no-untyped-call]
        features, torch.where(usable, boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]])), scale, size
    )
    return torch.where(usable[:, :, None, None], result, torch.zeros(1))


def keep_best(boxes: Tensor, scores: Tensor, iou: float, lowest: float, limit: int) -> Tensor:
    """Greedy non-maximum suppression, separately for every class.

    Args:
        boxes: (classes, n, 4) x0, y0, x1, y1.
        scores: (classes, n); those not above ``lowest`` are left out.
        iou: a box that overlaps a better one of its class by more than this is dropped.
        limit: most boxes of one class.

    Returns:
        (kept, 2) int64: class and index of the boxes that stay, best first within a class.
    """
    result: Tensor = _NonMaxSuppression.apply(boxes, scores, iou, lowest, limit)  # type: ignore[no-untyped-call]
    return result


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of at least as many scores (n,), descending, and their indices; of equal ones the earlier."""
    values, indices = _Top.apply(scores, count)  # type: ignore[no-untyped-call]
    return values, indices


class _RoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
        return _align(features[0], boxes, scale, size)

    @staticmethod
    def symbolic(g: Any, features: Any, boxes: Any, scale: float, size: int) -> Any:
        # Every box belongs to image 0: as many zeros as there are boxes.
        zero = g.op("Constant", value_t=torch.zeros(1, dtype=torch.int64))
        one = g.op("Constant", value_t=torch.ones(1, dtype=torch.int64))
        count = g.op("Slice", g.op("Shape", boxes), zero, one)
        images = g.op("Expand", zero, count)
        return g.op(
            "RoiAlign",
            features,
            boxes,
            images,
            coordinate_transformation_mode_s="half_pixel",
            mode_s="avg",
            output_height_i=size,
            output_width_i=size,
            sampling_ratio_i=0,
            spatial_scale_f=scale,
        )


class _NonMaxSuppression(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float, lowest: float, limit: int) -> Tensor:
        rows = [
            torch.stack([torch.full_like(kept, index), kept], dim=1)
            for index, (own, ranks) in enumerate(zip(boxes, scores, strict=True))
            for kept in [_suppress(own, ranks, iou, lowest, limit)]
        ]
        return torch.cat(rows)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou: float, lowest: float, limit: int) -> Any:
        # ONNX shares boxes between classes; here every class has its own, so classes take the place of images.
        axes = g.op("Constant", value_t=torch.tensor([1]))
        selected = g.op(
            "NonMaxSuppression",
            boxes,
            g.op("Unsqueeze", scores, axes),
            g.op("Constant", value_t=torch.tensor([limit])),
            g.op("Constant", value_t=torch.tensor([iou], dtype=torch.float32)),
            g.op("Constant", value_t=torch.tensor([lowest], dtype=torch.float32)),
        )
        return g.op("Gather", selected, g.op("Constant", value_t=torch.tensor([0, 2])), axis_i=1)


class _Top(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        ordered = torch.sort(scores, descending=True, stable=True)
        return ordered.values[:count].clone(), ordered.indices[:count].clone()

    @staticmethod
    def symbolic(g: Any, scores: Any, count: int) -> Any:
        wanted = g.op("Constant", value_t=torch.tensor([count]))
        return g.op("TopK", scores, wanted, axis_i=0, largest_i=1, sorted_i=1, outputs=2)


# ---- plain torch -----------------------------------------------------------------------------------------------------


def _align(features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
    """See :func:`roi_align`; ``features`` (c, y, x)."""
    channels, height, width = features.shape
    result = features.new_zeros((len(boxes), channels, size, size))
    corners = boxes * scale - 0.5
    bins = (corners[:, 2:] - corners[:, :2]) / size  # (n, 2): width and height of a bin
    counts = torch.ceil(bins).clamp(min=0).to(torch.int64)
    for across, down in torch.unique(counts, dim=0).tolist():
        if across == 0 or down == 0:
            continue
        mine = torch.nonzero((counts[:, 0] == across) & (counts[:, 1] == down))[:, 0]
        step = max(1, _SAMPLES_AT_ONCE // (channels * size * size * across * down))
        for chosen in torch.split(mine, step):
            x = _samples(corners[chosen, 0], bins[chosen, 0], size, across, width)
            y = _samples(corners[chosen, 1], bins[chosen, 1], size, down, height)
            sampled = _interpolate(features, y, x)  # (c, n, size * down, size * across)
            binned = sampled.reshape(channels, len(chosen), size, down, size, across).mean(dim=(3, 5))
            result[chosen] = binned.transpose(0, 1)
    return result


def _samples(start: Tensor, bin_size: Tensor, size: int, count: int, extent: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower neighbour, weight of the upper one, and whether a sample counts; each (n, size * count)."""
    offsets = torch.arange(size)[:, None] + (torch.arange(count)[None, :] + 0.5) / count
    position = start[:, None] + bin_size[:, None] * offsets.reshape(1, -1)
    inside = (position >= -1) & (position <= extent)
    clamped = position.clamp(0, extent - 1)
    lower = clamped.floor().clamp(max=max(extent - 2, 0))
    return lower.to(torch.int64), clamped - lower, inside


def _interpolate(features: Tensor, y: tuple[Tensor, Tensor, Tensor], x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Bilinear samples on the grid of n lists of rows and columns: (c, n, rows, columns)."""
    (top_row, down, y_inside), (left, right, x_inside) = y, x
    rows, columns = top_row[:, :, None], left[:, None, :]
    next_row = (rows + 1).clamp(max=features.shape[1] - 1)
    next_column = (columns + 1).clamp(max=features.shape[2] - 1)
    down, right = down[:, :, None], right[:, None, :]
    above = features[:, rows, columns] * (1 - right) + features[:, rows, next_column] * right
    below = features[:, next_row, columns] * (1 - right) + features[:, next_row, next_column] * right
    return (above * (1 - down) + below * down) * (y_inside[:, :, None] & x_inside[:, None, :])


def _suppress(boxes: Tensor, scores: Tensor, iou: float, lowest: float, limit: int) -> Tensor:
    """Indices of the boxes (n, 4) of one class that stay, best first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[scores[order] > lowest]
    own = boxes[order]
    area = (own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1])
    alive = torch.ones(len(order), dtype=torch.bool)
    kept: list[int] = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == limit:
            break
        rest = own[index + 1 :]
        low = torch.maximum(own[index, :2], rest[:, :2])
        high = torch.minimum(own[index, 2:], rest[:, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        # A box without area has an intersection of 0 with every other: it is never dropped and drops none.
        overlap = shared / (area[index] + area[index + 1 :] - shared)
        alive[index + 1 :] &= ~(overlap > iou)
    return order[torch.tensor(kept, dtype=torch.int64)]
