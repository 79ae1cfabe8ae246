"""``quantize``: a float32 bundle and cases in, INT8 graphs and the record of their proof in the bundle, or a refusal with figures.

For each fold: ranges from calibration inputs, layers chosen on other cases under the budget, and the precision around them.
Then whole cases that had no part in this judge all folds together. Only what they accept is put into the bundle.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from offline_infer._version import __version__
from offline_infer.bundles.bundle import QUANTIZATION, Bundle, embedded, save
from offline_infer.bundles.kept_records import keep_record, refuse_lone, tell_signed
from offline_infer.bundles.manifest import SIGNATURE
from offline_infer.bundles.opening import check_recorded, checked_graph
from offline_infer.bundles.precision_checks import Check, keep_checks, subject_of
from offline_infer.engines.base import EngineOptions, require_engine
from offline_infer.errors import QuantizationRefused, UsageError
from offline_infer.events import Event, Sink, silent, without
from offline_infer.files import replacing, sha256_file
from offline_infer.graph import load_model, save_model
from offline_infer.graph.model import graph_sha256, onnx_package, opset, set_metadata
from offline_infer.graph.quantized import convolutions, quantized
from offline_infer.predict.model import Model
from offline_infer.quantizing.calibration import refuse_missing, roundings_of
from offline_infer.quantizing.cases import Roles, all_usable, inputs_of, share_out
from offline_infer.quantizing.choosing import Choice, Trial, Trials, choose, reaches, target_of
from offline_infer.quantizing.judging import Verdict, comparing, judge_cases, require_references, run_cases, whole_cases
from offline_infer.scratch import held, scratch_folder
from offline_infer.spec import GraphRecord
from offline_infer.tasks.opening import open_bundle
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.settings import RunSettings

STAGE = "quantize"
LEAST_SHARE = 0.3
"""Of the convolutions' multiplications that have to end in INT8: with less there is little to gain, and little is left to prove."""
_FASTER = 0.97  # the time beside which bf16 around INT8 is worth its rounding


@dataclass(frozen=True)
class QuantizeJob:
    """What to do.

    Attributes:
        cases: folder of cases, as predict takes it.
        labels: references of cases, where there are any.
        min_dice: least Dice of the foreground to float32 that every unseen case must reach.
        max_loss: of task Dice, in the mean over labelled unseen cases.
        calibration: ``fitted`` or ``nncf`` (:mod:`offline_infer.quantizing.calibration`).
        inputs: of the network to calibrate on, and as many to choose on.
        engine: that it is tried and judged on.
        settings: that whole cases are run with.
    """

    cases: Path
    labels: Path | None = None
    min_dice: float = 0.999
    max_loss: float = 0.002
    calibration: str = "fitted"
    inputs: int = 8
    engine: str = "openvino"
    threads: int = 0
    settings: RunSettings = field(default_factory=RunSettings)


@dataclass(frozen=True)
class _Candidate:
    """A fold's INT8 graph before it is judged."""

    fold: str
    file: str
    choice: Choice
    around: str
    trial: Trial
    seconds: dict[str, float]


def quantize(bundle: Bundle, job: QuantizeJob, sink: Sink = silent) -> dict[str, Any]:
    """Quantize the graphs of a bundle; see the module.

    Returns:
        The record, as it is kept in the bundle.

    Raises:
        QuantizationRefused: it would not be the same model; the message holds the figure, and the bundle is as it was.
        UsageError: too few cases, NNCF is wanted and not there, a bundle without float32 graphs, a task without a comparison.
        CaseError, CasesFailed: cases cannot be read or run.
    """
    roles = _prepared(bundle, job)
    started = time.perf_counter()
    with scratch_folder("quantize") as scratch:
        trial_bundle = scratch / "bundle"
        shutil.copytree(bundle.folder, trial_bundle, ignore=shutil.ignore_patterns("compiled", SIGNATURE))
        made = _candidates(bundle, trial_bundle, job, roles, sink)
        spec = _with_graphs(bundle, trial_bundle, made)
        save(spec.model_copy(update={"compiled": ()}), trial_bundle)
        verdict = _judged(open_bundle(trial_bundle), job, roles, scratch, sink)
        if verdict.reasons:
            raise QuantizationRefused(f"{bundle.name}: {'; '.join(verdict.reasons)}; nothing was kept")
        record = _record(job, roles, made, verdict, time.perf_counter() - started)
        kept = _kept(bundle, trial_bundle, made, record)
    _keep_checks(kept, job, made, verdict, sink)
    tell_signed(kept, lambda text: _note(sink, text))
    return record


def _prepared(bundle: Bundle, job: QuantizeJob) -> Roles:
    """Which cases serve for what; everything that can be refused before any work is refused here."""
    refuse_lone(bundle)
    task = get_task(bundle.spec.task)
    compares = comparing(task)
    require_engine(job.engine)
    onnx_package()
    refuse_missing(job.calibration)
    roles = share_out(all_usable(task.list_cases(job.cases, bundle.spec)).cases)
    if job.labels is not None:
        require_references(compares, job.labels, roles.judges)
    return roles


