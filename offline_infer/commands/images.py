"""Commands for models of one's own and for image datasets: init, adopt, sweep; and what export and evaluate need for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline_infer.commands.common import (
    Subparsers,
    add_engine_options,
    add_task_options,
    command,
    existing,
    open_model,
    run_settings,
    say,
    sink_for,
)
from offline_infer.errors import CasesFailed, CheckpointError, UsageError

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle

_SCORED = "scored_"


def register(commands: Subparsers) -> None:
    """Add these commands to the parser."""
    parser = command(commands, "init", init, "make a folder for an image model of one's own, with a script that runs")
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace files that are there")

    parser = command(commands, "adopt", adopt, "make a bundle of an ONNX graph that somebody else exported")
    parser.add_argument("graph", type=Path, help="the .onnx file")
    parser.add_argument("--task", required=True, help="what kind of model it is")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what must be said about the graph, repeatable; a wrong name lists the legal ones",
    )

    parser = command(commands, "sweep", sweep, "models x datasets x attacks: predict and evaluate each, one table")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="one for each checkpoint")
    parser.add_argument(
        "--references", type=Path, required=True, help="dataset with reference masks, or a JSON of several"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for tables and curves")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="JSON: attack -> strengths; default no attack")
    parser.add_argument(
        "--attacks", type=Path, metavar="FILE", help="Python file with attacks of one's own; it is executed"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random attacks")
    parser.add_argument("--keep-predictions", action="store_true", help="keep the masks of every point")
    add_image_evaluation(parser)
    add_engine_options(parser)
    add_task_options(parser)


def add_own_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``export`` for a folder with ``mymodel.py``."""
    group = parser.add_argument_group(
        "a model of one's own (the checkpoint is a folder with mymodel.py, or a .py file)"
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="any trainer's checkpoint; it is not executed")
    group.add_argument("--model", metavar="NAME", help="the class, where the file has several")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model's constructor, repeatable; a wrong name lists the legal ones with their types",
    )
    group.add_argument("--size", default="512", help="pixels: 512, 384x512 (height x width), or any (default 512)")
    group.add_argument("--geometry", default="resize", choices=["resize", "pad"], help="default resize")
    group.add_argument("--multiple-of", type=int, default=1, metavar="N", help="with --size any: pad to a multiple")
    group.add_argument(
        "--activation",
        default="none",
        choices=["none", "sigmoid", "softmax"],
        help="what makes probabilities of the outputs; none if the model gives probabilities",
    )
    for name, text in (("mean", "ImageNet's"), ("std", "ImageNet's"), ("scale", "255")):
        group.add_argument(
            f"--pixel-{name}", metavar="F,...", help=f"normalisation: (pixel / scale - mean) / std; {text}"
        )
    group.add_argument("--order", default="rgb", choices=["rgb", "bgr", "gray"], help="of the channels, default rgb")
    group.add_argument("--sixteen-bit", default="clip", choices=["clip", "high_byte"], help="16-bit grey, default clip")
    group.add_argument("--exif", default="ignored", choices=["ignored", "applied"], help="camera orientation")


def is_own_model(options: argparse.Namespace) -> bool:
    """Whether ``export`` was given a model of one's own."""
    path: Path = options.checkpoint
    return path.suffix == ".py" or (path / "mymodel.py").is_file()


def export_own(options: argparse.Namespace) -> Bundle:
    """Export a model of one's own."""
    from offline_infer.files import sha256_file
    from offline_infer.tasks.image.adopting import pixels_of
    from offline_infer.tasks.image.own_model import OwnModel, export_own_model, parse_size

    if options.weights is None:
        raise UsageError(f"{options.checkpoint}: a model of one's own needs its trained weights, --weights FILE")
    height, width = parse_size(options.size)
    normalisation = {name: getattr(options, f"pixel_{name}") for name in ("mean", "std", "scale")}
    pixels = {name: getattr(options, name) for name in ("order", "sixteen_bit", "exif")}
    given = {name: value for name, value in {**normalisation, **pixels}.items() if value is not None}
    model = OwnModel(
        code=options.checkpoint,
        checkpoint=existing(options.weights),
        name=options.model,
        arguments=assignments(options.set),
        height=height,
        width=width,
        geometry="pad" if height < 0 else options.geometry,
        pixels=pixels_of(given),
        multiple_of=options.multiple_of,
        activation=options.activation,
    )
    digest = sha256_file(options.weights)
    if options.expect_sha256 and digest not in options.expect_sha256:
        raise CheckpointError(f"{options.weights} has the SHA-256 {digest}, which is not among the expected ones")
    return export_own_model(
        model,
        options.output,
        opset=options.opset,
        verify=not options.no_verify,
        overwrite=options.overwrite,
        sink=sink_for(options),
    )


