"""Many cases: read ahead, infer, finish behind; skip what is done; one bad case fails alone.

Three things run at the same time: a thread reads and prepares the next case, the calling thread drives the engine, and a
thread writes the previous result. No child process is started. Results come in the order of the cases, whatever the timing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer import __version__
from offline_infer.cases import CaseFiles
from offline_infer.errors import CaseError, CasesFailed, GeometryError, OfflineInferError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.images import Image, read_image, read_labels, write_labels
from offline_infer.model import Model
from offline_infer.pipeline.aggregate import RunSettings
from offline_infer.pipeline.streaming import segment
from offline_infer.postprocess import Segmentation
from offline_infer.preprocess import PreparedCase, prepare
from offline_infer.probabilities import probability_files, write_probabilities

MANIFEST = "offline_infer_run.json"


@dataclass(frozen=True)
class FolderJob:
    """What to do with a folder of cases.

    Attributes:
        cases: in the order they are worked on.
        problems: cases that could not even be listed (a channel is missing), with the reason; they count as failed.
        output: folder for ``<case><file_ending>``.
        overwrite: redo cases whose result exists.
        previous_folder: for a cascade, a folder with the first stage's label maps, instead of an opened first stage.
    """

    cases: Sequence[CaseFiles]
    output: Path
    problems: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False
    previous_folder: Path | None = None


@dataclass
class CaseReport:
    """What became of one case; times in seconds."""

    case: str
    status: str  # done, skipped, failed
    file: str | None = None
    reason: str | None = None
    tiles: int = 0
    shape: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """What became of all cases."""

    cases: tuple[CaseReport, ...]
    seconds: float

    @property
    def failures(self) -> dict[str, str]:
        return {case.case: case.reason or "failed" for case in self.cases if case.status == "failed"}

    def to_json(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 3), "cases": [asdict(case) for case in self.cases]}

    def raise_failures(self) -> None:
        """Raise :class:`CasesFailed` if any case failed."""
        if self.failures:
            raise CasesFailed(self.failures, len(self.cases))


def predict_folder(model: Model, job: FolderJob, settings: RunSettings, sink: Sink = silent) -> RunReport:
    """Segment every case of a job. Failures are in the report, not raised.

    Raises:
        EngineUnavailable: the engine cannot be opened; nothing was done.
    """
    started = time.perf_counter()
    job.output.mkdir(parents=True, exist_ok=True)
    reports = {name: CaseReport(name, "failed", reason=reason) for name, reason in sorted(job.problems.items())}
    todo = []
    for case in job.cases:
        existing = _result_files(model, job, case, settings)
        if not job.overwrite and all(path.exists() for path in existing):
            reports[case.case_id] = CaseReport(case.case_id, "skipped", file=existing[0].name)
            sink(Event("case-skipped", "predict", case.case_id, data={"file": str(existing[0])}))
        else:
            todo.append(case)
    for name, reason in job.problems.items():
        sink(Event("case-failed", "predict", name, data={"reason": reason}))
    if todo:
        _ = model.sessions  # fail now, not after the first image has been prepared
    with ThreadPoolExecutor(1, "prepare") as ahead, ThreadPoolExecutor(1, "write") as behind:
        waiting: Future[_Ready] | None = None
        writing: Future[None] | None = None
        for index, case in enumerate(todo):
            report = CaseReport(case.case_id, "failed")
            reports[case.case_id] = report
            current = waiting if waiting is not None else ahead.submit(_make_ready, model, job, case, settings)
            waiting = None
            try:
                ready = current.result()
                if index + 1 < len(todo):
                    waiting = ahead.submit(_make_ready, model, job, todo[index + 1], settings)
                segmentation = _infer(model, ready, settings, report, sink)
                if writing is not None:
                    writing.result()
                writing = behind.submit(_write, model, job, ready, segmentation, report, sink)
            except Exception as error:
                if isinstance(error, OfflineInferError) and not isinstance(error, CaseError):
                    raise
                _fail(report, error, sink)
                if waiting is None and index + 1 < len(todo):
                    waiting = ahead.submit(_make_ready, model, job, todo[index + 1], settings)
        if writing is not None:
            writing.result()
    ordered = [reports[name] for name in [*job.problems, *(case.case_id for case in job.cases)]]
    result = RunReport(tuple(ordered), time.perf_counter() - started)
    write_json(job.output / MANIFEST, _manifest(model, settings, result))
    return result


@dataclass(frozen=True)
class _Ready:
    case: CaseFiles
    image: Image
    prepared: PreparedCase
    seconds: dict[str, float]


def _make_ready(model: Model, job: FolderJob, case: CaseFiles, settings: RunSettings) -> _Ready:
    """Read and prepare one case (runs in the read-ahead thread)."""
    clock = _Clock()
    image = read_image(case.channels, model.spec.reader, channels=len(model.spec.channels))
    clock.lap("read")
    previous = None
    if model.spec.previous_stage is not None:
        previous = _previous_labels(model, job, case, image, settings)
        clock.lap("previous_stage")
    prepared = prepare(image.array, image.geometry, model.spec, previous, threads=model.options.threads)
    clock.lap("prepare")
    # The voxels are not needed any more, only where they were.
    return _Ready(case, Image(np.empty((0, 0, 0, 0), np.float32), image.geometry), prepared, clock.seconds)


def _previous_labels(
    model: Model, job: FolderJob, case: CaseFiles, image: Image, settings: RunSettings
) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
    """The first stage's label map of a case, from a folder or from the opened first stage."""
    if job.previous_folder is not None:
        path = job.previous_folder / f"{case.case_id}{model.spec.file_ending}"
        labels, frame = read_labels(path, model.spec.reader)
        if frame.shape != image.geometry.shape:
            raise GeometryError(f"{path}: shape {frame.shape}, but the image has {image.geometry.shape}")
        return labels
    if model.previous is None:
        raise GeometryError(
            "this model is the second stage of a cascade: name its first stage with --previous BUNDLE, "
            "or a folder with the first stage's label maps with --previous-predictions FOLDER"
        )
    # The first stage keeps its own step and mirrors as set for this run; only its labels are needed.
    plain = RunSettings(settings.step_size, settings.tta, settings.accumulate, False, settings.postprocess)
    return model.previous.predict(image, settings=plain).array


