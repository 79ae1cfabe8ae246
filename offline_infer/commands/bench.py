"""The command that measures engines and precisions of a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import (
    Subparsers,
    cache_folder,
    check_report_places,
    command,
    device_list,
    device_name,
    existing,
    say,
    share,
    sink_for,
)


def register(commands: Subparsers) -> None:
    """Add this command to the parser."""
    parser = command(
        commands,
        "benchmark",
        benchmark,
        "speed of every engine and precision on a bundle, each checked against float32",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder or lone .onnx file")
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"], metavar="NAME", help="exact names")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16", "int8"])
    parser.add_argument(
        "--input", nargs="+", type=Path, metavar="IMAGE", help="cut real tiles from this case's channels"
    )
    parser.add_argument("--tiles", type=int, default=4, metavar="N", help="different tiles, default 4")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed calls, default 5")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda:0, npu:0")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    parser.add_argument("--devices", type=device_list, metavar="0,1,2,3", help="Ascend devices (engine om)")
    parser.add_argument("--fold", metavar="FOLD", help="default the first")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for compiled graphs; 'none' switches it off")
    parser.add_argument(
        "--min-dice",
        type=share,
        default=0.0,
        metavar="F",
        help="a foreground Dice against float32 below this fails; NaN, and only background, fail in any case",
    )
    parser.add_argument(
        "--no-record", action="store_true", help="do not keep the judgement in the bundle, where predict looks it up"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the record there, for report")


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer benchmark``."""
    from offline_infer.benchmark import BenchmarkJob
    from offline_infer.benchmark import benchmark as run
    from offline_infer.errors import EngineFailed
    from offline_infer.files import write_json
    from offline_infer.images.cases import CaseFiles
    from offline_infer.tasks.opening import open_bundle

    check_report_places(options.output, inputs=options.input or ())
    job = BenchmarkJob(
        engines=tuple(options.engines),
        precisions=tuple(options.precisions),
        case=CaseFiles("input", tuple(existing(path) for path in options.input)) if options.input else None,
        tiles=options.tiles,
        repeats=options.repeats,
        threads=options.threads,
        device=device_name(options),
        cache=cache_folder(options.cache),
        fold=options.fold,
        min_dice=options.min_dice,
        keep=not options.no_record,
    )
    record = run(open_bundle(existing(options.bundle)), job, sink_for(options))
    say(options, f"{'engine':<14}{'precision':<10}{'median s':>9}{'95 %':>9}{'first s':>9}{'open s':>8}  answer")
    for row in record["results"]:
        head = f"{row['engine']:<14}{row['precision']:<10}"
        if row["status"] == "unavailable":
            say(options, f"{head}{'-':>9}{'-':>9}{'-':>9}{'-':>8}  {row['reason']}")
            continue
        times = f"{row['p50_s']:>9.3f}{row['p95_s']:>9.3f}{row['first_call_s']:>9.3f}{row['open_s']:>8.2f}"
        say(options, f"{head}{times}  {_verdict(row)}")
    if record.get("kept_in_bundle"):
        proof = "" if options.input else "; noise proves nothing, give a real image with --input"
        say(options, f"kept in the bundle, where predict looks it up{proof}")
    if options.output is not None:
        write_json(options.output, record)
    failed = [row for row in record["results"] if row["status"] == "failed"]
    if failed:
        told = "; ".join(f"{row['engine']} {row['precision']}: {row['reason']}" for row in failed)
        raise EngineFailed(f"{told}; do not use these for results")
    return record


def _verdict(row: dict[str, Any]) -> str:
    if row["status"] == "failed":
        return f"FAILED: {row['reason']}"
    if "label_agreement" not in row:
        return "the reference" if row.get("reference") else "not compared (no float32 answer)"
    dice = row["foreground_dice"]
    return (
        f"labels {100 * row['label_agreement']:.4f} % equal, foreground Dice {'-' if dice is None else f'{dice:.5f}'}, "
        f"max |difference| {row['max_abs_logit_difference']:.2g}"
    )
