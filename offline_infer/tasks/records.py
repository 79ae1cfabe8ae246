"""How each result of a folder was made: one record a case, kept beside the results, compared before a case is skipped.

A record is written before its result is put in place, with the stamp of the file that the result replaces, and once more
when the result is complete. So a process that is killed in between leaves no result whose origin is unknown: a file that is
not the replaced one is the recorded one, since results appear whole or not at all.

``RECORDS`` lies in the folder of the results; :func:`write_manifest` collects all records in one file for readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from offline_infer._version import __version__
from offline_infer.files import is_partial, sha256_file, write_json
from offline_infer.folders import RECORDS
from offline_infer.proof.run_records import RUN_RECORD, read_run_record
from offline_infer.spec import Record, Sha256

MANIFEST = RUN_RECORD
_LARGEST = 1 << 20
_OF_NOTHING = hashlib.sha256().hexdigest()

Stamp = tuple[int, int]
"""(bytes, mtime in ns)."""


class SourceFile(Record):
    """One file a case was made from; a folder (a DICOM series) is hashed as the sequence of its files."""

    name: str
    bytes: Annotated[int, Field(ge=0)]
    mtime_ns: int
    sha256: Sha256


class Provenance(Record):
    """How a result was made: everything that decides it.

    Attributes:
        task, model: the bundle's task and fingerprint.
        graphs: fold -> SHA-256 of the graph that answered.
        settings: of the run, as JSON.
        compiled: fold -> SHA-256 of what was compiled from that graph and answered in its place; empty where nothing was.
        engine, device, precision: what ran. ``device`` without its number: devices of a kind give the same answer.
        sources: the case's files.
    """

    task: str
    model: Sha256
    graphs: dict[str, str]
    compiled: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any]
    engine: str
    device: str
    precision: str
    sources: tuple[SourceFile, ...]

    def differences(self, other: Provenance) -> list[str]:
        """What is not the same, each as ``name: that value, not this one``."""
        found = []
        for name in ("task", "model", "graphs", "compiled", "engine", "device", "precision"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{name} was {_short(theirs)}, is {_short(mine)}")
        for name in sorted({*self.settings, *other.settings}):
            mine, theirs = self.settings.get(name), other.settings.get(name)
            if mine != theirs:
                found.append(f"{name} was {_short(theirs)}, is {_short(mine)}")
        if [file.sha256 for file in self.sources] != [file.sha256 for file in other.sources]:
            found.append("the image's files have other content")
        return found


class ResultRecord(Record):
    """The record of one case.

    Attributes:
        state: ``writing`` until the result is in place.
        replaces: stamp of the file that lay in the result's place, if one did.
        provenance: see there.
        versions: of the program and the engine's library.
        finished: local time, ISO 8601.
        outcome: :class:`offline_infer.tasks.reports.CaseOutcome` as JSON.
    """

    kind: Literal["offline_infer.result_record"] = "offline_infer.result_record"
    schema_version: Literal[1] = 1
    case: str
    state: Literal["writing", "done"]
    replaces: Stamp | None = None
    provenance: Provenance
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""
    outcome: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Existing:
    """A result that is there already.

    Attributes:
        record: how it was made, None where that is unknown.
        differences: to how this run would make it.
    """

    record: ResultRecord | None
    differences: tuple[str, ...]


class RecordBook:
    """The records of one folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = folder / RECORDS

    def path(self, case_id: str) -> Path:
        """Where a case's record is. The name is a hash: a case id may be too long, or differ in case alone."""
        return self._records / f"{hashlib.sha256(case_id.encode(errors='surrogateescape')).hexdigest()[:32]}.json"

    def read(self, case_id: str, result: Path) -> ResultRecord | None:
        """The record that belongs to a result that is there; None where there is none, or it belongs to an older file."""
        path = self.path(case_id)
        record = _read(path)
        if record is None or record.case != case_id:
            return None
        return None if record.state == "writing" and record.replaces == stamp(result) else record

    def begin(self, record: ResultRecord, result: Path) -> None:
        """Note that a result is about to be put in place."""
        replaced = record.model_copy(update={"state": "writing", "replaces": stamp(result)})
        write_json(self.path(record.case), replaced.model_dump(mode="json"))

    def complete(self, record: ResultRecord) -> None:
        """Note that a result is in place."""
        done = record.model_copy(update={"state": "done", "replaces": None})
        write_json(self.path(record.case), done.model_dump(mode="json"))

    def all(self) -> list[ResultRecord]:
        """Every readable record, by case."""
        paths = self._records.glob("*.json") if self._records.is_dir() else ()
        found = [record for path in paths if not is_partial(path) and (record := _read(path)) is not None]
        return sorted(found, key=lambda record: record.case)


