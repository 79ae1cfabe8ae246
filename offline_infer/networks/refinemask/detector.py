"""RefineMask as one network: an image in, boxes with scores, labels and mask logits out.

Source: Zhang et al., RefineMask: Towards High-Quality Instance Segmentation with Fine-Grained Features (2021), as the
authors' code behaves at test time. Boxes stay on the scale of the network's input: dividing them by the scale factor
changes no overlap, so that is left to whoever pastes the masks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from offline_infer.checkpoints.mmdet.settings import RefineMaskSettings
from offline_infer.networks.refinemask.backbone import (
    FeaturePyramid,
    Masks,
    ResNet,
    canvas_masks,
    repeat_border,
)
from offline_infer.networks.refinemask.boxes import base_anchors, decode, grid_anchors
from offline_infer.networks.refinemask.heads import (
    BOX_SIZE,
    REGION_STRIDES,
    BoxHead,
    MaskHead,
    ProposalHead,
    region_features,
)
from offline_infer.networks.refinemask.operators import keep_best, top
from offline_infer.networks.refinemask.refinement import refine

DIVISOR = 32
"""The input's sides are multiples of this."""
ABSENT = -1.0
"""Score of a row that stands for nothing."""


class Detections(NamedTuple):
    """At least one row, best first; rows with a score of 0 or less stand for nothing.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 on the input's scale.
        scores: (n,).
        labels: (n,) int64, from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class RoiHead(nn.Module):
    """Holds the two heads under the names of the checkpoint."""

    def __init__(self, settings: RefineMaskSettings) -> None:
        super().__init__()
        self.bbox_head = BoxHead(settings)
        self.mask_head = MaskHead(settings.mask_head, settings.pyramid_width)


class RefineMask(nn.Module):
    """The detector.

    Args:
        settings: widths and thresholds.

    Attributes:
        canvas: the input may be larger than the padded image it holds; features of the empty part are masked, so that
            the answers stay those of the exact size. Costs a few per cent.
        every_row: always work on as many regions as there may be, for devices that need every shape fixed.
    """

    def __init__(self, settings: RefineMaskSettings) -> None:
        super().__init__()
        width = settings.base_width
        self.backbone = ResNet(settings.depth, width)
        self.neck = FeaturePyramid(tuple(4 * (width << index) for index in range(4)), settings.pyramid_width)
        self.rpn_head = ProposalHead(settings)
        self.roi_head = RoiHead(settings)
        self.settings = settings
        self.canvas = False
        self.every_row = False

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect and segment.

        Args:
            image: (1, 4, y, x): normalised red, green and blue, zero on the padding, and a channel that is 1 on the
                image and 0 on the padding. Both sides are multiples of 32.

        Returns:
            dets: (k, 5) x0, y0, x1, y1 on the input's scale and the score, best first; rows of zeros fill it up.
            labels: (k,) int64 from 0; masks: (k, m, m) logits.
        """
        size = image_size(image)
        masks = canvas_masks(image[:, 3:], DIVISOR) if self.canvas else {}
        levels = self.features(image, masks)
        proposals, ranks = self.propose(levels, size, masks)
        regions = self.region_levels(levels, masks)
        found = self.detect(regions, proposals, ranks, size)
        logits = refine(self.mask_stages(regions, levels[0], found, masks))[:, 0]
        return self._fill(found, logits)

    def features(self, image: Tensor, masks: Masks) -> list[Tensor]:
        """The feature pyramid's five levels, finest first."""
        levels: list[Tensor] = self.neck(self.backbone(image[:, :3], masks), masks)
        return levels

    def region_levels(self, levels: list[Tensor], masks: Masks) -> list[Tensor]:
        """The levels regions take features from."""
        chosen = list(zip(REGION_STRIDES, levels, strict=False))
        return [repeat_border(own, masks[stride]) if masks else own for stride, own in chosen]

    def propose(self, levels: list[Tensor], size: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Regions that may hold an object: boxes (n, 4) and scores (n,), best first.

        Args:
            levels: the feature pyramid.
            size: width and height of the image without its padding.
            masks: of a canvas, else empty.
        """
        wanted, anchors = self.settings.proposals, self.settings.anchors
        boxes, scores, spots = [], [], []
        for index, (stride, features) in enumerate(zip(anchors.strides, levels, strict=True)):
            logits, deltas = self.rpn_head(features)
            # The sigmoid written out: engines' own flush small values to zero, and the order among those still counts.
            ranks = 1 / (1 + torch.exp(-logits.permute(0, 2, 3, 1)))
            if masks:
                ranks = torch.where(masks[stride].permute(0, 2, 3, 1) > 0, ranks, torch.tensor(ABSENT))
            # Fillers first see to it that there are enough; they rank below every anchor.
            ranks = torch.cat([ranks.reshape(-1), torch.full((wanted.before_nms,), ABSENT)])
            own = grid_anchors(base_anchors(anchors, stride), features, stride)
            own = torch.cat([own, torch.zeros(wanted.before_nms, 4)])
            moves = torch.cat([deltas.permute(0, 2, 3, 1).reshape(-1, 4), torch.zeros(wanted.before_nms, 4)])
            best, chosen = top(ranks, wanted.before_nms)
            boxes.append(decode(own[chosen], moves[chosen], size))
            scores.append(best)
            spots.append(torch.full((wanted.before_nms,), float(index)))
        candidates, ranks = torch.cat(boxes), torch.cat(scores)
        # Boxes of different levels do not compete: each level is moved to a place of its own.
        apart = candidates + (torch.cat(spots) * (candidates.max() + 1))[:, None]
        kept = keep_best(apart[None], ranks[None], wanted.iou, ABSENT / 2, wanted.after_nms)[:, 1]
        if self.every_row:
            kept = torch.cat([kept, torch.full((wanted.after_nms,), len(candidates), dtype=torch.int64)])
            kept = kept[: wanted.after_nms]
        candidates = torch.cat([candidates, torch.zeros(1, 4)])
        ranks = torch.cat([ranks, torch.tensor([ABSENT])])
        return candidates[kept], ranks[kept]

    def classify(self, regions: list[Tensor], proposals: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, classes, 4), clipped to the image, and probabilities (n, classes + 1) of every proposal."""
        logits, deltas = self.roi_head.bbox_head(region_features(regions, proposals, BOX_SIZE))
        deviations = torch.tensor(self.settings.box_deviations)
        moves = deltas.reshape(-1, self.settings.classes, 4) * deviations
        return decode(proposals[:, None, :], moves, size), logits.softmax(dim=1)

    def detect(self, regions: list[Tensor], proposals: Tensor, ranks: Tensor, size: Tensor) -> Detections:
        """What is found, best first; see :class:`Detections`."""
        wanted = self.settings.detections
        boxes, probabilities = self.classify(regions, proposals, size)
        # A filler among the proposals detects nothing.
        probabilities = torch.where(ranks[:, None] >= 0, probabilities, torch.zeros(1))
        scores = probabilities[:, :-1].transpose(0, 1)  # (classes, n)
        by_class = boxes.transpose(0, 1)
        kept = keep_best(by_class, scores, wanted.iou, wanted.score, wanted.limit)
        labels, rows = kept[:, 0], kept[:, 1]
        count = proposals.shape[0]
        place = labels * count + rows
        found_boxes = torch.cat([by_class.reshape(-1, 4)[place], torch.zeros(wanted.limit, 4)])
        found_scores = torch.cat([scores.reshape(-1)[place], torch.zeros(wanted.limit)])
        found_labels = torch.cat([labels, torch.zeros(wanted.limit, dtype=torch.int64)])
        best, order = top(found_scores, wanted.limit)
        if not self.every_row:
            # One row always stays: no engine is asked to work on nothing.
            some = torch.cat([torch.ones(1, dtype=torch.bool), best[1:] > 0])
            rows = torch.nonzero(some)[:, 0]
            best, order = best[rows], order[rows]
        return Detections(found_boxes[order], best, found_labels[order])

    def mask_stages(self, regions: list[Tensor], finest: Tensor, found: Detections, masks: Masks) -> list[Tensor]:
        """Logits (n, 1, s, s) of every stage, before refinement."""
        size = self.settings.mask_head.stage_sizes[0]
        instance = region_features(regions, found.boxes, size)
        stages: list[Tensor] = self.roi_head.mask_head(instance, finest, found.boxes, found.labels, masks)
        return stages

    def _fill(self, found: Detections, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three outputs, filled up to the largest number of detections."""
        limit = self.settings.detections.limit
        real = found.scores > 0
        dets = torch.cat([found.boxes, found.scores[:, None]], dim=1)
        dets = torch.where(real[:, None], dets, torch.zeros(1))
        side = self.settings.mask_head.stage_sizes[-1]
        return (
            torch.cat([dets, torch.zeros(limit, 5)])[:limit],
            torch.cat([found.labels, torch.zeros(limit, dtype=torch.int64)])[:limit],
            torch.cat([logits, torch.zeros(limit, side, side)])[:limit],
        )


def image_size(image: Tensor) -> Tensor:
    """Width and height (2,) of the image without its padding, from the input's fourth channel."""
    return torch.stack([image[0, 3, 0, :].sum(), image[0, 3, :, 0].sum()])
