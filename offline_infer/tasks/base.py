"""The protocol of a task: what one kind of model needs, so that nobody else has to ask which kind it is.

A case goes one way through it::

    list_cases -> read -> prepare -> layout, cutter -> (engine or tool) -> collector -> write -> evaluate

The streaming run joins these calls in memory, the staged run by files. An *item* is one input of the network; items that
belong together (a tile in all its mirrors) form a *group*, and a group is never split. Answers are collected in one order on
both routes: group by group, within a group fold by fold, within a fold position by position.

``spec`` is always of the task's own ``spec_type``; what ``read``, ``prepare`` and ``finish`` return is the task's own and
opaque to everybody else, but for the attributes named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from offline_infer.engines.base import Session
from offline_infer.events import Sink
from offline_infer.images.cases import CaseFiles, CaseList
from offline_infer.spec import BundleSpec
from offline_infer.tasks.memory import MemoryEstimate
from offline_infer.tasks.settings import RunSettings, TaskOption
from offline_infer.threads import Team

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
Answers = Mapping[str, Array]
"""The kept outputs of one call by name, batch axis first; valid until the session's next call."""
Key = tuple[int, ...]
"""Stands for the content of an input: equal keys mean equal inputs at every position of their groups."""
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Gives a zeroed array of that shape and dtype."""
Progress = Callable[[int, int], None]
"""Called with (groups done, groups in all)."""
Finish = Callable[[], Any]
"""What is left of a case once the engine has answered; gives the task's result. To be called once, from any thread."""


class Geometry(Protocol):
    """Where a prepared case came from: the record that travels with it and leads back to the image."""

    def to_json(self) -> dict[str, Any]: ...


class Loaded(Protocol):
    """A case as read from its files, or as handed over in memory."""

    @property
    def geometry(self) -> Any:
        """The image's frame, as :meth:`Task.read_frame` reads it from the header alone."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A loaded case with remarks on its files that do not stop it, a sentence each."""

    @property
    def notes(self) -> tuple[str, ...]: ...


class Prepared(Protocol):
    """A case ready to be cut into items."""

    @property
    def geometry(self) -> Any: ...

    def emptied(self) -> Prepared:
        """The same without its arrays, for whoever needs only the way back."""
        ...


class Layout(Protocol):
    """Which items a case is cut into; follows from its geometry and the settings alone."""

    @property
    def groups(self) -> int: ...

    @property
    def per_group(self) -> int: ...

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of what is cut, for records."""
        ...

    def shape(self, group: int) -> tuple[int, ...]:
        """Shape of the items of a group, without the batch axis."""
        ...

    def record(self, group: int, position: int) -> dict[str, Any]:
        """How that item was made, JSON-able, with a ``mode``: ``tile``, ``resize``, ``pad``, ``letterbox``, ..."""
        ...

    def name(self, group: int, position: int) -> str:
        """What tells the item's file from the case's others: letters, digits and ``_``."""
        ...


class Cutter(Protocol):
    """Makes the inputs of one prepared case."""

    def load(self, group: int) -> Key | None:
        """Go to a group; None where its content has no key."""
        ...

    def input(self, position: int) -> FloatArray:
        """The input (1, c, ...) at that position of the group, C-contiguous; valid until the next call."""
        ...


class Collector(Protocol):
    """Takes the answers of one case and makes its result of them."""

    def take(self, group: int, position: int, fold: int, answers: Answers) -> None:
        """Take one answer; see the module for the order.

        Args:
            fold: 0-based position of the fold.

        Raises:
            EngineFailed: NaN or infinite numbers where there must be none.
        """
        ...

    def finish(self) -> Any:
        """The task's result. To be called once, after the last answer."""
        ...


@dataclass(frozen=True)
class PreviousStage:
    """Where the results of an earlier stage come from, for models that need them.

    Attributes:
        folder: they were written there, one file a case.
        run: makes the result for a loaded case; used where there is no folder.
    """

    folder: Path | None = None
    run: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        predictions, references: folders or files.
        output: the summary to write; None writes nothing.
        options: those that were given, by name: ``allow_missing``, ``csv``, ``jobs``, and the task's own.
        images: what the predictions were made of, a folder or one file, for tasks that show it behind their errors.
    """

    predictions: Path
    references: Path
    output: Path | None
    options: Mapping[str, Any]
    images: Path | None = None


class Scores(Protocol):
    """What an evaluation found: the summary as JSON, and the cases that could not be scored with their reasons."""

    @property
    def summary(self) -> dict[str, Any] | None: ...

    @property
    def failed(self) -> Mapping[str, str]: ...

    @property
    def total(self) -> int:
        """Cases that were to be scored, the failed ones included."""
        ...

    def table(self) -> str:
        """The summary as text for people; empty where there is none."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything that was found."""
        ...


