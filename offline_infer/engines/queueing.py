"""Sessions that answer several inputs at once, and one way to use them and all others: answers in the order asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from offline_infer.engines.base import FloatArray, Session

Tag = TypeVar("Tag")
Answers = Mapping[str, npt.NDArray[Any]]

KEPT_ANSWER_BYTES = 64 * 2**20
"""The answer to an input with a key is kept for later ones if it is no larger than this."""


class PendingAnswer(Protocol):
    """An answer on its way."""

    def result(self) -> Answers:
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


@dataclass(frozen=True)
class Request(Generic[Tag]):
    """An input for a session.

    Attributes:
        tag: given back with the answer.
        session: sessions may differ from request to request: the folds of a model.
        make: makes the input; it may use one buffer for all. Not called where an answer to an equal input is at hand.
        key: requests of one session with equal keys have equal inputs; None: nothing is known.
    """

    tag: Tag
    session: Session
    make: Callable[[], FloatArray]
    key: Hashable | None = None


def in_order(requests: Iterable[Request[Tag]]) -> Iterator[tuple[Tag, Answers]]:
    """The answers in the order of the requests, each with its tag; an answer is valid until the next one is asked for.

    A session that queues is kept busy with as many inputs as it can use; any other is asked when its turn comes.

    Raises:
        EngineFailed: an answer could not be had.
    """
    queue: _Queue[Tag] = _Queue()
    memories: dict[int, _Memory] = {}
    try:
        for request in requests:
            memory = memories.get(id(request.session))
            if memory is None:
                memory = memories[id(request.session)] = _Memory(request.session)
            if memory.queueing is not None:
                while queue.on_their_way >= memory.queueing.depth:
                    yield from queue.first()
                queue.put(request, memory.queueing, memory)
            else:
                yield from queue.rest()
                yield request.tag, memory.answer(request)
        yield from queue.rest()
    finally:
        queue.abandon()


class _Memory:
    """The last answer to an input with a key, of one session."""

    def __init__(self, session: Session) -> None:
        # Asked once: to compare an object with a protocol takes as long as a small tile.
        self.queueing = session if isinstance(session, QueueingSession) else None
        self._in_buffer: tuple[Hashable, Answers] | None = None
        self._kept: tuple[Hashable, Answers] | None = None
        self.asked: Hashable | None = None
        """Key of the last input that was sent on its way."""

    def known(self, key: Hashable | None) -> Answers | None:
        """The answer to inputs with this key, if it is at hand."""
        for pair in (self._in_buffer, self._kept):
            if key is not None and pair is not None and pair[0] == key:
                return pair[1]
        return None

    def answer(self, request: Request[Any]) -> Answers:
        """Ask the session, unless the answer is known."""
        found = self.known(request.key)
        if found is not None:
            return found
        answers = request.session.answer(request.make())
        self._in_buffer = (request.key, answers) if request.key is not None else None
        if sum(array.nbytes for array in answers.values()) <= KEPT_ANSWER_BYTES:
            self.keep(request.key, answers)
        return answers

    def keep(self, key: Hashable | None, answers: Answers) -> None:
        """Keep a copy of the answer to an input with a key."""
        if key is not None:
            self._kept = (key, {name: array.copy() for name, array in answers.items()})


class _Queue(Generic[Tag]):
    """Answers on their way, in order; those to equal inputs stand in it without being on their way."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Tag, PendingAnswer | None, Hashable | None, _Memory]] = deque()
        self.on_their_way = 0

    def put(self, request: Request[Tag], session: QueueingSession, memory: _Memory) -> None:
        pending = None
        if request.key is None or request.key != memory.asked:
            pending = session.submit(request.make())
            self.on_their_way += 1
            memory.asked = request.key if request.key is not None else memory.asked
        self._waiting.append((request.tag, pending, request.key, memory))

    def first(self) -> Iterator[tuple[Tag, Answers]]:
        tag, pending, key, memory = self._waiting.popleft()
        if pending is None:
            answers = memory.known(key)
            assert answers is not None  # it was asked for earlier, and nothing with another key since
            yield tag, answers
            return
        self.on_their_way -= 1
        try:
            answers = pending.result()
            memory.keep(key, answers)
            yield tag, answers
        finally:
            pending.release()

    def rest(self) -> Iterator[tuple[Tag, Answers]]:
        while self._waiting:
            yield from self.first()

    def abandon(self) -> None:
        """Give back what nobody will ask for."""
        for _, pending, _, _ in self._waiting:
            if pending is not None:
                pending.release()
        self._waiting.clear()
