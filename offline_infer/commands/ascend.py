"""Commands of the Ascend route beside compile and infer: adopt-outputs, guide-tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import (
    Subparsers,
    check_report_places,
    command,
    existing,
    say,
)


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(
        commands,
        "adopt-outputs",
        adopt,
        "take over outputs a tool wrote by hand from the lists or bins of a work folder",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path, help="folder the tool wrote into, e.g. result")
    parser.add_argument("--fold", help="whose network answered, where the work folder has several")
    parser.add_argument(
        "--drop-redundant",
        action="store_true",
        help="delete outputs inference does not need, of tiles whose needed ones are there; also while the tool runs",
    )

    parser = command(
        commands,
        "guide-tables",
        guide_tables,
        "the published guide's two final tables, made from records: Dice and rates",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=FILE",
        help="a summary.json; or NAME:1=95.80,2=65.60 for figures that are only published; repeatable",
    )
    parser.add_argument(
        "--performance",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=PATH",
        help="perf/performance.json of infer, or a folder of a tool's own files; repeatable",
    )
    parser.add_argument(
        "--baseline",
        type=pair,
        metavar="NAME=FILE",
        help="JSON of onnx_infer.sh --json or benchmark --json, or seconds",
    )
    parser.add_argument("--soc", help="chip, for the per-card rule, where the figures do not name it")
    parser.add_argument("--bundle", type=Path, help="take the labels' names from this bundle")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the tables, as Markdown")


def adopt(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer adopt-outputs``."""
    from offline_infer.staging.adopting import adopt_outputs
    from offline_infer.tasks.opening import open_bundle

    report = adopt_outputs(
        open_bundle(existing(options.bundle)),
        existing(options.work),
        existing(options.results),
        fold=options.fold,
        drop_redundant=options.drop_redundant,
    )
    say(
        options,
        f"{report.outputs} outputs taken over, of {report.needed} that are needed; "
        + (f"called {report.numbering} ({report.evidence})" if report.numbering else report.evidence),
        *([f"{report.dropped} outputs that inference does not need were deleted"] if report.dropped else []),
        *([f"{report.other} outputs that inference does not need were left where they are"] if report.other else []),
        *(f"{name}: incomplete, or of another model" for name in report.wrong_size[:5]),
        *report.notes,
    )
    return report.to_json()


def guide_tables(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer guide-tables``."""
    from offline_infer.ascend.guide_tables import read_tables
    from offline_infer.files import write_text

    named = [*options.precision, *options.performance, *([options.baseline] if options.baseline else [])]
    check_report_places(options.output, inputs=[Path(words) for _, words in named])
    tables = read_tables(
        options.precision,
        options.performance,
        options.baseline,
        soc=options.soc,
        names=_label_names(options.bundle) if options.bundle else None,
    )
    text = tables.to_text()
    if options.output:
        write_text(options.output, text + "\n")
    say(options, text)
    return tables.to_json()


def pair(text: str) -> tuple[str, str]:
    """argparse type: ``NAME=FILE``, or ``NAME:figures``.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    for sign in (":", "="):
        name, found, rest = text.partition(sign)
        if found and name and rest and "=" not in name:
            return name, rest
    raise argparse.ArgumentTypeError(f"{text!r}: write NAME=FILE")


def _label_names(bundle: Path) -> dict[str, str]:
    from offline_infer.tasks.opening import open_bundle

    return {str(value): name for value, name in open_bundle(existing(bundle)).spec.label_names().items()}
