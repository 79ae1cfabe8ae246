"""Results of a volume on disk: the label map, and the probabilities in nnU-Net's own layout where they are asked for."""

from __future__ import annotations

from pathlib import Path

from offline_infer.images import write_labels
from offline_infer.nnunet_files.probabilities import probability_files, write_probabilities
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.deciding import Segmentation


def result_files(folder: Path, case_id: str, spec: VolumeSpec, settings: RunSettings) -> list[Path]:
    """Files that must exist for a case to count as done, the label map first; each is written whole or not at all."""
    files = [folder / f"{case_id}{spec.file_ending}"]
    return [*files, *probability_files(folder / case_id)] if settings.save_probabilities else files


def write_result(result: Segmentation, folder: Path, case_id: str, spec: VolumeSpec) -> Path:
    """Write the probabilities, if the result has them, and then the label map; returns the label map's path."""
    path = folder / f"{case_id}{spec.file_ending}"
    if result.probabilities is not None:
        write_probabilities(folder / case_id, result.probabilities, result.geometry, spec)
    write_labels(path, result.labels, result.geometry.image)
    return path
