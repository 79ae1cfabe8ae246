"""Sessions that answer several inputs at once, and one way to use them and all others: answers in the order asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from offline_infer.engines.base import FloatArray, Session

Tag = TypeVar("Tag")


class PendingAnswer(Protocol):
    """An answer on its way."""

    def result(self) -> Mapping[str, npt.NDArray[Any]]:
        """All kept outputs by name, valid until :meth:`release`; waits for them.

        Raises:
            EngineFailed: the answer could not be had.
        """
        ...

    def release(self) -> None:
        """The arrays are not needed any more. May be called twice, and instead of :meth:`result`."""
        ...


@runtime_checkable
class QueueingSession(Protocol):
    """What a session has besides :class:`~offline_infer.engines.base.Session` if it spreads inputs over devices."""

    depth: int
    """Answers that can be on their way or unreleased at a time."""

    def submit(self, batch: FloatArray) -> PendingAnswer:
        """Send an input on its way; ``batch`` may be used again at once. Blocks while ``depth`` answers are unreleased.

        Raises:
            EngineFailed: a wrong input, or the session is closed.
        """
        ...


class _Asker:
    """Keeps as many inputs on their way as a session can use; a session that does not queue answers at once.

    Inputs go in through :meth:`ask`, answers come out of :meth:`ready` and :meth:`rest` in the same order. Leaving the
    ``with`` block releases whatever is still on its way.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, PendingAnswer]] = deque()

    def ask(
        self, tag: Any, session: Session, batch: FloatArray
    ) -> Iterator[tuple[Any, Mapping[str, npt.NDArray[Any]]]]:
        """Ask a session; yields, in order, the answers that have to be used first to make room, each with its tag.

        An answer is valid until the next one is asked for.
        """
        if not isinstance(session, QueueingSession):
            yield from self.rest()
            yield tag, session.answer(batch)
            return
        while len(self._waiting) >= session.depth:
            yield from self._first()
        self._waiting.append((tag, session.submit(batch)))

    def rest(self) -> Iterator[tuple[Any, Mapping[str, npt.NDArray[Any]]]]:
        """The answers that are still on their way, in order."""
        while self._waiting:
            yield from self._first()

    def _first(self) -> Iterator[tuple[Any, Mapping[str, npt.NDArray[Any]]]]:
        tag, pending = self._waiting.popleft()
        try:
            yield tag, pending.result()
        finally:
            pending.release()

    def __enter__(self) -> _Asker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, pending in self._waiting:
            pending.release()
        self._waiting.clear()


def in_order(
    requests: Iterable[tuple[Tag, Session, FloatArray]],
) -> Iterator[tuple[Tag, Mapping[str, npt.NDArray[Any]]]]:
    """The answers to requests (tag, session, input), in the order of the requests, each with its tag.

    A request's array is used before the next request is asked for, so one buffer serves them all. An answer is valid until
    the next one is asked for. Sessions may differ from request to request: the folds of a model.

    Raises:
        EngineFailed: an answer could not be had.
    """
    with _Asker() as asker:
        for tag, session, batch in requests:
            yield from asker.ask(tag, session, batch)
        yield from asker.rest()
