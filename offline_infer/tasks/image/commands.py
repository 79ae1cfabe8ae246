"""Commands that only image models have: init, model-options and sweep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.errors import CasesFailed, UsageError
from offline_infer.tasks.extensions import CommandContext, TaskCommand, add_flag
from offline_infer.tasks.image.options import EVALUATION

_SCORED = "scored_"


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``init``."""
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def init(options: argparse.Namespace, context: CommandContext) -> dict[str, Any]:
    """``offline-infer init``."""
    from offline_infer.tasks.image.scaffolding import make_scaffold

    written = make_scaffold(options.folder, force=options.force)
    context.say(*(str(path) for path in written), f"next: sh {options.folder / 'run.sh'}")
    return {"files": [str(path) for path in written]}


def add_model_options_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``model-options``."""
    parser.add_argument(
        "model", type=Path, help="Python file with a model, or a folder with mymodel.py; it is executed"
    )
    parser.add_argument("--model", dest="name", metavar="NAME", help="the class, where the file has several")


def model_options(options: argparse.Namespace, context: CommandContext) -> dict[str, Any]:
    """``offline-infer model-options``."""
    from offline_infer.exporting.constructor_options import constructor_options
    from offline_infer.exporting.own_models import load_model_class
    from offline_infer.exporting.torch_export import import_torch

    import_torch()
    found = constructor_options(cls := load_model_class(options.model, options.name))
    context.say(
        f"{cls.__name__}: give these to export, each as --set NAME=VALUE"
        if found
        else f"{cls.__name__} has no options",
        *(f"  {option.described()}" for option in found),
    )
    return {
        "model": cls.__name__,
        "options": [
            {
                "name": option.name,
                "kind": option.kind,
                "required": option.required,
                "default": None if option.required else repr(option.default),
                "choices": list(option.choices),
            }
            for option in found
        ],
    }


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sweep``."""
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
    group = parser.add_argument_group("soft masks and scores")
    for option in EVALUATION:
        add_flag(group, option, _SCORED, switches=True)


def sweep(options: argparse.Namespace, context: CommandContext) -> dict[str, Any]:
    """``offline-infer sweep``."""
    from offline_infer.tasks.image.attacks import ATTACKS, attacks_of_file
    from offline_infer.tasks.image.evaluation.evaluate import EvaluationOptions
    from offline_infer.tasks.image.sweeping import SweepJob, read_grid, run_sweep

    for path in (*options.bundles, options.references):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    attacks = {**ATTACKS, **(attacks_of_file(options.attacks) if options.attacks is not None else {})}
    scored = {name.removeprefix(_SCORED): value for name, value in vars(options).items() if name.startswith(_SCORED)}
    job = SweepJob(
        bundles=options.bundles,
        references=options.references,
        output=options.output,
        grid=read_grid(options.grid, attacks) if options.grid is not None else {},
        attacks=attacks,
        seed=options.seed,
        evaluation=EvaluationOptions.of({name: value for name, value in scored.items() if value is not None}),
        keep_predictions=options.keep_predictions,
    )
    rows = run_sweep(job, context.predict, context.sink)
    context.say(f"{len(rows)} points: {options.output / 'sweep.csv'}, {options.output / 'tensorboard'}")
    failed = {
        f"{row['model']} {row['dataset']} {row['attack']} {row['strength']:g}": "; ".join(row["failures"].values())
        for row in rows
        if row["failed"]
    }
    if failed:
        raise CasesFailed(failed, len(rows))
    return {"rows": rows}


COMMANDS: tuple[TaskCommand, ...] = (
    TaskCommand(
        "init", "make a folder for an image model of one's own, with a script that runs", add_init_arguments, init
    ),
    TaskCommand(
        "model-options",
        "list the arguments of the constructor of a model of one's own: names, types, defaults",
        add_model_options_arguments,
        model_options,
    ),
    TaskCommand(
        "sweep",
        "models x datasets x attacks: predict and evaluate each, one table",
        add_sweep_arguments,
        sweep,
        predicts=True,
    ),
)
