"""How fast each engine and precision of a bundle is, and whether it still gives the float32 answer.

Every pair of engine and precision answers the same tiles, cut from a real image where one is given. A pair whose answers
hold NaN, or are all background where float32 finds something, has failed, however fast it is.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil

from offline_infer._version import __version__
from offline_infer.arithmetic.labels import region_threshold, winners
from offline_infer.arithmetic.sliding_window import constant_key, cut_tile
from offline_infer.arithmetic.smoothing import gaussian
from offline_infer.bundles.bundle import Bundle
from offline_infer.bundles.opening import open_fold
from offline_infer.bundles.precision_checks import Check, Subject, keep_checks, rows_of, subject_of
from offline_infer.engines.base import EngineOptions, Session, get_engine
from offline_infer.errors import OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.images import read_image
from offline_infer.spec import VolumeSpec
from offline_infer.tasks.settings import RunSettings
from offline_infer.tasks.volume.aggregation import case_grid
from offline_infer.tasks.volume.preparing import prepare

if TYPE_CHECKING:
    from offline_infer.predict.model import Model

FloatArray = npt.NDArray[np.float32]

REFERENCE = ("openvino", "onnxruntime")
"""Engines whose float32 answer is the measure, the first that runs."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        engines, precisions: every pair is tried.
        image: files of a case's channels to cut tiles from; without it, tiles of smooth noise.
        tiles: how many different tiles, at most.
        repeats: timed calls beyond the first one.
        threads: 0 = all cores.
        device: as for predict.
        cache: folder for compiled graphs, or None.
        fold: default the first.
        extra: options of the engine itself.
        min_dice: a foreground Dice against float32 below this counts as failed.
        keep: keep the judgement in the bundle (:mod:`offline_infer.bundles.precision_checks`).
    """

    engines: Sequence[str] = ("openvino", "onnxruntime")
    precisions: Sequence[str] = ("fp32", "bf16")
    image: Sequence[Path] = ()
    tiles: int = 4
    repeats: int = 5
    threads: int = 0
    device: str = "cpu"
    cache: Path | None = None
    fold: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    min_dice: float = 0.0
    keep: bool = False


def benchmark(bundle: Bundle, plan: Plan, sink: Sink = silent) -> dict[str, Any]:
    """Measure every engine and precision.

    Returns:
        A record with one row per pair under ``results``, which ``report`` shows. With ``plan.keep``,
        ``kept_in_bundle`` says whether the judgement is there now; a bundle that cannot be written is no error.

    Raises:
        UsageError: an unknown engine or fold, or nothing to measure.
        ImageError, GeometryError: the image cannot be read.
    """
    record, checks = _compared(bundle, plan, sink)
    if plan.keep:
        record["kept_in_bundle"] = bool(checks) and _keep(bundle, checks, sink)
    return record


def _compared(bundle: Bundle, plan: Plan, sink: Sink) -> tuple[dict[str, Any], list[Check]]:
    """The record of a benchmark, and the judgements in it."""
    for engine in plan.engines:
        get_engine(engine)
    fold = plan.fold if plan.fold is not None else bundle.folds[0]
    if fold not in bundle.folds:
        raise UsageError(f"{bundle.folder}: no fold {fold}; this bundle has {', '.join(bundle.folds)}")
    if plan.tiles < 1 or plan.repeats < 1:
        raise UsageError("a benchmark needs at least one tile and one repeat")
    tiles = sample_tiles(bundle.spec, plan)
    pairs = [(engine, precision) for engine in plan.engines for precision in plan.precisions]
    # The reference first: every other answer is compared with it.
    pairs.sort(key=lambda pair: (pair[1] != "fp32", REFERENCE.index(pair[0]) if pair[0] in REFERENCE else 9))
    reference: list[FloatArray] | None = None
    rows = []
    subjects: dict[tuple[str, str], Subject] = {}
    for done, (engine, precision) in enumerate(pairs, 1):
        row: dict[str, Any] = {"engine": engine, "precision": precision, "device": plan.device, "fold": fold}
        try:
            row |= _measure(bundle, fold, engine, precision, plan, tiles, reference)
            answers = row.pop("answers")
            subjects[engine, precision] = row.pop("subject")
            if reference is None and precision == "fp32" and row["status"] == "ok":
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
        "tiles": {"count": len(tiles), "source": [str(path) for path in plan.image] or "smooth noise"},
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


def verify_once(model: Model, image: Sequence[Path], sink: Sink = silent) -> None:
    """Compare a model's precision with float32 on two tiles of an image, where that was never done, and keep the result.

    One engine is open at a time: the model's own sessions are closed before, and opened again when they are needed.

    Args:
        image: files of a case's channels.

    Raises:
        UsageError: the precision has failed, now or before; or the model is the second stage of a cascade.
    """
    if model.spec.previous_stage is not None:
        raise UsageError("the precision of a cascade's second stage cannot be checked on an image alone")
    missing = model.precision_standing.missing
    if not missing:
        return
    model.close()
    options = model.options
    for fold in missing:
        plan = Plan(
            engines=(model.engine,),
            precisions=("fp32", options.precision),
            image=image,
            tiles=2,
            repeats=1,
            threads=options.threads,
            device=options.device,
            cache=options.cache,
            fold=fold,
            extra=options.extra,
        )
        record, checks = _compared(model.bundle, plan, sink)
        _keep(model.bundle, checks, sink)
        model.add_checks(checks)
        row = record["results"][-1]
        figures = {name: row[name] for name in ("label_agreement", "foreground_dice") if name in row}
        sink(Event("note", "verify", data={"fold": fold, "precision": options.precision, **figures}))
    _ = model.precision_standing  # refuses what has failed


def _measure(
    bundle: Bundle,
    fold: str,
    engine: str,
    precision: str,
    plan: Plan,
    tiles: Sequence[FloatArray],
    reference: Sequence[FloatArray] | None,
) -> dict[str, Any]:
    options = EngineOptions(
        device=plan.device, precision=precision, threads=plan.threads, cache=plan.cache, extra=dict(plan.extra)
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
        answers, seconds = _answers(session, tiles, plan.repeats)
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
    judged = judge(answers, reference, bundle.spec)
    dice = judged.get("foreground_dice")
    if judged["status"] == "ok" and dice is not None and dice < plan.min_dice:
        judged |= {
            "status": "failed",
            "reason": f"foreground Dice {dice:.5f}, at least {plan.min_dice:g} was asked for",
        }
    return {**row, **judged, "answers": answers, "subject": subject_of(info, fold, sha256)}


def _answers(session: Session, tiles: Sequence[FloatArray], repeats: int) -> tuple[list[FloatArray], list[float]]:
    """The answer to every tile, and the seconds of every call."""
    answers, seconds = [], []
    for number in range(max(repeats, len(tiles))):
        start = time.perf_counter()
        answer = session.run(tiles[number % len(tiles)])
        seconds.append(time.perf_counter() - start)
        if number < len(tiles):
            answers.append(answer.copy())
    return answers, seconds


def judge(answers: Sequence[FloatArray], reference: Sequence[FloatArray] | None, spec: VolumeSpec) -> dict[str, Any]:
    """Whether answers can be trusted, compared with the float32 reference where there is one.

    Args:
        answers, reference: (1, k, *patch) per tile.

    Returns:
        ``status`` (``ok`` or ``failed`` with a ``reason``) and the figures of the comparison.
    """
    if not all(np.isfinite(answer).all() for answer in answers):
        return {"status": "failed", "reason": "the answers hold NaN or infinite numbers"}
    if reference is None:
        return {"status": "ok"}
    threshold = None if spec.labels.regions_class_order is None else region_threshold(spec.aggregation)
    equal = voxels = found = wanted = both = 0
    worst = 0.0
    for mine, theirs in zip(answers, reference, strict=True):
        worst = max(worst, float(np.abs(mine - theirs).max()))
        a, b = winners(mine[0], threshold), winners(theirs[0], threshold)
        equal += int((a == b).sum())
        voxels += a.size
        found, wanted = found + int((a > 0).sum()), wanted + int((b > 0).sum())
        both += int(((a == b) & (a > 0)).sum())
    figures: dict[str, Any] = {
        "max_abs_logit_difference": worst,
        "label_agreement": equal / voxels,
        "foreground_dice": 2 * both / (found + wanted) if found + wanted else None,
        "foreground_voxels": found,
        "reference_foreground_voxels": wanted,
    }
    if wanted and not found:
        return {"status": "failed", "reason": "all background, where float32 finds structures", **figures}
    return {"status": "ok", **figures}


def sample_tiles(spec: VolumeSpec, plan: Plan) -> list[FloatArray]:
    """Inputs (1, c, *patch) to compare engines on: tiles of the plan's image, or smooth noise."""
    return list(_real_tiles(spec, plan)) if plan.image else list(_noise(spec, plan.tiles))


