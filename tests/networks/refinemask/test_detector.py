"""The detector: names and shapes of the published checkpoint, the authors' answers, the masked canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refinemask_samples import SETTINGS, sample_input, tiny_network

from offline_infer.checkpoints.mmdet.reader import read_refinemask
from offline_infer.checkpoints.mmdet.settings import RefineMaskSettings
from offline_infer.networks import load_weights
from offline_infer.networks.refinemask import build_refinemask
from offline_infer.networks.refinemask.backbone import canvas_masks
from offline_infer.networks.refinemask.detector import RefineMask

PICTURES = ("a_320x240", "b_151x227", "c_47x33")


def test_the_published_names_and_shapes(goldens: Path) -> None:
    expected = {}
    for line in (goldens / "instances/refinemask/full_r50_coco_keys.tsv").read_text().splitlines()[2:]:
        name, shape = line.split("\t")[:2]
        expected[name] = () if shape == "scalar" else tuple(int(size) for size in shape.split("x"))
    with torch.device("meta"):
        network = build_refinemask(RefineMaskSettings())
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected


@pytest.mark.parametrize(("depth", "classes", "last"), [(101, 80, 80), (50, 8, 8), (101, 1203, 1)])
def test_the_other_published_configurations(depth: int, classes: int, last: int) -> None:
    head = replace(RefineMaskSettings().mask_head, stage_classes=(classes, classes, classes, last))
    with torch.device("meta"):
        network = build_refinemask(RefineMaskSettings(depth=depth, classes=classes, mask_head=head))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(shapes) == {50: 418, 101: 724}[depth]
    assert shapes["roi_head.bbox_head.fc_reg.weight"] == (4 * classes, 1024)
    assert shapes["roi_head.mask_head.final_instance_logits.weight"] == (last, 32, 1, 1)


def test_outputs_have_fixed_shapes_and_empty_rows_are_zero() -> None:
    with torch.inference_mode():
        dets, labels, masks = tiny_network()(sample_input())
    assert (dets.shape, labels.shape, masks.shape) == ((10, 5), (10,), (10, 112, 112))
    found = int((dets[:, 4] > 0).sum())
    assert found > 0
    assert not dets[found:].any()
    assert torch.isfinite(masks).all()


def test_nothing_found_is_ten_empty_rows() -> None:
    network = tiny_network()
    network.settings = replace(SETTINGS, detections=replace(SETTINGS.detections, score=1.0))
    with torch.inference_mode():
        dets, _, masks = network(sample_input())
    assert not dets.any()
    assert torch.isfinite(masks).all()


@pytest.mark.parametrize("every_row", [False, True])
def test_a_masked_canvas_changes_no_answer(every_row: bool) -> None:
    # In double precision: sums over another extent round otherwise, and random weights make that a few thousandths of a pixel.
    network, exact = tiny_network().double(), sample_input(90, 120).double()
    large = torch.zeros(1, 4, 192, 160, dtype=torch.float64)
    large[:, :, :96, :128] = exact
    with torch.inference_mode():
        expected = network(exact)
        network.canvas, network.every_row = True, every_row
        found = network(large)
    count = int((expected[0][:, 4] > 0).sum())
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=1e-5)
    assert torch.equal(found[1][:count], expected[1][:count])
    torch.testing.assert_close(found[2][:count], expected[2][:count], atol=1e-3, rtol=1e-4)


def test_a_class_agnostic_last_stage_gives_every_class_the_same_layer() -> None:
    head = replace(SETTINGS.mask_head, stage_classes=(3, 3, 3, 1))
    network = build_refinemask(replace(SETTINGS, mask_head=head))
    with torch.inference_mode():
        levels = network.features(sample_input(), {})
        found = network.detect(levels[:4], torch.tensor([[5.0, 5, 60, 60]]), torch.ones(1), torch.tensor([120.0, 90]))
        answers = []
        for label in (0, 2):
            relabelled = found._replace(labels=torch.full_like(found.labels, label))
            answers.append(network.mask_stages(levels[:4], levels[0], relabelled, {}))
    assert not torch.equal(answers[0][0], answers[1][0])
    assert answers[0][-1].shape == answers[1][-1].shape


# ---- the authors' own answers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> RefineMask:
    checkpoint = read_refinemask(goldens / "instances/refinemask/tiny_r50.pth")
    network = build_refinemask(checkpoint.settings)
    load_weights(network, checkpoint.load_weights())
    return network


def with_validity(image: np.ndarray, size: Any) -> torch.Tensor:
    height, width = (int(side) for side in size)
    valid = np.zeros((1, 1, *image.shape[2:]), np.float32)
    valid[:, :, :height, :width] = 1
    return torch.from_numpy(np.concatenate([image, valid], axis=1))


def close(found: torch.Tensor, expected: np.ndarray, part: float = 1e-3) -> None:
    """Within a part of the largest value."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=part * np.abs(expected).max())


