"""The command ``evaluate``: what the results are, and so how they are scored, is the business of their task."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import Subparsers, check_report_places, command, existing, say, sink_for
from offline_infer.errors import CasesFailed

if TYPE_CHECKING:
    from offline_infer.spec import BundleSpec
    from offline_infer.tasks.base import Task

_PREFIX = "scored_"


def register(commands: Subparsers) -> None:
    """Add this command to the parser."""
    parser = command(
        commands, "evaluate", evaluate, "score results against references; label maps as nnU-Net's own summary.json"
    )
    parser.add_argument("predictions", type=Path, help="folder of results, or one file")
    parser.add_argument("references", type=Path, help="folder of references, or one file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: summary.json beside the predictions"
    )
    parser.add_argument("--bundle", type=Path, help="what it is a result of, and its labels, from this bundle")
    parser.add_argument(
        "--task", help="kind of the results, default that of the bundle or of the run's record, else volume"
    )
    parser.add_argument("--allow-missing", action="store_true", help="references without a prediction are left out")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also the table as CSV")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time, default 1")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the images, to be shown behind the errors found")
    _add_task_options(parser)


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    from offline_infer.tasks.extensions import add_flag
    from offline_infer.tasks.registry import TASKS, evaluation_options_of

    for task in TASKS:
        group = parser.add_argument_group(f"results of the task {task!r}")
        for option in evaluation_options_of(task):
            add_flag(group, option, _PREFIX, switches=True)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer evaluate``."""
    from offline_infer.folders import clear_for
    from offline_infer.tasks.base import EvaluationRequest

    predictions, references = existing(options.predictions), existing(options.references)
    folder = predictions if predictions.is_dir() else predictions.parent
    output = options.output if options.output is not None else folder / "summary.json"
    check_report_places(output, options.csv)
    if options.output is None:  # one that was named is cleared for by the command line
        clear_for(output)
    task, spec = _task_of(options, folder)
    images = existing(options.images) if options.images is not None else None
    request = EvaluationRequest(predictions, references, output, _given(options), images)
    scores = task.evaluate(request, spec, sink_for(options))
    say(options, scores.table(), *([f"written: {output}"] if scores.summary is not None else []))
    if scores.failed:
        raise CasesFailed(scores.failed, scores.total)
    return {"file": str(output), **scores.to_json()}


def _task_of(options: argparse.Namespace, folder: Path) -> tuple[Task, BundleSpec | None]:
    """Whose results these are, and the model's specification where a bundle is named."""
    from offline_infer.tasks.opening import open_bundle
    from offline_infer.tasks.records import task_of_results
    from offline_infer.tasks.registry import DEFAULT_TASK, get_task

    if options.bundle is not None:
        spec = open_bundle(existing(options.bundle)).spec
        return get_task(spec.task), spec
    return get_task(options.task or task_of_results(folder) or DEFAULT_TASK), None


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by their names; a task refuses those that are not its own."""
    given: dict[str, Any] = {name: getattr(options, name) for name in ("allow_missing", "csv", "jobs")}
    given |= {name.removeprefix(_PREFIX): value for name, value in vars(options).items() if name.startswith(_PREFIX)}
    return {name: value for name, value in given.items() if value is not None and value is not False}
