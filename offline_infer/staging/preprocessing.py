"""Preprocess: cases are cut into bins and listed in a work folder. Resumes where it was stopped; one bad case fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from offline_infer.errors import CaseError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import is_partial
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import BundleSpec
from offline_infer.staging.cutting import cut_items, missing_outputs
from offline_infer.staging.disk_budget import DiskForecast, case_cost, forecast_disk
from offline_infer.staging.outputs import OutputsManifest
from offline_infer.staging.work_folder import exclusive, is_work_folder, mark_work_folder, safe_name
from offline_infer.staging.worklist import (
    BinDtype,
    CaseRecord,
    Item,
    Worklist,
    WorklistHeader,
    WorklistWriter,
    header_for,
)
from offline_infer.tasks.base import Layout, Prepared, PreviousStage
from offline_infer.tasks.records import SourceFile, source_files, stamp
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.reports import CaseOutcome, RunReport, each_case
from offline_infer.tasks.running import prepare_case
from offline_infer.tasks.settings import RunSettings, check_options

STAGE = "preprocess"


@dataclass(frozen=True)
class PreprocessJob:
    """What to cut.

    Attributes:
        cases: those whose bins are complete and whose files did not change are skipped.
        work: new, empty, or of the same model and settings.
        folds: the folds that are to answer later.
        dtype: of the bins.
        problems: cases that could not even be listed, with the reason; they count as failed.
        previous_folder: for a cascade's second stage, the folder with the first stage's results.
        threads: for the preparation, 0 = all cores.
    """

    cases: Sequence[CaseFiles]
    work: Path
    folds: Sequence[str]
    dtype: BinDtype = "float32"
    problems: Mapping[str, str] | None = None
    previous_folder: Path | None = None
    threads: int = 0


def preprocess_stage(spec: BundleSpec, job: PreprocessJob, settings: RunSettings, sink: Sink = silent) -> RunReport:
    """Cut cases into bins and list them in the work folder.

    Raises:
        UsageError: the folder holds something else or another run.
        DiskBudgetError: bins and outputs will not fit the disk.
    """
    task = get_task(spec.task)
    check_options(settings, task.options, task.name)
    header = header_for(spec, task.item_settings(spec, settings), job.folds, job.dtype)
    if not is_work_folder(job.work):
        mark_work_folder(job.work)
    with exclusive(job.work) as held:
        writer = WorklistWriter(job.work, header)
        _sweep(job.work)
        worklist, manifest = Worklist.load(job.work), OutputsManifest.load(job.work)
        todo = {case.case_id: case for case in job.cases if not _is_cut(worklist, manifest, case, spec, job)}
        expect_disk(STAGE, spec, header, settings, list(todo.values()), job.work, sink)

        def cut(case_id: str) -> CaseOutcome:
            if case_id in writer.cases:
                if case_id not in todo:
                    return CaseOutcome(case_id, "skipped", items=writer.cases[case_id].items)
                writer.remove(case_id)
            with held.writing(()):
                return _cut_case(spec, todo[case_id], writer, settings, job, sink)

        return each_case(STAGE, [case.case_id for case in job.cases], cut, job.problems, sink)


def _cut_case(
    spec: BundleSpec, case: CaseFiles, writer: WorklistWriter, settings: RunSettings, job: PreprocessJob, sink: Sink
) -> CaseOutcome:
    task = get_task(spec.task)
    files = task.sources(case, spec, job.previous_folder)
    sources = source_files(files)
    notes: list[str] = []
    prepared = prepare_case(task, case, spec, PreviousStage(job.previous_folder), job.threads, note=notes.append)
    for text in notes:
        sink(Event("note", STAGE, case.case_id, data={"text": text}))
    layout = task.layout(prepared.geometry, spec, settings)
    total = layout.groups * layout.per_group
    name = (case.case_id, safe_name(case.case_id))
    items = cut_items(
        task,
        prepared,
        spec,
        layout,
        range(layout.groups),
        writer.header,
        writer.work,
        name,
        writer.next_index,
        lambda done: sink(Event("progress", STAGE, case.case_id, done, total)),
    )
    writer.add(case_record(case, files, sources, prepared, layout, items), items)
    return CaseOutcome(
        case.case_id,
        "done",
        items=len(items),
        bytes=sum(item.bytes for item in items),
        shape=layout.extent,
        notes=tuple(notes),
    )


def case_record(
    case: CaseFiles,
    files: Sequence[Path],
    sources: Sequence[SourceFile],
    prepared: Prepared,
    layout: Layout,
    items: Sequence[Item],
) -> CaseRecord:
    """The worklist's record of a case whose items were just written."""
    return CaseRecord(
        case_id=case.case_id,
        safe_name=safe_name(case.case_id),
        files=tuple(str(path) for path in files),
        sources=tuple(sources),
        geometry=prepared.geometry.to_json(),
        network_shape=layout.extent,
        items=len(items),
        first_item=items[0].index if items else 0,
    )


def expect_disk(
    stage: str,
    spec: BundleSpec,
    header: WorklistHeader,
    settings: RunSettings,
    cases: Sequence[CaseFiles],
    work: Path,
    sink: Sink,
    *,
    budget: int | None = None,
    all_outputs: bool = False,
) -> DiskForecast:
    """Say what a run needs before the first byte is written; refuse what cannot fit.

    Raises:
        DiskBudgetError: the disk or the budget is too small.
    """
    task = get_task(spec.task)
    for exact in (False, True):
        costs = []
        for case in cases:
            with suppress(CaseError, OSError):  # said, by name, when the case's turn comes
                layout = task.expected_layout(case, spec, settings, exact=exact)
                costs.append(case_cost(case.case_id, header, layout, all_outputs))
        outlook = forecast_disk(costs, work, exact=exact, budget=budget)
        # Headers give an upper bound. Only where that does not fit is it worth reading every image.
        if exact or outlook.peak <= outlook.free:
            break
    sink(Event("forecast", stage, data=outlook.to_json()))
    outlook.refuse_if_too_large(work)
    return outlook


def _is_cut(
    worklist: Worklist, manifest: OutputsManifest, case: CaseFiles, spec: BundleSpec, job: PreprocessJob
) -> bool:
    """Whether a case need not be cut: same files as when it was cut, and bins (or all answers to them) are there."""
    record = worklist.case(case.case_id)
    if record is None:
        return False
    files = get_task(spec.task).sources(case, spec, job.previous_folder)
    if [(source.bytes, source.mtime_ns) for source in record.sources] != [stamp(path) for path in files]:
        return False
    items = worklist.items(case.case_id)
    if all(_has_size(worklist.path(item), item.bytes) for item in items):
        return True
    return not missing_outputs(worklist, manifest, items)


def _sweep(work: Path) -> None:
    """Delete bins that no complete case lists: what a killed run left."""
    listed = {item.file for item in Worklist.load(work).items()}
    for path in (*(work / "cases").iterdir(), *(work / "inputs").iterdir()):
        unlisted = path.parent.name == "inputs" and path.suffix == ".bin" and f"inputs/{path.name}" not in listed
        if path.is_file() and (is_partial(path) or unlisted):
            path.unlink()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
