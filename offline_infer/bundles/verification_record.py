"""What a graph's verification record says: how far every engine's answers were from the checkpoint's own network.

``export`` writes the record; it is free-form, so that every kind of model can say what it measured. This module reads the
part that all of them share and tolerates what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST = 300


@dataclass(frozen=True)
class EngineComparison:
    """One engine against the checkpoint's network, the worst over all inputs.

    Attributes:
        engine: name and version.
        max_diff: largest absolute difference of a logit.
        logit_scale: largest absolute logit of the network, which tells what that means.
        flips, voxels: voxels whose label changed, of how many.
        flip_margin: largest margin of the network's decision among those; None without flips.
    """

    engine: str
    max_diff: float | None
    logit_scale: float | None
    flips: int
    voxels: int
    flip_margin: float | None

    def __str__(self) -> str:
        parts = []
        if self.max_diff is not None:
            scale = "" if self.logit_scale is None else f" of logits up to {self.logit_scale:.3g}"
            parts.append(f"max |difference| {self.max_diff:.2g}{scale}")
        if self.voxels:
            margin = "" if self.flip_margin is None else f" (margin at most {self.flip_margin:.2g})"
            parts.append(f"{self.flips:,} of {self.voxels:,} labels changed{margin}")
        return f"{self.engine}: {', '.join(parts) or 'compared'}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)


def comparisons(verification: Mapping[str, Any] | None) -> tuple[EngineComparison, ...]:
    """The engines of a record; empty where the graph was not verified."""
    if not isinstance(verification, Mapping):
        return ()
    engines = verification.get("engines")
    found = [_comparison(entry) for entry in engines if isinstance(entry, Mapping)] if isinstance(engines, list) else []
    return tuple(entry for entry in found if entry is not None)


def lines_of(verification: Mapping[str, Any] | None) -> list[str]:
    """The record for people, one line per engine."""
    if verification is None:
        return ["not verified: exported without a comparison with the checkpoint's network"]
    lines = [str(entry) for entry in comparisons(verification)]
    engines = verification.get("engines")
    for entry in engines if isinstance(engines, list) else []:
        # Models whose answers are no logits of voxels say in their own words how far they were.
        if isinstance(entry, Mapping) and isinstance(entry.get("text"), str):
            lines.append(f"{_engine(entry)}: {entry['text'][:_LONGEST]}")
    if isinstance(verification.get("canary"), Mapping):
        lines.append("holds a canary: the checkpoint's own answer at a few points, which predict can ask again")
    if "int8_share" in verification:
        lines.append(
            f"{_number(verification['int8_share']) or 0:.0%} of the multiplications in INT8, {verification.get('around')} around "
            "them; judged on whole unseen cases"
        )
    return lines or ["a verification record without figures"]


def _comparison(entry: Mapping[str, Any]) -> EngineComparison | None:
    inputs = entry.get("inputs")
    measured = [item for item in inputs.values() if isinstance(item, Mapping)] if isinstance(inputs, Mapping) else []
    if not measured:
        return None
    return EngineComparison(
        engine=_engine(entry),
        max_diff=_largest(measured, "max_diff"),
        logit_scale=_largest(measured, "logit_scale"),
        flips=int(sum(_number(item.get("flips")) or 0 for item in measured)),
        voxels=int(sum(_number(item.get("voxels")) or 0 for item in measured)),
        flip_margin=_largest(measured, "flip_margin"),
    )


def _engine(entry: Mapping[str, Any]) -> str:
    return " ".join(str(entry[key]) for key in ("engine", "version") if entry.get(key)) or "an engine"


def _largest(items: list[Mapping[str, Any]], key: str) -> float | None:
    numbers = [number for item in items if (number := _number(item.get(key))) is not None]
    return max(numbers, default=None)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