@pytest.mark.parity
def test_stage_by_stage(goldens: Path, recorded: RefineMask) -> None:
    folder = goldens / "instances/refinemask"
    steps: Mapping[str, np.ndarray] = np.load(folder / "intermediates/b_151x227.npz")
    final: Mapping[str, np.ndarray] = np.load(folder / "expected/b_151x227.npz")
    image = with_validity(steps["input"], final["img_shape"])
    height, width = final["img_shape"]
    size = torch.tensor([float(width), float(height)])
    with torch.inference_mode():
        for index, features in enumerate(recorded.backbone(image[:, :3], {})):
            close(features, steps[f"backbone_c{index + 2}"])
        levels = recorded.features(image, {})
        for index, features in enumerate(levels):
            close(features, steps[f"fpn_p{index + 2}"])
            scores, deltas = recorded.rpn_head(features)
            close(scores, steps[f"rpn_cls_p{index + 2}"])
            close(deltas, steps[f"rpn_reg_p{index + 2}"])
        proposals, ranks = recorded.propose(levels, size, {})
        close(torch.cat([proposals, ranks[:, None]], dim=1), steps["proposals"])
        boxes, probabilities = recorded.classify(levels[:4], proposals, size)
        close(probabilities, steps["scores_all"])
        scaled = boxes / torch.from_numpy(final["scale_factor"])
        close(scaled.flatten(1), steps["boxes_all"])
        found = recorded.detect(levels[:4], proposals, ranks, size)
        close(found.boxes, steps["mask_rois"][:, 1:])
        close(recorded.roi_head.mask_head.semantic(levels[0], {})[1], steps["semantic_logits"])
        stages = recorded.mask_stages(levels[:4], levels[0], found, {})
    for logits, side in zip(stages, (14, 28, 56, 112), strict=True):
        np.testing.assert_allclose(logits[:, 0].numpy(), final[f"stage{side}_logits"], rtol=0, atol=3e-3)


@pytest.mark.parity
def test_the_canvas_gives_the_authors_answer(goldens: Path, recorded: RefineMask) -> None:
    folder = goldens / "instances/refinemask"
    final = np.load(folder / "expected/b_151x227.npz")
    exact = with_validity(np.load(folder / "intermediates/b_151x227.npz")["input"], final["img_shape"])
    canvas = torch.zeros(1, 4, 352, 352)
    canvas[:, :, : exact.shape[2], : exact.shape[3]] = exact
    try:
        recorded.canvas = recorded.every_row = True
        with torch.inference_mode():
            dets, labels, logits = recorded(canvas)
    finally:
        recorded.canvas = recorded.every_row = False
    count = len(final["dets"])
    assert int((dets[:, 4] > 0).sum()) == count
    np.testing.assert_allclose(
        dets[:count, :4].numpy() / final["scale_factor"], final["dets"][:, :4], rtol=0, atol=0.01
    )
    np.testing.assert_allclose(dets[:count, 4].numpy(), final["dets"][:, 4], rtol=0, atol=1e-4)
    assert labels[:count].tolist() == final["labels"].tolist()
    assert (np.abs(logits[:count].numpy() - final["refined112_logits"]) > 3e-3).mean() <= 1e-3


def test_canvas_masks_follow_the_padding() -> None:
    valid = torch.zeros(1, 1, 96, 128)
    valid[:, :, :33, :64] = 1
    masks = canvas_masks(valid, 32)
    assert masks[32][0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert masks[4].shape == (1, 1, 24, 32)
    assert masks[4][0, 0, :16, :16].all()
    assert masks[4].sum() == 256
    assert masks[64][0, 0].tolist() == [[1, 0], [0, 0]]
