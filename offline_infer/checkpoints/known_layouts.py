"""What an unknown checkpoint probably is, by the names of its weights: for messages that say what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_OWN = "export it from a Python file that builds the network (offline-infer export mymodel.py --weights FILE)"
_GRAPH = "export it to ONNX with its own tools and adopt the graph (offline-infer adopt MODEL.onnx)"

_LAYOUTS: tuple[tuple[str, str, str], ...] = (
    (r"roi_heads\.mask_predictor\.", "a Mask R-CNN of torchvision", ""),
    (r"roi_heads\.box_predictor\.|backbone\.body\.", "a detector of torchvision without masks", _GRAPH),
    (r"proposal_generator\.|roi_heads\.(mask|box)_head\.", "a detector of detectron2", _GRAPH),
    (r"roi_head\.mask_head\.", "a detector of mmdetection with another mask head than RefineMask's", _GRAPH),
    (r"roi_head\.bbox_head\.|rpn_head\.", "a detector of mmdetection without masks", _GRAPH),
    (r"(mask_head|bbox_head)\.", "a one-stage detector of mmdetection", _GRAPH),
    (r"model\.\d+\.(cv|m|conv|proto)", "a network of Ultralytics", _GRAPH),
    (
        r"conv_blocks_context\.|seg_outputs\.",
        "a network of nnU-Net v1",
        "give the model folder it comes from, with plans.pkl",
    ),
    (
        r"encoder\.stages\.|decoder\.seg_layers\.",
        "a network of nnU-Net v2",
        "give the model folder it comes from, with plans.json, dataset.json and fold_0",
    ),
    (r"image_encoder\.|mask_decoder\.", "a Segment Anything model", _OWN),
    (r"decode_head\.", "a semantic segmentation network of mmsegmentation", _OWN),
    (r"segmentation_head\.", "a network of segmentation_models_pytorch", _OWN),
    (r"transformer\.(encoder|decoder)\.|query_embed", "a detector of the DETR family", _GRAPH),
    (r"(patch_embed|cls_token|blocks\.\d+\.attn)", "a vision transformer", _OWN),
    (r"layer[1-4]\.\d+\.conv1\.", "a ResNet without a head that this program knows", _OWN),
)
"""(what a weight's name begins with, what has such weights, what to do with it), the most telling first."""


def describe(names: Iterable[str]) -> tuple[str, str]:
    """What has weights of these names, and what to do with it.

    Returns:
        such as ``("a detector of detectron2", "export it to ONNX ...")``; of an unknown one the first names.
    """
    listed = list(names)
    for pattern, kind, advice in _LAYOUTS:
        if any(re.match(pattern, name) for name in listed):
            return kind, advice
    first = ", ".join(name[:60] for name in listed[:3])
    return f"an unknown network ({len(listed)} weights: {first}, ...)", f"{_OWN}, or {_GRAPH}"
