"""What nnU-Net v2's plans and dataset.json say about a configuration, as the pieces of a specification."""

from __future__ import annotations

import copy
import re
from typing import Any

from offline_infer.checkpoints.fields import Fields, plain, printable, shown
from offline_infer.checkpoints.limits import MAX_CLASSES
from offline_infer.errors import CheckpointError
from offline_infer.spec import Channel, Intensity, Labels, Resampling

NORMALIZATIONS = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_01",
    "RGBTo01Normalization": "rgb_to_01",
}
RESAMPLINGS = {
    "resample_data_or_seg_to_shape": "default",
    "resample_torch_simple": "torch",
    "resample_torch_fornnunet": "torch_separate_z",
    "no_resampling_hack": "none",
}
READERS = (
    "SimpleITKIO",
    "SimpleITKIOWithReorient",
    "NibabelIO",
    "NibabelIOWithReorient",
    "NaturalImage2DIO",
    "Tiff3DIO",
)
MAX_INHERITANCE = 32

_RESAMPLING_ARGUMENTS = {
    "default": {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"},
    "torch": {"is_seg", "num_threads", "device", "memefficient_seg_resampling", "mode"},
    "torch_separate_z": {
        "is_seg",
        "num_threads",
        "device",
        "memefficient_seg_resampling",
        "force_separate_z",
        "separate_z_anisotropy_threshold",
        "mode",
        "aniso_axis_mode",
    },
    "none": set(),
}


def configuration(plans: Fields, name: str) -> Fields:
    """A configuration with everything it inherits.

    Raises:
        CheckpointError: an unknown configuration (the message lists the known ones), or circular inheritance.
    """
    configurations = plans.fields("configurations")
    merged: dict[Any, Any] = {}
    visited: list[str] = []
    current: str | None = name
    while current is not None:
        if current in visited or len(visited) >= MAX_INHERITANCE:
            raise CheckpointError(
                f"{plans.origin}: configurations inherit in a circle: {' -> '.join([*visited, current])}"
            )
        if current not in configurations:
            known = ", ".join(shown(key) for key in configurations)
            raise CheckpointError(f"{plans.origin}: there is no configuration {current!r}; it has {known}")
        visited.append(current)
        own = configurations.fields(current)
        merged = {**own.content, **merged}
        current = own.text("inherits_from") if "inherits_from" in own else None
    return Fields(copy.deepcopy(merged), f"{plans.origin}, configuration {name}")


def read_channels(plans: Fields, config: Fields, dataset: Fields) -> tuple[Channel, ...]:
    """The input channels and how they are normalised.

    Raises:
        CheckpointError: an unknown normalisation (the message lists the known ones), or lists of different lengths.
    """
    names = dataset.fields("channel_names" if "channel_names" in dataset else "modality")
    schemes = plain(config.raw("normalization_schemes"))
    masks = plain(config.raw("use_mask_for_norm"))
    if not isinstance(schemes, list) or not isinstance(masks, list) or not len(schemes) == len(masks) == len(names):
        raise CheckpointError(
            f"{config.origin}: normalization_schemes and use_mask_for_norm must have one entry for each of the "
            f"{len(names)} channels of {dataset.origin}"
        )
    for key in ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"):
        if plans.raw(key, None):
            figures = plans.fields(key)
            break
    else:
        figures = Fields({}, plans.origin)
    channels = []
    for index, key in enumerate(sorted(names, key=_channel_number)):
        wrapped = Fields({"normalization_schemes": schemes[index]}, config.origin)
        scheme = wrapped.choice("normalization_schemes", NORMALIZATIONS, "normalisation")
        channels.append(
            Channel(
                name=names.name(key),
                scheme=scheme,
                use_mask=scheme == "zscore" and bool(masks[index]),  # the other schemes do not look at the mask
                std_guard="max",
                intensity=_intensity(figures, index) if scheme == "ct" else None,
            )
        )
    return tuple(channels)


def read_labels(dataset: Fields) -> Labels:
    """What the outputs mean, as the framework's label manager decides it.

    Raises:
        CheckpointError: no background, regions without an order, or an ignore label out of place.
    """
    declared = dataset.fields("labels")
    names: dict[str, int | tuple[int, ...]] = {}
    for name in declared:
        values = declared.integers(name) if isinstance(declared.raw(name), list) else (declared.integer(name),)
        if not values or min(values) < 0 or max(values) > MAX_CLASSES:
            raise CheckpointError(f"{declared.origin}: {shown(name)} is neither a label nor a list of labels")
        names[printable(name, declared.origin)] = values[0] if len(values) == 1 else values
    if names.get("background") != 0:
        raise CheckpointError(f"{declared.origin}: the background must be declared as label 0")
    ignore = names.get("ignore")
    entries = [value for name, value in names.items() if name != "ignore"]
    everything = sorted({label for value in entries for label in _as_tuple(value)})
    if ignore is not None and ignore != everything[-1] + 1:
        raise CheckpointError(f"{declared.origin}: the ignore label must be {everything[-1] + 1}, not {ignore}")
    ignored = ignore if isinstance(ignore, int) else None
    if not any(isinstance(value, tuple) for value in entries):
        # The framework writes the index of the channel, which is the label where labels are consecutive.
        return Labels(names=names, channel_values=tuple(range(len(everything))), ignore=ignored)
    regions = [value for value in entries if value != 0 and set(_as_tuple(value)) != {0}]
    if dataset.raw("regions_class_order", None) is None:
        raise CheckpointError(f"{dataset.origin}: labels with regions need regions_class_order")
    order = dataset.integers("regions_class_order")
    if len(order) != len(regions):
        raise CheckpointError(
            f"{dataset.origin}: regions_class_order has {len(order)} entries for {len(regions)} regions"
        )
    return Labels(names=names, regions_class_order=order, ignore=ignored)


def foreground(labels: Labels) -> tuple[int, ...]:
    """All labels but background and ignore, ascending."""
    values = {label for name, value in labels.names.items() if name != "ignore" for label in _as_tuple(value)}
    return tuple(sorted(values - {0}))


def read_resampling(config: Fields, what: str) -> Resampling:
    """The resampling function of ``data``, ``seg`` or ``probabilities`` with its arguments.

    Raises:
        CheckpointError: an unknown function or argument; the message lists the known ones.
    """
    function = config.choice(f"resampling_fn_{what}", RESAMPLINGS, "resampling function")
    arguments = Fields(config.raw(f"resampling_fn_{what}_kwargs", None) or {}, f"{config.origin}, resampling of {what}")
    known = _RESAMPLING_ARGUMENTS[function]
    unknown = sorted(shown(key) for key in arguments if key not in known)
    if unknown:
        raise CheckpointError(
            f"{arguments.origin}: unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
        )
    # Where an argument is absent, the framework's functions have these defaults.
    force = arguments.raw("force_separate_z", False if function == "default" else None)
    return Resampling(
        function=function,
        order=arguments.integer("order", 3),
        order_z=arguments.integer("order_z", 0),
        force_separate_z=None if force is None else bool(force),
        anisotropy_threshold=arguments.number("separate_z_anisotropy_threshold", 3),
        mode=arguments.text("mode", "linear"),
        aniso_axis_mode=arguments.text("aniso_axis_mode", "nearest-exact"),
        memory_efficient_labels=bool(arguments.raw("memefficient_seg_resampling", False)),
    )


def read_file_ending(dataset: Fields) -> str:
    """The ending of image files, which becomes part of every result's name.

    Raises:
        CheckpointError: it is not a plain ending such as ``.nii.gz``.
    """
    ending = dataset.text("file_ending", ".nii.gz")
    if not re.fullmatch(r"(\.[A-Za-z0-9]{1,16}){1,2}", ending):
        raise CheckpointError(f"{dataset.origin}: file_ending {shown(ending)} is not a plain ending such as '.nii.gz'")
    return ending


def read_reader(plans: Fields, dataset: Fields) -> str:
    """nnU-Net's reader class: the plans' one, which the planner chose with dataset.json's override in mind.

    Raises:
        CheckpointError: a reader that is not known; the message lists the known ones.
    """
    override = dataset.raw("overwrite_image_reader_writer", None)
    default = override if override not in (None, "None") else "SimpleITKIO"
    known = {reader: reader for reader in READERS}
    reader = plans.choice("image_reader_writer", known, "image reader", default)
    assert isinstance(reader, str)
    return reader


def _intensity(figures: Fields, index: int) -> Intensity:
    channel = figures.fields(str(index) if str(index) in figures else index)
    return Intensity(
        mean=channel.number("mean"),
        std=channel.number("std"),
        percentile_00_5=channel.number("percentile_00_5"),
        percentile_99_5=channel.number("percentile_99_5"),
    )


def _channel_number(key: Any) -> tuple[int, str]:
    text = str(key)
    return (int(text) if text.isdecimal() and len(text) < 7 else 10**6, text)


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
