"""Progress events: what library code says about its work, and nothing about how it is shown.

Library code takes a :data:`Sink` and calls it with an :class:`Event`; it never prints. The command line chooses a
sink: one bar and sentences on a terminal, short lines elsewhere, JSON lines for programs, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``stage-started``, ``case-started``, ``progress``, ``case-finished``, ``case-failed``, ``case-skipped``, ``note``,
            ``forecast`` (of disk) or ``estimate`` (of memory).
        stage: the stage that speaks, e.g. ``predict``.
        case: the case it concerns, if any.
        done, total: for ``progress``: how many items of how many.
        data: further JSON-able facts.
    """

    kind: str
    stage: str
    case: str | None = None
    done: int | None = None
    total: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The event as a flat JSON object without empty fields."""
        record: dict[str, Any] = {"event": self.kind, "stage": self.stage}
        if self.case is not None:
            record["case"] = self.case
        if self.done is not None:
            record["done"] = self.done
        if self.total is not None:
            record["total"] = self.total
        return {**record, **self.data}


Sink = Callable[[Event], None]


def without(sink: Sink, *kinds: str) -> Sink:
    """A sink that passes on every event but those of some kinds."""

    def passed_on(event: Event) -> None:
        if event.kind not in kinds:
            sink(event)

    return passed_on


def silent(event: Event) -> None:
    """The sink that ignores everything."""
