"""What a report knows of one kind of record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from offline_infer.proof.report.parts import Section
from offline_infer.proof.report.values import Content, Names

Builder = Callable[[Content, Names], list[Section]]


@dataclass(frozen=True)
class RecordKind:
    """One kind of JSON record, and the sections it becomes.

    Attributes:
        title: what a message calls it.
        build: makes its sections; whatever is wrong with the record leaves it as a KeyError, TypeError or ValueError.
        named: what the record says under ``kind``.
        like: recognises a record that does not say what it is.
        labels: the names of labels that the record knows, by the labels' keys (``1``, or ``(1, 2)`` for a region).
    """

    name: str
    title: str
    build: Builder
    named: str = ""
    like: Callable[[Content], bool] | None = None
    labels: Callable[[Content], Names] | None = None
