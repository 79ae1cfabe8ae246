"""The streaming run of one case: from prepared arrays to a result, without touching the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offline_infer.engines.base import Session
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import Allocate, Answers, Cutter, Finish, Key, Prepared, Progress, Task
from offline_infer.tasks.settings import RunSettings
from offline_infer.threads import Team, worker_count

KEPT_ANSWER_BYTES = 64 * 2**20
"""The answer to an input with a key is kept for later ones if it is no larger than this."""


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

    Inputs with equal keys (air, padding) are equal in every position and wherever they lie: they are run once.

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
    networks = [_Network(session, cutter) for session in sessions]
    for group in range(layout.groups):
        key = cutter.load(group)
        for fold, network in enumerate(networks):
            for position in range(layout.per_group):
                collector.take(group, position, fold, network.answer(position, key))
        if progress is not None:
            progress(group + 1, layout.groups)
    return collector.finish


class _Network:
    """A session that is not run again for an input whose answer is still at hand."""

    def __init__(self, session: Session, cutter: Cutter) -> None:
        self._session = session
        self._cutter = cutter
        self._in_buffer: tuple[Key, Answers] | None = None
        self._kept: tuple[Key, Answers] | None = None

    def answer(self, position: int, key: Key | None) -> Answers:
        """The kept outputs for the cutter's input at that position; valid until the next call."""
        if key is not None:
            for known in (self._in_buffer, self._kept):
                if known is not None and known[0] == key:
                    return known[1]
        answers = self._session.answer(self._cutter.input(position))
        self._in_buffer = (key, answers) if key is not None else None
        if key is not None and sum(array.nbytes for array in answers.values()) <= KEPT_ANSWER_BYTES:
            self._kept = (key, _copied(answers))
        return answers


def _copied(answers: Answers) -> Mapping[str, Any]:
    return {name: array.copy() for name, array in answers.items()}
