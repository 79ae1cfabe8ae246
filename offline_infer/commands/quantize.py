"""Commands that make a bundle faster and keep the proof that it is still the same model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import (
    Subparsers,
    add_reader_options,
    add_run_settings,
    chosen_folds,
    command,
    existing,
    readers,
    run_settings,
    say,
    share,
    sink_for,
    step_size,
)
from offline_infer.commands.kept_records import lines_of_quantization, lines_of_tuning


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(
        commands,
        "quantize",
        quantize,
        "INT8 for a bundle's graphs, refused unless whole unseen cases show that it is still the same model",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument(
        "--cases", type=Path, required=True, metavar="DIR", help="at least three cases of the model's kind, better ten"
    )
    parser.add_argument("--labels", type=Path, metavar="DIR", help="references; task Dice is then judged as well")
    parser.add_argument(
        "--min-dice",
        type=share,
        default=0.999,
        metavar="F",
        help="least foreground Dice to float32 that every unseen case must reach, default 0.999",
    )
    parser.add_argument(
        "--max-loss", type=share, default=0.002, metavar="F", help="of task Dice, in the mean, default 0.002"
    )
    parser.add_argument(
        "--calibration",
        default="fitted",
        choices=["fitted", "nncf"],
        help="rounding that changes least of what each layer computes on calibration inputs (default), or NNCF's ranges",
    )
    parser.add_argument(
        "--tiles", type=int, default=8, metavar="N", help="inputs to calibrate on, and to choose on, default 8"
    )
    parser.add_argument("--engine", default="openvino", help="openvino (default) or onnxruntime")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    add_run_settings(parser)
    add_reader_options(parser)
    _register_tune(commands)


def _register_tune(commands: Subparsers) -> None:
    parser = command(
        commands, "tune", tune, "Dice against time on labelled cases; keeps the fastest setting within the loss allowed"
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--cases", type=Path, required=True, metavar="DIR", help="cases, better ten than three")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="their references")
    parser.add_argument("--max-loss", type=share, default=0.002, metavar="F", help="of mean task Dice, default 0.002")
    parser.add_argument(
        "--precisions",
        nargs="*",
        default=["bf16", "int8"],
        choices=["bf16", "fp16", "int8"],
        help="to try besides fp32, default bf16 and, where the bundle has it, int8",
    )
    parser.add_argument(
        "--steps",
        nargs="*",
        type=step_size,
        default=[0.75],
        metavar="F",
        help="to try besides the model's, default 0.75",
    )
    parser.add_argument("--folds", "-f", nargs="+", metavar="FOLD", help="folds to average at most, default all")
    parser.add_argument("--engine", default="openvino", help="openvino (default) or onnxruntime")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    add_reader_options(parser)


def quantize(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer quantize``."""
    from offline_infer.errors import UsageError
    from offline_infer.quantizing.quantize import QuantizeJob
    from offline_infer.quantizing.quantize import quantize as run
    from offline_infer.tasks.opening import open_bundle

    if options.tiles < 1:
        raise UsageError(f"--tiles {options.tiles}: expected 1 or more")
    job = QuantizeJob(
        cases=existing(options.cases),
        labels=existing(options.labels) if options.labels else None,
        min_dice=options.min_dice,
        max_loss=options.max_loss,
        calibration=options.calibration,
        inputs=options.tiles,
        engine=options.engine,
        threads=options.threads,
        settings=run_settings(options),
    )
    with readers(options):
        record = run(open_bundle(existing(options.bundle)), job, sink_for(options))
    say(
        options,
        *lines_of_quantization(record),
        *_slower(record),
        "kept in the bundle; predict uses it with --precision int8",
    )
    return record


def _slower(record: dict[str, Any]) -> list[str]:
    """A remark where INT8 gains nothing on this machine."""
    found = []
    for fold in record["folds"]:
        seconds = fold["input_seconds"]
        name = "int8" if fold["around"] == "fp32" else f"int8+{fold['around']}"
        faster = [other for other in ("fp32", "bf16") if seconds.get(other, float("inf")) <= seconds[name]]
        if faster:
            found.append(f"fold {fold['fold']}: on this machine {' and '.join(faster)} is at least as fast")
    return found


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer tune``."""
    from offline_infer.tasks.opening import open_bundle
    from offline_infer.tuning.tune import TuneJob
    from offline_infer.tuning.tune import tune as run

    bundle = open_bundle(existing(options.bundle))
    job = TuneJob(
        cases=existing(options.cases),
        labels=existing(options.labels),
        max_loss=options.max_loss,
        precisions=options.precisions,
        steps=options.steps,
        folds=chosen_folds(options, bundle),
        engine=options.engine,
        threads=options.threads,
    )
    with readers(options):
        record = run(bundle, job, sink_for(options))
    say(options, *lines_of_tuning(record), "kept in the bundle; predict uses it with --tuned")
    return record
