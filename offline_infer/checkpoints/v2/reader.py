"""Reading model folders of nnU-Net v2: plans.json, dataset.json and fold_*/checkpoint_*.pth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline_infer.checkpoints.description import CheckpointDescription, NetworkDescription, Selection, Weights
from offline_infer.checkpoints.digests import checked_sha256, source_files
from offline_infer.checkpoints.fields import Fields, first_fault, read_json
from offline_infer.checkpoints.folders import LAYOUTS, Fold, choose_folds
from offline_infer.checkpoints.pickles.torch_file import TensorRef, TorchFile, open_torch_file
from offline_infer.checkpoints.plausibility import check_patch, check_spacing
from offline_infer.checkpoints.postprocessing import read_v2
from offline_infer.checkpoints.state_dict import state_dict
from offline_infer.checkpoints.v2.network import describe, known_trainer
from offline_infer.checkpoints.v2.plans import (
    configuration,
    foreground,
    read_channels,
    read_file_ending,
    read_labels,
    read_reader,
    read_resampling,
)
from offline_infer.errors import CheckpointError, UsageError
from offline_infer.spec import (
    Aggregation,
    ComponentRule,
    Export,
    FoldSource,
    Gaussian,
    Labels,
    PreviousStage,
    Source,
    VolumeSpec,
    Window,
)

LAYOUT = LAYOUTS[1]
PREPROCESSORS = {"DefaultPreprocessor": True}
LABEL_MANAGERS = {"LabelManager": True}


@dataclass(frozen=True)
class _Reading:
    """What one fold's weights file says. ``tensors`` is the state dict; the rest must be the same in all folds."""

    fold: Fold
    sha256: str
    file: TorchFile
    tensors: Mapping[str, TensorRef]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]


def read(folder: Path, selection: Selection, keep: Any = None) -> CheckpointDescription:
    """Read a model folder.

    Args:
        folder: holds ``plans.json``, ``dataset.json`` and ``fold_0`` and so on.
        selection: what to read of it.
        keep: an object to keep alive as long as the weights may be asked for.

    Raises:
        UnsafePickleError: a pickle names something outside the closed table; nothing was executed.
        CheckpointError: anything missing, damaged, unknown or contradictory. The message names the file.
        UsageError: names for labels, which this framework stores itself.
    """
    if selection.labels:
        raise UsageError(f"nnU-Net v2 names its labels in dataset.json; {folder} needs no others")
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    chosen, notes = choose_folds(folder, LAYOUT, selection.folds, selection.checkpoint_name)
    readings = [_read_fold(fold, selection.expect_sha256) for fold in chosen]
    first = readings[0]
    for other in readings[1:]:
        _check_agreement(folder, first, other)
    config = configuration(plans, first.configuration)
    try:
        spec, network = _spec(folder, plans, dataset, config, readings)
    except ValidationError as error:
        raise CheckpointError(
            f"{config.origin}: the plans make no valid specification: {first_fault(error)}"
        ) from error
    _check_heads(first, network)
    return CheckpointDescription(
        spec=spec,
        network=network,
        load_weights=_loader(readings, keep),
        notes=(*notes, *_notes(folder, first, spec)),
    )


def _loader(readings: Sequence[_Reading], keep: Any) -> Callable[[str], Weights]:
    by_name = {reading.fold.name: reading for reading in readings}

    def load(fold: str, _keep: Any = keep) -> Weights:
        if fold not in by_name:
            raise CheckpointError(f"no fold {fold!r} was read; there are {', '.join(by_name)}")
        return by_name[fold].file.arrays(by_name[fold].tensors)

    return load


def _read_fold(fold: Fold, expected: Sequence[str]) -> _Reading:
    digest = checked_sha256(fold.path, expected)
    file = open_torch_file(fold.path)
    content = Fields(file.content, str(fold.path))
    axes = content.raw("inference_allowed_mirroring_axes", None)
    tensors = state_dict(content.raw("network_weights"), str(fold.path))
    file.check(tensors)
    return _Reading(
        fold=fold,
        sha256=digest,
        file=file,
        tensors=tensors,
        trainer=content.text("trainer_name"),
        configuration=content.fields("init_args").text("configuration"),
        mirror_axes=() if axes is None else content.integers("inference_allowed_mirroring_axes"),
    )


