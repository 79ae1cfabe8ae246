"""Reading model folders of nnU-Net v1 and its UNet++ fork.

As the framework does, the stage and the plans are taken from inside ``.model.pkl``; ``plans.pkl`` only has to agree on
the number of channels. The pickles are read with a closed table, the weights without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from offline_infer.checkpoints.description import CheckpointDescription, NetworkDescription, Selection, Weights
from offline_infer.checkpoints.digests import checked_sha256, source_files
from offline_infer.checkpoints.fields import Fields, first_fault, plain, shown
from offline_infer.checkpoints.folders import LAYOUTS, Fold, choose_folds
from offline_infer.checkpoints.limits import MAX_CLASSES, MAX_TEXT
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.checkpoints.pickles.torch_file import TensorRef, TorchFile, open_torch_file
from offline_infer.checkpoints.plausibility import check_count
from offline_infer.checkpoints.postprocessing import read_v1
from offline_infer.checkpoints.state_dict import differing, state_dict
from offline_infer.checkpoints.v1.labels import read_labels
from offline_infer.checkpoints.v1.network import describe, deviations
from offline_infer.checkpoints.v1.plans import (
    Stage,
    read_channels,
    read_export_resampling,
    read_resampling,
    read_stage,
    read_transpose,
)
from offline_infer.checkpoints.v1.trainers import BRATS_ORDER, Traits, traits
from offline_infer.errors import CheckpointError, Remedy
from offline_infer.spec import (
    Aggregation,
    Channel,
    ComponentRule,
    Export,
    FoldSource,
    Gaussian,
    Labels,
    PreviousStage,
    Resampling,
    Source,
    VolumeSpec,
    Window,
)

LAYOUT = LAYOUTS[0]


@dataclass(frozen=True)
class _Reading:
    """What was read of one fold. ``spec`` has this fold alone as its source."""

    fold: Fold
    spec: VolumeSpec
    network: NetworkDescription
    file: TorchFile
    tensors: Mapping[str, TensorRef]
    notes: tuple[str, ...]


def read(folder: Path, selection: Selection, keep: Any = None) -> CheckpointDescription:
    """Read a model folder.

    Args:
        folder: holds ``fold_0`` and so on.
        selection: what to read of it.
        keep: an object to keep alive as long as the weights may be asked for.

    Raises:
        UnsafePickleError: a pickle names something outside the closed table; nothing was executed.
        CheckpointError: anything missing, damaged, unknown or contradictory. The message names the file.
        UsageError: names for labels that are not the model's.
    """
    chosen, notes = choose_folds(folder, LAYOUT, selection.folds, selection.checkpoint_name)
    readings = [_read_fold(folder, fold, selection) for fold in chosen]
    first = readings[0]
    for other in readings[1:]:
        different = differing(first.spec, other.spec, first.network, other.network)
        if different:
            raise CheckpointError(
                f"{folder}: folds {first.fold.name} and {other.fold.name} do not agree on {', '.join(different)}; "
                "they are not folds of one training",
                remedy="name-folds",
            )
    notes += _check_plans(folder, first)
    notes += _unprotected(readings, selection)
    source = first.spec.source.model_copy(
        update={
            "folds": tuple(fold for reading in readings for fold in reading.spec.source.folds),
            "files": source_files(folder, _file_names(folder, chosen)),
        }
    )
    return CheckpointDescription(
        spec=first.spec.model_copy(update={"source": source}),
        network=first.network,
        load_weights=_loader(readings, keep),
        notes=(*notes, *first.notes),
    )


def _loader(readings: Sequence[_Reading], keep: Any) -> Callable[[str], Weights]:
    by_name = {reading.fold.name: reading for reading in readings}

    def load(fold: str, _keep: Any = keep) -> Weights:
        if fold not in by_name:
            raise CheckpointError(f"no fold {fold!r} was read; there are {', '.join(by_name)}")
        return by_name[fold].file.arrays(by_name[fold].tensors)

    return load


def _read_fold(folder: Path, fold: Fold, selection: Selection) -> _Reading:
    digest = checked_sha256(fold.path, selection.expect_sha256)
    training = _read_training(_info_path(fold))
    file = open_torch_file(fold.path)
    tensors = state_dict(Fields(file.content, str(fold.path)).raw("state_dict"), str(fold.path))
    file.check(tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stage, trait = training.stage, training.traits
    network = describe(shapes, stage.pool_kernels, stage.conv_kernels, stage.patch_size, trait, str(fold.path))
    _check_channels(network, training, fold)
    source = FoldSource(fold=fold.name, checkpoint=fold.path.relative_to(folder).as_posix(), sha256=digest)
    labels = read_labels(folder, training.trainer, trait, training.classes, selection.labels)
    try:
        spec = _spec(folder, training, network, source, labels)
    except ValidationError as error:
        raise CheckpointError(
            f"{training.origin}: the plans make no valid specification: {first_fault(error)}"
        ) from error
    return _Reading(fold, spec, network, file, tensors, _notes(training, network))


@dataclass(frozen=True)
class _Training:
    """What ``.model.pkl`` says about a fold's training.

    Attributes:
        origin: how messages call the file.
        trainer: class name.
        traits: what that trainer changes about inference.
        plans: as they were when it was trained.
        stage: the one it was trained on.
        channels: of the image.
        classes: background included.
        previous: where it is the second stage of a cascade.
        output_folder: where the training wrote.
    """

    origin: str
    trainer: str
    traits: Traits
    plans: Fields
    stage: Stage
    channels: tuple[Channel, ...]
    classes: int
    previous: PreviousStage | None
    output_folder: Any


def _read_training(path: Path) -> _Training:
    info = Fields(read_pickle(path), str(path))
    plans, trainer = info.fields("plans"), info.text("name")
    trait = traits(trainer)
    init = plain(info.raw("init"))
    if not isinstance(init, list) or len(init) < 6:
        raise CheckpointError(f"{path}: init must be a list of the trainer's arguments")
    number = init[5]
    if number is not None and not isinstance(number, int):
        raise CheckpointError(f"{path}: the sixth trainer argument must be the stage's number, not {shown(number)}")
    stage, channels = read_stage(plans, number), read_channels(plans)
    foreground = plans.integer("num_classes")  # the plans leave the background out
    check_count("num_classes", foreground, MAX_CLASSES, plans.origin)
    classes = foreground + 1
    return _Training(
        origin=str(path),
        trainer=trainer,
        traits=trait,
        plans=plans,
        stage=stage,
        channels=channels,
        classes=classes,
        previous=_previous_stage(trait, classes),
        output_folder=init[2],
    )


def _spec(
    folder: Path, training: _Training, network: NetworkDescription, source: FoldSource, labels: Labels
) -> VolumeSpec:
    plans, stage, trait = training.plans, training.stage, training.traits
    dims = len(stage.patch_size)
    place = _place(training.output_folder, folder, dims)
    return VolumeSpec(
        source=Source(
            framework="nnunetplusplus" if network.kind == "unetplusplus" else "nnunet_v1",
            trainer=training.trainer,
            plans_name=place.plans,
            dataset=place.dataset,
            configuration=place.configuration,
            network=network.class_name,
            folds=(source,),
        ),
        reader="SimpleITKIO",
        channels=training.channels,
        spacing=stage.spacing,
        patch_size=stage.patch_size,
        transpose_forward=read_transpose(plans),
        normalize_after_resampling=True,
        resampling=read_resampling(plans, dims),
        window=Window(
            mirror_axes=tuple(range(dims)) if trait.mirror else (),
            gaussian=Gaussian(peak=1.0, dtype="float32", apply="several_tiles"),
        ),
        aggregation=Aggregation(
            domain="probabilities", activation="sigmoid" if trait.regions else "softmax", accumulate="float32"
        ),
        export=Export(resampling=read_export_resampling(plans), axis_rule="nnunet_v1"),
        labels=labels,
        previous_stage=training.previous,
        postprocessing=_postprocessing(folder, labels),
    )


def _notes(training: _Training, network: NetworkDescription) -> tuple[str, ...]:
    if training.traits.known:
        return ()
    plans, trainer = training.plans, training.trainer
    base, convs = plans.integer("base_num_features"), plans.integer("conv_per_stage", 2)
    found = deviations(network, base, convs, training.stage.conv_kernels)
    built = f" (the weights show {'; '.join(found)})" if found else ""
    return (
        f"trainer {trainer} is not one of nnU-Net v1's own: its weights fit {network.class_name}{built}, but whether "
        "it changes activations, mirroring or normalisation cannot be seen from them. Compare one case with the "
        "framework",
    )


def _unprotected(readings: Sequence[_Reading], selection: Selection) -> list[str]:
    """A note about weights files without checksums, unless their digests were given."""
    legacy = [reading for reading in readings if not reading.file.has_checksums]
    if not legacy or selection.expect_sha256:
        return []
    remedy = Remedy("expect-hash", {"hashes": " ".join(reading.spec.source.folds[0].sha256 for reading in legacy)})
    names = ", ".join(reading.fold.name for reading in legacy)
    return [
        f"the weights of fold {names} were saved by torch before 1.6 and carry no checksum, so a damaged number in them "
        f"cannot be noticed; compare their SHA-256 with their publisher's {remedy}"
    ]


def _info_path(fold: Fold) -> Path:
    return fold.path.with_name(fold.path.name + ".pkl")


def _file_names(folder: Path, folds: Sequence[Fold]) -> list[str]:
    infos = [_info_path(fold).relative_to(folder).as_posix() for fold in folds]
    return [*infos, "plans.pkl", "dataset.json", "postprocessing.json"]


def _previous_stage(trait: Traits, classes: int) -> PreviousStage | None:
    if not trait.cascade or classes < 2:
        return None
    return PreviousStage(
        labels=tuple(range(1, classes)),
        rule="nnunet_v1",
        resampling=Resampling(order=1, order_z=0),
        configuration="3d_lowres",
    )


def _check_channels(network: NetworkDescription, training: _Training, fold: Fold) -> None:
    images, previous = len(training.channels), training.previous
    inputs = images + (len(previous.labels) if previous else 0)
    if network.input_channels != inputs:
        raise CheckpointError(
            f"{fold.path}: the network takes {network.input_channels} channels, the plans give {inputs} "
            f"({images} image channels, {inputs - images} from a previous stage)"
        )
    outputs = len(BRATS_ORDER) if training.traits.regions else training.classes
    if network.output_channels != outputs:
        hint = ""
        if network.output_channels == training.classes - 1:
            hint = (
                f"; if {training.trainer} trains regions, its regions are known to its own code only, and this reader "
                "knows those of the BraTSRegions trainers"
            )
        raise CheckpointError(
            f"{fold.path}: the network has {network.output_channels} outputs, {outputs} were expected{hint}"
        )


def _postprocessing(folder: Path, labels: Labels) -> tuple[ComponentRule, ...]:
    path = folder / "postprocessing.json"
    return read_v1(path, range(1, labels.largest + 1)) if path.is_file() else ()


def _check_plans(folder: Path, first: _Reading) -> list[str]:
    """Notes about ``plans.pkl``, of which the framework uses the number of channels only."""
    path = folder / "plans.pkl"
    if not path.is_file():
        return ["plans.pkl is missing; the plans inside the checkpoint were used"]
    count = Fields(read_pickle(path), str(path)).integer("num_modalities")
    if count != len(first.spec.channels):
        raise CheckpointError(
            f"{path} is for {count} channels, the checkpoint for {len(first.spec.channels)}; "
            "they are not from one training"
        )
    return []


@dataclass(frozen=True)
class _Place:
    """Dataset, configuration and plans' name."""

    dataset: str
    configuration: str
    plans: str


def _place(output_folder: Any, folder: Path, dims: int) -> _Place:
    """From the output folder the training recorded, ``.../3d_fullres/Task003_Liver/<trainer>__<plans>``; if that has
    another form, from the folder's current path."""
    recorded = str(output_folder)[-MAX_TEXT:]
    for parts in (re.split(r"[\\/]", recorded if recorded.isprintable() else ""), list(folder.absolute().parts)):
        for index in range(len(parts) - 1, 0, -1):
            if re.match(r"Task\d+_", parts[index]):
                plans = parts[index + 1].split("__")[-1] if len(parts) > index + 1 else "unknown"
                return _Place(parts[index], parts[index - 1], plans)
    return _Place("unknown", "2d" if dims == 2 else "3d", folder.name.split("__")[-1] or "unknown")
