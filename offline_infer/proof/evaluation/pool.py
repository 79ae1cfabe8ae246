"""Do one thing for many cases, each on its own: a bad case is reported by name and the others complete.

With several jobs the cases run in separate processes. A process that dies (out of memory, a crash in a library) or hangs is
replaced, and the case it was working on is done once more.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from offline_infer.errors import CaseError, DiskBudgetError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink
from offline_infer.workers import WorkerDied, in_processes

T = TypeVar("T")

_DISK = {
    errno.ENOSPC: ("is full", "free some disk"),
    errno.EDQUOT: ("has no room left for this user", "free some disk or have the quota raised"),
    errno.EROFS: ("became read-only", "make it writable"),
}
"""What no other case would survive either: number -> what happened, and what to do."""
_NO_THREAD = "can't start new thread"
"""Python's text where the operating system refuses a thread, which it does for want of memory."""


@dataclass
class CaseOutcomes(Generic[T]):
    """``done``: case -> result; ``failed``: case -> reason. Both in the order the cases were given."""

    done: dict[str, T] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Done(Generic[T]):
    result: T


class _Failed(str):
    """The reason, in one line."""


def run_cases(
    function: Callable[..., T],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    jobs: int,
    stage: str,
    sink: Sink,
    describe: Callable[[T], dict[str, Any]] = lambda result: {},
) -> CaseOutcomes[T]:
    """Call ``function(*arguments[case])`` for every case.

    Args:
        function: a function of a module, so that a process can find it by name.
        jobs: processes; 1 works in this one.
        describe: facts of a result for its ``case-finished`` event.

    Raises:
        UsageError: ``jobs`` is not positive.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}; expected 1 or more")
    raw: CaseOutcomes[T] = CaseOutcomes()
    total = len(arguments)
    sink(Event("stage-started", stage, done=0, total=total))

    def repeated(case: str, reason: str) -> None:
        sink(Event("note", stage, case=case, data={"note": f"{reason}; the case is done again"}))

    attempts: Iterator[tuple[str, _Done[T] | _Failed | WorkerDied]]
    if jobs == 1 or total <= 1:
        attempts = ((case, _attempt(function, *values)) for case, values in arguments.items())
    else:
        attempts = in_processes(partial(_attempt, function), arguments, jobs, repeated=repeated)
    for case, attempt in attempts:
        if isinstance(attempt, _Done):
            raw.done[case] = attempt.result
            sink(Event("case-finished", stage, case=case, data=describe(attempt.result)))
        else:
            raw.failed[case] = str(attempt)
            sink(Event("case-failed", stage, case=case, data={"reason": raw.failed[case]}))
        sink(Event("progress", stage, done=len(raw.done) + len(raw.failed), total=total))
    return CaseOutcomes(
        done={case: raw.done[case] for case in arguments if case in raw.done},
        failed={case: raw.failed[case] for case in arguments if case in raw.failed},
    )


def _attempt(function: Callable[..., T], *values: Any) -> _Done[T] | _Failed:
    """A call that does not raise; perhaps in a process of its own, from which a text comes back whole and an exception may not."""
    try:
        return _Done(function(*values))
    except Exception as error:
        return _Failed(reason_of(error))


def reason_of(error: BaseException) -> str:
    """One line that says why a case failed."""
    text = " ".join(str(error).split())
    if isinstance(error, OfflineInferError):
        return text
    if isinstance(error, MemoryError):
        return "not enough memory for this case" + (f" ({text})" if text else "")
    if isinstance(error, RuntimeError) and text == _NO_THREAD:
        return "no thread can be started: not enough memory, or too many processes"
    if isinstance(error, OSError):
        return text or type(error).__name__
    return f"internal error, please report it: {type(error).__name__}: {text}"


def raise_if_fatal(error: Exception, case: str, stage: str) -> None:
    """Raise what is no matter of one case alone.

    Raises:
        DiskBudgetError: the disk is full, or nothing more can be written to it.
        OfflineInferError: any that is no :class:`CaseError`.
    """
    raise_if_disk_refuses(error, case, stage)
    if isinstance(error, OfflineInferError) and not isinstance(error, CaseError):
        raise error


def raise_if_disk_refuses(error: Exception, case: str, stage: str) -> None:
    """
    Raises:
        DiskBudgetError: behind the error is the operating system's word that no more can be written.
    """
    refused = _disk_refusal(error)
    if refused is not None:
        what, remedy = _DISK[refused.errno or 0]
        raise DiskBudgetError(
            f"the disk {what} while working on case {case} ({refused.filename or stage}); {remedy}, then give "
            "the same command again: it goes on from there"
        ) from error


def _disk_refusal(error: BaseException | None) -> OSError | None:
    """The operating system's word that a disk takes no more, behind whatever error was made of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        error = error.__cause__
    return None
