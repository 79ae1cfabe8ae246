"""Commands of instance models: export-detector, adopt-detector."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import Subparsers, command, existing, say, sink_for


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(commands, "export-detector", export_detector, "a RefineMask checkpoint to a verified bundle")
    parser.add_argument("checkpoint", type=Path, help=".pth of mmdetection")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--config", type=Path, help="its configuration (.py or .json), where the checkpoint has none")
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="the one input size the graph takes, multiples of 32; default any size",
    )
    parser.add_argument("--opset", type=int, default=17, metavar="N", help="16 or 17 (default)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the graph with the network")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")

    parser = command(commands, "adopt-detector", adopt_detector, "somebody else's .onnx of a detector to a bundle")
    parser.add_argument("model", type=Path, help=".onnx as torchvision, mmdeploy or Ultralytics write it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names: a JSON list, or one a line")
    parser.add_argument("--convention", help="fixed, torchvision, mmdeploy or prototypes; default: recognised")
    parser.add_argument("--mean", type=float, nargs=3, metavar="M", help="per channel")
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="per channel")
    parser.add_argument("--scale", type=float, help="pixels are divided by it first")
    parser.add_argument("--order", choices=["rgb", "bgr"], help="of the channels")
    parser.add_argument("--long-side", type=int, metavar="N", help="longest side after scaling")
    parser.add_argument("--short-side", type=int, metavar="N", help="longest shorter side after scaling")
    parser.add_argument("--divisor", type=int, metavar="N", help="sides are padded to a multiple of it")
    parser.add_argument("--min-score", type=float, metavar="S", help="detections at or below this are left out")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="most detections of an image, default 100")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")


def export_detector(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer export-detector``."""
    from offline_infer.tasks.instances.exporting import export_refinemask

    bundle = export_refinemask(
        existing(options.checkpoint),
        options.output,
        config=options.config,
        canvas=None if options.canvas is None else (options.canvas[0], options.canvas[1]),
        opset=options.opset,
        verify=not options.no_verify,
        overwrite=options.overwrite,
        sink=sink_for(options),
    )
    return _made(options, bundle)


def adopt_detector(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer adopt-detector``."""
    from offline_infer.tasks.instances.adopting import Preparation, adopt_detector, read_class_names

    bundle = adopt_detector(
        existing(options.model),
        options.output,
        classes=None if options.classes is None else read_class_names(options.classes),
        convention=options.convention,
        preparation=Preparation(
            mean=None if options.mean is None else tuple(options.mean),
            std=None if options.std is None else tuple(options.std),
            scale=options.scale,
            order=options.order,
            long_side=options.long_side,
            short_side=options.short_side,
            divisor=options.divisor,
            score=options.min_score,
        ),
        limit=options.limit,
        overwrite=options.overwrite,
        sink=sink_for(options),
    )
    return _made(options, bundle)


def _made(options: argparse.Namespace, bundle: Any) -> dict[str, Any]:
    for graph in bundle.spec.graphs:
        say(options, f"{bundle.folder / graph.file}: opset {graph.opset}, {len(bundle.spec.classes)} classes")
    return {"bundle": str(bundle.folder), "graphs": [graph.model_dump(mode="json") for graph in bundle.spec.graphs]}
