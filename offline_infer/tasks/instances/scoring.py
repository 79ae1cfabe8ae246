"""Scores of a folder of results against reference objects: matching, average precision, tables and pictures.

Written beside the summary: ``objects.csv``, the workbook ``objects.xlsx`` where openpyxl is installed, and, on request, for
every image the label image of the matched predictions and an overlay with the contours of what was matched, missed and invented,
and ``worst_objects.json`` with close-ups of the worst for a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import CaseError, GeometryError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink
from offline_infer.files import write_json
from offline_infer.tasks.instances.average_precision import CocoPrecision, VocPrecision
from offline_infer.tasks.instances.close_ups import WorstObjects
from offline_infer.tasks.instances.match_pictures import write_match_pictures
from offline_infer.tasks.instances.matching import VOID_RULES, ImageMatch, in_record_order, match
from offline_infer.tasks.instances.references import Reference, References, class_numbers, open_references
from offline_infer.tasks.instances.result import Instances
from offline_infer.tasks.instances.workbook import IMAGE_COLUMNS, OBJECT_COLUMNS, write_csv, write_workbook
from offline_infer.tasks.instances.writing import read_record

KIND, FORMAT = "offline_infer.evaluation.objects", "offline_infer instances summary 1"
MATCH_RULES = ("class-blind", "class-aware")


@dataclass(frozen=True)
class Options:
    """How results are compared.

    Attributes:
        above: objects with a score above this are matched; average precision sees all.
        match: whether pairs must agree in class.
        min_iou: pairs below this are none.
        void: what the references' void pixels are.
        pictures: also write pictures of every image.
        allow_missing: images without a result are left out instead of failing.
        csv: also write the table of objects there.
    """

    above: float = 0.5
    match: str = "class-blind"
    min_iou: float = 0.0
    void: str = "background"
    pictures: bool = False
    allow_missing: bool = False
    csv: Path | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        """From an evaluation's options.

        Raises:
            UsageError: an option of another kind of results, or a value that makes no sense.
        """
        foreign = sorted(set(given) - set(cls.__dataclass_fields__) - {"jobs"})
        if foreign:
            legal = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"option {foreign[0]!r} does not apply to results of instance models; legal: {legal}")
        own = {name: given[name] for name in cls.__dataclass_fields__ if given.get(name) is not None}
        try:
            for name in ("above", "min_iou"):
                own[name] = float(own.get(name, getattr(cls, name)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} {own[name]!r}: expected a number from 0 to 1") from error
        own["pictures"] = own.get("pictures", False) in (True, "yes", "true")
        options = cls(**own)
        if not (0 <= options.above <= 1 and 0 <= options.min_iou <= 1):
            raise UsageError(f"above {options.above} and min_iou {options.min_iou}: expected numbers from 0 to 1")
        if options.match not in MATCH_RULES:
            raise UsageError(f"match {options.match!r}: legal values are {', '.join(MATCH_RULES)}")
        if options.void not in VOID_RULES:
            raise UsageError(f"void {options.void!r}: legal values are {', '.join(VOID_RULES)}")
        return options


@dataclass(frozen=True)
class InstanceScores:
    """What an evaluation found."""

    summary: dict[str, Any] | None
    failed: Mapping[str, str]

    @property
    def total(self) -> int:
        """Images that were to be scored."""
        return len(self.failed) + (0 if self.summary is None else int(self.summary["counts"]["images"]))

    def to_json(self) -> dict[str, Any]:
        return {"summary": self.summary, "failed": dict(self.failed)}

    def table(self) -> str:
        """The summary as text for people."""
        if self.summary is None:
            return ""
        counts, objects = self.summary["counts"], self.summary["over_objects"]
        lines = [
            f"{counts['images']} images, {counts['objects']} objects: {counts['matched']} matched, "
            f"{counts['missed']} missed; {counts['invented']} predictions without an object",
            f"  over objects   IoU {_shown(objects['iou'])}   F1 {_shown(objects['f1'])}",
        ]
        for name, figures in self.summary["average_precision"].items():
            value = figures.get("map", figures.get("AP"))
            lines.append(f"  {name:<22} {_shown(value)}")
        return "\n".join(lines)


@dataclass
class _Tables:
    """Rows so far."""

    objects: list[list[Any]] = field(default_factory=list)
    images: list[list[Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    worst: WorstObjects = field(default_factory=WorstObjects)
    matches: list[ImageMatch] = field(default_factory=list)


def evaluate(
    predictions: Path, references: Path, output: Path | None, options: Mapping[str, Any], sink: Sink
) -> InstanceScores:
    """Score a folder of results.

    Images without a result, or whose result does not fit, fail by name; the others are scored. An image of the references
    without objects takes no part in the means over objects; its predictions count as invented.

    Args:
        predictions: folder of ``<image>.json``, or one such file.
        references: a Pascal VOC tree or a COCO annotation file.
        output: the summary to write; its tables and pictures lie beside it.
        options: see :class:`Options`.

    Raises:
        UsageError: paths or options that make no sense.
    """
    chosen = Options.read(options)
    truth = open_references(references)
    single = predictions.is_file()
    names = [predictions.stem] if single else list(truth.names())
    folder = predictions.parent if single else predictions
    if not folder.is_dir():
        raise UsageError(f"{predictions}: does not exist; expected a folder of results")
    voc, coco = VocPrecision(len(truth.classes)), CocoPrecision(truth.classes)
    tables = _Tables()
    failed: dict[str, str] = {}
    pictures = output.parent / "pictures" if output is not None and chosen.pictures else None
    if chosen.allow_missing:
        names = [name for name in names if (folder / f"{name}.json").is_file()]
    for done, name in enumerate(names, start=1):
        try:
            found, classes, reference, labels = _read_pair(folder, name, truth, chosen)
            voc.add(found, labels, reference)
            coco.add(found, labels, reference)
            _add_rows(tables, name, found, classes, reference, truth, labels, chosen, pictures)
        except OfflineInferError as error:
            if isinstance(error, UsageError) and not tables.images and not failed and len(names) > 1:
                raise
            failed[name] = str(error)
        sink(Event("progress", "evaluate", done=done, total=len(names), data={"case": name}))
    if not tables.images:
        return InstanceScores(None, failed)
    summary = _summary(tables, voc, coco, truth, chosen, failed)
    if output is not None:
        _write(output, summary, tables)
        if chosen.pictures:
            write_json(output.with_name("worst_objects.json"), tables.worst.record(), indent=None)
    if chosen.csv is not None:
        write_csv(chosen.csv, OBJECT_COLUMNS, tables.objects)
    return InstanceScores(summary, failed)


def _read_pair(
    folder: Path, name: str, truth: References, options: Options
) -> tuple[Instances, tuple[str, ...], Reference, tuple[int, ...]]:
    """A result with the model's classes, its reference, and the results' class numbers in the references' list."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise CaseError(f"{path} is missing; there is no result for this image")
    try:
        found, classes = read_record(path)
    except UsageError as error:
        raise CaseError(str(error)) from error
    reference = truth.read(name)
    if found.size != reference.size:
        raise GeometryError(
            f"the result has {found.size[1]} x {found.size[0]} pixels, the reference "
            f"{reference.size[1]} x {reference.size[0]}"
        )
    try:
        numbers = class_numbers(classes, truth.classes)
    except UsageError:
        if options.match == "class-aware":
            raise
        numbers = (-1,) * len(classes)
    return found, classes, reference, tuple(numbers[label] for label in found.labels)


