"""Cases one after the other, and what became of each: one bad case fails alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from offline_infer.errors import CaseError, CasesFailed, DiskBudgetError, OfflineInferError
from offline_infer.events import Event, Sink
from offline_infer.proof.evaluation.pool import reason_of

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case.

    Attributes:
        status: ``skipped`` means that it was complete already.
        reason: why it failed.
        items: network inputs concerned.
        bytes: written by this stage.
        seconds: wall time.
        file: the result, if the stage makes one.
    """

    case: str
    status: Status
    reason: str | None = None
    items: int = 0
    bytes: int = 0
    seconds: float = 0.0
    file: str | None = None


@dataclass(frozen=True)
class StageReport:
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
            "cases": [asdict(case) for case in self.cases],
            **self.facts,
        }


def each_case(
    stage: str,
    cases: Sequence[str],
    function: Callable[[str], CaseOutcome],
    problems: Mapping[str, str] | None,
    sink: Sink,
) -> StageReport:
    """Run a function case by case; a case that fails is reported and the next one goes on."""
    started = time.perf_counter()
    outcomes = []
    for case, reason in (problems or {}).items():
        outcomes.append(CaseOutcome(case, "failed", reason=reason))
        sink(Event("case-failed", stage, case, data={"reason": reason}))
    sink(Event("stage-started", stage, total=len(cases)))
    for case in cases:
        outcome = attempt(stage, case, function, sink)
        outcomes.append(outcome)
    return StageReport(stage, tuple(outcomes), time.perf_counter() - started)


def attempt(stage: str, case: str, function: Callable[[str], CaseOutcome], sink: Sink) -> CaseOutcome:
    """Run one case.

    Raises:
        DiskBudgetError: the disk is full; no other case would fare better.
        OfflineInferError: anything that does not concern this case alone.
    """
    clock = time.perf_counter()
    sink(Event("case-started", stage, case))
    try:
        outcome = replace(function(case), seconds=round(time.perf_counter() - clock, 4))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskBudgetError(
                f"the disk is full while working on case {case} ({error.filename or stage}); free some disk, then give "
                "the same command again: it goes on from there"
            ) from error
        if isinstance(error, OfflineInferError) and not isinstance(error, CaseError):
            raise
        reason = reason_of(error)
        sink(Event("case-failed", stage, case, data={"reason": reason}))
        return CaseOutcome(case, "failed", reason=reason, seconds=round(time.perf_counter() - clock, 4))
    kind = "case-skipped" if outcome.status == "skipped" else "case-finished"
    sink(Event(kind, stage, case, data={"items": outcome.items, "bytes": outcome.bytes, "seconds": outcome.seconds}))
    return outcome
