"""``tune``: every setting of a grid on labelled cases, its Dice and its time, and the fastest one within the loss allowed.

The setting is chosen on one half of the cases and confirmed on the other: the fastest of many settings that look good on the
same few cases would partly be chosen by chance. With fewer than four cases there is only one half, and the record says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer._version import __version__
from offline_infer.bundles.bundle import TUNING, Bundle
from offline_infer.bundles.kept_records import keep_record, refuse_lone, tell_signed
from offline_infer.engines.base import EngineOptions, require_engine
from offline_infer.errors import EngineUnavailable, UsageError
from offline_infer.events import Event, Sink, silent, without
from offline_infer.images.cases import CaseFiles
from offline_infer.predict.model import Model
from offline_infer.quantizing.cases import all_usable
from offline_infer.quantizing.judging import Paired, comparing, doubts, paired_difference, require_references, run_cases
from offline_infer.scratch import held, scratch_folder
from offline_infer.tasks.base import Task
from offline_infer.tasks.opening import open_bundle
from offline_infer.tasks.registry import get_task
from offline_infer.tasks.settings import RunSettings
from offline_infer.tuning.setting import Setting, graph_digests, grid

STAGE = "tune"
_FEWEST_HALVED = 4  # cases


@dataclass(frozen=True)
class TuneJob:
    """What to do.

    Attributes:
        cases: folder of cases. labels: their references.
        max_loss: of the mean task Dice, against the framework's own way in float32.
        precisions, steps: to try, besides float32 and the model's own step.
        folds: to average at most, default all.
        settings: what is not tuned.
    """

    cases: Path
    labels: Path
    max_loss: float = 0.002
    precisions: Sequence[str] = ("bf16", "int8")
    steps: Sequence[float] = (0.75,)
    folds: Sequence[str] = ()
    engine: str = "openvino"
    threads: int = 0
    settings: RunSettings = field(default_factory=RunSettings)


@dataclass(frozen=True)
class Row:
    """A setting and what was measured: case -> task Dice, and seconds a case in the mean."""

    setting: Setting
    scores: Mapping[str, float]
    seconds: float

    def mean(self, cases: Sequence[str]) -> float:
        """Mean task Dice over some cases."""
        return math.fsum(self.scores[case] for case in cases) / len(cases)

    def change(self, reference: Row, cases: Sequence[str]) -> Paired:
        """The change of task Dice against another setting, case by case."""
        return paired_difference([reference.scores[case] for case in cases], [self.scores[case] for case in cases])


def tune(bundle: Bundle, job: TuneJob, sink: Sink = silent) -> dict[str, Any]:
    """Measure, choose, and keep the choice in the bundle; nothing uses it unless it is asked for.

    Returns:
        The record, as it is kept.

    Raises:
        UsageError: no labelled cases, labels that float32 itself does not come near, or a task whose results no one figure
            compares.
        EngineUnavailable: the engine cannot run here.
        CasesFailed: a case failed.
    """
    refuse_lone(bundle)
    task = get_task(bundle.spec.task)
    compares = comparing(task)
    require_engine(job.engine)
    found = all_usable(task.list_cases(job.cases, bundle.spec))
    if not found.cases:
        raise UsageError(f"{job.cases} holds no case")
    cases = sorted(found.cases, key=lambda case: case.case_id)
    require_references(compares, job.labels, cases)
    settings = list(
        grid(
            bundle,
            job.precisions,
            job.steps,
            mirrored=_mirrors(task, bundle, cases[0], job),
            all_folds=tuple(job.folds) or bundle.folds,
        )
    )
    rows: list[Row] = []
    left_out: list[str] = []
    for done, setting in enumerate(settings, 1):
        try:
            rows.append(_measured(bundle, task, setting, cases, job, sink))
        except EngineUnavailable as error:  # a precision that this processor lacks
            if not rows:  # float32, which all others are compared with
                raise
            left_out.append(f"{setting}: {error}")
        if done == 1 and (reasons := doubts(list(rows[0].scores.values()))):
            raise UsageError(f"{bundle.name}: {reasons[0]}; nothing was kept")
        sink(Event("progress", STAGE, done=done, total=len(settings), data={"setting": str(setting)}))
    record = _record(bundle, job, rows, left_out)
    with held(bundle.folder):
        now = open_bundle(bundle.folder)  # another process may have added to it
        if graph_digests(now) != record["graphs"]:
            raise UsageError(f"{bundle.name}: its graphs were replaced while they were tuned; nothing was kept")
        keep_record(now, TUNING, record)
    tell_signed(bundle, lambda text: sink(Event("note", STAGE, data={"text": text})))
    return record


def choose_row(rows: Sequence[Row], max_loss: float) -> tuple[Row, tuple[str, ...], tuple[str, ...]]:
    """The fastest row whose mean loss is allowed, both where it is chosen and where it is confirmed.

    Args:
        rows: the first one is the reference.

    Returns:
        The row, the cases it was chosen on, and those that confirmed it (empty below four cases).
    """
    reference = rows[0]
    cases = sorted(reference.scores)
    halved = len(cases) >= _FEWEST_HALVED
    choosing = tuple(cases[::2] if halved else cases)
    confirming = tuple(cases[1::2] if halved else ())
    for row in sorted(rows, key=lambda row: row.seconds):
        if row.change(reference, choosing).mean >= -max_loss:
            confirmed = not confirming or row.change(reference, confirming).mean >= -max_loss
            return (row if confirmed else reference), choosing, confirming
    return reference, choosing, confirming


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other one beats in both Dice and time, the fastest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -row.mean(sorted(row.scores)))):
        if not best or row.mean(sorted(row.scores)) > best[-1].mean(sorted(best[-1].scores)):
            best.append(row)
    return best


def _mirrors(task: Task, bundle: Bundle, case: CaseFiles, job: TuneJob) -> bool:
    """Whether the model looks at an input in several mirrors."""
    layout = task.expected_layout(case, bundle.spec, job.settings, exact=False)
    return layout.per_group > 1


def _measured(
    bundle: Bundle, task: Task, setting: Setting, cases: Sequence[CaseFiles], job: TuneJob, sink: Sink
) -> Row:
    """Run all cases one way.

    Raises:
        EngineUnavailable: the engine lacks the precision.
        UsageError: a result that no reference scores.
    """
    options = EngineOptions(precision=setting.precision, threads=job.threads)
    with scratch_folder("tune") as folder:
        output = folder / "results"
        with Model(bundle, engine=job.engine, options=options, folds=setting.folds, unverified=True) as model:
            _ = model.sessions  # opening is paid once, whatever the number of cases
            seconds = run_cases(
                model, cases, output, setting.run_settings(job.settings), without(sink, "note", "progress")
            )
        scores = comparing(task).case_scores(output, job.labels, bundle.spec)
    missing = sorted(set(seconds) - set(scores))
    if missing:
        raise UsageError(f"{', '.join(missing[:5])}: results that {job.labels} cannot score")
    return Row(setting, {case: scores[case] for case in seconds}, math.fsum(seconds.values()) / len(seconds))


def _record(bundle: Bundle, job: TuneJob, rows: Sequence[Row], left_out: Sequence[str]) -> dict[str, Any]:
    chosen, choosing, confirming = choose_row(rows, job.max_loss)
    reference = rows[0]
    every = sorted(reference.scores)
    front = pareto(rows)
    return {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "engine": job.engine,
        "threads": job.threads,
        "max_loss": job.max_loss,
        "graphs": graph_digests(bundle),
        "chosen_on": list(choosing),
        "confirmed_on": list(confirming),
        "chosen": chosen.setting.to_json(),
        "speed_up": reference.seconds / chosen.seconds if chosen.seconds else None,
        "change_confirmed": dict(chosen.change(reference, confirming).__dict__) if confirming else None,
        "settings": [
            {
                **row.setting.to_json(),
                "name": str(row.setting),
                "seconds": round(row.seconds, 4),
                "dice": row.mean(every),
                "change": dict(row.change(reference, every).__dict__),
                "pareto": row in front,
                "chosen": row is chosen,
            }
            for row in rows
        ],
        "left_out": list(left_out),
    }
