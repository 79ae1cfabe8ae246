"""Train the RefineMask that the instance demonstration uses, and write it as a bundle.

    python tools/make_instances_demo.py --minutes 18

The training set is drawn pictures (:mod:`offline_infer.tasks.instances.demo.shapes`) with seeds from 1 on; the
demonstration (from 9001 on) draws from none of them. The network is the published architecture, narrower: a ResNet-50
that begins with 8 channels instead of 64. It is trained from scratch in float32; the losses are those of Mask R-CNN and,
for every stage of the mask head, cross-entropy, as the paper describes them (without its weighting of boundaries).

The checkpoint is written in mmdetection's form with a configuration beside it, and goes the way of every RefineMask:
``export`` reads it, traces it, compares it with the network on every engine. The time budget steers the learning rate, so
two runs agree closely but not bit by bit; ``--resume`` trains a finished checkpoint further. The model in the package: seven
minutes, 400 pictures, before moved boxes were added to the examples of the box head.

Needs the ``export`` and ``instances`` extras.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from offline_infer.checkpoints.mmdet.settings import (
    DetectionSettings,
    ImageSettings,
    MaskHeadSettings,
    ProposalSettings,
    RefineMaskSettings,
)
from offline_infer.networks.refinemask import build_refinemask, heads, operators
from offline_infer.networks.refinemask.boxes import base_anchors, grid_anchors
from offline_infer.networks.refinemask.detector import RefineMask
from offline_infer.networks.refinemask.heads import BOX_SIZE, region_features
from offline_infer.tasks.instances.demo.shapes import CLASSES, SIZE, draw_scene
from offline_infer.tasks.instances.demonstration import BUNDLE
from offline_infer.tasks.instances.exporting import export_refinemask

TRAINED = (SIZE[0] // 2, SIZE[1] // 2)
"""Height and width of the network's input: pictures are drawn at half their size for training."""
IMAGE = ImageSettings(long_side=TRAINED[1], short_side=TRAINED[0])
HEIGHT, WIDTH = (-(-side // IMAGE.divisor) * IMAGE.divisor for side in TRAINED)
WIDTHS = MaskHeadSettings(2, 4, 32, 16, (14, 28, 56, 112), (len(CLASSES),) * 4)
SETTINGS = RefineMaskSettings(
    depth=50,
    base_width=8,
    pyramid_width=32,
    proposal_width=32,
    box_width=96,
    classes=len(CLASSES),
    proposals=ProposalSettings(100, 60, 0.7),
    detections=DetectionSettings(0.05, 0.5, 30),
    mask_head=WIDTHS,
)
STAGE_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
ANCHORS_AN_IMAGE, REGIONS_AN_IMAGE, MASKS_AN_IMAGE = 96, 64, 4


@dataclass
class Example:
    """One picture as the network sees it.

    Attributes:
        image: (4, y, x) float32, normalised, with the channel of valid pixels.
        boxes: (n, 4) float32; labels: (n,) int64; masks: (n, y, x) uint8.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (y, x, 3), masks (n, y, x) and labels of a seed."""
    scene = draw_scene(seed, TRAINED)
    return scene.image, np.stack(scene.masks), np.array(scene.labels)


def example(scene: tuple[np.ndarray, np.ndarray, np.ndarray], rng: np.random.Generator) -> Example:
    """The picture mirrored and its colours exchanged at random."""
    pixels, masks, labels = scene
    pixels = pixels[:, :, rng.permutation(3)]
    for axis in (0, 1):
        if rng.random() < 0.5:
            pixels, masks = np.flip(pixels, axis), np.flip(masks, axis + 1)
    image = np.zeros((4, HEIGHT, WIDTH), np.float32)
    normal = (pixels.astype(np.float32) - np.float32(IMAGE.mean)) / np.float32(IMAGE.std)
    image[:3, : TRAINED[0], : TRAINED[1]] = normal.transpose(2, 0, 1)
    image[3, : TRAINED[0], : TRAINED[1]] = 1
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    whole = np.zeros((len(masks), HEIGHT, WIDTH), np.uint8)
    whole[:, : TRAINED[0], : TRAINED[1]] = masks
    return Example(
        torch.from_numpy(image),
        torch.tensor(boxes, dtype=torch.float32),
        torch.from_numpy(np.ascontiguousarray(labels)),
        torch.from_numpy(whole),
    )


# ---- regions ---------------------------------------------------------------------------------------------------------


def places(boxes: Tensor, count: int, sides: tuple[float, float] = (HEIGHT, WIDTH)) -> Tensor:
    """Centres of count x count cells of boxes (n, 4), as ``grid_sample`` wants them (n, count, count, 2)."""
    steps = (torch.arange(count) + 0.5) / count
    x = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])) / sides[1] * 2 - 1
    y = (boxes[:, 1:2] + steps * (boxes[:, 3:] - boxes[:, 1:2])) / sides[0] * 2 - 1
    return torch.stack([x[:, None, :].expand(-1, count, -1), y[:, :, None].expand(-1, -1, count)], dim=3)


