"""A staged run on a disk budget: cut some tiles of a case, infer, merge, delete, go on.

Each round is a work folder of its own with one case and a contiguous range of its tiles, so that an engine or an
external tool works on it as on any other work folder. The sums stay in this process's memory between rounds; tiles come
in grid order, so the label map is that of an unbounded run. A run that was stopped redoes the case in hand.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline_infer.errors import CaseError, ToolError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import write_json
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import VolumeSpec
from offline_infer.staging.cutting import check_items, cut_items, feed, missing_outputs, refuse_missing
from offline_infer.staging.disk_budget import DiskMeter, case_cost, free_bytes, plan_rounds, size_text, used_bytes
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.reports import CaseOutcome, StageReport, attempt
from offline_infer.staging.stages import forecast_cases, result_files, tile_settings, write_result
from offline_infer.staging.work_folder import exclusive, is_work_folder, mark_work_folder, safe_name
from offline_infer.staging.worklist import BinDtype, CaseRecord, Worklist, WorklistHeader, WorklistWriter, header_for
from offline_infer.tasks.volume import case_files as case_input
from offline_infer.tasks.volume.aggregation import CaseAggregator, RunSettings
from offline_infer.tasks.volume.preparing import PreparedCase

ROUNDS = "rounds"
"""Folder of the rounds inside the work folder; at most one exists at a time."""
SCRATCH_RECORD = "perf/scratch.json"


@dataclass(frozen=True)
class RoundsJob:
    """What to do in rounds.

    Attributes:
        cases: in the order they are worked on.
        work: new, empty, or a marked folder; everything temporary lies in it.
        output: folder for the label maps.
        scratch_bytes: the budget.
        infer: answers the items of a round's work folder and lists the outputs in its manifest, e.g. by
            ``staged.infer_stage`` or an external tool; returns when all is on disk.
        all_outputs: the tool writes every output of the graph, not only those that are kept.
        problems: cases that could not be listed, with the reason.
        previous_folder: for a cascade's second stage, the first stage's label maps.
        overwrite: redo cases whose result exists.
        threads: for resampling, 0 = all cores.
    """

    cases: Sequence[CaseFiles]
    work: Path
    output: Path
    scratch_bytes: int
    infer: Callable[[Path], object]
    all_outputs: bool = False
    problems: Mapping[str, str] | None = None
    previous_folder: Path | None = None
    overwrite: bool = False
    threads: int = 0


def run_in_rounds(
    spec: VolumeSpec,
    job: RoundsJob,
    settings: RunSettings,
    folds: Sequence[str],
    *,
    dtype: BinDtype = "float32",
    sink: Sink = silent,
) -> StageReport:
    """Segment cases on a disk budget, from image files to label maps. Failures are in the report, not raised.

    Returns:
        The report; ``facts`` holds ``scratch_bytes``, ``peak_bytes`` (measured) and the rounds of each case. The same
        is written to ``perf/scratch.json`` in the work folder.

    Raises:
        DiskBudgetError: one tile does not fit the budget, or the disk is fuller than the budget allows.
        UsageError: the work folder holds something else, or another process is at work in it.
    """
    started = time.perf_counter()
    header = header_for(spec, tile_settings(spec, settings), folds, dtype)
    if not is_work_folder(job.work):
        mark_work_folder(job.work)
    job.output.mkdir(parents=True, exist_ok=True)
    outcomes = [CaseOutcome(case, "failed", reason=reason) for case, reason in (job.problems or {}).items()]
    for outcome in outcomes:
        sink(Event("case-failed", "rounds", outcome.case, data={"reason": outcome.reason}))
    rounds_of: dict[str, int] = {}
    with exclusive(job.work):
        folder = job.work / ROUNDS
        _clear(folder)
        todo = [case for case in job.cases if job.overwrite or not _is_done(spec, job, case, settings)]
        forecast_cases(
            "rounds",
            spec,
            header,
            settings,
            todo,
            job.work,
            sink,
            budget=job.scratch_bytes,
            all_outputs=job.all_outputs,
        )
        with DiskMeter(job.work) as meter:
            runner = _Runner(spec, job, settings, header, folder, meter, sink, rounds_of)
            for case in job.cases:
                if case in todo:
                    outcomes.append(attempt("rounds", case.case_id, lambda _, case=case: runner.run(case), sink))  # type: ignore[misc]
                else:
                    file = result_files(spec, job.output, case.case_id, settings)[0].name
                    outcomes.append(CaseOutcome(case.case_id, "skipped", file=file))
                    sink(Event("case-skipped", "rounds", case.case_id, data={"file": file}))
        facts: dict[str, Any] = {
            "scratch_bytes": job.scratch_bytes,
            "peak_bytes": meter.peak,
            "rounds": rounds_of,
        }
        write_json(job.work / SCRATCH_RECORD, facts)
    sink(
        Event("note", "rounds", data={"text": f"at most {size_text(meter.peak)} of scratch disk were in use", **facts})
    )
    return StageReport("rounds", tuple(outcomes), time.perf_counter() - started, facts)


class _Runner:
    """Runs one case after the other; see :func:`run_in_rounds`."""

    def __init__(
        self,
        spec: VolumeSpec,
        job: RoundsJob,
        settings: RunSettings,
        header: WorklistHeader,
        folder: Path,
        meter: DiskMeter,
        sink: Sink,
        rounds_of: dict[str, int],
    ) -> None:
        self._spec = spec
        self._job = job
        self._settings = settings
        self._header = header
        self._folder = folder
        self._meter = meter
        self._sink = sink
        self._rounds_of = rounds_of

    def run(self, case: CaseFiles) -> CaseOutcome:
        """One case from its files to its label map."""
        job = self._job
        prepared = case_input.prepare_case(case, self._spec, job.previous_folder, job.threads)
        shape = prepared.geometry.network_shape
        cost = case_cost(case.case_id, self._spec, self._header, shape, self._settings, job.all_outputs)
        # Other programs use the disk as well: never count on more than is free now.
        kept = used_bytes(job.work / "perf")  # records of earlier rounds stay, and count
        rounds = plan_rounds(cost, min(job.scratch_bytes - kept, free_bytes(job.work)))
        self._sink(Event("note", "rounds", case.case_id, data={"rounds": len(rounds), "items": cost.items}))
        aggregator = CaseAggregator(self._spec, prepared.geometry, self._settings, len(self._header.folds))
        for number, (first, last) in enumerate(rounds, start=1):
            place = self._folder / f"{safe_name(case.case_id)}_{number}"
            try:
                self._round(case, prepared, aggregator, place, first, last)
            except ToolError as error:
                # The round's folder, which the message may name, is gone when it is read.
                raise ToolError(f"{error} (logs and timing records are kept in {self._kept_records(place)})") from error
            finally:
                self._meter.sample()
                self._keep_records(place)
                _clear(self._folder)
            self._sink(Event("progress", "rounds", case.case_id, last, cost.tiles, data={"round": number}))
        path = write_result(self._spec, job.output, case.case_id, aggregator.finish(), self._settings)
        self._rounds_of[case.case_id] = len(rounds)
        return CaseOutcome(case.case_id, "done", items=cost.items, bytes=path.stat().st_size, file=path.name)

    def _round(
        self, case: CaseFiles, prepared: PreparedCase, aggregator: CaseAggregator, place: Path, first: int, last: int
    ) -> None:
        """Tiles ``first`` to ``last`` (half open) of a case: cut, infer, merge."""
        grid, mirrors = aggregator.grid, aggregator.mirrors
        starts = list(grid)[first:last]
        writer = WorklistWriter(place, self._header)
        name = (case.case_id, safe_name(case.case_id))
        items = cut_items(prepared, grid, starts, mirrors, self._header, place, name, writer.next_index)
        writer.add(
            CaseRecord(
                case_id=case.case_id,
                safe_name=name[1],
                files=tuple(str(path) for path in case.channels),
                geometry=prepared.geometry.to_json(),
                network_shape=prepared.geometry.network_shape,
                items=len(items),
                first_item=writer.next_index,
            ),
            items,
        )
        self._meter.sample()
        self._job.infer(place)
        self._meter.sample()
        worklist, manifest = Worklist.load(place), OutputsManifest.load(place)
        answered = worklist.items(case.case_id)
        check_items(answered, starts, mirrors, case.case_id)
        refuse_missing(
            missing_outputs(worklist, manifest, answered),
            len(answered) * len(self._header.folds),
            "the tool left them out; see its log, then give the same command again",
        )
        feed(aggregator, worklist, manifest, answered)

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


def _is_done(spec: VolumeSpec, job: RoundsJob, case: CaseFiles, settings: RunSettings) -> bool:
    return all(path.exists() for path in result_files(spec, job.output, case.case_id, settings))


def _clear(folder: Path) -> None:
    """Delete the folder of the rounds.

    Raises:
        CaseError: something in it is not ours.
    """
    if folder.is_symlink():
        raise CaseError(f"{folder} is a link; remove it")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir()
