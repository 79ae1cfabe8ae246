"""Compare two folders of label maps, ours and the framework's, so that a tie and a mistake can be told apart.

Two engines never add floating-point numbers in the same order, so a few voxels on a border may fall to the other side.
Such a voxel has two classes of nearly equal probability. A voxel that differs although its classes were far apart is a
mistake. Where a folder holds the probabilities (``--save-probabilities``), each differing voxel is judged by it.

:func:`compare_arrays`, for raw engine outputs, lives in :mod:`offline_infer.proof.comparison.arrays` and is offered here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from offline_infer.errors import OfflineInferError, UsageError
from offline_infer.events import Event, Sink, silent
from offline_infer.proof.comparison.arrays import ArrayComparison, LabelFlips, compare_arrays
from offline_infer.proof.comparison.diagnosis import explain, recorded_precisions, same_checkpoint
from offline_infer.proof.comparison.differences import (
    Coordinates,
    component_counts,
    confusion,
    differing_coordinates,
    evenly,
    place_of,
)
from offline_infer.proof.comparison.margins import ProbabilityFile, find_probabilities, largest_difference, margins_at
from offline_infer.proof.comparison.records import CaseComparison, ComparisonReport, Margins
from offline_infer.proof.evaluation.labels import label_key
from offline_infer.proof.evaluation.metrics import JointHistogram, Label, joint_histogram, label_counts
from offline_infer.proof.evaluation.pairs import CasePair, pair_cases, read_pair
from offline_infer.proof.evaluation.pool import run_cases

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

TIE_MARGINS: Mapping[str, float] = {"fp32": TIE_MARGIN, "fp16": 1e-2, "bf16": 5e-2}
"""The same where a side was computed in a reduced precision: 11 and 8 bits of mantissa, through a whole network."""

_WORST = 5


def compare_folders(
    a: Path,
    b: Path,
    *,
    labels: Sequence[Label] | None = None,
    jobs: int = 1,
    tie_margin: float | None = None,
    sink: Sink = silent,
) -> ComparisonReport:
    """Compare two folders (or two single files) of label maps case by case.

    Args:
        a: ours. b: the framework's, or whatever counts as the reference.
        labels: labels and regions of the per-label table; None takes the values found in either map.
        tie_margin: largest margin between the top two classes that still counts as a tie. nnU-Net v2 sums logits in
            float16, so at the very edge of a volume its own rounding exceeds the default. None: by the precisions that
            the folders' run records name (:data:`TIE_MARGINS`), :data:`TIE_MARGIN` without them.

    Raises:
        UsageError: paths that make no sense, or no case on both sides.
    """
    pairing = pair_cases(a, b)
    if not pairing.pairs:
        raise UsageError(f"{a} and {b} have no case in common; a case's files have the same name in both")
    if tie_margin is None:
        tie_margin = _tie_margin(a, b)
    if not 0 <= tie_margin <= 1:
        raise UsageError(f"tie margin {tie_margin} is not a difference of probabilities; expected a number from 0 to 1")
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


def _tie_margin(a: Path, b: Path) -> float:
    folders = [side if side.is_dir() else side.parent for side in (a, b)]
    found = [name for folder in folders for name in recorded_precisions(folder)]
    return max((TIE_MARGINS.get(name, TIE_MARGIN) for name in found), default=TIE_MARGIN)


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
    place = margins = explanation = None
    if differs:
        coordinates = differing_coordinates(first, second)
        place = place_of(coordinates, second, frame.spacing)
        files = _probability_files(pair, frame.shape, remarks)
        try:
            margins = _judge(files, evenly(coordinates), tie_margin)
        except OfflineInferError as error:
            remarks.append(f"probabilities not used: {error}")
        explanation = explain(first, second, histogram)
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
        explanation=explanation,
        same_model=same_checkpoint(pair.first.parent, pair.second.parent) if differs else None,
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
