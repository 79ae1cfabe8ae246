"""Commands about models: export, adopt, compile, inspect, sign."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.ascend.limits import COMPILE_TIMEOUT_S
from offline_infer.commands.common import Subparsers, assignments, command, existing, say, sink_for
from offline_infer.errors import UsageError

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.exporting.options import ExportOptions
    from offline_infer.spec import GraphRecord

_EXPORTED = "exported_"
_CHECKPOINT_ONLY = ("folds", "checkpoint_name", "configuration", "labels", "keep_deep_supervision")


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    _register_export(commands)
    _register_adopt(commands)
    _register_compile(commands)
    _register_inspect(commands)
    _register_sign(commands)


def _register_compile(commands: Subparsers) -> None:
    parser = command(commands, "compile", compile_om, "compile a bundle's graphs for an Ascend chip with atc")
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--soc", required=True, help="exact chip name, e.g. Ascend310P3; a wrong one lists the legal ones"
    )
    parser.add_argument("--fold", help="one fold, default all")
    parser.add_argument("--graph-precision", default="fp32", choices=["fp32", "fp16"], help="which graph of a fold")
    parser.add_argument("--precision-mode", metavar="MODE", help="atc's --precision_mode")
    parser.add_argument("--precision-mode-v2", metavar="MODE", help="atc's --precision_mode_v2")
    parser.add_argument("--out-nodes", metavar="NODES", help="outputs to keep: name;name or node:index;...")
    parser.add_argument("--input-format", choices=["NCDHW", "NCHW", "ND"], help="default by the number of axes")
    parser.add_argument("--decompose-instance-norm", action="store_true", help="write InstanceNormalization out first")
    parser.add_argument("--allow-unlisted-soc", action="store_true", help="accept a chip this release does not know")
    parser.add_argument("--atc", default="atc", help="the program, by name or path")
    parser.add_argument("--timeout", type=float, default=COMPILE_TIMEOUT_S, metavar="S", help="per graph")
    parser.add_argument("--overwrite", action="store_true", help="compile even what is there already")
    parser.add_argument(
        "--flag",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="further atc option; repeatable, write --flag=--log=info",
    )


def _register_inspect(commands: Subparsers) -> None:
    parser = command(commands, "inspect", inspect, "show what a bundle holds")
    parser.add_argument("bundle", type=Path, help="bundle folder or lone .onnx file")
    parser.add_argument(
        "--verify", action="store_true", help="also check every file: digests, manifest, signature, operators"
    )
    parser.add_argument(
        "--public-key", type=Path, metavar="PEM", help="with --verify: the key the bundle has to be signed with"
    )


def _register_sign(commands: Subparsers) -> None:
    parser = command(commands, "sign", sign, "sign a bundle with a key of your own (OpenSSF model signing)")
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help="private elliptic-curve key (P-256, P-384, P-521)"
    )
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file with the key's password")


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

    for task in TASKS:
        exporter = exporter_of(task)
        if exporter is not None:
            own = parser.add_argument_group(f"models of the task {task!r}")
            for option in exporter.options:
                add_flag(own, option, _EXPORTED)


def _register_adopt(commands: Subparsers) -> None:
    from offline_infer.tasks.registry import TASKS, adopter_of

    adopters = {task: adopter for task in TASKS if (adopter := adopter_of(task)) is not None}
    parser = command(commands, "adopt", adopt, "make a bundle of an ONNX graph that somebody else exported")
    parser.add_argument("graph", type=Path, help="the .onnx file")
    parser.add_argument("--task", required=True, help=f"what kind of model it is: {', '.join(adopters)}")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
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
        "verified": _verified(bundle),
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
    from offline_infer.tasks.extensions import check_given
    from offline_infer.tasks.registry import TASKS, adopter_of

    adopter = adopter_of(options.task) if options.task in TASKS else None
    if adopter is None:
        legal = ", ".join(task for task in TASKS if adopter_of(task) is not None)
        raise UsageError(f"graphs of the task {options.task!r} cannot be adopted; legal: {legal}")
    given = assignments(options.set)
    check_given(given, adopter.options)
    bundle = adopter.adopt(
        existing(options.graph), options.output, given, overwrite=options.overwrite, sink=sink_for(options)
    )
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


def compile_om(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer compile``."""
    from offline_infer.ascend.compile import CompileOptions, compile_bundle

    chosen = CompileOptions(
        graph_precision=options.graph_precision,
        precision_mode=options.precision_mode,
        precision_mode_v2=options.precision_mode_v2,
        out_nodes=options.out_nodes,
        extra_flags=options.flag,
        input_format=options.input_format,
        decompose_instance_norm=options.decompose_instance_norm,
        allow_unlisted_soc=options.allow_unlisted_soc,
        overwrite=options.overwrite,
        atc=options.atc,
        timeout_s=options.timeout,
    )
    done = compile_bundle(existing(options.bundle), options.soc, chosen, fold=options.fold, sink=sink_for(options))
    for item in done:
        state = "was there" if item.reused else f"compiled in {item.seconds:.1f} s"
        say(
            options,
            f"{item.record.file}: fold {item.fold} for {item.record.soc}, {state}",
            *item.advice,
            *item.warnings,
        )
    return {"compiled": [item.record.model_dump(mode="json") for item in done]}


