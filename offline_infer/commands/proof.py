"""Commands that judge results: evaluate, compare, ensemble, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import Subparsers, command, existing, say, share, sink_for
from offline_infer.errors import CasesFailed, UsageError

if TYPE_CHECKING:
    from offline_infer.proof.evaluation.options import Evaluation, EvaluationOptions


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
    parser.add_argument(
        "--lesions",
        nargs="*",
        metavar="L",
        help="also match lesions (connected components): found, missed, invented; of these labels, default all",
    )
    parser.add_argument(
        "--lesion-iou",
        type=share,
        default=0.1,
        metavar="F",
        help="overlap (IoU) above which lesions match, default 0.1",
    )
    parser.add_argument(
        "--lesion-min-ml", type=float, default=0.0, metavar="V", help="smaller lesions are left out, default 0 mL"
    )
    parser.add_argument(
        "--worst", type=int, default=3, metavar="N", help="slices of the N worst cases for the report, default 3"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to show behind those slices")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also the Dice table as CSV")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time")

    parser = command(
        commands,
        "compare",
        compare,
        "two prediction folders, voxel by voxel: agreement, and ties told from bugs; with --layers, two engines inside a graph",
    )
    parser.add_argument(
        "a", type=Path, help="a folder of label maps (and .npz probabilities), or one file; a bundle with --layers"
    )
    parser.add_argument("b", type=Path, nargs="?", help="the other one, e.g. the framework's own predictions")
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
        help="compare tensor by tensor inside a bundle's graph, e.g. --layers openvino:bf16 onnxruntime:fp32",
    )
    parser.add_argument(
        "--input", nargs="+", type=Path, metavar="IMAGE", help="with --layers: a case's channels, or one .npy"
    )
    parser.add_argument("--fold", metavar="FOLD", help="with --layers: default the first")
    parser.add_argument(
        "--layer-tolerance", type=float, metavar="F", help="with --layers: relative distance that counts as equal"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="with --layers: processor threads, 0 = all")
    parser.add_argument("--bundle", type=Path, help="take label names from this bundle")
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
    from offline_infer.proof.evaluation.outputs import refuse_replacing_inputs
    from offline_infer.proof.evaluation.pairs import label_files
    from offline_infer.proof.evaluation.tables import write_csv

    predictions, references = existing(options.predictions), existing(options.references)
    folder = predictions if predictions.is_dir() else predictions.parent
    output = options.output if options.output is not None else folder / "summary.json"
    if options.csv is not None:
        inputs = [file for side in (predictions, references) if side.is_dir() for file in label_files(side).values()]
        refuse_replacing_inputs([options.csv], [*inputs, predictions, references])
    result = run(predictions, references, _evaluation_options(options), output=output, sink=sink_for(options))
    _show_evaluation(options, result, output)
    if result.summary is not None and options.csv is not None:
        write_csv(result.summary, options.csv)
    if result.failed:
        raise CasesFailed(result.failed, result.total)
    shown = {"summary": result.summary, "surface": result.surface, "details": result.details}
    return {"file": str(output), **shown, "missing": list(result.missing)}


def _evaluation_options(options: argparse.Namespace) -> EvaluationOptions:
    from offline_infer.proof.evaluation.labels import EvaluatedLabels, labels_of_bundle, parse_label
    from offline_infer.proof.evaluation.lesions import LesionOptions
    from offline_infer.proof.evaluation.options import EvaluationOptions

    labels: EvaluatedLabels | list[Any] | None = None
    if options.labels:
        labels = [parse_label(text) for text in options.labels]
    elif options.bundle:
        labels = labels_of_bundle(_spec(options.bundle).labels, options.format)
    lesions = None
    if options.lesions is not None:
        chosen = tuple(parse_label(text) for text in options.lesions) or None
        lesions = LesionOptions(options.lesion_iou, options.lesion_min_ml, chosen)
    return EvaluationOptions(
        labels=labels,
        ignore=options.ignore,
        format=options.format,
        allow_missing=options.allow_missing,
        jobs=options.jobs,
        surface=options.surface,
        lesions=lesions,
        worst=options.worst,
        images=options.images,
    )


def _show_evaluation(options: argparse.Namespace, result: Evaluation, output: Path) -> None:
    """Print Dice per case and label, surface distances and lesions."""
    from offline_infer.proof.evaluation.outputs import lesion_rows
    from offline_infer.proof.evaluation.tables import dice_table, format_table, surface_table

    names = {str(key): name for key, name in result.labels.names.items()}
    if result.summary is not None:
        say(options, format_table(dice_table(result.summary), names=names))
    if result.surface is not None:
        say(options, "", "Surface distances, means over the cases, mm (NSD: a share):")
        say(options, format_table(surface_table(result.surface, names), digits=3))
    rows = lesion_rows(result.details or {}, names)
    if rows:
        say(
            options,
            "",
            f"Lesions matched with an overlap (IoU) above {options.lesion_iou:g}:",
            format_table(rows, digits=3),
        )
    if result.summary is not None:
        say(options, f"written: {output}")


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
    """Label key -> name, from a bundle or from a ``dataset.json`` beside either side's files."""
    from offline_infer.proof.evaluation.labels import label_key, labels_of_bundle, labels_of_dataset

    if bundle is not None:
        return {label_key(v): name for v, name in labels_of_bundle(_spec(bundle).labels).names.items()}
    for side in sides:
        found = (side if side.is_dir() else side.parent) / "dataset.json"
        if found.is_file():
            return {label_key(v): name for v, name in labels_of_dataset(found).names.items()}
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