class Task(Protocol):
    """One kind of model. See the module for the order of the calls and the meaning of ``spec``.

    ``label_maps``: the main result of a case is a label map in the image's grid, so that it can be measured as one.
    """

    name: str
    spec_type: type[BundleSpec]
    label_maps: bool
    options: tuple[TaskOption, ...]

    # ---- cases -------------------------------------------------------------------------------------------------------

    def list_cases(self, source: Path, spec: Any) -> CaseList:
        """The cases of a file or folder, and by name those that cannot be used.

        Raises:
            UsageError: the path holds nothing that could be a case.
        """
        ...

    def sources(self, case: CaseFiles, spec: Any, previous_folder: Path | None) -> tuple[Path, ...]:
        """Every file a case is made from, so that a change of one is noticed."""
        ...

    def read_frame(self, case: CaseFiles, spec: Any) -> Any:
        """Size and place of a case's image, from its header alone.

        Raises:
            CaseError: the files are missing, damaged, or do not fit the model.
        """
        ...

    def read(self, case: CaseFiles, spec: Any) -> Loaded:
        """Read a case's files.

        Raises:
            CaseError: see :meth:`read_frame`.
        """
        ...

    def load(self, source: Any, spec: Any) -> Loaded:
        """A case given in memory, or by path, to the Python interface.

        Raises:
            CaseError: the file cannot be read, or the array does not fit its geometry or the model.
            UsageError: an object this task knows nothing about.
        """
        ...

    def previous(self, case: CaseFiles | None, loaded: Loaded, spec: Any, stage: PreviousStage) -> Any:
        """The earlier stage's result that ``prepare`` needs for a case; None where the model needs none.

        Raises:
            CaseError: it is missing, or does not fit the image.
        """
        ...

    def prepare(self, loaded: Loaded, spec: Any, previous: Any, *, threads: int, consume: bool) -> Prepared:
        """Prepare a case.

        Args:
            consume: the caller gives ``loaded`` up; its memory may be overwritten.

        Raises:
            CaseError: the case does not fit the model.
        """
        ...

    # ---- items -------------------------------------------------------------------------------------------------------

    def item_settings(self, spec: Any, settings: RunSettings) -> dict[str, Any]:
        """The settings that decide which items there are, JSON-able."""
        ...

    def with_item_settings(self, settings: RunSettings, chosen: Mapping[str, Any]) -> RunSettings:
        """``settings`` with those that :meth:`item_settings` gave."""
        ...

    def geometry_from_json(self, record: Mapping[str, Any], spec: Any) -> Geometry:
        """A prepared case's geometry, read back.

        Raises:
            UsageError: the record is damaged.
        """
        ...

    def layout(self, geometry: Any, spec: Any, settings: RunSettings) -> Layout:
        """The items of a prepared case."""
        ...

    def expected_layout(self, case: CaseFiles, spec: Any, settings: RunSettings, *, exact: bool) -> Layout:
        """The items of a case that is not prepared yet.

        Args:
            exact: read whatever is needed; otherwise headers give an upper bound.

        Raises:
            CaseError: see :meth:`read_frame`.
        """
        ...

    def cutter(self, prepared: Any, layout: Any, spec: Any, team: Team) -> Cutter:
        """What makes the inputs of a prepared case."""
        ...

    def collector(
        self, geometry: Any, spec: Any, settings: RunSettings, folds: int, *, team: Team, allocate: Allocate | None
    ) -> Collector:
        """What takes the answers for a case.

        Args:
            folds: how many networks answer each item.
            team: shares the work; used until the collector has finished.
            allocate: gives the zeroed memory of the largest arrays; default ``numpy.zeros``.

        Raises:
            UsageError: settings that this model does not have.
        """
        ...

    def run_on_device(
        self,
        prepared: Any,
        spec: Any,
        sessions: Sequence[Session],
        settings: RunSettings,
        *,
        team: Team,
        allocate: Allocate | None,
        progress: Progress | None,
    ) -> Finish | None:
        """Run a case where its answers can stay on the engine's device; None where the host is to do it."""
        ...

    def estimate_memory(
        self, frame: Any, spec: Any, settings: RunSettings, folds: int, *, graph_bytes: int, geometry: Any, threads: int
    ) -> MemoryEstimate | None:
        """What a case will take, from its frame; None where nothing can be said.

        Args:
            graph_bytes: size of the graphs' files together.
            geometry: of the prepared case, once it is known, else None.
        """
        ...

    # ---- results -----------------------------------------------------------------------------------------------------

    def answer(self, result: Any, spec: Any) -> Any:
        """What the Python interface returns for a result."""
        ...

    def result_files(self, folder: Path, case_id: str, spec: Any, settings: RunSettings) -> list[Path]:
        """Files that must exist for a case to count as done, the main one first."""
        ...

    def write(self, result: Any, folder: Path, case_id: str, spec: Any, settings: RunSettings) -> Path:
        """Write a result, each file whole or not at all, the main one last; returns the main one."""
        ...

    def write_shared_files(
        self, folder: Path, spec: Any, shares: Mapping[int, Sequence[str]], parts: int
    ) -> Sequence[str]:
        """Write what stands once beside all results (records that other programs look for); may do nothing.

        Args:
            shares: number of a part -> its complete cases: the part this run does where several share the cases of one
                folder, or those the devices of a staged run were given; else part 0 alone.
            parts: into how many parts the cases are divided.

        Returns:
            What a person should know, a sentence each.
        """
        ...

    def describe(self, result: Any, spec: Any) -> dict[str, Any]:
        """A few JSON-able facts about a result, for events and records."""
        ...

    # ---- proof -------------------------------------------------------------------------------------------------------

    def evaluate(self, request: EvaluationRequest, spec: Any | None, sink: Sink) -> Scores:
        """Score predictions against references.

        Raises:
            UsageError: paths or options that make no sense.
        """
        ...

    def draw(
        self, case: CaseFiles, predictions: Path, references: Path | None, spec: Any, picture: Path, title: str
    ) -> None:
        """Draw a case with its result and, where there is one, its reference.

        Args:
            predictions, references: folders.
            picture: the PNG to write.

        Raises:
            UsageError: what draws pictures is not installed.
        """
        ...

    def sample_inputs(self, case: CaseFiles | None, spec: Any, count: int, threads: int) -> list[FloatArray]:
        """Inputs (1, c, ...) to compare engines on: from a case where one is given, else made up."""
        ...

    def judge(self, answers: Sequence[Answers], reference: Sequence[Answers] | None, spec: Any) -> dict[str, Any]:
        """Whether answers can be trusted, compared with float32 ones where they are given.

        Returns:
            ``status`` (``ok`` or ``failed`` with a ``reason``) and the figures of the comparison.
        """
        ...


