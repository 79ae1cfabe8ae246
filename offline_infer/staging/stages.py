"""The staged road: preprocess, infer and postprocess, each alone, from files to files.

The same functions as in the streaming run stand on both sides of the files, and the sums run in the same order, so the
label maps are identical. Every stage goes on where it was stopped; one bad case fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.arithmetic.geometry import CaseGeometry
from offline_infer.engines.base import Session
from offline_infer.errors import CaseError, DiskBudgetError, EngineFailed, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.files import is_partial
from offline_infer.images import write_labels
from offline_infer.images.cases import CaseFiles
from offline_infer.nnunet_files.probabilities import probability_files, write_probabilities
from offline_infer.spec import VolumeSpec
from offline_infer.staging.bins import FloatArray, read_item, write_bin
from offline_infer.staging.cutting import check_items, cut_items, feed, missing_outputs, refuse_missing
from offline_infer.staging.disk_budget import Forecast, case_cost, forecast, free_bytes, size_text
from offline_infer.staging.outputs import OutputEntry, OutputsManifest, Writer
from offline_infer.staging.reports import CaseOutcome, StageReport, each_case
from offline_infer.staging.work_folder import exclusive, is_work_folder, mark_work_folder, safe_name
from offline_infer.staging.worklist import (
    BinDtype,
    CaseRecord,
    Item,
    Worklist,
    WorklistHeader,
    WorklistWriter,
    fingerprint,
    header_for,
)
from offline_infer.tasks.volume import case_files as case_input
from offline_infer.tasks.volume.aggregation import CaseAggregator, RunSettings
from offline_infer.tasks.volume.deciding import Segmentation, clean_components

_ENTRIES_PER_FLUSH = 16


# ---- preprocess ------------------------------------------------------------------------------------------------------


def preprocess_stage(
    spec: VolumeSpec,
    cases: Sequence[CaseFiles],
    work: Path,
    settings: RunSettings,
    folds: Sequence[str],
    *,
    dtype: BinDtype = "float32",
    problems: Mapping[str, str] | None = None,
    previous_folder: Path | None = None,
    threads: int = 0,
    sink: Sink = silent,
) -> StageReport:
    """Cut cases into bins and list them in the work folder.

    Args:
        cases: to cut; those whose bins are complete and whose files did not change are skipped.
        work: new, empty, or of the same model and settings.
        folds: the folds that are to answer later.
        dtype: of the bins.
        problems: cases that could not even be listed, with the reason; they count as failed.
        previous_folder: for a cascade's second stage, the folder with the first stage's label maps.
        threads: for resampling, 0 = all cores.

    Raises:
        UsageError: the folder holds something else or another run.
        DiskBudgetError: bins and outputs will not fit the disk.
    """
    header = header_for(spec, tile_settings(spec, settings), folds, dtype)
    if not is_work_folder(work):
        mark_work_folder(work)
    with exclusive(work):
        writer = WorklistWriter(work, header)
        _sweep(work)
        worklist, manifest = Worklist.load(work), OutputsManifest.load(work)
        todo = [case for case in cases if not _is_cut(worklist, manifest, case, spec, previous_folder)]
        forecast_cases("preprocess", spec, header, settings, todo, work, sink)

        def cut(case: CaseFiles) -> CaseOutcome:
            if case.case_id in writer.cases:
                if case not in todo:
                    return CaseOutcome(case.case_id, "skipped", items=writer.cases[case.case_id].items)
                writer.remove(case.case_id)
            return _cut_case(spec, case, writer, settings, previous_folder, threads, sink)

        return each_case("preprocess", [case.case_id for case in cases], _by_id(cases, cut), problems, sink)


def _cut_case(
    spec: VolumeSpec,
    case: CaseFiles,
    writer: WorklistWriter,
    settings: RunSettings,
    previous_folder: Path | None,
    threads: int,
    sink: Sink,
) -> CaseOutcome:
    files = case_input.source_files(case, spec, previous_folder)
    stamps = case_input.stamps(files)
    prepared = case_input.prepare_case(case, spec, previous_folder, threads)
    aggregator = CaseAggregator(spec, prepared.geometry, settings, len(writer.header.folds))
    grid, mirrors = aggregator.grid, aggregator.mirrors
    total = len(grid) * len(mirrors)

    def progress(done: int) -> None:
        sink(Event("progress", "preprocess", case.case_id, done, total))

    name = (case.case_id, safe_name(case.case_id))
    items = cut_items(
        prepared, grid, list(grid), mirrors, writer.header, writer.work, name, writer.next_index, progress
    )
    writer.add(
        CaseRecord(
            case_id=case.case_id,
            safe_name=name[1],
            files=tuple(str(path) for path in files),
            stamps=stamps,
            geometry=prepared.geometry.to_json(),
            network_shape=prepared.geometry.network_shape,
            items=len(items),
            first_item=writer.next_index,
        ),
        items,
    )
    return CaseOutcome(case.case_id, "done", items=len(items), bytes=sum(item.bytes for item in items))


def _is_cut(
    worklist: Worklist, manifest: OutputsManifest, case: CaseFiles, spec: VolumeSpec, previous_folder: Path | None
) -> bool:
    """Whether a case need not be cut: same files as when it was cut, and bins (or all answers to them) are there."""
    record = worklist.case(case.case_id)
    if record is None or record.stamps != case_input.stamps(case_input.source_files(case, spec, previous_folder)):
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


def forecast_cases(
    stage: str,
    spec: VolumeSpec,
    header: WorklistHeader,
    settings: RunSettings,
    cases: Sequence[CaseFiles],
    work: Path,
    sink: Sink,
    *,
    budget: int | None = None,
    all_outputs: bool = False,
) -> Forecast:
    """Say what a run needs before the first byte is written; refuse what cannot fit.

    Raises:
        DiskBudgetError: the disk or the budget is too small.
    """
    for exact in (False, True):
        costs = []
        for case in cases:
            with suppress(CaseError, OSError):  # said, by name, when the case's turn comes
                shape = case_input.network_shape(case, spec, exact=exact)
                costs.append(case_cost(case.case_id, spec, header, shape, settings, all_outputs))
        outlook = forecast(costs, work, exact=exact, budget=budget)
        # Headers give an upper bound. Only where that does not fit is it worth reading every image.
        if exact or outlook.peak <= outlook.free:
            break
    sink(Event("forecast", stage, data=outlook.to_json()))
    outlook.refuse_if_too_large(work)
    return outlook


# ---- infer -----------------------------------------------------------------------------------------------------------


def infer_stage(
    work: Path,
    sessions: Mapping[str, Session],
    *,
    spec: VolumeSpec | None = None,
    items: Iterable[Item] | None = None,
    sink: Sink = silent,
) -> StageReport:
    """Answer the listed items with an engine in this process; answers that are complete are not asked for again.

    Several processes may each work on a part of the items of one folder.

    Args:
        sessions: fold -> opened session; all of the worklist's folds or some of them.
        spec: the model the sessions belong to, to make sure that the folder was made for it.
        items: which items, e.g. one shard; default all.

    Raises:
        UsageError: the folder was made for another model, or a session does not fit it.
        DiskBudgetError: the outputs will not fit the disk.
    """
    worklist = Worklist.load(work)
    header = worklist.header
    _check_sessions(worklist, sessions, spec)
    manifest = OutputsManifest.load(work)
    output = header.kept[0]
    wanted: dict[str, list[Item]] = {case.case_id: [] for case in worklist.cases}
    for item in worklist.items() if items is None else items:
        wanted[item.case].append(item)
    wanted = {case: chosen for case, chosen in wanted.items() if chosen}
    todo = {
        case: [
            (item, missing)
            for item in chosen
            if (missing := [f for f in sessions if manifest.complete(item.index, f, output) is None])
        ]
        for case, chosen in wanted.items()
    }
    _check_room(work, worklist, sum(len(missing) for pairs in todo.values() for _, missing in pairs))

    def answer(case: str) -> CaseOutcome:
        if not todo[case]:
            return CaseOutcome(case, "skipped", items=len(wanted[case]))
        return _answer_case(worklist, manifest, sessions, case, todo[case], sink)

    return each_case("infer", list(wanted), answer, None, sink)


def _answer_case(
    worklist: Worklist,
    manifest: OutputsManifest,
    sessions: Mapping[str, Session],
    case: str,
    todo: Sequence[tuple[Item, list[str]]],
    sink: Sink,
) -> CaseOutcome:
    output = worklist.header.kept[0]
    meaning = worklist.header.outputs[output]
    batch = np.empty(worklist.header.input_shape, np.float32)
    entries: list[OutputEntry] = []
    written = 0
    info = next(iter(sessions.values())).info
    writer = Writer(
        tool="engine",
        base=0,
        pattern="{stem}_output_{number}.bin",
        details={"engine": info.engine, "device": info.device},
    )
    first = not any(known == writer for known in manifest.writers)
    try:
        for done, (item, folds) in enumerate(todo, start=1):
            batch[0] = read_item(worklist, item)
            for fold in folds:
                logits = sessions[fold].run(batch)
                _check_answer(logits, meaning.shape, item)
                file = f"outputs/fold_{safe_name(fold)}/{writer.file_name(item.stem, output)}"
                path = worklist.work / file
                path.parent.mkdir(parents=True, exist_ok=True)
                size, _ = write_bin(path, logits, "float32")
                entries.append(
                    OutputEntry(
                        item=item.index, fold=fold, output=output, file=file, bytes=size, dtype="float32", keep=True
                    )
                )
                written += size
            if len(entries) >= _ENTRIES_PER_FLUSH:
                manifest.append(entries, writer if first else None)
                entries, first = [], False
            sink(Event("progress", "infer", case, done, len(todo)))
    finally:
        # What was answered stays answered, whatever happened to the next item.
        if entries:
            manifest.append(entries, writer if first else None)
    return CaseOutcome(case, "done", items=len(todo), bytes=written)


def _check_sessions(worklist: Worklist, sessions: Mapping[str, Session], spec: VolumeSpec | None) -> None:
    header = worklist.header
    if spec is not None:
        _same_model(worklist, spec)
    unknown = [fold for fold in sessions if fold not in header.folds]
    if unknown or not sessions:
        raise UsageError(
            f"{worklist.work} was made for the folds {', '.join(header.folds)}, not for {', '.join(unknown) or 'none'}"
        )
    for fold, session in sessions.items():
        shape = tuple(session.info.input_shape)
        if shape != header.input_shape:
            raise UsageError(
                f"fold {fold}: the graph takes {shape}, the items in {worklist.work} are {header.input_shape}"
            )


def _check_room(work: Path, worklist: Worklist, answers: int) -> None:
    need = answers * worklist.output_bytes(worklist.header.kept[0])
    free = free_bytes(work)
    if need > free:
        raise DiskBudgetError(
            f"{answers} outputs need {size_text(need)}, {work} has {size_text(free)} free; "
            "free some disk, or run in rounds with --scratch"
        )


def _check_answer(logits: FloatArray, shape: Sequence[int], item: Item) -> None:
    if tuple(logits.shape) != tuple(shape):
        raise EngineFailed(f"{item.stem}: the engine answered with shape {logits.shape}, expected {tuple(shape)}")
    if not np.isfinite(logits.sum(dtype=np.float64)):
        raise EngineFailed(f"{item.stem}: the engine answered with NaN or infinite numbers; run with --precision fp32")


# ---- postprocess -----------------------------------------------------------------------------------------------------


def postprocess_stage(
    spec: VolumeSpec,
    work: Path,
    output: Path,
    *,
    settings: RunSettings | None = None,
    overwrite: bool = False,
    sink: Sink = silent,
) -> StageReport:
    """Put the outputs of every case together and write its label map as ``output/<case><ending>``.

    Args:
        settings: accumulation, probabilities and component rules; step size and mirroring are the worklist's own.
        overwrite: redo cases whose label map exists.

    Raises:
        UsageError: the folder was made for another model.
    """
    worklist = Worklist.load(work)
    _same_model(worklist, spec)
    manifest = OutputsManifest.load(work)
    chosen = run_settings(worklist.header, settings)
    output.mkdir(parents=True, exist_ok=True)

    def finish(case_id: str) -> CaseOutcome:
        if not overwrite and all(path.exists() for path in result_files(spec, output, case_id, chosen)):
            return CaseOutcome(case_id, "skipped", file=result_files(spec, output, case_id, chosen)[0].name)
        record = worklist.case(case_id)
        assert record is not None
        items = worklist.items(case_id)
        geometry = CaseGeometry.from_json(record.geometry)
        aggregator = CaseAggregator(spec, geometry, chosen, len(worklist.header.folds))
        check_items(items, list(aggregator.grid), aggregator.mirrors, case_id)
        refuse_missing(
            missing_outputs(worklist, manifest, items),
            len(items) * len(worklist.header.folds),
            "run infer again, it does only what is missing",
        )
        total = len(aggregator.grid)
        feed(aggregator, worklist, manifest, items, lambda n: sink(Event("progress", "postprocess", case_id, n, total)))
        path = write_result(spec, output, case_id, aggregator.finish(), chosen)
        return CaseOutcome(case_id, "done", items=len(items), bytes=path.stat().st_size, file=path.name)

    return each_case("postprocess", [case.case_id for case in worklist.cases], finish, None, sink)


def write_result(spec: VolumeSpec, output: Path, case_id: str, result: Segmentation, settings: RunSettings) -> Path:
    """Apply the component rules and write label map and, if asked for, probabilities; returns the label map's path."""
    if settings.postprocess:
        result = clean_components(result, spec)
    path = output / f"{case_id}{spec.file_ending}"
    if result.probabilities is not None:
        write_probabilities(output / case_id, result.probabilities, result.geometry, spec)
    write_labels(path, result.labels, result.geometry.image)
    return path