def inspect(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer inspect``."""
    from offline_infer.bundles.checking import check_bundle
    from offline_infer.bundles.precision_checks import line_of, read_checks
    from offline_infer.tasks.opening import open_bundle

    if options.public_key is not None and not options.verify:
        raise UsageError("--public-key is used with --verify only")
    bundle = open_bundle(existing(options.bundle))
    check = check_bundle(bundle, options.public_key) if options.verify else None
    checks = read_checks(bundle)
    spec = bundle.spec
    source = spec.source
    say(
        options,
        f"{bundle.folder}",
        f"  source       {source.framework} {source.trainer} {source.plans_name} {source.dataset} {source.configuration}",
        f"  network      {spec.source.network}, input {spec.input_name} {spec.input_shape}",
        f"  folds        {', '.join(bundle.folds)}",
        *(f"  {heading:<12} {line}" for heading, line in spec.facts().items()),
        *(line for graph in spec.graphs for line in _graph_lines(graph)),
        *(
            f"  compiled     {item.file} for {item.soc} by {item.tool} {item.tool_version or ''}"
            for item in spec.compiled
        ),
        *(f"  checked      {line_of(row)}" for row in checks.rows),
        *([f"  checked      {checks.problem}; it counts as absent"] if checks.problem else []),
        *([] if check is None else [f"  good         {line}" for line in check.done]),
        *([] if check is None else [f"  not checked  {line}" for line in check.open]),
    )
    return {
        **spec.model_dump(mode="json"),
        "verified": _verified(bundle),
        **({} if check is None else {"integrity": check.to_json()}),
        "precision_checks": [row.model_dump(mode="json") for row in checks.rows],
    }


def sign(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer sign``."""
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.bundles.signature import sign_bundle

    password = None if options.password_file is None else existing(options.password_file).read_bytes().strip()
    path = sign_bundle(Bundle.load(existing(options.bundle)), existing(options.key), password)
    say(
        options,
        f"{path}: signed; whoever has your public key checks it with 'offline-infer inspect --verify --public-key'",
    )
    return {"signature": str(path)}


def _graph_lines(graph: GraphRecord) -> list[str]:
    """A graph and what was measured when it was verified."""
    from offline_infer.bundles.verification_record import lines_of

    first = f"  graph        {graph.file} {graph.precision} opset {graph.opset}"
    return [first, *(f"    verified   {line}" for line in lines_of(graph.verification))]


def _verified(bundle: Bundle) -> dict[str, Any]:
    """Graph file -> what each engine's comparison with the checkpoint's network gave."""
    from offline_infer.bundles.verification_record import comparisons

    return {graph.file: [entry.to_json() for entry in comparisons(graph.verification)] for graph in bundle.spec.graphs}
