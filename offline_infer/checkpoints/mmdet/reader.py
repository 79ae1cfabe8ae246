"""Reading a RefineMask checkpoint: a ``.pth`` of mmdetection, and a configuration beside it where its own is missing.

The configuration is text in the checkpoint's ``meta``, or a file the user names (``.py`` as mmdetection writes it, or JSON
with ``model``, ``test_cfg``, ``test_pipeline`` and ``CLASSES``). Either is parsed, never executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from offline_infer.checkpoints.description import Weights
from offline_infer.checkpoints.fields import Fields, read_json
from offline_infer.checkpoints.known_layouts import describe
from offline_infer.checkpoints.mmdet.config_text import parse_config
from offline_infer.checkpoints.mmdet.fields_of_config import read_image_settings, read_settings
from offline_infer.checkpoints.mmdet.settings import RESNET_BLOCKS, ImageSettings, MaskHeadSettings, RefineMaskSettings
from offline_infer.checkpoints.pickles.torch_file import TensorRef, TorchFile, open_torch_file
from offline_infer.checkpoints.state_dict import state_dict
from offline_infer.errors import CheckpointError
from offline_infer.files import read_utf8

_LARGEST_CONFIG = 16 << 20
MASK_HEAD = "roi_head.mask_head."
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class RefineMaskCheckpoint:
    """A RefineMask checkpoint, understood.

    Attributes:
        path: the file.
        settings: of the network; image: how its input is made.
        classes: names in the order of the labels.
        config_name: where the configuration came from.
        framework_version: mmdetection's, where the file says it.
        load_weights: gives the state dict as arrays.
        notes: things worth telling the user.
    """

    path: Path
    settings: RefineMaskSettings
    image: ImageSettings
    classes: tuple[str, ...]
    config_name: str
    framework_version: str | None
    load_weights: Callable[[], Weights] = field(repr=False)
    notes: tuple[str, ...] = ()


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's weights; nothing of the file is executed.

    Raises:
        UnsafePickleError: its pickle names something outside the closed table.
        CheckpointError: damaged, or it holds no state dict.
    """
    return {name: tensor.shape for name, tensor in _entries(open_torch_file(path)).items()}


def read_refinemask(path: Path, config: Path | None = None) -> RefineMaskCheckpoint:
    """Read a checkpoint.

    Args:
        path: a ``.pth`` with ``state_dict`` and, usually, ``meta``.
        config: a configuration that takes the place of the checkpoint's own. Without one, a JSON file with the
            checkpoint's name beside it is taken if there is one.

    Raises:
        UnsafePickleError: its pickle names something outside the closed table; nothing was executed.
        CheckpointError: damaged, another kind of network, or configuration and weights contradict each other.
    """
    file = open_torch_file(path)
    entries = _entries(file)
    shapes = {name: tensor.shape for name, tensor in entries.items()}
    _refuse_others(path, shapes)
    content = file.content if isinstance(file.content, Mapping) else {}
    meta = Fields(content.get("meta") or {}, f"{path}, meta")
    found, origin = _configuration(path, config, meta)
    notes: list[str] = []
    if found is None:
        settings, image = settings_of_shapes(path, shapes), ImageSettings()
        notes.append(
            f"{path} holds no configuration; widths were read from its weights and everything else is taken to be as in "
            f"the published COCO models (images of 1333 x 800). Give the training's configuration if it differed"
        )
    else:
        settings, image = read_settings(found), read_image_settings(found)
    _check_shapes(path, settings, shapes, origin)
    classes = _class_names(meta, found, settings.classes, notes)
    version = meta.raw("mmdet_version", None)
    return RefineMaskCheckpoint(
        path=path,
        settings=settings,
        image=image,
        classes=classes,
        config_name=origin,
        framework_version=version if isinstance(version, str) else None,
        load_weights=lambda: file.arrays(entries),
        notes=tuple(notes),
    )


