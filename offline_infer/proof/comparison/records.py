"""What a comparison of label maps found, and the verdict that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from offline_infer.proof.comparison.diagnosis import Explanation
from offline_infer.proof.comparison.differences import Place

Verdict = Literal["identical", "ties", "different", "bug", "unknown"]
"""``identical``; ``ties``: every judged voxel is a tie; ``different``: two different models; ``bug``: the same model, but
voxels differ that rounding cannot explain; ``unknown``: there is nothing to judge by."""

_SPREAD_VOXELS = 50
_SPREAD_SHARE = 0.005
_SPREAD_REACH = 1 / 3


@dataclass(frozen=True)
class Margins:
    """Margins between the top two classes at the differing voxels.

    Attributes:
        source: whose probabilities: ``a``, ``b``, or ``both``: the larger margin of the two at each voxel.
        judged: voxels looked at; all that differ unless there are very many.
        outside: of those, voxels outside the stored region, where the label is certain; they count as bugs.
        max, mean, p50, p95, p99: over the judged voxels inside; None if there are none.
        threshold, ties, bugs: voxels with a margin up to the threshold, and above it.
        worst: the voxels with the largest margins: ``voxel`` (z, y, x) and ``margin`` (None outside).
        probability_difference: ``max`` and ``mean`` of the two folders' probabilities, where both are there.
    """

    source: Literal["a", "b", "both"]
    judged: int
    outside: int
    max: float | None
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    threshold: float
    ties: int
    bugs: int
    worst: tuple[dict[str, Any], ...] = ()
    probability_difference: Mapping[str, float] | None = None


@dataclass(frozen=True)
class CaseComparison:
    """One case.

    Attributes:
        a, b: the files.
        remarks: how the frames (spacing, origin, direction) differ; why probabilities could not be used.
        voxels, differing: counts.
        labels: label key -> ``dice``, ``voxels_a``, ``voxels_b``, ``ml_a``, ``ml_b`` and, where the maps differ,
            ``components_a``, ``components_b``.
        confusion: ``from`` b's label ``to`` a's, with ``voxels``.
        explanation: a single mistake that explains most of the difference, if there is one.
        same_model: whether both folders record the same checkpoint; None where one of them records none.
    """

    case: str
    a: str
    b: str
    same_frame: bool
    remarks: tuple[str, ...]
    voxels: int
    differing: int
    labels: Mapping[str, Mapping[str, float | int | None]]
    confusion: tuple[Mapping[str, int], ...] = ()
    place: Place | None = None
    margins: Margins | None = None
    explanation: Explanation | None = None
    same_model: bool | None = None

    @property
    def agreement(self) -> float:
        """Share of voxels with the same label."""
        return 1.0 - self.differing / self.voxels

    @property
    def verdict(self) -> Verdict:
        """See :data:`Verdict`. Records of the checkpoints decide; without them, how the differences are spread."""
        if self.differing == 0:
            return "identical"
        if self.margins is not None and not self.margins.bugs:
            return "ties"
        if self.explanation is not None:
            return "bug"
        if self.same_model is False or (self.same_model is None and self.spread):
            return "different"
        return "unknown" if self.margins is None else "bug"

    @property
    def spread(self) -> bool:
        """Whether the differences lie all along the borders, as between two different models: fifty voxels and more, more
        than 0.5 % of the labelled voxels, near more than a third of the border."""
        if self.place is None or self.place.reach is None:
            return False
        labelled = sum(
            max(int(row["voxels_a"] or 0), int(row["voxels_b"] or 0)) for key, row in self.labels.items() if key != "0"
        )
        return (
            self.differing >= _SPREAD_VOXELS
            and self.differing > _SPREAD_SHARE * labelled
            and self.place.reach > _SPREAD_REACH
        )

    @property
    def lowest_dice(self) -> float | None:
        """Smallest Dice of a foreground label, a against b."""
        found = [row["dice"] for key, row in self.labels.items() if key != "0" and row["dice"] is not None]
        return float(min(found)) if found else None

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "same_frame": self.same_frame,
            "remarks": list(self.remarks),
            "voxels": self.voxels,
            "differing": self.differing,
            "agreement": self.agreement,
            "lowest_dice": self.lowest_dice,
            "labels": {key: dict(row) for key, row in self.labels.items()},
            "confusion": [dict(pair) for pair in self.confusion],
            "place": None if self.place is None else self.place.to_json(),
            "margins": None if self.margins is None else asdict(self.margins),
            "explanation": None if self.explanation is None else asdict(self.explanation),
            "same_model": self.same_model,
        }


@dataclass(frozen=True)
class ComparisonReport:
    """All cases of two folders. ``failed``: case -> why it could not be compared."""

    a: str
    b: str
    tie_margin: float
    cases: tuple[CaseComparison, ...]
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst of the cases; ``unknown`` also when a case is missing or could not be compared."""
        found = {case.verdict for case in self.cases}
        for worst in ("bug", "different"):
            if worst in found:
                return cast("Verdict", worst)
        if "unknown" in found or not found or self.failed or self.only_in_a or self.only_in_b:
            return "unknown"
        return "ties" if "ties" in found else "identical"

    @property
    def voxels(self) -> int:
        return sum(case.voxels for case in self.cases)

    @property
    def differing(self) -> int:
        return sum(case.differing for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "offline_infer.comparison",
            "version": 1,
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "tie_margin": self.tie_margin,
            "voxels": self.voxels,
            "differing": self.differing,
            "agreement": 1.0 - self.differing / self.voxels if self.voxels else None,
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "failed": dict(self.failed),
            "cases": [case.to_json() for case in self.cases],
        }
