"""Commands about bundles: compile, inspect, sign."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.ascend.limits import COMPILE_TIMEOUT_S
from offline_infer.commands.common import Subparsers, command, existing, say, sink_for, verified
from offline_infer.commands.kept_records import lines_of_quantization, lines_of_tuning
from offline_infer.errors import UsageError

if TYPE_CHECKING:
    from offline_infer.spec import GraphRecord


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
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
    from offline_infer.bundles.bundle import QUANTIZATION, TUNING
    from offline_infer.bundles.checking import check_bundle
    from offline_infer.bundles.kept_records import read_record
    from offline_infer.bundles.precision_checks import line_of, read_checks
    from offline_infer.tasks.opening import open_bundle

    if options.public_key is not None and not options.verify:
        raise UsageError("--public-key is used with --verify only")
    bundle = open_bundle(existing(options.bundle))
    check = check_bundle(bundle, options.public_key) if options.verify else None
    checks = read_checks(bundle)
    kept = {name: read_record(bundle, file) for name, file in (("quantized", QUANTIZATION), ("tuned", TUNING))}
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
        *(f"  {name:<12} {line}" for name, record in kept.items() if record for line in _LINES_OF[name](record)),
        *([] if check is None else [f"  good         {line}" for line in check.done]),
        *([] if check is None else [f"  not checked  {line}" for line in check.open]),
    )
    return {
        **spec.model_dump(mode="json"),
        "verified": verified(bundle),
        **({} if check is None else {"integrity": check.to_json()}),
        "precision_checks": [row.model_dump(mode="json") for row in checks.rows],
        **{name: record for name, record in kept.items() if record is not None},
    }


def sign(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer sign``."""
    from offline_infer.bundles.signature import sign_bundle
    from offline_infer.tasks.opening import open_bundle

    password = None if options.password_file is None else existing(options.password_file).read_bytes().strip()
    path = sign_bundle(open_bundle(existing(options.bundle)), existing(options.key), password)
    say(
        options,
        f"{path}: signed; whoever has your public key checks it with 'offline-infer inspect --verify --public-key'",
    )
    return {"signature": str(path)}


_LINES_OF = {"quantized": lines_of_quantization, "tuned": lines_of_tuning}
"""What a bundle keeps -> its lines for people."""


def _graph_lines(graph: GraphRecord) -> list[str]:
    """A graph and what was measured when it was verified."""
    from offline_infer.bundles.verification_record import lines_of

    first = f"  graph        {graph.file} {graph.precision} opset {graph.opset}"
    return [first, *(f"    verified   {line}" for line in lines_of(graph.verification))]
