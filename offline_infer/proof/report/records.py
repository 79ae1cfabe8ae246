"""What a report knows of one kind of record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from offline_infer.proof.report.parts import Section
from offline_infer.proof.report.values import Content, Names

Builder = Callable[[Content, Names], list[Section]]


@dataclass(frozen=True)
class Timing:
    """How fast something ran: the network alone, or whole cases; the page compares those of all its records.

    Attributes:
        name: of the engine or tool, with its precision. device: what it ran on.
        call: seconds of one network call, the median where it is known. low, high: what most calls lay between.
        devices_per_card: of that kind.
        cases: case -> seconds from file to file; where these are given, ``call`` is not.
    """

    name: str
    device: str = ""
    call: float | None = None
    low: float | None = None
    high: float | None = None
    devices_per_card: int = 1
    cases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordKind:
    """One kind of JSON record, and the sections it becomes.

    Attributes:
        title: what a message calls it.
        build: makes its sections; whatever is wrong with the record leaves it as a KeyError, TypeError or ValueError.
        named: what the record says under ``kind``.
        like: recognises a record that does not say what it is.
        labels: the names of labels that the record knows, by the labels' keys (``1``, or ``(1, 2)`` for a region).
        timings: what it says of speed.
    """

    name: str
    title: str
    build: Builder
    named: str = ""
    like: Callable[[Content], bool] | None = None
    labels: Callable[[Content], Names] | None = None
    timings: Callable[[Content], Sequence[Timing]] | None = None