def _add_rows(
    tables: _Tables,
    name: str,
    found: Instances,
    classes: tuple[str, ...],
    reference: Reference,
    truth: References,
    labels: tuple[int, ...],
    options: Options,
    pictures: Path | None,
) -> None:
    order = in_record_order(found)
    order = order[found.scores[order] > np.float32(options.above)]
    kept = Instances(
        found.size, found.boxes[order], found.scores[order], found.labels[order], tuple(found.masks[i] for i in order)
    )
    result = match(
        kept,
        tuple(labels[index] for index in order),
        reference,
        class_aware=options.match == "class-aware",
        min_iou=options.min_iou,
        void=options.void,
    )
    picture = None
    if pictures is not None:
        file = truth.picture(name)
        picture = write_match_pictures(pictures, name, kept, reference, result, file)
        categories = [_category(row.label, truth) for row in result.rows]
        tables.worst.add(name, kept, classes, reference, categories, result, file)
    tables.matches.append(result)
    background = [result.bg_iou, result.mean_iou_with_bg, result.bg_f1, result.mean_f1_with_bg]
    for row in result.rows:
        means = [row.iou, result.mean_iou, row.f1, result.mean_f1]
        tables.objects.append([name, len(result.rows), row.index, *means, None, *background])
    matched = sum(row.prediction is not None for row in result.rows)
    counts = [len(result.rows), len(kept), matched, len(result.rows) - matched, len(result.invented)]
    tables.images.append([name, *counts, result.mean_iou, result.mean_f1, *background, picture])
    tables.details[name] = _details(result, kept, truth, picture)


