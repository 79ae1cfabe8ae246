"""What an evaluation is asked to do, and what one case gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offline_infer.errors import UsageError
from offline_infer.proof.evaluation.labels import EvaluatedLabels, Format
from offline_infer.proof.evaluation.lesions import LesionOptions, LesionRecord
from offline_infer.proof.evaluation.metrics import JointHistogram, Label
from offline_infer.proof.evaluation.summary import FORMATS, Header
from offline_infer.proof.evaluation.surface_distances import SurfaceRecord

DEFAULT_TOLERANCES = (1.0, 2.0)


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        labels: what to evaluate: integers, tuples of integers for regions, or an :class:`EvaluatedLabels` from a bundle
            or a ``dataset.json``. None takes the ``dataset.json`` in the predictions' folder or above the references'
            folder, else the labels in the predictions' run record, otherwise the values found in the files (v2:
            without background); an event says which.
        ignore: value of the reference whose voxels are left out. (nnU-Net v1 knows no such label; it is honoured in
            both layouts.)
        format: layout of the summary.
        allow_missing: a reference without a prediction is remarked on instead of failing.
        jobs: processes.
        surface: also compute surface distances.
        tolerances: of the surface Dice, in mm.
        lesions: also match connected components (:mod:`offline_infer.proof.evaluation.lesions`); None leaves it out.
        header: free text of a v1 summary.
        worst: for so many cases, those with the lowest Dice, slices through the largest error are written too.
        images: a folder of images (or one) to show behind those slices.
    """

    labels: EvaluatedLabels | Sequence[Label] | None = None
    ignore: int | None = None
    format: Format = "nnunet-v2"
    allow_missing: bool = False
    jobs: int = 1
    surface: bool = False
    tolerances: Sequence[float] = DEFAULT_TOLERANCES
    lesions: LesionOptions | None = None
    header: Header | None = None
    worst: int = 0
    images: Path | None = None

    def check(self) -> None:
        """Raise :class:`UsageError` for options that make no sense."""
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}; legal names: {', '.join(FORMATS)}")
        good = self.tolerances and all(math.isfinite(t) and t > 0 for t in self.tolerances)
        if self.surface and not good:
            raise UsageError(f"surface tolerances {tuple(self.tolerances)} must be positive millimetres")
        if self.lesions is not None:
            self.lesions.check()
        if (self.surface or self.lesions is not None) and find_spec("scipy") is None:
            raise UsageError(
                "surface distances and the matching of lesions need the package scipy, which is not installed",
                remedy="install-report",
            )
        if self.worst < 0:
            raise UsageError(f"worst is {self.worst}; expected a number of cases, 0 or more")
        if self.images is not None and not self.images.exists():
            raise UsageError(f"{self.images}: does not exist; expected a folder of images")


@dataclass(frozen=True)
class CaseOptions:
    """The options of one case; what a worker process is sent.

    Attributes:
        labels: None takes the labels found in the case.
        tolerances: None computes no surface distances.
        lesions: None matches no components.
    """

    labels: tuple[Label, ...] | None = None
    ignore: int | None = None
    tolerances: tuple[float, ...] | None = None
    lesions: LesionOptions | None = None


@dataclass(frozen=True)
class CaseResult:
    """What one case gives.

    Attributes:
        histogram: of the pairs of values.
        notes: remarks, such as frames that differ.
        shape: (z, y, x). spacing: mm, (z, y, x), of the reference.
        surface, lesions: figures per label, if asked for.
    """

    histogram: JointHistogram
    notes: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    surface: Mapping[Label, SurfaceRecord] | None = None
    lesions: Mapping[Label, LesionRecord] | None = None

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return math.prod(self.spacing) / 1000


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        summary: content of ``summary.json``; None when no case could be evaluated.
        details: volumes in mL, lesions and label names, for the report; None when no case could be evaluated.
        surface: content of ``surface.json``; None unless asked for.
        labels: the labels evaluated and where they came from.
        failed: case -> reason.
        missing: references without a prediction. extra: predictions without a reference, which are left out.
        notes: case -> remarks, such as a prediction whose origin is not the reference's.
        total: cases that have a reference.
    """

    summary: dict[str, Any] | None
    details: dict[str, Any] | None
    surface: dict[str, Any] | None
    labels: EvaluatedLabels
    failed: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    total: int = 0
