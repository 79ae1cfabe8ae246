"""A folder of results: what is there already, what may be skipped, and how a result is put in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from offline_infer.errors import UsageError
from offline_infer.files import HeldFolder, inside
from offline_infer.folders import held
from offline_infer.images.cases import CaseFiles
from offline_infer.spec import BundleSpec
from offline_infer.tasks.base import Task
from offline_infer.tasks.records import MANIFEST, Provenance, RecordBook, ResultRecord
from offline_infer.tasks.reports import CaseOutcome
from offline_infer.tasks.settings import RunSettings

OnExisting = Literal["compare", "keep", "overwrite"]
"""``compare``: skip a result that this run would make alike, refuse any other; ``keep``: skip it anyhow."""
_SHOWN = 3
_TIME = "%Y-%m-%dT%H:%M:%S%z"


class ResultFolder:
    """The results of one model and one set of settings in one folder."""

    def __init__(self, folder: Path, task: Task, spec: BundleSpec, settings: RunSettings) -> None:
        self._folder, self._task, self._spec, self._settings = folder, task, spec, settings
        self._book = RecordBook(folder)
        self._held: HeldFolder | None = None

    def files(self, case_id: str) -> list[Path]:
        """Files of a complete case, the main one first.

        Raises:
            UsageError: the case's name, which may come from an untrusted file, leads out of the folder.
        """
        names = self._task.result_files(self._folder, case_id, self._spec, self._settings)
        return [inside(self._folder, path) for path in names]

    def refuse_inputs(self, source: Path | None, cases: Sequence[CaseFiles]) -> None:
        """
        Args:
            source: what the user named as input; a folder must not hold the results too.

        Raises:
            UsageError: a result would replace an input, or be taken for one the next time.
        """
        here = self._folder.resolve()
        if source is not None and source.is_dir() and here.is_relative_to(source.resolve()):
            raise UsageError(
                f"{self._folder} lies in the input folder {source}: results there would replace inputs or be taken for inputs "
                "the next time; name a folder outside of it"
            )
        inputs = {path.resolve() for case in cases for path in case.channels}
        for case in cases:
            for path in self.files(case.case_id):
                if path.resolve() in inputs:
                    raise UsageError(
                        f"{path} is an input of this run and would be replaced; name another folder or file"
                    )

    def sort_out(
        self,
        cases: Sequence[CaseFiles],
        existing: OnExisting,
        provenance_of: Callable[..., Provenance],
    ) -> Iterator[tuple[CaseFiles, CaseOutcome | None]]:
        """Each case with its outcome if its result need not be made, else None.

        Args:
            provenance_of: (case, known=record) -> how this run makes a case.

        Raises:
            UsageError: existing results were made otherwise; before anything else happens.
        """
        found: list[tuple[CaseFiles, CaseOutcome | None]] = []
        others: dict[str, str] = {}
        unfinished: list[ResultRecord] = []  # a process was killed after its result was in place
        for case in cases:
            files = self.files(case.case_id)
            if existing == "overwrite" or not all(path.exists() for path in files):
                found.append((case, None))
                continue
            record = self._book.read(case.case_id, files[0])
            if existing == "compare":
                reason = self._reason(case, record, provenance_of)
                if reason is not None:
                    others[case.case_id] = reason
            found.append((case, _skipped(case.case_id, files[0], record)))
            if record is not None and record.state == "writing":
                unfinished.append(record)
        if others:
            raise UsageError(self._refusal(others), remedy="keep-or-overwrite")
        for record in unfinished:
            self._complete(record)
        return iter(found)

    def _reason(
        self, case: CaseFiles, record: ResultRecord | None, provenance_of: Callable[..., Provenance]
    ) -> str | None:
        """Why an existing result is not what this run would make; None where it is."""
        if record is None:
            return "nothing says how it was made"
        try:
            differences = provenance_of(case, known=record).differences(record.provenance)
        except OSError as error:
            return f"its image cannot be read ({error.strerror or error})"
        return "; ".join(differences) if differences else None

    def _refusal(self, others: Mapping[str, str]) -> str:
        shown = ". ".join(f"{case}: {reason}" for case, reason in list(others.items())[:_SHOWN])
        more = f". And {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        return f"{self._folder} holds {len(others)} results that this run would make otherwise. {shown}{more}"

    @contextmanager
    def exclusive(self, share: str) -> Iterator[None]:
        """As :func:`offline_infer.folders.held`; results are refused once the folder is another one."""
        with held(self._folder, share):
            self._held = HeldFolder(self._folder)
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def writing(
        self, case_id: str, provenance: Provenance, versions: dict[str, str], outcome: CaseOutcome
    ) -> Iterator[None]:
        """Around the writing of a result: its record is there before it, and complete after it.

        Args:
            outcome: filled in inside the block.

        Raises:
            UsageError: the folder is no longer the one that is held, so that results would end up in two places.
        """
        known = outcome.to_json()  # all that is left of it where this process is killed before the end
        record = ResultRecord(case=case_id, state="writing", provenance=provenance, versions=versions, outcome=known)
        files = self.files(case_id)
        with self._in_place([*files, self._book.path(case_id)]):
            self._book.begin(record, files[0])
            yield
            finished = time.strftime(_TIME)
            self._book.complete(record.model_copy(update={"outcome": outcome.to_json(), "finished": finished}))

    def listing(self) -> AbstractContextManager[None]:
        """Around the writing of what stands in the folder for all its cases, the manifest among it.

        Raises:
            UsageError: as :meth:`writing`.
        """
        return self._in_place([self._folder / MANIFEST])

    def _in_place(self, files: Sequence[Path]) -> AbstractContextManager[None]:
        return nullcontext() if self._held is None else self._held.writing(files)

    def _complete(self, record: ResultRecord) -> None:
        """Complete the record of a result that was put in place by a process that was killed then."""
        file = self.files(record.case)[0]
        facts = file.stat()
        outcome = {**record.outcome, "status": "done", "file": file.name, "bytes": facts.st_size}
        finished = time.strftime(_TIME, time.localtime(facts.st_mtime))
        self._book.complete(record.model_copy(update={"outcome": outcome, "finished": finished}))

    def write(self, result: Any, case_id: str) -> Path:
        """Write a result; returns its main file."""
        return self._task.write(result, self._folder, case_id, self._spec, self._settings)


def _skipped(case_id: str, file: Path, record: ResultRecord | None) -> CaseOutcome:
    """The outcome of a case that was complete: what its record says, marked as skipped."""
    kept = record.outcome if record is not None else {}
    items, shape = kept.get("items"), kept.get("shape")
    return CaseOutcome(
        case_id,
        "skipped",
        file=file.name,
        items=items if isinstance(items, int) else 0,
        shape=tuple(shape) if isinstance(shape, (list, tuple)) else (),
    )