def settings_of_shapes(path: Path, shapes: Shapes) -> RefineMaskSettings:
    """Depth, widths and class counts as the weights' shapes tell them; all else as published."""

    def size(name: str, axis: int = 0) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis:
            raise CheckpointError(f"{path}: {name} is missing; this is not a complete RefineMask checkpoint")
        return int(shape[axis])

    blocks = tuple(_count(shapes, rf"backbone\.layer{stage}\.(\d+)\.conv1\.weight") for stage in (1, 2, 3, 4))
    depth = next((depth for depth, own in RESNET_BLOCKS.items() if own == blocks), None)
    if depth is None:
        raise CheckpointError(f"{path}: its backbone's stages have {blocks} blocks; expected a ResNet-50, -101 or -152")
    stages = _count(shapes, rf"{re.escape(MASK_HEAD)}stages\.(\d+)\.instance_logits\.weight")
    logits = [f"stages.{index}.instance_logits" for index in range(stages)] + ["final_instance_logits"]
    return RefineMaskSettings(
        depth=depth,
        base_width=size("backbone.conv1.weight"),
        pyramid_width=size("neck.lateral_convs.0.conv.weight"),
        proposal_width=size("rpn_head.rpn_conv.weight"),
        box_width=size("roi_head.bbox_head.fc_cls.weight", 1),
        classes=size("roi_head.bbox_head.fc_cls.weight") - 1,
        mask_head=replace(
            MaskHeadSettings(),
            instance_convs=_count(shapes, rf"{re.escape(MASK_HEAD)}instance_convs\.(\d+)\.conv\.weight"),
            semantic_convs=_count(shapes, rf"{re.escape(MASK_HEAD)}semantic_convs\.(\d+)\.conv\.weight"),
            instance_width=size(f"{MASK_HEAD}instance_convs.0.conv.weight"),
            semantic_width=size(f"{MASK_HEAD}semantic_convs.0.conv.weight"),
            stage_sizes=tuple(14 << index for index in range(stages + 1)),
            stage_classes=tuple(size(f"{MASK_HEAD}{name}.weight") for name in logits),
        ),
    )


def _entries(file: TorchFile) -> dict[str, TensorRef]:
    content = file.content
    if isinstance(content, Mapping) and "network_weights" in content:
        raise CheckpointError(
            f"{file.path} holds the weights of one fold of nnU-Net v2, without its plans; give the model folder it comes from, "
            "with plans.json, dataset.json and fold_0"
        )
    for name in ("state_dict", "model"):  # mmdetection; detectron2 and torchvision's own training scripts
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return state_dict(content, str(file.path))


def _refuse_others(path: Path, shapes: Shapes) -> None:
    if any(name.startswith(f"{MASK_HEAD}stage_instance_logits.") for name in shapes):
        raise CheckpointError(
            f"{path} has a SimpleRefineMaskHead (configuration '1x-faster-better'), whose weights are laid out in another "
            "way; only RefineMaskHead is supported"
        )
    if f"{MASK_HEAD}semantic_logits.weight" not in shapes:
        kind, advice = describe(shapes)
        raise CheckpointError(f"{path} is no RefineMask but {kind}; {advice}")


def _configuration(path: Path, config: Path | None, meta: Fields) -> tuple[Fields | None, str]:
    """The configuration, if there is one, and what to call it."""
    beside = path.with_suffix(".json")
    if config is None and beside.is_file():
        config = beside
    if config is not None and config.suffix.lower() == ".json":
        return read_json(config), config.name
    if config is not None:
        try:
            text = read_utf8(config, largest=_LARGEST_CONFIG)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{config} cannot be read: {error}") from error
        return Fields(parse_config(text, str(config)), str(config)), config.name
    text = meta.raw("config", None)
    if not isinstance(text, str):
        return None, "the weights' shapes"
    origin = f"{path}, meta.config"
    return Fields(parse_config(text, origin), origin), "meta.config"


def _check_shapes(path: Path, settings: RefineMaskSettings, shapes: Shapes, origin: str) -> None:
    """The sizes configuration and weights both tell must be the same."""
    own = settings_of_shapes(path, shapes)
    pairs = {
        "depth": (settings.depth, own.depth),
        "base_channels": (settings.base_width, own.base_width),
        "FPN out_channels": (settings.pyramid_width, own.pyramid_width),
        "number of classes": (settings.classes, own.classes),
        "fc_out_channels": (settings.box_width, own.box_width),
        "stage_num_classes": (settings.mask_head.stage_classes, own.mask_head.stage_classes),
        "stage_sup_size": (len(settings.mask_head.stage_sizes), len(own.mask_head.stage_sizes)),
    }
    for name, (said, found) in pairs.items():
        if said != found:
            raise CheckpointError(
                f"{path}: its weights have {name} {found}, its configuration ({origin}) says {said}; they do not belong "
                "together"
            )


def _class_names(meta: Fields, config: Fields | None, count: int, notes: list[str]) -> tuple[str, ...]:
    for place in [place for place in (config, meta) if place is not None]:
        names = place.raw("CLASSES", None)
        if isinstance(names, str):
            names = [names]  # one class: mmdetection's tuple without its comma
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            if len(names) != count:
                raise CheckpointError(f"{place.origin}: {len(names)} class names for {count} classes")
            return tuple(names)
    notes.append(f"the checkpoint does not name its {count} classes; they are called class_0, class_1, ...")
    return tuple(f"class_{index}" for index in range(count))


def _count(shapes: Shapes, pattern: str) -> int:
    return len({match.group(1) for name in shapes if (match := re.fullmatch(pattern, name))})
