"""Commands that judge results: compare, ensemble, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import (
    Subparsers,
    check_report_places,
    command,
    device_list,
    existing,
    say,
    share,
    sink_for,
)
from offline_infer.errors import CasesFailed, UsageError


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    _register_compare(commands)
    _register_ensemble(commands)
    _register_report(commands)


def _register_compare(commands: Subparsers) -> None:
    parser = command(
        commands,
        "compare",
        compare,
        "two prediction folders, voxel by voxel: agreement, and ties told from bugs; with --layers, two engines inside a graph",
    )
    parser.add_argument(
        "a", type=Path, help="a folder of label maps (and .npz probabilities), or one file; a bundle with --layers"
    )
    parser.add_argument(
        "b",
        type=Path,
        nargs="?",
        help="the other one, e.g. the framework's own predictions; with --layers another bundle, default the same",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the whole comparison as JSON")
    parser.add_argument(
        "--tie-margin",
        type=float,
        metavar="P",
        help="a narrower margin between the top classes is a tie, default 0.001; where a run record says fp16 0.01, bf16 0.05",
    )
    parser.add_argument(
        "--fail-below", type=share, metavar="F", help="exit with 3 if the Dice of any class of any case is below this"
    )
    parser.add_argument(
        "--layers",
        nargs=2,
        metavar=("A", "B"),
        help="compare tensor by tensor inside a graph, two engines or two bundles, e.g. --layers openvino:bf16 onnxruntime:fp32",
    )
    parser.add_argument(
        "--input", nargs="+", type=Path, metavar="IMAGE", help="with --layers: a case's channels, or one .npy"
    )
    parser.add_argument("--fold", metavar="FOLD", help="with --layers: default the first")
    parser.add_argument(
        "--layer-tolerance", type=float, metavar="F", help="with --layers: relative distance that counts as equal"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="with --layers: processor threads, 0 = all")
    parser.add_argument(
        "--devices", type=device_list, metavar="0,1", help="with --layers om: Ascend devices, default 0"
    )
    parser.add_argument("--bundle", type=Path, help="take label names from this bundle")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time")


def _register_ensemble(commands: Subparsers) -> None:
    parser = command(commands, "ensemble", ensemble, "average runs of several models from their saved probabilities")
    parser.add_argument("folders", type=Path, nargs="+", help="prediction folders written with --save-probabilities")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the label maps")
    parser.add_argument(
        "--bundle", type=Path, required=True, help="any of the models: its labels and file ending are used"
    )
    parser.add_argument("--save-probabilities", action="store_true", help="also write the averaged probabilities")
    parser.add_argument("--postprocess", action="store_true", help="apply the bundle's connected-component rules")
    parser.add_argument("--overwrite", action="store_true", help="redo finished cases")


def _register_report(commands: Subparsers) -> None:
    parser = command(
        commands,
        "report",
        report,
        "one self-contained HTML page from summaries, comparisons, performance records and pictures",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="JSON files, PNG pictures, or folders of them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .html file")
    parser.add_argument("--title", default="Inference report")
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help='what speed is compared with, e.g. "onnxruntime fp32"; default the first measured',
    )
    parser.add_argument("--bundle", type=Path, help="take label names from this bundle")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer compare``."""
    if options.layers:
        from offline_infer.commands.layers import compare_layers

        return compare_layers(options)
    if options.b is None:
        raise UsageError("name two prediction folders or files; or a bundle and two engines with --layers")
    from offline_infer.files import write_json
    from offline_infer.proof.comparison.label_maps import compare_folders
    from offline_infer.proof.comparison.text import below, comparison_text
    from offline_infer.proof.evaluation.outputs import refuse_replacing_inputs
    from offline_infer.proof.evaluation.pairs import label_files

    a, b = existing(options.a), existing(options.b)
    check_report_places(options.output)
    if options.output is not None:
        inputs = [file for side in (a, b) if side.is_dir() for file in label_files(side).values()]
        refuse_replacing_inputs([options.output], [*inputs, a, b])
    names = _label_names(options.bundle, a, b)
    result = compare_folders(a, b, jobs=options.jobs, tie_margin=options.tie_margin, sink=sink_for(options))
    say(options, comparison_text(result, names))
    if options.output is not None:
        write_json(options.output, {**result.to_json(), "label_names": names})
    total = len(result.cases) + len(result.failed) + len(result.only_in_a) + len(result.only_in_b)
    if options.fail_below is not None and (low := below(result, options.fail_below, names)):
        say(options, *(f"{case}: {reason}" for case, reason in low.items()))
        raise CasesFailed(low, total)
    if result.failed:
        raise CasesFailed(result.failed, total)
    return result.to_json()


def _label_names(bundle: Path | None, *sides: Path) -> dict[str, str]:
    """Label key -> name, from a bundle or from what stands beside either side's files: a ``dataset.json``, a run record."""
    from offline_infer.proof.evaluation.labels import label_key, labels_beside, labels_of_bundle, labels_of_run

    if bundle is not None:
        return {label_key(v): name for v, name in labels_of_bundle(_spec(bundle).labels).names.items()}
    for side in sides:
        folder = side if side.is_dir() else side.parent
        found = labels_beside(folder) or labels_of_run(folder)
        if found is not None:
            return {label_key(v): name for v, name in found.names.items()}
    return {}


def ensemble(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer ensemble``."""
    from offline_infer.proof.ensemble import ensemble_folders

    written = ensemble_folders(
        [existing(folder) for folder in options.folders],
        options.output,
        _spec(options.bundle),
        save_probabilities=options.save_probabilities,
        postprocess=options.postprocess,
        overwrite=options.overwrite,
        sink=sink_for(options),
    )
    say(options, f"{len(written)} cases written to {options.output}")
    return {"output": str(options.output), "cases": written}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer report``."""
    if options.output.is_dir():
        raise UsageError(f"{options.output} is a folder; name a file in it, such as {options.output / 'report.html'}")
    from offline_infer.proof.report.page import write_report

    check_report_places(options.output, inputs=options.runs)
    names = {}
    if options.bundle:
        names = {str(v): name for name, v in _spec(options.bundle).labels.names.items() if isinstance(v, int)}
    result = write_report(
        [existing(run) for run in options.runs],
        options.output,
        title=options.title,
        names=names,
        baseline=options.baseline,
    )
    say(options, f"written: {options.output}", *(f"not shown: {problem}" for problem in result.problems))
    return {"output": str(options.output), "problems": list(result.problems)}


def _spec(path: Path) -> Any:
    from offline_infer.tasks.opening import open_bundle

    return open_bundle(existing(path)).spec