def _details(result: ImageMatch, kept: Instances, truth: References, picture: Path | None) -> dict[str, Any]:
    """One image's part of the summary."""
    return {
        "objects": [
            {
                "index": row.index,
                "id": row.object_id,
                "category": _category(row.label, truth),
                "prediction": row.prediction,
                "score": row.score,
                "iou": row.iou,
                "f1": row.f1,
            }
            for row in result.rows
        ],
        "invented": [{"prediction": index, "score": float(kept.scores[index])} for index in result.invented],
        "mean_iou": result.mean_iou,
        "mean_f1": result.mean_f1,
        "bg_iou": result.bg_iou,
        "bg_f1": result.bg_f1,
        "mean_iou_with_bg": result.mean_iou_with_bg,
        "mean_f1_with_bg": result.mean_f1_with_bg,
        "picture": None if picture is None else f"{picture.parent.name}/{picture.name}",
    }


def _category(label: int, truth: References) -> str | None:
    return truth.classes[label] if label >= 0 else None


def _summary(
    tables: _Tables,
    voc: VocPrecision,
    coco: CocoPrecision,
    truth: References,
    options: Options,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    rows = [row for result in tables.matches for row in result.rows]
    with_objects = [result for result in tables.matches if result.rows]
    precision: dict[str, Any] = {}
    for threshold in voc.thresholds:
        for name, eleven in (("area", False), ("11point", True)):
            mean, values = voc.figures(threshold, eleven_points=eleven)
            per_class = dict(zip(truth.classes, values, strict=True))
            precision[f"voc_{name}_iou{threshold}"] = {"map": mean, "ap": per_class}
    if find_spec("pycocotools") is not None:
        precision["coco_segm"] = coco.figures()
    return {
        "kind": KIND,
        "format": FORMAT,
        "task": "instances",
        "settings": {
            "above": options.above,
            "match": options.match,
            "min_iou": options.min_iou,
            "void": options.void,
        },
        "counts": {
            "images": len(tables.matches),
            "images_without_objects": len(tables.matches) - len(with_objects),
            "objects": len(rows),
            "matched": sum(row.prediction is not None for row in rows),
            "missed": sum(row.prediction is None for row in rows),
            "invented": sum(len(result.invented) for result in tables.matches),
            "failed": len(failed),
        },
        "over_objects": {"iou": _mean([row.iou for row in rows]), "f1": _mean([row.f1 for row in rows])},
        "over_images": {
            "mean_iou": _mean([result.mean_iou for result in with_objects]),
            "mean_f1": _mean([result.mean_f1 for result in with_objects]),
            "bg_iou": _mean([result.bg_iou for result in tables.matches]),
            "bg_f1": _mean([result.bg_f1 for result in tables.matches]),
            "mean_iou_with_bg": _mean([result.mean_iou_with_bg for result in with_objects]),
            "mean_f1_with_bg": _mean([result.mean_f1_with_bg for result in with_objects]),
        },
        "average_precision": precision,
        "images": tables.details,
        "failed": dict(failed),
    }


def _write(output: Path, summary: dict[str, Any], tables: _Tables) -> None:
    write_csv(output.with_name("objects.csv"), OBJECT_COLUMNS, tables.objects)
    write_csv(
        output.with_name("images.csv"),
        IMAGE_COLUMNS,
        [[*row[:-1], None if row[-1] is None else row[-1].name] for row in tables.images],
    )
    if find_spec("openpyxl") is not None:
        figures = {**summary["counts"]}
        for part in ("over_objects", "over_images"):
            figures |= {f"{part}: {name}": value for name, value in summary[part].items()}
        for name, value in summary["average_precision"].items():
            figures |= {f"{name}: {key}": one for key, one in value.items() if key != "ap"}
        write_workbook(output.with_name("objects.xlsx"), tables.objects, tables.images, figures)
    write_json(output, summary)


def _shown(value: float | None) -> str:
    return "not available" if value is None else f"{value:.4f}"


def _mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None
