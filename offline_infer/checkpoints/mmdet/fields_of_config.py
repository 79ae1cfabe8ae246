"""The few fields of an mmdetection configuration that inference depends on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from offline_infer.checkpoints.fields import Fields
from offline_infer.checkpoints.mmdet.settings import (
    AnchorSettings,
    DetectionSettings,
    ImageSettings,
    MaskHeadSettings,
    ProposalSettings,
    RefineMaskSettings,
)
from offline_infer.errors import CheckpointError


def read_settings(config: Fields) -> RefineMaskSettings:
    """The network.

    Raises:
        CheckpointError: another kind of network, or an option that changes the answer and is not supported.
    """
    model = config.fields("model")
    backbone, neck, rpn = model.fields("backbone"), model.fields("neck"), model.fields("rpn_head")
    roi = model.fields("roi_head")
    if not isinstance(roi.raw("bbox_head"), dict):
        raise CheckpointError(f"{roi.origin}: bbox_head is a list; cascades of box heads are not supported")
    box = roi.fields("bbox_head")
    _expect(backbone, {"type": "ResNet", "style": "pytorch", "num_stages": 4, "dcn": None, "plugins": None})
    _expect(neck, {"type": "FPN", "num_outs": 5, "add_extra_convs": False})
    _expect(rpn, {"type": "RPNHead"})
    _expect(box, {"type": "Shared2FCBBoxHead", "reg_class_agnostic": False, "roi_feat_size": 7})
    anchors = rpn.fields("anchor_generator")
    scales = anchors.numbers("scales")
    if len(scales) != 1:
        raise CheckpointError(f"{anchors.origin}: {len(scales)} scales; RefineMask has one")
    return RefineMaskSettings(
        depth=backbone.integer("depth"),
        base_width=backbone.integer("base_channels", 64),
        pyramid_width=neck.integer("out_channels"),
        proposal_width=rpn.integer("feat_channels", 256),
        box_width=box.integer("fc_out_channels", 1024),
        classes=box.integer("num_classes"),
        box_deviations=box.fields("bbox_coder").numbers("target_stds"),
        anchors=AnchorSettings(scales[0], anchors.numbers("ratios"), anchors.integers("strides")),
        proposals=_proposals(_test_settings(config, model).fields("rpn")),
        detections=_detections(_test_settings(config, model).fields("rcnn")),
        mask_head=_mask_head(roi.fields("mask_head")),
    )


def read_image_settings(config: Fields) -> ImageSettings:
    """How images are prepared.

    Raises:
        CheckpointError: no test pipeline, or one with steps that are not supported.
    """
    pipeline = _pipeline(config)
    scaling = _step(pipeline, "MultiScaleFlipAug", config.origin)
    if scaling.raw("flip", False):
        raise CheckpointError(f"{scaling.origin}: flip is on; only inference on the image as it is is supported")
    scale: Any = scaling.raw("img_scale")
    if isinstance(scale, list) and len(scale) == 1:
        scale = scale[0]
    if not isinstance(scale, (list, tuple)) or len(scale) != 2:
        raise CheckpointError(f"{scaling.origin}: img_scale is {scale!r}; expected two numbers")
    sides = Fields({"img_scale": scale}, scaling.origin).integers("img_scale")
    transforms = scaling.raw("transforms")
    resize, normal = (_step(transforms, kind, scaling.origin) for kind in ("Resize", "Normalize"))
    pad = _step(transforms, "Pad", scaling.origin)
    _expect(resize, {"keep_ratio": True})
    _expect(normal, {"to_rgb": True})
    mean, std = normal.numbers("mean"), normal.numbers("std")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or min(sides) <= 0:
        raise CheckpointError(f"{normal.origin}: expected three means and three positive deviations")
    threshold = _test_settings(config, config.fields("model")).fields("rcnn").number("mask_thr_binary", 0.5)
    _expect(pad, {"size_divisor": 32})
    return ImageSettings(max(sides), min(sides), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), 32, threshold)


def _proposals(rpn: Fields) -> ProposalSettings:
    _expect(rpn, {"nms_across_levels": False, "min_bbox_size": 0})
    return ProposalSettings(
        rpn.integer("nms_pre"), rpn.integer("nms_post" if "nms_post" in rpn else "max_num"), rpn.number("nms_thr")
    )


def _detections(rcnn: Fields) -> DetectionSettings:
    nms = rcnn.fields("nms")
    _expect(nms, {"type": "nms"})
    iou = nms.number("iou_threshold" if "iou_threshold" in nms else "iou_thr")
    return DetectionSettings(rcnn.number("score_thr"), iou, rcnn.integer("max_per_img"))


def _mask_head(head: Fields) -> MaskHeadSettings:
    kind = head.text("type")
    if kind != "RefineMaskHead":
        raise CheckpointError(f"{head.origin}: type is {kind!r}; only RefineMaskHead is supported")
    # The code's own default is False, which no published configuration uses.
    _expect(head, {"mask_use_sigmoid": True}, absent=False)
    _expect(head, {"fusion_type": "MultiBranchFusion", "conv_kernel_size_instance": 3, "conv_kernel_size_semantic": 3})
    if "upsample_cfg" in head:
        _expect(head.fields("upsample_cfg"), {"type": "bilinear", "scale_factor": 2})
    sizes, classes = head.integers("stage_sup_size"), head.integers("stage_num_classes")
    if len(sizes) < 3 or len(sizes) != len(classes) or any(b != 2 * a for a, b in pairwise(sizes)):
        raise CheckpointError(f"{head.origin}: stage_sup_size {sizes} and stage_num_classes {classes} do not fit")
    return MaskHeadSettings(
        instance_convs=head.integer("num_convs_instance", 2),
        semantic_convs=head.integer("num_convs_semantic", 4),
        instance_width=head.integer("conv_out_channels_instance", 256),
        semantic_width=head.integer("conv_out_channels_semantic", 256),
        stage_sizes=sizes,
        stage_classes=classes,
        dilations=head.integers("dilations") if "dilations" in head else (1, 3, 5),
        semantic_stride=_four(head),
    )


def _four(head: Fields) -> int:
    stride = head.integer("semantic_out_stride", 4)
    if stride != 4:
        raise CheckpointError(f"{head.origin}: semantic_out_stride is {stride}; only 4 is supported")
    return stride


def _test_settings(config: Fields, model: Fields) -> Fields:
    """``test_cfg``, which older configurations keep beside the model and newer ones inside it."""
    return config.fields("test_cfg") if "test_cfg" in config else model.fields("test_cfg")


def _pipeline(config: Fields) -> Any:
    if "data" in config and "test" in config.fields("data"):
        return config.fields("data").fields("test").raw("pipeline")
    return config.raw("test_pipeline")


def _step(steps: Any, kind: str, origin: str) -> Fields:
    """The step of that type of a pipeline."""
    for step in steps if isinstance(steps, (list, tuple)) else ():
        if isinstance(step, dict) and step.get("type") == kind:
            return Fields(step, f"{origin}, {kind}")
    raise CheckpointError(f"{origin}: the test pipeline has no {kind} step")


def _expect(fields: Fields, wanted: dict[str, Any], *, absent: bool = True) -> None:
    """Refuse options that change the answer in ways that are not built."""
    for key, value in wanted.items():
        if (key not in fields and absent) or (key in fields and fields.raw(key) == value):
            continue
        found = repr(fields.raw(key, "missing"))[:60]
        raise CheckpointError(f"{fields.origin}: {key} is {found}; only {value!r} is supported")
