"""Evaluate predictions against references: label maps in, nnU-Net's ``summary.json`` out.

Beside the summary stand ``<summary>.details.json`` (volumes in mL, lesions, label names: what nnU-Net's file has no place
for), ``surface.json`` if surface distances were asked for, and ``<summary>.problems.json`` naming the cases that are not
in the summary and why. The summary itself holds nothing that nnU-Net would not write.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.errors import CasesFailed, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.proof.evaluation.labels import (
    EvaluatedLabels,
    label_key,
    labels_beside,
    labels_found,
    labels_given,
    labels_of_run,
)
from offline_infer.proof.evaluation.lesions import lesion_records
from offline_infer.proof.evaluation.metrics import joint_histogram, label_counts
from offline_infer.proof.evaluation.options import CaseOptions, CaseResult, Evaluation, EvaluationOptions
from offline_infer.proof.evaluation.outputs import (
    OutputFiles,
    details_record,
    lowest_dice,
    refuse_replacing_inputs,
    surface_record,
    write_outputs,
)
from offline_infer.proof.evaluation.pairs import CasePair, Pairing, pair_cases, read_pair
from offline_infer.proof.evaluation.pool import CaseOutcomes, run_cases
from offline_infer.proof.evaluation.summary import CaseOverlap, Summary, build_summary
from offline_infer.proof.evaluation.surface_distances import surface_records
from offline_infer.proof.pictures.error_slices import slices_record

STAGE = "evaluate"
_DEFAULTS = EvaluationOptions()


def evaluate_folders(
    predictions: Path,
    references: Path,
    options: EvaluationOptions = _DEFAULTS,
    *,
    output: Path | None = None,
    sink: Sink = silent,
) -> Summary:
    """Evaluate and return the content of ``summary.json``; see :func:`evaluate` for the arguments.

    Raises:
        CasesFailed: some cases are missing or unreadable. The files of the others have been written by then.
        UsageError: see :func:`evaluate`.
    """
    found = evaluate(predictions, references, options, output=output, sink=sink)
    if found.failed:
        raise CasesFailed(found.failed, found.total)
    assert found.summary is not None
    return found.summary


def evaluate(
    predictions: Path,
    references: Path,
    options: EvaluationOptions = _DEFAULTS,
    *,
    output: Path | None = None,
    sink: Sink = silent,
) -> Evaluation:
    """Evaluate label maps against references, case by case.

    Args:
        predictions, references: two folders, or two single files.
        output: where to write the summary; None writes nothing.

    Raises:
        UsageError: paths or options that make no sense, not one case on both sides, or an output that would replace a
            label file.
    """
    options.check()
    pairing = pair_cases(predictions, references)
    if not pairing.pairs:
        raise UsageError(
            f"no case is on both sides: {predictions} holds {_few(pairing.only_first)}, "
            f"{references} holds {_few(pairing.only_second)}; a case's files have the same name in both"
        )
    if output is not None:
        inputs = [path for pair in pairing.pairs for path in (pair.first, pair.second)]
        refuse_replacing_inputs(OutputFiles(output).all(), inputs)
    chosen = _choose_labels(predictions, references, options)
    evaluation = _evaluate_pairs(pairing, chosen, options, sink)
    remarks = [(case, note) for case, notes in evaluation.notes.items() for note in notes]
    remarks += [(case, "no prediction for this reference") for case in pairing.only_second]
    remarks += [(case, "no reference for this prediction; left out") for case in pairing.only_first]
    for case, remark in remarks:
        sink(Event("note", STAGE, case=case, data={"note": remark}))
    if output is not None:
        write_outputs(OutputFiles(output), evaluation)
        _write_slices(OutputFiles(output).slices, pairing, evaluation, options, sink)
    return evaluation


def evaluate_case(pair: CasePair, options: CaseOptions) -> CaseResult:
    """Evaluate one case.

    Raises:
        ImageError: a file cannot be read or is no label map.
        GeometryError: the shapes differ.
    """
    prediction, reference, theirs, remarks = read_pair(pair)
    histogram = joint_histogram(prediction, reference)
    ignore = options.ignore
    wanted = [v for v in (histogram.values if options.labels is None else options.labels) if v not in (0, ignore)]
    surface = lesions = None
    if options.tolerances is not None:
        surface = surface_records(
            prediction, reference, theirs.spacing, wanted, tolerances=options.tolerances, ignore=ignore
        )
    if options.lesions is not None:
        lesions = lesion_records(prediction, reference, theirs.spacing, wanted, options.lesions, ignore=ignore)
    shape, spacing = tuple(reference.shape), tuple(theirs.spacing)
    return CaseResult(histogram, remarks, shape, spacing, surface, lesions)


def _evaluate_pairs(
    pairing: Pairing, chosen: EvaluatedLabels | None, options: EvaluationOptions, sink: Sink
) -> Evaluation:
    case_options = CaseOptions(
        labels=None if chosen is None else chosen.labels,
        ignore=options.ignore if chosen is None else chosen.ignore,
        tolerances=tuple(options.tolerances) if options.surface else None,
        lesions=options.lesions,
    )
    outcomes = run_cases(
        evaluate_case,
        {pair.case: (pair, case_options) for pair in pairing.pairs},
        jobs=options.jobs,
        stage=STAGE,
        sink=sink,
        describe=lambda result: _describe(result, chosen),
    )
    if chosen is None:
        values = {value for result in outcomes.done.values() for value in result.histogram.values}
        chosen = labels_found(values, options.ignore, options.format)
    keys = [label_key(v) for v in chosen.labels]
    said = f"labels evaluated: {', '.join(keys)} ({chosen.origin})"
    sink(Event("note", STAGE, data={"text": said, "labels": keys, "origin": chosen.origin}))
    return _assemble(pairing, outcomes, chosen, options)


def _write_slices(path: Path, pairing: Pairing, evaluation: Evaluation, options: EvaluationOptions, sink: Sink) -> None:
    """Slices of the worst cases. What cannot be drawn is a note, never a failure: the figures are there."""
    pairs = {pair.case: pair for pair in pairing.pairs}
    lowest = lowest_dice(evaluation.details or {})
    worst = sorted(lowest, key=lambda case: (lowest[case], case))[: options.worst]
    if not worst:
        with suppress(FileNotFoundError):
            path.unlink()
        return
    names = {label_key(label): name for label, name in evaluation.labels.names.items()}
    cases = [(pairs[case], lowest[case]) for case in worst]
    record, problems = slices_record(cases, names=names, images=options.images)
    write_json(path, record, indent=None)
    for case, reason in problems.items():
        sink(Event("note", STAGE, case, data={"note": f"no slices were drawn: {reason}"}))


def _choose_labels(predictions: Path, references: Path, options: EvaluationOptions) -> EvaluatedLabels | None:
    labels, ignore = options.labels, options.ignore
    if isinstance(labels, EvaluatedLabels):
        return labels
    if labels is not None:
        return labels_given(labels, ignore)
    folder = predictions if predictions.is_dir() else predictions.parent
    known = (
        labels_beside(folder, options.format)
        or labels_beside(references.absolute().parent, options.format)
        or labels_of_run(folder, options.format)
    )
    if known is None:
        return None
    kept = tuple(v for v in known.labels if v != ignore)
    return EvaluatedLabels(kept, known.ignore if ignore is None else ignore, known.names, known.origin)


def _assemble(
    pairing: Pairing, outcomes: CaseOutcomes[CaseResult], labels: EvaluatedLabels, options: EvaluationOptions
) -> Evaluation:
    done = [(pair, outcomes.done[pair.case]) for pair in pairing.pairs if pair.case in outcomes.done]
    failed = dict(outcomes.failed)
    if not options.allow_missing:
        for case in pairing.only_second:
            failed[case] = "no prediction for this reference; predict it, or allow missing predictions"
    cases = [CaseOverlap(pair.first, pair.second, result.histogram) for pair, result in done]
    return Evaluation(
        summary=build_summary(cases, labels, options.format, header=options.header) if cases else None,
        details=details_record(done, labels, options.lesions) if cases else None,
        surface=surface_record(done, labels, options.tolerances) if options.surface and done else None,
        labels=labels,
        failed=failed,
        missing=pairing.only_second,
        extra=pairing.only_first,
        notes={pair.case: result.notes for pair, result in done if result.notes},
        total=len(pairing.pairs) + len(pairing.only_second),
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
