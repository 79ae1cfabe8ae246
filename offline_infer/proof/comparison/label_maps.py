"""Compare two folders of label maps, ours and the framework's, so that a tie and a mistake can be told apart.

Two engines never add floating-point numbers in the same order, so a few voxels on a border may fall to the other side.
Such a voxel has two classes of nearly equal probability. A voxel that differs although its classes were far apart is a
mistake. Where a folder holds the probabilities (``--save-probabilities``), each differing voxel is judged by it.

:func:`compare_arrays`, for raw engine outputs, lives in :mod:`offline_infer.proof.comparison.arrays` and is offered here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offline_infer.errors import OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.proof.comparison.arrays import ArrayComparison, LabelFlips, compare_arrays
from offline_infer.proof.comparison.differences import (
    Coordinates,
    Place,
    component_counts,
    confusion,
    differing_coordinates,
    evenly,
    place_of,
)
from offline_infer.proof.comparison.margins import ProbabilityFile, find_probabilities, largest_difference, margins_at
from offline_infer.proof.evaluation.labels import label_key
from offline_infer.proof.evaluation.metrics import JointHistogram, Label, joint_histogram, label_counts
from offline_infer.proof.evaluation.pairs import CasePair, pair_cases, read_pair
from offline_infer.proof.evaluation.pool import run_cases
from offline_infer.proof.evaluation.tables import format_table

__all__ = [
    "TIE_MARGIN",
    "ArrayComparison",
    "CaseComparison",
    "ComparisonReport",
    "LabelFlips",
    "Margins",
    "compare_arrays",
    "compare_folders",
]

STAGE = "compare"
TIE_MARGIN = 1e-3
"""Default largest margin that rounding may explain: twice what nnU-Net v1's float16 storage rounds away near 0.5."""

Verdict = Literal["identical", "ties", "bug", "unknown"]

_WORST = 5


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

    @property
    def agreement(self) -> float:
        """Share of voxels with the same label."""
        return 1.0 - self.differing / self.voxels

    @property
    def verdict(self) -> Verdict:
        """``identical``; ``ties``: every judged voxel is one; ``bug``: some are not; ``unknown``: no probabilities."""
        if self.differing == 0:
            return "identical"
        if self.margins is None:
            return "unknown"
        return "bug" if self.margins.bugs else "ties"

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
        if "bug" in found:
            return "bug"
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

    def to_text(self) -> str:
        """A table for a terminal."""
        rows: list[dict[str, str | float | int | None]] = [
            {
                "case": case.case,
                "voxels": case.voxels,
                "differing": case.differing,
                "agreement": f"{_percent(case.agreement, case.differing)} %",
                "lowest Dice": case.lowest_dice,
                "on border": "-" if case.place is None else f"{case.place.on_border}/{case.place.judged}",
                "margin max": None if case.margins is None else case.margins.max,
                "verdict": case.verdict,
            }
            for case in self.cases
        ]
        lines = [f"a: {self.a}", f"b: {self.b}", format_table(rows, digits=6)]
        lines += [f"{case.case}: {remark}" for case in self.cases for remark in case.remarks]
        lines += [f"{case}: only in a" for case in self.only_in_a]
        lines += [f"{case}: only in b" for case in self.only_in_b]
        lines += [f"{case}: not compared: {reason}" for case, reason in self.failed.items()]
        lines.append(f"{self.differing} of {self.voxels} voxels differ; verdict: {self.verdict}")
        return "\n".join(line for line in lines if line)


def compare_folders(
    a: Path,
    b: Path,
    *,
    labels: Sequence[Label] | None = None,
    jobs: int = 1,
    tie_margin: float = TIE_MARGIN,
    sink: Sink = silent,
) -> ComparisonReport:
    """Compare two folders (or two single files) of label maps case by case.

    Args:
        a: ours. b: the framework's, or whatever counts as the reference.
        labels: labels and regions of the per-label table; None takes the values found in either map.
        tie_margin: largest margin between the top two classes that still counts as a tie. nnU-Net v2 sums logits in
            float16, so at the very edge of a volume its own rounding exceeds the default.

    Raises:
        UsageError: paths that make no sense, or no case on both sides.
    """
    pairing = pair_cases(a, b)
    if not pairing.pairs:
        raise UsageError(f"{a} and {b} have no case in common; a case's files have the same name in both")
    if not tie_margin >= 0:
        raise UsageError(f"tie margin {tie_margin} is not a probability difference; expected 0 or more")
    wanted = None if labels is None else tuple(labels)
    outcomes = run_cases(
        compare_case,
        {pair.case: (pair, wanted, tie_margin) for pair in pairing.pairs},
        jobs=jobs,
        stage=STAGE,
        sink=sink,
        describe=lambda case: {"differing": case.differing, "verdict": case.verdict},
    )
    for case in (*pairing.only_first, *pairing.only_second):
        side = "a" if case in pairing.only_first else "b"
        sink(Event("note", STAGE, case=case, data={"note": f"only in {side}; not compared"}))
    return ComparisonReport(
        a=str(a),
        b=str(b),
        tie_margin=tie_margin,
        cases=tuple(outcomes.done.values()),
        only_in_a=pairing.only_first,
        only_in_b=pairing.only_second,
        failed=outcomes.failed,
    )