def quick_roi_align(features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
    """RoIAlign with two by two samples a bin, which is close to the exact one and has a quick derivative."""
    count, channels = len(boxes), features.shape[1]
    usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    sides = (features.shape[2] / scale, features.shape[3] / scale)
    where = torch.nonzero(usable)[:, 0]
    result = features.new_zeros((count, channels, size, size))
    if not len(where):
        return result
    grid = places(boxes[where], 2 * size, sides).reshape(1, -1, 2 * size, 2)
    found = functional.grid_sample(features, grid, padding_mode="border", align_corners=False)[0]
    found = functional.avg_pool2d(found.reshape(channels, len(where), 2 * size, 2 * size), 2)
    return result.index_copy(0, where, found.transpose(0, 1))


# ---- losses ----------------------------------------------------------------------------------------------------------


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU (n, m) of boxes (n, 4) and (m, 4)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-6)


def encode(boxes: Tensor, targets: Tensor) -> Tensor:
    """Deltas (n, 4) that move boxes onto targets, the inverse of ``boxes.decode``."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / sides
    return torch.cat([shift, torch.log(wanted / sides)], dim=1)


def sampled(positive: Tensor, negative: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """At most ``count`` indices, at most that share of them positive."""
    found = positive[torch.randperm(len(positive))[: int(count * share)]]
    rest = negative[torch.randperm(len(negative))[: count - len(found)]]
    return found, rest


def proposal_loss(logits: Tensor, deltas: Tensor, anchors: Tensor, truth: Tensor) -> Tensor:
    """Of one picture: is there an object at this anchor, and where exactly."""
    iou = overlaps(anchors, truth)
    best, owner = iou.max(1)
    nearest = (iou == iou.max(0).values.clamp(min=0.1)).any(1)
    positive, negative = sampled(
        torch.nonzero((best >= 0.7) | nearest)[:, 0],
        torch.nonzero((best < 0.3) & ~nearest)[:, 0],
        ANCHORS_AN_IMAGE,
        0.5,
    )
    chosen = torch.cat([positive, negative])
    wanted = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    objectness = functional.binary_cross_entropy_with_logits(logits[chosen], wanted)
    place = functional.l1_loss(deltas[positive], encode(anchors[positive], truth[owner[positive]]), reduction="sum")
    return objectness + place / len(chosen)


def jittered(boxes: Tensor) -> Tensor:
    """Boxes moved by up to a tenth of their sides: more examples for the classes than the proposals give early on."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + (torch.rand(boxes.shape) - 0.5) * 0.2 * sides
    return torch.minimum(moved.clamp(min=0), torch.tensor([TRAINED[1], TRAINED[0]] * 2, dtype=torch.float32))


