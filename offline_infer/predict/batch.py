"""A folder of cases in one call: what ``offline-infer predict`` does, for Python."""

from __future__ import annotations

from pathlib import Path

from offline_infer.events import Sink, silent
from offline_infer.predict.folder import FolderJob
from offline_infer.predict.folder import predict_folder as run_job
from offline_infer.predict.model import Model
from offline_infer.tasks.reports import RunReport
from offline_infer.tasks.results import OnExisting
from offline_infer.tasks.settings import RunSettings


def predict_folder(
    model: Model,
    source: str | Path,
    output: str | Path,
    *,
    settings: RunSettings | None = None,
    existing: OnExisting = "compare",
    memory: int | None = None,
    sink: Sink = silent,
) -> RunReport:
    """Run a model on every case of a folder and write the results.

    Args:
        source: a file, or a folder of cases by nnU-Net's naming.
        output: folder for the results; those that are there are compared, and skipped where they are the same.
        existing: ``compare``, ``keep`` or ``overwrite`` what is there.
        memory: bytes the process may take; None = what the machine has free.
        sink: told about progress.

    Returns:
        What became of each case; failed ones are in it, not raised (see ``raise_failures``).

    Raises:
        UsageError: nothing to do, or existing results were made otherwise.

    Example::

        with offline_infer.load("liver_bundle") as model:
            offline_infer.predict_folder(model, "images", "results").raise_failures()
    """
    found = model.task.list_cases(Path(source), model.spec)
    job = FolderJob(found.cases, Path(output), found.problems, existing=existing, memory=memory, source=Path(source))
    return run_job(model, job, settings if settings is not None else RunSettings(), sink)
