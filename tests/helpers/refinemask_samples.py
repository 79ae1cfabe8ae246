"""A RefineMask small enough for a test, with weights that find something, and its checkpoint in mmdetection's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offline_infer.checkpoints.mmdet.settings import (
    DetectionSettings,
    ImageSettings,
    MaskHeadSettings,
    ProposalSettings,
    RefineMaskSettings,
)
from offline_infer.networks.refinemask import build_refinemask

CLASSES = ("disc", "square", "triangle")
SETTINGS = RefineMaskSettings(
    depth=50,
    base_width=4,
    pyramid_width=8,
    proposal_width=8,
    box_width=16,
    classes=len(CLASSES),
    proposals=ProposalSettings(60, 40, 0.7),
    detections=DetectionSettings(0.05, 0.5, 10),
    mask_head=MaskHeadSettings(2, 4, 32, 8, (14, 28, 56, 112), (3, 3, 3, 3)),
)
IMAGE = ImageSettings(long_side=128, short_side=96)


def tiny_network(seed: int = 0) -> Any:
    """A network with random weights, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    network = build_refinemask(SETTINGS)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.dim() > 1:
            fan = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5)
        elif name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            tensor.fill_(1.0)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return network


def config_text() -> str:
    """The configuration, as mmdetection would write it."""
    head = SETTINGS.mask_head
    return f"""
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=50, num_stages=4, base_channels={SETTINGS.base_width}, style='pytorch'),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels={SETTINGS.pyramid_width}, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=8, feat_channels={SETTINGS.proposal_width},
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])),
    roi_head=dict(type='RefineRoIHead',
        bbox_head=dict(type='Shared2FCBBoxHead', fc_out_channels={SETTINGS.box_width}, num_classes={SETTINGS.classes},
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]), reg_class_agnostic=False),
        mask_head=dict(type='RefineMaskHead', num_convs_instance=2, num_convs_semantic=4,
            conv_out_channels_instance={head.instance_width}, conv_out_channels_semantic={head.semantic_width},
            mask_use_sigmoid=True, stage_num_classes={list(head.stage_classes)}, stage_sup_size=[14, 28, 56, 112])))
test_cfg = dict(
    rpn=dict(nms_across_levels=False, nms_pre=60, nms_post=40, max_num=40, nms_thr=0.7, min_bbox_size=0),
    rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10, mask_thr_binary=0.5))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=({IMAGE.long_side}, {IMAGE.short_side}), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
        dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img'])])]
"""


def write_checkpoint(path: Path, *, config: str | None = None, classes: Any = CLASSES, seed: int = 0) -> Path:
    """A ``.pth`` of the tiny network."""
    meta = {"config": config_text() if config is None else config, "CLASSES": classes, "mmdet_version": "2.3.0"}
    torch.save({"meta": meta, "state_dict": tiny_network(seed).state_dict()}, path)
    return path


def sample_input(
    height: int = 90, width: int = 120, canvas: tuple[int, int] = (96, 128), seed: int = 1
) -> torch.Tensor:
    """A network input (1, 4, y, x): noise on the image, zeros on the padding, the fourth channel says which is which."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 4, *canvas)
    image[:, :3, :height, :width] = torch.randn(1, 3, height, width, generator=generator)
    image[:, 3, :height, :width] = 1
    return image
