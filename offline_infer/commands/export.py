"""Commands that make a bundle: export, of a trained model, and adopt, of a graph that somebody else exported."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import Subparsers, assignments, command, existing, say, sink_for, verified
from offline_infer.errors import UsageError

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.exporting.options import ExportOptions

_EXPORTED = "exported_"
_CHECKPOINT_ONLY = ("folds", "checkpoint_name", "configuration", "labels", "keep_deep_supervision")


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    _register_export(commands)
    _register_adopt(commands)


def _register_export(commands: Subparsers) -> None:
    from offline_infer.tasks.extensions import add_flag
    from offline_infer.tasks.registry import TASKS, exporter_of

    parser = command(commands, "export", export, "turn a trained model into a verified bundle")
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="model folder of nnU-Net v1, UNet++ or nnU-Net v2, or a v2 .zip; a model of one's own (.py, or a folder with "
        "mymodel.py); a RefineMask .pth",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument(
        "--expect-sha256",
        nargs="+",
        default=[],
        metavar="HASH",
        help="accept only weights files (or an archive) with these digests",
    )
    parser.add_argument(
        "--opset", type=int, default=17, metavar="N", help="ONNX opset, 11 to 17 (default 17; 11 to 13 for older CANN)"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the graph with the original network")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the constructor of a model of one's own, repeatable; a wrong name lists the legal ones",
    )

    _add_checkpoint_options(parser)
    for task in TASKS:
        exporter = exporter_of(task)
        if exporter is not None:
            own = parser.add_argument_group(f"models of the task {task!r}")
            for option in exporter.options:
                add_flag(own, option, _EXPORTED)


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints of nnU-Net and UNet++")
    group.add_argument(
        "--folds", nargs="+", metavar="FOLD", help="0 1 2 ... or all; default: every fold the framework would use"
    )
    group.add_argument(
        "--checkpoint-name", metavar="NAME", help="such as checkpoint_best or model_best; default the final one"
    )
    group.add_argument("--configuration", metavar="NAME", help="for archives that hold several, e.g. 3d_fullres")
    group.add_argument(
        "--labels",
        nargs="+",
        type=label_name,
        metavar="NAME=VALUE",
        help="names for the labels of a model of nnU-Net v1, e.g. liver=1 tumour=2; default: of a dataset.json beside it",
    )
    group.add_argument(
        "--precision", default="fp32", choices=["fp32", "fp16"], help="fp16 keeps InstanceNormalization in float32"
    )
    group.add_argument(
        "--keep-deep-supervision", action="store_true", help="keep all heads as outputs, final one first"
    )


def _register_adopt(commands: Subparsers) -> None:
    from offline_infer.tasks.registry import TASKS, adopter_of

    adopters = {task: adopter for task in TASKS if (adopter := adopter_of(task)) is not None}
    parser = command(commands, "adopt", adopt, "make a bundle of an ONNX graph that somebody else exported")
    parser.add_argument("graph", type=Path, help="the .onnx file")
    parser.add_argument("--task", required=True, help=f"what kind of model it is: {', '.join(adopters)}")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument(
        "--expect-sha256", nargs="+", default=[], metavar="HASH", help="accept only a file with one of these digests"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what must be said about the graph, repeatable; the names are listed below",
    )
    for task, adopter in adopters.items():
        names = "; ".join(f"{option.name}: {option.help}" for option in adopter.options)
        parser.add_argument_group(f"--set with --task {task}", names.replace("%", "%%"))


def export(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer export``: by the task that recognises the model, else as a checkpoint of nnU-Net."""
    from offline_infer.bundles.verification_record import lines_of
    from offline_infer.exporting.options import ExportOptions
    from offline_infer.tasks.registry import recognised

    how = ExportOptions(
        precision=options.precision,
        opset=options.opset,
        keep_deep_supervision=options.keep_deep_supervision,
        verify=not options.no_verify,
        overwrite=options.overwrite,
    )
    path = existing(options.checkpoint)
    task = recognised(path)
    bundle = _export_checkpoint(options, path, how) if task is None else _export_by_task(task, options, path, how)
    for graph in bundle.spec.graphs:
        say(options, f"{bundle.folder / graph.file}: fold {graph.fold}, opset {graph.opset}, {graph.precision}")
        say(options, *(f"  {line}" for line in lines_of(graph.verification)))
    return {
        "bundle": str(bundle.folder),
        "graphs": [graph.model_dump(mode="json") for graph in bundle.spec.graphs],
        "verified": verified(bundle),
    }