def _note(sink: Sink, text: str) -> None:
    sink(Event("note", STAGE, data={"text": text}))


def _kept(bundle: Bundle, folder: Path, made: Sequence[_Candidate], record: dict[str, Any]) -> Bundle:
    """Put the graphs of a folder and their record into the bundle; ``bundle.json``, which names them, comes last.

    Raises:
        UsageError: the bundle's float32 graphs were replaced meanwhile.
    """
    with held(bundle.folder):
        now = open_bundle(bundle.folder)  # another process may have added to it
        if any(now.graph(each.fold).sha256 != bundle.graph(each.fold).sha256 for each in made):
            raise UsageError(f"{bundle.name}: its graphs were replaced while they were quantized; nothing was kept")
        for candidate in made:
            _copy(folder / candidate.file, bundle.folder / candidate.file)
        kept = Bundle(bundle.folder, _with_graphs(now, folder, made))
        keep_record(kept, QUANTIZATION, record)
    return kept


def _copy(source: Path, target: Path) -> None:
    """Copy a file in one go; an error names the target, for that is the disk that is full."""
    try:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _candidates(bundle: Bundle, folder: Path, job: QuantizeJob, roles: Roles, sink: Sink) -> list[_Candidate]:
    """Write an INT8 graph for every fold into a folder.

    Raises:
        QuantizationRefused: the budget leaves too little in INT8.
    """
    task = get_task(bundle.spec.task)
    calibration = inputs_of(task, bundle.spec, roles.calibration, job.inputs, job.threads)
    choosing = inputs_of(task, bundle.spec, roles.choosing, job.inputs, job.threads)
    options = EngineOptions(
        threads=job.threads, outputs=bundle.spec.kept_outputs, control_flow=bundle.spec.control_flow
    )
    made = []
    for fold in bundle.folds:
        graph = checked_graph(bundle, fold)
        model = load_model(graph)
        layers = convolutions(model)
        if not layers:
            raise UsageError(f"{graph} holds no convolution with constant weights; there is nothing to quantize")
        _note(sink, f"fold {fold}: {len(layers)} convolutions, calibration {job.calibration}")
        tell = partial(_tell, sink)
        roundings = roundings_of(graph, layers, calibration, job.calibration, job.engine, job.threads, tell)
        layers = [each for each in layers if each.name in roundings]
        by_cases = whole_cases(bundle, fold, roles.known, folder.parent, job.engine, job.threads, job.settings)
        trials = Trials(model, roundings, task, bundle.spec, job.engine, options, choosing, graph, by_cases)
        arounds, seconds = _arounds(trials, job)
        for around in arounds:
            choice = choose(layers, trials, job.min_dice, around, partial(_tell_trial, sink, around))
            if choice.share >= LEAST_SHARE:  # it is zero where no trial was good enough
                break
        trial = _refuse_little(bundle, fold, choice, job)
        seconds["int8" if around == "fp32" else f"int8+{around}"] = trial.seconds
        file = f"fold_{fold}_int8.onnx"
        rounded = quantized(model, roundings, choice.chosen, dithered=choice.dithered)
        # As a lone file it says of itself what it is, and not what the float graph said.
        about = embedded(bundle.spec, fold, "int8", opset(rounded), graph_sha256(rounded))
        save_model(set_metadata(rounded, about), folder / file)
        made.append(_Candidate(fold, file, choice, around, trial, seconds))
        _note(
            sink,
            f"fold {fold}: {choice.share:.0%} of the multiplications in INT8, {around} around them; now the judges",
        )
    return made


def _tell_trial(sink: Sink, around: str, done: int, total: int) -> None:
    if done == 1:
        _note(sink, f"with {around} around, not all layers can be INT8: each is tried alone")
    _tell(sink, done, total)


def _tell(sink: Sink, done: int, total: int) -> None:
    sink(Event("progress", STAGE, done=done, total=total))


def _refuse_little(bundle: Bundle, fold: str, choice: Choice, job: QuantizeJob) -> Trial:
    """The trial that a choice rests on, unless it proves nothing, or leaves too little in INT8.

    Raises:
        QuantizationRefused: with the figures.
    """
    where = f"{bundle.name}, fold {fold}"
    if choice.whole.agreement is None:
        raise QuantizationRefused(
            f"{where}: float32 itself finds nothing in the inputs that were to choose the layers: these cases prove nothing"
        )
    if choice.final is None or choice.share < LEAST_SHARE:
        raise QuantizationRefused(
            f"{where}: with every convolution in INT8 the agreement with float32 is {choice.whole.agreement:.5f}; a Dice of "
            f"{job.min_dice:g} leaves {choice.share:.0%} of the multiplications in INT8, at least {LEAST_SHARE:.0%} is "
            f"wanted.{_what_failed(choice)} Either the network is not trained, or the cases are not of its kind, or it does "
            "not stand INT8"
        )
    return choice.final


