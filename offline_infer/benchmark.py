"""How fast each engine and precision of a bundle is, and whether it still gives the float32 answer.

Every pair of engine and precision answers the same tiles, cut from a real image where one is given. A pair whose answers
hold NaN, or are all background where float32 finds something, has failed, however fast it is.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil

from offline_infer._version import __version__
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.opening import check_recorded, open_fold
from offline_infer.bundles.precision_checks import Check, Subject, keep_checks, rows_of, subject_of
from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.engines.reference import REFERENCES
from offline_infer.errors import EngineUnavailable, OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.images.cases import CaseFiles
from offline_infer.tasks.base import Answers
from offline_infer.tasks.registry import get_task

if TYPE_CHECKING:
    from offline_infer.predict.model import Model

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BenchmarkJob:
    """What to measure.

    Attributes:
        engines, precisions: every pair is tried.
        case: to take inputs from; without it, smooth noise.
        tiles: how many different tiles, at most.
        repeats: timed calls beyond the first one.
        threads: 0 = all cores.
        device: as for predict.
        cache: folder for compiled graphs, or None.
        fold: default the first.
        extra: options of the engine itself.
        min_dice: a foreground Dice against float32 below this counts as failed.
        measure: an engine whose float32 answers on the processor are compared with, besides ``engines``.
        keep: keep the judgement in the bundle (:mod:`offline_infer.bundles.precision_checks`).
    """

    engines: Sequence[str] = ("openvino", "onnxruntime")
    precisions: Sequence[str] = ("fp32", "bf16")
    case: CaseFiles | None = None
    tiles: int = 4
    repeats: int = 5
    threads: int = 0
    device: str = "cpu"
    cache: Path | None = None
    fold: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    min_dice: float = 0.0
    measure: str | None = None
    keep: bool = False


def benchmark(bundle: Bundle, job: BenchmarkJob, sink: Sink = silent) -> dict[str, Any]:
    """Measure every engine and precision.

    Returns:
        A record with one row per pair under ``results``, which ``report`` shows. With ``job.keep``,
        ``kept_in_bundle`` says whether the judgement is there now; a bundle that cannot be written is no error.

    Raises:
        UsageError: an unknown engine or fold, or nothing to measure.
        BundleError: a graph is missing or was changed since it was recorded.
        ImageError, GeometryError: the image cannot be read.
    """
    record, checks = _compared(bundle, job, sink)
    if job.keep:
        record["kept_in_bundle"] = bool(checks) and _keep(bundle, checks, sink)
    return record


def _compared(bundle: Bundle, job: BenchmarkJob, sink: Sink) -> tuple[dict[str, Any], list[Check]]:
    """The record of a benchmark, and the judgements in it."""
    for engine in job.engines:
        get_engine(engine)
    fold = job.fold if job.fold is not None else bundle.folds[0]
    if fold not in bundle.folds:
        raise UsageError(f"{bundle.folder}: no fold {fold}; this bundle has {', '.join(bundle.folds)}")
    for graph in bundle.spec.graphs:  # an altered graph is no engine's failure, which would be a row of the table
        if graph.fold == fold:
            check_recorded(bundle.graph_path(fold, graph.precision), graph.sha256)
    if job.tiles < 1 or job.repeats < 1:
        raise UsageError("a benchmark needs at least one tile and one repeat")
    task = get_task(bundle.spec.task)
    tiles = task.sample_inputs(job.case, bundle.spec, job.tiles, job.threads)
    pairs = [(engine, precision) for engine in job.engines for precision in job.precisions]
    if job.measure is not None and (job.measure, "fp32") not in pairs:
        pairs.append((job.measure, "fp32"))
    # The reference first: every other answer is compared with it.
    pairs.sort(key=lambda pair: (pair[1] != "fp32", REFERENCES.index(pair[0]) if pair[0] in REFERENCES else 9))
    reference: list[Answers] | None = None
    rows = []
    subjects: dict[tuple[str, str], Subject] = {}
    for done, (engine, precision) in enumerate(pairs, 1):
        row: dict[str, Any] = {"engine": engine, "precision": precision, "fold": fold}
        row["device"] = _device(engine, job)
        try:
            row |= _measure(bundle, fold, engine, precision, job, tiles, reference)
            answers = row.pop("answers")
            subjects[engine, precision] = row.pop("subject")
            # What was compiled to another precision is no measure, whatever it was asked for.
            exact = row.pop("computed_in") == "fp32"
            if reference is None and precision == "fp32" and exact and row["status"] == "ok":
                reference = answers
                row["reference"] = True
        except OfflineInferError as error:
            row |= {"status": "unavailable", "reason": str(error)}
        rows.append(row)
        sink(
            Event("progress", "benchmark", done=done, total=len(pairs), data={"engine": engine, "precision": precision})
        )
    record: dict[str, Any] = {
        "kind": "offline_infer.benchmark",
        "program": "offline_infer",
        "version": __version__,
        "bundle": str(bundle.folder),
        "network": bundle.spec.source.network,
        "input_shape": list(bundle.spec.input_shape),
        "tiles": {
            "count": len(tiles),
            "source": [str(path) for path in job.case.channels] if job.case else "smooth noise",
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": psutil.cpu_count()},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "results": rows,
    }
    return record, rows_of(record, subjects, _digest(tiles))


def _keep(bundle: Bundle, checks: Sequence[Check], sink: Sink) -> bool:
    """Keep judgements in the bundle; where it cannot be written, say so."""
    problem = keep_checks(bundle, checks)
    if problem is not None:
        sink(Event("note", "benchmark", data={"text": f"the checks are not kept in the bundle: {problem}"}))
    return problem is None


def verify_once(model: Model, case: CaseFiles, sink: Sink = silent) -> None:
    """Compare a model's precision with float32 on two tiles of an image, where that was never done, and keep the result.

    One engine is open at a time: the model's own sessions are closed before, and opened again when they are needed.

    Args:
        case: to take the inputs from.

    Raises:
        UsageError: the precision has failed, now or before; or the model is the second stage of a cascade.
    """
    missing = model.precision_standing.missing
    if not missing:
        return
    own = get_engine(model.engine).computes_float32
    with ExitStack() as kept:
        if not own:  # devices that took long to open stay open; the measure runs on the processor
            kept.enter_context(open_fold(model.bundle, missing[0], model.engine, model.options))
        model.close()
        _verify_folds(model, missing, own, case, sink)
        _ = model.precision_standing  # refuses what has failed


def _verify_folds(model: Model, missing: Sequence[str], own: bool, case: CaseFiles, sink: Sink) -> None:
    options = model.options
    for fold in missing:
        job = BenchmarkJob(
            engines=(model.engine,),
            precisions=("fp32", options.precision) if own else (options.precision,),
            measure=None if own else measuring_engine(),
            case=case,
            tiles=2,
            repeats=1,
            threads=options.threads,
            device=options.device,
            cache=options.cache,
            fold=fold,
            extra=options.extra,
        )
        record, checks = _compared(model.bundle, job, sink)
        _keep(model.bundle, checks, sink)
        model.add_checks(checks)
        row = record["results"][-1]
        figures = {name: row[name] for name in ("label_agreement", "foreground_dice") if name in row}
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:.5f}" for name, value in figures.items() if value is not None
        )
        text = f"{options.precision} of fold {fold} compared with float32: {told or row['status']}"
        sink(Event("note", "verify", data={"text": text, "fold": fold, "precision": options.precision, **figures}))


def measuring_engine() -> str:
    """An engine whose float32 answer on this machine's processor is the measure.

    Raises:
        EngineUnavailable: none is installed.
    """
    for name in REFERENCES:
        if get_engine(name).available() is None:
            return name
    raise EngineUnavailable(f"nothing to compare with: {' and '.join(REFERENCES)} are not installed")


def _device(engine: str, job: BenchmarkJob) -> str:
    """Where an engine runs: the measure on the processor, and with it whatever does not know the job's device."""
    return "cpu" if engine == job.measure or (engine in REFERENCES[:1] and job.device != "cpu") else job.device


