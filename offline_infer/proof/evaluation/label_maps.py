"""Evaluate predictions against references: label maps in, nnU-Net's ``summary.json`` out.

Beside the summary there may be two more files: ``surface.json`` with surface distances, if they were asked for, and
``<summary>.problems.json`` naming the cases that are not in the summary and why. The summary itself holds nothing that
nnU-Net would not write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import CasesFailed, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.proof.evaluation.labels import (
    EvaluatedLabels,
    Format,
    label_key,
    labels_found,
    labels_given,
    labels_of_dataset,
)
from offline_infer.proof.evaluation.metrics import JointHistogram, Label, joint_histogram, label_counts
from offline_infer.proof.evaluation.pairs import CasePair, Pairing, pair_cases, read_pair
from offline_infer.proof.evaluation.pool import CaseOutcomes, run_cases
from offline_infer.proof.evaluation.summary import FORMATS, CaseOverlap, Header, Summary, build_summary, write_summary
from offline_infer.proof.evaluation.surface_distances import (
    DEFINITION,
    EMPTY_MASK_POLICY,
    SurfaceRecord,
    surface_means,
    surface_records,
)

STAGE = "evaluate"
DEFAULT_TOLERANCES = (1.0, 2.0)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        summary: content of ``summary.json``; None when no case could be evaluated.
        surface: content of ``surface.json``; None unless asked for.
        labels: the labels evaluated and where they came from.
        failed: case -> reason.
        missing: references without a prediction. extra: predictions without a reference, which are left out.
        notes: case -> remarks, such as a prediction whose origin is not the reference's.
        total: cases that have a reference.
    """

    summary: Summary | None
    surface: dict[str, Any] | None
    labels: EvaluatedLabels
    failed: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True)
class CaseResult:
    """What one case gives: a joint histogram, remarks, and surface figures if asked for."""

    histogram: JointHistogram
    notes: tuple[str, ...]
    surface: Mapping[Label, SurfaceRecord] | None


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    labels: EvaluatedLabels | Sequence[Label] | None = None,
    ignore: int | None = None,
    format: Format = "nnunet-v2",  # noqa: A002 - the word the command line uses
    output: Path | None = None,
    allow_missing: bool = False,
    jobs: int = 1,
    surface: bool = False,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    header: Header | None = None,
    sink: Sink = silent,
) -> Summary:
    """Evaluate and return the content of ``summary.json``; see :func:`evaluate` for the arguments.

    Raises:
        CasesFailed: some cases are missing or unreadable. The files of the others have been written by then.
        UsageError: see :func:`evaluate`.
    """
    found = evaluate(
        predictions,
        references,
        labels=labels,
        ignore=ignore,
        format=format,
        output=output,
        allow_missing=allow_missing,
        jobs=jobs,
        surface=surface,
        tolerances=tolerances,
        header=header,
        sink=sink,
    )
    if found.failed:
        raise CasesFailed(found.failed, found.total)
    assert found.summary is not None
    return found.summary


