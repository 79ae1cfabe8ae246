"""What became of the cases of a run: the one vocabulary of every stage. One bad case fails alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from offline_infer.errors import CasesFailed, UsageError
from offline_infer.events import Event, Sink
from offline_infer.proof.evaluation.pool import raise_if_fatal, reason_of

Status = Literal["done", "skipped", "failed"]


@dataclass
class CaseOutcome:
    """What became of one case.

    Attributes:
        status: ``skipped`` means that it was complete already.
        file: the main result, if the stage makes one.
        reason: why it failed.
        items: network inputs concerned.
        bytes: written by this stage.
        shape: of the array that the network's inputs were cut from.
        seconds: wall time by step; ``total`` for stages that have one step.
        notes: what was remarkable about its files, a sentence each.
        memory: what was estimated (bytes above the program with its engine opened), and how the case was therefore run.
    """

    case: str
    status: Status
    file: str | None = None
    reason: str | None = None
    items: int = 0
    bytes: int = 0
    shape: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def fail(self, error: BaseException, stage: str, sink: Sink) -> None:
        """Record why the case failed, and say so."""
        self.status, self.reason = "failed", reason_of(error)
        sink(Event("case-failed", stage, self.case, data={"reason": self.reason}))


@dataclass(frozen=True)
class RunReport:
    """What became of all cases of a stage; ``facts`` holds what else the stage measured, JSON-able."""

    stage: str
    cases: tuple[CaseOutcome, ...]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)

    def named(self, status: Status) -> tuple[str, ...]:
        """Cases of that status, in order."""
        return tuple(case.case for case in self.cases if case.status == status)

    @property
    def failures(self) -> dict[str, str]:
        """Case -> reason."""
        return {case.case: case.reason or "failed" for case in self.cases if case.status == "failed"}

    def raise_failures(self) -> None:
        """Raise :class:`CasesFailed` if any case failed."""
        if self.failures:
            raise CasesFailed(self.failures, len(self.cases))

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "seconds": round(self.seconds, 3),
            "cases": [case.to_json() for case in self.cases],
            **self.facts,
        }


class Clock:
    """Wall seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the time since the last lap under a name."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now


def each_case(
    stage: str,
    cases: Sequence[str],
    function: Callable[[str], CaseOutcome],
    problems: Mapping[str, str] | None,
    sink: Sink,
) -> RunReport:
    """Run a function case by case; a case that fails is reported and the next one goes on.

    Args:
        problems: cases that could not even be listed, with the reason.
    """
    started = time.perf_counter()
    outcomes = unlisted(stage, problems, sink)
    sink(Event("stage-started", stage, total=len(cases)))
    outcomes += [attempt(stage, case, function, sink) for case in cases]
    return RunReport(stage, tuple(outcomes), time.perf_counter() - started)


def unlisted(stage: str, problems: Mapping[str, str] | None, sink: Sink) -> list[CaseOutcome]:
    """The outcomes of cases that could not even be listed; says so."""
    outcomes = []
    for case, reason in (problems or {}).items():
        outcomes.append(CaseOutcome(case, "failed", reason=reason))
        sink(Event("case-failed", stage, case, data={"reason": reason}))
    return outcomes


def attempt(stage: str, case: str, function: Callable[[str], CaseOutcome], sink: Sink) -> CaseOutcome:
    """Run one case.

    Raises:
        DiskBudgetError: the disk is full; no other case would fare better.
        OfflineInferError: anything that does not concern this case alone.
    """
    clock = Clock()
    sink(Event("case-started", stage, case))
    try:
        outcome = function(case)
        clock.lap("total")
        outcome.seconds = {**outcome.seconds, **clock.seconds}
    except Exception as error:
        raise_if_fatal(error, case, stage)
        outcome = CaseOutcome(case, "failed")
        clock.lap("total")
        outcome.seconds = clock.seconds
        outcome.fail(error, stage, sink)
        return outcome
    kind = "case-skipped" if outcome.status == "skipped" else "case-finished"
    facts = {"items": outcome.items, "bytes": outcome.bytes, "seconds": outcome.seconds.get("total", 0.0)}
    sink(Event(kind, stage, case, data=facts))
    return outcome


def refuse_unusable(failed: Mapping[str, str]) -> None:
    """Refuse references that could not be used: scores of the others would hide it.

    Args:
        failed: case -> reason.

    Raises:
        UsageError: there is one.
    """
    if failed:
        case, reason = next(iter(sorted(failed.items())))
        raise UsageError(f"{len(failed)} references cannot be used; {case}: {reason}")
