"""Many cases: read ahead, infer, finish behind; skip what is done; one bad case fails alone.

Three things run at the same time: a thread reads and prepares the next case, the calling thread drives the engine, and a
thread finishes the previous one: its last slabs, its components, its file. No child process is started. Results come in the
order of the cases, whatever the timing.
What a case will take is forecast from its header; where the memory does not suffice, cases do not overlap, and after that
the sums of the slab in work go to a scratch file. The result is the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer._version import __version__
from offline_infer.arithmetic.geometry import ImageGeometry
from offline_infer.errors import CaseError, CasesFailed, GeometryError, OfflineInferError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.images import Image, read_geometry, read_image, read_labels, write_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.nnunet_files.probabilities import probability_files, write_probabilities
from offline_infer.predict.memory import MemoryForecast, Method, Scratch, choose_method, forecast_case, room_left
from offline_infer.predict.model import Model
from offline_infer.predict.streaming import infer
from offline_infer.tasks.volume.aggregation import RunSettings
from offline_infer.tasks.volume.deciding import Finish
from offline_infer.tasks.volume.preparing import PreparedCase, prepare

MANIFEST = "offline_infer_run.json"
_LOOKED_AT = 100
"""Cases whose headers are read before the first one is worked on, for the forecast."""


@dataclass(frozen=True)
class FolderJob:
    """What to do with a folder of cases.

    Attributes:
        cases: in the order they are worked on.
        problems: cases that could not even be listed (a channel is missing), with the reason; they count as failed.
        output: folder for ``<case><file_ending>``.
        overwrite: redo cases whose result exists.
        previous_folder: for a cascade, a folder with the first stage's label maps, instead of an opened first stage.
        memory: bytes the process may take; None = what the machine has free.
    """

    cases: Sequence[CaseFiles]
    output: Path
    problems: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False
    previous_folder: Path | None = None
    memory: int | None = None


@dataclass
class CaseReport:
    """What became of one case; times in seconds.

    ``memory``: what was forecast (bytes above the program with its engine opened) and how the case was therefore run.
    """

    case: str
    status: str  # done, skipped, failed
    file: str | None = None
    reason: str | None = None
    tiles: int = 0
    shape: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


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
        # Fail now, not after the first image has been prepared.
        for opened in (model, model.previous if job.previous_folder is None else None):
            if opened is not None:
                opened.tell_precision(lambda text: sink(Event("note", "predict", data={"text": text})))
    outlook = _Outlook(model, job, settings, todo, sink)
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
                method = outlook.method(index, ready.prepared)
                report.memory = outlook.record(index, method)
                if index + 1 < len(todo) and method.read_ahead:
                    waiting = ahead.submit(_make_ready, model, job, todo[index + 1], settings)
                finish = _infer(model, job, ready, settings, method, report, sink)
                ready = ready.emptied()
                if writing is not None:
                    writing.result()
                writing = behind.submit(_write, model, job, ready, finish, report, sink)
                if not method.read_ahead:
                    writing.result()
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

    def emptied(self) -> _Ready:
        """Without the voxels, which nobody needs once the case is inferred."""
        nothing = np.empty((0, 0, 0, 0), np.float32)
        return replace(self, prepared=PreparedCase(nothing, self.prepared.geometry))


class _Outlook:
    """Memory forecasts of the cases to do, and the method that follows from them."""

    def __init__(
        self, model: Model, job: FolderJob, settings: RunSettings, todo: Sequence[CaseFiles], sink: Sink
    ) -> None:
        self._model, self._settings, self._limit = model, settings, job.memory
        files = {graph.fold: graph.file for graph in model.spec.graphs}
        self._graphs = sum(_file_size(model.bundle.folder / files[fold]) for fold in model.folds if fold in files)
        self._todo = todo
        self._cases: dict[int, MemoryForecast | None] = {}
        looked_at = [(case, self._at(index)) for index, case in enumerate(todo[:_LOOKED_AT])]
        known = [(case, outlook) for case, outlook in looked_at if outlook is not None]
        if known:
            room = room_left(self._limit)
            case, largest = max(known, key=lambda pair: pair[1].alone)
            beside = largest if len(todo) > 1 else None
            method = choose_method(largest, beside, room, beside)
            facts = {"room": room, **asdict(method), **largest.to_json()}
            sink(Event("forecast", "predict", case.case_id, data=facts))

    def method(self, index: int, prepared: PreparedCase) -> Method:
        """How to run a case that is prepared, so that its cropped shape is known."""
        geometry = prepared.geometry
        with suppress(CaseError):
            self._cases[index] = self._of(geometry.image, geometry.cropped_shape)
        forecast = self._at(index)
        if forecast is None:
            return Method()
        following = self._at(index + 1) if index + 1 < len(self._todo) else None
        previous = self._at(index - 1) if index else None
        # The prepared array is there already and counted in the room that is left.
        return choose_method(forecast, following, room_left(self._limit) + forecast.prepared, previous)

    def record(self, index: int, method: Method) -> dict[str, Any]:
        forecast = self._at(index)
        return {**asdict(method), **(forecast.to_json() if forecast is not None else {})}

    def _at(self, index: int) -> MemoryForecast | None:
        """The forecast of a case, from its header until it is prepared."""
        if index not in self._cases:
            self._cases[index] = None
            with suppress(CaseError, OSError):  # said, by name, when the case's turn comes
                frame = read_geometry(self._todo[index].channels, self._model.spec.reader)
                self._cases[index] = self._of(frame)
        return self._cases[index]

    def _of(self, frame: ImageGeometry, cropped: Sequence[int] | None = None) -> MemoryForecast:
        model = self._model
        return forecast_case(
            model.spec,
            frame,
            self._settings,
            len(model.folds),
            graph_bytes=self._graphs,
            cropped=cropped,
            threads=model.options.threads,
        )


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _make_ready(model: Model, job: FolderJob, case: CaseFiles, settings: RunSettings) -> _Ready:
    """Read and prepare one case (runs in the read-ahead thread)."""
    clock = _Clock()
    image = read_image(case.channels, model.spec.reader, channels=len(model.spec.channels))
    clock.lap("read")
    previous = None
    if model.spec.previous_stage is not None:
        previous = _previous_labels(model, job, case, image, settings)
        clock.lap("previous_stage")
    prepared = prepare(image.array, image.geometry, model.spec, previous, threads=model.options.threads, consume=True)
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


def _infer(
    model: Model,
    job: FolderJob,
    ready: _Ready,
    settings: RunSettings,
    method: Method,
    report: CaseReport,
    sink: Sink,
) -> Finish:
    """Everything that needs the engine; the rest is left to the thread behind, unless memory is short."""
    name = ready.case.case_id
    report.seconds.update(ready.seconds)
    report.shape = ready.prepared.array.shape
    sink(Event("case-started", "predict", name, data={"network_shape": list(ready.prepared.array.shape)}))
    clock = _Clock()

    def progress(done: int, total: int) -> None:
        report.tiles = total
        sink(Event("progress", "predict", name, done, total))

    with Scratch(job.output) as allocate:
        finish = infer(
            ready.prepared,
            model.spec,
            model.sessions,
            settings,
            progress,
            threads=model.options.threads,
            allocate=allocate if method.spill else None,
        )
        if method.spill:  # while the scratch file is there
            result = finish()
            finish = lambda: result  # noqa: E731 - one line says it
    clock.lap("infer")
    report.seconds.update(clock.seconds)
    stitching = str(model.session_info.details.get("stitching", ""))
    if stitching.startswith("host: "):  # the device could not do it
        sink(Event("note", "predict", name, data={"text": f"stitched on the {stitching}"}))
    return finish


def _write(model: Model, job: FolderJob, ready: _Ready, finish: Finish, report: CaseReport, sink: Sink) -> None:
    """Finish one case and write its result (runs in the thread behind); a failure is kept in the report."""
    try:
        clock = _Clock()
        segmentation = finish()
        clock.lap("finish")
        path = _label_file(model, job, ready.case)
        if segmentation.probabilities is not None:
            write_probabilities(
                job.output / ready.case.case_id, segmentation.probabilities, segmentation.geometry, model.spec
            )
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
    checks: list[dict[str, Any]] = []
    if any(case.status == "done" for case in report.cases):
        info = model.session_info
        engine = {"name": info.engine, "version": info.version, "device": info.device, "precision": info.precision}
        if "stitching" in info.details:
            engine["stitching"] = info.details["stitching"]
        checks = model.precision_standing.to_json()
    return {
        "program": "offline_infer",
        "version": __version__,
        "bundle": str(model.bundle.folder),
        "source": model.spec.source.model_dump(mode="json"),
        "folds": list(model.folds),
        "settings": asdict(settings),
        "engine": engine,
        "precision_checks": checks,
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