def evaluate(
    predictions: Path,
    references: Path,
    *,
    labels: EvaluatedLabels | Sequence[Label] | None = None,
    ignore: int | None = None,
    format: Format = "nnunet-v2",  # noqa: A002
    output: Path | None = None,
    allow_missing: bool = False,
    jobs: int = 1,
    surface: bool = False,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    header: Header | None = None,
    sink: Sink = silent,
) -> Evaluation:
    """Evaluate label maps against references, case by case.

    Args:
        predictions, references: two folders, or two single files.
        labels: what to evaluate: integers, tuples of integers for regions, or an :class:`EvaluatedLabels` from a bundle
            or a ``dataset.json``. None takes the ``dataset.json`` in the predictions' folder or above the references'
            folder, otherwise the values found in the files (v2: without background); an event says which.
        ignore: value of the reference whose voxels are left out. (nnU-Net v1 knows no such label; it is honoured in
            both layouts.)
        output: where to write the summary; None writes nothing.
        allow_missing: a reference without a prediction is remarked on instead of failing.
        jobs: processes.
        surface: also compute surface distances and write ``surface.json`` beside the summary.
        tolerances: of the surface Dice, in mm.
        header: free text of a v1 summary.

    Raises:
        UsageError: paths or options that make no sense, or not one case on both sides.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; legal names: {', '.join(FORMATS)}")
    if surface and (not tolerances or min(tolerances) <= 0):
        raise UsageError(f"surface tolerances {tuple(tolerances)} must be positive millimetres")
    pairing = pair_cases(predictions, references)
    if not pairing.pairs:
        raise UsageError(
            f"no case is on both sides: {predictions} holds {_few(pairing.only_first)}, "
            f"{references} holds {_few(pairing.only_second)}; a case's files have the same name in both"
        )
    chosen = _choose_labels(labels, ignore, predictions, references, format)
    settings = (None if chosen is None else chosen.labels, ignore if chosen is None else chosen.ignore)
    outcomes = run_cases(
        evaluate_case,
        {pair.case: (pair, *settings, tuple(tolerances) if surface else None) for pair in pairing.pairs},
        jobs=jobs,
        stage=STAGE,
        sink=sink,
        describe=lambda result: _describe(result, chosen),
    )
    if chosen is None:
        values = {value for result in outcomes.done.values() for value in result.histogram.values}
        chosen = labels_found(values, ignore, format)
    sink(Event("note", STAGE, data={"labels": [label_key(v) for v in chosen.labels], "origin": chosen.origin}))
    evaluation = _assemble(pairing, outcomes, chosen, format, allow_missing, surface, tolerances, header)
    remarks = [(case, note) for case, notes in evaluation.notes.items() for note in notes]
    remarks += [(case, "no prediction for this reference") for case in pairing.only_second]
    remarks += [(case, "no reference for this prediction; left out") for case in pairing.only_first]
    for case, remark in remarks:
        sink(Event("note", STAGE, case=case, data={"note": remark}))
    if output is not None:
        _write(output, evaluation)
    return evaluation


def evaluate_case(
    pair: CasePair, labels: Sequence[Label] | None, ignore: int | None, tolerances: Sequence[float] | None
) -> CaseResult:
    """Evaluate one case; surface distances only with ``tolerances``, for the labels of this case if none are given.

    Raises:
        ImageError: a file cannot be read or is no label map.
        GeometryError: the shapes differ.
    """
    prediction, reference, theirs, remarks = read_pair(pair)
    histogram = joint_histogram(prediction, reference)
    figures = None
    if tolerances is not None:
        wanted = [v for v in (histogram.values if labels is None else labels) if v not in (0, ignore)]
        figures = surface_records(prediction, reference, theirs.spacing, wanted, tolerances=tolerances, ignore=ignore)
    return CaseResult(histogram, remarks, figures)


def _choose_labels(
    labels: EvaluatedLabels | Sequence[Label] | None,
    ignore: int | None,
    predictions: Path,
    references: Path,
    layout: Format,
) -> EvaluatedLabels | None:
    if isinstance(labels, EvaluatedLabels):
        return labels
    if labels is not None:
        return labels_given(labels, ignore)
    for folder in (predictions if predictions.is_dir() else predictions.parent, references.absolute().parent):
        found = folder / "dataset.json"
        if found.is_file():
            known = labels_of_dataset(found, layout)
            kept = tuple(v for v in known.labels if v != ignore)
            return EvaluatedLabels(kept, known.ignore if ignore is None else ignore, known.names, known.origin)
    return None


def _assemble(
    pairing: Pairing,
    outcomes: CaseOutcomes[CaseResult],
    labels: EvaluatedLabels,
    layout: Format,
    allow_missing: bool,
    surface: bool,
    tolerances: Sequence[float],
    header: Header | None,
) -> Evaluation:
    done = [(pair, outcomes.done[pair.case]) for pair in pairing.pairs if pair.case in outcomes.done]
    failed = dict(outcomes.failed)
    if not allow_missing:
        for case in pairing.only_second:
            failed[case] = "no prediction for this reference; predict it, or allow missing predictions"
    cases = [CaseOverlap(pair.first, pair.second, result.histogram) for pair, result in done]
    return Evaluation(
        summary=build_summary(cases, labels, layout, header=header) if cases else None,
        surface=_surface_file(done, labels, tolerances) if surface and done else None,
        labels=labels,
        failed=failed,
        missing=pairing.only_second,
        extra=pairing.only_first,
        notes={pair.case: result.notes for pair, result in done if result.notes},
        total=len(pairing.pairs) + len(pairing.only_second),
    )


def _surface_file(
    done: Sequence[tuple[CasePair, CaseResult]], labels: EvaluatedLabels, tolerances: Sequence[float]
) -> dict[str, Any]:
    wanted = [label for label in labels.labels if label != 0]
    absent: SurfaceRecord = surface_records(
        np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.uint8), (1.0, 1.0, 1.0), [1], tolerances=tolerances
    )[1]
    per_case = [
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
            label_key(label): surface_means([case["metrics"][label_key(label)] for case in per_case])  # type: ignore[index]
            for label in wanted
        },
        "metric_per_case": per_case,
    }


def _write(output: Path, evaluation: Evaluation) -> None:
    if evaluation.summary is not None:
        write_summary(output, evaluation.summary)
    if evaluation.surface is not None:
        write_json(output.with_name("surface.json"), evaluation.surface)
    problems = output.with_name(f"{output.name.removesuffix('.json')}.problems.json")
    if not (evaluation.failed or evaluation.missing or evaluation.extra or evaluation.notes):
        # What an earlier run complained about is no longer true.
        with suppress(FileNotFoundError):
            problems.unlink()
        return
    write_json(
        problems,
        {
            "kind": "offline_infer.evaluation_problems",
            "version": 1,
            "failed": dict(evaluation.failed),
            "without_prediction": list(evaluation.missing),
            "without_reference": list(evaluation.extra),
            "notes": {case: list(remarks) for case, remarks in evaluation.notes.items()},
        },
    )


def _describe(result: CaseResult, labels: EvaluatedLabels | None) -> dict[str, Any]:
    """Dice per label, for progress displays; undefined ones are None, so that the event is strict JSON."""
    histogram = result.histogram.ignoring(labels.ignore if labels else None)
    shown = labels.labels if labels else tuple(v for v in histogram.values if v != 0)
    dice = {label_key(label): label_counts(histogram, label).dice for label in shown}
    return {"dice": {key: None if np.isnan(value) else round(value, 6) for key, value in dice.items()}}


def _few(cases: Sequence[str]) -> str:
    shown = ", ".join(cases[:3]) or "nothing"
    return f"{shown} and {len(cases) - 3} more" if len(cases) > 3 else shown
