"""What both routes do with a case before its items exist: read it, fetch an earlier stage's result, prepare it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offline_infer.images.cases import CaseFiles
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import Loaded, Noted, Prepared, PreviousStage, Task

Lap = Callable[[str], None]
"""Told the name of each step when it is done, for whoever takes the time."""


def prepare_case(
    task: Task,
    case: CaseFiles,
    spec: BundleSpec,
    stage: PreviousStage,
    threads: int,
    *,
    lap: Lap | None = None,
    note: Callable[[str], None] | None = None,
) -> Prepared:
    """Read and prepare a case from its files.

    Args:
        threads: 0 = all cores.
        note: told what the files do not say, or say twice, and what was taken for it.

    Raises:
        CaseError: the files, or the earlier stage's result, are missing, damaged or do not fit the model.
    """
    told: Lap = lap if lap is not None else _nobody
    loaded = task.read(case, spec)
    told("read")
    if note is not None and isinstance(loaded, Noted):
        for text in loaded.notes:
            note(text)
    previous = task.previous(case, loaded, spec, stage)
    if previous is not None:
        told("previous_stage")
    prepared = task.prepare(loaded, spec, previous, threads=threads, consume=True)
    told("prepare")
    return prepared


def prepare_loaded(
    task: Task, loaded: Loaded, spec: BundleSpec, previous: Any, stage: PreviousStage, threads: int, *, consume: bool
) -> Prepared:
    """Prepare a case that is in memory.

    Args:
        previous: the earlier stage's result where the caller has it, else None.
        consume: the caller gives ``loaded`` up; its memory may be overwritten.

    Raises:
        CaseError: the case, or the earlier stage's result, does not fit the model.
    """
    if previous is None:
        previous = task.previous(None, loaded, spec, stage)
    return task.prepare(loaded, spec, previous, threads=threads, consume=consume)


def _nobody(step: str) -> None:
    pass
