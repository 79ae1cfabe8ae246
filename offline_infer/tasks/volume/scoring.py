"""Scoring label maps against references, as nnU-Net's own evaluation does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from offline_infer.errors import GeometryError, UsageError
from offline_infer.events import Sink, silent
from offline_infer.images import read_labels
from offline_infer.proof.evaluation.label_maps import evaluate
from offline_infer.proof.evaluation.labels import Format, labels_of_bundle, parse_label
from offline_infer.proof.evaluation.lesions import LesionOptions
from offline_infer.proof.evaluation.options import Evaluation, EvaluationOptions
from offline_infer.proof.evaluation.outputs import lesion_rows, refuse_replacing_inputs
from offline_infer.proof.evaluation.pairs import label_files
from offline_infer.proof.evaluation.tables import dice_table, format_table, surface_table, write_csv
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.base import CaseAgreement, EvaluationRequest
from offline_infer.tasks.reports import refuse_unusable

WORST = 3
"""Cases whose largest errors are drawn for the report, unless the options say otherwise."""
_OF_LESIONS = ("lesions", "lesion_iou", "lesion_min_ml")
_NUMBERS: Mapping[str, Callable[[str], float]] = {
    "ignore": int,
    "worst": int,
    "lesion_iou": float,
    "lesion_min_ml": float,
}
"""Options that are numbers; a command line gives them as text."""


@dataclass(frozen=True)
class LabelMapScores:
    """An evaluation of label maps, in the form every task gives its scores."""

    evaluation: Evaluation
    options: EvaluationOptions

    @property
    def summary(self) -> dict[str, Any] | None:
        return self.evaluation.summary

    @property
    def failed(self) -> Mapping[str, str]:
        return self.evaluation.failed

    @property
    def total(self) -> int:
        return self.evaluation.total

    def table(self) -> str:
        """Dice per case and label, and where they were asked for surface distances and lesions."""
        found = self.evaluation
        names = {str(key): name for key, name in found.labels.names.items()}
        parts = [] if found.summary is None else [format_table(dice_table(found.summary), names=names)]
        if found.surface is not None:
            parts += ["", "Surface distances, means over the cases, mm (NSD: a share):"]
            parts.append(format_table(surface_table(found.surface, names), digits=3))
        rows = lesion_rows(found.details or {}, names)
        if rows and self.options.lesions is not None:
            parts += ["", f"Lesions matched with an overlap (IoU) above {self.options.lesions.iou:g}:"]
            parts.append(format_table(rows, digits=3))
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        found = self.evaluation
        shown = {"summary": found.summary, "surface": found.surface, "details": found.details}
        return {**shown, "missing": list(found.missing)}


def evaluate_label_maps(request: EvaluationRequest, spec: VolumeSpec | None, sink: Sink) -> LabelMapScores:
    """Evaluate folders or files.

    Options are the fields of :class:`EvaluationOptions`, with ``labels`` as text (a region is written ``1,2``), ``lesions`` as the
    labels whose lesions are matched, ``lesion_iou`` and ``lesion_min_ml``; and ``csv``, a file for the Dice table. Numbers may be
    given as text, and ``surface`` as ``yes`` or ``no``.

    Args:
        spec: of the model; its labels and regions are evaluated in its framework's own layout unless the options say otherwise.

    Raises:
        UsageError: see :func:`evaluate`, or an unknown option.
    """
    given = dict(request.options)
    csv = given.pop("csv", None)
    if csv is not None:
        sides = (request.predictions, request.references)
        inputs = [file for side in sides if side.is_dir() for file in label_files(side).values()]
        refuse_replacing_inputs([Path(csv)], [*inputs, *sides])
    if request.images is not None:
        given["images"] = request.images
    options = _options({name: _parsed(name, value) for name, value in given.items()}, spec)
    found = evaluate(request.predictions, request.references, options, output=request.output, sink=sink)
    if csv is not None and found.summary is not None:
        write_csv(found.summary, Path(csv))
    return LabelMapScores(found, options)


def _parsed(name: str, value: Any) -> Any:
    """The value of an option, out of its text if it is one.

    Raises:
        UsageError: the text is no value of that option.
    """
    if not isinstance(value, str):
        return value
    if name == "surface":
        return value == "yes"
    if name not in _NUMBERS:
        return value
    try:
        return _NUMBERS[name](value)
    except ValueError:
        raise UsageError(f"--{name.replace('_', '-')} {value!r}: expected a number") from None


def agreement_of_label_maps(mine: Path, reference: Path) -> CaseAgreement:
    """How alike two label maps are: twice the voxels with the same label over the voxels that have one.

    Raises:
        ImageError: a file cannot be read.
        GeometryError: they differ in size.
    """
    a, b = (read_labels(path)[0] for path in (mine, reference))
    if a.shape != b.shape:
        raise GeometryError(f"{mine} has shape {a.shape} and {reference} {b.shape} (z, y, x); expected the same grid")
    found = int((a > 0).sum()) + int((b > 0).sum())
    both = int(((a == b) & (b > 0)).sum())
    return CaseAgreement(2 * both / found if found else None, float((b > 0).mean()))


def case_scores(predictions: Path, labels: Path, spec: VolumeSpec) -> dict[str, float]:
    """Case -> mean Dice over the labels that the prediction or the reference holds; 1 where both hold none.

    Raises:
        UsageError: see :func:`evaluate_label_maps`, or a reference that cannot be read or compared.
    """
    request = EvaluationRequest(predictions, labels, None, {"allow_missing": True, "worst": 0})
    found = evaluate_label_maps(request, spec, silent)
    refuse_unusable(found.failed)
    rows = [] if found.summary is None else dice_table(found.summary)[:-1]
    means = {str(row["case"]): float(row["mean"]) for row in rows}
    return {case: 1.0 if math.isnan(mean) else mean for case, mean in means.items()}


def referenced(labels: Path) -> frozenset[str]:
    """Cases of a folder of label maps.

    Raises:
        UsageError: no folder, no label file in it, or two for one case.
    """
    if not labels.is_dir():
        raise UsageError(f"{labels}: expected a folder of references, one label map a case")
    return frozenset(label_files(labels))


def _options(given: dict[str, Any], spec: VolumeSpec | None) -> EvaluationOptions:
    legal = [field.name for field in fields(EvaluationOptions)]
    unknown = sorted(set(given) - {*legal, *_OF_LESIONS})
    if unknown:
        raise UsageError(
            f"evaluation options {', '.join(unknown)} are unknown for label maps; legal: {', '.join(legal)}"
        )
    if given.get("labels") is not None:
        given["labels"] = [parse_label(label) if isinstance(label, str) else label for label in given["labels"]]
    elif spec is not None:
        layout: Format = "nnunet-v2" if spec.source.framework == "nnunet_v2" else "nnunet-v1"
        given.setdefault("format", layout)
        given["labels"] = labels_of_bundle(spec.labels, given["format"])
    wanted, iou, least = (given.pop(name, None) for name in _OF_LESIONS)
    if wanted is None and (iou, least) != (None, None):
        raise UsageError("--lesion-iou and --lesion-min-ml say how lesions are matched; give --lesions too")
    if wanted is not None:
        labels = tuple(parse_label(text) for text in wanted) or None
        given["lesions"] = LesionOptions(0.1 if iou is None else iou, 0.0 if least is None else least, labels)
    given.setdefault("worst", WORST)
    return EvaluationOptions(**given)
