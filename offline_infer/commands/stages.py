"""The stages of a staged run, one command each: preprocess, info, infer, clean, postprocess; and all at once, in rounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import (
    Subparsers,
    add_engine_options,
    add_existing_options,
    add_reader_options,
    add_run_settings,
    add_task_options,
    add_tile_settings,
    byte_size,
    chosen_folds,
    command,
    device_list,
    existing,
    listed_cases,
    on_existing,
    open_model,
    readers,
    run_settings,
    say,
    say_cases,
    sink_for,
    tell_precision,
)
from offline_infer.errors import UsageError

if TYPE_CHECKING:
    from offline_infer.tasks.reports import RunReport

TOOLS = ("benchmark", "msame", "ais_bench")


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    _register_preprocess(commands)
    _register_info(commands)
    _register_infer(commands)
    _register_clean(commands)
    _register_postprocess(commands)
    _register_staged(commands)
    _register_import_tiles(commands)


def _register_preprocess(commands: Subparsers) -> None:
    parser = command(commands, "preprocess", preprocess, "cut cases into .bin tiles in a work folder")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", type=Path, help="an image or a folder of cases, as for predict")
    parser.add_argument("work", type=Path, help="work folder to make or to go on with")
    add_tile_settings(parser)
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="folds that will be run, default all of the bundle")
    _add_tile_dtype(parser)
    _add_previous_predictions(parser)
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    add_reader_options(parser)
    add_task_options(parser)


def _register_info(commands: Subparsers) -> None:
    parser = command(commands, "info", info, "list the tiles of a work folder, whole and in shards for several devices")
    parser.add_argument("work", type=Path)
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="ordered, non-overlapping, of equal work")
    parser.add_argument("--format", default="benchmark", choices=["benchmark", "jsonl"], help="vendor's lines or JSON")
    parser.add_argument("--relative", action="store_true", help="paths relative to the current folder")
    parser.add_argument(
        "--all-shape",
        metavar="CASE",
        help="also write info/all_shape.txt of that case, for the published merging script",
    )


def _register_infer(commands: Subparsers) -> None:
    parser = command(commands, "infer", infer, "run the network over the tiles of a work folder")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("work", type=Path)
    add_engine_options(parser)
    _add_tool_options(parser)


def _register_clean(commands: Subparsers) -> None:
    parser = command(
        commands, "clean", clean, "delete outputs inference does not need; only says what it would do unless --apply"
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--apply", action="store_true", help="really delete")


def _register_postprocess(commands: Subparsers) -> None:
    parser = command(commands, "postprocess", postprocess, "stitch the outputs of a work folder into label maps")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path, help="folder for the label maps")
    parser.add_argument("--save-probabilities", action="store_true", help="as for predict")
    parser.add_argument("--no-postprocess", action="store_true", help="leave out the connected-component rules")
    parser.add_argument(
        "--accumulate", default="framework", choices=["framework", "float32", "float16"], help="as for predict"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads, 0 = all")
    add_existing_options(parser)
    add_task_options(parser)


def _register_staged(commands: Subparsers) -> None:
    parser = command(
        commands, "staged", staged, "the whole staged route on a disk budget: cut, infer, merge, delete, in rounds"
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", type=Path, help="an image or a folder of cases, as for predict")
    parser.add_argument("work", type=Path, help="work folder; everything temporary lies in it")
    parser.add_argument("output", type=Path, help="folder for the label maps")
    parser.add_argument(
        "--scratch", type=byte_size, required=True, metavar="20GB", help="disk budget of the work folder"
    )
    add_engine_options(parser)
    add_run_settings(parser)
    _add_tool_options(parser)
    _add_tile_dtype(parser)
    _add_previous_predictions(parser)
    parser.add_argument("--save-probabilities", action="store_true", help="as for predict")
    add_existing_options(parser)
    add_reader_options(parser)
    add_task_options(parser)


def _register_import_tiles(commands: Subparsers) -> None:
    parser = command(
        commands, "import-tiles", import_tiles, "take over tiles and results made by the published Ascend scripts"
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path, help="the image the tiles were cut from")
    parser.add_argument("shapes", type=Path, help="all_shape.txt")
    parser.add_argument("work", type=Path, help="work folder to make or to add to; postprocess then stitches it")
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="folder of input tiles, to be compared with ours")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder of the tool's output files")
    parser.add_argument("--tool", choices=[*TOOLS, "infer_py"], help="who wrote the results, where names leave it open")
    parser.add_argument("--fold", default="0", help="whose network answered, default 0")
    parser.add_argument("--copy", action="store_true", help="copy results instead of hard-linking them")
    add_tile_settings(parser)


def preprocess(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer preprocess``."""
    from offline_infer.preprocess import PreprocessJob, preprocess_stage
    from offline_infer.tasks.opening import open_bundle
    from offline_infer.tasks.registry import get_task

    bundle = open_bundle(existing(options.bundle))
    sink = sink_for(options)
    found = listed_cases(get_task(bundle.spec.task), options.input, bundle.spec, sink)
    job = PreprocessJob(
        found.cases,
        options.work,
        chosen_folds(options, bundle),
        dtype=options.dtype,
        problems=found.problems,
        previous_folder=existing(options.previous_predictions) if options.previous_predictions else None,
        threads=options.threads,
    )
    with readers(options):
        report = preprocess_stage(bundle.spec, job, run_settings(options), sink)
    return _stage_result(options, report)