def result_files(spec: VolumeSpec, output: Path, case_id: str, settings: RunSettings) -> list[Path]:
    """Files that must exist for a case to count as done."""
    files = [output / f"{case_id}{spec.file_ending}"]
    return [*files, *probability_files(output / case_id)] if settings.save_probabilities else files


# ---- shared ----------------------------------------------------------------------------------------------------------


def tile_settings(spec: VolumeSpec, settings: RunSettings) -> dict[str, Any]:
    """The settings that decide which items there are."""
    step = settings.step_size if settings.step_size is not None else spec.window.step_size
    return {"step_size": step, "tta": settings.tta}


def run_settings(header: WorklistHeader, settings: RunSettings | None) -> RunSettings:
    """The given settings with the step size and mirroring the items were cut with."""
    base = settings if settings is not None else RunSettings()
    return replace(base, step_size=float(header.settings["step_size"]), tta=bool(header.settings["tta"]))


def _same_model(worklist: Worklist, spec: VolumeSpec) -> None:
    if worklist.header.fingerprint != fingerprint(spec):
        raise UsageError(f"{worklist.work} was made for another model than this bundle; preprocess into a new folder")


def _by_id(cases: Sequence[CaseFiles], function: Callable[[CaseFiles], CaseOutcome]) -> Callable[[str], CaseOutcome]:
    table = {case.case_id: case for case in cases}
    return lambda case_id: function(table[case_id])


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
