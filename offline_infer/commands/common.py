"""What several commands share: argument groups, sinks, number formats."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.printable import printable
from offline_infer.commands.remedies import advise
from offline_infer.errors import UsageError
from offline_infer.events import Event, Sink, silent

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.images.cases import CaseList
    from offline_infer.predict.model import Model
    from offline_infer.spec import BundleSpec
    from offline_infer.tasks.base import Task
    from offline_infer.tasks.results import OnExisting
    from offline_infer.tasks.settings import RunSettings
    from offline_infer.workflow import Outcome

Subparsers = Any


def command(commands: Subparsers, name: str, function: Any, summary: str, **settings: Any) -> argparse.ArgumentParser:
    """Add a command; its first help line is also its description."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, **settings)
    parser.set_defaults(function=function)
    return parser


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a network."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine", default="openvino", help="openvino (default, CPU), onnxruntime or om; exact names only"
    )
    group.add_argument("--device", default="cpu", help="cpu (default), cuda:0, npu:0")
    group.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "fp16", "int8"],
        help="arithmetic of the engine; int8 where 'quantize' has put it into the bundle",
    )
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all this process may use"
    )
    group.add_argument("--folds", "-f", nargs="+", metavar="FOLD", help="folds to average, default all of the bundle")
    group.add_argument("--cache", type=Path, metavar="DIR", help="folder for compiled graphs; 'none' switches it off")
    group.add_argument(
        "--shared-cache",
        action="store_true",
        help="trust compiled graphs that others of this machine left in that folder",
    )
    group.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the engine itself, repeatable; a wrong one lists the legal ones",
    )
    group.add_argument("--previous", type=Path, metavar="BUNDLE", help="first stage of a cascade")
    group.add_argument(
        "--unverified", action="store_true", help="run a precision even if its check against float32 has failed"
    )


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """How untrusted image files are read."""
    parser.add_argument(
        "--isolate-readers",
        choices=["yes", "no"],
        default="yes",
        help="read images in a child process with limits, so that a crash in a native library costs one case (default yes)",
    )


def readers(options: argparse.Namespace) -> AbstractContextManager[object]:
    """The context in which images are read, as :func:`add_reader_options` says."""
    from offline_infer.images.isolation import isolated_readers

    return isolated_readers() if options.isolate_readers == "yes" else nullcontext()


def add_tile_settings(parser: argparse.ArgumentParser) -> None:
    """Options that change which tiles are cut."""
    group = parser.add_argument_group("tiles")
    group.add_argument(
        "--step-size",
        "-step_size",
        type=step_size,
        metavar="F",
        help="tile step as a fraction of the patch, default the model's (0.5)",
    )
    group.add_argument(
        "--no-tta",
        "--disable_tta",
        action="store_true",
        help="no mirroring: up to eight times faster, slightly less accurate",
    )


def add_run_settings(parser: argparse.ArgumentParser) -> None:
    """Options that change how tiles are laid and averaged."""
    add_tile_settings(parser)
    group = parser.add_argument_group("averaging")
    group.add_argument(
        "--accumulate",
        default="framework",
        choices=["framework", "float32", "float16"],
        help="precision of the sums over tiles: framework (nnU-Net v1 float32, v2 float16, the default) or one of them",
    )
    group.add_argument("--no-postprocess", action="store_true", help="leave out the model's connected-component rules")


def run_settings(options: argparse.Namespace, save_probabilities: bool = False) -> RunSettings:
    """The settings named on the command line; those the command does not offer have their defaults."""
    from offline_infer.tasks.settings import RunSettings

    return RunSettings(
        step_size=getattr(options, "step_size", None),
        tta=not getattr(options, "no_tta", False),
        accumulate=getattr(options, "accumulate", "framework"),
        save_probabilities=save_probabilities,
        postprocess=not getattr(options, "no_postprocess", False),
        options=task_options(options),
    )


def add_task_options(parser: argparse.ArgumentParser, *tasks: str) -> None:
    """Options that only one kind of model has, one group a task; of these tasks, default all."""
    from offline_infer.tasks.extensions import add_flag
    from offline_infer.tasks.registry import TASKS, options_of

    for task in tasks or TASKS:
        group = parser.add_argument_group(f"models of the task {task!r}")
        for option in options_of(task):
            add_flag(group, option, "task_")