def info(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer info``."""
    from offline_infer.staging.lists import write_all_shape, write_info

    files = write_info(
        existing(options.work), shards=options.shards, format=options.format, absolute=not options.relative
    )
    shards = [f"{path}: {count} tiles" for path, count in zip(files.shards, files.counts, strict=True)]
    say(options, f"{files.whole}", *shards)
    if options.all_shape is not None:
        say(options, f"{write_all_shape(options.work, options.all_shape)}")
    return {
        "whole": str(files.whole),
        "shards": [str(path) for path in files.shards],
        "counts": list(files.counts),
    }


def infer(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer infer``."""
    if options.tool:
        from offline_infer.ascend.runs.device_runs import run_tool
        from offline_infer.tasks.opening import open_bundle

        run = run_tool(open_bundle(existing(options.bundle)), existing(options.work), **_tool_settings(options))
        say(options, *_device_lines(run.to_json()))
        return run.to_json()
    from offline_infer.staging.inferring import infer_stage

    sink = sink_for(options)
    with open_model(options) as model:
        sessions = dict(zip(model.folds, model.sessions, strict=True))
        tell_precision(model, sink, "infer")
        report = infer_stage(existing(options.work), sessions, spec=model.spec, sink=sink)
    return _stage_result(options, report)


def clean(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer clean``."""
    from offline_infer.staging.clean import clean_outputs

    report = clean_outputs(existing(options.work), apply=options.apply)
    verb = "freed" if report.applied else "would free"
    waiting = f"; {report.waiting} too young or incomplete, left for later" if report.waiting else ""
    say(
        options,
        f"{verb} {report.bytes} bytes in {report.files} files; {report.kept} outputs kept{waiting}",
        *report.notes,
    )
    return report.to_json()


def postprocess(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer postprocess``."""
    from offline_infer.postprocess import PostprocessJob, postprocess_stage
    from offline_infer.tasks.opening import open_bundle

    job = PostprocessJob(existing(options.work), options.output, on_existing(options), options.threads)
    spec = open_bundle(existing(options.bundle)).spec
    report = postprocess_stage(spec, job, run_settings(options, options.save_probabilities), sink_for(options))
    return _stage_result(options, report)


def staged(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer staged``."""
    from offline_infer.ascend.runs.device_runs import DeviceRunner
    from offline_infer.predict.provenance import Provenances
    from offline_infer.staging.inferring import infer_stage
    from offline_infer.staging.rounds import RoundsJob, run_in_rounds
    from offline_infer.tasks.opening import open_bundle
    from offline_infer.tasks.registry import get_task

    bundle = open_bundle(existing(options.bundle))
    spec, sink, folds = bundle.spec, sink_for(options), chosen_folds(options, bundle)
    found = listed_cases(get_task(spec.task), options.input, spec, sink)
    with ExitStack() as stack:
        if options.tool:
            runner = DeviceRunner(bundle, **_tool_settings(options))
            answer: Callable[[Path], object] = runner.run
            answered_by = {"engine": options.tool, "device": "npu", "precision": runner.precision(folds)}
            compiled = {fold: runner.compiled(fold).record.sha256 for fold in folds}
            redundant = runner.writes_redundant(folds)
        else:
            model = stack.enter_context(open_model(options))
            sessions = dict(zip(model.folds, model.sessions, strict=True))
            tell_precision(model, sink, "infer")
            answer = partial(infer_stage, sessions=sessions, spec=spec, sink=sink)
            facts = Provenances(model, run_settings(options), None).common
            answered_by = {name: facts[name] for name in ("engine", "device", "precision")}
            compiled = facts["compiled"]
            redundant = False
        job = RoundsJob(
            cases=found.cases,
            problems=found.problems,
            work=options.work,
            output=options.output,
            scratch_bytes=options.scratch,
            infer=answer,
            answered_by=answered_by,
            compiled=compiled,
            all_outputs=redundant,
            previous_folder=existing(options.previous_predictions) if options.previous_predictions else None,
            existing=on_existing(options),
            threads=options.threads,
            source=options.input,
        )
        settings = run_settings(options, options.save_probabilities)
        stack.enter_context(readers(options))
        report = run_in_rounds(spec, job, settings, folds, dtype=options.dtype, sink=sink)
    say(options, f"scratch: peak {report.facts.get('peak_bytes')} of {options.scratch} bytes")
    return _stage_result(options, report)


def import_tiles(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer import-tiles``."""
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.bundles.opening import checked_graph
    from offline_infer.spec import VolumeSpec
    from offline_infer.staging.legacy_import import LegacyFolders, import_case
    from offline_infer.tasks.registry import get_task

    bundle = Bundle.load(existing(options.bundle))
    spec = bundle.spec
    assert isinstance(
        spec, VolumeSpec
    )  # the published scripts know nothing else, and neither does Bundle.load by itself
    found = get_task(spec.task).list_cases(existing(options.image), spec)
    if len(found.cases) != 1:
        raise UsageError(
            f"{options.image}: {len(found.cases)} cases; the published scripts work on one case at a time, name its image"
        )
    folders = LegacyFolders(
        shapes=existing(options.shapes),
        tiles=existing(options.tiles) if options.tiles else None,
        results=existing(options.results) if options.results else None,
        tool=options.tool,
        copy=options.copy,
    )
    report = import_case(
        spec,
        found.cases[0],
        options.work,
        folders,
        fold=options.fold,
        settings=run_settings(options),
        graph=checked_graph(bundle, options.fold) if options.results else None,
    )
    whose = f" of {report.tool} ({report.evidence})" if report.tool else ""
    say(options, f"{report.case}: {report.items} tiles, {report.outputs} results{whose}", *report.notes)
    return report.to_json()


def _add_tool_options(parser: argparse.ArgumentParser) -> None:
    tool = parser.add_argument_group("external tool (Ascend)")
    tool.add_argument("--tool", choices=TOOLS, help="run this tool on OM models instead of an engine")
    tool.add_argument("--tool-path", type=Path, metavar="PATH", help="the program, or the folder it is in")
    tool.add_argument(
        "--devices", type=device_list, metavar="0,1,2,3", help="one session a device, default 0; also for --engine om"
    )
    tool.add_argument("--soc", help="chip, where the bundle has OMs for several")
    tool.add_argument(
        "--stall-timeout", type=float, default=600.0, metavar="S", help="a session silent for so long is ended"
    )
    tool.add_argument(
        "--drop-redundant",
        action="store_true",
        help="delete outputs inference does not need as soon as they are complete",
    )


def _add_tile_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float16"], help="of the tiles; float16 halves their disk"
    )


def _add_previous_predictions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--previous-predictions", type=Path, metavar="DIR", help="a cascade's first-stage label maps")


def _tool_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the device runner takes from the command line."""
    return {
        "tool": options.tool,
        "devices": options.devices or (0,),
        "tool_path": options.tool_path,
        "soc": options.soc,
        "stall_timeout_s": options.stall_timeout,
        "drop_redundant": options.drop_redundant,
        "sink": sink_for(options),
    }


def _device_lines(run: dict[str, Any]) -> list[str]:
    """A device run for people."""
    lines = [f"{run['tool']}: {run['answers']} answers ({run['reused']} were there) in {run['seconds']} s"]
    lines += [f"device {session['device']}: {session['problem']}" for session in run["failures"]]
    if run["excluded_devices"]:
        lines.append(f"devices not used again: {', '.join(map(str, run['excluded_devices']))}")
    return lines


def _stage_result(options: argparse.Namespace, report: RunReport) -> dict[str, Any]:
    """Print and return what became of each case; raise if some failed."""
    for case in report.cases:
        say_cases(options, f"{case.case}: {case.status}" + (f": {case.reason}" if case.reason else ""))
    report.raise_failures()
    return report.to_json()
