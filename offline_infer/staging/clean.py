"""Deleting outputs that inference does not need, also while the tool that writes them is still running.

Only files inside a folder that carries our mark are touched, only regular files, never through a link, and only two
kinds:

* files that the outputs manifest lists with ``keep`` false;
* files that a running tool has written but nobody has listed yet - if the manifest says which tool writes into that
  folder, if the name is that of an unneeded output of a listed item, if the size is that of a complete output, and if
  the file has not changed for a while.

Without ``apply`` nothing is deleted.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline_infer.errors import Remedy, UsageError
from offline_infer.staging.outputs import OutputsManifest, Writer
from offline_infer.staging.work_folder import inside, is_work_folder
from offline_infer.staging.worklist import WORKLIST_FILE, Worklist, output_bytes

_BY_HAND = Remedy("adopt-outputs")
SETTLE_SECONDS = 10.0
"""A file that was written to within this time may still grow or be read by its tool."""


@dataclass(frozen=True)
class CleanReport:
    """What was, or would be, deleted.

    Attributes:
        applied: whether it was.
        files, bytes: number and length of the redundant files.
        waiting: redundant by name, but too young or not complete yet.
        kept: outputs that inference needs; never touched.
        paths: of the redundant files.
        notes: what could not be decided or deleted.
    """

    applied: bool
    files: int = 0
    bytes: int = 0
    waiting: int = 0
    kept: int = 0
    paths: tuple[Path, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "applied": self.applied,
            "files": self.files,
            "bytes": self.bytes,
            "waiting": self.waiting,
            "kept": self.kept,
            "notes": list(self.notes),
        }


def clean_outputs(work: Path | str, apply: bool = False, *, settle_seconds: float = SETTLE_SECONDS) -> CleanReport:
    """Delete redundant outputs of a work folder, rounds in progress included.

    Args:
        apply: really delete; otherwise only say what would be deleted.
        settle_seconds: how long a file that is not listed yet must have been unchanged.

    Raises:
        UsageError: not a work folder of ours.
    """
    folder = Path(work)
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist or is not a folder; name the work folder of a staged run")
    if not is_work_folder(folder):
        raise UsageError(f"{folder} does not carry the mark of a staged run; nothing in it was touched")
    reports = [_clean_one(place, apply, settle_seconds) for place in _places(folder)]
    notes = [note for report in reports for note in report.notes]
    if not any(report.files or report.kept or report.waiting for report in reports):
        notes.append(f"no outputs are listed in {folder} {_BY_HAND}")
    return CleanReport(
        applied=apply,
        files=sum(report.files for report in reports),
        bytes=sum(report.bytes for report in reports),
        waiting=sum(report.waiting for report in reports),
        kept=sum(report.kept for report in reports),
        paths=tuple(path for report in reports for path in report.paths),
        notes=tuple(notes),
    )


def _places(folder: Path) -> Iterator[Path]:
    """The folder itself, if it has a worklist, and the round that is being worked on."""
    if (folder / WORKLIST_FILE).is_file():
        yield folder
    rounds = folder / "rounds"
    if rounds.is_dir() and not rounds.is_symlink():
        for place in sorted(rounds.iterdir()):
            if not place.is_symlink() and is_work_folder(place) and (place / WORKLIST_FILE).is_file():
                yield place


def _clean_one(work: Path, apply: bool, settle_seconds: float) -> CleanReport:
    worklist, manifest = Worklist.load(work), OutputsManifest.load(work)
    needed = {entry.file for entry in manifest if entry.keep}
    listed = {entry.file: entry.bytes for entry in manifest if not entry.keep and entry.file not in needed}
    names, notes = _names_in_progress(worklist, manifest)
    paths: list[Path] = []
    total = waiting = kept = 0
    now = time.time()
    for path in _regular_files(work, [*manifest.writers]):
        relative = path.relative_to(work).as_posix()
        status = _lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        if relative in needed:
            kept += 1
            continue
        if relative in listed:
            complete = status.st_size == listed[relative]
        else:
            size = _redundant_size(relative, names)
            if size is None:
                continue
            # A clock that is ahead (a network drive) dates a file in the future: wait for it as well.
            complete = status.st_size in size and now - status.st_mtime >= settle_seconds
        if not complete:
            waiting += 1
            continue
        if apply and not _delete(work, path, notes):
            continue
        paths.append(path)
        total += status.st_size
    return CleanReport(apply, len(paths), total, waiting, kept, tuple(paths), tuple(notes))


def _names_in_progress(
    worklist: Worklist, manifest: OutputsManifest
) -> tuple[dict[str, dict[str, tuple[int, int]]], list[str]]:
    """Per folder that a known tool writes into: file name -> legal sizes (float32, float16) of an unneeded output."""
    by_folder: dict[str, Writer] = {}
    notes: list[str] = []
    for writer in manifest.writers:
        other = by_folder.get(writer.folder)
        if other is not None and (other.base, other.pattern) != (writer.base, writer.pattern):
            notes.append(
                f"{writer.folder}: both {other.tool} and {writer.tool} wrote there; only listed files are judged"
            )
            by_folder[writer.folder] = writer.model_copy(update={"pattern": ""})
        else:
            by_folder[writer.folder] = writer
    unneeded = [position for position, output in enumerate(worklist.header.outputs) if not output.keep]
    names: dict[str, dict[str, tuple[int, int]]] = {}
    for folder, writer in by_folder.items():
        names[folder] = {}
        if not writer.pattern:
            continue
        for position in unneeded:
            output = worklist.header.outputs[position]
            single = output_bytes(output.model_copy(update={"dtype": "float32"}))
            for item in worklist.items():
                names[folder][writer.file_name(item.stem, position)] = (single, single // 2)
    return names, notes


def _redundant_size(relative: str, names: dict[str, dict[str, tuple[int, int]]]) -> tuple[int, int] | None:
    """Legal sizes of a file if it is an unneeded output by name: the writer of the deepest folder above it decides."""
    folder, _, name = relative.rpartition("/")
    while folder:
        if folder in names:
            return names[folder].get(name)
        folder = folder.rpartition("/")[0]
    return None


def _regular_files(work: Path, writers: list[Writer]) -> Iterator[Path]:
    """Files below ``outputs/`` and below the folders writers named, links left out."""
    roots = {"outputs", *(writer.folder for writer in writers)}
    tops = [root for root in sorted(roots) if not any(root.startswith(other + "/") for other in roots)]
    for top in tops:
        start = inside(work, top)
        if start.is_symlink():
            continue
        for place, folders, files in os.walk(start, followlinks=False):
            folders.sort()
            for name in sorted(files):
                yield Path(place) / name


def _delete(work: Path, path: Path, notes: list[str]) -> bool:
    """Unlink one file below the work folder; the last part is never followed if it is a link."""
    try:
        inside(work, path.relative_to(work).as_posix()).unlink()
    except FileNotFoundError:
        return False  # somebody else cleaned at the same time
    except OSError as error:
        notes.append(f"{path}: cannot be deleted ({error.strerror})")
        return False
    return True


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
