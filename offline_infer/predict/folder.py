"""Many cases: read ahead, infer, finish behind; skip what is done; one bad case fails alone.

Three things run at the same time: a thread reads and prepares the next case, the calling thread drives the engine, and a
thread finishes the previous one: its last planes, its components, its file. No child process is started. Results come in the
order of the cases, whatever the timing.
What a case will take is estimated from its header; where the memory does not suffice, cases do not overlap, and after that
the sums of the active slab go to a spill file. The result is the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from offline_infer.engines.base import require_engine
from offline_infer.errors import CaseError
from offline_infer.events import Event, Sink, silent
from offline_infer.images.cases import CaseFiles
from offline_infer.machine import memory_held
from offline_infer.predict.memory import Method, SpillFile, choose_method, refuse_hopeless, refuse_impossible, room_left
from offline_infer.predict.model import Model
from offline_infer.predict.provenance import Provenances
from offline_infer.predict.streaming import infer
from offline_infer.proof.evaluation.pool import raise_if_fatal
from offline_infer.tasks.base import Finish, Prepared, PreviousStage
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.records import SourceFile, manifest_is_current, write_manifest
from offline_infer.tasks.reports import CaseOutcome, Clock, RunReport, unlisted
from offline_infer.tasks.results import OnExisting, ResultFolder
from offline_infer.tasks.running import prepare_case
from offline_infer.tasks.settings import RunSettings, check_options

STAGE = "predict"
_HEADERS_READ = 100
"""Cases whose headers are read before the first one is worked on, for the estimate."""
_WORTH_A_CANARY = 3
"""A canary costs one network input per fold: little in a run of several cases."""
_RECORDED_DETAILS = ("convolution", "stitching", "devices", "left_out")


@dataclass(frozen=True)
class FolderJob:
    """What to do with a folder of cases.

    Attributes:
        cases: in the order they are worked on.
        problems: cases that could not even be listed (a channel is missing), with the reason; they count as failed.
        output: folder for the results.
        existing: what to do with results that are there.
        previous_folder: for a cascade, a folder with the first stage's results, instead of an opened first stage.
        memory: bytes the process may take; None = what the machine has free.
        part: (number, of how many) this job is, where several processes share the cases of one folder.
        source: what the user named as input.
        lone: one result is wanted, and nothing for the folder as a whole.
        tuned: SHA-256 of the bundle's tuning record, if the settings were taken from it.
        canary: whether the engine is first asked for the bundle's recorded answer; ``auto``: in runs of several cases.
    """

    cases: Sequence[CaseFiles]
    output: Path
    problems: dict[str, str] = field(default_factory=dict)
    existing: OnExisting = "compare"
    previous_folder: Path | None = None
    memory: int | None = None
    part: tuple[int, int] = (0, 1)
    source: Path | None = None
    lone: bool = False
    tuned: str | None = None
    canary: Literal["auto", "always", "never"] = "auto"


def predict_folder(model: Model, job: FolderJob, settings: RunSettings, sink: Sink = silent) -> RunReport:
    """Run every case of a job. Failures are in the report, not raised.

    Raises:
        EngineUnavailable: the engine cannot be opened; nothing was done.
        UsageError: existing results were made otherwise, or would replace an input, or the limit on memory cannot be kept;
            nothing was done.
    """
    started = time.perf_counter()
    check_options(settings, model.task.options, model.task.name)
    results = ResultFolder(job.output, model.task, model.spec, settings)
    results.refuse_inputs(job.source, job.cases)
    if not job.output.exists():  # an engine that is not there must not leave an empty folder behind
        require_engine(model.engine)
    with results.exclusive(f"part {job.part[0]} of {job.part[1]}"):
        outcomes = {outcome.case: outcome for outcome in unlisted(STAGE, dict(sorted(job.problems.items())), sink)}
        provenances = Provenances(model, settings, job.previous_folder)
        todo = []
        for case, skipped in results.sort_out(job.cases, job.existing, provenances.of):
            if skipped is None:
                todo.append(case)
                continue
            outcomes[case.case_id] = skipped
            sink(Event("case-skipped", STAGE, case.case_id, data={"file": str(job.output / (skipped.file or ""))}))
        if todo:
            # Fail now, not after the first image has been prepared.
            for opened in (model, model.previous if job.previous_folder is None else None):
                if opened is not None:
                    opened.tell_precision(lambda text: sink(Event("note", STAGE, data={"text": text})))
        sink(Event("stage-started", STAGE, total=len(job.cases)))
        outlook = _Outlook(model, settings, job, todo, sink)
        asked = job.canary == "always" or (job.canary == "auto" and len(todo) >= _WORTH_A_CANARY)
        canaries = model.require_canaries() if asked and todo else []
        with _Runner(model, job, settings, results, provenances, todo, outlook, sink) as runner:
            for index in range(len(todo)):
                outcomes[todo[index].case_id] = runner.run(index)
        ordered = [outcomes[name] for name in [*job.problems, *(case.case_id for case in job.cases)]]
        with results.listing():
            if not job.lone:
                # Before the manifest, and even if nothing was to do: an earlier run may have been killed at this point.
                complete = [outcome.case for outcome in ordered if outcome.status != "failed"]
                for text in model.task.write_shared_files(job.output, model.spec, {job.part[0]: complete}, job.part[1]):
                    sink(Event("note", STAGE, data={"text": text}))
            report = RunReport(STAGE, tuple(ordered), time.perf_counter() - started)
            # A run that found everything done leaves the manifest of the run that did it.
            if not job.lone and (todo or job.problems or not manifest_is_current(job.output)):
                failed = [outcome.to_json() for outcome in ordered if outcome.status == "failed"]
                facts = {**_run_facts(model, settings, report), "tuned": job.tuned, "canaries": canaries}
                write_manifest(job.output, facts, failed)
    return report


@dataclass(frozen=True)
class _Ready:
    """A case that is prepared, and what stands in its record."""

    prepared: Prepared
    sources: tuple[SourceFile, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]


class _Runner:
    """Runs the cases to do, one after the other, with a thread that reads ahead and one that finishes behind."""

    def __init__(
        self,
        model: Model,
        job: FolderJob,
        settings: RunSettings,
        results: ResultFolder,
        provenances: Provenances,
        todo: Sequence[CaseFiles],
        outlook: _Outlook,
        sink: Sink,
    ) -> None:
        self._model, self._settings, self._results, self._sink = model, settings, results, sink
        self._provenances = provenances
        self._output, self._memory, self._todo = job.output, job.memory, todo
        self._stage: PreviousStage = model.first_stage(settings, job.memory, job.previous_folder)
        self._outlook = outlook
        self._ahead: Future[_Ready] | None = None
        self._behind: Future[None] | None = None
        self._threads = ExitStack()
        self._devices_told: set[int] = set()

    def __enter__(self) -> _Runner:
        self._reader = self._threads.enter_context(ThreadPoolExecutor(1, "prepare"))
        self._writer = self._threads.enter_context(ThreadPoolExecutor(1, "write"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
        self._threads.close()
        if self._behind is not None:
            self._behind.result()

    def run(self, index: int) -> CaseOutcome:
        """One case; its result may be written later, its outcome is then complete."""
        case = self._todo[index]
        outcome = CaseOutcome(case.case_id, "failed")
        try:
            ready = self._ready(index)
            method = self._outlook.method(index, ready.prepared)
            outcome.memory = self._outlook.record(index, method)
            if method.read_ahead:
                self._read_ahead(index + 1)
            finish = self._infer(case, ready, method, outcome)
            ready = replace(ready, prepared=ready.prepared.emptied())
            if self._behind is not None:
                self._behind.result()
            self._behind = self._writer.submit(self._write, case, ready, finish, outcome)
            if not method.read_ahead:
                self._behind.result()
        except Exception as error:
            raise_if_fatal(error, case.case_id, STAGE)
            outcome.fail(error, STAGE, self._sink)
            self._read_ahead(index + 1)
        return outcome

    def _ready(self, index: int) -> _Ready:
        waiting, self._ahead = self._ahead, None
        if waiting is None:
            self._outlook.refuse_hopeless(index)
            waiting = self._reader.submit(self._make_ready, self._todo[index])
        return waiting.result()

    def _read_ahead(self, index: int) -> None:
        if self._ahead is not None or index >= len(self._todo):
            return
        with suppress(CaseError):  # said when its turn comes
            self._outlook.refuse_hopeless(index)
            self._ahead = self._reader.submit(self._make_ready, self._todo[index])

    def _make_ready(self, case: CaseFiles) -> _Ready:
        """Read and prepare one case (runs in the read-ahead thread)."""
        clock = Clock()
        model = self._model
        sources = self._provenances.sources(case)
        notes: list[str] = []
        threads = model.options.threads
        prepared = prepare_case(model.task, case, model.spec, self._stage, threads, lap=clock.lap, note=notes.append)
        return _Ready(prepared, sources, clock.seconds, tuple(notes))

    def _infer(self, case: CaseFiles, ready: _Ready, method: Method, outcome: CaseOutcome) -> Finish:
        """Everything that needs the engine; the rest is left to the thread behind, unless memory is short."""
        model, sink = self._model, self._sink
        layout = model.task.layout(ready.prepared.geometry, model.spec, self._settings)
        outcome.seconds.update(ready.seconds)
        outcome.notes = ready.notes
        outcome.shape = layout.extent
        outcome.items = layout.groups * layout.per_group
        sink(Event("case-started", STAGE, case.case_id, data={"network_shape": list(layout.extent)}))
        for text in ready.notes:
            sink(Event("note", STAGE, case.case_id, data={"text": text}))
        clock = Clock()
        with SpillFile(self._output) as allocate:
            finish = infer(
                model.task,
                ready.prepared,
                model.spec,
                model.sessions,
                self._settings,
                lambda done, total: sink(Event("progress", STAGE, case.case_id, done, total)),
                threads=model.options.threads,
                allocate=allocate if method.spill else None,
            )
            if method.spill:  # while the spill file is there
                result = finish()
                finish = lambda: result  # noqa: E731 - one line says it
        clock.lap("infer")
        outcome.seconds.update(clock.seconds)
        stitching = str(model.session_info.details.get("stitching", ""))
        if stitching.startswith("host: "):  # the device could not do it
            sink(Event("note", STAGE, case.case_id, data={"text": f"stitched on the {stitching}"}))
        self._tell_devices(case)
        return finish

    def _tell_devices(self, case: CaseFiles) -> None:
        """Say which devices do not work (any more), each once: the others do their work, and the run takes longer."""
        for session in self._model.sessions:
            left_out: dict[int, str] = session.info.details.get("left_out", {})
            for device in sorted(left_out.keys() - self._devices_told):
                self._devices_told.add(device)
                text = f"device {device} is left out, the others do its work: {left_out[device]}"
                self._sink(Event("note", STAGE, case.case_id, data={"text": text}))

    def _write(self, case: CaseFiles, ready: _Ready, finish: Finish, outcome: CaseOutcome) -> None:
        """Finish one case and write its result (runs in the thread behind); a failure is kept in the outcome.

        Raises:
            OfflineInferError: what concerns the other cases as well, such as a full disk.
        """
        try:
            clock = Clock()
            result = finish()
            clock.lap("finish")
            provenance = self._provenances.of(case, ready.sources)
            with self._results.writing(case.case_id, provenance, self._provenances.versions, outcome):
                path = self._results.write(result, case.case_id)
                clock.lap("write")
                outcome.seconds.update(clock.seconds)
                outcome.status, outcome.file, outcome.bytes = "done", path.name, path.stat().st_size
            facts = self._model.task.describe(result, self._model.spec)
            data = {"file": str(path), **facts, "seconds": outcome.seconds}
            self._sink(Event("case-finished", STAGE, case.case_id, data=data))
        except Exception as error:
            raise_if_fatal(error, case.case_id, STAGE)
            outcome.fail(error, STAGE, self._sink)


class _Outlook:
    """Memory estimates of the cases to do, and the method that follows from them.

    Raises:
        UsageError: the job's limit is less than the largest case needs by any method.
    """

    def __init__(
        self, model: Model, settings: RunSettings, job: FolderJob, todo: Sequence[CaseFiles], sink: Sink
    ) -> None:
        self._model, self._settings, self._limit = model, settings, job.memory
        self._first_stage = job.previous_folder is None
        self._todo = todo
        self._held = memory_held()
        self._cases: dict[int, MemoryEstimate | None] = {}
        known = [
            (case, estimate)
            for index, case in enumerate(todo[:_HEADERS_READ])
            if (estimate := self._at(index)) is not None
        ]
        if known:
            room = room_left(self._limit)
            case, largest = max(known, key=lambda pair: pair[1].alone)
            beside = largest if len(todo) > 1 else None
            method = choose_method(largest, beside, room, beside)
            facts = {"room": room, **asdict(method), **largest.to_json()}
            sink(Event("estimate", STAGE, case.case_id, data=facts))
            refuse_impossible(self._limit, largest, f"the largest case, {case.case_id},")

    def refuse_hopeless(self, index: int) -> None:
        """Refuse a case whose image alone, with the search for its empty border, is more than the memory there is.

        Raises:
            CaseError: it is.
        """
        if (estimate := self._at(index)) is not None:
            refuse_hopeless(sum(estimate.parts.get(name, 0) for name in ("image", "box")), self._held)

    def method(self, index: int, prepared: Prepared) -> Method:
        """How to run a case that is prepared, so that its cropped shape is known.

        Raises:
            CaseError: there is no way to run it within the memory there is.
        """
        with suppress(CaseError):
            frame = self._model.task.read_frame(self._todo[index], self._model.spec)
            self._cases[index] = self._of(frame, prepared.geometry)
        estimate = self._at(index)
        if estimate is None:
            return Method()
        refuse_hopeless(max(estimate.infer - estimate.slab, estimate.finish), self._held)
        following = self._at(index + 1) if index + 1 < len(self._todo) else None
        previous = self._at(index - 1) if index else None
        # The prepared array is there already and counted in the room that is left.
        return choose_method(estimate, following, room_left(self._limit) + estimate.prepared, previous)

    def record(self, index: int, method: Method) -> dict[str, Any]:
        estimate = self._at(index)
        return {**asdict(method), **(estimate.to_json() if estimate is not None else {})}

    def _at(self, index: int) -> MemoryEstimate | None:
        """The estimate of a case, from its header until it is prepared."""
        if index not in self._cases:
            self._cases[index] = None
            with suppress(CaseError, OSError):  # said, by name, when the case's turn comes
                frame = self._model.task.read_frame(self._todo[index], self._model.spec)
                self._cases[index] = self._of(frame, None)
        return self._cases[index]

    def _of(self, frame: Any, geometry: Any) -> MemoryEstimate | None:
        return self._model.estimate_memory(frame, self._settings, geometry, first_stage=self._first_stage)


def _run_facts(model: Model, settings: RunSettings, report: RunReport) -> dict[str, Any]:
    """The run that ends now, for the manifest; how each case was made stands in its own record."""
    engine: dict[str, Any] = {"name": model.engine}
    checks: list[dict[str, Any]] = []
    if any(case.status == "done" for case in report.cases):
        info = model.session_info
        engine = {"name": info.engine, "version": info.version, "device": info.device, "precision": info.precision}
        engine |= {name: info.details[name] for name in _RECORDED_DETAILS if name in info.details}
        checks = model.precision_standing.to_json()
    return {
        "task": model.spec.task,
        "bundle": str(model.bundle.folder),
        "source": model.spec.source.model_dump(mode="json"),
        "folds": list(model.folds),
        "labels": model.spec.label_table(),
        "settings": asdict(settings),
        "engine": engine,
        "precision_checks": checks,
        "seconds": round(report.seconds, 3),
    }
