"""Whole cases as judges: two ways to run a model, case by case, against each other and against references."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offline_infer.bundles.bundle import Bundle
from offline_infer.engines.base import EngineOptions, Session
from offline_infer.errors import UsageError
from offline_infer.events import Sink, silent
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.folder import FolderJob, predict_folder
from offline_infer.predict.model import Model
from offline_infer.tasks.base import ComparesResults, Task
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.settings import RunSettings

LEVEL = 0.95
"""Of confidence intervals."""
LEAST_SCORE = 0.1
"""Mean task Dice that float32 itself has to reach on labelled cases, or labels and cases do not belong together."""
_DRAWS = 10_000
_WHOLE = 0.98  # share of a case that is not background above which an answer is the same everywhere


@dataclass(frozen=True)
class Paired:
    """The difference of a figure between two ways, case by case.

    Attributes:
        mean: of the differences (second minus first).
        low, high: of the interval (:data:`LEVEL`) around the mean, from re-drawn cases; None below three cases.
        cases: how many.
    """

    mean: float
    low: float | None
    high: float | None
    cases: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({LEVEL:.0%} interval {self.low:+.5f} to {self.high:+.5f})"
        return f"{self.mean:+.5f}{interval} over {self.cases} case{'s' if self.cases != 1 else ''}"


@dataclass(frozen=True)
class Verdict:
    """What the judges found.

    Attributes:
        dice: case -> Dice of the foreground between the candidate's and the float32 result; None where both are empty.
        scores, float_scores: case -> task Dice against its reference; empty without references.
        paired: of those two; None without.
        reasons: why the candidate is refused; empty for an accepted one.
    """

    dice: Mapping[str, float | None]
    scores: Mapping[str, float] = field(default_factory=dict)
    float_scores: Mapping[str, float] = field(default_factory=dict)
    paired: Paired | None = None
    reasons: tuple[str, ...] = ()

    @property
    def lowest(self) -> float | None:
        """The lowest Dice of a case."""
        return min((value for value in self.dice.values() if value is not None), default=None)

    @property
    def mean(self) -> float | None:
        """The mean over the cases."""
        known = [value for value in self.dice.values() if value is not None]
        return math.fsum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        shown = {name: dict(getattr(self, name)) for name in ("dice", "scores", "float_scores")}
        paired = None if self.paired is None else dict(self.paired.__dict__)
        return {**shown, "lowest_dice": self.lowest, "mean_dice": self.mean, "paired": paired}


def comparing(task: Task) -> ComparesResults:
    """The task's own comparison of results.

    Raises:
        UsageError: it has none.
    """
    if not isinstance(task, ComparesResults):
        raise UsageError(
            f"results of the task {task.name!r} are not compared by one figure a case, so nothing can be judged by it"
        )
    return task


def run_cases(
    model: Model, cases: Sequence[CaseFiles], output: Path, settings: RunSettings, sink: Sink
) -> dict[str, float]:
    """Run whole cases; every one has to succeed.

    Returns:
        Case -> seconds the network and what stands around it took.

    Raises:
        CasesFailed: a case failed.
    """
    report = predict_folder(model, FolderJob(tuple(cases), output, canary="never"), settings, sink)
    report.raise_failures()
    return {case.case: math.fsum(case.seconds.values()) for case in report.cases}


def whole_cases(
    bundle: Bundle,
    fold: str,
    cases: Sequence[CaseFiles],
    folder: Path,
    engine: str,
    threads: int,
    settings: RunSettings,
) -> Callable[[Session], dict[str, float]]:
    """Run whole cases in float32, and give what runs them with another graph of the same fold and compares the results.

    Args:
        folder: for results, while the returned function is used.

    Returns:
        Opened session -> Dice of each case to float32's result, without the cases where neither finds anything.

    Raises:
        CasesFailed: a case failed.
    """
    task = get_task(bundle.spec.task)
    compares = comparing(task)
    exact = folder / f"fold_{fold}"
    options = EngineOptions(threads=threads)
    with Model(bundle, engine=engine, options=options, folds=[fold], unverified=True) as model:
        run_cases(model, cases, exact, settings, silent)

    def dice(session: Session) -> dict[str, float]:
        model = Model(bundle, engine=engine, options=options, folds=[fold], unverified=True)
        model.use_sessions([session])
        with tempfile.TemporaryDirectory(dir=folder, prefix="trial_") as place:
            run_cases(model, cases, Path(place), settings, silent)
            found = {
                case.case_id: compares.agreement(case.case_id, Path(place), exact, bundle.spec, settings).dice
                for case in cases
            }
        return {case: value for case, value in found.items() if value is not None}

    return dice


def judge_cases(
    task: Task,
    spec: Any,
    cases: Sequence[CaseFiles],
    folders: tuple[Path, Path],
    settings: RunSettings,
    labels: Path | None,
    *,
    min_dice: float,
    max_loss: float,
) -> Verdict:
    """Compare a candidate's results with float32's, and both with references.

    Args:
        folders: float32's results, and the candidate's.
        min_dice: every case must reach it.
        max_loss: of task Dice, in the mean over the cases.
    """
    compares = comparing(task)
    exact, candidate = folders
    found = {case.case_id: compares.agreement(case.case_id, candidate, exact, spec, settings) for case in cases}
    dice = {case: each.dice for case, each in found.items()}
    reasons = []
    if all(each.share == 0 for each in found.values()):
        reasons.append("float32 itself finds nothing in the cases that judge: they prove nothing")
    if all(each.share > _WHOLE for each in found.values()):
        reasons.append("float32 itself gives nearly every voxel of the cases that judge a label: they prove nothing")
    failing = {case: value for case, value in dice.items() if value is not None and not value >= min_dice}
    if failing:
        worst = min(failing, key=lambda case: failing[case])
        reasons.append(
            f"{len(failing)} of {len(dice)} unseen cases are below a Dice of {min_dice:g} to float32; the lowest is "
            f"{failing[worst]:.5f} ({worst})"
        )
    if labels is None:
        return Verdict(dice, reasons=tuple(reasons))
    before, after = (compares.case_scores(folder, labels, spec) for folder in folders)
    common = sorted(set(before) & set(after))
    if not common:
        return Verdict(dice, reasons=(*reasons, f"{labels} holds no reference for the cases that judge"))
    paired = paired_difference([before[case] for case in common], [after[case] for case in common])
    reasons += doubts([before[case] for case in common])
    if paired.mean < -max_loss:
        reasons.append(f"task Dice changes by {paired}, at most {-max_loss:+g} is allowed")
    return Verdict(dice, after, before, paired, tuple(reasons))


def doubts(scores: Sequence[float]) -> list[str]:
    """Why float32's own task Dice on labelled cases proves nothing; empty where it does."""
    mean = math.fsum(scores) / len(scores)
    if mean >= LEAST_SCORE:
        return []
    return [
        f"float32 itself reaches a task Dice of {mean:.3f} only, at least {LEAST_SCORE:g} is expected of a trained model "
        "on cases of its kind with their own labels"
    ]


def require_references(compares: ComparesResults, labels: Path, cases: Sequence[CaseFiles]) -> None:
    """Refuse cases without a reference before anything is run.

    Raises:
        UsageError: there is one, or the references cannot be listed.
    """
    known = compares.referenced(labels)
    missing = sorted(case.case_id for case in cases if case.case_id not in known)
    if missing:
        raise UsageError(
            f"{labels} holds no reference for {len(missing)} of {len(cases)} cases: {', '.join(missing[:5])}; a case's files "
            "have the same name in both folders"
        )


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Mean of ``second - first`` over the same cases and its interval: percentiles of the means of re-drawn cases.

    Method: the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). The draws
    are the same every time.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    count = differences.size
    if count < 3:
        return Paired(float(differences.mean()), None, None, count)
    drawn = np.random.default_rng(0).integers(0, count, (_DRAWS, count))
    low, high = np.quantile(differences[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Paired(float(differences.mean()), float(low), float(high), count)
