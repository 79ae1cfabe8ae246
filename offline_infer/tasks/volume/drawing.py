"""A picture of a volume with its label map and its reference."""

from __future__ import annotations

from pathlib import Path

from offline_infer.images import read_image, read_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.proof.pictures.overlay import OverlayStyle, write_overlay
from offline_infer.spec import VolumeSpec


def draw_case(
    case: CaseFiles, predictions: Path, references: Path | None, spec: VolumeSpec, picture: Path, title: str
) -> None:
    """Draw a case; see :meth:`offline_infer.tasks.base.Task.draw`."""
    image = read_image(case.channels, spec.reader, channels=len(spec.channels))
    name = f"{case.case_id}{spec.file_ending}"
    reference = references / name if references is not None else None
    known = reference is not None and reference.exists()
    write_overlay(
        picture,
        image.array[0],
        read_labels(predictions / name, spec.reader)[0],
        read_labels(reference, spec.reader)[0] if known and reference is not None else None,
        spacing=image.geometry.spacing,
        direction=image.geometry.direction,
        style=OverlayStyle(names=spec.label_names(), title=title),
    )