def add_image_evaluation(parser: argparse.ArgumentParser) -> None:
    """Options of an evaluation of soft masks and scores."""
    from offline_infer.tasks.registry import evaluation_options_of

    group = parser.add_argument_group("soft masks and scores")
    for option in evaluation_options_of("image"):
        switch: dict[str, Any] = {"nargs": "?", "const": "yes"} if option.choices == ("no", "yes") else {}
        flag = "--" + option.name.replace("_", "-")
        group.add_argument(flag, dest=_SCORED + option.name, choices=option.choices or None, help=option.help, **switch)


def image_evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """The options of :func:`add_image_evaluation` that were given."""
    given = {name.removeprefix(_SCORED): value for name, value in vars(options).items() if name.startswith(_SCORED)}
    return {name: value for name, value in given.items() if value is not None}


def init(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer init``."""
    from offline_infer.tasks.image.scaffolding import make_scaffold

    written = make_scaffold(options.folder, force=options.force)
    say(options, *(str(path) for path in written), f"next: sh {options.folder / 'run.sh'}")
    return {"files": [str(path) for path in written]}


def adopt(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer adopt``."""
    from importlib import import_module

    from offline_infer.tasks.registry import TASKS

    if options.task not in TASKS:
        raise UsageError(f"unknown task {options.task!r}; legal: {', '.join(TASKS)}")
    try:
        adopting = import_module(f"{TASKS[options.task]}.adopting")
        known = import_module(f"{TASKS[options.task]}.adopt_options").ADOPT_OPTIONS
    except ModuleNotFoundError as error:
        raise UsageError(f"graphs of the task {options.task!r} cannot be adopted ({error})") from error
    given = assignments(options.set)
    legal = {option.name: option for option in known}
    for name, value in given.items():
        if name not in legal:
            listed = "; ".join(f"{option.name}: {option.help}" for option in known)
            raise UsageError(f"unknown name {name!r}; legal: {listed}")
        choices = legal[name].choices
        if choices and value not in choices:
            raise UsageError(f"{name}={value!r}: legal values are {', '.join(choices)}")
    bundle = adopting.adopt(
        existing(options.graph), options.output, given, overwrite=options.overwrite, sink=sink_for(options)
    )
    engines = bundle.spec.graphs[0].verification["engines"]
    told = ", ".join(f"{row['engine']} {row['version']}" for row in engines)
    say(options, f"{bundle.folder}: adopted; the graph gives the same answers on {told}")
    return {"bundle": str(bundle.folder), "graphs": [graph.model_dump(mode="json") for graph in bundle.spec.graphs]}


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """``offline-infer sweep``."""
    from offline_infer.tasks.image.attacks import ATTACKS, attacks_of_file
    from offline_infer.tasks.image.evaluation.evaluate import EvaluationOptions
    from offline_infer.tasks.image.sweeping import SweepPlan, read_grid, run_sweep

    attacks = {**ATTACKS, **(attacks_of_file(options.attacks) if options.attacks is not None else {})}
    plan = SweepPlan(
        bundles=[existing(path) for path in options.bundles],
        references=existing(options.references),
        output=options.output,
        grid=read_grid(options.grid, attacks) if options.grid is not None else {},
        attacks=attacks,
        seed=options.seed,
        evaluation=EvaluationOptions.of(image_evaluation(options)),
        keep_predictions=options.keep_predictions,
    )
    rows = run_sweep(plan, lambda bundle, source, output: _predict(options, bundle, source, output), sink_for(options))
    say(options, f"{len(rows)} points: {options.output / 'sweep.csv'}, {options.output / 'tensorboard'}")
    failed = {f"{row['model']} {row['dataset']} {row['attack']} {row['strength']:g}": "; ".join(row["failures"].values())
              for row in rows if row["failed"]}  # fmt: skip
    if failed:
        raise CasesFailed(failed, len(rows))
    return {"rows": rows}


def assignments(texts: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts.

    Raises:
        UsageError: one is not of that form, or a name is given twice.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in given:
            raise UsageError(f"--set {text!r}: expected NAME=VALUE, each name once")
        given[name.replace("-", "_")] = value
    return given


def _predict(options: argparse.Namespace, bundle: Path, source: Path, output: Path) -> None:
    """One point's predictions; failed images show in its row."""
    from offline_infer.predict.folder import FolderJob, predict_folder

    options.bundle = bundle
    with open_model(options) as model:
        found = model.task.list_cases(source, model.spec)
        job = FolderJob(found.cases, output, problems=found.problems)
        predict_folder(model, job, run_settings(options))