def source_files(paths: Sequence[Path], known: ResultRecord | None = None) -> tuple[SourceFile, ...]:
    """The files of a case with their hashes; one that has the name and stamp of a known record is not read again.

    A file that is not there counts as empty: whoever reads the case says so by name.

    Raises:
        OSError: a file cannot be read.
    """
    before = {file.name: file for file in (known.provenance.sources if known is not None else ())}
    found = []
    for path in paths:
        found_stamp = stamp(path)
        size, mtime = found_stamp or (0, 0)
        old = before.get(path.name)
        same = old is not None and (old.bytes, old.mtime_ns) == (size, mtime)
        digest = old.sha256 if old is not None and same else _digest(path) if found_stamp else _OF_NOTHING
        found.append(SourceFile(name=_text(path.name), bytes=size, mtime_ns=mtime, sha256=digest))
    return tuple(found)


def joined(words: Iterable[str]) -> str:
    """Different words as one, e.g. ``fp16+fp32`` where folds ran in different precisions; empty ones are left out."""
    return "+".join(sorted({word for word in words if word}))


def stamp(path: Path) -> Stamp | None:
    """(bytes, newest mtime in ns) of a file, or of a folder's files together; None where there is nothing."""
    try:
        members = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [member.stat() for member in members]
    except OSError:
        return None
    return (sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0))


def write_manifest(folder: Path, run: Mapping[str, Any], failed: Sequence[Mapping[str, Any]]) -> None:
    """Write ``MANIFEST``: the last run as a whole, and every case of the folder with its own record.

    Args:
        run: facts about the run that ends now.
        failed: outcomes (JSON) of its cases that failed; they have no record.
    """
    cases = _recorded_cases(folder)
    recorded = {case.get("case") for case in cases}
    cases += [dict(outcome) for outcome in failed if outcome.get("case") not in recorded]
    write_json(folder / MANIFEST, {"program": "offline_infer", "version": __version__, **run, "cases": cases})


def manifest_is_current(folder: Path) -> bool:
    """Whether the manifest lists the folder's cases as their records say; not so after a run that was killed before it
    wrote one."""
    cases = (read_run_record(folder) or {}).get("cases")
    if not isinstance(cases, list):
        return False
    return [case for case in cases if isinstance(case, dict) and "record" in case] == _recorded_cases(folder)


def task_of_results(folder: Path) -> str | None:
    """Which task's results a folder holds, as its manifest says; None where nothing says so."""
    task = (read_run_record(folder) or {}).get("task")
    return task if isinstance(task, str) else None


def _recorded_cases(folder: Path) -> list[dict[str, Any]]:
    """Every complete case of a folder as the manifest lists it."""
    return [
        {
            **record.outcome,
            "record": {
                **record.provenance.model_dump(mode="json"),
                "versions": record.versions,
                "finished": record.finished,
            },
        }
        for record in RecordBook(folder).all()
        if record.state == "done"
    ]


def _read(path: Path) -> ResultRecord | None:
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST:
            return None
        return ResultRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError, RecursionError):
        return None


def _digest(path: Path) -> str:
    if not path.is_dir():
        return sha256_file(path)
    parts = [sha256_file(member) for member in sorted(path.iterdir()) if member.is_file()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _text(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
