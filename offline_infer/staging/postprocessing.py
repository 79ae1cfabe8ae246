"""Postprocess: the outputs of every case become its result. Resumes where it was stopped; one bad case fails alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offline_infer._version import __version__
from offline_infer.bundles.fingerprint import fingerprint
from offline_infer.errors import Remedy, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import BundleSpec
from offline_infer.staging.cutting import check_items, feed, missing_outputs, refuse_missing
from offline_infer.staging.lists import cases_of_shards
from offline_infer.staging.outputs import OutputsManifest, Writer
from offline_infer.staging.worklist import CaseRecord, Worklist, WorklistHeader
from offline_infer.tasks.base import Task
from offline_infer.tasks.records import Provenance, ResultRecord, joined, manifest_is_current, write_manifest
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.reports import CaseOutcome, RunReport, each_case
from offline_infer.tasks.results import OnExisting, ResultFolder
from offline_infer.tasks.settings import RunSettings, check_options
from offline_infer.threads import Team, worker_count

STAGE = "postprocess"
VERSIONS = {"offline_infer": __version__}
_BY_HAND = Remedy("adopt-outputs")


@dataclass(frozen=True)
class PostprocessJob:
    """What to put together.

    Attributes:
        work: the work folder.
        output: folder for the results.
        existing: what to do with results that are there.
        threads: 0 = all cores.
    """

    work: Path
    output: Path
    existing: OnExisting = "compare"
    threads: int = 0


def postprocess_stage(
    spec: BundleSpec, job: PostprocessJob, settings: RunSettings | None = None, sink: Sink = silent
) -> RunReport:
    """Put the outputs of every case together and write its result.

    Args:
        settings: accumulation, probabilities and the like; what decided the items is the worklist's own.

    Raises:
        UsageError: the folder was made for another model, or existing results were made otherwise.
    """
    task = get_task(spec.task)
    worklist = Worklist.load(job.work)
    if not worklist.cases:
        raise UsageError(f"{job.work} holds no cases to put together; preprocess cases into it first")
    worklist.refuse_other_model(spec)
    manifest = OutputsManifest.load(job.work)
    chosen = task.with_item_settings(settings or RunSettings(), worklist.header.settings)
    check_options(chosen, task.options, task.name)
    job.output.mkdir(parents=True, exist_ok=True)
    results = ResultFolder(job.output, task, spec, chosen)
    records = {record.case_id: record for record in worklist.cases}
    facts = run_provenance(spec, worklist.header, manifest, chosen)

    def provenance_of(case: CaseFiles, known: ResultRecord | None = None) -> Provenance:
        return Provenance(**facts, sources=records[case.case_id].sources)

    cases = [_files(record) for record in worklist.cases]
    results.refuse_inputs(None, cases)
    with results.exclusive("postprocess"):
        skipped = {case.case_id: found for case, found in results.sort_out(cases, job.existing, provenance_of) if found}

        def finish(case_id: str) -> CaseOutcome:
            if case_id in skipped:
                return skipped[case_id]
            with Team(worker_count(job.threads)) as team:
                result = _collect(task, spec, worklist, manifest, records[case_id], chosen, team, sink)
            outcome = CaseOutcome(case_id, "done", items=records[case_id].items, shape=records[case_id].network_shape)
            write_outcome(results, result, Provenance(**facts, sources=records[case_id].sources), outcome)
            return outcome

        report = each_case(STAGE, [case.case_id for case in worklist.cases], finish, None, sink)
        with results.listing():
            write_run_manifest(job.output, task, spec, chosen, report, cases_of_shards(worklist), sink)
    return report


def _collect(
    task: Task,
    spec: BundleSpec,
    worklist: Worklist,
    manifest: OutputsManifest,
    record: CaseRecord,
    settings: RunSettings,
    team: Team,
    sink: Sink,
) -> Any:
    """The result of one case."""
    items = worklist.items(record.case_id)
    geometry = task.geometry_from_json(record.geometry, spec)
    layout = task.layout(geometry, spec, settings)
    groups = range(layout.groups)
    check_items(items, layout, groups, record.case_id)
    folds = len(worklist.header.folds)
    advice = "run infer again, it does only what is missing"
    if not len(manifest):
        advice += f" {_BY_HAND}"
    refuse_missing(missing_outputs(worklist, manifest, items), len(items) * folds, advice)
    collector = task.collector(geometry, spec, settings, folds, team=team, allocate=None)
    feed(
        collector,
        groups,
        worklist,
        manifest,
        items,
        lambda done: sink(Event("progress", STAGE, record.case_id, done, layout.groups)),
    )
    return collector.finish()


def write_outcome(results: ResultFolder, result: Any, provenance: Provenance, outcome: CaseOutcome) -> None:
    """Write a result with its record, and note its file in the outcome."""
    with results.writing(outcome.case, provenance, VERSIONS, outcome):
        path = results.write(result, outcome.case)
        outcome.file, outcome.bytes = path.name, path.stat().st_size


def run_provenance(
    spec: BundleSpec, header: WorklistHeader, manifest: OutputsManifest | None, settings: RunSettings
) -> dict[str, Any]:
    """What all cases of a work folder share of their provenance."""
    writers = manifest.writers if manifest is not None else ()
    graphs = {graph.fold: graph.sha256 for graph in spec.graphs if graph.precision == "fp32"}
    return {
        "task": spec.task,
        "model": fingerprint(spec),
        "graphs": {fold: graphs.get(fold, "") for fold in header.folds},
        "compiled": compiled_of(writers, header.folds),
        "settings": {**asdict(settings), "options": dict(settings.options)},
        "engine": joined(writer.details.get("engine", writer.tool) for writer in writers),
        "device": joined(writer.details.get("device", "").partition(":")[0] for writer in writers),
        "precision": joined(writer.details.get("precision", "") for writer in writers),
    }


def compiled_of(writers: Iterable[Writer], folds: Iterable[str]) -> dict[str, str]:
    """Fold -> SHA-256 of what answered in the place of its graph; several, joined, where it was compiled anew meanwhile."""
    digests = {fold: joined(writer.compiled.get(fold, "") for writer in writers) for fold in folds}
    return {fold: digest for fold, digest in digests.items() if digest}


def write_run_manifest(
    output: Path,
    task: Task,
    spec: BundleSpec,
    settings: RunSettings,
    report: RunReport,
    shares: Sequence[Sequence[str]] | None,
    sink: Sink,
) -> None:
    """Write the manifest of the folder of results, and what else the task puts there.

    Args:
        shares: the cases of each device's list; None: they were not divided.
    """
    complete = [case.case for case in report.cases if case.status != "failed"]
    divided = [complete] if shares is None else [[case for case in share if case in set(complete)] for share in shares]
    for text in task.write_shared_files(output, spec, dict(enumerate(divided)), len(divided)):
        sink(Event("note", STAGE, data={"text": text}))
    facts = {
        "task": spec.task,
        "stage": report.stage,
        "source": spec.source.model_dump(mode="json"),
        "labels": spec.label_table(),
        "settings": asdict(settings),
        "seconds": round(report.seconds, 3),
        **report.facts,
    }
    if all(case.status == "skipped" for case in report.cases) and manifest_is_current(output):
        return  # everything was done: the manifest is that of the run that did it
    write_manifest(output, facts, [case.to_json() for case in report.cases if case.status == "failed"])


def _files(record: CaseRecord) -> CaseFiles:
    return CaseFiles(record.case_id, tuple(Path(file) for file in record.files))
