"""What a kind of model may add to the command line besides settings.

Its export, its adoption, commands of its own, its demonstration. All of it is optional; :mod:`offline_infer.tasks.registry`
finds it by the names of modules. Importing this loads nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from offline_infer.errors import UsageError
from offline_infer.events import Sink
from offline_infer.tasks.settings import TaskOption

if TYPE_CHECKING:
    from offline_infer.bundles.bundle import Bundle
    from offline_infer.exporting.options import ExportOptions


@dataclass(frozen=True)
class ExportRequest:
    """One export of a trained model to a bundle.

    Attributes:
        model: the file or folder the task recognised.
        output: the bundle's folder.
        how: what every graph is made with.
        options: those of the task's ``EXPORT_OPTIONS`` that were given, by name.
        arguments: of the model's constructor, as text.
        expect_sha256: digests one of which the weights must have; empty: any.
    """

    model: Path
    output: Path
    how: ExportOptions
    options: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    expect_sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exporter:
    """How a kind of model is exported.

    Attributes:
        options: what only its export asks for.
        recognises: whether a path is a model of this kind, by its name and by files beside it; opens nothing.
        export: writes a verified bundle.
    """

    options: tuple[TaskOption, ...]
    recognises: Callable[[Path], bool]
    export: Callable[[ExportRequest, Sink], Bundle]


class Adopt(Protocol):
    """Makes a bundle of a graph that somebody else exported; ``options`` holds what was given, by name."""

    def __call__(
        self, graph: Path, output: Path, options: Mapping[str, str], *, overwrite: bool, sink: Sink
    ) -> Bundle: ...


@dataclass(frozen=True)
class Adopter:
    """How foreign graphs of a kind of model are adopted; ``options`` is what can be said about such a graph."""

    options: tuple[TaskOption, ...]
    adopt: Adopt


@dataclass(frozen=True)
class CommandContext:
    """What the command line offers to a task's own command.

    Attributes:
        sink: told about progress.
        say: prints lines for a person.
        predict: (bundle, cases, output) predicts with the engine and settings named on the command line; cases that fail are
            recorded beside the results.
    """

    sink: Sink
    say: Callable[..., None]
    predict: Callable[[Path, Path, Path], None]


@dataclass(frozen=True)
class TaskCommand:
    """A command that only one kind of model has.

    Attributes:
        name, summary: as on the command line.
        add_arguments: declares its arguments; imports nothing heavy.
        run: does it and returns what ``--json`` prints.
        predicts: it runs networks, and so takes the options of an engine and of the task's runs.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, CommandContext], dict[str, Any]]
    predicts: bool = False


@dataclass(frozen=True)
class DemonstrationCases:
    """What a demonstration is made of: ``images`` as ``predict`` takes them, ``references`` as ``evaluate`` takes them."""

    images: Path
    references: Path


@dataclass(frozen=True)
class Demonstration:
    """What ``demo`` shows of a kind of model: a shipped bundle, and cases that are made for it.

    Attributes:
        bundle: folder of the shipped bundle; needs no torch.
        packages: what must be importable; extra: the extra that brings them.
        cases: how many are made where nobody says.
        write: (folder, how many) makes those cases that are not there yet.
        settings: of the run, by the names of the task's ``OPTIONS``.
        evaluation: by the names of the task's ``EVALUATION``.
    """

    bundle: Path
    packages: tuple[str, ...]
    extra: str
    cases: int
    write: Callable[[Path, int], DemonstrationCases]
    settings: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, str] = field(default_factory=dict)


def check_given(given: Mapping[str, str], known: tuple[TaskOption, ...]) -> None:
    """Refuse names and values that a task does not know.

    Raises:
        UsageError: the message lists what is legal.
    """
    legal = {option.name: option for option in known}
    for name, value in given.items():
        if name not in legal:
            listed = "; ".join(f"{option.name}: {option.help}" for option in known) or "none"
            raise UsageError(f"unknown name {name!r}; legal: {listed}")
        choices = legal[name].choices
        if choices and value not in choices:
            raise UsageError(f"{name}={value!r}: legal values are {', '.join(choices)}")


def add_flag(group: argparse._ActionsContainer, option: TaskOption, prefix: str, *, switches: bool = False) -> None:
    """Declare a task's option as ``--name``; its value has the attribute ``prefix + name``.

    Args:
        switches: one that is ``no`` or ``yes`` may be given without its value.
    """
    switch: dict[str, Any] = {} if option.values == "one" else {"nargs": "+" if option.values == "some" else "*"}
    if switches and option.choices == ("no", "yes"):
        switch = {"nargs": "?", "const": "yes"}
    group.add_argument(
        "--" + option.name.replace("_", "-"),
        dest=prefix + option.name,
        choices=option.choices or None,
        metavar=None if option.choices else option.name.upper(),
        help=option.help,
        **switch,
    )