def _spec(
    folder: Path, plans: Fields, dataset: Fields, config: Fields, readings: Sequence[_Reading]
) -> tuple[VolumeSpec, NetworkDescription]:
    first = readings[0]
    config.choice("preprocessor_name", PREPROCESSORS, "preprocessor", "DefaultPreprocessor")
    plans.choice("label_manager", LABEL_MANAGERS, "label manager", "LabelManager")
    channels, labels = read_channels(plans, config, dataset), read_labels(dataset)
    previous = _previous_stage(config, labels)
    patch, spacing = config.integers("patch_size"), config.numbers("spacing")
    check_patch(patch, config.origin)
    check_spacing(spacing, config.origin)
    inputs = len(channels) + (len(previous.labels) if previous else 0)
    network = replace(
        describe(config, first.trainer, patch, inputs, labels.channels),
        parameters=sum(math.prod(tensor.shape) for tensor in first.tensors.values()),
    )
    forward = plans.integers("transpose_forward")
    if len(forward) != 3:
        raise CheckpointError(f"{plans.origin}: transpose_forward {forward} does not have three entries")
    spec = VolumeSpec(
        source=Source(
            framework="nnunet_v2",
            trainer=first.trainer,
            plans_name=plans.text("plans_name"),
            dataset=plans.text("dataset_name"),
            configuration=first.configuration,
            network=network.class_name,
            folds=tuple(
                FoldSource(
                    fold=reading.fold.name,
                    checkpoint=reading.fold.path.relative_to(folder).as_posix(),
                    sha256=reading.sha256,
                )
                for reading in readings
            ),
            files=source_files(folder, ("plans.json", "dataset.json", "postprocessing.pkl")),
        ),
        reader=read_reader(plans, dataset),
        file_ending=read_file_ending(dataset),
        channels=channels,
        spacing=spacing,
        patch_size=patch,
        transpose_forward=(forward[0], forward[1], forward[2]),
        normalize_after_resampling=False,
        resampling=read_resampling(config, "data"),
        window=Window(mirror_axes=first.mirror_axes, gaussian=Gaussian(peak=10.0, dtype="float16", apply="always")),
        aggregation=Aggregation(
            domain="logits",
            activation="softmax" if labels.regions_class_order is None else "sigmoid",
            accumulate="float16",
        ),
        export=Export(resampling=read_resampling(config, "probabilities"), axis_rule="network"),
        labels=labels,
        previous_stage=previous,
        postprocessing=_postprocessing(folder),
    )
    return spec, network


def _previous_stage(config: Fields, labels: Labels) -> PreviousStage | None:
    name = config.raw("previous_stage", None)
    if name is None:
        return None
    return PreviousStage(
        labels=foreground(labels),
        rule="nnunet_v2",
        resampling=read_resampling(config, "seg"),
        configuration=config.text("previous_stage"),
    )


def _postprocessing(folder: Path) -> tuple[ComponentRule, ...]:
    """A decision placed in the model folder or beside it. One inside ``crossval_results_*`` belongs to those
    predictions; nnU-Net's predictor does not apply it either."""
    for path in (folder / "postprocessing.pkl", folder.parent / "postprocessing.pkl"):
        if path.is_file():
            return read_v2(path)
    return ()


def _notes(folder: Path, first: _Reading, spec: VolumeSpec) -> list[str]:
    notes = []
    if not known_trainer(first.trainer):
        notes.append(
            f"trainer {first.trainer} is not one of nnU-Net v2's own; whether it changes the network or inference "
            "cannot be seen from the plans. Compare one case with the framework"
        )
    if not spec.window.mirror_axes and "NoMirroring" not in first.trainer:
        notes.append("the checkpoint allows no mirroring axes; test-time mirroring is off")
    labels = foreground(spec.labels)
    if spec.labels.regions_class_order is None and labels != tuple(range(1, len(labels) + 1)):
        notes.append(f"labels {labels} are not consecutive; as nnU-Net does, channel numbers are written instead")
    if not spec.postprocessing:
        found = sorted(folder.glob("crossval_results_folds_*/postprocessing.pkl"))
        if found:
            notes.append(
                f"{found[0].parent.name} holds a post-processing decision, which nnU-Net's predictor does not apply; "
                "to apply it, copy postprocessing.pkl into the model folder"
            )
    return notes


def _check_agreement(folder: Path, first: _Reading, other: _Reading) -> None:
    shapes = [{name: ref.shape for name, ref in reading.tensors.items()} for reading in (first, other)]
    pairs = {
        "trainer": (first.trainer, other.trainer),
        "configuration": (first.configuration, other.configuration),
        "mirroring axes": (first.mirror_axes, other.mirror_axes),
        "weight names and shapes": (shapes[0], shapes[1]),
    }
    different = [name for name, (a, b) in pairs.items() if a != b]
    if different:
        raise CheckpointError(
            f"{folder}: folds {first.fold.name} and {other.fold.name} do not agree on {', '.join(different)}; "
            "they are not folds of one training",
            remedy="name-folds",
        )


def _check_heads(first: _Reading, network: NetworkDescription) -> None:
    """The U-Nets' heads tell the number of outputs; a contradiction is better reported now than at export."""
    for name, tensor in first.tensors.items():
        if re.fullmatch(r"decoder\.seg_layers\.\d+\.weight", name) and tensor.shape[:1] != (network.output_channels,):
            raise CheckpointError(
                f"{first.fold.path}: {name} has shape {tensor.shape}, dataset.json declares "
                f"{network.output_channels} outputs; weights and dataset.json are not from one training"
            )
