"""A staged run on a disk budget: cut some groups of a case, infer, collect, delete, go on.

Each round is a work folder of its own with one case and a contiguous range of its groups, so that an engine or an
external tool works on it as on any other work folder. The sums stay in this process's memory between rounds; groups come
in order, so the result is that of an unbounded run. A run that was stopped redoes the case it was working on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.errors import CaseError, ToolError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import HeldFolder, write_json
from offline_infer.images.cases import CaseFiles
from offline_infer.processes import end_leftovers
from offline_infer.spec import BundleSpec
from offline_infer.staging.cutting import check_items, cut_items, feed, missing_outputs, refuse_missing
from offline_infer.staging.disk_budget import DiskMeter, case_cost, free_bytes, size_text, split_rounds, used_bytes
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.postprocessing import run_provenance, write_outcome, write_run_manifest
from offline_infer.staging.preprocessing import case_record, expect_disk
from offline_infer.staging.work_folder import exclusive, is_work_folder, mark_work_folder, safe_name
from offline_infer.staging.worklist import BinDtype, Worklist, WorklistHeader, WorklistWriter, header_for
from offline_infer.tasks.base import Collector, Layout, Prepared, PreviousStage
from offline_infer.tasks.records import Provenance, ResultRecord, SourceFile, source_files
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.reports import CaseOutcome, RunReport, attempt, unlisted
from offline_infer.tasks.results import OnExisting, ResultFolder
from offline_infer.tasks.running import prepare_case
from offline_infer.tasks.settings import RunSettings, check_options
from offline_infer.threads import Team, worker_count

STAGE = "rounds"
ROUNDS = "rounds"
"""Folder of the rounds inside the work folder; at most one exists at a time."""
DISK_RECORD = "perf/scratch.json"


@dataclass(frozen=True)
class RoundsJob:
    """What to do in rounds.

    Attributes:
        cases: in the order they are worked on.
        work: new, empty, or a marked folder; everything temporary lies in it.
        output: folder for the results.
        scratch_bytes: the budget.
        infer: answers the items of a round's work folder and lists the outputs in its manifest, e.g. by
            :func:`offline_infer.staging.inferring.infer_stage` or an external tool; returns when all is on disk.
        answered_by: ``engine``, ``device`` and ``precision`` of what answers, for the results' records.
        compiled: fold -> SHA-256 of what answers in the place of its graph, for the records too.
        all_outputs: the tool writes every output of the graph, not only those that are kept.
        problems: cases that could not be listed, with the reason.
        previous_folder: for a cascade's second stage, the first stage's results.
        existing: what to do with results that are there.
        threads: 0 = all cores.
        source: what the user named as input.
    """

    cases: Sequence[CaseFiles]
    work: Path
    output: Path
    scratch_bytes: int
    infer: Callable[[Path], object]
    answered_by: Mapping[str, str] = field(default_factory=dict)
    compiled: Mapping[str, str] = field(default_factory=dict)
    all_outputs: bool = False
    problems: Mapping[str, str] | None = None
    previous_folder: Path | None = None
    existing: OnExisting = "compare"
    threads: int = 0
    source: Path | None = None


def run_in_rounds(
    spec: BundleSpec,
    job: RoundsJob,
    settings: RunSettings,
    folds: Sequence[str],
    *,
    dtype: BinDtype = "float32",
    sink: Sink = silent,
) -> RunReport:
    """Run cases on a disk budget, from image files to results. Failures are in the report, not raised.

    Returns:
        The report; ``facts`` holds ``scratch_bytes``, ``peak_bytes`` (measured) and the rounds of each case. The same
        is written to ``perf/scratch.json`` in the work folder.

    Raises:
        DiskBudgetError: one group does not fit the budget, or the disk is fuller than the budget allows.
        UsageError: the work folder holds something else, another process is at work in it, or existing results were
            made otherwise.
    """
    started = time.perf_counter()
    task = get_task(spec.task)
    check_options(settings, task.options, task.name)
    header = header_for(spec, task.item_settings(spec, settings), folds, dtype)
    results = ResultFolder(job.output, task, spec, settings)
    results.refuse_inputs(job.source, job.cases)
    if not is_work_folder(job.work):
        mark_work_folder(job.work)
    job.output.mkdir(parents=True, exist_ok=True)
    with exclusive(job.work) as held, results.exclusive(STAGE):
        folder = job.work / ROUNDS
        _clear(folder)
        with DiskMeter(job.work) as meter:
            runner = _Runner(spec, job, settings, header, results, held, meter, sink)
            sorted_out = list(results.sort_out(job.cases, job.existing, runner.provenance))
            todo = [case for case, skipped in sorted_out if skipped is None]
            expect_disk(
                STAGE,
                spec,
                header,
                settings,
                todo,
                job.work,
                sink,
                budget=job.scratch_bytes,
                all_outputs=job.all_outputs,
            )
            outcomes = unlisted(STAGE, job.problems, sink)
            for case, skipped in sorted_out:
                if skipped is None:
                    outcomes.append(attempt(STAGE, case.case_id, lambda _, case=case: runner.run(case), sink))  # type: ignore[misc]
                else:
                    outcomes.append(skipped)
                    sink(Event("case-skipped", STAGE, case.case_id, data={"file": skipped.file}))
        facts: dict[str, Any] = {
            "scratch_bytes": job.scratch_bytes,
            "peak_bytes": meter.peak,
            "rounds": runner.rounds_of,
        }
        with held.writing([job.work / DISK_RECORD]):
            write_json(job.work / DISK_RECORD, facts)
        report = RunReport(STAGE, tuple(outcomes), time.perf_counter() - started, facts)
        with results.listing():
            write_run_manifest(job.output, task, spec, settings, report, None, sink)
    text = f"at most {size_text(meter.peak)} of scratch disk were in use"
    sink(Event("note", STAGE, data={"text": text, **facts}))
    return report


class _Runner:
    """Runs one case after the other; see :func:`run_in_rounds`."""

    def __init__(
        self,
        spec: BundleSpec,
        job: RoundsJob,
        settings: RunSettings,
        header: WorklistHeader,
        results: ResultFolder,
        held: HeldFolder,
        meter: DiskMeter,
        sink: Sink,
    ) -> None:
        self._task, self._spec, self._job, self._settings = get_task(spec.task), spec, job, settings
        self._header, self._results, self._meter, self._sink = header, results, meter, sink
        self._held = held
        self._folder = job.work / ROUNDS
        self._facts = {
            **run_provenance(spec, header, None, settings),
            **{name: job.answered_by.get(name, "") for name in ("engine", "device", "precision")},
            "compiled": dict(job.compiled),
        }
        self.rounds_of: dict[str, int] = {}

    def provenance(self, case: CaseFiles, known: ResultRecord | None = None) -> Provenance:
        """How this run makes the result of a case."""
        return Provenance(**self._facts, sources=self._sources(case, known))

    def _sources(self, case: CaseFiles, known: ResultRecord | None = None) -> tuple[SourceFile, ...]:
        return source_files(self._task.sources(case, self._spec, self._job.previous_folder), known)

    def run(self, case: CaseFiles) -> CaseOutcome:
        """One case from its files to its result.

        Raises:
            UsageError: the work folder is not the one it was.
        """
        with self._held.writing(()):
            return self._run(case)

    def _run(self, case: CaseFiles) -> CaseOutcome:
        job, task = self._job, self._task
        provenance = self.provenance(case)
        notes: list[str] = []
        prepared = prepare_case(
            task, case, self._spec, PreviousStage(job.previous_folder), job.threads, note=notes.append
        )
        for note in notes:
            self._sink(Event("note", STAGE, case.case_id, data={"text": note}))
        layout = task.layout(prepared.geometry, self._spec, self._settings)
        cost = case_cost(case.case_id, self._header, layout, job.all_outputs)
        # Other programs use the disk as well: never count on more than is free now.
        kept = used_bytes(job.work / "perf")  # records of earlier rounds stay, and count
        rounds = split_rounds(cost, min(job.scratch_bytes - kept, free_bytes(job.work)))
        text = f"{cost.items} inputs in {len(rounds)} {'round' if len(rounds) == 1 else 'rounds'}"
        facts = {"text": text, "rounds": len(rounds), "items": cost.items}
        self._sink(Event("note", STAGE, case.case_id, data=facts))
        with Team(worker_count(job.threads)) as team:
            collector = task.collector(
                prepared.geometry, self._spec, self._settings, len(self._header.folds), team=team, allocate=None
            )
            for number, (first, last) in enumerate(rounds, start=1):
                self._guarded_round(case, prepared, layout, collector, number, range(first, last))
                self._sink(Event("progress", STAGE, case.case_id, last, cost.groups, data={"round": number}))
            result = collector.finish()
        outcome = CaseOutcome(case.case_id, "done", items=cost.items, shape=layout.extent, notes=tuple(notes))
        write_outcome(self._results, result, provenance, outcome)
        self.rounds_of[case.case_id] = len(rounds)
        return outcome

    def _guarded_round(
        self, case: CaseFiles, prepared: Prepared, layout: Layout, collector: Collector, number: int, groups: range
    ) -> None:
        """One round, and the removal of its folder whatever happened."""
        place = self._folder / f"{safe_name(case.case_id)}_{number}"
        try:
            self._round(case, prepared, layout, collector, place, groups)
        except ToolError as error:
            # The round's folder, which the message may name, is gone when it is read.
            raise ToolError(f"{error} (logs and timing records are kept in {self._kept_records(place)})") from error
        finally:
            self._meter.sample()
            self._keep_records(place)
            _clear(self._folder)

    def _round(
        self, case: CaseFiles, prepared: Prepared, layout: Layout, collector: Collector, place: Path, groups: range
    ) -> None:
        """Some groups of a case: cut, infer, collect."""
        writer = WorklistWriter(place, self._header)
        name = (case.case_id, safe_name(case.case_id))
        items = cut_items(
            self._task, prepared, self._spec, layout, groups, self._header, place, name, writer.next_index
        )
        writer.add(case_record(case, case.channels, (), prepared, layout, items), items)
        self._meter.sample()
        self._job.infer(place)
        self._meter.sample()
        worklist, manifest = Worklist.load(place), OutputsManifest.load(place)
        answered = worklist.items(case.case_id)
        check_items(answered, layout, groups, case.case_id)
        refuse_missing(
            missing_outputs(worklist, manifest, answered),
            len(answered) * len(self._header.folds),
            "the tool left them out; see its log, then give the same command again",
        )
        feed(collector, groups, worklist, manifest, answered)

    def _keep_records(self, place: Path) -> None:
        """Timing records and logs outlive their round."""
        records, kept = place / "perf", self._kept_records(place)
        with suppress(OSError):
            if any(records.iterdir()):
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(parents=True, exist_ok=True)
                records.rename(kept)

    def _kept_records(self, place: Path) -> Path:
        return self._job.work / "perf" / ROUNDS / place.name


def _clear(folder: Path) -> None:
    """Delete the folder of the rounds.

    Raises:
        CaseError: something in it is not ours.
    """
    if folder.is_symlink():
        raise CaseError(f"{folder} is a link; remove it")
    if folder.is_dir():
        end_leftovers(folder)
        shutil.rmtree(folder)
    folder.mkdir()
