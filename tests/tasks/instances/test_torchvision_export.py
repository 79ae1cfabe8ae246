"""torchvision's Mask R-CNN from its state dict; skipped where torchvision is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision_operators import DEFINED, import_torchvision

import offline_infer
from offline_infer.cli import main
from offline_infer.exporting.torchvision_detectors import standard_network
from offline_infer.networks.refinemask import operators

BUILDER = """
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

def build():
    features = mobilenet_v3_small(weights=None, width_mult=0.5).features
    backbone = BackboneWithFPN(features, {'1': '0', '3': '1', '8': '2', '11': '3'}, [8, 16, 24, 48], 32)
    return MaskRCNN(backbone, min_size=96, max_size=128, box_score_thresh=0.05,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=60, box_detections_per_img=20,
        box_head=TwoMLPHead(32 * 49, 32), box_predictor=FastRCNNPredictor(32, 4),
        mask_head=MaskRCNNHeads(32, (32,) * 2, 1), mask_predictor=MaskRCNNPredictor(32, 32, 4))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``build.py`` and ``model.pth``: weights that find something."""
    import_torchvision()
    folder = tmp_path_factory.mktemp("torchvision")
    (folder / "build.py").write_text(BUILDER)
    space: dict[str, object] = {}
    exec(compile(BUILDER, "build.py", "exec"), space)
    torch.manual_seed(0)
    network = space["build"]()  # type: ignore[operator]
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(20)
        network.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(20)
    torch.save(network.state_dict(), folder / "model.pth")
    return folder


def test_a_state_dict_with_its_builder_becomes_a_bundle_that_agrees(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("disc\nbox\nstar\n")
    command = ["export", str(trained / "model.pth"), "-o", str(tmp_path / "bundle"), "--quiet"]
    command += ["--builder", str(trained / "build.py"), "--classes", str(tmp_path / "names.txt")]
    assert main(command) == 0
    pixels = np.random.default_rng(1).integers(0, 256, (90, 110, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    space: dict[str, object] = {}
    exec(compile(BUILDER, "build.py", "exec"), space)
    network = space["build"]()  # type: ignore[operator]
    network.load_state_dict(torch.load(trained / "model.pth", weights_only=True))
    with torch.inference_mode():
        expected = network.eval()([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])[0]
    for engine in ("openvino", "onnxruntime"):
        with offline_infer.load(tmp_path / "bundle", engine=engine) as model:
            found = model.predict(tmp_path / "a.png")
        assert len(found) == len(expected["scores"]) > 0
        for index in range(len(found)):  # in whatever order detections of one score come
            near = (expected["boxes"] - torch.from_numpy(found.boxes[index])).abs().amax(1) + 1e3 * (
                expected["labels"] != int(found.labels[index]) + 1
            )
            other = int(near.argmin())
            assert near[other] < 0.01
            assert abs(float(expected["scores"][other]) - found.scores[index]) < 1e-4
            assert (found.masks[index].mask() != (expected["masks"][other, 0].numpy() >= 0.5)).sum() <= 2


def test_another_backbone_asks_for_its_builder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(trained / "model.pth"), "-o", str(tmp_path / "bundle"), "--quiet"]
    assert main(command) == 2
    assert "--builder" in capsys.readouterr().err
    assert main([*command, "--canvas", "64x64"]) == 2
    assert "does not apply to a Mask R-CNN of torchvision" in capsys.readouterr().err


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_standard_networks_are_built_from_names_and_shapes(second: bool, frozen: bool) -> None:
    detection = import_torchvision().models.detection
    make = detection.maskrcnn_resnet50_fpn_v2 if second else detection.maskrcnn_resnet50_fpn
    with torch.device("meta"):
        entries = make(weights=None, weights_backbone=None, num_classes=7).state_dict()
        shapes = {
            name: tuple(value.shape)
            for name, value in entries.items()
            if not (frozen and name.endswith("num_batches_tracked"))
        }
        network = standard_network(detection, shapes)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes


def test_our_roi_align_and_suppression_are_torchvisions() -> None:
    """Against the compiled operators; boxes inside the image, across its edge and far outside."""
    import_torchvision()
    if DEFINED:
        pytest.skip("torchvision's compiled operators do not load beside this torch")
    from torchvision.ops import nms, roi_align

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 20, 26, generator=generator)
    corners = torch.rand(80, 2, 2, generator=generator) * torch.tensor([150.0, 130.0]) - 20
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], dim=1)
    regions = torch.cat([torch.zeros(80, 1), boxes], dim=1)
    for size in (7, 14):
        ours = operators.roi_align(features, boxes, 0.25, size)
        theirs = roi_align(features, regions, (size, size), 0.25, 0, True)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    scores = torch.rand(80, generator=generator).round(decimals=1)  # ties among them
    boxes[:2], scores[:2] = torch.tensor([5.0, 5.0, 5.0, 9.0]), 1.0  # no area: neither drops the other
    for iou in (0.1, 0.3, 0.5, 0.7):
        kept = operators.keep_best(boxes[None], scores[None], iou, -1.0, len(boxes))
        assert kept[:, 1].tolist() == nms(boxes, scores, iou).tolist()