def box_loss(
    network: RefineMask, levels: list[Tensor], proposals: Tensor, own: Example
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one picture; also the regions that hold an object, and which object."""
    regions = torch.cat([proposals, own.boxes, *(jittered(own.boxes) for _ in range(4))])
    regions = regions[((regions[:, 2:] - regions[:, :2]) > 1).all(1)]
    best, owner = overlaps(regions, own.boxes).max(1)
    positive, negative = sampled(
        torch.nonzero(best >= 0.5)[:, 0], torch.nonzero(best < 0.5)[:, 0], REGIONS_AN_IMAGE, 0.5
    )
    chosen = torch.cat([positive, negative])
    logits, deltas = network.roi_head.bbox_head(region_features(levels, regions[chosen], BOX_SIZE))
    wanted = torch.cat([own.labels[owner[positive]], torch.full((len(negative),), len(CLASSES))])
    kind = functional.cross_entropy(logits, wanted)
    moves = deltas[: len(positive)].reshape(len(positive), len(CLASSES), 4)
    moves = moves[torch.arange(len(positive)), own.labels[owner[positive]]]
    target = encode(regions[positive], own.boxes[owner[positive]]) / torch.tensor(SETTINGS.box_deviations)
    place = functional.smooth_l1_loss(moves, target, reduction="sum") / max(len(chosen), 1)
    return kind + place, regions[positive], owner[positive]


def mask_loss(network: RefineMask, levels: list[Tensor], regions: Tensor, owner: Tensor, own: Example) -> Tensor:
    """Of one picture: every stage's mask, and the semantic branch."""
    chosen = torch.randperm(len(regions))[:MASKS_AN_IMAGE]
    regions, owner = regions[chosen], owner[chosen]
    head = network.roi_head.mask_head
    instance = region_features(levels, regions, WIDTHS.stage_sizes[0])
    semantic: list[Tensor] = []
    hook = head.semantic_logits.register_forward_hook(lambda layer, inputs, answer: semantic.append(answer))
    stages = head(instance, levels[0], regions, own.labels[owner], {})
    hook.remove()
    total = torch.zeros(())
    for logits, weight, side in zip(stages, STAGE_WEIGHTS, WIDTHS.stage_sizes, strict=True):
        target = functional.grid_sample(own.masks[owner][:, None].float(), places(regions, side), align_corners=False)
        total = total + weight * functional.binary_cross_entropy_with_logits(logits, (target >= 0.5).float())
    any_shape = functional.avg_pool2d(own.masks.amax(0)[None, None].float(), 4)
    return total + 0.5 * functional.binary_cross_entropy_with_logits(semantic[0], (any_shape >= 0.5).float())


def batch_loss(network: RefineMask, batch: list[Example], anchors: Tensor) -> tuple[Tensor, list[float]]:
    """Mean over the pictures; the trunk sees them together, the heads one by one."""
    images = torch.stack([one.image for one in batch])
    levels: list[Tensor] = network.features(images, {})
    answers = [network.rpn_head(level) for level in levels]
    logits = torch.cat([one.permute(0, 2, 3, 1).reshape(len(batch), -1) for one, _ in answers], dim=1)
    deltas = torch.cat([one.permute(0, 2, 3, 1).reshape(len(batch), -1, 4) for _, one in answers], dim=1)
    size = torch.tensor([float(TRAINED[1]), float(TRAINED[0])])
    parts = torch.zeros(3)
    total = torch.zeros(())
    for index, own in enumerate(batch):
        mine = [level[index : index + 1] for level in levels]
        with torch.no_grad():
            proposals, ranks = network.propose(mine, size, {})
            proposals = proposals[ranks >= 0]
        proposal = proposal_loss(logits[index], deltas[index], anchors, own.boxes)
        box, regions, owner = box_loss(network, mine, proposals, own)
        mask = mask_loss(network, mine, regions, owner, own)
        total = total + proposal + 2 * box + mask
        parts += torch.stack([proposal, box, mask]).detach()
    return total / len(batch), (parts / len(batch)).tolist()


# ---- training --------------------------------------------------------------------------------------------------------


def initialise(network: RefineMask) -> None:
    """He's initialisation; the last layers begin near zero, as is usual for detectors."""
    for name, tensor in network.state_dict().items():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensor)
        if name.startswith("rpn_head.rpn_") and "conv" not in name and tensor.dim() > 1:
            tensor.normal_(0, 0.01)
        if name.endswith(("fc_cls.weight", "fc_reg.weight", "logits.weight")):
            tensor.normal_(0, 0.01)


def every_anchor(network: RefineMask) -> Tensor:
    """All anchors of the input, in the order the proposal head's answers are laid out."""
    settings = SETTINGS.anchors
    found = []
    for stride in settings.strides:
        rows, columns = -(-HEIGHT // stride), -(-WIDTH // stride)
        found.append(grid_anchors(base_anchors(settings, stride), torch.zeros(1, 1, rows, columns), stride))
    return torch.cat(found)


def train(network: RefineMask, options: argparse.Namespace, checkpoint: Path) -> None:
    """Until the minutes of processor time are over."""
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    anchors = every_anchor(network)
    heads.roi_align = quick_roi_align  # for training only: the exported network has the exact one
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-4)
    scenes: list[Any] = []
    step, shown = 0, np.zeros(3)
    while (done := time.process_time() / 60 / options.minutes) < 1:
        if len(scenes) < options.pictures:  # drawn while training goes on
            scenes += [draw(1 + len(scenes) + offset) for offset in range(8)]
        batch = [example(scenes[int(index)], rng) for index in rng.integers(0, len(scenes), options.batch)]
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1.0, (step + 1) / 50) * max(0.02, 0.5 * (1 + np.cos(np.pi * done)))
        network.train()
        loss, parts = batch_loss(network, batch, anchors)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        step += 1
        shown = 0.95 * shown + 0.05 * np.array(parts)
        if step % 20 == 0:
            smooth = shown / (1 - 0.95**step)
            told = " ".join(f"{name} {value:.3f}" for name, value in zip(("rpn", "box", "mask"), smooth, strict=True))
            print(f"step {step} {time.process_time():.0f} s {told}", flush=True)
        if step % 100 == 0:
            write_checkpoint(network, checkpoint)
    write_checkpoint(network, checkpoint)
    heads.roi_align = operators.roi_align


