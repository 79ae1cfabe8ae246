"""The streaming run of one case: from prepared arrays to a result, without touching the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from offline_infer.engines.base import Session
from offline_infer.engines.queueing import Request, in_order
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import Allocate, Finish, Prepared, Progress, Task
from offline_infer.tasks.settings import RunSettings
from offline_infer.threads import Team, worker_count


def infer(
    task: Task,
    prepared: Prepared,
    spec: BundleSpec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    allocate: Allocate | None = None,
) -> Finish:
    """Run the network over a prepared case.

    Inputs with equal keys (air, padding) are equal in every position and wherever they lie: they are run once. Sessions that
    queue get inputs ahead, so that several devices work at a time; answers are taken in the same order in any case.

    Args:
        sessions: one per fold.
        threads: for the work around the network; 0 or None = all cores.
        allocate: gives the zeroed memory of the largest arrays; default ``numpy.zeros``.

    Returns:
        What finishes the case, in any thread, beside the next case.

    Raises:
        EngineFailed: the engine failed or answered with NaN.
    """
    team = Team(worker_count(threads))
    try:
        finish = task.run_on_device(
            prepared, spec, sessions, settings, team=team, allocate=allocate, progress=progress
        ) or _on_host(task, prepared, spec, sessions, settings, progress, team, allocate)
    except BaseException:
        team.close()
        raise

    def closing() -> Any:
        try:
            return finish()
        finally:
            team.close()

    return closing


def _on_host(
    task: Task,
    prepared: Prepared,
    spec: BundleSpec,
    sessions: Sequence[Session],
    settings: RunSettings,
    progress: Progress | None,
    team: Team,
    allocate: Allocate | None,
) -> Finish:
    layout = task.layout(prepared.geometry, spec, settings)
    cutter = task.cutter(prepared, layout, spec, team)
    collector = task.collector(prepared.geometry, spec, settings, len(sessions), team=team, allocate=allocate)

    def requests() -> Iterator[Request[tuple[int, int, int]]]:
        for group in range(layout.groups):
            key = cutter.load(group)
            for fold, session in enumerate(sessions):
                for position in range(layout.per_group):
                    yield Request((group, position, fold), session, partial(cutter.input, position), key)

    told = 0
    for (group, position, fold), answers in in_order(requests()):
        if progress is not None and group > told:
            progress(group, layout.groups)
            told = group
        collector.take(group, position, fold, answers)
    if progress is not None:
        progress(layout.groups, layout.groups)
    return collector.finish