def _what_failed(choice: Choice) -> str:
    """A sentence on the trial that came nearest and did not suffice; empty where there was none but the whole."""
    if choice.failed is None or choice.failed[1] is choice.whole:
        return ""
    share, trial = choice.failed
    where = "on the inputs" if trial.worst_case is None else f"in the case {trial.worst_case}"
    figure = "nothing" if trial.agreement is None else f"{trial.agreement:.5f}"
    return f" With {share:.0%} it is {figure} {where}."


def _arounds(trials: Trials, job: QuantizeJob) -> tuple[tuple[str, ...], dict[str, float]]:
    """What the layers that are not INT8 may compute in, the best first, and the seconds an input takes so.

    bfloat16 comes first where the engine has it, it is faster, and it is not outside the budget by itself.
    """
    seconds = {"fp32": trials.float_seconds}
    halved = trials.float_graph("bf16")
    if halved is None:
        return ("fp32",), seconds
    seconds["bf16"] = halved.seconds
    useful = halved.seconds < _FASTER * trials.float_seconds and reaches(halved, target_of(job.min_dice))
    return ("bf16", "fp32") if useful else ("fp32",), seconds


def _with_graphs(bundle: Bundle, folder: Path, made: Sequence[_Candidate]) -> Any:
    """The bundle's specification with the INT8 graphs, in place of older ones."""
    graphs = [graph for graph in bundle.spec.graphs if graph.precision != "int8"]
    for candidate in made:
        opset = bundle.graph(candidate.fold).opset
        graphs.append(
            GraphRecord(
                file=candidate.file,
                fold=candidate.fold,
                precision="int8",
                opset=opset,
                sha256=sha256_file(folder / candidate.file),
                verification={
                    "passed": True,
                    "around": candidate.around,
                    "int8_share": round(candidate.choice.share, 4),
                    "record": QUANTIZATION,
                },
            )
        )
    return bundle.spec.model_copy(update={"graphs": tuple(graphs)})


def _judged(bundle: Bundle, job: QuantizeJob, roles: Roles, scratch: Path, sink: Sink) -> Verdict:
    """Whole unseen cases in float32 and in INT8, compared."""
    folders = (scratch / "fp32", scratch / "int8")
    task = get_task(bundle.spec.task)
    quiet = without(sink, "note")  # that this precision was never checked is what is being mended
    for folder, precision in zip(folders, ("fp32", "int8"), strict=True):
        options = EngineOptions(precision=precision, threads=job.threads)
        with Model(bundle, engine=job.engine, options=options, unverified=True) as model:
            run_cases(model, roles.judges, folder, job.settings, quiet)
    return judge_cases(
        task,
        bundle.spec,
        roles.judges,
        folders,
        job.settings,
        job.labels,
        min_dice=job.min_dice,
        max_loss=job.max_loss,
    )


def _record(
    job: QuantizeJob, roles: Roles, made: Sequence[_Candidate], verdict: Verdict, seconds: float
) -> dict[str, Any]:
    """What is kept: how it was made, and what the judges found. No path and no image is written into it."""
    return {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "engine": job.engine,
        "calibration": job.calibration,
        "min_dice": job.min_dice,
        "max_loss": job.max_loss,
        "cases": roles.to_json(),
        "mirrors": job.settings.tta,
        "folds": [_fold_record(candidate) for candidate in made],
        "judged": verdict.to_json(),
        "seconds": round(seconds, 1),
    }


def _fold_record(candidate: _Candidate) -> dict[str, Any]:
    choice = candidate.choice
    return {
        "fold": candidate.fold,
        "file": candidate.file,
        "around": candidate.around,
        "int8_layers": list(choice.chosen),
        "int8_share": choice.share,
        "dithered_layers": sorted(choice.dithered),
        "agreement_all_int8": choice.whole.agreement,
        "agreement": candidate.trial.agreement,
        "sensitivity": dict(choice.sensitivity),
        "input_seconds": {name: round(value, 5) for name, value in candidate.seconds.items()},
    }


def _keep_checks(bundle: Bundle, job: QuantizeJob, made: Sequence[_Candidate], verdict: Verdict, sink: Sink) -> None:
    """Keep the judgement where predict looks for what is known of a precision on this machine."""
    options = EngineOptions(precision="int8", threads=job.threads)
    rows = []
    with Model(bundle, engine=job.engine, options=options, unverified=True) as model:
        for candidate, session in zip(made, model.sessions, strict=True):
            graph = bundle.graph(candidate.fold, "int8")
            check_recorded(bundle.graph_path(candidate.fold, "int8"), graph.sha256)
            judged = candidate.trial.judged
            rows.append(
                Check(
                    **subject_of(session.info, candidate.fold, graph.sha256).model_dump(),
                    status="ok",
                    reference=job.engine,
                    label_agreement=judged.get("label_agreement"),
                    foreground_dice=verdict.lowest,
                    tiles=len(verdict.dice),
                    tiles_sha256=graph.sha256,
                    source="image",
                    date=time.strftime("%Y-%m-%d %H:%M:%S"),
                )
            )
    problem = keep_checks(bundle, rows)
    if problem is not None:
        _note(sink, f"the checks are not kept in the bundle: {problem}")
