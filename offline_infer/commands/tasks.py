"""Commands that only one kind of model has, as its task declares them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from offline_infer.commands.common import (
    Subparsers,
    add_engine_options,
    add_task_options,
    command,
    open_model,
    run_settings,
    say,
    sink_for,
)
from offline_infer.tasks.extensions import CommandContext, TaskCommand
from offline_infer.tasks.registry import TASKS, commands_of


def register(commands: Subparsers) -> None:
    """Add every task's own commands to the parser."""
    for task in TASKS:
        for declared in commands_of(task):
            parser = command(commands, declared.name, _runner(declared), declared.summary)
            declared.add_arguments(parser)
            if declared.predicts:
                add_engine_options(parser)
                add_task_options(parser, task)


def _runner(declared: TaskCommand) -> Any:
    def run(options: argparse.Namespace) -> dict[str, Any]:
        context = CommandContext(
            sink=sink_for(options),
            say=lambda *lines: say(options, *lines),
            predict=lambda bundle, cases, output: _predict(options, bundle, cases, output),
        )
        return declared.run(options, context)

    return run


def _predict(options: argparse.Namespace, bundle: Path, cases: Path, output: Path) -> None:
    """Predict a folder with the engine and settings named on the command line."""
    from offline_infer.predict.folder import FolderJob, predict_folder

    options = argparse.Namespace(**{**vars(options), "bundle": bundle})
    with open_model(options) as model:
        found = model.task.list_cases(cases, model.spec)
        predict_folder(model, FolderJob(found.cases, output, problems=found.problems), run_settings(options))
