"""Everything about a RefineMask that its weights do not say, and the widths that they do."""

from __future__ import annotations

from dataclasses import dataclass

RESNET_BLOCKS: dict[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth of a ResNet with bottleneck blocks -> blocks of its four stages."""


@dataclass(frozen=True)
class ProposalSettings:
    """How the region proposal network's answers become proposals.

    Attributes:
        before_nms: highest-scoring anchors of every pyramid level that are looked at.
        after_nms: proposals that are kept, of all levels together.
        iou: overlap at which the lower-scoring of two proposals is dropped.
    """

    before_nms: int = 1000
    after_nms: int = 1000
    iou: float = 0.7


@dataclass(frozen=True)
class DetectionSettings:
    """How the box head's answers become detections.

    Attributes:
        score: a detection's score is above this.
        iou: overlap at which the lower-scoring of two detections of one class is dropped.
        limit: most detections of an image.
    """

    score: float = 0.05
    iou: float = 0.5
    limit: int = 100


@dataclass(frozen=True)
class AnchorSettings:
    """Anchors of the region proposal network: squares of ``scale`` * stride, stretched to each ratio (height/width)."""

    scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class MaskHeadSettings:
    """The mask head.

    Attributes:
        instance_convs, semantic_convs: number of 3x3 convolutions before the first stage, per branch.
        instance_width, semantic_width: their features.
        stage_sizes: side of the mask in every stage, in pixels; each twice the one before.
        stage_classes: logit channels of every stage: the number of classes, or 1 for a mask that ignores the class.
        dilations: of the three parallel convolutions of a stage.
        semantic_stride: image pixels per pixel of the semantic branch.
    """

    instance_convs: int = 2
    semantic_convs: int = 4
    instance_width: int = 256
    semantic_width: int = 256
    stage_sizes: tuple[int, ...] = (14, 28, 56, 112)
    stage_classes: tuple[int, ...] = (80, 80, 80, 80)
    dilations: tuple[int, ...] = (1, 3, 5)
    semantic_stride: int = 4


@dataclass(frozen=True)
class RefineMaskSettings:
    """A RefineMask detector as plain numbers.

    Attributes:
        depth: of the ResNet: 50, 101 or 152.
        base_width: features of the ResNet's first convolution.
        pyramid_width: features of the feature pyramid.
        proposal_width: features of the region proposal network's hidden convolution.
        box_width: features of the box head's two fully connected layers.
        classes: number of classes, background not counted.
        box_deviations: standard deviations the box head's deltas are multiplied with (x, y, width, height).
    """

    depth: int = 50
    base_width: int = 64
    pyramid_width: int = 256
    proposal_width: int = 256
    box_width: int = 1024
    classes: int = 80
    box_deviations: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    anchors: AnchorSettings = AnchorSettings()
    proposals: ProposalSettings = ProposalSettings()
    detections: DetectionSettings = DetectionSettings()
    mask_head: MaskHeadSettings = MaskHeadSettings()


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes the network's input.

    Attributes:
        long_side, short_side: the image is scaled, keeping its aspect ratio, to the largest size at which its longer
            side is at most the first and its shorter side at most the second.
        mean, std: of the red, green and blue channel on the scale 0..255.
        divisor: zeros are added on the right and below up to a multiple of this.
        mask_threshold: a pixel belongs to an object where the interpolated probability is at least this.
    """

    long_side: int = 1333
    short_side: int = 800
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    divisor: int = 32
    mask_threshold: float = 0.5