def compare_case(pair: CasePair, labels: Sequence[Label] | None, tie_margin: float) -> CaseComparison:
    """Compare one case; ``pair.first`` is a, ``pair.second`` is b.

    Raises:
        ImageError: a label map cannot be read.
        GeometryError: the shapes differ.
    """
    first, second, frame, frame_remarks = read_pair(pair)
    histogram = joint_histogram(first, second)
    remarks = list(frame_remarks)
    differs = histogram.differing > 0
    components = tuple(component_counts(array) for array in (first, second)) if differs else None
    place = margins = None
    if differs:
        coordinates = differing_coordinates(first, second)
        place = place_of(coordinates, second, frame.spacing)
        files = _probability_files(pair, frame.shape, remarks)
        try:
            margins = _judge(files, evenly(coordinates), tie_margin)
        except OfflineInferError as error:
            remarks.append(f"probabilities not used: {error}")
    wanted = labels if labels is not None else histogram.values
    ml = float(np.prod(np.asarray(frame.spacing, np.float64))) / 1000
    return CaseComparison(
        case=pair.case,
        a=str(pair.first),
        b=str(pair.second),
        same_frame=not frame_remarks,
        remarks=tuple(remarks),
        voxels=histogram.total,
        differing=histogram.differing,
        labels={label_key(label): _label_row(histogram, label, ml, components) for label in wanted},
        confusion=tuple(confusion(histogram)),
        place=place,
        margins=margins,
    )


def _label_row(
    histogram: JointHistogram, label: Label, ml: float, components: tuple[dict[int, int], ...] | None
) -> dict[str, float | int | None]:
    counts = label_counts(histogram, label)
    ours, theirs = counts.tp + counts.fp, counts.tp + counts.fn
    row: dict[str, float | int | None] = {
        "dice": None if np.isnan(counts.dice) else counts.dice,
        "voxels_a": ours,
        "voxels_b": theirs,
        "ml_a": ours * ml,
        "ml_b": theirs * ml,
    }
    if components is not None and isinstance(label, int) and label != 0:
        row["components_a"], row["components_b"] = (side.get(label, 0) for side in components)
    return row


def _probability_files(
    pair: CasePair, shape: tuple[int, ...], remarks: list[str]
) -> dict[Literal["a", "b"], ProbabilityFile]:
    found: dict[Literal["a", "b"], ProbabilityFile] = {}
    sides: tuple[tuple[Literal["a", "b"], Path], ...] = (("a", pair.first), ("b", pair.second))
    for side, path in sides:
        try:
            file = find_probabilities(path, shape)
        except OfflineInferError as error:
            remarks.append(f"probabilities of {side} not used: {error}")
            continue
        if file is not None:
            found[side] = file
    return found


def _judge(
    files: Mapping[Literal["a", "b"], ProbabilityFile], coordinates: Coordinates, threshold: float
) -> Margins | None:
    if not files:
        return None
    # The larger of two margins: a tie must be one in both, or the probabilities themselves are apart.
    margins = np.max([margins_at(file, coordinates) for file in files.values()], axis=0)
    inside = margins[np.isfinite(margins)]
    quantiles = [float(q) for q in np.quantile(inside, [0.5, 0.95, 0.99])] if inside.size else [None] * 3
    worst = np.argsort(-margins, kind="stable")[:_WORST]
    ties = int((margins <= threshold).sum())
    return Margins(
        source="both" if len(files) == 2 else next(iter(files)),
        judged=len(margins),
        outside=len(margins) - inside.size,
        max=float(inside.max()) if inside.size else None,
        mean=float(inside.mean()) if inside.size else None,
        p50=quantiles[0],
        p95=quantiles[1],
        p99=quantiles[2],
        threshold=threshold,
        ties=ties,
        bugs=len(margins) - ties,
        worst=tuple(
            {
                "voxel": [int(v) for v in coordinates[i]],
                "margin": float(margins[i]) if np.isfinite(margins[i]) else None,
            }
            for i in worst
        ),
        probability_difference=largest_difference(files["a"], files["b"]) if len(files) == 2 else None,
    )


def _percent(agreement: float, differing: int) -> str:
    """A percentage that says 100 only when nothing differs."""
    text = f"{100 * agreement:.4f}"
    return "99.9999+" if differing and text == "100.0000" else text