def _export_checkpoint(options: argparse.Namespace, path: Path, how: ExportOptions) -> Bundle:
    """A checkpoint of nnU-Net or UNet++ to a bundle."""
    from offline_infer.checkpoints import Selection
    from offline_infer.exporting.bundles import export_bundle

    _refuse(path, "a checkpoint of nnU-Net", [*_given(options), *(["set"] if options.set else [])])
    selection = Selection(
        folds=options.folds,
        checkpoint_name=options.checkpoint_name,
        configuration=options.configuration,
        labels=label_names(options.labels),
        expect_sha256=tuple(options.expect_sha256),
    )
    return export_bundle(path, options.output, selection, how, sink_for(options))


def _export_by_task(task: str, options: argparse.Namespace, path: Path, how: ExportOptions) -> Bundle:
    """A model that a task recognised to a bundle."""
    from offline_infer.tasks.extensions import ExportRequest
    from offline_infer.tasks.registry import exporter_of

    exporter = exporter_of(task)
    assert exporter is not None
    given, known = _given(options), {option.name for option in exporter.options}
    others = [name for name in _CHECKPOINT_ONLY if getattr(options, name)]
    others += ["precision"] if options.precision != "fp32" else []
    _refuse(path, f"a model of the task {task!r}", others + [name for name in given if name not in known])
    request = ExportRequest(
        path, options.output, how, given, assignments(options.set), expect_sha256=tuple(options.expect_sha256)
    )
    return exporter.export(request, sink_for(options))


def _given(options: argparse.Namespace) -> dict[str, str]:
    """The tasks' own options of ``export`` that were given, by name."""
    own = {name.removeprefix(_EXPORTED): value for name, value in vars(options).items() if name.startswith(_EXPORTED)}
    return {name: value for name, value in own.items() if value is not None}


def _refuse(path: Path, kind: str, names: list[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        UsageError: there is one.
    """
    if names:
        flags = ", ".join("--" + name.replace("_", "-") for name in names)
        raise UsageError(f"{path} is {kind}, whose export has no {flags}; leave it out")


def adopt(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer adopt``."""
    from offline_infer.checkpoints.digests import checked_sha256
    from offline_infer.tasks.extensions import check_given
    from offline_infer.tasks.registry import TASKS, adopter_of

    adopter = adopter_of(options.task) if options.task in TASKS else None
    if adopter is None:
        legal = ", ".join(task for task in TASKS if adopter_of(task) is not None)
        raise UsageError(f"graphs of the task {options.task!r} cannot be adopted; legal: {legal}")
    given = assignments(options.set)
    check_given(given, adopter.options)
    graph = existing(options.graph)
    checked_sha256(graph, options.expect_sha256)  # before anything in it is interpreted
    bundle = adopter.adopt(graph, options.output, given, overwrite=options.overwrite, sink=sink_for(options))
    engines = (bundle.spec.graphs[0].verification or {}).get("engines", [])
    ran = [row["engine"] for row in engines if row.get("status", "ok") == "ok"]
    say(options, f"{bundle.folder}: adopted; the graph gives the same answers on {', '.join(ran)}")
    return {"bundle": str(bundle.folder), "graphs": [graph.model_dump(mode="json") for graph in bundle.spec.graphs]}


def label_name(text: str) -> tuple[str, int]:
    """argparse type: ``liver=1``."""
    name, _, value = text.rpartition("=")
    if not name or not re.fullmatch(r"[0-9]{1,5}", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a label; write NAME=VALUE, for example liver=1")
    return name, int(value)


def label_names(pairs: list[tuple[str, int]] | None) -> dict[str, int] | None:
    """``--labels`` as a mapping.

    Raises:
        UsageError: a name is given twice.
    """
    names = dict(pairs or ())
    if len(names) != len(pairs or ()):
        raise UsageError("--labels gives one name to several values; name every label differently")
    return names or None
