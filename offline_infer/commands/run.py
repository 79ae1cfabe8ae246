"""Commands that run a network: predict, and its stages one by one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import (
    Subparsers,
    add_engine_options,
    add_existing_options,
    add_reader_options,
    add_run_settings,
    add_task_options,
    byte_size,
    command,
    device_list,
    existing,
    listed_cases,
    on_existing,
    open_model,
    readers,
    run_settings,
    say,
    say_cases,
    show_outcome,
    sink_for,
)
from offline_infer.errors import CasesFailed, UsageError
from offline_infer.events import Event, Sink

if TYPE_CHECKING:
    from offline_infer.images.cases import CaseFiles
    from offline_infer.predict.folder import FolderJob
    from offline_infer.predict.model import Model
    from offline_infer.tasks.reports import RunReport
    from offline_infer.tasks.settings import RunSettings

_CASES_TRIED = 3
"""Cases that may be too damaged to compare a precision on."""


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    _register_run(commands)
    _register_predict(commands)


def _register_run(commands: Subparsers) -> None:
    parser = command(
        commands, "run", run_all, "checkpoint folder and images in: bundle, label maps, Dice and a picture out"
    )
    parser.add_argument("checkpoint", type=Path, help="model folder of nnU-Net v1, UNet++ or nnU-Net v2")
    parser.add_argument("input", type=Path, help="an image or a folder of cases")
    parser.add_argument("output", type=Path, help="folder; gets bundle/, predictions/, summary.json, overlay.png")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="reference label maps to score against")
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="folds to export and average")
    parser.add_argument("--engine", default="openvino", help="openvino (default) or onnxruntime")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda:0, npu:0")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="arithmetic of the engine"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    parser.add_argument(
        "--memory", type=byte_size, metavar="SIZE", help="what the process may take, default what is free"
    )
    add_run_settings(parser)
    parser.add_argument("--save-probabilities", action="store_true", help="as for predict")
    add_existing_options(parser)
    add_reader_options(parser)


def _register_predict(commands: Subparsers) -> None:
    parser = command(
        commands, "predict", predict, "segment a file or a folder of cases, straight from image to label map"
    )
    parser.add_argument("bundle", type=Path, help="bundle folder or lone .onnx file")
    parser.add_argument(
        "input",
        type=Path,
        nargs="?",
        help="an image, a DICOM series folder, or a folder with case_0000.nii.gz, case_0001.nii.gz, ...; also -i",
    )
    parser.add_argument(
        "output", type=Path, nargs="?", help="folder for the results; for one image also the file to write; also -o"
    )
    parser.add_argument("-i", dest="named_input", type=Path, metavar="INPUT", help=argparse.SUPPRESS)
    parser.add_argument("-o", dest="named_output", type=Path, metavar="OUTPUT", help=argparse.SUPPRESS)
    add_engine_options(parser)
    parser.add_argument(
        "--devices", type=device_list, metavar="0,1,2,3", help="Ascend devices to spread over (--engine om)"
    )
    add_run_settings(parser)
    parser.add_argument(
        "--save-probabilities",
        "--save_probabilities",
        action="store_true",
        help="also write case.npz and case.pkl, as nnU-Net's ensemble command reads them",
    )
    add_existing_options(parser)
    add_task_options(parser)
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="also volume, place, extent and intensity of every label, in statistics.csv and .json beside the label maps",
    )
    parser.add_argument(
        "--memory",
        type=byte_size,
        metavar="SIZE",
        help="what the process may take, e.g. 8GiB, default what is free; with less, slower methods are used",
    )
    parser.add_argument(
        "--verify-precision",
        action="store_true",
        help="if the precision was never compared with float32 here, do it first, on two tiles of the first case",
    )
    parser.add_argument(
        "--canary",
        choices=["auto", "always", "never"],
        default="auto",
        help="ask the engine for the bundle's recorded answer first: auto (runs of several cases), always, or never",
    )
    parser.add_argument(
        "--tuned", action="store_true", help="engine, precision, mirrors, step and folds as 'tune' has chosen them"
    )
    add_reader_options(parser)
    parser.add_argument("--part", type=int, default=0, metavar="K", help="do part K of --parts (from 0)")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="share the cases among N runs")
    parser.add_argument("--previous-predictions", type=Path, metavar="DIR", help="a cascade's first-stage label maps")


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer run``."""
    from offline_infer.workflow import Journey, travel

    journey = Journey(
        existing(options.checkpoint),
        existing(options.input),
        options.output,
        labels=existing(options.labels) if options.labels else None,
        folds=tuple(options.folds) if options.folds else None,
        engine=options.engine,
        threads=options.threads,
        device=options.device,
        precision=options.precision,
        memory=options.memory,
        settings=run_settings(options, options.save_probabilities),
        existing=on_existing(options),
    )
    with readers(options):
        return show_outcome(options, travel(journey, sink_for(options)))


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer predict``."""
    from offline_infer.images.cases import select_part
    from offline_infer.predict.folder import FolderJob, predict_folder

    sink = sink_for(options)
    source, target = _paths(options)
    tuned = _tune(options) if options.tuned else None
    with readers(options), open_model(options) as model:
        found = listed_cases(model.task, source, model.spec, sink)
        if found.cases:
            _verify(options, model, found.cases, sink)
        settings = run_settings(options, options.save_probabilities)
        _check_statistics(options, model)
        folder, cases, lone = _target(target, found.cases, model, settings)
        job = FolderJob(
            cases=select_part(cases, options.part, options.parts),
            problems=found.problems if options.part == 0 else {},
            output=folder,
            existing=on_existing(options),
            previous_folder=existing(options.previous_predictions) if options.previous_predictions else None,
            memory=options.memory,
            part=(options.part, options.parts),
            source=source,
            lone=lone,
            tuned=tuned,
            canary=options.canary,
        )
        report = predict_folder(model, job, settings, sink)
        measured = _write_statistics(model, job, settings, report, sink) if options.statistics else ()
    for case in report.cases:
        times = ", ".join(f"{name} {value:.1f} s" for name, value in case.seconds.items())
        say_cases(
            options,
            f"{case.case}: {case.status}"
            + (f" ({times})" if times else "")
            + (f": {case.reason}" if case.reason else ""),
        )
    say(options, *(f"written: {path}" for path in measured))
    report.raise_failures()
    return report.to_json()


def _check_statistics(options: argparse.Namespace, model: Model) -> None:
    """Refuse ``--statistics`` before any work where there is nothing to measure, or only a part of it.

    Raises:
        UsageError: the model makes no label maps, or this run makes only some of them.
    """
    if options.statistics and not model.task.label_maps:
        raise UsageError(f"--statistics measures label maps; a model of the task {model.task.name!r} makes none")
    if options.statistics and options.parts > 1:
        raise UsageError("--statistics needs all cases; when every part is done: offline-infer statistics OUTPUT")


def _write_statistics(
    model: Model, job: FolderJob, settings: RunSettings, report: RunReport, sink: Sink
) -> tuple[Path, ...]:
    """Measure the label maps that are there, with the intensities of the image's first channel.

    Raises:
        CasesFailed: a result or its image could not be read again.
    """
    from offline_infer.proof.statistics import StatisticsCase, cohort_statistics, write_statistics

    complete = {case.case for case in report.cases if case.status != "failed"}
    cases = []
    for case in job.cases:
        if case.case_id in complete:
            result = model.task.result_files(job.output, case.case_id, model.spec, settings)[0]
            cases.append(StatisticsCase(case.case_id, result, case.channels[0]))
    found = cohort_statistics(cases, sink=sink)
    name = f"{job.cases[0].case_id}_statistics" if job.lone else "statistics"
    written = write_statistics(job.output / name, found, model.spec.label_names())
    if found.failed:
        raise CasesFailed(found.failed, len(cases))
    return written


def _tune(options: argparse.Namespace) -> str:
    """Set the options that ``tune`` has chosen.

    Returns:
        SHA-256 of the record that says so.

    Raises:
        UsageError: one of them was given as well, or nothing was chosen.
    """
    from offline_infer.bundles.bundle import TUNING
    from offline_infer.files import sha256_file
    from offline_infer.tasks.opening import open_bundle
    from offline_infer.tuning.setting import tuned_setting

    plain = {"engine": "openvino", "precision": "fp32", "no_tta": False, "step_size": None, "folds": None}
    given = [f"--{name.replace('_', '-')}" for name, value in plain.items() if getattr(options, name) != value]
    if given:
        raise UsageError(f"--tuned sets {', '.join(given)}; leave out one or the other")
    bundle = open_bundle(existing(options.bundle))
    options.engine, setting = tuned_setting(bundle)
    options.precision, options.folds = setting.precision, list(setting.folds)
    options.no_tta, options.step_size = not setting.mirrors, setting.step
    return sha256_file(bundle.folder / TUNING)


def _paths(options: argparse.Namespace) -> tuple[Path, Path]:
    """Input and output, by place or as nnU-Net's commands name them, with ``-i`` and ``-o``.

    Raises:
        UsageError: one is missing, or named twice.
    """
    placed = [path for path in (options.input, options.output) if path is not None]
    named = {"-i": options.named_input, "-o": options.named_output}
    source = named["-i"] if named["-i"] is not None else (placed.pop(0) if placed else None)
    target = named["-o"] if named["-o"] is not None else (placed.pop(0) if placed else None)
    if source is None or target is None or placed:
        raise UsageError("name the input and the output once each: predict BUNDLE INPUT OUTPUT, or -i INPUT -o OUTPUT")
    return source, target


def _target(
    output: Path, cases: Sequence[CaseFiles], model: Model, settings: RunSettings
) -> tuple[Path, Sequence[CaseFiles], bool]:
    """The folder of the results, the cases by the names of their results, and whether one file was named.

    Raises:
        UsageError: a file is named for several cases, or with an ending this model does not write.
    """
    plain = model.task.result_files(output.parent, "x", model.spec, settings)[0].name.removeprefix("x")
    if output.is_dir() or not output.suffix or (not output.exists() and not output.name.endswith(plain)):
        return output, cases, False
    if not output.name.endswith(plain) or output.name == plain:
        raise UsageError(f"{output} is a file; name a folder, or a new file that ends with {plain}")
    if len(cases) != 1:
        raise UsageError(f"{output} is one file, but there are {len(cases)} cases; name a folder")
    return output.parent, (replace(cases[0], case_id=output.name.removesuffix(plain)),), True


def _verify(options: argparse.Namespace, model: Model, cases: Sequence[CaseFiles], sink: Sink) -> None:
    """Compare the precision with float32 where that was asked for, or where an engine wants it before its first run."""
    from offline_infer.benchmark import verify_once
    from offline_infer.engines.base import get_engine
    from offline_infer.errors import CaseError, EngineUnavailable

    if options.verify_precision:
        verify_once(model, cases[0], sink)
        return
    if not getattr(get_engine(model.engine), "verifies_first_run", False) or model.previous is not None:
        return
    for case in cases[:_CASES_TRIED]:
        try:
            verify_once(model, case, sink)
            return
        except (CaseError, EngineUnavailable) as error:  # a broken image is reported when its turn comes
            sink(
                Event("note", "verify", data={"text": f"{case.case_id} could not be used for the comparison: {error}"})
            )
