"""RefineMask checkpoints: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refinemask_samples import CLASSES, IMAGE, SETTINGS, config_text, tiny_network, write_checkpoint

from offline_infer.checkpoints.mmdet.reader import read_refinemask, weight_shapes
from offline_infer.errors import CheckpointError
from offline_infer.networks import load_weights
from offline_infer.networks.refinemask import build_refinemask


def test_a_checkpoint_is_read_with_its_own_configuration(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.pth")
    checkpoint = read_refinemask(path)
    assert checkpoint.settings == SETTINGS
    assert checkpoint.image == IMAGE
    assert checkpoint.classes == CLASSES
    assert checkpoint.notes == ()
    network = build_refinemask(checkpoint.settings)
    load_weights(network, checkpoint.load_weights())
    for name, tensor in tiny_network().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert "roi_head.mask_head.semantic_logits.weight" in weight_shapes(path)


def test_a_configuration_beside_it_takes_the_place_of_a_missing_one(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.pth", config="")
    config = tmp_path / "mine.py"
    config.write_text(config_text())
    checkpoint = read_refinemask(path, config)
    assert (checkpoint.settings, checkpoint.image) == (SETTINGS, IMAGE)


def test_without_configuration_widths_come_from_the_weights(tmp_path: Path) -> None:
    network = tiny_network()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "bare.pth")
    checkpoint = read_refinemask(tmp_path / "bare.pth")
    assert checkpoint.settings.mask_head == SETTINGS.mask_head
    assert checkpoint.settings.base_width == SETTINGS.base_width
    assert checkpoint.classes == ("class_0", "class_1", "class_2")
    assert len(checkpoint.notes) == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("'RefineMaskHead'", "'SimpleRefineMaskHead'", "SimpleRefineMaskHead"),
        ("mask_use_sigmoid=True", "mask_use_sigmoid=False", "mask_use_sigmoid"),
        ("mask_use_sigmoid=True,", "", "mask_use_sigmoid"),
        ("style='pytorch'", "style='caffe'", "style"),
        ("num_classes=3", "num_classes=80", "80"),
        ("to_rgb=True", "to_rgb=False", "to_rgb"),
        ("keep_ratio=True", "keep_ratio=False", "keep_ratio"),
        ("'Shared2FCBBoxHead'", "'ConvFCBBoxHead'", "ConvFCBBoxHead"),
        ("flip=False", "flip=True", "flip"),
        ("mask_use_sigmoid=True", "mask_use_sigmoid=True, fusion_type='MultiBranchFusionAvg'", "MultiBranchFusionAvg"),
    ],
)
def test_options_that_change_the_answer_are_refused_by_name(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = config_text()
    assert old in text
    path = write_checkpoint(tmp_path / "model.pth", config=text.replace(old, new))
    with pytest.raises(CheckpointError, match=told):
        read_refinemask(path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(4, 3, 7, 7)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is no RefineMask but"):
        read_refinemask(tmp_path / "other.pth")


def test_class_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 class names for 3 classes"):
        read_refinemask(write_checkpoint(tmp_path / "model.pth", classes=("a", "b")))


@pytest.mark.parity
def test_the_recorded_checkpoint_and_its_json(goldens: Path) -> None:
    folder = goldens / "instances" / "refinemask"
    own, given = (
        read_refinemask(folder / "tiny_r50.pth"),
        read_refinemask(folder / "tiny_r50.pth", folder / "config.json"),
    )
    assert (own.settings, own.image, own.classes) == (given.settings, given.image, given.classes)
    assert (own.image.long_side, own.image.short_side) == (320, 240)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"], "torchvision without masks"),
        (["backbone.conv1.weight", "roi_head.mask_head.convs.0.conv.weight"], "mmdetection with another mask head"),
        (["proposal_generator.rpn_head.conv.weight"], "detectron2"),
        (["model.0.conv.weight", "model.22.proto.cv1.conv.weight"], "Ultralytics"),
        (["encoder.stages.0.0.convs.0.conv.weight"], "nnU-Net v2; give the model folder"),
        (["layer1.0.conv1.weight", "fc.weight"], "a ResNet"),
        (["something.else"], "unknown network .1 weights: something.else"),
    ],
)
def test_a_stray_checkpoint_is_called_what_it_is(tmp_path: Path, names: list[str], told: str) -> None:
    torch.save({name: torch.zeros(2) for name in names}, tmp_path / "stray.pth")
    with pytest.raises(CheckpointError, match=told):
        read_refinemask(tmp_path / "stray.pth")