def task_options(options: argparse.Namespace) -> dict[str, str]:
    """The options of :func:`add_task_options` that were given."""
    return {
        name.removeprefix("task_"): value
        for name, value in vars(options).items()
        if name.startswith("task_") and value is not None
    }


def add_existing_options(parser: argparse.ArgumentParser) -> None:
    """What to do with results that are there already."""
    group = parser.add_argument_group("finished results").add_mutually_exclusive_group()
    group.add_argument(
        "--overwrite", action="store_true", help="make finished results anew; they are skipped otherwise"
    )
    group.add_argument(
        "--keep", action="store_true", help="skip finished results even if other settings or another model made them"
    )


def on_existing(options: argparse.Namespace) -> OnExisting:
    """The choice of :func:`add_existing_options`."""
    return "overwrite" if options.overwrite else "keep" if options.keep else "compare"


def chosen_folds(options: argparse.Namespace, bundle: Bundle) -> tuple[str, ...]:
    """The folds asked for, default all of the bundle.

    Raises:
        UsageError: the bundle does not have one of them.
    """
    unknown = [fold for fold in options.folds or () if fold not in bundle.folds]
    if unknown:
        raise UsageError(f"{options.bundle}: no fold {', '.join(unknown)}; this bundle has {', '.join(bundle.folds)}")
    return tuple(options.folds or bundle.folds)


def open_model(options: argparse.Namespace, device: str | None = None) -> Model:
    """The bundle named on the command line, ready to run."""
    from offline_infer.predict.model import load

    return load(
        existing(options.bundle),
        engine=options.engine,
        device=device if device is not None else device_name(options),
        precision=options.precision,
        threads=options.threads,
        folds=options.folds,
        previous=existing(options.previous) if options.previous else None,
        cache=cache_folder(options.cache),
        engine_options=engine_options(options),
        unverified=options.unverified,
        shared_cache=options.shared_cache,
    )


def device_name(options: argparse.Namespace) -> str:
    """The device named on the command line: ``--devices 0,1`` are several of ``--device npu``."""
    devices: tuple[int, ...] | None = getattr(options, "devices", None)
    return f"npu:{','.join(map(str, devices))}" if devices else str(options.device)


def tell_precision(model: Model, sink: Sink, stage: str) -> None:
    """One note about each thing a user should know of the precision that is running."""
    from offline_infer.events import Event

    model.tell_precision(lambda text: sink(Event("note", stage, data={"text": text})))


