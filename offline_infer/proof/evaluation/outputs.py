"""The files of an evaluation: where they go, what they hold, and that none of them replaces an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer._version import __version__
from offline_infer.errors import UsageError
from offline_infer.files import write_json
from offline_infer.proof.evaluation import lesions
from offline_infer.proof.evaluation.labels import EvaluatedLabels, label_key
from offline_infer.proof.evaluation.lesions import LesionOptions, lesion_totals
from offline_infer.proof.evaluation.metrics import label_counts
from offline_infer.proof.evaluation.options import CaseResult, Evaluation
from offline_infer.proof.evaluation.pairs import CasePair, case_of
from offline_infer.proof.evaluation.summary import write_summary
from offline_infer.proof.evaluation.surface_distances import (
    DEFINITION,
    EMPTY_MASK_POLICY,
    SurfaceRecord,
    surface_means,
    surface_records,
)

Done = Sequence[tuple[CasePair, CaseResult]]


@dataclass(frozen=True)
class OutputFiles:
    """Where an evaluation writes: ``summary`` as named by the user, the others beside it."""

    summary: Path

    @property
    def _stem(self) -> str:
        return self.summary.name.removesuffix(".json")

    @property
    def details(self) -> Path:
        return self.summary.with_name(f"{self._stem}.details.json")

    @property
    def problems(self) -> Path:
        return self.summary.with_name(f"{self._stem}.problems.json")

    @property
    def slices(self) -> Path:
        return self.summary.with_name(f"{self._stem}.slices.json")

    @property
    def surface(self) -> Path:
        return self.summary.with_name("surface.json")

    def all(self) -> tuple[Path, ...]:
        return (self.summary, self.details, self.problems, self.slices, self.surface)


def refuse_replacing_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over a label file.

    Args:
        outputs: files that are about to be written.
        inputs: files that are about to be read.

    Raises:
        UsageError: an output is one of the inputs, by another name or through a link too; has the name of a label
            file; or is a folder.
    """
    taken = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in taken or any(
            output.exists() and output.samefile(path) for path in taken if path.exists()
        ):
            raise UsageError(f"{output} is one of the label files to read; name another file to write")
        if case_of(output.name) is not None:
            raise UsageError(f"{output} has the name of a label file; name a .json or .csv file to write")
        if output.is_dir():
            raise UsageError(f"{output} is a folder; name a file in it, such as {output / 'summary.json'}")


def write_outputs(files: OutputFiles, evaluation: Evaluation) -> None:
    """Write the summary and whatever else there is; a record of problems that are gone is removed."""
    if evaluation.summary is not None:
        write_summary(files.summary, evaluation.summary)
    if evaluation.details is not None:
        write_json(files.details, evaluation.details)
    if evaluation.surface is not None:
        write_json(files.surface, evaluation.surface)
    if not (evaluation.failed or evaluation.missing or evaluation.extra or evaluation.notes):
        with suppress(FileNotFoundError):
            files.problems.unlink()
        return
    write_json(
        files.problems,
        {
            "kind": "offline_infer.evaluation_problems",
            "version": 1,
            "failed": dict(evaluation.failed),
            "without_prediction": list(evaluation.missing),
            "without_reference": list(evaluation.extra),
            "notes": {case: list(remarks) for case, remarks in evaluation.notes.items()},
        },
    )


def details_record(done: Done, labels: EvaluatedLabels, options: LesionOptions | None) -> dict[str, Any]:
    """What the report shows beyond nnU-Net's summary: names, volumes in mL, lesions. At least one case."""
    cases = [_case_details(pair, result, labels) for pair, result in done]
    record: dict[str, Any] = {
        "kind": "offline_infer.evaluation",
        "version": 1,
        "program": f"offline_infer {__version__}",
        "labels": [{"label": label_key(v), "name": labels.names.get(v)} for v in labels.labels],
        "labels_from": labels.origin,
        "cases": cases,
    }
    if options is not None:
        found = [case["lesions"] for case in cases]
        keys = [label_key(v) for v in labels.labels if any(label_key(v) in case for case in found)]
        record["lesions"] = {
            "iou": options.iou,
            "min_ml": options.min_ml,
            "definition": dict(lesions.DEFINITION),
            "total": {key: lesion_totals([case[key] for case in found if key in case]) for key in keys},
        }
    return record


def lowest_dice(details: Mapping[str, Any]) -> dict[str, float]:
    """Case -> its lowest Dice over the foreground labels that are defined in it."""
    found = {}
    for case in details.get("cases", ()):
        figures = [row["dice"] for key, row in case["labels"].items() if key != "0" and row["dice"] is not None]
        if figures:
            found[case["case"]] = min(figures)
    return found


def surface_record(done: Done, labels: EvaluatedLabels, tolerances: Sequence[float]) -> dict[str, Any]:
    """The content of ``surface.json``; at least one case."""
    wanted = [label for label in labels.labels if label != 0]
    absent: SurfaceRecord = surface_records(
        np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.uint8), (1.0, 1.0, 1.0), [1], tolerances=tolerances
    )[1]
    per_case: list[dict[str, Any]] = [
        {
            "case": pair.case,
            "metrics": {label_key(label): (result.surface or {}).get(label, absent) for label in wanted},
            "prediction_file": str(pair.first),
            "reference_file": str(pair.second),
        }
        for pair, result in done
    ]
    return {
        "kind": "offline_infer.evaluation.surface_distances",
        "version": 1,
        "unit": "mm",
        "tolerances": list(tolerances),
        "definition": dict(DEFINITION),
        "empty_mask_policy": dict(EMPTY_MASK_POLICY),
        "mean": {
            label_key(label): surface_means([case["metrics"][label_key(label)] for case in per_case])
            for label in wanted
        },
        "metric_per_case": per_case,
    }


def _case_details(pair: CasePair, result: CaseResult, labels: EvaluatedLabels) -> dict[str, Any]:
    histogram = result.histogram.ignoring(labels.ignore)
    counts = {label: label_counts(histogram, label) for label in labels.labels}
    ml = result.voxel_ml
    record: dict[str, Any] = {
        "case": pair.case,
        "shape": list(result.shape),
        "spacing": [round(length, 6) for length in result.spacing],
        "labels": {
            label_key(label): {
                "dice": None if np.isnan(found.dice) else found.dice,
                "prediction_ml": (found.tp + found.fp) * ml,
                "reference_ml": (found.tp + found.fn) * ml,
            }
            for label, found in counts.items()
        },
    }
    if result.lesions is not None:
        record["lesions"] = {label_key(label): figures for label, figures in result.lesions.items()}
    return record


def lesion_rows(details: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, str | float | int | None]]:
    """One row per label of the lesions found in all cases, for a table."""
    total: Mapping[str, Mapping[str, Any]] = details.get("lesions", {}).get("total", {})
    return [
        {
            "lesions of": names.get(key, key),
            "in reference": row["reference"],
            "found": row["found"],
            "missed": row["missed"],
            "invented": row["invented"],
            "sensitivity": row["sensitivity"],
            "precision": row["precision"],
            "F1": row["F1"],
        }
        for key, row in total.items()
    ]
