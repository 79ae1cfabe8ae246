"""Do one thing for many cases, each on its own: a bad case is reported by name and the others complete.

With several jobs the cases run in separate processes. A process that dies (out of memory, a crash in a library) is
noticed at once, costs the case it was working on, and is replaced.
"""

from __future__ import annotations

import errno
import multiprocessing
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from offline_infer.errors import CaseError, DiskBudgetError, OfflineInferError, UsageError
from offline_infer.events import Event, Sink

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

    def settle(case: str, call: Callable[[], T]) -> None:
        try:
            raw.done[case] = call()
        except Exception as error:
            raw.failed[case] = reason_of(error)
            sink(Event("case-failed", stage, case=case, data={"reason": raw.failed[case]}))
        else:
            sink(Event("case-finished", stage, case=case, data=describe(raw.done[case])))
        sink(Event("progress", stage, done=len(raw.done) + len(raw.failed), total=total))

    if jobs == 1 or total <= 1:
        for case, values in arguments.items():
            settle(case, lambda values=values: function(*values))  # type: ignore[misc]
    else:
        _in_processes(function, arguments, min(jobs, total), settle)
    return CaseOutcomes(
        done={case: raw.done[case] for case in arguments if case in raw.done},
        failed={case: raw.failed[case] for case in arguments if case in raw.failed},
    )


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


def _in_processes(
    function: Callable[..., T],
    arguments: Mapping[str, tuple[Any, ...]],
    jobs: int,
    settle: Callable[[str, Callable[[], T]], None],
) -> None:
    """One process per job, each fed by a thread of its own, so that a death points at one case."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker() for _ in range(jobs)]
    for worker in workers:
        idle.put(worker)

    def in_a_process(values: tuple[Any, ...]) -> T:
        worker = idle.get()
        try:
            result: T = worker.call(function, values)
            return result
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(jobs)
    try:
        futures = {threads.submit(in_a_process, values): case for case, values in arguments.items()}
        for future in as_completed(futures):
            settle(futures[future], future.result)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def _disk_refusal(error: BaseException | None) -> OSError | None:
    """The operating system's word that a disk takes no more, behind whatever error was made of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        error = error.__cause__
    return None


class _Worker:
    """A process that is replaced when it dies. Spawned, not forked: the parent may hold threads of NumPy or SimpleITK,
    whose locks a fork would leave locked."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., T], values: tuple[Any, ...]) -> T:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(function, *values).result()
        except BrokenProcessPool:
            self.close()
            raise _ProcessDiedError from None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class _ProcessDiedError(OfflineInferError):
    def __init__(self) -> None:
        super().__init__("the process working on this case died; most often the machine ran out of memory")