def _infer(model: Model, ready: _Ready, settings: RunSettings, report: CaseReport, sink: Sink) -> Segmentation:
    name = ready.case.case_id
    report.seconds.update(ready.seconds)
    report.shape = ready.prepared.array.shape
    sink(Event("case-started", "predict", name, data={"network_shape": list(ready.prepared.array.shape)}))
    clock = _Clock()

    def progress(done: int, total: int) -> None:
        report.tiles = total
        sink(Event("progress", "predict", name, done, total))

    result = segment(ready.prepared, model.spec, model.sessions, settings, progress)
    clock.lap("infer")
    report.seconds.update(clock.seconds)
    return result


def _write(
    model: Model, job: FolderJob, ready: _Ready, segmentation: Segmentation, report: CaseReport, sink: Sink
) -> None:
    """Write one result (runs in the write-behind thread); a failure is kept in the report."""
    try:
        clock = _Clock()
        path = _label_file(model, job, ready.case)
        if segmentation.probabilities is not None:
            write_probabilities(job.output / ready.case.case_id, segmentation, model.spec)
        write_labels(path, segmentation.labels, ready.image.geometry)
        clock.lap("write")
        report.seconds.update(clock.seconds)
        report.status, report.file = "done", path.name
        present = {int(v): int(n) for v, n in zip(*np.unique(segmentation.labels, return_counts=True), strict=True)}
        sink(
            Event(
                "case-finished",
                "predict",
                report.case,
                data={"file": str(path), "voxels": present, "seconds": report.seconds},
            )
        )
    except Exception as error:
        _fail(report, error, sink)


def _fail(report: CaseReport, error: Exception, sink: Sink) -> None:
    """Record why a case failed. A foreign exception keeps its type's name: it is our bug or the machine's trouble."""
    reason = str(error) if isinstance(error, OfflineInferError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        reason = "out of memory; close other programs, or use fewer folds"
    report.status, report.reason = "failed", reason
    sink(Event("case-failed", "predict", report.case, data={"reason": reason}))


def _label_file(model: Model, job: FolderJob, case: CaseFiles) -> Path:
    return job.output / f"{case.case_id}{model.spec.file_ending}"


def _result_files(model: Model, job: FolderJob, case: CaseFiles, settings: RunSettings) -> list[Path]:
    """Files that must exist for a case to count as done; each is written whole or not at all."""
    files = [_label_file(model, job, case)]
    if settings.save_probabilities:
        files += probability_files(job.output / case.case_id)
    return files


def _manifest(model: Model, settings: RunSettings, report: RunReport) -> dict[str, Any]:
    """Everything needed to know how these results were made."""
    engine: dict[str, Any] = {"name": model.engine}
    if any(case.status == "done" for case in report.cases):
        info = model.session_info
        engine = {"name": info.engine, "version": info.version, "device": info.device, "precision": info.precision}
    return {
        "program": "offline_infer",
        "version": __version__,
        "bundle": str(model.bundle.folder),
        "source": model.spec.source.model_dump(mode="json"),
        "folds": list(model.folds),
        "settings": asdict(settings),
        "engine": engine,
        **report.to_json(),
    }


class _Clock:
    """Wall seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