def write_checkpoint(network: RefineMask, path: Path) -> None:
    """In mmdetection's form, its configuration as JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"CLASSES": CLASSES}, "state_dict": network.state_dict()}, path)
    path.with_suffix(".json").write_text(json.dumps(configuration(), indent=1))


def configuration() -> dict[str, Any]:
    """What mmdetection's configuration would say of this network."""
    width, anchors = SETTINGS.base_width, SETTINGS.anchors
    normal = {"type": "Normalize", "mean": IMAGE.mean, "std": IMAGE.std, "to_rgb": True}
    return {
        "CLASSES": CLASSES,
        "model": {
            "type": "MaskRCNN",
            "backbone": {"type": "ResNet", "depth": 50, "num_stages": 4, "base_channels": width, "style": "pytorch"},
            "neck": {
                "type": "FPN",
                "in_channels": [4 * width << index for index in range(4)],
                "out_channels": SETTINGS.pyramid_width,
                "num_outs": 5,
            },
            "rpn_head": {
                "type": "RPNHead",
                "in_channels": SETTINGS.pyramid_width,
                "feat_channels": SETTINGS.proposal_width,
                "anchor_generator": {
                    "type": "AnchorGenerator",
                    "scales": [anchors.scale],
                    "ratios": anchors.ratios,
                    "strides": anchors.strides,
                },
            },
            "roi_head": {
                "type": "RefineRoIHead",
                "bbox_head": {
                    "type": "Shared2FCBBoxHead",
                    "fc_out_channels": SETTINGS.box_width,
                    "num_classes": SETTINGS.classes,
                    "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": SETTINGS.box_deviations},
                    "reg_class_agnostic": False,
                },
                "mask_head": {
                    "type": "RefineMaskHead",
                    "num_convs_instance": WIDTHS.instance_convs,
                    "num_convs_semantic": WIDTHS.semantic_convs,
                    "conv_out_channels_instance": WIDTHS.instance_width,
                    "conv_out_channels_semantic": WIDTHS.semantic_width,
                    "mask_use_sigmoid": True,
                    "stage_num_classes": WIDTHS.stage_classes,
                    "stage_sup_size": WIDTHS.stage_sizes,
                },
            },
        },
        "test_cfg": {
            "rpn": {
                "nms_across_levels": False,
                "nms_pre": SETTINGS.proposals.before_nms,
                "nms_post": SETTINGS.proposals.after_nms,
                "max_num": SETTINGS.proposals.after_nms,
                "nms_thr": SETTINGS.proposals.iou,
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": SETTINGS.detections.score,
                "nms": {"type": "nms", "iou_threshold": SETTINGS.detections.iou},
                "max_per_img": SETTINGS.detections.limit,
                "mask_thr_binary": IMAGE.mask_threshold,
            },
        },
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {
                "type": "MultiScaleFlipAug",
                "img_scale": [IMAGE.long_side, IMAGE.short_side],
                "flip": False,
                "transforms": [
                    {"type": "Resize", "keep_ratio": True},
                    {"type": "RandomFlip"},
                    normal,
                    {"type": "Pad", "size_divisor": IMAGE.divisor},
                    {"type": "ImageToTensor", "keys": ["img"]},
                ],
            },
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=18.0, help="of processor time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("instances_demo_training"), help="gets the checkpoint")
    parser.add_argument("--out", type=Path, default=BUNDLE, help="the bundle's folder")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the work folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, checkpoint = build_refinemask(SETTINGS), options.work / "shapes.pth"
    with torch.no_grad():
        initialise(network)
    if options.resume:
        network.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    if options.minutes:
        train(network, options, checkpoint)
    bundle = export_refinemask(checkpoint, options.out, overwrite=True)
    print(f"{bundle.folder}: {', '.join(graph.file for graph in bundle.spec.graphs)}")


if __name__ == "__main__":
    main()
