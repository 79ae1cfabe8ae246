"""The heads of a RefineMask: region proposals, boxes, masks. Attribute names are part of the checkpoint format."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from offline_infer.checkpoints.mmdet.settings import MaskHeadSettings, RefineMaskSettings
from offline_infer.networks.refinemask.backbone import ConvModule, Masks, masked, repeat_border
from offline_infer.networks.refinemask.boxes import pyramid_level
from offline_infer.networks.refinemask.operators import roi_align
from offline_infer.networks.refinemask.refinement import enlarged

BOX_SIZE = 7
"""Side of the features the box head sees."""
REGION_STRIDES = (4, 8, 16, 32)
"""Strides of the pyramid levels that regions take features from."""


def region_features(levels: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Features (n, c, size, size) of boxes (n, 4), each from the pyramid level of its size; zeros for one without area.

    Every level is asked about every box, but about one without area where the box belongs to another level: that costs
    little and keeps all shapes independent of the data.
    """
    level = pyramid_level(boxes, len(REGION_STRIDES))
    found = torch.zeros(1)
    for index, stride in enumerate(REGION_STRIDES):
        mine = (level == index)[:, None]
        found = found + roi_align(levels[index], torch.where(mine, boxes, torch.zeros(1)), 1 / stride, size)
    return found


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor."""

    def __init__(self, settings: RefineMaskSettings) -> None:
        super().__init__()
        anchors = len(settings.anchors.ratios)
        self.rpn_conv = nn.Conv2d(settings.pyramid_width, settings.proposal_width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(settings.proposal_width, anchors, 1)
        self.rpn_reg = nn.Conv2d(settings.proposal_width, 4 * anchors, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(1, c, y, x) -> logits (1, ratios, y, x) and deltas (1, 4 * ratios, y, x)."""
        hidden = functional.relu(self.rpn_conv(features))
        return self.rpn_cls(hidden), self.rpn_reg(hidden)


class BoxHead(nn.Module):
    """Class scores and per-class box deltas of every region."""

    def __init__(self, settings: RefineMaskSettings) -> None:
        super().__init__()
        width = settings.box_width
        self.fc_cls = nn.Linear(width, settings.classes + 1)
        self.fc_reg = nn.Linear(width, 4 * settings.classes)
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(settings.pyramid_width * BOX_SIZE * BOX_SIZE, width), nn.Linear(width, width)]
        )

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(n, c, 7, 7) -> logits (n, classes + 1), background last, and deltas (n, 4 * classes)."""
        hidden = regions.flatten(1)
        for layer in self.shared_fcs:
            hidden = functional.relu(layer(hidden))
        return self.fc_cls(hidden), self.fc_reg(hidden)


class Fusion(nn.Module):
    """Three dilated 3x3 convolutions side by side, summed, and a 1x1 convolution."""

    def __init__(self, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        for index, dilation in enumerate(dilations):
            self.add_module(f"dilation_conv_{index + 1}", ConvModule(width, width, 3, dilation=dilation))
        self.merge_conv = ConvModule(width, width, 1, relu=False)
        self._branches = len(dilations)

    def forward(self, x: Tensor) -> Tensor:
        total = self.dilation_conv_1(x)  # type: ignore[operator]
        for index in range(2, self._branches + 1):
            total = total + getattr(self, f"dilation_conv_{index}")(x)
        merged: Tensor = self.merge_conv(total)
        return merged


class FusionStage(nn.Module):
    """One stage: predicts a mask from its input and hands features of twice the size to the next."""

    def __init__(self, width: int, next_width: int, size: int, classes: int, settings: MaskHeadSettings) -> None:
        super().__init__()
        self.semantic_transform_in = nn.Conv2d(settings.semantic_width, width, 1)
        self.semantic_transform_out = nn.Conv2d(width, width, 1)
        self.instance_logits = nn.Conv2d(width, classes, 1)
        self.fuse_conv = nn.ModuleList([nn.Conv2d(2 * width + 2, width, 1), Fusion(width, settings.dilations)])
        self.fuse_transform_out = nn.Conv2d(width, next_width - 2, 1)
        self._size, self._scale = size, 1 / settings.semantic_stride

    def forward(
        self, instance: Tensor, semantic: Tensor, semantic_mask: Tensor, regions: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The stage's logits and the next stage's features.

        Args:
            instance: (n, width, s, s).
            semantic: (1, c, y, x) features of the semantic branch.
            semantic_mask: (1, 1, y, x) probabilities.
            regions: (n, 4) boxes.
            labels: (n,) int64.

        Returns:
            (n, 1, s, s) and (n, next width, 2 s, 2 s).
        """
        own = roi_align(functional.relu(self.semantic_transform_in(semantic)), regions, self._scale, self._size)
        own = functional.relu(self.semantic_transform_out(own))
        logits = class_logits(self.instance_logits, instance, labels)
        masks = torch.cat([logits.sigmoid(), roi_align(semantic_mask, regions, self._scale, self._size)], dim=1)
        fused = torch.cat([instance, own, masks], dim=1)
        for layer in self.fuse_conv:
            fused = functional.relu(layer(fused))
        fused = functional.relu(self.fuse_transform_out(fused))
        # Features are enlarged with half-pixel centres, masks with aligned corners: so the network was trained.
        fused = functional.interpolate(fused, scale_factor=2.0, mode="bilinear", align_corners=False)
        return logits, torch.cat([functional.relu(fused), enlarged(masks)], dim=1)