def _real_tiles(spec: VolumeSpec, plan: Plan) -> Iterator[FloatArray]:
    """Tiles spread over a real case, constant ones left out."""
    image = read_image(plan.image, spec.reader, channels=len(spec.channels))
    if spec.previous_stage is not None:
        raise UsageError("the second stage of a cascade cannot be measured on an image; leave out --input")
    prepared = prepare(image.array, image.geometry, spec, threads=plan.threads, consume=True)
    grid = case_grid(spec, prepared.geometry.network_shape, RunSettings())
    starts = list(grid)
    tile = np.empty((spec.input_channels, *grid.patch), np.float32)
    given = 0
    # From the middle outwards: that is where the body is.
    for start in sorted(starts, key=lambda s: abs(starts.index(s) - len(starts) // 2)):
        cut_tile(prepared.array, grid, start, tile)
        if constant_key(tile) is None or (not given and start == starts[-1]):
            yield tile.reshape(spec.input_shape).copy()
            given += 1
        if given == plan.tiles:
            return


def _noise(spec: VolumeSpec, count: int) -> Iterator[FloatArray]:
    """Tiles of smooth noise of unit variance."""
    for seed in range(min(count, 2)):
        noise = np.random.default_rng(seed).normal(size=spec.input_shape).astype(np.float32)
        smooth = gaussian(noise, [0, 0, *[2.0] * (noise.ndim - 2)])
        yield np.ascontiguousarray(smooth / max(float(smooth.std()), 1e-6), np.float32)


def _digest(tiles: Sequence[FloatArray]) -> str:
    """SHA-256 of the tiles' bytes."""
    digest = hashlib.sha256()
    for tile in tiles:
        digest.update(np.ascontiguousarray(tile).data)
    return digest.hexdigest()