def _measure(
    bundle: Bundle,
    fold: str,
    engine: str,
    precision: str,
    job: BenchmarkJob,
    tiles: Sequence[FloatArray],
    reference: Sequence[Answers] | None,
) -> dict[str, Any]:
    options = EngineOptions(
        device=_device(engine, job),
        precision=precision,
        threads=job.threads,
        cache=job.cache,
        outputs=bundle.spec.kept_outputs,
        extra=dict(job.extra),
    )
    wanted = get_engine(engine).graph_precision(precision)
    sha256 = bundle.graph(fold, wanted).sha256
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    with open_fold(bundle, fold, engine, options) as session:
        opened = time.perf_counter() - start
        start = time.perf_counter()
        session.run(tiles[0])
        first = time.perf_counter() - start
        answers, seconds = _answers(session, tiles, job.repeats)
        memory = psutil.Process().memory_info().rss - before
        info = session.info
    row: dict[str, Any] = {
        "library": info.version,
        "threads": info.threads,
        "open_s": round(opened, 3),
        "first_call_s": round(first, 4),
        **{f"p{level}_s": round(float(np.percentile(seconds, level)), 4) for level in (5, 50, 95)},
        "calls": len(seconds),
        "memory_bytes": max(memory, 0),
    }
    judged = get_task(bundle.spec.task).judge(answers, reference, bundle.spec)
    dice = judged.get("foreground_dice")
    if judged["status"] == "ok" and dice is not None and dice < job.min_dice:
        judged |= {
            "status": "failed",
            "reason": f"foreground Dice {dice:.5f}, at least {job.min_dice:g} was asked for",
        }
    return {
        **row,
        **judged,
        "answers": answers,
        "subject": subject_of(info, fold, sha256),
        "computed_in": info.precision,
    }


def _answers(session: Session, tiles: Sequence[FloatArray], repeats: int) -> tuple[list[Answers], list[float]]:
    """The answer to every tile, and the seconds of every call."""
    answers: list[Answers] = []
    seconds: list[float] = []
    for number in range(max(repeats, len(tiles))):
        start = time.perf_counter()
        answer = session.answer(tiles[number % len(tiles)])
        seconds.append(time.perf_counter() - start)
        if number < len(tiles):
            answers.append({name: array.copy() for name, array in answer.items()})
    return answers, seconds


def _digest(tiles: Sequence[FloatArray]) -> str:
    """SHA-256 of the tiles' bytes."""
    digest = hashlib.sha256()
    for tile in tiles:
        digest.update(np.ascontiguousarray(tile).data)
    return digest.hexdigest()
