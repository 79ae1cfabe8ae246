"""What a pool of devices works on: models that every worker has open, and inputs on their way."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from offline_infer.engines.compiled import Tensor
from offline_infer.engines.om.answers import Fault
from offline_infer.engines.om.slots import Slots, shared_memory

Referee = Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None]
"""What another engine answers to an input (its first kept output), or None where there is no other engine."""


@dataclass(frozen=True)
class Limits:
    """How long a worker may stay silent.

    Attributes:
        open_s: while it starts and loads a model.
        answer_s: while it answers one input.
    """

    open_s: float = 600.0
    answer_s: float = 600.0


class Model:
    """A model in every worker: its tensors, and the slots that hold its inputs and answers."""

    def __init__(
        self, number: int, path: Path, tensors: Sequence[Tensor], kept: Sequence[int], slots: int, referee: Referee
    ) -> None:
        """
        Args:
            tensors: the input, then the outputs.
            kept: positions of the outputs whose numbers are looked at.
            referee: decides whether an answer of one number only is the model's own.
        """
        self.number = number
        self.path = path
        self.tensors = tuple(tensors)
        self.kept = tuple(kept)
        self.count = slots
        self.referee = referee
        self.handle = shared_memory(slots, tensors)
        weakref.finalize(self, os.close, self.handle)
        self.slots = Slots(self.handle, slots, tensors)
        self.reported: dict[int, str | None] = {}
        """Device -> None where its worker has opened the model, else why it could not."""
        self.flat_is_right = False
        self.users = 0
        """Sessions that have it open; they share its slots."""
        self.free: deque[int] = deque(range(slots))
        self.freed = threading.Condition()

    def serves(self, path: Path, tensors: Sequence[Tensor], kept: Sequence[int]) -> bool:
        """Whether a session that asks for this can use it."""
        return (self.path, self.tensors, self.kept) == (path, tuple(tensors), tuple(kept))

    def opening(self) -> dict[str, Any]:
        """The message that makes a worker open it."""
        return {
            "do": "open",
            "model": self.number,
            "path": str(self.path),
            "slots": self.count,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


@dataclass(eq=False)
class Job:
    """One input on its way.

    Attributes:
        failures: (device, reason) of every worker that failed on it.
        fault: what was wrong with the numbers of its last answer, and the device that gave it.
    """

    model: Model
    slot: int
    done: threading.Event = field(default_factory=threading.Event)
    error: str | None = None
    failures: list[tuple[int, str]] = field(default_factory=list)
    fault: tuple[Fault, int] | None = None
    then: Callable[[], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, error: str | None = None) -> None:
        """Answered, or given up."""
        self.error = error
        with self.lock:
            self.done.set()
            then = self.then
        if then is not None:
            then()

    def when_done(self, then: Callable[[], None]) -> None:
        """Call something once it is answered or given up; at once where it is."""
        with self.lock:
            if not self.done.is_set():
                self.then = then
                return
        then()
