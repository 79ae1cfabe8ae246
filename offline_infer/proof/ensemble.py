"""Averaging models from saved probabilities, as ``nnUNetv2_ensemble`` and v1's ``nnUNet_ensemble`` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.components import apply_component_rules
from offline_infer.arithmetic.geometry import Box, CaseGeometry, ImageGeometry
from offline_infer.arithmetic.labels import decide, label_dtype
from offline_infer.checkpoints.pickles.reading import read_pickle
from offline_infer.errors import CaseError, CasesFailed, GeometryError, ImageError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.images import read_labels, write_labels
from offline_infer.nnunet_files.probabilities import read_npz, write_probabilities
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.volume.deciding import Segmentation


@dataclass(frozen=True)
class Member:
    """One prediction folder of an ensemble: label maps with ``.npz`` probabilities beside them."""

    folder: Path

    def cases(self) -> set[str]:
        return {path.name[: -len(".npz")] for path in self.folder.glob("*.npz")}


def ensemble_folders(
    folders: Sequence[Path],
    output: Path,
    spec: VolumeSpec,
    *,
    save_probabilities: bool = False,
    postprocess: bool = False,
    overwrite: bool = False,
    sink: Sink = silent,
) -> list[str]:
    """Average the probabilities of several runs case by case and write the label maps.

    A plain float32 mean, then argmax (or the region rule). The label map of the first folder gives the geometry.

    Args:
        folders: at least two folders written with ``--save-probabilities`` (ours or nnU-Net's).
        spec: of any of the models; they must share their labels.

    Returns:
        The cases written.

    Raises:
        UsageError: fewer than two folders, or they do not hold the same cases.
        CasesFailed: some cases could not be read; the others are complete.
    """
    if len(folders) < 2:
        raise UsageError("an ensemble needs at least two prediction folders")
    members = [Member(folder) for folder in folders]
    cases = set().union(*(member.cases() for member in members))
    for member in members:
        missing = sorted(cases - member.cases())
        if missing or not cases:
            raise UsageError(
                f"{member.folder}: no .npz for {', '.join(missing[:5]) or 'any case'}; every folder must hold the same cases, "
                "predicted with --save-probabilities"
            )
    output.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    written = []
    for case in sorted(cases):
        target = output / f"{case}{spec.file_ending}"
        if target.exists() and not overwrite:
            sink(Event("case-skipped", "ensemble", case, data={"file": str(target)}))
            continue
        try:
            segmentation = _average(case, folders, spec)
            if postprocess and spec.postprocessing:
                volume = float(np.prod(segmentation.geometry.image.spacing))
                labels = apply_component_rules(segmentation.labels, spec.postprocessing, volume)
                segmentation = Segmentation(labels, segmentation.probabilities, segmentation.geometry)
            if save_probabilities and segmentation.probabilities is not None:
                write_probabilities(output / case, segmentation.probabilities, segmentation.geometry, spec)
            write_labels(target, segmentation.labels, segmentation.geometry.image)
            written.append(case)
            sink(Event("case-finished", "ensemble", case, data={"file": str(target)}))
        except CaseError as error:
            failures[case] = str(error)
            sink(Event("case-failed", "ensemble", case, data={"reason": str(error)}))
    if failures:
        raise CasesFailed(failures, len(cases))
    return written


def _average(case: str, folders: Sequence[Path], spec: VolumeSpec) -> Segmentation:
    """The mean of one case over all folders, decided."""
    total: npt.NDArray[np.float32] | None = None
    kind = ""
    for folder in folders:
        path = folder / f"{case}.npz"
        name, array = read_npz(path)
        if total is None:
            total, kind = array.astype(np.float32), name
        elif name != kind or array.shape != total.shape:
            raise GeometryError(f"{path}: {name} {array.shape} does not fit the first folder's {kind} {total.shape}")
        else:
            total += array
    assert total is not None
    total /= len(folders)
    if kind == "softmax":
        # v1 stores half precision, and NumPy gives the mean of half-precision arrays in half precision.
        total = total.astype(np.float16).astype(np.float32)
    if total.shape[0] != spec.labels.channels:
        raise GeometryError(f"{case}: {total.shape[0]} probability channels, but the model has {spec.labels.channels}")
    frame, crop = _frame(case, folders[0], spec, kind)
    geometry = CaseGeometry(frame, crop, frame.shape, frame.spacing, (0, 1, 2))
    if total.shape[1:] != geometry.cropped_shape:
        raise GeometryError(
            f"{case}: probabilities {total.shape[1:]} do not fit the image region {geometry.cropped_shape}"
        )
    whole = np.zeros(frame.shape, label_dtype(spec.labels))
    averaged = spec.aggregation.model_copy(update={"domain": "probabilities"})
    whole[tuple(slice(first, last) for first, last in crop)] = decide(total, spec.labels, averaged)
    return Segmentation(whole, total, geometry)


def _frame(case: str, folder: Path, spec: VolumeSpec, kind: str) -> tuple[ImageGeometry, Box]:
    """Where the case lies: from its label map, and for v1's cropped arrays from the properties beside."""
    label_file = folder / f"{case}{spec.file_ending}"
    if not label_file.exists():
        raise ImageError(f"{label_file}: not found; it gives the ensemble its geometry")
    _, frame = read_labels(label_file)
    if kind == "probabilities":
        z, y, x = frame.shape
        return frame, ((0, z), (0, y), (0, x))
    record: Any = read_pickle(folder / f"{case}.pkl")
    try:
        a, b, c = ((int(first), int(last)) for first, last in record["crop_bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{folder / case}.pkl: no crop_bbox of three intervals; is it nnU-Net's record?") from error
    return frame, (a, b, c)