class MaskHead(nn.Module):
    """The multi-stage mask head with its semantic branch."""

    def __init__(self, settings: MaskHeadSettings, pyramid_width: int) -> None:
        super().__init__()
        self.instance_convs = _convs(pyramid_width, settings.instance_width, settings.instance_convs)
        self.semantic_convs = _convs(pyramid_width, settings.semantic_width, settings.semantic_convs)
        self.stages = nn.ModuleList()
        width = settings.instance_width
        for size, classes in zip(settings.stage_sizes[:-1], settings.stage_classes[:-1], strict=True):
            self.stages.append(FusionStage(width, width // 2, size, classes, settings))
            width //= 2
        self.final_instance_logits = nn.Conv2d(width, settings.stage_classes[-1], 1)
        self.semantic_logits = nn.Conv2d(settings.semantic_width, 1, 1)
        self._stride = settings.semantic_stride

    def semantic(self, finest: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The semantic branch on the finest pyramid level: features (1, c, y, x) and logits (1, 1, y, x)."""
        features = finest
        for conv in self.semantic_convs:
            features = conv(masked(features, self._stride, masks))
        logits: Tensor = self.semantic_logits(features)
        return features, logits

    def forward(self, instance: Tensor, finest: Tensor, regions: Tensor, labels: Tensor, masks: Masks) -> list[Tensor]:
        """Logits (n, 1, s, s) of every stage.

        Args:
            instance: (n, c, s, s) features of the regions, s of the first stage.
            finest: (1, c, y, x), the finest pyramid level.
            regions: (n, 4) boxes; labels: (n,) int64.
            masks: of a canvas, else empty.
        """
        for conv in self.instance_convs:
            instance = conv(instance)
        semantic, semantic_logits = self.semantic(finest, masks)
        semantic_mask = semantic_logits.sigmoid()
        if masks:
            mask = masks[self._stride]
            semantic = repeat_border(semantic * mask, mask)
            semantic_mask = repeat_border(semantic_mask * mask, mask)
        found = []
        for stage in self.stages:
            logits, instance = stage(instance, semantic, semantic_mask, regions, labels)
            found.append(logits)
        found.append(class_logits(self.final_instance_logits, instance, labels))
        return found


def class_logits(layer: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Each region's logits for its own class only: (n, c, s, s) -> (n, 1, s, s).

    The same sums as the full 1x1 convolution followed by a choice of one channel, without the other classes' work. A
    layer with one channel ignores the class.
    """
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    chosen = labels if layer.out_channels > 1 else labels * 0
    weight = layer.weight.flatten(1)[chosen]  # (n, c)
    bias = layer.bias[chosen]
    size = features.shape[-1]
    flat = torch.matmul(weight[:, None, :], features.flatten(2))  # (n, 1, s * s)
    return (flat + bias[:, None, None]).reshape(-1, 1, size, size)


def _convs(inputs: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(ConvModule(inputs if index == 0 else width, width, 3) for index in range(count))
