"""Commands that judge results: evaluate, compare, ensemble, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import Subparsers, command, existing, say, sink_for
from offline_infer.errors import CasesFailed


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(
        commands, "evaluate", evaluate, "Dice and nnU-Net's other metrics, written as nnU-Net's own summary.json"
    )
    parser.add_argument("predictions", type=Path, help="folder of label maps, or one file")
    parser.add_argument("references", type=Path, help="folder of reference label maps, or one file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: summary.json beside the predictions"
    )
    parser.add_argument(
        "--format", default="nnunet-v2", choices=["nnunet-v2", "nnunet-v1"], help="layout of summary.json"
    )
    parser.add_argument("--bundle", type=Path, help="take labels, regions and ignore label from this bundle")
    parser.add_argument("--labels", nargs="+", metavar="L", help="labels, e.g. 1 2; a region is written 1,2")
    parser.add_argument("--ignore", type=int, metavar="L", help="label of the references that is left out")
    parser.add_argument("--allow-missing", action="store_true", help="references without a prediction are left out")
    parser.add_argument(
        "--surface", action="store_true", help="also surface distances (HD95, ASSD, NSD), in surface.json"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also the Dice table as CSV")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time")

    parser = command(
        commands, "compare", compare, "two prediction folders, voxel by voxel: agreement, and ties told from bugs"
    )
    parser.add_argument("a", type=Path, help="a folder of label maps (and .npz probabilities), or one file")
    parser.add_argument("b", type=Path, help="the other one, e.g. the framework's own predictions")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the whole comparison as JSON")
    parser.add_argument(
        "--tie-margin", type=float, default=1e-3, metavar="P", help="a narrower margin between the top classes is a tie"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time")

    parser = command(commands, "ensemble", ensemble, "average runs of several models from their saved probabilities")
    parser.add_argument("folders", type=Path, nargs="+", help="prediction folders written with --save-probabilities")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the label maps")
    parser.add_argument(
        "--bundle", type=Path, required=True, help="any of the models: its labels and file ending are used"
    )
    parser.add_argument("--save-probabilities", action="store_true", help="also write the averaged probabilities")
    parser.add_argument("--postprocess", action="store_true", help="apply the bundle's connected-component rules")
    parser.add_argument("--overwrite", action="store_true", help="redo finished cases")

    parser = command(
        commands,
        "report",
        report,
        "one self-contained HTML page from summaries, comparisons, performance records and pictures",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="JSON files, PNG pictures, or folders of them")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .html file")
    parser.add_argument("--title", default="Inference report")
    parser.add_argument("--bundle", type=Path, help="take label names from this bundle")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer evaluate``."""
    from offline_infer.proof.evaluation.label_maps import evaluate as run
    from offline_infer.proof.evaluation.labels import EvaluatedLabels, labels_of_bundle, parse_label
    from offline_infer.proof.evaluation.tables import dice_table, format_table, write_csv

    labels: EvaluatedLabels | list[Any] | None = None
    if options.labels:
        labels = [parse_label(text) for text in options.labels]
    elif options.bundle:
        labels = labels_of_bundle(_spec(options.bundle).labels, options.format)
    predictions = existing(options.predictions)
    folder = predictions if predictions.is_dir() else predictions.parent
    output = options.output if options.output is not None else folder / "summary.json"
    result = run(
        predictions,
        existing(options.references),
        labels=labels,
        ignore=options.ignore,
        format=options.format,
        output=output,
        allow_missing=options.allow_missing,
        jobs=options.jobs,
        surface=options.surface,
        sink=sink_for(options),
    )
    names = {str(key): name for key, name in labels.names.items()} if isinstance(labels, EvaluatedLabels) else None
    if result.summary is not None:
        say(options, format_table(dice_table(result.summary), names=names), f"written: {output}")
        if options.csv is not None:
            write_csv(result.summary, options.csv)
    if result.failed:
        raise CasesFailed(result.failed, result.total)
    return {"file": str(output), "summary": result.summary, "missing": list(result.missing)}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer compare``."""
    from offline_infer.files import write_json
    from offline_infer.proof.comparison.label_maps import compare_folders

    result = compare_folders(
        existing(options.a),
        existing(options.b),
        jobs=options.jobs,
        tie_margin=options.tie_margin,
        sink=sink_for(options),
    )
    say(options, result.to_text())
    if options.output is not None:
        write_json(options.output, result.to_json())
    if result.failed:
        raise CasesFailed(result.failed, len(result.cases) + len(result.failed))
    return result.to_json()


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
    from offline_infer.proof.report.page import write_report

    names = {}
    if options.bundle:
        names = {str(v): name for name, v in _spec(options.bundle).labels.names.items() if isinstance(v, int)}
    result = write_report([existing(run) for run in options.runs], options.output, title=options.title, names=names)
    say(options, f"written: {options.output}")
    return {"output": str(options.output), "problems": list(result.problems)}


def _spec(path: Path) -> Any:
    from offline_infer.bundles.bundle import Bundle

    return Bundle.load(existing(path)).spec
