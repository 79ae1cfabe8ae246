"""The command that describes the labels of a cohort."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import Subparsers, check_report_places, command, existing, say, sink_for
from offline_infer.errors import CasesFailed, UsageError


def register(commands: Subparsers) -> None:
    """Add this command to the parser."""
    parser = command(
        commands,
        "statistics",
        statistics,
        "volume, place, extent and intensity of every label of a cohort, as CSV and JSON",
    )
    parser.add_argument("labels", type=Path, help="folder of label maps, or one file")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images, for mean and percentiles of intensity")
    parser.add_argument("--channel", type=int, default=0, metavar="N", help="number at the end of an image's name")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="statistics.csv or .json; the other is written beside it"
    )
    parser.add_argument("--labels-wanted", nargs="+", type=int, metavar="L", help="default: those found")
    parser.add_argument("--bundle", type=Path, help="take label names from this bundle")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time, default 1")


def statistics(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer statistics``."""
    from offline_infer.proof.evaluation.outputs import refuse_replacing_inputs
    from offline_infer.proof.statistics import find_statistics_cases, folder_statistics, write_statistics

    labels, images = existing(options.labels), existing(options.images) if options.images else None
    output = options.output or (labels if labels.is_dir() else labels.parent) / "statistics.csv"
    if output.suffix not in (".csv", ".json"):
        raise UsageError(f"{output}: name a file that ends with .csv or .json")
    files = (output.with_suffix(".csv"), output.with_suffix(".json"))
    check_report_places(*files)
    cases = find_statistics_cases(labels, images, options.channel)
    refuse_replacing_inputs(files, [case.labels for case in cases])
    found = folder_statistics(
        labels,
        images,
        channel=options.channel,
        wanted=options.labels_wanted,
        jobs=options.jobs,
        sink=sink_for(options),
    )
    names = _names(options.bundle, labels)
    record = found.to_json(names)
    write_statistics(output.with_suffix(""), found, names)
    say(options, f"{record['cases']} cases, {len(found.rows)} rows", *(f"written: {path}" for path in files))
    if found.failed:
        raise CasesFailed(found.failed, found.total)
    return {"csv": str(files[0]), "json": str(files[1]), **record}


def _names(bundle: Path | None, labels: Path) -> dict[int, str]:
    """Label -> name, from a bundle, or from the ``dataset.json`` or the run record beside the label maps."""
    from offline_infer.proof.evaluation.labels import labels_beside, labels_of_run

    if bundle is not None:
        from offline_infer.tasks.opening import open_bundle

        return open_bundle(existing(bundle)).spec.label_names()
    folder = labels if labels.is_dir() else labels.parent
    found = labels_beside(folder) or labels_of_run(folder)
    return {} if found is None else {value: name for value, name in found.names.items() if isinstance(value, int)}
