"""nnU-Net's own ``summary.json``, in the layouts of v1 and v2, from the joint histograms of the cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.files import read_json, write_text
from offline_infer.proof.evaluation.labels import EvaluatedLabels, Format, label_key
from offline_infer.proof.evaluation.metrics import (
    JointHistogram,
    label_counts,
    mean_of,
    metrics_v1,
    metrics_v2,
    plain_mean_of,
)

Summary = dict[str, Any]
FORMATS: tuple[Format, ...] = ("nnunet-v2", "nnunet-v1")


@dataclass(frozen=True)
class Header:
    """The free text of a v1 summary. The defaults are what nnU-Net v1 writes by default."""

    author: str = "Fabian"
    description: str = ""
    name: str = ""
    task: str = ""


@dataclass(frozen=True)
class CaseOverlap:
    """One evaluated case: its files and how often each pair of values occurs in them."""

    prediction: Path
    reference: Path
    histogram: JointHistogram


def build_summary(
    cases: Sequence[CaseOverlap], labels: EvaluatedLabels, layout: Format, *, header: Header | None = None
) -> Summary:
    """The content of ``summary.json``; at least one case.

    Keys stand in the order the frameworks write them, which is alphabetical.
    """
    if layout == "nnunet-v2":
        return _summary_v2(cases, labels)
    return _summary_v1(cases, labels, header or Header())


def write_summary(path: Path, summary: Summary) -> None:
    """Write as nnU-Net does: four blanks of indentation, sorted keys, ``NaN`` for undefined, no final newline."""
    write_text(path, json.dumps(summary, sort_keys=True, indent=4))


def read_summary(path: Path) -> Summary:
    """A ``summary.json`` of either layout.

    Raises:
        UsageError: the file cannot be read or is no such summary.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or layout_of(content) is None:
        raise UsageError(
            f"{path}: not a summary.json of nnU-Net; expected 'metric_per_case' and 'mean' (v2) or 'results' (v1)"
        )
    return content


def layout_of(summary: Mapping[str, Any]) -> Format | None:
    """Which layout a summary has, None if neither."""
    if isinstance(summary.get("metric_per_case"), list) and isinstance(summary.get("mean"), dict):
        return "nnunet-v2"
    results = summary.get("results")
    if isinstance(results, dict) and isinstance(results.get("all"), list) and isinstance(results.get("mean"), dict):
        return "nnunet-v1"
    return None


def _summary_v2(cases: Sequence[CaseOverlap], labels: EvaluatedLabels) -> Summary:
    figures: list[dict[str, dict[str, float | int]]] = []
    for case in cases:
        histogram = case.histogram.ignoring(labels.ignore)
        figures.append({label_key(label): metrics_v2(label_counts(histogram, label)) for label in labels.labels})
    per_case = [
        {"metrics": metrics, "prediction_file": str(case.prediction), "reference_file": str(case.reference)}
        for case, metrics in zip(cases, figures, strict=True)
    ]
    mean = _means(figures)
    # nnU-Net leaves the background out here, and lets a class that occurs nowhere make the figure NaN.
    foreground = [figures for key, figures in mean.items() if key != "0"]
    names = next(iter(mean.values()))
    return {
        "foreground_mean": {name: plain_mean_of([figures[name] for figures in foreground]) for name in names},
        "mean": mean,
        "metric_per_case": per_case,
    }


def _summary_v1(cases: Sequence[CaseOverlap], labels: EvaluatedLabels, header: Header) -> Summary:
    every: list[dict[str, Any]] = []
    figures: list[dict[str, dict[str, float | int]]] = []
    for case in cases:
        histogram = case.histogram.ignoring(labels.ignore)
        figures.append({label_key(label): metrics_v1(label_counts(histogram, label)) for label in labels.labels})
        every.append({**figures[-1], "reference": str(case.reference), "test": str(case.prediction)})
    summary: Summary = {
        "author": header.author,
        "description": header.description,
        "name": header.name,
        "results": {"all": every, "mean": _means(figures)},
        "task": header.task,
        "timestamp": str(datetime.now()),
    }
    digest = hashlib.md5(json.dumps(summary).encode(), usedforsecurity=False)
    return dict(sorted({**summary, "id": digest.hexdigest()[:12]}.items()))


def _means(cases: Sequence[Mapping[str, Mapping[str, float | int]]]) -> dict[str, dict[str, float]]:
    """label -> figure -> mean over the cases in which it is defined."""
    return {
        label: {name: mean_of([case[label][name] for case in cases]) for name in figures}
        for label, figures in cases[0].items()
    }
