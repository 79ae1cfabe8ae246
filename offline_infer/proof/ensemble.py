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
from offline_infer.errors import CasesFailed, GeometryError, ImageError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import inside, plain_name
from offline_infer.folders import held
from offline_infer.images import read_geometry, write_labels
from offline_infer.nnunet_files.probabilities import read_npz, write_probabilities
from offline_infer.nnunet_files.readers import recorded_reader, turn_of
from offline_infer.proof.evaluation.pool import raise_if_disk_refuses, reason_of
from offline_infer.spec import VolumeSpec

STAGE = "ensemble"


@dataclass(frozen=True)
class Averaged:
    """One case averaged over all members.

    Attributes:
        labels: (z, y, x) in the image's own grid.
        probabilities: (k, z, y, x) of the cropped region, image axis order.
        geometry: where that lies.
    """

    labels: npt.NDArray[np.unsignedinteger]
    probabilities: npt.NDArray[np.float32]
    geometry: CaseGeometry


@dataclass(frozen=True)
class Member:
    """A prediction folder of an ensemble: label maps with ``.npz`` probabilities beside them."""

    folder: Path

    def cases(self) -> set[str]:
        """Their names; hidden files are left alone.

        Raises:
            UsageError: a file's name that cannot be a case's.
        """
        files = (path for path in self.folder.glob("*.npz") if not path.name.startswith("."))
        return {plain_name(path.name[: -len(".npz")], "case's name") for path in files}


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
        folders: at least two folders with saved probabilities (ours or nnU-Net's).
        spec: of any of the models; they must share their labels.

    Returns:
        The cases written.

    Raises:
        UsageError: fewer than two folders, they do not hold the same cases, ``output`` is one of them, or another process is
            writing there.
        DiskBudgetError: the disk is full; what was written is complete.
        CasesFailed: some cases could not be read; the others are complete.
    """
    if any(output.exists() and output.samefile(folder) for folder in folders if folder.exists()):
        raise UsageError(
            f"{output} is one of the members, whose results would be replaced; name another folder to write"
        )
    cases = _shared_cases(folders)
    output.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    written = []
    with held(output, STAGE):
        for case in cases:
            target = inside(output, output / f"{case}{spec.file_ending}")
            if target.exists() and not overwrite:
                sink(Event("case-skipped", STAGE, case, data={"file": str(target)}))
                continue
            try:
                averaged_case = _average(case, folders, spec)
                if postprocess and spec.postprocessing:
                    averaged_case = _cleaned(averaged_case, spec)
                if save_probabilities:
                    write_probabilities(output / case, averaged_case.probabilities, averaged_case.geometry, spec)
                write_labels(target, averaged_case.labels, averaged_case.geometry.image)
                written.append(case)
                sink(Event("case-finished", STAGE, case, data={"file": str(target)}))
            except (OfflineInferError, OSError, MemoryError) as error:
                raise_if_disk_refuses(error, case, STAGE)
                failures[case] = reason_of(error)
                sink(Event("case-failed", STAGE, case, data={"reason": failures[case]}))
    if failures:
        raise CasesFailed(failures, len(cases))
    return written


def _shared_cases(folders: Sequence[Path]) -> list[str]:
    """The cases, which every folder must hold.

    Raises:
        UsageError: fewer than two folders, or a case that is missing from one.
    """
    if len(folders) < 2:
        raise UsageError("an ensemble needs at least two prediction folders")
    members = [Member(folder) for folder in folders]
    cases = set().union(*(member.cases() for member in members))
    for member in members:
        missing = sorted(cases - member.cases())
        if missing or not cases:
            raise UsageError(
                f"{member.folder}: no .npz for {', '.join(missing[:5]) or 'any case'}; every folder must hold the same cases",
                remedy="save-probabilities",
            )
    return sorted(cases)


def _cleaned(averaged_case: Averaged, spec: VolumeSpec) -> Averaged:
    """After the model's component rules."""
    volume = float(np.prod(averaged_case.geometry.image.spacing))
    labels = apply_component_rules(averaged_case.labels, spec.postprocessing, volume)
    return Averaged(labels, averaged_case.probabilities, averaged_case.geometry)


def _average(case: str, folders: Sequence[Path], spec: VolumeSpec) -> Averaged:
    """The mean of one case over all folders, decided."""
    kind, total = _mean(case, folders)
    if total.shape[0] != spec.labels.channels:
        raise GeometryError(f"{case}: {total.shape[0]} probability channels, but the model has {spec.labels.channels}")
    _require_same_axes(case, folders, spec)
    frame, crop = _frame(case, folders[0], spec, kind)
    geometry = CaseGeometry(frame, crop, frame.shape, frame.spacing, (0, 1, 2))
    if total.shape[1:] != geometry.cropped_shape:
        raise GeometryError(
            f"{case}: probabilities {total.shape[1:]} do not fit the image region {geometry.cropped_shape}"
        )
    whole = np.zeros(frame.shape, label_dtype(spec.labels))
    averaged = spec.aggregation.model_copy(update={"domain": "probabilities"})
    whole[tuple(slice(first, last) for first, last in crop)] = decide(total, spec.labels, averaged)
    return Averaged(whole, total, geometry)


def _mean(case: str, folders: Sequence[Path]) -> tuple[str, npt.NDArray[np.float32]]:
    """The kind of the probability files (``probabilities`` or ``softmax``), and their mean (k, z, y, x)."""
    kind, first = read_npz(folders[0] / f"{case}.npz")
    total: npt.NDArray[np.float32] = first.astype(np.float32)
    for folder in folders[1:]:
        path = folder / f"{case}.npz"
        name, array = read_npz(path)
        if name != kind or array.shape != total.shape:
            raise GeometryError(f"{path}: {name} {array.shape} does not fit the first folder's {kind} {total.shape}")
        total += array
    total /= len(folders)
    if kind == "softmax":
        # v1 stores half precision, and NumPy gives the mean of half-precision arrays in half precision.
        total = total.astype(np.float16).astype(np.float32)
    return kind, total


def _require_same_axes(case: str, folders: Sequence[Path], spec: VolumeSpec) -> None:
    """Probabilities of models with different readers may lie in different axes, with equal shapes all the same.

    Raises:
        GeometryError: they do.
    """
    for folder in folders:
        reader = recorded_reader(folder / f"{case}.npz") or spec.reader
        label_file = folder / f"{case}{spec.file_ending}"
        if reader != spec.reader and turn_of(label_file, reader) != turn_of(label_file, spec.reader):
            raise GeometryError(
                f"{folder / case}.npz: lies in the axes of {reader}, but the ensemble's model reads with {spec.reader}; "
                "only models whose readers turn their images alike can be averaged"
            )


def _frame(case: str, folder: Path, spec: VolumeSpec, kind: str) -> tuple[ImageGeometry, Box]:
    """Where the case lies: from its label map, in the axes of the model's reader, where the probabilities lie too.

    v1's arrays are cropped, and their place is in the properties beside them.
    """
    label_file = folder / f"{case}{spec.file_ending}"
    if not label_file.exists():
        raise ImageError(f"{label_file}: not found; it gives the ensemble its geometry")
    frame = read_geometry([label_file], spec.reader, label=True)
    if kind == "probabilities":
        z, y, x = frame.shape
        return frame, ((0, z), (0, y), (0, x))
    record: Any = read_pickle(folder / f"{case}.pkl")
    try:
        a, b, c = ((int(first), int(last)) for first, last in record["crop_bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{folder / case}.pkl: no crop_bbox of three intervals; is it nnU-Net's record?") from error
    return frame, (a, b, c)
