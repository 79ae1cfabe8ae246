"""The kinds of records a report shows, and where on the page their sections stand.

A new kind takes a module under ``sections/`` with its ``RECORDS``, that module's name in :data:`KINDS`, and a place for each of its
sections in :data:`ORDER`.
"""

from __future__ import annotations

from typing import Any

from offline_infer.proof.report.records import RecordKind
from offline_infer.proof.report.sections import (
    accuracy,
    agreement,
    choices,
    images,
    objects,
    provenance,
    speed,
    statistics,
)

KINDS: tuple[RecordKind, ...] = (
    *accuracy.RECORDS,
    *images.RECORDS,
    *objects.RECORDS,
    *provenance.RECORDS,
    *agreement.RECORDS,
    *speed.RECORDS,
    *choices.RECORDS,
    *statistics.RECORDS,
    *provenance.STAGES,
    *speed.ANY_RECORDS,
)
"""In the order in which a record that does not name its kind is tried."""
ORDER: tuple[str, ...] = (
    *("summary", "image_summary", "sweep", "slices"),
    *("objects", "worst pairs", "missed objects", "invented objects"),
    *("lesions", "volumes", "surface", "problems"),
    *("bundle", "comparison", "arrays", "layers", "precision", "checks", "quantization"),
    *("performance overview", "speed", "tuning", "performance", "measurements", "statistics", "run", "stage", "record"),
)
"""Kinds of sections as the page reads: is it right, where is it wrong, is it the same model, how fast, what exactly was run."""


def recognise(content: Any) -> RecordKind | None:
    """The kind of a parsed JSON file: what it says of itself counts first, then what it looks like."""
    if not isinstance(content, dict):
        return None
    said = content.get("kind")
    named = next((kind for kind in KINDS if kind.named and kind.named == said), None)
    return named or next((kind for kind in KINDS if kind.like is not None and kind.like(content)), None)
