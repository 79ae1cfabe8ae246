"""The tasks there are. A new kind of model is a folder beside this file and one line here.

Importing this loads no task. A task's folder holds ``task.py`` with the object ``TASK``, and ``options.py`` with the tuple
``OPTIONS`` of the settings that only this kind of model has and, if its evaluation has options, ``EVALUATION``; the latter
imports nothing heavy, since ``--help`` shows them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from offline_infer.errors import BundleError
from offline_infer.tasks.settings import TaskOption

if TYPE_CHECKING:
    from offline_infer.tasks.base import Task

TASKS: dict[str, str] = {
    "image": "offline_infer.tasks.image",
    "volume": "offline_infer.tasks.volume",
    "instances": "offline_infer.tasks.instances",
}
"""Task name, as in a bundle's ``task`` field -> its folder."""


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
