"""The whole route in one call: checkpoint folder and images in; bundle, label maps, scores and a picture out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.bundles.bundle import Bundle
from offline_infer.errors import CasesFailed, OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import load
from offline_infer.proof.pictures.overlay import picture_title
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import EvaluationRequest, Task
from offline_infer.tasks.opening import open_bundle
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.results import OnExisting
from offline_infer.tasks.settings import RunSettings


@dataclass(frozen=True)
class Journey:
    """What to do, and where.

    Attributes:
        checkpoint: model folder of the framework; None: the bundle is in ``output`` already.
        images: an image or a folder of cases.
        output: gets ``bundle``, ``predictions``, ``summary.json`` and ``overlay.png``.
        labels: reference label maps, or None: then nothing is scored.
        evaluation: options of the scoring, by the names of the task's own.
        folds, engine, threads, device, precision, memory, settings, existing: as for ``export`` and ``predict``.
    """

    checkpoint: Path | None
    images: Path
    output: Path
    labels: Path | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[str, ...] | None = None
    engine: str = "openvino"
    threads: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    memory: int | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    existing: OnExisting = "compare"


@dataclass
class Outcome:
    """Where things are, and the scores."""

    bundle: Path
    predictions: Path
    summary: dict[str, Any] | None = None
    table: str = ""
    picture: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)
    total: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def travel(journey: Journey, sink: Sink = silent) -> Outcome:
    """Export unless the bundle is there, predict what is not finished, evaluate, draw the first case.

    A failed case is in ``failures``; the others are complete.

    Raises:
        CheckpointError, ExportError: the checkpoint cannot be read, or its graph does not give the same answer.
        UsageError: nothing to segment, or the bundle that is there was made from another checkpoint.
    """
    output = journey.output
    outcome = Outcome(output / "bundle", output / "predictions")
    lap = _laps(outcome, sink)
    bundle = _bundle(journey, outcome.bundle, sink)
    lap("export")
    spec, task = bundle.spec, get_task(bundle.spec.task)
    with load(
        outcome.bundle,
        engine=journey.engine,
        device=journey.device,
        precision=journey.precision,
        threads=journey.threads,
    ) as model:
        found = task.list_cases(journey.images, spec)
        job = FolderJob(
            found.cases,
            outcome.predictions,
            found.problems,
            existing=journey.existing,
            source=journey.images,
            memory=journey.memory,
        )
        report = predict_folder(model, job, journey.settings, sink)
    outcome.failures, outcome.total = report.failures, len(report.cases)
    lap("predict")
    if journey.labels is not None:
        request = EvaluationRequest(
            outcome.predictions,
            journey.labels,
            output / "summary.json",
            {"allow_missing": True, **journey.evaluation},
            journey.images,
        )
        scores = task.evaluate(request, spec, sink)
        outcome.summary, outcome.table = scores.summary, scores.table()
        outcome.failures |= scores.failed
        lap("evaluate")
    drawn = next((case for case in found.cases if case.case_id not in outcome.failures), None)
    if drawn is not None:
        try:
            outcome.picture = _draw(drawn, journey, outcome, task, spec)
        except OfflineInferError as error:  # the results are there; a picture is an extra
            sink(Event("note", "run", data={"text": f"no picture was drawn: {error}"}))
        lap("picture")
    return outcome


def raise_failures(outcome: Outcome) -> None:
    """Raise :class:`CasesFailed` if any case failed."""
    if outcome.failures:
        raise CasesFailed(outcome.failures, outcome.total)


def _bundle(journey: Journey, folder: Path, sink: Sink) -> Bundle:
    """The bundle that is there, or a new one."""
    from offline_infer.checkpoints import Selection, read_checkpoint
    from offline_infer.exporting.bundles import export_bundle

    if journey.checkpoint is None:
        return open_bundle(folder)
    if not folder.exists():
        return export_bundle(journey.checkpoint, folder, selection=Selection(folds=journey.folds), sink=sink)
    bundle = open_bundle(folder)
    source = read_checkpoint(journey.checkpoint, folds=journey.folds).spec.source
    if [fold.sha256 for fold in bundle.spec.source.folds] != [fold.sha256 for fold in source.folds]:
        raise UsageError(f"{folder} was made from other weights than {journey.checkpoint}; name another output folder")
    return bundle


def _draw(case: CaseFiles, journey: Journey, outcome: Outcome, task: Task, spec: BundleSpec) -> Path:
    picture = journey.output / "overlay.png"
    title = picture_title(case.case_id, spec.source.framework, journey.engine, reference=journey.labels is not None)
    task.draw(case, outcome.predictions, journey.labels, spec, picture, title)
    return picture


def _laps(outcome: Outcome, sink: Sink):  # type: ignore[no-untyped-def]
    """A stop-watch that notes each stage."""
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        outcome.seconds[name] = round(now - last, 2)
        last = now
        seconds = outcome.seconds[name]
        text = f"{name} finished in {seconds:.1f} s"
        sink(Event("note", "run", data={"text": text, "finished": name, "seconds": seconds}))

    return lap
