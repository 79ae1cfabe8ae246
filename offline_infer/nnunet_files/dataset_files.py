"""The two files nnU-Net v2's own commands expect beside predictions: ``dataset.json`` and ``plans.json``.

``nnUNetv2_ensemble``, ``nnUNetv2_evaluate_folder`` and ``nnUNetv2_apply_postprocessing`` read labels, file ending and
reader from them. What they read is in the bundle; the rest of the original files is not needed and not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offline_infer.files import keep_json
from offline_infer.spec import VolumeSpec


def write_framework_files(folder: Path, spec: VolumeSpec) -> None:
    """Write ``dataset.json`` and ``plans.json`` for a folder of predictions of an nnU-Net v2 model; for others, nothing."""
    if spec.source.framework != "nnunet_v2":
        return
    keep_json(folder / "dataset.json", _dataset(spec))
    keep_json(folder / "plans.json", _plans(spec))


def _dataset(spec: VolumeSpec) -> dict[str, Any]:
    names = {name: list(value) if isinstance(value, tuple) else value for name, value in spec.labels.names.items()}
    record: dict[str, Any] = {
        "channel_names": {str(number): channel.name for number, channel in enumerate(spec.channels)},
        "labels": names,
        "file_ending": spec.file_ending,
    }
    if spec.labels.regions_class_order is not None:
        record["regions_class_order"] = list(spec.labels.regions_class_order)
    return record


def _plans(spec: VolumeSpec) -> dict[str, Any]:
    return {
        "dataset_name": spec.source.dataset,
        "plans_name": spec.source.plans_name,
        "image_reader_writer": spec.reader,
        "transpose_forward": list(spec.transpose_forward),
        "transpose_backward": list(spec.transpose_backward),
        "configurations": {},
        "label_manager": "LabelManager",
    }