def engine_options(options: argparse.Namespace) -> dict[str, str]:
    """``--engine-option KEY=VALUE`` as a mapping.

    Raises:
        UsageError: no ``=`` in it.
    """
    pairs = [text.partition("=") for text in options.engine_option]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(f"--engine-option {key!r}: write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def cache_folder(chosen: Path | None) -> Path | None:
    """Where compiled graphs are kept: what was asked for, or the user's cache folder."""
    if chosen is not None:
        return None if str(chosen) == "none" else chosen
    base = os.environ.get("OFFLINE_INFER_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if os.environ.get("OFFLINE_INFER_CACHE"):
        return Path(str(base))
    return (Path(base) if base else Path.home() / ".cache") / "offline_infer" / "compiled"


def assignments(texts: list[str]) -> dict[str, str]:
    """``--set NAME=VALUE`` texts as a mapping; dashes in a name become underscores.

    Raises:
        UsageError: one is not of that form, or a name is given twice.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not name or name in given:
            raise UsageError(f"--set {text!r}: expected NAME=VALUE, each name once")
        given[name] = value
    return given


def listed_cases(task: Task, source: Path, spec: BundleSpec, sink: Sink) -> CaseList:
    """The cases of an input that must exist; what was resolved while listing them is told before any work.

    Raises:
        UsageError: the input does not exist, or holds no case.
    """
    found = task.list_cases(existing(source), spec)
    for text in found.notes:
        sink(Event("note", "list", data={"text": text}))
    return found


_REPORT_ENDINGS = (".csv", ".htm", ".html", ".json", ".md", ".svg", ".txt")
_FOREIGN_RECORDS = ("dataset.json", "plans.json", "dataset_fingerprint.json", "splits_final.json")
"""Files beside images and label maps that other programs wrote."""


def existing(path: Path) -> Path:
    """The path, which must exist.

    Raises:
        UsageError: it does not.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return path


def refuse_replacing(output: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a report over something that is read: one of the command's own inputs, or a part of a bundle.

    Raises:
        UsageError: it would be replaced; the message names it.
    """
    if not output.is_file():
        return
    from offline_infer.bundles.bundle import BUNDLE_FILE

    if any(path.is_file() and path.samefile(output) for path in inputs):
        raise UsageError(f"{output} is one of the files to read; name another file to write")
    folder = output.resolve().parent
    if any((place / BUNDLE_FILE).is_file() for place in (folder, folder.parent)):
        raise UsageError(f"{output} is part of a bundle; name another file to write")


def check_report_places(*places: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Make sure, before any work, that a report replaces nothing but an older report.

    Args:
        places: files that will be written; None for one that is not wanted.
        inputs: files that the command reads.

    Raises:
        UsageError: there is a file of another kind, such as an image, a graph or the record of a run; or one of the inputs.
    """
    from offline_infer.folders import RECORDS
    from offline_infer.tasks.records import MANIFEST

    read = list(inputs)
    for place in places:
        if place is None or not place.exists() or place.is_dir():
            continue
        refuse_replacing(place, read)
        there = place.resolve()
        own = there.suffix.lower() in _REPORT_ENDINGS and there.name not in (MANIFEST, *_FOREIGN_RECORDS)
        if not own or RECORDS in there.parts:
            raise UsageError(f"{place} is there, and is no report; name another file to write")


def step_size(text: str) -> float:
    """argparse type: a fraction in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 1")
    return value


def share(text: str) -> float:
    """argparse type: a fraction in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
    return value


def byte_size(text: str) -> int:
    """argparse type: ``20GB``, ``512MiB``, ``1000000``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 20GB, 512MiB or a number of bytes")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def device_list(text: str) -> tuple[int, ...]:
    """argparse type: ``0,1,2,3``."""
    try:
        devices = tuple(int(part) for part in text.split(","))
    except ValueError:
        devices = ()
    if not devices or min(devices) < 0 or len(set(devices)) != len(devices):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different device numbers such as 0,1,2,3")
    return devices


def sink_for(options: argparse.Namespace) -> Sink:
    """A bar on a terminal, short lines elsewhere, JSON lines for programs, nothing with --quiet; on standard error."""
    if options.quiet:
        return silent
    from offline_infer.commands.console import json_lines, plain_lines, terminal

    if options.progress == "json" or (options.json and options.progress == "auto"):
        return json_lines(sys.stderr)
    return terminal() if sys.stderr.isatty() and options.progress == "auto" else plain_lines(sys.stderr)


def show_outcome(options: argparse.Namespace, outcome: Outcome) -> dict[str, Any]:
    """Print and return the result of the whole route; raise if cases failed."""
    from offline_infer.workflow import raise_failures

    if outcome.table:
        say(options, outcome.table, "")
    say(
        options,
        f"bundle       {outcome.bundle}",
        f"predictions  {outcome.predictions}",
        *([f"picture      {outcome.picture}"] if outcome.picture else []),
        f"seconds      {', '.join(f'{name} {value:g}' for name, value in outcome.seconds.items())}",
    )
    raise_failures(outcome)
    return {
        "bundle": str(outcome.bundle),
        "predictions": str(outcome.predictions),
        "picture": str(outcome.picture) if outcome.picture else None,
        "seconds": outcome.seconds,
        "summary": outcome.summary,
    }


def say(options: argparse.Namespace, *lines: str) -> None:
    """Print for a person, remedy codes as options; nothing when a machine listens."""
    if not options.json:
        for line in lines:
            print(printable(advise(line)))


def say_cases(options: argparse.Namespace, *lines: str) -> None:
    """Print what became of each case, unless the reader has just been told: one terminal or one log takes both streams."""
    if options.quiet or options.progress == "json" or not _streams_meet():
        say(options, *lines)


def _streams_meet() -> bool:
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # a stream that is no file, or a closed one
        return False


def verified(bundle: Bundle) -> dict[str, Any]:
    """Graph file -> what each engine's comparison with the checkpoint's network gave."""
    from offline_infer.bundles.verification_record import comparisons

    return {graph.file: [entry.to_json() for entry in comparisons(graph.verification)] for graph in bundle.spec.graphs}