@dataclass(frozen=True)
class CaseAgreement:
    """How alike two results of a case are.

    Attributes:
        dice: of everything that was found, of whatever class: voxels that both give the same label; None where neither found
            anything.
        share: of the reference's voxels or pixels that are not background.
    """

    dice: float | None
    share: float


@runtime_checkable
class ComparesResults(Protocol):
    """What a task has besides :class:`Task` if one figure says how good a result is. Optional."""

    def agreement(self, case_id: str, mine: Path, reference: Path, spec: Any, settings: RunSettings) -> CaseAgreement:
        """Compare two results of a case.

        Args:
            mine, reference: folders of results, made with these settings.

        Raises:
            CaseError: a result is missing or cannot be read, or they differ in size.
        """
        ...

    def change(self, answers: Sequence[Answers], reference: Sequence[Answers], spec: Any) -> float:
        """Mean square of the change of all probabilities: unlike the outputs' own, it counts where decisions are near."""
        ...

    def referenced(self, labels: Path) -> frozenset[str]:
        """The cases that a folder holds a reference of.

        Raises:
            UsageError: it holds none, or is no folder of references.
        """
        ...

    def case_scores(self, predictions: Path, labels: Path, spec: Any) -> dict[str, float]:
        """Mean Dice (or the F1 of a binary mask, which is the same) over the classes of each case that has a reference; 1 where
        nothing is to be found and nothing was.

        Args:
            predictions: a folder of results.
            labels: folder of references, as :meth:`Task.evaluate` takes them.

        Raises:
            UsageError: paths that make no sense, or a reference that cannot be read or compared; the message names it.
        """
        ...
