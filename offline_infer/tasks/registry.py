"""The tasks there are. A new kind of model is a folder beside this file and one line here.

Importing this loads no task. A task's folder holds these modules; those marked * load nothing heavy, since ``--help`` shows them:

    task.py                 ``TASK``, the object that fills :class:`~offline_infer.tasks.base.Task`
    options.py *            ``OPTIONS``, the settings that only this kind of model has; optional: ``EVALUATION``
    export_options.py *     optional: ``EXPORT_OPTIONS`` and ``recognises(path)``
    exporting.py            with it: ``export(request, sink)``
    adopt_options.py *      optional: ``ADOPT_OPTIONS``
    adopting.py             with it: ``adopt(graph, output, options, *, overwrite, sink)``
    commands.py *           optional: ``COMMANDS``, commands that only this kind of model has
    demonstration.py *      optional: ``DEMONSTRATION``, a shipped model and cases made for it

What the optional ones hold is described in :mod:`offline_infer.tasks.extensions`.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from offline_infer.errors import BundleError
from offline_infer.tasks.extensions import Adopter, Demonstration, Exporter, ExportRequest, TaskCommand
from offline_infer.tasks.settings import TaskOption

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.events import Sink
    from offline_infer.tasks.base import Task

TASKS: dict[str, str] = {
    "image": "offline_infer.tasks.image",
    "volume": "offline_infer.tasks.volume",
    "instances": "offline_infer.tasks.instances",
}
"""Task name, as in a bundle's ``task`` field -> its folder."""

DEFAULT_TASK = "volume"
"""The task of results that carry no record of their own: another tool's label maps."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        BundleError: this release knows no such task.
    """
    if name not in TASKS:
        raise BundleError(f"task {name!r} is unknown to this release; it knows {', '.join(TASKS)}")
    task: Task = importlib.import_module(f"{TASKS[name]}.task").TASK
    return task


def options_of(name: str) -> tuple[TaskOption, ...]:
    """The settings that only models of that task have; loads nothing heavy."""
    options: tuple[TaskOption, ...] = importlib.import_module(f"{TASKS[name]}.options").OPTIONS
    return options


def evaluation_options_of(name: str) -> tuple[TaskOption, ...]:
    """The options that only the evaluation of that task has; loads nothing heavy."""
    module = importlib.import_module(f"{TASKS[name]}.options")
    options: tuple[TaskOption, ...] = getattr(module, "EVALUATION", ())
    return options


def exporter_of(name: str) -> Exporter | None:
    """How models of that task are exported; None if it brings no export of its own. Loads nothing heavy."""
    light = _optional_module(name, "export_options")
    if light is None:
        return None

    def export(request: ExportRequest, sink: Sink) -> Bundle:
        bundle: Bundle = importlib.import_module(f"{TASKS[name]}.exporting").export(request, sink)
        return bundle

    return Exporter(light.EXPORT_OPTIONS, light.recognises, export)


def recognised(path: Path) -> str | None:
    """The task whose own export takes that path; None if no task recognises it."""
    exporters = ((name, exporter_of(name)) for name in TASKS)
    return next((name for name, exporter in exporters if exporter is not None and exporter.recognises(path)), None)


def adopter_of(name: str) -> Adopter | None:
    """How foreign graphs of that task are adopted; None if they cannot be. Loads nothing heavy."""
    light = _optional_module(name, "adopt_options")
    if light is None:
        return None

    def adopt(*arguments: Any, **settings: Any) -> Bundle:
        bundle: Bundle = importlib.import_module(f"{TASKS[name]}.adopting").adopt(*arguments, **settings)
        return bundle

    return Adopter(light.ADOPT_OPTIONS, adopt)


def commands_of(name: str) -> tuple[TaskCommand, ...]:
    """The commands that only that task has; loads nothing heavy."""
    module = _optional_module(name, "commands")
    commands: tuple[TaskCommand, ...] = () if module is None else module.COMMANDS
    return commands


def demonstration_of(name: str) -> Demonstration | None:
    """What ``demo`` shows of that task; None if it brings nothing. Loads nothing heavy."""
    module = _optional_module(name, "demonstration")
    return None if module is None else module.DEMONSTRATION


def demonstrated() -> tuple[str, ...]:
    """The tasks ``demo`` can show, that of volumes first, whose phantoms are the demonstration's own. Loads nothing heavy."""
    return (DEFAULT_TASK, *(name for name in TASKS if demonstration_of(name) is not None))


def _optional_module(task: str, module: str) -> ModuleType | None:
    """A module of a task's folder; None where there is none. An error inside it is not hidden."""
    name = f"{TASKS[task]}.{module}"
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None
