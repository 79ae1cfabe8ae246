"""Figures of every label of a cohort: volume, place, extent, and intensity where the images are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offline_infer.arithmetic.components import label_boxes
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import GeometryError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.proof.csv_tables import write_table
from offline_infer.proof.evaluation.pairs import case_of, label_files
from offline_infer.proof.evaluation.pool import run_cases
from offline_infer.proof.image_files import image_of

STAGE = "statistics"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

Row = dict[str, Any]


@dataclass(frozen=True)
class StatisticsCase:
    """One case: its label map and, if known, the image to take intensities from."""

    case: str
    labels: Path
    image: Path | None = None


@dataclass(frozen=True)
class Statistics:
    """Figures of a cohort.

    Attributes:
        rows: one per case and label, in the order of the cases.
        failed: case -> reason.
        total: cases there are.
    """

    rows: tuple[Row, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    total: int = 0

    def to_json(self, names: Mapping[int, str] | None = None) -> dict[str, Any]:
        return {
            "kind": "offline_infer.statistics",
            "version": 1,
            "units": {
                "volume_ml": "mL",
                "centroid_mm": "mm (x, y, z), LPS",
                "centroid_voxel": "voxels (z, y, x)",
                "box_voxel": "half-open interval per axis, voxels (z, y, x)",
                "box_mm": "extent per axis, mm (z, y, x)",
            },
            "labels": {str(value): name for value, name in (names or {}).items()},
            "cases": len({row["case"] for row in self.rows}),
            "failed": dict(self.failed),
            "statistics": list(self.rows),
        }


def folder_statistics(
    labels: Path,
    images: Path | None = None,
    *,
    channel: int = 0,
    wanted: Sequence[int] | None = None,
    jobs: int = 1,
    sink: Sink = silent,
) -> Statistics:
    """Figures of every label map of a folder, or of one file.

    Args:
        labels: a folder of label maps, or one.
        images: a folder of images named ``case_0000.nii.gz`` or ``case.nii.gz``, or one; without it there are no
            intensities.
        channel: number at the end of the image's name.
        wanted: labels to describe, also where they do not occur; None takes those found, without background.
        jobs: processes.

    Raises:
        UsageError: a path that does not exist, holds no label map, or options that make no sense.
    """
    cases = find_statistics_cases(labels, images, channel)
    if images is not None:
        for case in cases:
            if case.image is None:
                sink(Event("note", STAGE, case.case, data={"note": f"no image in {images}; no intensities"}))
    return cohort_statistics(cases, wanted, jobs=jobs, sink=sink)


def cohort_statistics(
    cases: Sequence[StatisticsCase], wanted: Sequence[int] | None = None, *, jobs: int = 1, sink: Sink = silent
) -> Statistics:
    """Figures of these cases; see :func:`folder_statistics`. A case that cannot be read fails alone."""
    chosen = None if wanted is None else tuple(wanted)
    outcomes = run_cases(
        case_statistics,
        {case.case: (case, chosen) for case in cases},
        jobs=jobs,
        stage=STAGE,
        sink=sink,
        describe=lambda rows: {"labels": len(rows)},
    )
    rows = tuple(row for found in outcomes.done.values() for row in found)
    return Statistics(rows, outcomes.failed, len(cases))


def write_statistics(stem: Path, found: Statistics, names: Mapping[int, str] | None = None) -> tuple[Path, Path]:
    """Write ``stem.csv`` and ``stem.json``, and give both back."""
    table, record = (stem.with_name(f"{stem.name}{ending}") for ending in (".csv", ".json"))
    write_table(table, flat_rows(found.rows, names))
    write_json(record, found.to_json(names))
    return table, record


def find_statistics_cases(labels: Path, images: Path | None, channel: int = 0) -> list[StatisticsCase]:
    """The label maps of a folder, or one file, each with its image where there is one.

    Raises:
        UsageError: a path that does not exist, or holds no label map.
    """
    for path in (labels, images):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: does not exist")
    if labels.is_file():
        case = case_of(labels.name)
        if case is None:
            raise UsageError(f"{labels}: not a label file by its name")
        files = {case: labels}
    else:
        files = label_files(labels)
    if images is not None and images.is_file():
        if len(files) != 1:
            raise UsageError(
                f"{images} is one image, but {labels} holds {len(files)} label maps; name a folder of images"
            )
        return [StatisticsCase(case, path, images) for case, path in files.items()]
    return [StatisticsCase(case, path, image_of(images, case, channel)) for case, path in files.items()]


def case_statistics(case: StatisticsCase, wanted: Sequence[int] | None = None) -> list[Row]:
    """One row per label of a case.

    Raises:
        ImageError: a file cannot be read.
        GeometryError: image and label map differ in shape.
    """
    from offline_infer.images import read_image, read_labels

    labels, frame = read_labels(case.labels)
    image = None
    if case.image is not None:
        loaded = read_image([case.image], frame.reader)
        image = loaded.array[0]
        if image.shape != labels.shape:
            raise GeometryError(
                f"{case.image} has shape {image.shape} and {case.labels} {labels.shape} (z, y, x); expected the same grid"
            )
    return [{"case": case.case, **row} for row in label_statistics(labels, frame, image, wanted)]


def label_statistics(
    labels: npt.NDArray[np.integer[Any]],
    frame: ImageGeometry,
    image: npt.NDArray[np.floating[Any]] | None = None,
    wanted: Sequence[int] | None = None,
) -> list[Row]:
    """Figures of each label of a map (z, y, x).

    Args:
        image: (z, y, x), the intensities; None leaves them out.
        wanted: labels to describe; None takes those found, without background.
    """
    values = sorted({int(v) for v in np.unique(labels)} - {0}) if wanted is None else list(wanted)
    boxes = _boxes(labels, values)
    return [_describe(labels, frame, image, value, boxes.get(value)) for value in values]


def _describe(
    labels: npt.NDArray[np.integer[Any]],
    frame: ImageGeometry,
    image: npt.NDArray[np.floating[Any]] | None,
    value: int,
    box: tuple[slice, ...] | None,
) -> Row:
    row: Row = {"label": value, "voxels": 0, "volume_ml": 0.0, "centroid_mm": None, "centroid_voxel": None}
    row |= {"box_voxel": None, "box_mm": None}
    if image is not None:
        row["intensity"] = None
    if box is None:
        return row
    mask = labels[box] == value
    count = int(np.count_nonzero(mask))
    centroid = [float(place.mean()) + part.start for place, part in zip(np.nonzero(mask), box, strict=True)]
    row["voxels"] = count
    row["volume_ml"] = count * math.prod(frame.spacing) / 1000
    row["centroid_voxel"] = [round(v, 3) for v in centroid]
    row["centroid_mm"] = [round(v, 3) for v in _physical(frame, centroid)]
    row["box_voxel"] = [[part.start, part.stop] for part in box]
    row["box_mm"] = [
        round((part.stop - part.start) * length, 3) for part, length in zip(box, frame.spacing, strict=True)
    ]
    if image is not None:
        inside = np.asarray(image[box][mask], np.float64)
        row["intensity"] = {
            "mean": float(inside.mean()),
            "sd": float(inside.std()),
            "min": float(inside.min()),
            **{f"p{q}": float(v) for q, v in zip(PERCENTILES, np.percentile(inside, PERCENTILES), strict=True)},
            "max": float(inside.max()),
        }
    return row


def flat_rows(rows: Sequence[Mapping[str, Any]], names: Mapping[int, str] | None = None) -> list[Row]:
    """The rows for a spreadsheet: one number a cell."""
    flat = []
    for row in rows:
        centre, voxel, box = (row[key] or (None,) * 3 for key in ("centroid_mm", "centroid_voxel", "box_voxel"))
        entry: Row = {"case": row["case"], "label": row["label"], "name": (names or {}).get(row["label"], "")}
        entry |= {"voxels": row["voxels"], "volume_ml": row["volume_ml"]}
        entry |= {f"centroid_{axis}_mm": v for axis, v in zip("xyz", centre, strict=True)}
        entry |= {f"centroid_{axis}_voxel": v for axis, v in zip("zyx", voxel, strict=True)}
        for axis, interval in zip("zyx", box, strict=True):
            entry |= {f"box_{axis}_first": None if interval is None else interval[0]}
            entry |= {f"box_{axis}_last": None if interval is None else interval[1] - 1}
        if "intensity" in row:
            names_of = ("mean", "sd", "min", *(f"p{q}" for q in PERCENTILES), "max")
            entry |= {f"intensity_{key}": (row["intensity"] or {}).get(key) for key in names_of}
        flat.append(entry)
    return flat


def _boxes(labels: npt.NDArray[np.integer[Any]], values: Sequence[int]) -> dict[int, tuple[slice, ...]]:
    """Label -> the smallest box around it, for the labels that occur."""
    if labels.size and int(labels.min()) >= 0 and int(labels.max()) < 1 << 16:
        found = label_boxes(labels)
        boxes = {value: found[value] for value in values if value in found}
        others = [value for value in values if value <= 0]
    else:
        boxes, others = {}, list(values)
    for value in others:
        mask = labels == value
        if mask.any():
            boxes[value] = label_boxes(mask)[1]
    return boxes


def _physical(frame: ImageGeometry, index: Sequence[float]) -> npt.NDArray[np.float64]:
    """(z, y, x) in voxels to (x, y, z) in mm, as ITK maps indices to points."""
    dimensions = len(frame.itk_spacing)
    place = np.asarray(index[::-1][:dimensions], np.float64) * np.asarray(frame.itk_spacing, np.float64)
    turned = np.asarray(frame.direction, np.float64).reshape(dimensions, dimensions) @ place
    point = np.zeros(3)
    point[:dimensions] = turned + np.asarray(frame.origin, np.float64)
    return point
